"""What a plan says that each size of memory buys."""

import pytest
import torch

from greentrainer.config import RunConfig
from greentrainer.plan import room
from greentrainer.run.way import Form
from tests.conformance.families import batch_for, build


def test_more_memory_buys_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """From half precision and few tensors to the run as it was asked for."""
    model = build("llama").to("meta")
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    monkeypatch.setattr(room, "SIZES", (40, 70, 110, 180, 400, 5000, 9000))
    monkeypatch.setattr(room, "GIGA", weights // 100)
    config = RunConfig(method="green", memory=1, batch_size=4)
    batch = {name: value.to("meta") for name, value in batch_for("llama", 4, 32).items()}
    found = room.rooms(config, model, batch, room.Sketched(None, None))
    halved = [row["gigabytes"] < 200 for row in found]
    assert [row["weights"] == "bfloat16" for row in found] == halved
    assert next(model.parameters()).dtype == torch.float32
    assert found[0]["trained"] == 0
    assert found[0]["updates"] is None
    shares = [row["trained"] for row in found if row["weights"] == "float32"]
    assert shares == sorted(shares)
    last = found[-1]
    assert Form(last["updates"], last["tail"], last["rows"], last["recompute"]) == Form()
    assert (last["trained"], last["gigabytes"]) == (1, 5000)
