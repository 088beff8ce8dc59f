"""A Trainer's records are put back, whatever they are made of."""

from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest

from greentrainer.hf.own_records import records_kept


def test_records_are_put_back_in_the_same_objects() -> None:
    metrics: dict[str, Any] = {"train": defaultdict(list, loss=[1.0]), "eval": defaultdict(list)}
    data = list(range(5000))
    owner = SimpleNamespace(metrics=metrics, seen=3, logs=deque([1, 2]), names={"a"}, data=data)

    def compute() -> None:
        metrics["train"]["loss"].append(2.0)
        metrics["train"]["entropy"].append(0.5)
        metrics["new"] = defaultdict(list)
        owner.seen += 1
        owner.logs.append(3)
        owner.names.add("b")
        owner.more = 1
        owner.metrics = {}
        data.append(0)
        raise KeyError

    with pytest.raises(KeyError), records_kept(owner):
        compute()
    assert owner.metrics is metrics
    assert metrics == {"train": {"loss": [1.0]}, "eval": {}}
    assert (owner.seen, list(owner.logs), owner.names) == (3, [1, 2], {"a"})
    assert not hasattr(owner, "more")
    assert len(owner.data) == 5001  # so long a list is data, and none of its records
