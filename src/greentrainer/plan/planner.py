"""What a budget buys, before anything is spent: a model's costs from its configuration alone.

The model is built on the meta device and traced, so no weight is read.  For each share of full
fine-tuning the tensors that make up most of the model within it are chosen: the importance of each
is not known before a run, which will choose others, at the same cost.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import torch
from torch import nn

from greentrainer.budget import Budget, Clock
from greentrainer.config import RunConfig
from greentrainer.cost import MOMENTS, Memory, probe_memory, step_memory, trace
from greentrainer.energy import Consumption, Intensity, assumed_watts, read_schedule, start_meter
from greentrainer.engine import PROBE_SHARE, AdaptiveBackprop, GraphCache
from greentrainer.forward import ForwardOptions, LabelledHead, SplitForward
from greentrainer.hf import layout, models, save_clock, saved_clock
from greentrainer.plan.room import Sketched, rooms
from greentrainer.plan.together import Together, together
from greentrainer.plan.workload import Workload, of_padded, of_task, padded_batch
from greentrainer.run import mode_of
from greentrainer.select import select
from greentrainer.tasks import encode, require_room
from greentrainer.types import Batch, CostGraph, loss_of

SHARES = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
QUICK = 0.3
"""Seconds within which one step's memory must be told for all rows to have their own."""
KEPT_EPOCHS = 3
"""Epochs that forward-skipping is shown for, where the run has but one."""


@dataclass(frozen=True)
class Row:
    """What a share of full fine-tuning buys.

    depth: of how many blocks, counted from the loss, some tensor can be trained.
    trained: the largest share of all elements that can be trained; skipping_depth,
        skipping_trained: with forward passes that start at kept activations.
    seconds: of a batch, kwh and co2_grams of the run; None without a calibration.
    memory_simulated: activations were, and not taken from between two rows.
    """

    rho: float
    flops: float
    depth: int
    trained: float
    skipping_depth: int
    skipping_trained: float
    memory: Memory
    memory_simulated: bool
    seconds: float | None = None
    hours: float | None = None
    kwh: float | None = None
    co2_grams: float | None = None


