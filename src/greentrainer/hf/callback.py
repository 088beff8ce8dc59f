"""Selection for any Hugging Face Trainer: `GreenCallback`.

    trainer = SFTTrainer(..., callbacks=[GreenCallback(GreenConfig(rho=0.5))])

It makes the engine when training begins, has it choose between optimizer steps, and seals each
checkpoint.  What it cannot do it refuses when training begins, with the reason.  (`GreenTrainer`
can do more: losses of one's own, replicas, and checkpoints that appear in one step.)
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from greentrainer.energy import Meter
from greentrainer.engine import FEW, AdaptiveBackprop, StepsAsked, release
from greentrainer.forward import ForwardOptions, Positions
from greentrainer.hf import checkpoint
from greentrainer.hf.config import GreenConfig
from greentrainer.hf.input_gradients import redo_input_gradients, undo_input_gradients
from greentrainer.hf.probe_batches import ProbeBatches, is_stream, length_of
from greentrainer.hf.refusals import MADE_WITHIN, MIX, refuse
from greentrainer.hf.schedule import follow, schedule
from greentrainer.hf.trace_cache import kept_traces
from greentrainer.model import Alone, InBackward, is_sharded
from greentrainer.types import PARTS, Batch, LossFn


def loss_of_call(model: Any, batch: Batch) -> Any:
    """The loss of the model's own outputs: `.loss`, or what TRL's fused head gives in its place."""
    outputs = model(**batch)
    loss = outputs.get("loss")
    if loss is None and outputs.get("log_probs") is not None:
        loss = -outputs["log_probs"].mean()
    if loss is None:
        raise ValueError(
            "this Trainer computes its loss outside the model, where the callback cannot see it "
            f"(label smoothing, a compute_loss of its own): {MIX}"
        )
    return loss


class GreenCallback(TrainerCallback):
    """Runs an `AdaptiveBackprop` inside a Trainer.

    green: budget and schedule.
    engine: while training and after it, for its `ledger`, `selection` and `history`.
    meter: energy so far is logged by it, if there is one.
    loss_name: what `loss_fn` computes, if that can be known again in another run.
    waits: for the first batch that the Trainer makes in its steps; each choice is made by the one
        at hand.
    """

    def __init__(self, green: GreenConfig | None = None) -> None:
        self.green = green or GreenConfig()
        self.engine: AdaptiveBackprop | None = None
        self.meter: Meter | None = None
        self.loss_fn: LossFn = loss_of_call
        self.loss_name: str | None = "the call's own"
        self.one_call, self.waits = True, False
        self.processes: Alone | None = None
        self.hollow: nn.Module | None = None
        self.resumed_from: Path | None = None
        self.in_backward: InBackward | None = None
        self._ear: Any = None
        self._model: nn.Module | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the Trainer makes an optimizer: everything is trainable again."""
        release(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the engine.  Raises ValueError where a callback cannot do it."""
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        optimizer = inner(kwargs["optimizer"])
        self.release()  # an earlier training may have ended in an error
        refuse(
            args, model, optimizer,
            alone=self.processes is None,
            traceable=self.hollow is not None or not is_sharded(model),
            in_backward=self.green.updates == "backward",
            callback=self.one_call,
        )  # fmt: skip
        if self.green.stochastic_rounding and self.one_call:
            raise ValueError(f"a callback does not make the optimizer, whose updates it is: {MIX}")
        self._model = model
        undo_input_gradients(model)
        self._step = state.global_step
        self._begin = partial(
            self._made, model, optimizer, loader, args, state, kwargs["lr_scheduler"]
        )
        if self.waits:
            return
        self._batches = ProbeBatches(
            loader, f"{self.green.seed}/0", args.device, args.train_batch_size,
            args.process_index, args.world_size,
        )  # fmt: skip
        if self.one_call:
            self._ear = model.register_forward_pre_hook(self._first_call, with_kwargs=True)
        else:
            self._begin(self._batches.sample())

    def receive(self, batch: Batch, within: int = 0, batches: int = 1) -> None:
        """A batch that the Trainer has made in its step, before its forward pass.

        within: FLOPs that it took to make this and some more.  batches: so many in all.
        """
        if not self.waits:
            return
        if self.engine is None or self.engine.closed:
            self._begin(batch)
        assert self.engine is not None
        if within:
            self.engine.add_within(within, batches)
        if self.engine.between_steps:
            self.engine.prepare(lambda: [batch])

    def _first_call(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        """When the Trainer first calls the model in training it is seen how; then select.

        What was hung on the model meanwhile came too late for this call, so it is called here.
        """
        if not (model.training and torch.is_grad_enabled()):
            return None
        self._ear.remove()
        drawn = self._batches.sample()
        unknown = [k for k, v in kwargs.items() if isinstance(v, torch.Tensor) and k not in drawn]
        if args or set(unknown) - {"num_items_in_batch"}:
            raise ValueError(MADE_WITHIN)
        flags = {k: v for k, v in kwargs.items() if isinstance(v, bool | str)}
        self._batches.flags = flags
        before = set(model._forward_pre_hooks)
        self._begin({**drawn, **flags})
        self._select()
        for key, hook in list(model._forward_pre_hooks.items()):
            if key not in before:
                both = key in model._forward_pre_hooks_with_kwargs
                changed: Any = hook(model, args, kwargs) if both else hook(model, args)
                if changed is not None:
                    args, kwargs = changed if both else (changed, kwargs)
        return args, kwargs

    def _made(
        self,
        model: nn.Module,
        optimizer: Any,
        loader: Any,
        args: TrainingArguments,
        state: TrainerState,
        scheduler: Any,
        sample: Batch,
    ) -> None:
        """The engine, with what it goes on from."""
        total, every = schedule(self.green, args, state, length_of(loader))
        model.train()
        if self.green.updates == "backward":
            self.in_backward = InBackward(optimizer, args.max_grad_norm)
        self.engine = AdaptiveBackprop(
            model,
            optimizer,
            sample,
            rho=self.green.budget,
            loss_fn=self.loss_fn,
            one_call=self.one_call,
            total_batches=total,
            every=every,
            accumulate=args.gradient_accumulation_steps,
            metric=self.green.metric,
            optimizer_state=self.green.optimizer_state,
            selector=self.green.selector,
            processes=self.processes,
            hollow=self.hollow,
            forward=self._forward(loader),
            positions=self._positions(),
            steps=self._steps(),
            prompts="whole" if self.one_call else self.green.prompts,
            fresh=length_of(loader),
            traces=kept_traces(self.loss_name),
        )
        if self.engine.chooses_steps:
            follow(scheduler, state.max_steps, self.engine)
        self._verified, self._batches_seen = not self.one_call, 0
        if self.one_call:
            self._ear = model.register_forward_hook(self._listen)
        if state.global_step:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _forward(self, loader: Any) -> ForwardOptions:
        """The options, with the number of examples that a process may see.

        Several processes deal the examples out anew in each epoch, so each may come to see all.
        """
        options = self.green.forward
        if options.labelled_head and self.one_call:
            warnings.warn(
                f"no labelled head: this Trainer may look at the logits itself; {MIX}",
                stacklevel=2,
            )
            options = replace(options, labelled_head=False)
        if is_stream(loader):
            if options.keep != "nothing":
                warnings.warn(
                    "no keeping activations: of a stream no row comes again", stacklevel=2
                )
            return replace(options, keep="nothing")
        return options if options.examples else replace(options, examples=len(loader.dataset))

    def _positions(self) -> Positions:
        if self.green.positions != "all" and self.one_call:
            warnings.warn(
                "gradient passes through all positions: this Trainer may look at the logits "
                f"itself; {MIX}",
                stacklevel=2,
            )
            return "all"
        return self.green.positions

    def _steps(self) -> StepsAsked:
        if self.green.steps == "choose" and self.one_call:
            warnings.warn("every step is made, and prompts are read whole: a callback cannot "
                          f"choose; {MIX}", stacklevel=2)  # fmt: skip
            return "all"
        return self.green.steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose tensors when that is due."""
        self._step = state.global_step
        if self.engine is not None and not self.engine.closed and not self.waits:
            self._select()

    def _select(self) -> None:
        assert self.engine is not None
        count = self.green.probe_batches
        block = 2 if self.engine.chooses_steps and self._batches.size < FEW else 1
        self.engine.prepare(lambda: list(self._batches.draw(self._step, count, block)))
        self._heard = False  # what comes now is training

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between the batches of a step: see that the books fit what the Trainer does."""
        self._verify()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a step: see that the books fit what the Trainer does; end where nothing is left."""
        self._verify()
        assert self.engine is not None
        self.engine.after_step()
        if self.engine.finished:
            control.should_training_stop = True

    def _verify(self) -> None:
        assert self.engine is not None
        self._batches_seen += 1
        booked = self.engine.ledger.batches
        if booked != self._batches_seen:
            raise ValueError(
                f"this Trainer called the model {booked} times for {self._batches_seen} batches, "
                f"so the callback's books would be wrong: {MIX}"
            )
        if not (self._verified or self._heard):
            raise ValueError(
                "this Trainer trains by another loss than the model's own, which is what the "
                f"callback measures: {MIX}"
            )
        self._verified = True
        if self._ear is not None:
            self._ear.remove()

    def _listen(self, _model: Any, _args: Any, outputs: Any) -> None:
        """Note whether a gradient reaches the model's own loss; once is enough."""
        if self._verified:
            return
        own = (
            [outputs.get(key) for key in ("loss", "log_probs")]
            if isinstance(outputs, Mapping)
            else []
        )
        for loss in own:
            if loss is not None and loss.requires_grad:
                loss.register_hook(self._hear)

    def _hear(self, _gradient: torch.Tensor) -> None:
        self._heard = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add `figures` to what is logged."""
        if kwargs.get("logs") is not None:
            kwargs["logs"].update(self.figures())

    def figures(self) -> dict[str, float]:
        """For logs: what was spent so far, and what is trained now.

        rho_spent: share of full fine-tuning's FLOPs.  tail: prompt positions that gradient passes
        through, where they are bounded.  energy_wh or, where it is one, energy_wh_estimate.
        """
        if self.engine is None or self.engine.selection is None:
            return {}
        ledger, selection = self.engine.ledger, self.engine.selection
        found: dict[str, float] = {
            "rho_spent": ledger.rho_spent,
            "spent_teraflops": ledger.spent_flops / 1e12,
            "tensors_trained": len(selection.names),
        }
        if selection.tail is not None:
            found["tail"] = selection.tail
        if selection.part is not None:
            found["share_read"] = PARTS[selection.part].share
        if self.meter is not None:
            name = "energy_wh" if self.meter.measured else "energy_wh_estimate"
            found[name] = self.meter.energy().kwh * 1000
        return found

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal the checkpoint just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.engine is not None and args.should_save and not (folder / checkpoint.SEAL).exists():
            checkpoint.seal(folder, self.engine)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model back with everything trainable."""
        self.release()

    def release(self) -> None:
        """Give the model back; what the engine did can still be read."""
        if self.engine is not None:
            self.engine.close()
        if self.in_backward is not None:
            self.in_backward.close()
            self.in_backward = None
        if self._model is not None:
            redo_input_gradients(self._model)
        if self._ear is not None:
            self._ear.remove()

    def _resume(self, default: Path) -> None:
        engine, folder = self.engine, self.resumed_from or default
        assert engine is not None
        if not folder.is_dir():
            raise ValueError(
                f"no {folder}: the callback resumes only from checkpoints in the output folder"
            )
        saved = checkpoint.read(folder)
        with checkpoint.in_one_line(folder):
            checkpoint.require_fit(saved, engine.model, engine.budget, folder)
            checkpoint.require_order(saved, engine)
            engine.load_state_dict(checkpoint.state_for(saved, engine.processes))
        self._batches_seen = engine.ledger.batches


def inner(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
