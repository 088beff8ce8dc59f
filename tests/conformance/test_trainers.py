"""Any Trainer: what its run executes is what the books say, and within rho of its own full run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.trainers import KINDS, MODES, Kind, counting, trainer_of

USUAL = {
    ("sft", "plain"), ("sft, packed", "plain"), ("dpo", "plain"), ("grpo", "plain"),
    ("reward", "accumulated"), ("sft", "lora"),
}  # fmt: skip
NEVER = {(name, mode) for name in ("seq2seq", "sentences") for mode in ("not checkpointed", "lora")}
"""What these Trainers do not do of themselves."""
ALL = [
    pytest.param(name, mode, marks=[] if (name, mode) in USUAL else pytest.mark.thorough)
    for name in KINDS
    for mode in MODES
    if (name, mode) not in NEVER
]


def rho_of(kind: Kind, mode: str) -> float:
    """LoRA's forward pass is most of what it costs."""
    return max(kind.rho, 0.9) if mode == "lora" else kind.rho


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "mode"), ALL)
def test_the_books_say_what_is_executed(name: str, mode: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    torch.manual_seed(1)
    full = sum(counting(trainer_of(kind, tmp_path / "full", mode)))
    torch.manual_seed(1)
    rho = rho_of(kind, mode)
    trainer = trainer_of(kind, tmp_path / "green", mode, rho)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    executed = counting(trainer)
    ledger = trainer.ledger
    aside = ledger.probe_flops if not trainer.green_callback.waits else 0
    assert abs(sum(executed) + aside + 0.0 - ledger.spent_flops) <= 1e-3 * ledger.spent_flops
    assert ledger.spent_flops <= (rho + 1e-9) * full
    # of adapters alone, full asks for a gradient at the embeddings that nobody needs
    assert ledger.full_flops <= full if mode == "lora" else ledger.full_flops == full
    assert ledger.verified >= 2
    assert ledger.worst_deviation <= 1e-3
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], p)}
    trained: set[Any] = {n for event in trainer.engine.history for n in event["names"]}
    assert moved <= trained
    assert moved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["orpo", "cpo", "reward", pytest.param("kto", marks=pytest.mark.thorough)],
)
def test_batches_of_new_sizes_are_foretold(name: str, tmp_path: Path, traced: list[int]) -> None:
    """Also where they hold their texts, and where the loss goes through its rows one by one."""
    torch.manual_seed(1)
    kind = KINDS[name]
    trainer = trainer_of(kind, tmp_path, "plain", kind.rho)
    assert len(counting(trainer)) == 16
    assert len(traced) <= 4
    assert trainer.ledger.worst_deviation == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["dpo", *(pytest.param(one, marks=pytest.mark.thorough) for one in ("sft, packed", "kto"))],
)
def test_a_run_that_was_cut_short_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]

    def run(folder: Path, **more: Any) -> Any:
        torch.manual_seed(1)
        saving = {"save_strategy": "steps", "save_steps": 3, **more}
        return trainer_of(kind, folder, "plain", 0.85, **saving)

    whole = run(tmp_path / "whole")
    whole.train()
    cut = run(tmp_path / "cut")
    step, made = cut.training_step, [0]

    def breaking(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] > 5:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    cut.training_step = breaking
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = run(tmp_path / "cut")
    again.train(resume_from_checkpoint=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    spent = [[e.flops for e in one.ledger if e.kind == "train"] for one in (whole, again)]
    assert spent[0] == spent[1]
    assert again.ledger.verified == whole.ledger.verified
