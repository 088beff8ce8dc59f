"""Rows as people have them: what each is read as, and the tokens and labels that come of it."""

import bz2
import gzip
import io
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from greentrainer.tasks import Example, Message, expanded, load, stop_ids
from greentrainer.tasks import encode as encoding
from greentrainer.tasks.encode import IGNORED, encode, encode_all
from greentrainer.tasks.formats import Columns, read_as
from greentrainer.tasks.row import Row
from greentrainer.tasks.sources import _standard_input
from tests.tiny import EOS, characters, refusal
from tests.unit.tasks.test_conversation import CHATML, speaking

CALL = {"type": "function", "function": {"name": "level", "arguments": '{"at": "mill"}'}}
TOOL = {"type": "function", "function": {"name": "level", "parameters": {}}}
CALLING = (
    "{% if tools %}<|im_start|>tools {{ tools[0].function.name }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{{ call.function.arguments.at }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% set last = messages | length - 1 %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 < last %}{{ m.content.split('</t>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWO = [
    {"role": "user", "content": "a?"}, {"role": "assistant", "content": "<t>x</t>b"},
    {"role": "user", "content": "c?"}, {"role": "assistant", "content": "<t>y</t>d"},
]  # fmt: skip
ROWS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "prompt and completion": (
        {"prompt": "where?", "completion": "here"}, "prompt and completion",
        ["where?[here</s>]"],
    ),
    "in turns": (
        {"prompt": [{"role": "user", "content": "where?"}],
         "completion": [{"role": "assistant", "content": "here"}]},
        "prompt and completion in turns, 2 turns",
        ["<|im_start|>user\nwhere?<|im_end|>\n<|im_start|>assistant\n[here<|im_end|>]"],
    ),
    "messages": (
        {"messages": [{"role": "developer", "content": "be short"}, *TWO[:1],
                      {"role": "assistant", "content": "b"}]},
        "chats, 3 turns",
        ["<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\na?<|im_end|>\n"
         "<|im_start|>assistant\n[b<|im_end|>]"],
    ),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"},
                                                   {"type": "text", "text": "or b?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
        "chats, 2 turns",
        ["<|im_start|>user\na?\nor b?<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]"],
    ),
    "turns left out": (
        {"messages": [TWO[0], {"role": "assistant", "content": "no", "train": False}, TWO[2],
                      {"role": "assistant", "content": "yes", "weight": 1},
                      TWO[0], {"role": "assistant", "content": "no", "weight": 0}]},
        "chats, 4 turns",
        ["<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
         "<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]"],
    ),
    "sharegpt": (
        {"system": "be short", "conversations": [{"from": "human", "value": "a?"},
                                                 {"from": "gpt", "value": "b"}]},
        "ShareGPT, 3 turns",
        ["<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\na?<|im_end|>\n"
         "<|im_start|>assistant\n[b<|im_end|>]"],
    ),
    "alpaca": (
        {"instruction": "name it", "input": "the mill", "output": "mill",
         "history": [["hi", "hello"]]},
        "Alpaca, 4 turns",
        ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[hello<|im_end|>]\n"
         "<|im_start|>user\nname it\nthe mill<|im_end|>\n<|im_start|>assistant\n"
         "[mill<|im_end|>]"],
    ),
    "dolly": (
        {"instruction": "name it", "context": "", "response": "mill", "category": "x"},
        "Dolly, 2 turns",
        ["<|im_start|>user\nname it<|im_end|>\n<|im_start|>assistant\n[mill<|im_end|>]"],
    ),
    "tool calls": (
        {"messages": [TWO[0], {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "content": "3", "name": "level"},
                      {"role": "assistant", "content": "it is 3"}], "tools": [TOOL]},
        "chats, 4 turns",
        ["<|im_start|>tools level<|im_end|>\n<|im_start|>user\na?<|im_end|>\n"
         "<|im_start|>assistant\n[<call>level mill</call><|im_end|>]\n"
         "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n[it is 3<|im_end|>]"],
    ),
    "sharegpt calls": (
        {"conversations": [{"from": "human", "value": "a?"},
                           {"from": "function_call",
                            "value": "{\"name\": \"level\", \"arguments\": {\"at\": \"mill\"}}"},
                           {"from": "observation", "value": "3"},
                           {"from": "gpt", "value": "it is 3"}], "tools": json.dumps([TOOL])},
        "ShareGPT, 4 turns",
        ["<|im_start|>tools level<|im_end|>\n<|im_start|>user\na?<|im_end|>\n"
         "<|im_start|>assistant\n[<call>level mill</call><|im_end|>]\n"
         "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n[it is 3<|im_end|>]"],
    ),
    "text": ({"text": "the mill is old"}, "text", ["[the mill is old</s>]"]),
}  # fmt: skip
"""A row, what it is read as, and its examples: labelled tokens in brackets."""


