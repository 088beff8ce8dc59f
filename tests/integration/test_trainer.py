"""The Trainers: gradients under accumulation, refusals, logs, and a Trainer that is not ours."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from greentrainer.cost import flop_counter
from greentrainer.hf import GreenCallback, GreenConfig, GreenTrainer
from greentrainer.hf.input_gradients import undo_input_gradients
from greentrainer.hf.refusals import refuse
from greentrainer.run.arguments import checkpointing_argument
from tests.conformance.families import build
from tests.tiny import characters
from tests.trainer import arguments, rows

GREEN = GreenConfig(rho=0.6, probe_batches=1, every_epochs=0.5)
PLAIN = {"alone": True, "traceable": True, "in_backward": False, "callback": True}
"""A callback's run in one process."""


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.found:
            named = kwargs["model"].named_parameters()
            self.found = {n: p.grad.clone() for n, p in named if p.grad is not None}


def first_gradients(family: str, folder: Path, batch: int, accumulate: int) -> dict[str, Any]:
    kept = Gradients()
    model = build(family)
    for module in model.modules():
        for name in ("p", "dropout", "activation_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    GreenTrainer(
        model,
        arguments(folder, per_device_train_batch_size=batch, max_steps=1,
                  gradient_accumulation_steps=accumulate, max_grad_norm=0.0),
        train_dataset=rows(8), green=GreenConfig(rho=1.0), callbacks=[kept],
    ).train()  # fmt: skip
    return kept.found


@pytest.mark.parametrize("family", ["opt", "t5", "bart"])
def test_accumulation_gives_the_gradient_of_the_large_batch(family: str, tmp_path: Path) -> None:
    large = first_gradients(family, tmp_path, batch=8, accumulate=1)
    small = first_gradients(family, tmp_path, batch=2, accumulate=4)
    assert large.keys() == small.keys()
    for name, gradient in large.items():  # fp32 sums in another order
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-6)


