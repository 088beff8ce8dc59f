"""A run's training: from its configuration to a `GreenTrainer`, and that to its end.

Every method goes through the same trainer and the same books.  (At rho 1 the engine never probes,
and trains every tensor unless the method's rule says otherwise.)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, TrainerCallback

from greentrainer.budget import Budget
from greentrainer.config import RunConfig
from greentrainer.energy import Consumption, Estimate, Intensity, Meter, read_schedule
from greentrainer.engine import AdaptiveBackprop, GraphCache
from greentrainer.hf import (
    GreenConfig,
    GreenTrainer,
    compile_blocks,
    dense,
    keeps,
    last_whole,
    save_clock,
    saved_clock,
    sharding,
)
from greentrainer.hf import trackers as trackers
from greentrainer.importance import METRICS
from greentrainer.methods import METHODS, Method
from greentrainer.model import Alone, joined
from greentrainer.records import Entry, Ledger
from greentrainer.run.arguments import arguments_of, in_one_line, steps_of
from greentrainer.run.asked import cost_of, forward_of, positions_of, steps_asked
from greentrainer.run.interrupt import StopRequest
from greentrainer.run.journal import Journal
from greentrainer.run.memory import kept_way, within
from greentrainer.run.pace import settled
from greentrainer.run.packing import packing_collator, require_packing
from greentrainer.run.reference import (
    Batches,
    EpochOrder,
    affordable_steps,
    graphs_of,
    method_flops,
    step_flops,
)
from greentrainer.run.result import RunResult
from greentrainer.run.way import Way
from greentrainer.tasks import Encoded, encode

Report = Callable[[int, float, AdaptiveBackprop], None]
"""Called after each optimizer step with its number (from 1), its loss and the engine."""


class RunTrainer(GreenTrainer):
    """`GreenTrainer` on encoded examples, in `EpochOrder`.  step_loss: of the step in hand."""

    data_collator: Any

    def __init__(self, *args: Any, order: EpochOrder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order, self.step_loss = order, torch.zeros((), device=self.args.device)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `GreenTrainer.training_step`."""
        loss = super().training_step(*args, **kwargs)
        self.step_loss += loss
        return loss

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.get_eval_dataloader`; a row holds one example, and counts as one."""
        packing: Any = self.data_collator
        self.data_collator = packing.unpacked
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = packing

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        return self.order


class Watch(TrainerCallback):
    """Reports each step, ends the run when asked to, and when a loss is not finite.

    before: what was spent before there were books.
    processes: after each step all agree on its loss, and stop if one was asked to.
    """

    def __init__(
        self,
        report: Report,
        stop: StopRequest,
        learning_rate: float,
        journal: Journal | None,
        before: Sequence[Entry],
        processes: Alone,
    ) -> None:
        self.processes = processes
        self.report, self.stop, self.learning_rate = report, stop, learning_rate
        self.journal, self.before = journal, list(before)
        self.losses: list[float] = []
        self.trainer: RunTrainer | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the order: of several processes accelerate does not, where batches are skipped."""
        assert self.trainer is not None
        steps = -(-len(kwargs["train_dataloader"]) // args.gradient_accumulation_steps)
        self.trainer.order.set_epoch(state.global_step // steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step: the engine is there now."""
        assert self.trainer is not None
        while self.before:  # there are books now
            self.trainer.engine.ledger.add(self.before.pop())
        if self.journal and self.journal.engine is None:
            made, planned = state.global_step, state.max_steps
            self.journal.begin(self.trainer.engine, planned, made, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Something was logged."""
        if self.journal:
            self.journal.log(state.log_history)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step."""
        assert self.trainer is not None
        own = self.trainer.step_loss.item()
        self.trainer.step_loss.zero_()
        loss, stop = self.processes.mean([own, float(self.stop.made)])
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of step {state.global_step} is {loss}: lower the learning rate "
                f"({self.learning_rate:g})"
            )
        self.losses.append(loss)
        if self.journal:
            self.journal.step(state.global_step, loss)
        self.report(state.global_step, loss, self.trainer.engine)
        ended = self.trainer.engine.finished
        if stop:
            self.stop.made = True
            control.should_training_stop = True
            control.should_save = state.global_step < state.max_steps and not ended


def fit(
    config: RunConfig,
    model: Any,
    tokenizer: Any,
    train: Sequence[Encoded],
    judge: Sequence[Encoded],
    *,
    report: Report = lambda _step, _loss, _engine: None,
    stopping: Callable[[], None] = lambda: None,
    max_steps: int = -1,
    meter: Meter | None = None,
    journal: Journal | None = None,
    told: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Train `model` in place, as the configured method does.

    judge: examples that evaluations during training are on.  journal: records each step.
    meter: of the energy; stated or assumed power when None.  told: is told what was decided.

    Stops at Ctrl-C after the step in hand, with the model whole; `stopping` is called when it is
    asked to.  max_steps: end after so many.  Raises ValueError for nothing to train on, an
    infeasible budget, a loss that is not finite, or training arguments that cannot be.

    Several processes all call it, and each trains on its own batches.
    """
    if not train:
        raise ValueError("there is no example to train on")
    processes = joined()
    consumption = consumption_of(config, meter)
    require_budget(config, METHODS[config.method])
    collate, tried = packing_collator(config, model, tokenizer, train, told, config.output_dir)
    batches = Batches(config, model, train, collate)
    config = settled(config, model, steps_of(config, len(train)), lambda: batches.first(1)[0])
    method = METHODS[config.method]
    early = method.stops_early(config)
    chooses = steps_asked(config, method) == "choose"
    other = method.adapts(config) or config.activation_checkpointing or config.memory is not None
    bare = dense(model) if config.bits else model
    plain = step_flops(config, graphs_of(bare), train, collate) if other or early else []

    def plainly(graphs: GraphCache, config: RunConfig = config) -> int:
        """Of plain full fine-tuning: the engine's own graphs tell it where all may be trained."""
        plain[:] = plain or step_flops(config, graphs, train, collate)
        return sum(plain)

    asked = chooses if config.rho is not None else not other
    whole = plainly if asked else None
    torch.manual_seed(config.seed)
    order = EpochOrder(train, config.batch_size, config.seed)
    way: Way | None = None
    probed: list[Entry] = []
    if config.memory is not None or kept_way(config) is not None:
        judged = Batches(config, model, judge if config.evaluate_every else [], collate)
        some = partial(batches.first, 1 + config.probe_batches)
        config, adapted, way, probed = within(
            config, method, model, lambda: (batches.largest(), some(), judged.largest())
        )
    else:
        adapted = method.adapt(model, config)
    if config.compile:
        compile_blocks(adapted)
    if early and max_steps < 0:
        steps = plain if method.shortened else method_flops(config, adapted, train, collate)
        rho = config.rho or config.budget[1] / sum(plain)
        rho -= sum(entry.flops for entry in tried) / sum(plain)
        max_steps = affordable_steps(steps, rho, sum(plain))
    arguments = arguments_of(config, len(train), max_steps, way.evaluated if way else None)
    if arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = has_experts(model)
    shards = sharding(processes.count > 1 and config.parallel == "fsdp")
    with StopRequest(stopping) as stop, shards:
        watch = Watch(report, stop, config.learning_rate, journal, [*tried, *probed], processes)
        patience = [EarlyStoppingCallback(config.patience)] if config.patience else []
        make = partial(
            RunTrainer,
            adapted,
            arguments,
            data_collator=Rows(collate),
            train_dataset=train,
            eval_dataset=judge,
            callbacks=[watch, *patience],
            green=green_of(config, method, adapted, len(train), max_steps, whole, consumption),
            order=order,
        )
        with in_one_line():
            trainer = make()
        trainer.remove_callback(_printer())
        trainer.green_callback.meter = meter
        if processes.rank == 0:
            trackers.attach(trainer, config.output_dir / "tensorboard")
        watch.trainer = trainer
        again = config.resume and last_whole(Path(arguments.output_dir)) is not None
        try:
            trainer.train(resume_from_checkpoint=again)
        except ImportError as error:  # an optimizer or a logger that is not installed
            raise ValueError(" ".join(str(error).split())[:300]) from error
    if processes.rank == 0:
        _keep_clock(config, trainer)
    trainer.engine.optimizer.state.clear()  # evaluations have room again
    plainly(trainer.engine.graphs)
    state = trainer.state
    if journal and journal.engine is None:  # every step was made before
        journal.begin(trainer.engine, state.max_steps, state.global_step, state.log_history)
    trainable = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    rows = processes.every(trainer.ledger.state_dict()) if journal is None else []
    return RunResult(
        engine=trainer.engine,
        model=method.finish(adapted),
        steps=state.global_step,
        planned=state.global_step if trainer.engine.finished else state.max_steps,
        losses=tuple(watch.losses),
        interrupted=stop.made
        and state.global_step < state.max_steps
        and not trainer.engine.finished,
        plain_steps=tuple(plain),
        ledger=journal.ledger if journal else Ledger(Entry(**row) for own in rows for row in own),
        processes=processes.count,
        trainable_bytes=trainable,
        log=tuple(state.log_history),
        used=trainer.engine.consumption.so_far(),
        way=way,
    )


def has_experts(model: Any) -> bool:
    """Whether some of its parameters may have no part in a batch's loss."""
    known = getattr(model, "config", None)
    return any("expert" in name for name in (known.to_dict() if known is not None else ()))


@dataclass(frozen=True)
class Rows:
    """The Trainer's collator."""

    collate: encode.Collator

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """The batch."""
        return self.collate(rows)

    @property
    def unpacked(self) -> "Rows":
        """With one example a row."""
        return Rows(dataclasses.replace(self.collate, packs=False))


def consumption_of(config: RunConfig, meter: Meter | None) -> Consumption:
    """What counts the run's seconds, joules and grams from now on.

    Raises ValueError for a carbon schedule that cannot be read.
    """
    schedule = Intensity(grams=(config.carbon_intensity,))
    if config.carbon_schedule:
        schedule = read_schedule(config.carbon_schedule)
    return Consumption((meter or Estimate(config.watts)).joules, schedule)


def require_budget(config: RunConfig, method: Method) -> None:
    """Raise ValueError for a budget that the method cannot keep to, or a schedule that is none."""
    if config.carbon_schedule is not None:
        read_schedule(config.carbon_schedule)
    require_packing(config)
    steps_asked(config, method)  # or raise what it refuses before anything is loaded
    unit, _ = config.budget
    timed = unit in ("hours", "kwh", "co2_grams") or config.cost == "seconds"
    early = method.stops_early(config)
    if unit != "rho" and not (method.budgeted or early):
        raise ValueError(
            f"{unit} is a budget, and {method.name} spends what it takes: use green"
            + ("" if timed else ", or add stop_early")
        )
    spared = config.labelled_head or config.keep_activations not in (None, "nothing")
    if config.stop_early and (spared or config.positions not in (None, "all")):
        raise ValueError(
            "steps that a budget pays for are counted for whole passes: with stop_early leave "
            "labelled_head, positions and keep_activations out"
        )
    if early and config.activation_checkpointing:
        raise ValueError(
            "steps that a budget pays for are counted without recomputing: leave "
            "activation_checkpointing out, or use green"
        )
    if timed and early:
        raise ValueError(f"{method.name} keeps to rho or flops: give one of these, or use green")


def mode_of(config: RunConfig) -> str:
    """What else than model and device a clock is set for."""
    keys = [
        "bf16", "weights", "activation_checkpointing", "compile", "labelled_head", "positions",
        "batch_size", "max_length", "processes", "parallel",
    ]  # fmt: skip
    return ", ".join(f"{key} {getattr(config, key)}" for key in keys)


def _keep_clock(config: RunConfig, trainer: RunTrainer) -> None:
    """A clock that this run set, if it timed all that there is to time."""
    clock, given = trainer.engine.clock, trainer.engine.budget.clock
    if clock is None or clock is given or not clock.tokens or not keeps():
        return
    model: Any = trainer.model
    with suppress(OSError):
        save_clock(clock, model, next(model.parameters()).device, mode_of(config))


def green_of(
    config: RunConfig,
    method: Method,
    model: Any,
    examples: int,
    max_steps: int = -1,
    whole_flops: Callable[[GraphCache], int] | None = None,
    consumption: Consumption | None = None,
) -> GreenConfig:
    """Budget and schedule: `selections` evenly spaced over the run's steps.

    whole_flops: tells those of plain full fine-tuning of the run's data.
    """
    budget = Budget("rho", 1.0, consumption=consumption)
    if method.budgeted:
        device = next(model.parameters()).device
        cost = cost_of(config, method, device)
        budget = Budget(*config.budget, cost, whole_flops, consumption)
    if budget.timed:
        clock = saved_clock(model, next(model.parameters()).device, mode_of(config))
        budget = dataclasses.replace(budget, clock=clock)
    steps = steps_of(config, examples) if max_steps < 0 else max_steps
    every = math.ceil(steps / min(config.selections, steps))
    return GreenConfig(
        rho=budget,
        every_steps=method.interval(steps) if method.interval else every,
        probe_batches=config.probe_batches,
        metric=config.metric if config.metric in METRICS else "first_order",
        optimizer_state=config.optimizer_state,
        updates=config.updates or "step",
        stochastic_rounding=any(
            p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()
        ),
        selector=method.selector(model, config),
        forward=forward_of(config, method, examples),
        positions=positions_of(config, method),
        steps=steps_asked(config, method),
        prompts=config.prompts,
        seed=config.seed,
    )


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback
