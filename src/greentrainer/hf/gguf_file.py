"""A model out of a GGUF file, as llama.cpp and others hand one on: weights and tokenizer in one.

Its weights are mostly quantised.  They are unpacked once, which leaves an ordinary model in full
precision: what the quantisation took is gone.  Nothing in such a file is run.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from tokenizers import Tokenizer, pre_tokenizers

from greentrainer.hf.gguf_header import require_sound

Settle = Callable[[Any, Any, Callable[[str], None]], None]
ENDING = ".gguf"
_NAME = f"model{ENDING}"
_ON_THE_HUB = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*):(?P<file>[\w./-]+\.gguf)", re.IGNORECASE)
_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""Ways to split a text in which each digit stands alone, and the rest is as in GPT-2."""
_AS_GPT2 = frozenset({"default", "gpt-2", "phi-2", "olmo", "mpt", "jais"})
_EXACT = frozenset({"F32", "F16", "BF16", "F64"})
"""Kinds of numbers that are no quantised ones."""
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Special tokens, and what a GGUF file calls them."""


@dataclass(frozen=True)
class GgufFile:
    """A file, and what it is called: its path, or `org/name:file` on the hub."""

    path: Path
    called: str


@dataclass(frozen=True)
class Packing:
    """What a file says of its weights.

    file: its last name.  kinds: how they are stored, most values first.  license: of the model,
    in the Hub's short form, None if it names none.
    """

    file: str
    kinds: tuple[str, ...]
    license: str | None

    def __str__(self) -> str:
        lost = not _EXACT.issuperset(self.kinds)
        return (
            f"weights out of {self.file} ({', '.join(self.kinds)})"
            f"{': what quantising them lost is lost to training too' if lost else ''}"
        )


def gguf_file(model: str, revision: str | None = None) -> GgufFile | None:
    """The file that a model's name stands for, fetched if it is on the hub; None if it is none.

    model: a file, a folder with one such file and no safetensors, or `org/name:file.gguf`.
    Raises ValueError, in one line, for several files in a folder and for one that is not there.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix.lower() == ENDING)
        if not files or any(path.glob("*.safetensors")):
            return None
        if len(files) > 1:
            names = ", ".join(one.name for one in files[:4])
            raise ValueError(f"{model} holds {len(files)} GGUF files: give one of them, as {names}")
        return _local(files[0], revision)
    if path.suffix.lower() != ENDING:
        return None
    if path.is_file():
        return _local(path, revision)
    if found := _ON_THE_HUB.fullmatch(model):
        with _said(model):
            cached = transformers.utils.cached_file(found["name"], found["file"], revision=revision)
        return GgufFile(Path(str(cached)), model)
    raise ValueError(
        f"no file {model!r}: give a GGUF file, or one on the hub as org/name:file.gguf"
    )


def _local(path: Path, revision: str | None) -> GgufFile:
    if revision is not None:
        raise ValueError("a revision is of a model on the hub: leave it out for a file")
    return GgufFile(path.resolve(), str(path.absolute()))


@contextmanager
def unpacking(file: GgufFile) -> Iterator[tuple[dict[str, Any], Settle]]:
    """In here transformers reads the file: how `from_pretrained` is told, and what then settles it.

    It is read in a folder of its own: beside it transformers would take other files for its parts.
    `settle` is called with the model (or None), its tokenizer, and whom to tell what is to be told.

    Raises ValueError, in one line, for a file that is none, was cut short, lacks what is needed, or
    holds an architecture that transformers does not unpack.
    """
    with _said(file.called):
        fields, packing = _read(file)

        def settle(model: Any, tokenizer: Any, notify: Callable[[str], None]) -> None:
            _settle_tokenizer(tokenizer, fields, packing, notify)
            tokenizer.name_or_path = file.called
            if model is not None:
                _require_room(model, len(fields["tokenizer.ggml.tokens"]))
                model.config.name_or_path = file.called
                model.name_or_path = file.called  # where an adapter notes that its base is
                model.read_out_of = packing
                notify(str(packing))

        with TemporaryDirectory() as alone:
            (Path(alone) / _NAME).symlink_to(file.path)
            yield {"pretrained_model_name_or_path": alone, "gguf_file": _NAME}, settle


