"""Parts of a prompt that may be read in place of all of it, by name.  No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Which = Literal["last", "first", "ends", "grounds"]
Prompts = str
"""How much of each prompt is read: whole, a part by its name (`PARTS`), or choose."""


@dataclass(frozen=True)
class Part:
    """A share of each prompt's positions before its tail, and which.

    which: its last or first ones, both ends, or the passages that share most with the completion.
    """

    which: Which
    share: float


PARTS = {
    f"{which} {name}": Part(which, share)
    for which in ("last", "first", "ends", "grounds")
    for name, share in (("half", 0.5), ("quarter", 0.25), ("tenth", 0.1))
}
"""What may be read of a prompt, by name."""


def parts_of(prompts: str) -> tuple[str | None, ...]:
    """What is chosen among where so much of prompts is asked for; None: all of it.

    Raises ValueError for what is no part.
    """
    if prompts == "whole":
        return (None,)
    if prompts == "choose":
        return (None, *PARTS)
    if prompts in PARTS:
        return (prompts,)
    raise ValueError(f"prompts is {prompts!r}: whole, choose, or one of {', '.join(PARTS)}")


def way_of(step: Mapping[str, Any]) -> str:
    """In words the positions that gradient passes through, and what is read of those before.

    step: a selection or an alternative, as plain values.
    """
    tail = "all" if step["tail"] is None else str(step["tail"])
    return f"{tail}, {step['part']} read" if step.get("part") else tail
