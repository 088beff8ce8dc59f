"""What a run chose, and what its tensors cost: the numbers behind pictures and tables."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from greentrainer.report.account import flops, thinned
from greentrainer.report.masks import frequency, grid
from greentrainer.report.record import RunRecord
from greentrainer.types import way_of

Row = dict[str, Any]
PANELS = 6
"""Selections that are drawn, evenly spaced."""
PROVEN = 1 - 1e-9
"""Share of the bound from which on a selection is the optimum, rounding aside."""


def numbered(record: RunRecord) -> list[Row]:
    """The selections with their number (from 1), batches in force and tensors as numbers."""
    number = {tensor["name"]: i for i, tensor in enumerate(record.tensors)}
    starts = [event["batch"] for event in record.selections]
    ends = [*starts[1:], record.batches]
    return [
        {
            **event,
            "number": i,
            "tensors": [number[name] for name in event["names"]],
            "in_force": end - event["batch"],
        }
        for i, (event, end) in enumerate(zip(record.selections, ends, strict=True), 1)
    ]


def steps_of(record: RunRecord, batches: Sequence[int]) -> list[int]:
    """For each number of batches the optimizer steps that had ended by then."""
    ended = [row["batches"] for row in record.steps]
    return [bisect_right(ended, batch) for batch in batches]


def panels(record: RunRecord, events: Sequence[Row]) -> dict[str, list[float]]:
    """What some selections chose: 1 for each tensor; those alike that follow each other are one."""
    used = [event for event in events if event["in_force"]]
    alike = [list(group) for _, group in groupby(used, key=lambda event: event["tensors"])]
    found = {}
    for group in thinned(alike, PANELS):
        chosen = set(group[0]["tensors"])
        numbers = ranges([event["number"] for event in group])
        title = f"selection {numbers}: {len(chosen)} tensors from batch {group[0]['batch'] + 1}"
        found[title] = [float(i in chosen) for i in range(len(record.tensors))]
    return found


def shares(record: RunRecord, events: Sequence[Row]) -> list[float]:
    """For each tensor the share of batches in which it was trained."""
    seen = {"selections": events, "bill": {"batches": record.batches}}
    return frequency([seen], len(record.tensors))


def importances(record: RunRecord, events: Sequence[Row]) -> dict[str, list[float]]:
    """Importance at some of the probes; nan where it was not measured."""
    probed = [event for event in events if event["importances"]]
    return {
        f"probe of selection {event['number']}": [
            event["importances"].get(tensor["name"], math.nan) for tensor in record.tensors
        ]
        for event in thinned(probed, PANELS)
    }


def tails(record: RunRecord, events: Sequence[Row]) -> list[Row]:
    """Positions at each selection and what they save, as a share of a full batch's FLOPs."""
    full = record.costs["full_flops"]
    return [{**event, "saves": event["tail_saves_flops"] / full} for event in events]


def selection_lines(record: RunRecord, events: Sequence[Row]) -> list[list[str]]:
    """Each selection as a line of text: see `run.SELECTION_HEAD`."""
    before = steps_of(record, [event["batch"] for event in events])
    return [
        [
            str(event["number"]),
            str(step + 1),
            "planned" if event["asked"] else "on course",
            f"{len(event['names'])} of {len(record.tensors)}",
            str(event["in_force"]),
            _of_budget(event),
            "all tensors" if len(event["names"]) == len(record.tensors) else _of_optimum(event),
            f"{event['seconds']:.3f}",
            way_of(event),
            flops(event["tail_saves_flops"] * event["in_force"]),
        ]
        for event, step in zip(events, before, strict=True)
    ]


def _of_budget(event: Mapping[str, Any]) -> str:
    budget = event["backward_budget"]
    return f"{event['backward_flops'] / budget:.1%} of {flops(budget)}" if budget > 0 else ""


def _of_optimum(event: Mapping[str, Any]) -> str:
    most = event["optimum_at_most"]
    if most is None or most <= 0:
        return "no bound"
    share = event["importance"] / most
    return "optimal" if share > PROVEN else f"at least {share:.2%}"


def places(record: RunRecord) -> list[Row]:
    """Cost by place, from the loss to the input.

    own: `t_dw` of its tensors.  passed: `t_dy`, what a gradient that reaches its deepest tensor
    costs beyond one that reaches those nearer the loss.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for tensor in record.tensors:
        block = tensor["block"]
        groups.setdefault(tensor["kind"] if block is None else f"block {block}", []).append(tensor)
    found = [
        {
            "place": place,
            "own": sum(tensor["flops"] for tensor in members),
            "reach": max(tensor["closure_flops"] - tensor["flops"] for tensor in members),
        }
        for place, members in groups.items()
    ]
    found.sort(key=lambda row: row["reach"])
    for nearer, row in pairwise([{"reach": 0}, *found]):
        row["passed"] = row["reach"] - nearer["reach"]
    return found


def kinds(record: RunRecord) -> list[Row]:
    """`t_dw` and elements summed over the tensors of a kind, in the order of the forward pass."""
    names = grid(record.tensors, [0.0] * len(record.tensors))[0]
    own = {kind: [tensor for tensor in record.tensors if tensor["kind"] == kind] for kind in names}
    return [
        {
            "kind": kind,
            "tensors": len(members),
            "elements": sum(tensor["elements"] for tensor in members),
            "own": sum(tensor["flops"] for tensor in members),
        }
        for kind, members in own.items()
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as text: 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
