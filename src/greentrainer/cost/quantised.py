"""FLOPs of products with quantised weights.

A product with a weight of few bits is the product that it stands for: 2 FLOPs per
multiply-accumulate, whatever the kernel multiplies in.  All of them take their input first and give
one value of the output for each row of the input and each row of the weight, so the input's last
dimension is the length of every sum: no formula reads the packed weight, whose shape each library
chooses for itself.  Quantising and taking back are elementwise and count nothing.

Operations are known by name, so that no library is loaded that the model does not use.
"""

from collections.abc import Callable
from typing import Any

PRODUCTS = frozenset(
    {
        "aten._int_mm",
        "aten._weight_int8pack_mm",
        "aten._weight_int4pack_mm",
        "aten._weight_int4pack_mm_for_cpu",
        "aten._weight_int4pack_mm_with_scales_and_zeros",
        "aten._scaled_mm_v2",
        "bitsandbytes.gemm_4bit",
        "bitsandbytes.gemv_4bit",
        "bitsandbytes.int8_linear_matmul",
        "bitsandbytes.int8_mixed_scaled_mm",
        "bitsandbytes.int8_scaled_mm",
        "torchao.da8w4_linear_cpu",
        "torchao.float8_linear_cpu",
        "torchao.mx_fp8_bf16",
    }
)
"""Products of rows with a quantised weight."""

ELEMENTWISE = frozenset(
    {
        "bitsandbytes.dequantize_4bit",
        "bitsandbytes.dequantize_blockwise",
        "bitsandbytes.int8_double_quant",
        "bitsandbytes.int8_mm_dequant",
        "bitsandbytes.int8_vectorwise_dequant",
        "bitsandbytes.int8_vectorwise_quant",
        "bitsandbytes.quantize_4bit",
        "bitsandbytes.quantize_blockwise",
        "torchao.choose_qparams_affine",
        "torchao.choose_scale_float8",
        "torchao.dequantize_affine",
        "torchao.dequantize_affine_float8_non_decomposed",
        "torchao.quantize_affine",
        "torchao.quantize_affine_float8_non_decomposed",
    }
)
"""Operations of these libraries that do no matrix work."""


def _product(rows: Any, *_: Any, out_val: Any, **__: Any) -> int:
    out = out_val[0] if isinstance(out_val, tuple) else out_val
    return 2 * int(out.numel()) * int(rows.shape[-1])


def _nothing(*_: Any, **__: Any) -> int:
    return 0


def named(name: str) -> Callable[..., int] | None:
    """The formula of an operation by its name (`library.operation`), where it is one of these."""
    if name in PRODUCTS:
        return _product
    return _nothing if name in ELEMENTWISE else None
