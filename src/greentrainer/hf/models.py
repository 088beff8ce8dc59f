"""Loading a language model that can be fine-tuned.

`load` takes a folder, a hub id, a GGUF file (`gguf_file.py`), or `smollm2-135m`: the real
SmolLM2-135M-Instruct, rebuilt out of a Python package (`smollm2.py`), so that a machine which
reaches nothing but a package index still gets a pretrained model.

Only safetensors and GGUF are read (a pickle can run code), and no code that comes with a model is
run.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from greentrainer.hf import adapters
from greentrainer.hf.gguf_file import ENDING, GgufFile, gguf_file, unpacking
from greentrainer.hf.quantised import Bits, differentiable, quantisation
from greentrainer.hf.smollm2 import (
    ALIASES,
    CACHE_VARIABLE,
    SMOLLM2,
    Notify,
    cache_root,
    no_progress_bars,
    rebuilt_smollm2,
)

__all__ = [
    "CACHE_VARIABLE", "SMOLLM2", "blank", "cache_root", "load", "load_tokenizer", "rebuilt_smollm2",
    "sketch",
]  # fmt: skip


_FAILURES = (OSError, ValueError, ImportError, KeyError, SafetensorError, StrictDataclassError)

logger = logging.getLogger(__name__)


def load(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    notify: Notify = logger.warning,
    bits: Bits | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """A model and its tokenizer: decoder-only or encoder-decoder, as its configuration says.

    model: `smollm2-135m`, a folder that `save_pretrained` wrote, a hub id, or a GGUF file: here, or
        on the hub as `org/name:file.gguf`.  A folder with an adapter of PEFT is loaded with the
        model that it names.
    dtype: of the weights.
    notify: told when a model is rebuilt or a cache was damaged.
    revision: of a model on the hub: a branch, tag or commit.
    bits: load the weights quantised, on the GPU if there is one, to train adapters beside them.

    A tokenizer without a padding token pads with its end-of-sequence token; padding is masked, so
    this changes no result.  Raises ValueError, in one line that says what to do, for anything
    that cannot be loaded or cannot be fine-tuned (quantised, or with weights missing).
    """
    if model.lower() in ALIASES:
        model = str(rebuilt_smollm2(notify))
    folder = Path(model).expanduser()
    if adapters.is_adapter(folder):
        _options(True, revision)
        if bits:
            raise ValueError(f"{folder} holds an adapter: load its base in {bits} bits")
        base, its = adapters.base_of(folder)
        network, tokenizer = load(base, dtype=dtype, notify=notify, revision=its)
        return adapters.put_on(network, folder), tokenizer
    if packed := gguf_file(model, revision):
        if bits:
            raise ValueError(
                f"{model} is unpacked when it is read: load its original in {bits} bits"
            )
        return _unpacked(packed, dtype, notify)
    source, local = _locate(model)
    options = _options(local, revision)
    with _in_one_line(model, local):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        _refuse_quantised(config)
        _refuse_kernels(config)
        where = {"pretrained_model_name_or_path": source}
        network = _network(config, dtype, where | options | _few_bits(bits, dtype))
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        _settle_tokenizer(tokenizer, network)
    return network, tokenizer


def load_tokenizer(
    model: str, *, notify: Notify = logger.warning, revision: str | None = None
) -> tuple[Any, Any]:
    """A model's configuration and its tokenizer, without the weights; as `load` otherwise."""
    if model.lower() in ALIASES:
        model = str(rebuilt_smollm2(notify))
    if adapters.is_adapter(Path(model).expanduser()):
        _options(True, revision)
        base, its = adapters.base_of(Path(model).expanduser())
        return load_tokenizer(base, notify=notify, revision=its)
    if packed := gguf_file(model, revision):
        return _unpacked(packed, None, notify)
    source, local = _locate(model)
    options = _options(local, revision)
    with _in_one_line(model, local):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        _settle_tokenizer(tokenizer)
    return config, tokenizer


def _unpacked(file: GgufFile, dtype: torch.dtype | None, notify: Notify) -> tuple[Any, Any]:
    """The model in a GGUF file, or its configuration where no dtype is asked for; its tokenizer."""
    with unpacking(file) as (source, settle):
        options = _options(True, None) | source
        config = transformers.AutoConfig.from_pretrained(**options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**options)
        dense = {"quantization_config": transformers.GgufConfig(dequantize=True)}
        network = None if dtype is None else _network(config, dtype, options | dense)
        settle(network, tokenizer, notify)
        _settle_tokenizer(tokenizer, network)
    return (config if network is None else network), tokenizer


