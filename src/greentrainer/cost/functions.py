"""What functions with a derivative of their own (`torch.autograd.Function`) cost for each operand.

Such a function does as it likes: it may compute the gradients of all operands together, leave out
those that nobody needs, or compute them in its forward pass already, where it sees which of its
operands require one.  So each is asked: it is run again, aside, for every set of operands that may
require a gradient, and what each set costs says what is shared and what is an operand's own.

For a set S of operands let c(S) be what the function costs more than if none required a gradient,
forward and backward pass together.  It is told as shares w_T, each paid once if any operand in T
is needed: c(S) is the sum of w_T over all T that meet S.  With g(R) = c(all) - c(all but R), the
sum of w_T over all T within R, they follow by inclusion and exclusion.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import _SingleLevelFunction
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from greentrainer.cost.record import Recorder

MANY = 4
"""Operands up to which every set is tried; with more, each alone and all but each."""

Operands = tuple[int, ...]
"""Positions in `next_functions`."""
Ran = list[tuple[Any, int]]
"""Operations and their FLOPs."""


@dataclass(frozen=True)
class Call:
    """One call of a function that a gradient may pass through."""

    function: Any
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """What a function costs.

    forward_flops: where no operand requires a gradient.
    traced_flops: of its forward pass where all do, as in the trace.
    charges: what sets of operands cost besides.
    """

    forward_flops: int
    traced_flops: int
    charges: tuple[tuple[int, Operands], ...]


@contextmanager
def calls_noted() -> Iterator[dict[Node, Call]]:
    """Gives what each function met in here was called with, by the node it made.

    `Function.apply` calls the `apply` of the class it comes from, of which there is one for all.
    """
    found: dict[Node, Call] = {}

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        kept = tree_map_only(torch.Tensor, torch.Tensor.detach, args)  # it may write to them
        out = super(_SingleLevelFunction, cls).apply(*args, **kwargs)
        outs = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        nodes = {one.grad_fn for one in outs if one.grad_fn is not None}
        if len(nodes) == 1 and not kwargs:
            found[nodes.pop()] = Call(cls, kept)
        return out

    before = vars(_SingleLevelFunction).get("apply")
    _SingleLevelFunction.apply = classmethod(apply)  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        if before is None:
            del _SingleLevelFunction.apply  # type: ignore[attr-defined]
        else:
            _SingleLevelFunction.apply = before  # type: ignore[attr-defined]


def asked(
    call: Call, gradients: Sequence[Any], wanted: Operands, recorder: Recorder
) -> Asked | None:
    """What a function costs for each set of the operands `wanted`.

    gradients: what its backward pass was handed.  None where it cannot be run again.
    """
    try:
        with _fakes(call, gradients) as (args, handed):
            known = {
                one: _run(call.function, args, handed, one, recorder) for one in _tried(wanted)
            }
    except Exception:  # whatever a function makes of being run again
        return None
    work = recorder.work
    nothing = _together(known[()][0], work)
    costs = {one: _together([*f, *b], work) - nothing for one, (f, b) in known.items()}
    shares = _shares(costs, wanted)
    if shares is None or any(share < 0 for share in shares.values()):
        shares = {wanted: costs[wanted]}
    charges = tuple((share, one) for one, share in shares.items() if share)
    return Asked(nothing, sum(work(flops) for _, flops in known[wanted][0]), charges)


@contextmanager
def _fakes(call: Call, gradients: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Arguments and gradients without values, under their fake mode."""
    every = tree_leaves((call.args, gradients))
    if any(isinstance(one, FakeTensor) for one in every):
        yield call.args, gradients
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield tree_map_only(torch.Tensor, mode.from_tensor, (call.args, tuple(gradients)))


def _run(
    function: Any,
    args: tuple[Any, ...],
    handed: Sequence[Any],
    needed: Operands,
    recorder: Recorder,
) -> tuple[Ran, Ran]:
    """What its forward and its backward pass run where exactly these operands are needed."""
    places = [i for i, one in enumerate(args) if isinstance(one, torch.Tensor)]
    fresh = list(args)
    for position, place in enumerate(places):
        fresh[place] = args[place].detach().requires_grad_(position in needed)
    with torch.enable_grad():
        with recorder.aside() as forward:
            out = function.apply(*fresh)
        outs = out if isinstance(out, tuple) else (out,)
        pairs = [
            (one, gradient)
            for one, gradient in zip(outs, handed, strict=True)
            if gradient is not None and isinstance(one, torch.Tensor) and one.requires_grad
        ]
        with recorder.aside() as backward:
            if needed and pairs:
                torch.autograd.grad(
                    [one for one, _ in pairs],
                    [fresh[places[position]] for position in needed],
                    [gradient for _, gradient in pairs],
                    allow_unused=True,
                )
    return forward, backward


def _together(ran: Ran, work: Callable[[int], int]) -> int:
    """FLOPs of all, added up for each operation first: it may be run on pieces of a whole."""
    sums = Counter[Any]()
    for operation, flops in ran:
        sums[operation] += flops
    return sum(work(flops) for flops in sums.values())


def _tried(wanted: Operands) -> list[Operands]:
    """Sets of operands that tell the shares."""
    if len(wanted) <= MANY:
        return _within(wanted)
    alone = [(one,) for one in wanted]
    return [(), *alone, *(_without(wanted, one) for one in alone), wanted]


def _within(whole: Operands) -> list[Operands]:
    every = (combinations(whole, size) for size in range(len(whole) + 1))
    return list(chain.from_iterable(every))


def _without(whole: Operands, some: Operands) -> Operands:
    return tuple(one for one in whole if one not in some)


def _shares(costs: Mapping[Operands, int], wanted: Operands) -> dict[Operands, int] | None:
    """What each set of operands pays once; None where costs are not made of such shares."""
    missed: Callable[[Operands], int] = lambda some: costs[wanted] - costs[_without(wanted, some)]  # noqa: E731
    if len(wanted) <= MANY:
        shares = {}
        for some in _within(wanted)[1:]:
            signs = [(-1) ** (len(some) - len(r)) for r in _within(some)]
            shares[some] = sum(s * missed(r) for s, r in zip(signs, _within(some), strict=True))
        return shares
    shares = {(one,): missed((one,)) for one in wanted}
    shares[wanted] = costs[wanted] - sum(shares.values())
    if any(costs[one,] != shares[one,] + shares[wanted] for one in wanted):
        return None
    return shares
