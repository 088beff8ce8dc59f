"""What reads files of others, each with a small valid folder of them to begin from."""

import gzip
import io
import json
import random
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tools import mutations

Files = dict[str, bytes]
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """files: makes what is valid, by path in a folder.  read: reads the folder.

    only: files that are made wrong, all of them where it is empty.
    """

    name: str
    files: Callable[[Path], Files]
    read: Callable[[Path], None]
    only: tuple[str, ...] = ()
    kinds: Mapping[str, Mutate] = field(default_factory=dict)

    def mutated(self, files: Files, chance: random.Random) -> Files:
        """The files with one of them, seldom two, made wrong."""
        result = dict(files)
        names = sorted(name for name in files if not self.only or name in self.only)
        for name in chance.choices(names, k=chance.choice((1, 1, 1, 2))):
            kind = KINDS.get(Path(name).suffix, mutations.bytewise)
            content = result[name] if result[name] is files[name] else files[name]
            result[name] = kind(content, chance)
        return result


KINDS: dict[str, Mutate] = {
    ".json": mutations.json_values,
    ".jsonl": mutations.json_lines,
    ".yaml": mutations.yaml_values,
    ".safetensors": mutations.headed,
    ".gguf": mutations.begun,
}
"""How a file is made wrong, by its ending; any other by its bytes."""

ROWS: list[dict[str, Any]] = [
    {"prompt": "what is 1?", "completion": ["one", "eins"]},
    {"prompt": "say it", "completion": "it"},
    {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
                  {"role": "assistant", "content": "hello", "weight": 1}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "add"}]},
                  {"role": "assistant", "content": "", "tool_calls": [
                      {"function": {"name": "add", "arguments": {"a": 1}}}]},
                  {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {"instruction": "add", "input": "1 1", "output": "2", "history": [["hi", "hello"]]},
    {"instruction": "add", "context": "1 1", "response": "2"},
    {"text": "once upon a time"},
]  # fmt: skip
PLAIN = [{"prompt": f"add {i}", "completion": f"it is {i}"} for i in range(6)]
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
CONFIG = """\
model: smollm2-135m
tasks:
  - {path: mine.jsonl, weight: 2}
  - {path: scitldr, limit: 50}
rho: 0.5
epochs: 2
learning_rate: 2.0e-4
positions: choose
steps: choose
training: {lr_scheduler_type: cosine, adam_epsilon: 1.0e-8}
output_dir: runs/mine
"""
SPEC = """\
name: small
seeds: [0, 1]
run: {model: smollm2-135m, task: scitldr, validation_limit: 8, train_limit: 128}
methods:
  - {method: zero_shot}
  - {method: full, learning_rate: [5.0e-5, 1.0e-4]}
  - {method: green, rho: [0.5, 0.7], name: ours, tune: first}
"""


@cache
def _tokenizer() -> Any:
    from tests.tiny import characters

    tokenizer = characters()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _data(folder: Path) -> None:
    """Every split, and each example encoded, with a chat template and without."""
    from greentrainer import tasks
    from greentrainer.tasks.encode import encode_all
    from tests.tiny import characters

    [path] = folder.iterdir()
    task = tasks.load(str(path))
    for split in ("train", "test"):
        encode_all(task.examples(split), _tokenizer(), 600)
    with suppress(ValueError):  # chats have none
        encode_all(task.examples("train"), characters(), 600)


def _rows(_: Path) -> Files:
    return {"rows.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)}


def _whole(_: Path) -> Files:
    return {"rows.json": json.dumps({"version": 1, "data": PLAIN}, indent=1).encode()}


def _csv(_: Path) -> Files:
    cells = [f'"add, {i}","[""it is {i}"", ""{i}""]"\r\n' for i in range(6)]
    return {"rows.csv": f"prompt,completion\r\n{''.join(cells)}".encode()}


def _gzip(_: Path) -> Files:
    return {"rows.csv.gz": gzip.compress(_csv(_)["rows.csv"], mtime=0)}


def _parquet(_: Path) -> Files:
    import pyarrow
    from pyarrow import parquet

    held = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(PLAIN), held)
    return {"rows.parquet": held.getvalue()}


def _arrow(_: Path) -> Files:
    import pyarrow

    held, table = io.BytesIO(), pyarrow.Table.from_pylist(PLAIN)
    with pyarrow.ipc.new_stream(held, table.schema) as writer:
        writer.write_table(table)
    return {"rows.arrow": held.getvalue()}


def _configured(folder: Path) -> None:
    from greentrainer.config import read

    read(folder / "run.yaml", {"rho": None}).model_dump(mode="json")


def _compared(folder: Path) -> None:
    from greentrainer.compare import read

    for variant in read(folder / "spec.yaml", {}).variants():
        variant.trial(None, 0).key  # noqa: B018


def _templated(folder: Path) -> None:
    from greentrainer.tasks import Message, rendered
    from tests.tiny import characters

    tokenizer = characters()
    tokenizer.chat_template = (folder / "template.jinja").read_text(encoding="utf-8")
    said = [Message("user", "hi"), Message("assistant", "hello", more='{"tool_calls": [{}]}')]
    rendered(tokenizer, said, asks=True)