def shown(encoded: Any, tokenizer: Any) -> str:
    """The text of an example, what is labelled in brackets."""
    text, inside = "", False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if (label != IGNORED) != inside:
            text += "]" if inside else "["
            inside = not inside
        text += tokenizer.decode([token])
    return text + ("]" if inside else "")


def talking(template: str | None = CALLING) -> Any:
    made = speaking(template)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.backend_tokenizer.post_processor = characters().backend_tokenizer.post_processor
    return made


def read(row: dict[str, Any]) -> Any:
    return read_as(Row("mine, row 1", row), Columns())


@pytest.mark.parametrize("name", ROWS)
def test_tokens_and_labels_of_every_format(name: str, tmp_path: Path) -> None:
    row, kind, examples = ROWS[name]
    tokenizer = talking()
    path = tmp_path / "mine.json"
    other = {**row, "prompt": "else"} if "prompt" in row and isinstance(row["prompt"], str) else row
    path.write_text(json.dumps([row, json.loads(json.dumps(other).replace("a?", "e?")
                                                .replace("name it", "tell it")
                                                .replace("where?", "who?")
                                                .replace("mill is", "inn is"))]))  # fmt: skip
    task = load(str(path))
    assert task.describe().endswith(f"read as: {kind}")
    found = encode_all(expanded(read(row).example, tokenizer), tokenizer, 400)
    assert [shown(one, tokenizer) for one in found] == examples


def test_the_rows_of_a_file_may_be_of_several_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    kinds = [row for row, *_ in ROWS.values()]
    path.write_text("".join(json.dumps(row) + "\n" for row in kinds))
    told = load(str(path)).describe()
    assert "text (1 rows)" in told
    assert "chats, 2 to 4 turns (4 rows)" in told


def test_an_instruction_without_a_template_is_read_as_a_text() -> None:
    example = read({"instruction": "name it", "input": "the mill", "output": "mill"}).example
    plain = characters()
    text = plain.decode(list(encode(example, plain, 400).input_ids))
    assert "name it" in text
    assert text.endswith("mill</s>")
    with refusal("no chat template"):
        encode_all([read(ROWS["messages"][0]).example], plain, 400)


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    tokenizer = talking(CHATML)
    example = read(ROWS["tool calls"][0]).example
    (made,) = expanded(example, tokenizer)
    text = shown(encode(made, tokenizer, 900), tokenizer)
    called = text[text.index("[<tool_call>") : text.index("</tool_call><|im_end|>]")]
    assert '"name": "level", "arguments"' in called
    assert '"at": "mill"' in called
    assert "<tools>" in text.partition("<|im_start|>assistant")[0]


def test_a_turn_is_learned_where_the_template_will_show_it() -> None:
    tokenizer = talking(THINKING)
    example = read({"messages": TWO}).example
    first, second = expanded(example, tokenizer)
    head = "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n"
    assert shown(encode(first, tokenizer, 400), tokenizer) == f"{head}[<t>x</t>b<|im_end|>]"
    assert shown(encode(second, tokenizer, 400), tokenizer) == (
        f"{head}b<|im_end|>\n<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n"
        "[<t>y</t>d<|im_end|>]"
    )
    (last,) = expanded(example, tokenizer, last_only=True)
    assert encode(last, tokenizer, 400) == encode(second, tokenizer, 400)
    plain = [t | {"content": t["content"].split(">")[-1]} for t in TWO]
    (one,) = expanded(read({"messages": plain}).example, tokenizer)
    assert shown(encode(one, tokenizer, 400), tokenizer).count("[") == 2


