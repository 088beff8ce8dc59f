"""A folder that holds an adapter and no model, as PEFT saves it.

Virtual tokens stay beside the model.  Low-rank adapters are added to its weights, which leaves an
ordinary model.
"""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from greentrainer.hf.smollm2 import ALIASES

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def peft() -> Any:
    """The package.  Raises ValueError, with what to install, where it is missing.

    It calls transformers by names that are given up there, and looks for a configuration beside a
    GGUF file; no user can mend that.
    """
    warnings.filterwarnings("ignore", r"Could not find a config file in .*\.gguf", UserWarning)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    try:
        return import_module("peft")
    except ImportError:
        raise ValueError("adapters need peft: pip install 'greentrainer[lora]'") from None


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter in place of a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model that an adapter belongs to: a folder or a hub id, and the revision of the latter.

    Raises ValueError, in one line, if the adapter names none, one that is gone or is an adapter
    itself, a revision that is no name, or has no weights that can be read without running code.
    """
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = named["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not (isinstance(base, str) and base):
        raise ValueError(f"{folder / CONFIG} names no base model (base_model_name_or_path)")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds no {WEIGHTS}: save the adapter again with save_pretrained "
            "(pickled weights are not read, they can run code)"
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise ValueError(
            f"the base model of the adapter in {folder} is gone from {base}: put it back, or "
            f"change base_model_name_or_path in {CONFIG}"
        )
    if is_adapter(Path(base).expanduser()):
        raise ValueError(f"the adapter in {folder} belongs to another adapter, {base}: merge that")
    revision = named.get("revision")
    if not (revision is None or (isinstance(revision, str) and revision)):
        raise ValueError(f"{folder / CONFIG}: the revision is {revision!r}: give a name or null")
    here = Path(base).expanduser().exists() or base.lower() in ALIASES
    return base, None if here else revision


def put_on(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder`; virtual tokens can be trained further.

    Raises ValueError, in one line, where PEFT is missing, the adapter is for another model, or its
    files hold something else.
    """
    library = peft()
    try:  # for inference: for training PEFT starts a prompt anew, with whatever tokenizer it names
        adapted = library.PeftModel.from_pretrained(model, folder)
        if adapted.active_peft_config.is_prompt_learning:
            return adapted  # its base frozen, its virtual tokens not
        return adapted.merge_and_unload().requires_grad_(True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of files that hold other values than they should, of any kind
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"the adapter in {folder} cannot be read, or does not fit its base model ({reason})"
        ) from error
