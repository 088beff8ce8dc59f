"""FLOPs of single operations, and the convention behind every figure.

Convention: 2 FLOPs per multiply-accumulate, matrix work only (matrix products, convolutions, fused
attention).  Elementwise work, normalisation, softmax and the optimizer's update are not counted.
Fused attention is charged as `torch.utils.flop_counter` charges it: two products forward, five
backward (the scores are recomputed), no discount for a causal mask.

Formulas are torch's own but for products with vectors or added in place, which it has none for,
and fused attention: torch counts it as 0 on the CPU, and before 2.12 not at all where several heads
of queries share one of keys.  Those of products with quantised weights are in `quantised.py`.
Where torch has no formula, ours is put into its registry.  An operation that does matrix work and
has no formula is reported by `has_uncounted_work`, never passed over.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from greentrainer.cost import quantised
from greentrainer.cost.blank import uncompiled

aten = torch.ops.aten

Shape = Sequence[int]


def _attention_forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, _spread(key, query), _spread(value, query)))


def _attention_backward(
    grad_out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    keys, values = _spread(key, query), _spread(value, query)
    return int(sdpa_backward_flop_count(grad_out, query, keys, values))


def _spread(shared: Shape, query: Shape) -> Shape:
    """(B, H, T, D) of keys or values, each head of which serves as many of the queries' H."""
    return (shared[0], query[1], *shared[2:])


def _on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """Let a formula written on shapes take tensors, as torch's registry expects."""

    def on_tensors(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*(a.shape if isinstance(a, torch.Tensor) else a for a in args))

    return on_tensors


ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _on_shapes(_attention_forward),
    aten._scaled_dot_product_flash_attention: _on_shapes(_attention_forward),
    aten._scaled_dot_product_efficient_attention: _on_shapes(_attention_forward),
    aten._scaled_dot_product_cudnn_attention: _on_shapes(_attention_forward),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _on_shapes(_attention_backward),
    aten._scaled_dot_product_flash_attention_backward: _on_shapes(_attention_backward),
    aten._scaled_dot_product_efficient_attention_backward: _on_shapes(_attention_backward),
    aten._scaled_dot_product_cudnn_attention_backward: _on_shapes(_attention_backward),
}
"""Formulas for the kernels of fused attention, in the form `FlopCounterMode` takes them."""

VECTORS: dict[Any, Callable[..., int]] = {
    aten.mv: _on_shapes(lambda matrix, *_, **__: 2 * matrix[0] * matrix[1]),
    aten.addmv: _on_shapes(lambda _, matrix, *__, **___: 2 * matrix[0] * matrix[1]),
    aten.addr: _on_shapes(lambda _, column, row, *__, **___: 2 * column[0] * row[0]),
}
"""Formulas for products of a matrix with a vector, which torch has none for."""

IN_PLACE: dict[Any, Callable[..., int]] = {
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
    aten.addmv_: VECTORS[aten.addmv],
    aten.addr_: VECTORS[aten.addr],
}
"""Products added to what is there: torch has formulas for those that make a new tensor only."""

for _operation, _formula in {**ATTENTION, **VECTORS, **IN_PLACE}.items():
    flop_registry.setdefault(_operation, _formula)  # whoever counts, counts what the books say

FORMULAS: dict[Any, Callable[..., int]] = {**flop_registry, **ATTENTION}
"""Operation -> formula, called as `formula(*args, **kwargs, out_val=result)`."""


@cache
def formula_of(packet: Any) -> Callable[..., int] | None:
    """The formula of an operation; None for one that does no matrix work or is not known."""
    found: Callable[..., int] | None = FORMULAS.get(packet)
    if found is None:
        found = quantised.named(str(packet))
        if found is not None:
            flop_registry.setdefault(packet, found)
    return found


_UNCOUNTED = frozenset(
    {
        "addbmm", "cdist", "_cdist_forward", "_cdist_backward", "dot",
        "linear", "_fused_sdp_choice_math", "linear_backward", "lstm", "gru",
        "mkldnn_linear", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "vdot",
        "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_trilinear", "_sparse_mm",
        "_sparse_addmm",
        "_scaled_dot_product_attention_math_for_mps", "_fft_c2c", "_fft_r2c", "_fft_c2r",
    }
)  # fmt: skip
_OWN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler"})


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of what runs in it, by this module's convention, on every device.

    Unlike torch's `FlopCounterMode` it takes no operation apart that has a kernel of its own: the
    parts would give other bits.  Goes around `torch.compile`: a frame met under a mode would stay
    uncompiled for good.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __enter__(self) -> "FlopCounter":
        self._around = ExitStack()
        self._around.enter_context(uncompiled())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> Any:
        with self._around:
            return super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def get_total_flops(self) -> int:
        """FLOPs since it was entered."""
        return self.flops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, or those it is made of, and count."""
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", None)
        if packet is not None and formula_of(packet) is None and not _has_kernel(func):
            with self._within():
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if packet is not None:
            self.flops += count_flops(packet, args, kwargs, out)
        return out

    def _within(self) -> Any:
        """In here what an operation is made of is counted too."""
        return _Parts(self)


class _Parts(TorchDispatchMode):
    """The counter again, without beginning anew."""

    def __init__(self, counter: FlopCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._counter.__torch_dispatch__(func, types, args, kwargs)


@cache
def _has_kernel(func: Any) -> bool:
    """Whether an operation runs as it is on some device; so does what only asks (`prim.device`)."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if func.namespace == "prim":
        return True
    return any(has(func.name(), key) for key in _KERNELS)


_KERNELS = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


def flop_counter() -> FlopCounter:
    """A counter of FLOPs."""
    return FlopCounter()


def count_flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    """FLOPs of one call of the operation `packet`; 0 when it has no formula."""
    formula = formula_of(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def count_by_output(packet: Any, args: Any, kwargs: Any, out: Any) -> list[int] | None:
    """FLOPs of each output apart, for an operation told by a mask which outputs to compute."""
    if packet is not aten.convolution_backward:
        return None
    mask = args[-1]
    alone = [[i == j and on for j in range(len(mask))] for i, on in enumerate(mask)]
    return [count_flops(packet, (*args[:-1], one), kwargs, out) if any(one) else 0 for one in alone]


def has_uncounted_work(packet: Any) -> bool:
    """Whether the operation does, or may do, matrix work for which there is no formula.

    Known matrix operations without a formula, and anything from outside torch's own namespaces
    (custom kernels), which could do anything.
    """
    if formula_of(packet) is not None:
        return False
    namespace, _, name = str(packet).rpartition(".")
    own = namespace in _OWN_NAMESPACES or namespace == ""
    return name in _UNCOUNTED or not own
