"""Everything that knows Hugging Face: Trainers and callback, loading models, checkpoints, deltas.

Start with `trainer.py`.  Runs from a configuration are `run`, fine-tuning methods `methods`.
"""

from greentrainer.hf import models, trackers
from greentrainer.hf.adapters import is_adapter, peft, put_on
from greentrainer.hf.blocks import compile_blocks, layout
from greentrainer.hf.callback import GreenCallback
from greentrainer.hf.checkpoint import last_whole
from greentrainer.hf.clock_cache import save_clock, saved_clock
from greentrainer.hf.config import GreenConfig
from greentrainer.hf.delta import base_dtype, load_delta, save_delta
from greentrainer.hf.gguf_file import packing_of
from greentrainer.hf.models import load
from greentrainer.hf.quantised import dense, is_quantised
from greentrainer.hf.recomputing import recomputing
from greentrainer.hf.sharded import FSDP, sharding, whole_state
from greentrainer.hf.smollm2 import SMOLLM2, cache_root
from greentrainer.hf.trace_cache import keeps, kept_traces
from greentrainer.hf.trainer import Green, GreenSeq2SeqTrainer, GreenTrainer

__all__ = [
    "FSDP",
    "SMOLLM2",
    "Green",
    "GreenCallback",
    "GreenConfig",
    "GreenSeq2SeqTrainer",
    "GreenTrainer",
    "base_dtype",
    "cache_root",
    "compile_blocks",
    "dense",
    "is_adapter",
    "is_quantised",
    "keeps",
    "kept_traces",
    "last_whole",
    "layout",
    "load",
    "load_delta",
    "models",
    "packing_of",
    "peft",
    "put_on",
    "recomputing",
    "save_clock",
    "save_delta",
    "saved_clock",
    "sharding",
    "trackers",
    "whole_state",
]
