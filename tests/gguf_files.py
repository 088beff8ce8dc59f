"""A tiny Llama in a GGUF file, as llama.cpp's converter would write it."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.families import VOCABULARY, build
from tests.tiny import BOS, EOS, KNOWN, PAD, SPECIALS

TOKENS = [*SPECIALS, *KNOWN[: VOCABULARY - len(SPECIALS) - 2], "ab", "cd"]
_BYTES = str.maketrans({" ": "Ġ", "\n": "Ċ"})
_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    *,
    quantised: bool = False,
    architecture: str = "llama",
    tokenizer: bool = True,
    splits: str = "gpt-2",
    without: str = "none",
    parts: int = 1,
    more: int = 0,
) -> Path:
    """Write the tiny Llama of `families`; its matrices in 8 bits (Q8_0) if quantised.

    splits: what the file says of how texts are split.  without: a tensor that is left out.  more:
    tokens than the model embeds.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    model: Any = build("llama")
    told, writer = model.config, GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_block_count(told.num_hidden_layers)
    writer.add_context_length(told.max_position_embeddings)
    writer.add_embedding_length(told.hidden_size)
    writer.add_feed_forward_length(told.intermediate_size)
    writer.add_head_count(told.num_attention_heads)
    writer.add_head_count_kv(told.num_key_value_heads)
    writer.add_rope_freq_base(told.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(told.rms_norm_eps)
    writer.add_vocab_size(told.vocab_size)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splits)
        tokens = [*TOKENS, *(f"more{i}" for i in range(more))]
        writer.add_token_list([token.translate(_BYTES) for token in tokens])
        writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
        writer.add_token_merges(["a b", "c d"])
        writer.add_bos_token_id(BOS)
        writer.add_eos_token_id(EOS)
        writer.add_pad_token_id(PAD)
    for key, value in model.state_dict().items():
        name, values = _named(key), value.numpy()
        if "attn_q" in name or "attn_k" in name:
            heads = told.num_attention_heads if "attn_q" in name else told.num_key_value_heads
            values = values.reshape(heads, 2, -1, told.hidden_size).swapaxes(1, 2)
            values = np.ascontiguousarray(values.reshape(value.shape))
        if name == without:
            continue
        if quantised and values.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(key: str) -> str:
    stem = key.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, _, block, inner = stem.split(".", 3)
    return f"blk.{block}.{_INNER[inner]}.weight"
