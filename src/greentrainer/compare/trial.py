"""One run of a comparison, and the record of it."""

import hashlib
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from greentrainer.compare.spec import Trial
from greentrainer.config import RunConfig
from greentrainer.hf import layout
from greentrainer.methods import METHODS
from greentrainer.records import interrupted, write_json
from greentrainer.run import RunInputs, RunResult, bill_of, evaluation, prepare, save, train
from greentrainer.tasks import Encoded

Record = dict[str, Any]

ELSEWHERE = {"block": None, "kind": "adapter"}
"""The place of a tensor that the finished model no longer has."""


def run(
    trial: Trial, begun: Record, path: Path, console: Console, keep_model: bool = False
) -> None:
    """Do the run and write its record to `path`; one that fails is recorded as failed.

    begun: what the record holds already.
    An interrupted run leaves no record, so that it is made again.
    """
    threads = {"threads": torch.get_num_threads()}
    record = begun | {"provenance": begun["provenance"] | threads}
    try:
        results = measure(trial.config, console, keep_model)
    except Exception as error:
        if interrupted(error):
            raise KeyboardInterrupt from error
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        failure = {"status": "failed", "error": reason}
        if not isinstance(error, ValueError):  # a ValueError is a refusal and says all there is
            failure["traceback"] = traceback.format_exc()
        write_json(path, record | failure)
        return
    if not results.pop("interrupted"):
        write_json(path, record | {"status": "done"} | results)


def measure(config: RunConfig, console: Console, keep_model: bool) -> Record:
    """Train as configured, and judge the result on validation and test examples."""
    training = METHODS[config.method].trains
    inputs = prepare(config, console)
    results: Record = {"data": fingerprint(inputs), "interrupted": False}
    if training:
        outcome, peak = train(config, inputs, console)
        results["interrupted"] = outcome.interrupted
        if outcome.interrupted:
            return results
        inputs = replace(inputs, model=outcome.model)
        results |= {"bill": bill_of(config, outcome, peak), **course(outcome)}
        if keep_model:
            save(config, inputs, outcome, results)
    if inputs.validation:
        results["validation"] = {"loss": evaluation.loss(inputs, inputs.validation, config)}
    return results | {"test": evaluation.evaluate(inputs, config)}


def course(outcome: RunResult) -> Record:
    """What was trained when (tensors by their number in `tensors`), and what each step was like."""
    engine = outcome.engine
    number = {name: i for i, name in enumerate(engine.graph.tensors)}
    places = layout(engine.model)
    return {
        "losses": [round(loss, 5) for loss in outcome.losses],
        "batch_seconds": [round(one.seconds, 4) for one in engine.ledger if one.kind == "train"],
        "tensors": [{"name": name, **places.get(name, ELSEWHERE)} for name in number],
        "selections": [
            {
                "batch": event["batch"],
                "asked": event["asked"],
                "seconds": event["seconds"],
                "tail": event["tail"],
                "tail_saves_flops": event["tail_saves_flops"],
                "tensors": [number[name] for name in event["names"]],
                **{key: event[key] for key in ("planned", "alternatives") if key in event},
            }
            for event in engine.history
        ],
    }


def fingerprint(inputs: RunInputs) -> Record:
    """How many examples there are of each part, and a hash of all their tokens and labels."""
    parts = {
        "train": inputs.train,
        "validation": inputs.validation,
        "test": inputs.test,
    }
    return {
        **{name: len(examples) for name, examples in parts.items()},
        "sha256": _hash(one for examples in parts.values() for one in examples),
    }


def _hash(examples: Iterable[Encoded]) -> str:
    digest = hashlib.sha256()
    for one in examples:
        digest.update(repr((one.input_ids, one.labels)).encode())
    return digest.hexdigest()[:16]
