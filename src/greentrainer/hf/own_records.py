"""What a Trainer notes while it computes a loss: metrics, counters, the batch in hand.

To trace and to measure, the loss is computed outside training steps, and these notes would be taken
for a step's.  So they are put back.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 4096
"""Items of a list or mapping that may be notes; what is longer is data."""


@contextmanager
def records_kept(owner: Any) -> Iterator[None]:
    """Afterwards its numbers, lists and mappings are as they were, nested ones too."""
    held = vars(owner)
    before = {name: (value, _copied(value)) for name, value in held.items()}
    try:
        yield
    finally:
        for name in held.keys() - before.keys():
            del held[name]
        for name, (value, copy) in before.items():
            if held.get(name) is not value:
                held[name] = value
            _put_back(value, copy)


def _copied(value: Any) -> Any:
    """What a container holds; None for anything else."""
    if not isinstance(value, dict | list | deque | set) or len(value) > LONGEST:
        return None
    if isinstance(value, dict):
        return {key: (item, _copied(item)) for key, item in value.items()}
    if isinstance(value, set):
        return set(value)
    return [(item, _copied(item)) for item in value]


def _put_back(value: Any, copy: Any) -> None:
    if copy is None:
        return
    if isinstance(value, dict):
        for key in value.keys() - copy.keys():
            dict.__delitem__(value, key)
        for key, (item, own) in copy.items():
            if key not in value or value[key] is not item:
                value[key] = item
            _put_back(item, own)
    elif isinstance(value, set):
        value.clear()
        value.update(copy)
    else:
        changed = len(value) != len(copy) or any(
            now is not item for now, (item, _) in zip(value, copy, strict=True)
        )
        if changed:
            value.clear()
            value.extend(item for item, _ in copy)
        for item, own in copy:
            _put_back(item, own)