R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content.split('</t>')[-1] }}"
    "<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<t>{% endif %}"
)
MOVED = (
    "{% set sys = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set at = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>"
    "{% if loop.index0 == at.last and sys %}{{ sys }}.{% endif %}{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|im_end|>{{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_ANSWER = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}"
TEXTUAL = CALLING.replace("call.function.arguments.at", "call.function.arguments + ''")


def learned_of(turns: list[dict[str, Any]], template: str) -> list[str]:
    """The examples that come of a chat."""
    tokenizer = talking(template)
    found = encode_all(expanded(read({"messages": turns}).example, tokenizer), tokenizer, 900)
    return [shown(one, tokenizer) for one in found]


def test_what_a_template_asks_for_and_does_not_show_is_learned() -> None:
    head = "<|im_start|>user\na?<|im_start|>assistant\n"
    assert learned_of(TWO, R1) == [
        f"{head}<t>[x</t>b<|im_end|>]",
        f"{head}b<|im_end|><|im_start|>user\nc?<|im_start|>assistant\n<t>[y</t>d<|im_end|>]",
    ]
    plain = [TWO[0], {"role": "assistant", "content": "<tag>"}]  # begins like what is asked with
    assert learned_of(plain, R1) == [f"{head}<t>[<tag><|im_end|>]"]


def test_what_the_assistant_says_is_never_left_out_without_a_word() -> None:
    with refusal("leaves out what the assistant says"):
        learned_of(TWO[:2], NO_ANSWER)


def test_an_end_that_is_no_special_token_is_learned_as_it_is_written() -> None:
    template = CALLING.replace("<|im_end|>", "<end>")
    rounds = [t | {"content": t["content"].split(">")[-1]} for t in TWO]
    assert learned_of(rounds, template) == [
        "<|im_start|>user\na?<end>\n<|im_start|>assistant\n[b<end>]\n"
        "<|im_start|>user\nc?<end>\n<|im_start|>assistant\n[d<end></s>]"
    ]
    assert stop_ids(talking(template)) == [EOS]


def test_a_system_turn_may_be_written_elsewhere() -> None:
    told = {"role": "system", "content": "be short"}
    rounds = [told, *(t | {"content": t["content"].split(">")[-1]} for t in TWO)]
    assert learned_of(rounds, MOVED) == [
        "<|im_start|>be short.a?<|im_end|>[b</s>]",
        "<|im_start|>a?<|im_end|>b</s><|im_start|>be short.c?<|im_end|>[d</s>]",
    ]


CALLS = {
    "none": ([], "[hi<|im_end|>]"),
    "JSON": (json.dumps([CALL]), "[hi<call>level mill</call><|im_end|>]"),
    "a list": ([CALL], "[hi<call>level mill</call><|im_end|>]"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_calls_are_read_as_they_come(kind: str) -> None:
    calls, told = CALLS[kind]
    turns: list[Any] = [TWO[0], {"role": "assistant", "content": "hi", "tool_calls": calls}]
    (text,) = learned_of(turns, CALLING)
    assert text.endswith(told)


def test_arguments_are_text_for_templates_that_take_texts() -> None:
    turns: list[Any] = [TWO[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    (text,) = learned_of(turns, TEXTUAL)
    assert '"at": "mill"' in text


@pytest.mark.parametrize("calls", [3, "x", ["a"], {"name": "f"}, [3]])
def test_calls_that_are_none_are_refused(calls: object) -> None:
    with refusal("mine, row 1: ", "turn 2", "tool_calls"):
        read({"messages": [TWO[0], {"role": "assistant", "content": "b", "tool_calls": calls}]})


def test_a_note_about_calls_is_no_call() -> None:
    turns = [TWO[0] | {"note": "tool_calls"}, {"role": "assistant", "content": "b"}]
    assert learned_of(turns, CHATML)[0].endswith("[b<|im_end|>]")


SILENT: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "a", "input": [1, 2], "output": "b"}, "'input' is a list"),
    ({"instruction": "a", "context": 7, "response": "b"}, "'context' is a int"),
    ({"system": "s", "prompt": "a", "completion": "b"}, "'system' beside a prompt"),
    ({"system": "s", "messages": [{"role": "system", "content": "t"}, *TWO]}, "leave one out"),
]


@pytest.mark.parametrize(("row", "told"), SILENT)
def test_nothing_in_a_row_is_left_out_without_a_word(row: dict[str, Any], told: str) -> None:
    with refusal(told):
        read(row)


def test_cells_of_csv_hold_lists_as_json(tmp_path: Path) -> None:
    row = {"prompt": json.dumps(TWO[:1]), "completion": json.dumps([TWO[1]])}
    found = read_as(Row("mine", row, cells=True), Columns())
    assert [m.role for m in found.example.messages] == ["user", "assistant"]
    row = {"instruction": "a", "output": "b", "history": '[["q", "r"]]'}
    assert len(read_as(Row("mine", row, cells=True), Columns()).example.messages) == 4


def test_what_parquet_adds_is_not_there(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a", "tool_calls": None},
                      {"role": "assistant", "content": None, "tool_calls": [CALL]}],
         "at": datetime(2026, 1, 1), "prompt": None},
        {"messages": [{"role": "user", "content": "b", "when": datetime(2026, 1, 1)},
                      {"role": "assistant", "content": "c"}], "prompt": None},
    ]  # fmt: skip
    path = tmp_path / "mine.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    task = load(str(path))
    found = [*task.examples("train"), *task.examples("test")]
    assert sorted(one.messages[-1].calls for one in found) == [False, True]
    assert all("null" not in m.more for one in found for m in one.messages)


