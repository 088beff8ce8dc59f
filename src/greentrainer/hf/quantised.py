"""Bases in few bits: loaded quantised, trained through adapters, told in full precision.

The weights of a model in 4 bits (NF4 with quantised scales, as QLoRA has it: Dettmers et al.,
NeurIPS 2023) or 8 (LLM.int8) cannot be trained; adapters beside them can.  bitsandbytes does it, an
extra, imported when it is used.
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch
import transformers

Bits = Literal[4, 8]


def quantisation(bits: Bits, dtype: torch.dtype) -> Any:
    """What `from_pretrained` is told.  dtype: what products are computed in.

    Raises ValueError, with what to install, where bitsandbytes is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"loading in {bits} bits needs bitsandbytes: pip install 'greentrainer[quantised]'"
        )
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantised(model: Any) -> bool:
    """Whether a model was loaded in few bits, adapters beside it or not."""
    return getattr(model, "quantization_method", None) is not None


def dense(model: Any) -> Any:
    """The architecture of `model` unquantised and without weights, on the meta device."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        return type(model)._from_config(type(model.config).from_dict(settings)).train()


def differentiable(model: Any) -> Any:
    """The model, its 4-bit weights kept from a layout that no gradient passes through.

    On processors with AVX512-BF16 bitsandbytes packs them anew in the first evaluation, and the
    product with packed weights has no derivative: training would go on without one.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model
