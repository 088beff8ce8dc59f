"""Tiny models of every family, from their configurations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as tf
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

Builder = Callable[[str], nn.Module]

VOCABULARY = 64
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_MOE = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def _decoder(config: Any, **options: Any) -> Builder:
    def build(attention: str) -> nn.Module:
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(  # type: ignore[no-any-return]
            config(), attn_implementation=attention, **options
        )

    return build


def _seq2seq(config: Any) -> Builder:
    def build(attention: str) -> nn.Module:
        torch.manual_seed(0)
        return tf.AutoModelForSeq2SeqLM.from_config(  # type: ignore[no-any-return]
            config(), attn_implementation=attention
        )

    return build


def _checkpointed(builder: Builder, *kept: Any) -> Builder:
    """kept: operations whose outputs are not computed again."""
    contexts = partial(create_selective_checkpoint_contexts, list(kept))

    def build(attention: str) -> nn.Module:
        model: Any = builder(attention).train()
        how = {"use_reentrant": False} | ({"context_fn": contexts} if kept else {})
        model.gradient_checkpointing_enable(how)
        model.disable_input_require_grads()
        return model  # type: ignore[no-any-return]

    return build


def _lora(builder: Builder) -> Builder:
    def build(attention: str) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
        return get_peft_model(builder(attention), config)  # type: ignore[no-any-return]

    return build


FAMILIES: dict[str, Builder] = {
    "opt": _decoder(lambda: tf.OPTConfig(**_OPT, word_embed_proj_dim=32)),
    "opt-post-norm": _decoder(
        lambda: tf.OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "bloom": _decoder(
        lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4)
    ),
    "t5": _seq2seq(lambda: tf.T5Config(**_T5)),
    "flan-t5": _seq2seq(
        lambda: tf.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "bart": _seq2seq(lambda: tf.BartConfig(**_BART)),
    "gpt2": _decoder(
        lambda: tf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ),
    "gpt-neox": _decoder(lambda: tf.GPTNeoXConfig(**_LLAMA)),
    "llama": _decoder(lambda: tf.LlamaConfig(**_GROUPED)),
    "mistral": _decoder(lambda: tf.MistralConfig(**_GROUPED, sliding_window=8)),
    "qwen3": _decoder(lambda: tf.Qwen3Config(**_GROUPED, head_dim=8)),
    "gemma3": _decoder(lambda: tf.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=8)),
    "phi": _decoder(lambda: tf.PhiConfig(**_LLAMA)),
    "falcon": _decoder(lambda: tf.FalconConfig(**_FALCON)),
    "mixtral": _decoder(
        lambda: tf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2)
    ),
    "moe-routed": _decoder(lambda: tf.Qwen2MoeConfig(**_MOE), experts_implementation="eager"),
}
FAMILIES |= {
    "llama-lora": _lora(FAMILIES["llama"]),
    "llama-checkpointed": _checkpointed(FAMILIES["llama"]),
    "llama-selectively-checkpointed": _checkpointed(FAMILIES["llama"], torch.ops.aten.mm.default),
    "opt-selectively-checkpointed": _checkpointed(FAMILIES["opt"], torch.ops.aten.bmm.default),
    "falcon-checkpointed": _checkpointed(FAMILIES["falcon"]),
    "phi-checkpointed": _checkpointed(FAMILIES["phi"]),
    "t5-checkpointed": _checkpointed(FAMILIES["t5"]),
}
EAGER_ONLY = frozenset({"bloom"})
"""Families for which transformers offers no fused attention."""

CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if not (attention == "sdpa" and family in EAGER_ONLY)
]


def build(family: str, attention: str = "eager") -> nn.Module:
    """The family's tiny model, the same weights each time, in evaluation mode if not stated."""
    return FAMILIES[family](attention)


def batch_for(family: str, rows: int = 2, length: int = 12, seed: int = 0) -> dict[str, Any]:
    """Token ids with labels everywhere."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
