"""Any Trainer within a stated share: the mixin `Green`, and `GreenTrainer`, `GreenSeq2SeqTrainer`.

    class GreenDPO(Green, DPOTrainer):
        pass

    trainer = GreenDPO(model, args=args, train_dataset=pairs, green=GreenConfig(rho=0.5))
    trainer.train()
    trainer.engine.ledger.rho_spent

All of the Trainer stays: `Green` adds a `GreenCallback`, and sees to what a callback cannot:

* the loss is whatever `compute_loss` says, with all the passes that it makes.  It is computed, too,
  to trace and to measure; the Trainer's own records (metrics, counters) are then left as they were;
* a Trainer that makes its batches in the step (`_prepare_inputs` of its own: it generates them) is
  traced and measured by the batch at hand;
* under DDP the reducer is rebuilt at each selection;
* a checkpoint is written beside its place and moved there whole, and `resume_from_checkpoint=True`
  takes the last whole one;
* encoder-decoders compute a mean loss in spite of their signature, which with gradient accumulation
  would be multiplied (`model_accepts_loss_kwargs`).
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import rotate_checkpoints

from greentrainer.cost import flop_counter
from greentrainer.engine import AdaptiveBackprop, hollow, release
from greentrainer.forward import moved
from greentrainer.hf import checkpoint
from greentrainer.hf.callback import GreenCallback, inner
from greentrainer.hf.config import GreenConfig
from greentrainer.hf.own_records import records_kept
from greentrainer.hf.quantised import differentiable
from greentrainer.hf.sharded import forget, loading_part
from greentrainer.model import Replicas, Shards, Together, is_sharded, round_stochastically
from greentrainer.records import Ledger
from greentrainer.types import Batch

STAGING = ".unfinished"
"""Folder inside the output folder where a checkpoint is written."""


class Green(Trainer):
    """What is mixed into a Trainer, before it.  green: budget and schedule."""

    _stepping = _measuring = False
    _within = 0

    def __init__(self, *args: Any, green: GreenConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed ZeRO ignores what is frozen between steps: use DDP or FSDP2"
            )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise ValueError("FSDP1 flattens tensors together: set fsdp_version: 2")
        release(self.model)
        differentiable(self.model)
        self.green_callback = GreenCallback(green)
        self.green_callback.loss_fn = self._loss
        self.green_callback.one_call = False
        self.green_callback.loss_name = self._loss_name()
        self.green_callback.waits = not _is_plain(type(self), "_prepare_inputs")
        self.add_callback(self.green_callback)
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            self.model_accepts_loss_kwargs = False

    @property
    def engine(self) -> AdaptiveBackprop:
        """The engine; raises RuntimeError before training."""
        if self.green_callback.engine is None:
            raise RuntimeError("there is no engine before train()")
        return self.green_callback.engine

    @property
    def ledger(self) -> Ledger:
        """What has been spent."""
        return self.engine.ledger

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As `Trainer.train`.

        resume_from_checkpoint: a checkpoint's folder, or True for the last whole one.

        Raises ValueError if there is none, or it belongs to another model, budget or format.
        """
        shutil.rmtree(Path(self.args.output_dir) / STAGING, ignore_errors=True)
        self.green_callback.resumed_from = self._checkpoint_to_resume(resume_from_checkpoint)
        folder = self.green_callback.resumed_from
        if folder is not None:
            saved = checkpoint.read(folder)
            green = self.green_callback.green
            with checkpoint.in_one_line(folder):
                checkpoint.require_fit(saved, self.model, green.budget, folder)
                budget = checkpoint.budget_of(saved, green.budget)
            self.green_callback.green = replace(green, rho=budget)
        try:
            return super().train(resume_from_checkpoint=folder and str(folder), **kwargs)
        except BaseException:
            self.green_callback.release()
            raise

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; updates are rounded as the settings say."""
        made = super().create_optimizer(*args, **kwargs)
        if self.green_callback.green.stochastic_rounding:
            round_stochastically(self.optimizer)
        return made

    def _checkpoint_to_resume(self, asked: Any) -> Path | None:
        if asked is None or asked is False:
            return None
        if asked is not True:
            return Path(asked)
        found = checkpoint.last_whole(Path(self.args.output_dir))
        if found is None:
            raise ValueError(f"no whole checkpoint in {self.args.output_dir}: train from the start")
        return found

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap the model; then it is known what kind of processes train it."""
        if self.is_fsdp_enabled:
            self.green_callback.hollow = hollow(self.model)
        prepared = super()._prepare_for_training(*args, **kwargs)
        wrapped = self.model_wrapped
        if isinstance(wrapped, DistributedDataParallel):
            self.green_callback.processes = Replicas(wrapped)
        elif self.args.world_size > 1:
            shared = Shards(wrapped, self.args.device) if is_sharded(wrapped) else None
            self.green_callback.processes = shared or Together(self.args.device)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint_to_load: str | None) -> None:
        """As the Trainer's; of a sharded model only what was trained has a state."""
        if checkpoint_to_load is None:
            super()._load_optimizer_and_scheduler(checkpoint_to_load)
            return
        part = loading_part() if self.is_fsdp_enabled else nullcontext()
        with checkpoint.loading(checkpoint_to_load), part:
            super()._load_optimizer_and_scheduler(checkpoint_to_load)
        if not self.is_fsdp_enabled:
            return
        known = checkpoint.read(Path(checkpoint_to_load)).get("with_state")
        if known is not None:
            forget(self.model, inner(self.optimizer), known)

    def _load_rng_state(self, checkpoint_to_load: str | None) -> None:
        """As the Trainer's; files of anything else are one line."""
        with checkpoint.loading(checkpoint_to_load or ""):
            super()._load_rng_state(checkpoint_to_load)

    def get_train_dataloader(self) -> Any:
        """As `Trainer.get_train_dataloader`; batches lie on the host until a step takes them.

        So what their labels and masks say is known without waiting for a GPU.
        """
        loader: Any = super().get_train_dataloader()
        if getattr(loader, "device", None) is not None:
            loader.device = None
        return loader

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; what batches hold is known on the host."""
        if not self.green_callback.waits:
            there = send_to_device(inputs, self.args.device, non_blocking=True)
            moved(there, inputs)
            inputs = there
        self._stepping = True
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._stepping = False
            if self.green_callback.in_backward is not None:
                self.green_callback.in_backward.end()

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As the Trainer's; what it executes to make a batch within a step is counted."""
        if not (self._stepping and self.green_callback.waits):
            return super()._prepare_inputs(inputs)
        with flop_counter() as count:
            made = super()._prepare_inputs(inputs)
        self._within += count.get_total_flops()
        return made

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; in a training step the batch is made known to the engine."""
        if self._measuring or not (self._stepping and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, *args, **kwargs)
        batch = dict(inputs) if isinstance(inputs, Mapping) else inputs
        within, self._within = self._within, 0
        made: Any = self.args
        batches = getattr(made, "steps_per_generation", 1) * getattr(made, "num_iterations", 1)
        self.green_callback.receive(batch, within, batches)
        with self.engine.batch(batch):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.green_callback.in_backward is not None:  # what comes next is its backward pass
            self.green_callback.in_backward.begin()
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the share spent."""
        super().log({**logs, **self.green_callback.figures()}, *args, **kwargs)

    def _loss(self, model: nn.Module, batch: Batch) -> Any:
        """Of a batch, to trace or to measure.

        What is trained stays so: adapters that are switched off and on again become trainable.
        """
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        given = dict(batch) if isinstance(batch, Mapping) else batch
        before, self._measuring = self._measuring, True
        try:
            with records_kept(self), self.compute_loss_context_manager():
                loss = self.compute_loss(model, given)
        finally:
            self._measuring = before
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        return loss

    def _loss_name(self) -> str | None:
        """What sets the loss apart from the model's own; None where code of the user's does."""
        if not _is_plain(type(self), "compute_loss") or self.compute_loss_func is not None:
            return None
        settings = self.args.label_smoothing_factor, self.accelerator.mixed_precision
        return f"the Trainer's own, label smoothing and precision {settings}"

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._staging else folder

    _staging = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, seal it, and move it there in one step."""
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
            staged = Path(self._get_output_dir(trial))
        finally:
            self._staging = False
        ledgers = self.engine.processes.every(self.ledger.state_dict())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            new = staged / f"checkpoint-{self.state.global_step}"
            self._settle(new, staged.parent, ledgers)
        self.accelerator.wait_for_everyone()

    def _settle(self, new: Path, run: Path, ledgers: list[Any]) -> None:
        """Move a finished checkpoint into the run's folder and delete those that are too many."""
        final, best = run / new.name, self.state.best_model_checkpoint
        if best is not None and Path(best).parent == new.parent:
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(new / "trainer_state.json"))
        checkpoint.seal(new, self.engine, ledgers)
        if final.exists():
            shutil.rmtree(final)
        new.rename(final)
        shutil.rmtree(new.parent)
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )


def _is_plain(kind: type, method: str) -> bool:
    """Whether a Trainer's method is transformers' own."""
    own = [one for one in kind.__mro__ if method in vars(one) and one is not Green]
    return own[0] in (Trainer, Seq2SeqTrainer)


class GreenTrainer(Green):
    """`Trainer` within a share of full fine-tuning's FLOPs.  green: budget and schedule."""


class GreenSeq2SeqTrainer(Green, Seq2SeqTrainer):
    """`Seq2SeqTrainer` within a share of full fine-tuning's FLOPs.  green: budget and schedule."""