def test_equal_questions_are_on_one_side_however_they_are_written(tmp_path: Path) -> None:
    def rows(question: str) -> list[dict[str, Any]]:
        asked = [{"role": "user", "content": question}, {"role": "assistant", "content": "x"}]
        more = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "y"}]
        return [
            {"messages": asked}, {"instruction": question, "output": "z"},
            {"conversations": [{"from": "human", "value": f" {question}\n"},
                               {"from": "gpt", "value": "w"}]},
            {"prompt": question, "completion": "v"}, {"messages": asked + more},
        ]  # fmt: skip

    path = tmp_path / "mine.jsonl"
    every = [row for i in range(30) for row in rows(f"q{i}")]
    path.write_text("".join(json.dumps(row) + "\n" for row in every))
    task = load(str(path), test_fraction=0.3)
    train, test = task.examples("train"), task.examples("test")
    assert {one.key for one in test}
    assert not {one.key for one in test} & {key for one in train for key in one.keys}


SAID = st.sampled_from(["a", "b?", "<t>x</t>b", "the mill is old"])


@settings(deadline=None)
@given(st.lists(st.tuples(SAID, SAID, st.booleans()), min_size=1, max_size=4),
       st.sampled_from([CHATML, CALLING, THINKING]))  # fmt: skip
def test_every_turn_is_learned_once_in_the_context_of_inference(
    pairs: list[tuple[str, str, bool]], template: str
) -> None:
    tokenizer = TALKING[template]
    turns = [
        Message(role, said, trained)
        for asked, answered, trained in pairs
        for role, said in (("user", asked), ("assistant", answered))
    ]
    if not any(message.learned for message in turns):
        return
    example = Example("", turns[-1].content, messages=tuple(turns))
    seen = []
    for one in expanded(example, tokenizer):
        text = shown(encode(one, tokenizer, 4000), tokenizer)
        for before, said in _learned(text):
            seen.append((before, said))
    wanted = []
    for number, message in enumerate(turns):
        if message.learned:
            told = [{"role": m.role, "content": m.content} for m in turns[:number]]
            context = tokenizer.apply_chat_template(
                told, tokenize=False, add_generation_prompt=True
            )
            wanted.append((context, message.content + "<|im_end|>"))
    assert sorted(seen) == sorted(wanted)


