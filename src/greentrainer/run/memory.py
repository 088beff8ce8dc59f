"""A run within its memory: what is held, what may be, and how the run is changed to keep to that.

How is found in `fitting.py`, and kept in the run's folder, so that a resumed run goes on with it.
"""

import ctypes
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any, Literal

import psutil
import torch
from torch import nn
from transformers import Trainer

from greentrainer.config import RunConfig
from greentrainer.cost import MOMENTS, rows_that_fit
from greentrainer.forward import ForwardSavings
from greentrainer.methods import Method
from greentrainer.model import Alone, joined, on_this_machine
from greentrainer.records import Entry, write_json
from greentrainer.run.arguments import arguments_of
from greentrainer.run.asked import forward_of, may_shorten, positions_of
from greentrainer.run.fitting import SPARE, Fitting
from greentrainer.run.way import Way
from greentrainer.types import Batch

KEPT = "memory.json"
RANK = 8
"""Of adapters where not everything fits."""
FASTER = 10
"""How many times the learning rate of the model's own tensors theirs is."""
SIDE = 256
"""Of the matrix that an optimizer is tried on."""
M_MMAP_THRESHOLD = -3
MOST = 0.5
"""Of its memory that a run's weights take in float32 if nothing else is said."""
RETURNED = 1 << 16
"""Bytes of an allocation from which on the C library gives it back when it is freed."""


def limit_of(asked: int | Literal["auto"], device: torch.device) -> int:
    """Bytes that a run may take."""
    if asked != "auto":
        return int(asked)
    if device.type == "cuda":
        return int(sum(torch.cuda.mem_get_info(device)[:1]) + torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available / on_this_machine() + held_on(device))


def weights_of(config: RunConfig, count: Callable[[], int]) -> torch.dtype:
    """What the model is held in.  count: of its values, which is asked for only if it matters."""
    if config.bits:
        return torch.bfloat16 if config.bf16 else torch.float32
    if config.weights is not None:
        return torch.bfloat16 if config.weights == "bfloat16" else torch.float32
    if config.memory is None:
        return torch.float32
    limit = config.memory
    if limit == "auto":
        there = torch.cuda.is_available()
        limit = torch.cuda.mem_get_info()[1] if there else psutil.virtual_memory().total
    whole = torch.float32.itemsize * count()
    return torch.bfloat16 if whole > MOST * limit else torch.float32


