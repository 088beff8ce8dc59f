"""What was traced is kept from run to run, and taken only for the model that it is of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from greentrainer.engine import GraphCache, Traces
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.types import Batch, CostGraph
from tests.conformance.families import batch_for, build
from tests.trainer import arguments, mixed

SIZES = ((2, 20), (3, 33), (2, 40), (4, 24))


def prompted(rows: int, length: int) -> Batch:
    """A batch whose last third is labelled."""
    batch = batch_for("", rows=rows, length=length)
    batch["labels"][:, : 2 * length // 3] = -100
    return batch


def graphs(model: Any, traces: Traces | None, split: bool = True) -> list[CostGraph]:
    """Of batches of some sizes, whole and with a short tail, with the head where labels are."""
    model.train()
    cut = SplitForward(model) if split else None
    head = LabelledHead(model)
    cache = GraphCache(model, model.parameters(), None, head=head, split=cut, traces=traces)
    found = []
    for size in SIZES:
        batch = prompted(*size)
        for tail in (None, 4):
            if cut is not None:
                cut.tail = tail
            found.append(cache.of_batch(batch))
    head.close()
    if cut is not None:
        cut.close()
    return found


@pytest.mark.parametrize("family", ["opt", "bloom", "llama", "t5", "falcon", "phi", "llama-lora"])
def test_a_second_run_traces_nothing(family: str, tmp_path: Path, traced: list[int]) -> None:
    traces = Traces(tmp_path / "traces")
    first = graphs(build(family), traces)
    assert traced
    traced.clear()
    torch.manual_seed(7)  # other weights do not matter
    assert graphs(build(family), traces) == first
    assert not traced


def same(_model: Any) -> None:
    pass


def frozen(model: Any) -> None:
    next(model.parameters()).requires_grad_(False)


def told_otherwise(model: Any) -> None:
    model.config.rope_theta = 5.0


def shorter(model: Any) -> None:
    del model.model.layers[-1]


def other_pass(model: Any) -> None:
    layer = model.model.layers[0].mlp
    before = layer.forward
    layer.forward = lambda x: before(before(x))


def other_number(model: Any) -> None:
    model.model.layers[0].self_attn.attention_dropout = 0.25


def another_constant(model: Any) -> None:
    """As `other_pass`, but for a number."""
    layer = model.model.layers[0].mlp
    before = layer.forward
    layer.forward = lambda x: before(x[..., :16])


def half(model: Any) -> None:
    model.to(torch.bfloat16)


def kernels(model: Any) -> None:
    model.set_attn_implementation("sdpa")


def evaluating(model: Any) -> None:
    model.model.layers[1].eval()


CHANGES = (
    frozen, told_otherwise, shorter, other_pass, another_constant, other_number, half, kernels,
    evaluating,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_structure_has_another_file(change: Callable[[Any], None], tmp_path: Path) -> None:
    traces = Traces(tmp_path)

    def path(make: Callable[[Any], None], **more: Any) -> Path:
        model = build("llama")
        make(model)
        return traces.path(model, [p for p in model.parameters() if p.requires_grad], None, None)

    assert path(same) == path(same)
    assert path(other_pass) == path(other_pass)
    assert path(same) != path(change)
    assert (path(other_pass) == path(change)) == (change is other_pass)


def test_another_loss_or_way_has_another_file(tmp_path: Path) -> None:
    model: Any = build("llama")
    parameters = list(model.parameters())
    split, head = SplitForward(model), LabelledHead(model)
    found = [
        Traces(tmp_path, loss).path(model, parameters, *way)
        for loss in ("one", "other")
        for way in ((None, None), (head, None), (None, split), (head, split))
    ]
    split.coarse = not split.coarse
    found.append(Traces(tmp_path, "one").path(model, parameters, None, split))
    assert len(set(found)) == len(found)


def test_what_is_of_another_model_is_not_taken(tmp_path: Path, traced: list[int]) -> None:
    """As if its structure had not told two models apart."""
    traces = Traces(tmp_path)
    right = graphs(build("llama"), None)
    graphs(build("llama"), traces)
    (file,) = tmp_path.glob("*.json")
    other: Any = build("llama")
    del other.model.layers[-1]
    graphs(other, traces)
    (wrong,) = set(tmp_path.glob("*.json")) - {file}
    file.write_text(wrong.read_text())
    traced.clear()
    assert graphs(build("llama"), traces) == right
    assert traced
    traced.clear()
    assert graphs(build("llama"), traces) == right  # kept anew
    assert not traced


@pytest.mark.parametrize("harm", ["cut", "{}", "[]", "null", "numbers", "bytes"])
def test_a_damaged_file_is_none(harm: str, tmp_path: Path, traced: list[int]) -> None:
    traces = Traces(tmp_path)
    right = graphs(build("llama"), traces)
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    if harm == "cut":
        file.write_text(text[: len(text) // 2])
    elif harm == "numbers":
        plain = json.loads(text)
        plain["foretold"][0]["graph"]["costs"] = [10**6] * 5
        file.write_text(json.dumps(plain))
    elif harm == "bytes":
        file.write_bytes(b"\xff\xfe\x00")
    else:
        file.write_text(harm)
    traced.clear()
    assert graphs(build("llama"), traces) == right
    assert traced


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, traced: list[int]) -> None:
    (tmp_path / "file").write_text("")
    traces = Traces(tmp_path / "file" / "traces")
    assert graphs(build("llama"), traces) == graphs(build("llama"), None)


def test_few_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greentrainer.engine.traces.KEPT", 2)
    for loss in "abc":
        graphs(build("llama"), Traces(tmp_path, loss), split=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_trainers_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[int]
) -> None:
    """The same run, with the same books, whether anything was kept or not."""
    monkeypatch.setenv("GREENTRAINER_CACHE", str(tmp_path / "cache"))

    def run() -> list[Any]:
        torch.manual_seed(0)
        trainer = GreenTrainer(
            build("llama"), arguments(tmp_path), **mixed(12), green=GreenConfig(rho=0.6)
        )
        trainer.train()
        return [entry | {"seconds": 0} for entry in trainer.ledger.state_dict()]

    without = run()
    assert not list(tmp_path.glob("cache/traces/*"))
    monkeypatch.delenv("GREENTRAINER_KEEP")
    first = run()
    traced.clear()
    assert run() == first == without
    assert not traced


class Doubled(GreenTrainer):
    """A loss of the user's own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Twice the model's."""
        return 2 * super().compute_loss(*args, **kwargs)


def test_a_loss_of_ones_own_is_traced_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[int]
) -> None:
    monkeypatch.setenv("GREENTRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GREENTRAINER_KEEP")
    model, green = build("llama"), GreenConfig(rho=0.6)
    Doubled(model, arguments(tmp_path), **mixed(4), green=green).train()
    assert traced
    assert not list(tmp_path.glob("cache/traces/*"))