def _run_files(folder: Path) -> Files:
    from tests.folders import folder as made

    made(folder / "made")
    return _contents(folder / "made")


def _reported(folder: Path) -> None:
    from rich.console import Console

    from greentrainer.report import draw, runs_in, shelf
    from greentrainer.run.answers import of_run

    Console(file=io.StringIO()).print(shelf(runs_in(folder), folder))
    of_run(str(folder))
    draw(folder)


@cache
def _engine() -> Any:
    """One that has made a few steps."""
    import torch

    from greentrainer import AdaptiveBackprop
    from tests.conformance.families import batch_for, build

    model = build("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [batch_for("llama"), batch_for("llama", seed=1)]
    engine = AdaptiveBackprop(model, optimizer, batches[0], rho=0.6, total_batches=6, every=3)
    for one in batches:
        if engine.due:
            engine.reselect([one])
        engine.loss(one).backward()
        optimizer.step()
        optimizer.zero_grad()
    return engine


def _sealed(folder: Path) -> Files:
    from greentrainer.hf.checkpoint import SEAL, seal

    inside = folder / "checkpoint-2"
    inside.mkdir(parents=True)
    (inside / "trainer_state.json").write_text('{"global_step": 2}')
    seal(inside, _engine())
    return {f"checkpoint-2/{name}": content for name, content in _contents(inside).items()} | {
        f"checkpoint-2/{SEAL}": (inside / SEAL).read_bytes()
    }


def _resumed(folder: Path) -> None:
    from greentrainer.hf import checkpoint, last_whole

    engine = _engine()
    found = last_whole(folder) or folder / "checkpoint-2"
    saved = checkpoint.read(found)
    with checkpoint.in_one_line(found):
        checkpoint.require_fit(saved, engine.model, engine.budget, found)
        checkpoint.budget_of(saved, engine.budget)
        checkpoint.require_order(saved, engine)
        engine.load_state_dict(checkpoint.state_for(saved, engine.processes))


def _model_files(folder: Path) -> Files:
    from tests.tiny import saved

    return _contents(saved(folder / "made", tokenizer=_tokenizer()))


def _loaded(folder: Path) -> None:
    from greentrainer.hf import load
    from greentrainer.hf.models import sketch

    sketch(str(folder / "config.json"))
    load(str(folder))


def _gguf_files(folder: Path) -> Files:
    from tests.gguf_files import write_gguf

    (folder / "made").mkdir(parents=True)
    write_gguf(folder / "made" / "tiny.gguf", quantised=True)
    return _contents(folder / "made")


def _unpacked(folder: Path) -> None:
    from greentrainer.hf import load

    load(str(folder / "tiny.gguf"))


def _delta_files(folder: Path) -> Files:
    import torch

    from greentrainer.hf import save_delta
    from tests.conformance.families import build

    model = build("llama")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_delta(model, build("llama"), folder / "made")
    return _contents(folder / "made")


def _merged(folder: Path) -> None:
    from greentrainer.hf import base_dtype, load_delta
    from tests.conformance.families import build

    base_dtype(folder)
    load_delta(build("llama"), folder)


def _adapter_files(folder: Path) -> Files:
    from greentrainer.hf import peft
    from tests.conformance.families import build

    library = peft()
    model = library.get_peft_model(build("llama"), library.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(folder / "made")
    path = folder / "made" / "adapter_config.json"
    told = json.loads(path.read_text()) | {"base_model_name_or_path": "some/base"}
    path.write_text(json.dumps(told))
    return _contents(folder / "made")


def _adapted(folder: Path) -> None:
    from greentrainer.hf import put_on
    from greentrainer.hf.adapters import base_of
    from tests.conformance.families import build

    base_of(folder)
    put_on(build("llama"), folder)


def _contents(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def _yaml(text: str, name: str) -> Callable[[Path], Files]:
    return lambda _: {name: text.encode()}


READERS = {
    reader.name: reader
    for reader in (
        Reader("jsonl", _rows, _data),
        Reader("json", _whole, _data),
        Reader("csv", _csv, _data),
        Reader("gzip", _gzip, _data),
        Reader("parquet", _parquet, _data),
        Reader("arrow", _arrow, _data),
        Reader("config", _yaml(CONFIG, "run.yaml"), _configured),
        Reader("compare", _yaml(SPEC, "spec.yaml"), _compared),
        Reader("template", _yaml(TEMPLATE, "template.jinja"), _templated),
        Reader("run folder", _run_files, _reported),
        Reader("checkpoint", _sealed, _resumed, ("checkpoint-2/greentrainer.json",)),
        Reader("model", _model_files, _loaded),
        Reader("gguf", _gguf_files, _unpacked),
        Reader("delta", _delta_files, _merged),
        Reader("adapter", _adapter_files, _adapted,
               ("adapter_config.json", "adapter_model.safetensors")),
    )
}  # fmt: skip


def silently(read: Callable[[Path], None], folder: Path) -> None:
    """Read the folder; what is printed is lost."""
    with redirect_stdout(io.StringIO()):
        read(folder)
