"""No step of a split run waits for its device: what is looked at is looked at on the host.

Without a GPU a tensor "on the host" is told by its type, and whatever is looked at of another one
is taken for waiting.  (A plain step looks once, in transformers, whether its mask hides anything.)
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hardware.seconds import VIEWS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from greentrainer import AdaptiveBackprop
from greentrainer.forward import cut, head, shapes, split
from greentrainer.forward.host import moved, on_host
from tests.conformance.families import build
from tests.conformance.test_split import ragged
from tests.integration.test_positions import HEAD

WAITS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "_unique2"}


class OnHost(torch.Tensor):
    """Stands in for a tensor on the host, where the others stand in for tensors on a device."""


class Watch(TorchDispatchMode):
    """Counts what is launched on the device, and notes where it is waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        host = any(isinstance(leaf, OnHost) for leaf in tree_leaves((args, kwargs)))
        if not host and name not in VIEWS:
            self.launched[name] += 1
        if not host and name in WAITS:
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            passing = ("/tests/", "/cost/flops.py")  # a step that is counted passes through there
            ours = [f for f in frames if not any(part in f.filename for part in passing)]
            self.waits.append(f"{name} at {ours[-1].filename}:{ours[-1].lineno}" if ours else name)
        return func(*args, **(kwargs or {}))


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on host and device are told apart."""

    def fetched(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, OnHost) else tensor.detach().as_subclass(OnHost)

    def sent(tensor: torch.Tensor, _device: torch.device) -> torch.Tensor:
        return tensor.as_subclass(torch.Tensor).clone()

    for module in (split, head, shapes):
        monkeypatch.setattr(module, "on_host", fetched)
    for module in (cut, head):
        monkeypatch.setattr(module, "to_device", sent)


def step(model: Any, optimizer: Any, batch: Any, loss_of: Callable[[Any], Any]) -> None:
    loss_of(batch).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("prompts", ["whole", "last half", "grounds half"])
@pytest.mark.parametrize("family", ["opt", "llama", "qwen3", "gemma3"])
def test_nothing_waits(family: str, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = build(family).train(), [ragged() for _ in range(8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.5, total_batches=8, positions=4, steps="choose",
        prompts=prompts, forward=HEAD,
    ) as engine:  # fmt: skip
        engine.reselect(batches[:2])
        for batch in batches:
            engine.graphs.of_batch(batch)  # traced beforehand
        apart(monkeypatch)
        with Watch() as watch:
            for batch in batches[2:4]:
                step(model, optimizer, batch, engine.loss)
    assert watch.launched["embedding"] >= 4
    assert [wait for wait in watch.waits if "transformers" not in wait] == []


def test_what_is_looked_at_would_be_seen() -> None:
    with Watch() as watch:
        torch.ones(3).sum().item()
        torch.ones(3).as_subclass(OnHost).sum().item()
    assert [wait.split()[0] for wait in watch.waits] == ["_local_scalar_dense"]


def test_a_copy_is_remembered_until_the_tensor_is_written_to() -> None:
    """On the meta device nothing could be fetched; a tensor of the host is its own copy."""
    here = torch.arange(4)
    assert on_host(here) is here
    moved({"labels": here}, {"labels": here.clone()})
    assert on_host(here) is here


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_nothing_waits_on_a_gpu(family: str) -> None:
    model = build(family).train().cuda()
    originals = [ragged() for _ in range(8)]
    batches = [{name: t.cuda() for name, t in batch.items()} for batch in originals]
    for batch, original in zip(batches, originals, strict=True):
        moved(batch, original)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    with AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.5, total_batches=8, positions=4, steps="choose",
        forward=HEAD,
    ) as engine:  # fmt: skip
        engine.reselect(batches[:2])
        for batch in batches:
            engine.graphs.of_batch(batch)
        step(model, optimizer, batches[2], engine.loss)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(model, optimizer, batches[3], engine.loss)
            torch.ones(1, device="cuda").item()  # one that is seen
        torch.cuda.set_sync_debug_mode("default")
    assert caught
    assert all("transformers" in one.filename for one in caught[:-1])
