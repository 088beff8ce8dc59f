"""A checkpoint of what changed: the tensors that differ from the model that training began with.

A run at rho 0.5 trains some tensors and leaves the rest bit-identical, so the base and the few that
moved say it all.  A delta is one safetensors file.  It holds whole tensors, not differences, so the
model comes back bit for bit; and two fingerprints, of the base and of the result, so that it cannot
be put on anything else.

A fingerprint is a hash over names, types, shapes and bytes of all parameters and saved buffers,
each counted once however often it is shared.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

DELTA = "delta.safetensors"
FORMAT = "greentrainer-delta-1"


@dataclass(frozen=True)
class Delta:
    """What `save_delta` wrote.

    path: the file.  tensors: names of those that changed.  bytes, full_bytes: size of the file, and
    of the whole model's tensors.
    """

    path: Path
    tensors: tuple[str, ...]
    bytes: int
    full_bytes: int

    @property
    def share(self) -> float:
        """Size as a share of a full checkpoint."""
        return self.bytes / self.full_bytes


def save_delta(model: nn.Module, base: nn.Module, folder: str | Path) -> Delta:
    """Write into `folder` the tensors of `model` that differ from `base`.

    Raises ValueError if the two do not have the same tensors.
    """
    new, old = tensors_of(model), tensors_of(base)
    differing = {
        n for n in {*new, *old} if n not in new or n not in old or _kind(new[n]) != _kind(old[n])
    }
    if differing:
        raise ValueError(
            f"the base is another model: {len(differing)} tensors differ in kind, such as "
            f"{min(differing)}"
        )
    changed = {n: t.contiguous() for n, t in new.items() if not _same(t, old[n])}
    metadata = {"format": FORMAT, "base": fingerprint(old), "result": fingerprint(new)}
    path = Path(folder) / DELTA
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    save_file(changed, part, metadata)
    os.replace(part, path)
    full = sum(tensor.numel() * tensor.element_size() for tensor in new.values())
    return Delta(path, tuple(changed), path.stat().st_size, full)


def load_delta(model: nn.Module, folder: str | Path) -> tuple[str, ...]:
    """Turn `model`, which must be the delta's base, into its result; names of what changed.

    folder: that `save_delta` wrote into, or the file in it.

    Raises ValueError, with the model untouched, for another base or a file that is no delta; and
    if the result is not bit for bit the one that was saved.
    """
    path = Path(folder) / DELTA if Path(folder).is_dir() else Path(folder)
    metadata, changed = _read(path)
    own = tensors_of(model)
    if fingerprint(own) != metadata["base"]:
        raise ValueError(f"{path} belongs to another base model, or to other weights of this one")
    if any(name not in own or _kind(own[name]) != _kind(t) for name, t in changed.items()):
        raise ValueError(f"{path} is damaged: it holds tensors that its base has not")
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)
    if fingerprint(own) != metadata["result"]:
        raise ValueError(f"{path} is damaged: the result is not the model that was saved")
    return tuple(changed)


def base_dtype(folder: str | Path) -> torch.dtype:
    """The type of the tensors of the delta in `folder`: the one to load the base in."""
    path = Path(folder) / DELTA if Path(folder).is_dir() else Path(folder)
    _, changed = _read(path)
    found = {tensor.dtype for tensor in changed.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name; a shared one under its first name only."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    saved = model.state_dict()
    buffers = {n: b for n, b in model.named_buffers() if n in saved}
    return {name: tensor.detach() for name, tensor in {**found, **buffers}.items()}


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {_kind(tensor)}\n".encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the delta {path}: {error}") from error
    if metadata.get("format") != FORMAT or not {"base", "result"} <= metadata.keys():
        raise ValueError(f"{path} is no delta of this format ({FORMAT})")
    return metadata, changed


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit: a NaN equals itself, and 0 is not -0."""
    return torch.equal(_bytes(a), _bytes(b))