def held_on(device: torch.device) -> int:
    """Bytes that are held now: of a GPU those allocated, else those of the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Have the C library give freed memory back at once: what is counted is what is held."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED)
            ctypes.CDLL(None).malloc_trim(0)


def evaluation_rows(asked: int | Literal["auto"], model: nn.Module, batch: Batch, most: int) -> int:
    """Rows of such a batch that are evaluated at a time: `most`, or fewer if they must be."""
    give_back()
    device = next(model.parameters()).device
    room = int((1 - SPARE) * limit_of(asked, device)) - held_on(device)
    return rows_that_fit(model, batch, None, most, room)


def state_ratio(config: RunConfig, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes that the run's optimizer keeps for each byte of a weight of this kind, by a trial."""
    weight = nn.Parameter(torch.zeros(SIDE, SIDE, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments_of(config, 1))
        optimizer = kind([weight], **options)
        optimizer.step()
    except (ImportError, RuntimeError, TypeError, ValueError):  # the run itself will say so
        return MOMENTS
    kept = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
    return sum(value.nbytes for value in kept) / (SIDE * SIDE * dtype.itemsize)


def savings_of(config: RunConfig, method: Method, model: nn.Module, batch: Batch) -> ForwardSavings:
    """What the run will leave out of its passes."""
    options = replace(forward_of(config, method, 0), keep="nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run says so itself
        positions = "choose" if may_shorten(config, method) else positions_of(config, method)
        return ForwardSavings(model, model, options, positions, batch, None, Alone())


def within(
    config: RunConfig,
    method: Method,
    model: nn.Module,
    batches: Callable[[], tuple[Batch, Sequence[Batch], Batch | None]],
) -> tuple[RunConfig, nn.Module, Way, list[Entry]]:
    """The configuration as it keeps to its memory, the model to train, how, and what that took.

    Of several processes each has so much, and all go the way of the one that has least.

    model: as loaded; what the method puts into it is put in.  Where not everything fits adapters
    are trained, or tensors that do not fit are frozen.  batches: makes the
    largest one of the run, some of its first, and the largest that evaluations during training are
    on, on the model's device.

    Raises ValueError where nothing fits.
    """
    way, spent = kept_way(config), list[Entry]()
    if way is not None:
        config = changed(config, way)
        adapted: nn.Module = method.adapt(model, config)
    else:
        assert config.memory is not None
        give_back()
        adapted = method.adapt(model, config)
        way, spent = _found(config, method, adapted, *batches())
        config = changed(config, way)
        if way.adapters is not None:
            adapted = method.adapt(model, config)
        place = config.output_dir / KEPT
        if place.parent.is_dir() and joined().rank == 0:
            write_json(place, asdict(way))
    for name, parameter in adapted.named_parameters():
        if way.names is not None and name not in way.names:
            parameter.requires_grad_(False)
    return config, adapted, way, spent


def _found(
    config: RunConfig,
    method: Method,
    model: nn.Module,
    largest: Batch,
    first: Sequence[Batch],
    judged: Batch | None,
) -> tuple[Way, list[Entry]]:
    """The way in which a run fits, and what finding it took.  The model is left as it was."""
    assert config.memory is not None
    device, processes = next(model.parameters()).device, joined()
    limit, held = limit_of(config.memory, device), held_on(device)
    limit, held = min(processes.every(limit)), max(processes.every(held))

    @contextmanager
    def fitting(config: RunConfig, model: nn.Module) -> Iterator[Fitting]:
        model.train()
        dtype = next((p.dtype for p in model.parameters() if p.requires_grad), torch.float32)
        ratio = state_ratio(config, dtype, device)
        with closing(savings_of(config, method, model, largest)) as short, processes.agreed():
            yield Fitting(config, method, model, largest, limit, held, short, judged, ratio)

    with fitting(config, model) as own:
        way = processes.first(own.everything())
        narrow = with_adapters(config, method) if way is None else None
    if narrow is not None:
        with _adapted(model, method, narrow) as other, fitting(narrow, other) as small:
            way = processes.first(small.everything())
        if way is not None:
            way = replace(way, adapters=narrow.lora_rank)
    if way is not None:
        return way, []
    with fitting(config, model) as own:
        return processes.first(own.way(first)), own.spent


def with_adapters(config: RunConfig, method: Method) -> RunConfig | None:
    """The same with adapters in place of the model's own tensors; None where there can be none."""
    own = method.budgeted and method.optional and config.lora_rank is None
    if not own or config.fewer != "adapters" or config.bits or find_spec("peft") is None:
        return None
    return _with_adapters(config, RANK)


def _with_adapters(config: RunConfig, rank: int) -> RunConfig:
    rate = FASTER * config.learning_rate
    return config.model_copy(update={"lora_rank": rank, "learning_rate": rate})


@contextmanager
def _adapted(model: nn.Module, method: Method, config: RunConfig) -> Iterator[nn.Module]:
    """The model with adapters, in here."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng():
        adapted: Any = method.adapt(model, config)
    try:
        yield adapted
    finally:
        adapted.unload()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def kept_way(config: RunConfig) -> Way | None:
    """How a run that is resumed kept within its memory; None where it did nothing for it."""
    place = config.output_dir / KEPT
    if not config.resume or not place.is_file():
        return None
    saved = json.loads(place.read_text(encoding="utf-8"))
    names = saved.pop("names")
    return Way(**saved, names=None if names is None else tuple(names))


def resumed_smaller(config: RunConfig) -> RunConfig | None:
    """The configuration with which a run that ran out of memory goes on, with fewer rows at a time.

    None where there are no fewer, or where gradients cannot be added up.
    """
    again = config.model_copy(update={"resume": True, "overwrite": False})
    way = kept_way(again) or Way(updates=config.updates or "step", limit=None, held=0, told=0)
    at_once = way.rows or config.batch_size
    fewer = [n for n in range(at_once // 2, 0, -1) if config.batch_size % n == 0]
    if way.updates == "backward" or not fewer:
        return None
    evaluated = None if way.evaluated is None else min(way.evaluated, fewer[0])
    way = replace(way, rows=fewer[0], evaluated=evaluated)
    write_json(config.output_dir / KEPT, asdict(way))
    return again


def changed(config: RunConfig, way: Way) -> RunConfig:
    """The configuration as the run keeps to it.  Its optimizer steps are of the same rows."""
    made: dict[str, Any] = {"updates": way.updates}
    if way.tail is not None:
        made["positions"] = way.tail
    if way.rows is not None:
        made["batch_size"] = way.rows
        made["accumulate"] = config.accumulate * (config.batch_size // way.rows)
    if way.recompute:
        made["activation_checkpointing"] = True
    if way.adapters is not None:
        config = _with_adapters(config, way.adapters)
    if config.keep_activations is None and not torch.cuda.is_available():
        made["keep_activations"] = "nothing"  # it would be kept where the limit is
    return config.model_copy(update=made)