def test_logs_hold_the_share_spent(tmp_path: Path) -> None:
    trainer = GreenTrainer(
        build("llama"), arguments(tmp_path, logging_strategy="steps", logging_steps=4),
        train_dataset=rows(24), green=GREEN,
    )  # fmt: skip
    trainer.train()
    logged = [entry["rho_spent"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert logged[-1] == trainer.ledger.rho_spent


def test_a_loss_of_ones_own_is_what_is_measured_and_trained(tmp_path: Path) -> None:
    class Doubled(GreenTrainer):
        calls: ClassVar[list[int]] = []

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(1)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits
            return 2 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    trainer = Doubled(build("llama"), arguments(tmp_path), train_dataset=rows(16), green=GREEN)
    trainer.train()
    assert trainer.calls
    assert trainer.ledger.rho_spent <= 0.6


def test_activation_checkpointing_keeps_the_saving(tmp_path: Path) -> None:
    """The top quarter of tensors costs what the graph says, not a whole backward pass."""
    model: Any = build("llama-checkpointed").train()
    model.enable_input_require_grads()
    undo_input_gradients(model)
    trainer = GreenTrainer(
        model, arguments(tmp_path, **{checkpointing_argument(): True}, max_steps=1),
        train_dataset=rows(8), green=GreenConfig(rho=1.0),
    )  # fmt: skip
    trainer.train()
    graph = trainer.engine.graph
    top = graph.tensors[: len(graph.tensors) // 4]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in top)
    batch = {key: torch.stack([row[key] for row in rows(2)]) for key in rows(1)[0]}
    model.train()
    loss = model(**batch).loss
    with flop_counter() as counter:
        loss.backward()
    assert counter.get_total_flops() == graph.backward_flops(top)
    assert counter.get_total_flops() < 0.5 * graph.full_backward_flops


def test_the_callback_works_in_a_trainer_that_is_not_ours(tmp_path: Path) -> None:
    green = GreenCallback(GREEN)
    Trainer(build("llama"), arguments(tmp_path), train_dataset=rows(24), callbacks=[green]).train()
    assert green.engine is not None
    assert 0.9 * 0.6 <= green.engine.ledger.rho_spent <= 0.6


def test_the_callback_resumes_to_the_same_end(tmp_path: Path) -> None:
    def run(folder: Path, resume: bool = False) -> tuple[Any, GreenCallback]:
        green, model = GreenCallback(GREEN), build("llama")
        settings = arguments(folder, save_strategy="steps", save_steps=5)
        trainer = Trainer(model, settings, train_dataset=rows(24), callbacks=[green])
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5") if resume else None)
        return model, green

    whole, first = run(tmp_path)
    again, second = run(tmp_path, resume=True)
    assert first.engine is not None
    assert second.engine is not None
    assert second.engine.ledger.spent_flops == first.engine.ledger.spent_flops
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_callback_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    smoothed = Trainer(
        build("llama"), arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=rows(8),
        callbacks=[GreenCallback(GREEN)],
    )  # fmt: skip
    with pytest.raises(ValueError, match="outside the model"):
        smoothed.train()

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __init__(self) -> None:
            self.left = iter(rows(8))

        def __iter__(self) -> Any:
            return self.left

    streamed = Trainer(
        build("llama"), arguments(tmp_path, max_steps=2), train_dataset=Stream(),
        callbacks=[GreenCallback(GREEN)],
    )  # fmt: skip
    with pytest.raises(ValueError, match="read only once"):
        streamed.train()


def test_deepspeed_is_refused() -> None:
    class Settings:
        deepspeed = "zero.json"
        world_size = 1

    with pytest.raises(ValueError, match="ZeRO ignores what is frozen"):
        refuse(Settings(), build("llama"), None, **PLAIN)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL sets deprecated arguments
def test_trl_on_chat_data_has_the_same_books(tmp_path: Path) -> None:
    """What SFTTrainer executes in its training steps is what the ledger says it does."""
    tokenizer = characters()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    )
    chats = [
        [{"role": "user", "content": f"add {i} and {i}"}, {"role": "assistant", "content": "ok"}]
        for i in range(10, 74)
    ]
    green, executed = GreenCallback(GREEN), []

    class CountedSFT(SFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            before = green.engine.ledger.trace_flops if green.engine else 0
            with flop_counter() as counter:
                loss = super().training_step(*args, **kwargs)
            assert green.engine is not None
            traced = green.engine.ledger.trace_flops - before
            executed.append(counter.get_total_flops() - traced)
            return loss

    settings = SFTConfig(
        str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, bf16=False, max_length=64,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = CountedSFT(
        build("llama"), settings, train_dataset=Dataset.from_list([{"messages": c} for c in chats]),
        processing_class=tokenizer, callbacks=[green],
    )  # fmt: skip
    trainer.train()
    assert green.engine is not None
    ledger = green.engine.ledger
    training = [e.flops for e in ledger if e.kind == "train"]
    assert training[1:] == executed[1:]  # the first step holds the probe
    assert 0.9 * 0.6 <= ledger.rho_spent <= 0.6


class Cut(TrainerCallback):
    """Presses Ctrl-C in the third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("ours", [True, False])
def test_a_training_that_breaks_off_gives_the_model_back(ours: bool, tmp_path: Path) -> None:
    model = build("llama")

    def train(*callbacks: TrainerCallback) -> Any:
        settings: dict[str, Any] = {"args": arguments(tmp_path), "train_dataset": rows(24)}
        if ours:
            trainer = GreenTrainer(model, green=GREEN, callbacks=list(callbacks), **settings)
            trainer.train()
            return trainer.engine
        green = GreenCallback(GREEN)
        Trainer(model, callbacks=[green, *callbacks], **settings).train()
        return green.engine

    with pytest.raises(KeyboardInterrupt):
        train(Cut())
    if ours:
        assert all(p.requires_grad for p in model.parameters())
        assert not model._forward_hooks
    again = train()
    assert len(again.graph.tensors) == len(list(model.parameters()))
    assert again.ledger.batches == 12
    assert not model._forward_hooks


class OnLogits(Trainer):
    """Trains by a loss that the model does not know of."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**inputs).logits.square().mean()


class Twice(Trainer):
    """Calls the model twice for each batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**inputs).loss + model(**inputs).loss


@pytest.mark.parametrize(
    ("kind", "message"), [(OnLogits, "another loss"), (Twice, "called the model 2 times")]
)
def test_the_callback_notices_a_loss_that_is_not_the_models(
    kind: Any, message: str, tmp_path: Path
) -> None:
    green = GreenCallback(GREEN)
    trainer = kind(build("llama"), arguments(tmp_path), train_dataset=rows(8), callbacks=[green])
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_compiling_the_whole_model_is_refused(tmp_path: Path) -> None:
    settings = arguments(tmp_path)
    settings.torch_compile = True
    with pytest.raises(ValueError, match="compile_blocks"):
        refuse(settings, build("llama"), None, **PLAIN)