def sketch(
    model: str, *, notify: Notify = logger.warning, revision: str | None = None
) -> tuple[Any, Any]:
    """A model without weights, on the meta device, and its tokenizer.

    model: as for `load`, or a configuration file (JSON), which comes with no tokenizer: None.
    Raises ValueError, in one line, for what is no configuration of a language model.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix.lower() != ENDING:
        config, tokenizer = _read_config(path), None
    elif path.is_dir() and not any(path.glob("*.safetensors")) and (path / "config.json").is_file():
        config, tokenizer = _read_config(path / "config.json"), None
    else:
        config, tokenizer = load_tokenizer(model, notify=notify, revision=revision)
    with _in_one_line(model, local=True), torch.device("meta"):
        _refuse_kernels(config)
        return _kind(config).from_config(config), tokenizer


def blank(network: Any) -> Any:
    """A model with the configuration of another and weights at random."""
    return type(network)._from_config(network.config).train()


def _read_config(path: Path) -> Any:
    """The configuration in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is no model's config.json: it names no model_type") from None
    with _in_one_line(str(path), local=True):
        return transformers.AutoConfig.for_model(kind, **values)


def _kind(config: Any) -> Any:
    """The class that loads such a model."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _locate(model: str) -> tuple[str, bool]:
    """What transformers should open, and whether that is a local folder."""
    path = Path(model).expanduser()
    if path.is_dir():
        _check_folder(path)
        return str(path.resolve()), True  # an adapter notes where its base is
    if path.exists():
        raise ValueError(f"{model} is a file: give the folder that save_pretrained wrote")
    if model.count("/") > 1 or not model or model[0] in "./~\\":
        raise ValueError(f"no folder {model!r}: give a model's folder, a hub id, or {SMOLLM2}")
    return model, False


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json: give the folder that save_pretrained wrote")
    if not any(path.glob("*.safetensors")):
        raise ValueError(
            f"{path} holds no safetensors: save the weights again with save_pretrained "
            "(pickled weights are not read, they can run code)"
        )


@contextmanager
def _in_one_line(model: str, local: bool) -> Iterator[None]:
    """Turn what transformers and tokenizers raise into one line, but for a full memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of files that hold other values than they should, of any kind
        reason = " ".join(str(error).split())
        if not isinstance(error, _FAILURES):
            reason = f"{type(error).__name__}: {reason}"
        if "trust_remote_code" in reason:
            reason = (
                "it is made by code that comes with it, and such code is never run here: give a "
                "model whose architecture transformers knows"
            )
        where = "" if local else "no such folder here, and from the hub: "
        raise ValueError(f"cannot load {model!r}: {where}{reason[:300]}") from error


def _refuse_quantised(config: Any) -> None:
    if config.to_dict().get("quantization_config"):
        raise ValueError("its weights are quantised: give the original, and --load-in-4bit")


def _refuse_kernels(config: Any) -> None:
    """Raise ValueError where attention is to be computed by code from the hub, named by its id."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    named = [str(getattr(part, "_attn_implementation", None)) for part in parts]
    if found := [one for one in named if "/" in one]:
        raise ValueError(
            f"its configuration asks for the kernel {found[0]}, which is code from the hub, and "
            "such code is never run here: take attn_implementation out of config.json"
        )


def _options(local: bool, revision: str | None) -> dict[str, Any]:
    """How transformers is to open a model.  Raises ValueError for a revision of a folder."""
    if local and revision is not None:
        raise ValueError("a revision is of a model on the hub: leave it out for a folder")
    here = {"trust_remote_code": False, "local_files_only": local}
    return here if revision is None else here | {"revision": revision}


def _few_bits(bits: Bits | None, dtype: torch.dtype) -> dict[str, Any]:
    """Options of a model that is loaded quantised, which cannot be moved afterwards."""
    if bits is None:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": quantisation(bits, dtype), "device_map": {"": device}}


def _network(config: Any, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    with no_progress_bars():
        network, info = _kind(config).from_pretrained(
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
            **options,
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{len(missing)} weights of {type(network).__name__} are missing ({missing[0]}, ...): "
            "give a checkpoint with a language-model head"
        )
    if other := sorted(key for key, *_ in info["mismatched_keys"]):
        raise ValueError(
            f"{len(other)} weights of {type(network).__name__} have other shapes than config.json "
            f"says ({other[0]}, ...): save the model again with save_pretrained"
        )
    return differentiable(network)


def _settle_tokenizer(tokenizer: Any, network: Any = None) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no end-of-sequence token: set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if network is not None and network.generation_config.pad_token_id is None:
        network.generation_config.pad_token_id = tokenizer.pad_token_id
