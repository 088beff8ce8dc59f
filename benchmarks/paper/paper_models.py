"""The paper's models and methods without weights: built on the meta device, and traced.

Attention runs as separate products ("eager"), as it did in the transformers of 2023; a fused kernel
computes the scores once more in its backward pass, which adds 0.5% to OPT-2.7B at 512 tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import torch
import transformers as tf
from torch import nn

from greentrainer import CostGraph, trace
from greentrainer.model import blocks

ROWS = 4
VIRTUAL_TOKENS = 20


def opt(hidden: int, layers: int, heads: int, **others: Any) -> tf.OPTConfig:
    """An OPT configuration of the given width and depth."""
    settings = {"word_embed_proj_dim": hidden, **others}
    return tf.OPTConfig(
        hidden_size=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **settings,
    )


def flan_t5_xl() -> tf.T5Config:
    """FLAN-T5-XL, about 3B weights."""
    return tf.T5Config(
        d_model=2048,
        d_ff=5120,
        d_kv=64,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=32,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "opt-350m": lambda: opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": lambda: opt(2048, 24, 32),
    "opt-2.7b": lambda: opt(2560, 32, 32),
    "opt-6.7b": lambda: opt(4096, 32, 32),
    "bloomz-3b": lambda: tf.BloomConfig(hidden_size=2560, n_layer=30, n_head=32, vocab_size=250880),
    "flan-t5-3b": flan_t5_xl,
}
LORA_TARGETS = {"opt": ["q_proj", "v_proj"], "bloom": ["query_key_value"], "t5": ["q", "v"]}


def hollow(config: Any) -> nn.Module:
    """A model of this configuration on the meta device."""
    kind = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    with torch.device("meta"):
        model: nn.Module = kind.from_config(config, attn_implementation="eager").eval()
        if config.is_encoder_decoder:  # FLAN-T5's head is its own; transformers 5 ties it at first
            head: Any = model.get_output_embeddings()  # type: ignore[operator]
            head.weight = nn.Parameter(torch.empty_like(head.weight))
    return model


def adapter(model: nn.Module, method: str) -> Any:
    """PEFT's configuration of lora, prefix or prompt for this model (the paper's settings)."""
    config: Any = model.config
    task = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    return {
        "lora": lambda: peft.LoraConfig(
            task_type=task,
            r=8,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=LORA_TARGETS.get(config.model_type, LORA_TARGETS["opt"]),
        ),
        "prefix": lambda: peft.PrefixTuningConfig(
            task_type=task, num_virtual_tokens=VIRTUAL_TOKENS
        ),
        "prompt": lambda: peft.PromptTuningConfig(
            task_type=task,
            num_virtual_tokens=VIRTUAL_TOKENS,
            token_dim=model.get_input_embeddings().embedding_dim,  # type: ignore[operator]
        ),
    }[method]()


def adapted(model: nn.Module, method: str) -> nn.Module:
    """The hollow model frozen, with the adapters of lora, prefix or prompt."""
    with torch.device("meta"):
        wrapped: nn.Module = peft.get_peft_model(model, adapter(model, method))
    return wrapped


def batch(length: int, target: int | None = None) -> dict[str, torch.Tensor]:
    """A full batch of `ROWS` rows; target: the decoder's length where there is one."""
    ids = torch.zeros(ROWS, length, dtype=torch.long)
    labels = ids if target is None else torch.zeros(ROWS, target, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@cache
def base(name: str) -> nn.Module:
    """The hollow model of that name."""
    return hollow(CONFIGS[name]())


@cache
def traced(name: str, method: str, length: int, target: int | None) -> CostGraph:
    """The cost graph with every tensor trained (method "full") or only the method's adapters."""
    model = base(name) if method == "full" else adapted(hollow(CONFIGS[name]()), method)
    graph: CostGraph = trace(model, batch(length, target))
    return graph


def top_two(model: nn.Module) -> list[str]:
    """Names of what "the last two layers" are: the head's weight and the last block's tensors."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    trained = {id(p) for p in (head.weight, *blocks(model)[-1].parameters())}
    return [name for name, p in model.named_parameters() if id(p) in trained]