TALKING = {template: talking(template) for template in (CHATML, CALLING, THINKING)}


def _learned(text: str) -> list[tuple[str, str]]:
    """What stands before each labelled part, and the part."""
    found, place = [], 0
    while (start := text.find("[", place)) >= 0:
        place = text.index("]", start)
        before = text[:start].replace("[", "").replace("]", "")
        found.append((before, text[start + 1 : place]))
    return found


BAD_TEMPLATES = {
    "{% for i in range(10 * 10000) %}{% endfor %}{{ 1 / 0 }}": "refuses these messages",
    "{% for i in range(10 ** 12) %}{% endfor %}": "to a power",
    "{{ 9 ** 9 ** 9 }}": "to a power",
    "{{ '\\ud83d' }}": "half of a surrogate pair",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "took longer",
    "{{ messages[9].content.upper() }}": "refuses these messages",
    "{{ 1 / 0 }}": "refuses these messages",
    "{% if %}": "refuses these messages",
    "{{ raise_exception('no') }}": "refuses these messages: no",
    "{{ messages[0].content[:0] }}nothing": "leaves out what the assistant says",
}


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_whatever_a_template_does_is_one_line(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greentrainer.tasks.template.SECONDS", 0.2)
    with refusal("row 1: ", BAD_TEMPLATES[template]):
        encode_all([read({"messages": TWO}).example], talking(template), 400)


def test_texts_fill_windows_one_after_the_other() -> None:
    tokenizer = characters("<s>", bos_token="<s>")
    texts = [Example("", "a" * n, text=True) for n in (5, 3, 9)]
    windows = encode_all(texts, tokenizer, 8)
    assert [one.length for one in windows] == [8, 8, 7]
    assert all(one.labels == one.input_ids for one in windows)
    whole = "".join(tokenizer.decode(list(one.input_ids)) for one in windows)
    assert whole == "<s>aaaaa</s><s>aaa</s><s>aaaaaaaaa</s>"
    with refusal("row 1: ", "encoder-decoder"):
        encode_all(texts, tokenizer, 8, is_encoder_decoder=True)
    assert encoding.encode(texts[2], tokenizer, 8).length == 8


LINES = [{"prompt": f"p{i}", "completion": "c"} for i in range(4)]
JSONL = "".join(json.dumps(line) + "\n" for line in LINES).encode()
TABLE = "prompt{0}completion\n" + "".join(f"p{i}{{0}}c\n" for i in range(4))


def saved(path: Path) -> Path:
    datasets.disable_progress_bar()
    datasets.Dataset.from_list(LINES).save_to_disk(str(path))
    return path


def arrow(path: Path) -> Path:
    table = pyarrow.Table.from_pylist(LINES)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return path


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return bytes(sink.getvalue())


def holding(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def two_parts(folder: Path) -> Path:
    holding("parts/a.jsonl", b"".join(JSONL.splitlines(True)[:1]))(folder)
    holding("parts/b.csv", TABLE.format(",").replace("p0,c\n", "").encode())(folder)
    holding("parts/notes.xyz", b"none")(folder)
    return folder / "parts"


FILES: dict[str, Callable[[Path], Path]] = {
    "jsonl.gz": holding("mine.jsonl.gz", gzip.compress(JSONL)),
    "jsonl.bz2": holding("mine.jsonl.bz2", bz2.compress(JSONL)),
    "json.zst": holding("mine.json.zst", zstandard(json.dumps(LINES).encode())),
    "json of lines": holding("mine.json", JSONL),
    "json around a list": holding("mine.json", json.dumps({"v": 1, "data": LINES}).encode()),
    "crlf and bom": holding("mine.jsonl", b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n")),
    "utf-16": holding("mine.csv", TABLE.format(",").encode("utf-16")),
    "jsonl in utf-16": holding("mine.jsonl", JSONL.decode().encode("utf-16")),
    "tsv": holding("mine.tsv", TABLE.format("\t").encode()),
    "semicolons": holding("mine.csv", TABLE.format(";").encode()),
    "bars and crlf": holding("mine.csv", TABLE.format("|").replace("\n", "\r\n").encode()),
    "arrow": lambda folder: arrow(folder / "mine.arrow"),
    "saved": lambda folder: saved(folder / "mine"),
    "a folder": two_parts,
    "a pattern": lambda folder: two_parts(folder) / "*.[jc]s*",
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    task = load(str(FILES[kind](tmp_path)))
    found = [*task.examples("train"), *task.examples("test")]
    assert sorted(one.prompt for one in found) == [f"p{i}" for i in range(4)]
    assert {one.completion for one in found} == {"c"}


def test_rows_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(JSONL)))
    _standard_input.cache_clear()
    assert len(load("-").examples("train")) == 3
    assert len(load("-").examples("test")) == 1


def chats(*turns: Any) -> bytes:
    return json.dumps({"messages": turns}).encode()


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut gzip": (holding("mine.jsonl.gz", gzip.compress(JSONL * 99)[:60]), "gzip"),
    "no gzip": (holding("mine.jsonl.gz", JSONL), "not gzip"),
    "a notebook": (
        holding("mine.ipynb", b'{"cells": [{"cell_type": "code", "source": []}]}'),
        "no 'prompt' among the keys",
    ),
    "nothing": (holding("mine.jsonl", b""), "holds no rows"),
    "a picture": (holding("mine.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00"), "not UTF-8"),
    "an archive": (holding("mine.parquet", b"PK\x03\x04"), "not Parquet"),
    "no arrow": (holding("mine.arrow", b"ARROW1"), "not Arrow"),
    "half of utf-16": (holding("mine.csv", b"\xff\xfea\x00b"), "UTF-16"),
    "an empty folder": (lambda folder: folder, "without any"),
    "no such file": (lambda folder: folder / "no*.jsonl", "no file is called"),
    "images": (
        holding("mine.jsonl", json.dumps({"messages": [
            {"role": "user", "content": [{"type": "image", "url": "x"}]}, TWO[1]]}).encode()),
        "part 1 is image",
    ),
    "pairs": (
        holding("mine.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}'), "examples/dpo.py"
    ),
    "nothing to learn": (
        holding("mine.jsonl", chats(TWO[0], TWO[1] | {"train": False})),
        "no turn is to be learned",
    ),
    "a weight": (
        holding("mine.jsonl", chats(TWO[0], TWO[1] | {"weight": 3})),
        "the weight is 3",
    ),
    "history": (
        holding("mine.jsonl", b'{"instruction": "a", "output": "b", "history": [["q"]]}'),
        "'history', turn 1",
    ),
    "tools": (
        holding("mine.jsonl", json.dumps({"messages": TWO, "tools": "{"}).encode()), "'tools'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_one_line(kind: str, tmp_path: Path) -> None:
    write, told = BROKEN[kind]
    with refusal(told):
        load(str(write(tmp_path))).examples("train")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("abc <|\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls", "train",
                         "function", "name", "arguments", "weight"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
COLUMN = st.sampled_from(
    ["prompt", "completion", "messages", "conversations", "instruction", "input", "output",
     "history", "system", "tools", "text", "chosen", "rejected"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(COLUMN, JSON, max_size=5), st.sampled_from([CHATML, CALLING, THINKING]))
def test_any_row_is_read_or_refused_in_one_line(row: dict[str, Any], template: str) -> None:
    tokenizer = TALKING[template]
    told = ""
    try:
        encode_all(expanded(read(row).example, tokenizer), tokenizer, 4000)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told
