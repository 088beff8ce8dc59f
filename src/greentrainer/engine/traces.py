"""What was traced of a model, kept from run to run.

A file for each structure: the model's modules and what they are told, its tensors' shapes, which of
them may be trained, what of the forward pass is left out, the loss, the device, versions, and the
code of the model and of this package.  Whoever reads one holds it against a counted pass of a real
batch (`GraphCache`), so that a structure which this does not tell apart does no harm.  A file that
cannot be read or written is none: then the model is traced.
"""

import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from greentrainer.cost import Foretold, foretold_of, graph_of, plain_foretold, plain_graph
from greentrainer.forward import LabelledHead, Signature, SplitForward
from greentrainer.types import CostGraph

FORMAT = 2
KEPT = 64
"""Files in a folder; the one used longest ago goes first."""

logger = logging.getLogger(__name__)


@dataclass
class Learned:
    """What a few traces tell of batches of all sizes.

    foretold: for templates of signatures the graphs of all batches alike.
    per_position: forms of graphs, and what one more position of the head adds to them.
    """

    foretold: list[tuple[Signature, Foretold]] = field(default_factory=list)
    per_position: list[tuple[CostGraph, CostGraph]] = field(default_factory=list)

    def share_of(self, form: CostGraph) -> CostGraph | None:
        """What a position more adds to graphs of this form; None if that is not known."""
        return next((share for known, share in self.per_position if known == form), None)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        graphs = list({id(one): one for _, one in self.foretold}.values())
        numbers = {id(one): number for number, one in enumerate(graphs)}
        return {
            "foretold": [plain_foretold(one) for one in graphs],
            "templates": [
                [[[path, list(shape)] for path, shape in template], numbers[id(one)]]
                for template, one in self.foretold
            ],
            "per_position": [
                [plain_graph(form), plain_graph(share)] for form, share in self.per_position
            ],
        }

    @staticmethod
    def of(plain: Any) -> "Learned":
        """These again.  Raises KeyError, IndexError, TypeError or ValueError for what are none."""
        graphs = [foretold_of(one) for one in plain["foretold"]]
        foretold = [
            (tuple((path, tuple(shape)) for path, shape in template), graphs[number])
            for template, number in plain["templates"]
        ]
        shares = [(graph_of(form), graph_of(share)) for form, share in plain["per_position"]]
        return Learned(foretold, shares)


class Traces:
    """A folder of what was traced.

    loss: what sets the loss of batches apart from others, by name.
    """

    def __init__(self, folder: Path, loss: str = "the model's own") -> None:
        self.folder, self.loss = folder, loss

    def path(
        self,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        head: LabelledHead | None,
        split: SplitForward | None,
    ) -> Path:
        """The file of such a model."""
        digest = hashlib.sha256(f"{FORMAT} {_code(_HERE)} {self.loss}".encode())
        for line in structure(model, trained, head, split):
            digest.update(line.encode() + b"\n")
        return self.folder / f"{digest.hexdigest()[:32]}.json"

    def read(self, path: Path) -> Learned | None:
        """What a file holds; None for one that is damaged, or not there."""
        try:
            found = Learned.of(json.loads(path.read_text(encoding="utf-8")))
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            logger.info("%s is not used: %s", path, error)
            return None
        return found

    def write(self, path: Path, learned: Learned) -> None:
        """Keep it, where that can be."""
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(learned.plain()), encoding="utf-8")
            os.replace(part, path)
            ages = sorted(self.folder.glob("*.json"), key=lambda one: -one.stat().st_mtime)
            for old in ages[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            logger.info("traces are not kept: %s", error)

    def drop(self, path: Path) -> None:
        """It was of another model."""
        logger.info("%s does not fit the model: it is traced again", path)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def structure(
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    head: LabelledHead | None,
    split: SplitForward | None,
) -> Iterator[str]:
    """All that the costs of passes may depend on, but for their batches, in lines."""
    may = {id(parameter) for parameter in trained}
    numbers: dict[int, int] = {}
    yield f"torch {torch.__version__} {torch.get_default_dtype()} {_kernels()}"
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        yield json.dumps(config.to_dict(), sort_keys=True, default=str)
        yield str(getattr(config, "_attn_implementation", None))
    yield f"head {head is not None}"
    if split is not None:
        yield f"split {split.encodes} {split.numbered} {split.keeping} {split.coarse}"
    for name, module in model.named_modules():
        kind: Any = type(module)
        own = module.__dict__.get("forward")
        yield f"{name} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}"
        yield f"{_code_of(kind)} {_name(own)} {_attributes(module)} {_hooks(module)}"
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                number = numbers.setdefault(id(tensor), len(numbers))
                told = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type)
                yield f"{key} {number} {told} {id(tensor) in may}"


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    plain = (bool, int, float, str, type(None))
    return [(k, v) for k, v in sorted(vars(module).items()) if isinstance(v, plain)]


def _hooks(module: nn.Module) -> list[str]:
    both = (module._forward_pre_hooks, module._forward_hooks)
    return [_name(hook) for hooks in both for hook in hooks.values()]


def _name(function: Any) -> str:
    """Of a function or method, and its code."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    told = _digest(_instructions(code).encode()) if code else str(type(function))
    return f"{module}.{name} {told}"


def _instructions(code: CodeType) -> str:
    """What a function does, without where it stands."""
    found = [code.co_code.hex(), *code.co_names]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.append(_instructions(constant))
        else:
            found.append(str(sorted(map(repr, constant))) if isinstance(constant, frozenset)
                         else repr(constant))  # fmt: skip
    return " ".join(found)


def _kernels() -> str:
    if not torch.cuda.is_available():
        return ""
    allowed: Any = torch.backends.cuda
    flags = (allowed.flash_sdp_enabled(), allowed.mem_efficient_sdp_enabled())
    return f"{torch.cuda.get_device_capability()} {flags}"


@cache
def _code_of(kind: type) -> str:
    """Of a class and those it comes from: their files, and the pass that it makes."""
    found = []
    for one in kind.__mro__[:-1]:
        if one is nn.Module:
            break
        source: Any = getattr(sys.modules.get(one.__module__), "__file__", None)
        found.append(_code((Path(source),)) if source else one.__qualname__)
        found.append(_name(vars(one).get("forward")))
    return " ".join(found)


@cache
def _code(files: Sequence[Path]) -> str:
    """Of what stands in these files."""
    return _digest(*(path.read_bytes() for path in files if path.is_file()))


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


_HERE = tuple(sorted(Path(inspect.getfile(Traces)).parents[1].rglob("*.py")))
