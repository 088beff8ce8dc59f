"""Numbers drawn at random whose values do not matter, so that a model that looks at one is traced.

A model with layer drop draws a number for each layer and leaves the layer out where it is below a
rate.  The draw has no value under fake tensors; but where the rate is nothing, as in nearly every
published configuration, every draw from [0, 1) gives the same answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["CertainDraws"]

Bounds = tuple[float, float]
"""Least value, and one that all values lie below."""


def _below(bounds: Bounds, number: float) -> bool | None:
    """Whether a drawn number is less than this one; None where it depends on the draw."""
    low, high = bounds
    return True if high <= number else False if number <= low else None


def _at_most(bounds: Bounds, number: float) -> bool | None:
    low, high = bounds
    return True if high <= number else False if number < low else None


def _not(known: Callable[[Bounds, float], bool | None]) -> Callable[[Bounds, float], bool | None]:
    def answer(bounds: Bounds, number: float) -> bool | None:
        found = known(bounds, number)
        return None if found is None else not found

    return answer


_ANSWERS = {
    "lt": _below, "less": _below, "__lt__": _below,
    "le": _at_most, "less_equal": _at_most, "__le__": _at_most,
    "ge": _not(_below), "greater_equal": _not(_below), "__ge__": _not(_below),
    "gt": _not(_at_most), "greater": _not(_at_most), "__gt__": _not(_at_most),
}  # fmt: skip


def _bounds(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bounds:
    """Of `torch.rand(shape)` or of `tensor.uniform_(from, to)`."""
    if name == "rand":
        return 0.0, 1.0
    given = dict(zip(("from", "to"), args[1:3], strict=False)) | dict(kwargs)
    return given.get("from", 0.0), given.get("to", 1.0)


class CertainDraws(TorchFunctionMode):
    """Answers whether a number drawn evenly is above or below another where that is certain.

    Only for single numbers that are drawn within; all else is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, tuple[torch.Tensor, int, Bounds]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ANSWERS and len(args) == 2 and not kwargs:
            drawn, version, bounds = self._drawn.get(id(args[0]), (None, None, None))
            same = drawn is not None and drawn._version == version  # not written to since
            if bounds is not None and same and isinstance(args[1], int | float):
                answer = _ANSWERS[name](bounds, args[1])
                if answer is not None:
                    return torch.tensor(answer)
        out = func(*args, **kwargs)
        if name in ("rand", "uniform_") and out.numel() == 1:
            self._drawn[id(out)] = out, out._version, _bounds(name, args, kwargs)
        return out