class Planner:
    """Plans runs of one model.  padded: for batches of the greatest length, not for the task."""

    def __init__(self, config: RunConfig, padded: bool = False) -> None:
        self.config = config
        self.network, self.tokenizer = models.sketch(config.model, revision=config.revision)
        if padded:
            self.tokenizer = None
        elif self.tokenizer is None:
            raise ValueError(f"{config.model} comes with no tokenizer: plan without a task")
        self.network.train()
        require_room(self.network, config.max_length, 0)
        self.clock: Clock | None = None
        self.bandwidth: float | None = None

    @cached_property
    def data(self) -> Workload:
        """The batches of the task, or padded ones."""
        if self.tokenizer is None:
            flops = self.graph.full_flops
            return of_padded(self.config, self._padded_batch, flops, self._seq2seq)
        return of_task(self.config, self.tokenizer, self._graphs, self._seq2seq)

    @cached_property
    def _padded_batch(self) -> dict[str, torch.Tensor]:
        return padded_batch(self.config, self._seq2seq)

    @property
    def _seq2seq(self) -> bool:
        return bool(self.network.config.is_encoder_decoder)

    @cached_property
    def graph(self) -> CostGraph:
        """Of the sample batch, its head on labelled positions only where that can be."""
        if self.tokenizer is None:
            return trace(self.network, self._padded_batch)
        return self._graphs.of_batch(self.data.sample)

    @cached_property
    def _graphs(self) -> GraphCache:
        """Of any batch; its split, if it can be, is made before its head and so works first."""
        split, head = None, None
        with suppress(ValueError):
            split = SplitForward(self.network)
        if self.config.labelled_head is not False:
            with suppress(ValueError):
                head = LabelledHead(self.network)
        return GraphCache(self.network, self.network.parameters(), None, head=head, split=split)

    @cached_property
    def skipping(self) -> CostGraph:
        """The sample's graph where activations are kept from the first epoch on."""
        epochs = self.epochs_kept
        return self.graph.expecting([(epochs - 1) / epochs] * len(self.graph.stages))

    @property
    def epochs_kept(self) -> int:
        """Epochs of the run that forward-skipping is shown for."""
        return self.config.epochs if self.config.epochs > 1 else KEPT_EPOCHS

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def watts(self) -> float:
        """Power of the device: stated, as measured with the clock, or else assumed."""
        if self.config.watts is None and self.clock is not None:
            return self.clock.watts
        return assumed_watts() if self.config.watts is None else self.config.watts

    def rows(self) -> list[Row]:
        """What each share buys; shares below the smallest of any kind are left out."""
        chosen = [
            (rho, self._chosen(self.graph, rho), self._chosen(self.skipping, rho)) for rho in SHARES
        ]
        able = [one for one in chosen if one[1] or one[2]]
        memory = self._memory([names or more for _, names, more in able])
        return [
            self._row(rho, names, more, *told)
            for (rho, names, more), told in zip(able, memory, strict=True)
        ]

    def together(self, bandwidth: float | None = None) -> list[Together]:
        """What each share takes of several processes.  bandwidth: bytes a second that each sends.

        Shares that train nothing are left out.
        """
        chosen = [(rho, self._chosen(self.graph, rho)) for rho in SHARES]
        able = [(rho, names) for rho, names in chosen if names]
        memory = self._memory([names for _, names in able])
        rows = [
            (rho, names, self._depth(names), told)
            for (rho, names), (told, _) in zip(able, memory, strict=True)
        ]
        return together(self.config, self.network, rows, bandwidth)

    def _chosen(self, graph: CostGraph, rho: float) -> tuple[str, ...]:
        """Most of the model within a share of full fine-tuning; nothing where that buys none."""
        if rho == 1:
            return graph.tensors
        budget = graph.backward_budget(rho - self._probes(graph, rho))
        if budget < min(graph.closure_flops.values()):
            return ()
        return select(graph, {n: float(size) for n, size in graph.sizes.items()}, budget).names

    def _probes(self, graph: CostGraph, rho: float) -> float:
        """Share of full fine-tuning that the run's probes take, where its length is known."""
        if self.tokenizer is None and self.config.train_limit is None:
            return 0.0
        reachable = graph.affordable(graph.backward_budget(rho))
        one = (graph.forward_flops + graph.backward_flops(reachable)) / graph.full_flops
        batches = self.data.batches * self.config.epochs
        probes = min(self.config.selections, batches)
        count = int(PROBE_SHARE * rho * batches / probes / one)
        return probes * max(1, min(self.config.probe_batches, count)) * one / batches

    def _row(
        self, rho: float, names: Sequence[str], more: Sequence[str], memory: Memory, own: bool
    ) -> Row:
        seconds = self.seconds(names) if self.clock and names else None
        hours = seconds * self.data.batches * self.config.epochs / 3600 if seconds else None
        kwh = hours * self.watts / 1000 if hours else None
        return Row(
            rho,
            rho * self.data.full_flops * self.config.epochs,
            self._depth(names),
            self._share(names),
            self._depth(more),
            self._share(more),
            memory,
            own,
            seconds,
            hours,
            kwh,
            kwh * self.intensity.mean(time.time(), 3600 * hours) if kwh and hours else None,
        )

    @cached_property
    def intensity(self) -> Intensity:
        """Of the grid: as the schedule says, or the stated one."""
        if self.config.carbon_schedule is not None:
            return read_schedule(self.config.carbon_schedule)
        return Intensity(grams=(self.config.carbon_intensity,))

    def starts(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """For each time at which the run could begin, the grams of CO2 of each rho; by a clock."""
        now = time.time()
        times = [now, *(t for t in self.intensity.times if t > now)] if self.clock else []
        return [
            {
                "begin": datetime.fromtimestamp(begin).astimezone().isoformat(timespec="minutes"),
                "co2_grams": {
                    f"{row.rho:g}": row.kwh * self.intensity.mean(begin, 3600 * row.hours)
                    for row in rows
                    if row.kwh and row.hours
                },
            }
            for begin in (times if len(times) > 1 else [])
        ]

    def seconds(self, names: Sequence[str]) -> float:
        """Of an average batch that trains these tensors, by the clock."""
        assert self.clock is not None
        elements = sum(self.graph.sizes[name] for name in names)
        update = self.clock.update * elements
        passes = self.clock.seconds(self.graph, names) - update
        update /= self.config.accumulate
        average = self.data.full_flops / self.data.batches
        return passes * average / self.graph.full_flops + update

    @cached_property
    def _places(self) -> dict[str, dict[str, Any]]:
        return layout(self.network)

    @cached_property
    def blocks(self) -> int:
        """Repeated blocks of the model."""
        return 1 + max(
            (p["block"] for p in self._places.values() if p["block"] is not None), default=-1
        )

    def _depth(self, names: Sequence[str]) -> int:
        """Blocks from the loss to the deepest in which something is trained."""
        numbers = [self._places[name]["block"] for name in names]
        return self.blocks - min((n for n in numbers if n is not None), default=self.blocks)

    def _share(self, names: Sequence[str]) -> float:
        return sum(self.graph.sizes[n] for n in names) / sum(self.graph.sizes.values())

    def _memory(self, selections: list[Sequence[str]]) -> Iterator[tuple[Memory, bool]]:
        """For each selection a step's memory; where that takes long, of some by interpolation."""
        start = time.perf_counter()
        known = {len(selections) - 1: self.memory(selections[-1])}
        if time.perf_counter() - start < QUICK:
            known |= {i: self.memory(names) for i, names in enumerate(selections[:-1])}
        else:
            known[0] = self.memory(selections[0])
        for place, names in enumerate(selections):
            if place in known:
                yield known[place], True
            else:
                yield self._between(names, known[0], known[len(selections) - 1]), False

    def memory(self, names: Sequence[str]) -> Memory:
        """Of a step on the largest batch that trains these tensors, and of a probe before it."""
        head = None if self.tokenizer is None else self._graphs.head
        batch = self.data.largest
        with head.on(batch) if head else nullcontext():
            told = step_memory(self.network, batch, names, self._loss)
            if len(names) == len(self.graph.tensors):
                return told
            flops = self.graph.forward_flops + self.graph.backward_flops(names)
            share = flops / self.graph.full_flops
            reachable = self.graph.affordable(self.graph.backward_budget(share))
            return replace(told, probe=probe_memory(self.network, batch, reachable, self._loss))

    def room(self) -> list[dict[str, Any]]:
        """What each size of memory buys, on the largest batch."""
        short = Sketched(None, None)
        if self.tokenizer is not None and not self._seq2seq:
            short = Sketched(self._graphs.split, self._graphs.head)
        return rooms(self.config, self.network, self.data.largest, short)

    def _between(self, names: Sequence[str], low: Memory, high: Memory) -> Memory:
        elements = sum(self.graph.sizes[name] for name in names)
        gradients = 4 * elements
        share = (gradients - low.gradients) / max(1, high.gradients - low.gradients)
        activations = low.activations + share * (high.activations - low.activations)
        return Memory(high.weights, gradients, MOMENTS * gradients, round(activations), low.probe)

    def _loss(self, model: nn.Module, batch: Batch) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            return loss_of(model, batch)

    # The clock

    def look_up(self) -> None:
        """Take the clock that was set for such batches on this device, if there is one."""
        clock = saved_clock(self.network, self._device, mode_of(self.config))
        tokens = self.data.sample["input_ids"].numel()
        self.clock = clock if clock and clock.suits(tokens) else None

    def calibrate(self) -> Clock:
        """Set the clock on this device by a few real steps of the sample batch, and keep it.

        Weights are random where there are none to load: time does not depend on them.
        """
        device = self._device
        network = models.blank(self.network).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        batch = encode.placed(self.data.sample, device)
        options = ForwardOptions(labelled_head=self.config.labelled_head is not False)
        meter = start_meter(self.config.meter, self.config.watts)
        budget = Budget("rho", 1.0, "seconds", consumption=Consumption(meter.joules))
        kind, dtype = device.type, torch.bfloat16

        def loss(model: nn.Module, given: Batch) -> Any:
            with torch.autocast(kind, dtype, enabled=self.config.bf16):
                return loss_of(model, given)

        with AdaptiveBackprop(
            network, optimizer, batch, rho=budget, loss_fn=loss, one_call=True, forward=options
        ) as engine:
            assert engine.clock is not None
            self.clock = engine.clock
        meter.stop()
        save_clock(self.clock, self.network, device, mode_of(self.config))
        return self.clock

    # All of it

    def completions_only(self) -> float | None:
        """Share of full fine-tuning at which every tensor is trained, by completions alone."""
        split = None if self.tokenizer is None or self._seq2seq else self._graphs.split
        if split is None:
            return None
        with split.at(0):
            graph = self._graphs.of_batch(self.data.sample)
        return (graph.forward_flops + graph.full_backward_flops) / graph.full_flops

    def summary(self) -> dict[str, Any]:
        """The whole plan as plain values."""
        graph, data, rows = self.graph, self.data, self.rows()
        closure = graph.closure_flops
        return {
            "model": self.config.model,
            "kind": type(self.network).__name__,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "tensors": len(graph.tensors),
            "blocks": self.blocks,
            "data": data.says,
            "batches": data.batches,
            "epochs": self.config.epochs,
            "full_flops": data.full_flops * self.config.epochs,
            "batch": {
                "forward_flops": graph.forward_flops,
                "backward_flops": graph.full_backward_flops,
                "full_flops": graph.full_flops,
            },
            "smallest_rho": graph.smallest_rho(),
            "skipping_epochs": self.epochs_kept,
            "skipping_smallest_rho": self.skipping.smallest_rho(),
            "completions_only_rho": self.completions_only(),
            "clock": asdict(self.clock) if self.clock else None,
            "watts": self.watts,
            "energy": f"{self.watts:.3g} W, {self.intensity.at(time.time()):g} gCO2/kWh now",
            "room": self.room(),
            "processes": self.config.count,
            "together": [asdict(row) for row in self.together(self.bandwidth)]
            if self.config.count > 1 else [],
            "rows": [asdict(row) | {"memory_total": row.memory.total} for row in rows],
            "starts": self.starts(rows),
            "profile": [
                {
                    "tensor": name,
                    **self._places[name],
                    "elements": graph.sizes[name],
                    "t_dw": graph.own_flops[name],
                    "t_dy": closure[name] - graph.own_flops[name],
                }
                for name in graph.tensors
            ],
            "uncounted": list(graph.uncounted_ops),
        }  # fmt: skip