def _require_room(model: Any, tokens: int) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        raise ValueError(
            f"its tokenizer knows {tokens:,} tokens, and the model embeds {rows:,}: convert the "
            "model again, with its own tokenizer"
        )


def packing_of(model: Any) -> Packing | None:
    """What file a model's weights were read out of, None of any other model."""
    return getattr(model, "read_out_of", None)


@contextmanager
def _said(called: str) -> Iterator[None]:
    """Turn whatever reading such a file raises into one line."""
    try:
        yield
    except Exception as error:  # a damaged file comes out anywhere in its readers
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if not isinstance(error, (ValueError, OSError, ImportError)):
            reason = f"it is damaged, or holds what transformers does not read ({reason})"
        raise ValueError(f"cannot load {called!r}: {reason}") from error


def _read(file: GgufFile) -> tuple[dict[str, Any], Packing]:
    """What the file says of itself, by name, its long lists left out.  Raises ValueError."""
    if not transformers.utils.is_gguf_available():
        raise ValueError("it is read by the package gguf: pip install 'greentrainer[gguf]'")
    with file.path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError("it is no GGUF file: it does not begin as one")
    from gguf import GGUFReader

    try:
        require_sound(file.path)
        reader = GGUFReader(file.path)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"it was cut short, or is damaged ({reason})") from error
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}
    fields = {name: field.contents() for name, field in reader.fields.items()
              if len(field.data) == 1 or name in lists}  # fmt: skip
    if "general.architecture" not in fields or not reader.tensors:
        raise ValueError("it holds no model: it names no architecture, or has no weights")
    if fields.get("split.count", 1) > 1:
        raise ValueError("it is one of several parts: join them with llama-gguf-split --merge")
    if "tokenizer.ggml.tokens" not in fields:
        raise ValueError("it comes without a tokenizer: convert the model again, with its own")
    values: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        values[kind] = values.get(kind, 0) + int(tensor.n_elements)
    kinds = tuple(sorted(values, key=lambda kind: -values[kind]))
    license = fields.get("general.license")
    name = Path(file.called).name.rpartition(":")[2]
    return fields, Packing(name, kinds, license if isinstance(license, str) else None)


def _settle_tokenizer(
    tokenizer: Any, fields: dict[str, Any], packing: Packing, notify: Callable[[str], None]
) -> None:
    """Special tokens as the file names them, and texts split as it says.

    transformers 5.17 takes other tokens, and passes over ways to split that it does not know.
    """
    tokens: Sequence[str] = fields["tokenizer.ggml.tokens"]
    _leave_out_added(tokenizer, len(tokens))
    for name, key in _SPECIAL.items():
        number = fields.get(f"tokenizer.ggml.{key}")
        if number is not None and number < len(tokens):
            setattr(tokenizer, name, tokens[number])
    length = fields.get(f"{fields['general.architecture']}.context_length")
    if length:
        tokenizer.model_max_length = length
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return
    splits = fields.get("tokenizer.ggml.pre", "default")
    if splits in _DIGITS:
        split_digits(tokenizer)
    known = isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.Sequence)
    if not known and splits not in _AS_GPT2:
        notify(
            f"{packing.file} splits texts as {splits!r}, which this transformers does not know: "
            "some texts come out as other tokens than the model was trained on"
        )


def _leave_out_added(tokenizer: Any, count: int) -> None:
    """Leave out tokens that the file does not have.

    transformers adds GPT-2's `<|endoftext|>` to tokenizers of its kind; models do not embed it.
    """
    if len(tokenizer) > count:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = [one for one in state["added_tokens"] if one["id"] < count]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def split_digits(tokenizer: Any) -> None:
    """Split digits off one by one, as SmolLM2 was trained, and else as GPT-2.

    GGUF only names this rule (`tokenizer.ggml.pre = smollm`), and transformers does not know it:
    text such as two spaces and a digit would come out as other tokens.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
