"""The user's own files other than JSONL, lists of answers, and chats: what is read and refused."""

import csv
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.tasks import Example, Message, Task, load, tables
from greentrainer.tasks.base import SCORES
from tests.tiny import refusal

ROWS: list[dict[str, Any]] = [
    {"prompt": 'a "p",\nq\u00e9', "completion": "c"},
    {"prompt": "b", "completion": "[d"},
]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


WRITERS = {
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".jsonl": as_jsonl,
}


def written(folder: Path, ending: str, content: bytes) -> Path:
    path = folder / f"mine{ending}"
    path.write_bytes(content)
    return path


def all_of(task: Task) -> list[Example]:
    return sorted([*task.examples("train"), *task.examples("test")], key=lambda e: e.prompt)


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path, ending, WRITERS[ending](ROWS))
    task = load(str(path))
    assert all_of(task) == [Example(row["prompt"], row["completion"]) for row in ROWS]
    assert (
        task.describe()
        == f"{path}: 1 train, 1 test (held out by hash); read as: prompt and completion"
    )


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    for ending in (".csv", ".json"):
        path = written(tmp_path, ending, b"\xef\xbb\xbf" + WRITERS[ending](ROWS))
        assert len(all_of(load(str(path)))) == 2


@given(st.lists(st.tuples(st.text("a,\"'\n ;x"), st.text('a,"\n')), min_size=1))
def test_any_text_comes_back_out_of_csv(pairs: list[tuple[str, str]]) -> None:
    content = as_csv([{"p": one, "c": other} for one, other in pairs])
    rows = list(tables._csv(Path("x.csv"), io.BytesIO(content)))
    assert [(row.values["p"], row.values["c"]) for row in rows] == pairs


BROKEN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "ragged": (".csv", b"prompt,completion\np,c\np,c,d\n", ("line 3: 3 cells", "2 columns")),
    "ragged, short": (".csv", b'prompt,completion\n"p\nq",c\np\n', ("line 4: 1 cells",)),
    "open quote": (".csv", b'prompt,completion\np,"c\n', ("not CSV",)),
    "twice": (".csv", b"prompt,prompt\np,c\n", ("line 1", "twice")),
    "no column": (".csv", b"question,completion\np,c\n", ("line 2: no 'prompt'", "'question'")),
    "empty cell": (".csv", b"prompt,completion\np,\n", ("line 2: 'completion' is empty",)),
    "CSV, latin-1": (".csv", b"prompt,completion\np,c\n\xe9,c\n", ("line 3: not UTF-8",)),
    "names only": (".csv", b"prompt,completion\n", ("no rows",)),
    "empty CSV": (".csv", b"", ("no rows", "line of names")),
    "empty JSON": (".json", b" \n", ("no rows",)),
    "empty list": (".json", b"[]", ("no rows",)),
    "bad JSON": (".json", b'[\n{"prompt": "p",}\n]', ("line 2: not JSON",)),
    "an object": (".json", b"{}", ("a JSON dict, not a list",)),
    "a list in it": (".json", b"[[]]", ("row 1: a JSON list",)),
    "JSON, latin-1": (".json", b'[\n"\xe9"]', ("line 2: not UTF-8",)),
    "without completion": (".json", b'[{"prompt": "p"}]', ("row 1: no 'completion'",)),
    "no Parquet": (".parquet", b"PAR1 it is not", ("not Parquet",)),
    "empty Parquet": (".parquet", b"", ("not Parquet",)),
    "cut Parquet": (".parquet", as_parquet(ROWS)[:-9], ("not Parquet",)),
    "a null": (".parquet", as_parquet([{"prompt": "p", "completion": None}]), ("row 1: 'c",)),
    "no answers": (".jsonl", b'{"prompt": "p", "completion": []}', ("line 1", "an empty list")),
    "empty answer": (".jsonl", b'{"prompt": "p", "completion": ["a", ""]}', ("item 2 is empty",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(kind: str, tmp_path: Path) -> None:
    ending, content, reasons = BROKEN[kind]
    path = written(tmp_path, ending, content)
    with refusal(str(path), *reasons):
        load(str(path)).examples("train")


def test_a_completion_may_be_several_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": ["a", "b"]} for i in range(2)]
    path = written(tmp_path, ".jsonl", as_jsonl(rows))
    first = all_of(load(str(path)))[0]
    assert (first.completion, first.answers) == ("a", ("a", "b"))


def test_a_text_that_spells_a_list_is_a_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": '["a"]'} for i in range(2)]
    path = written(tmp_path, ".jsonl", as_jsonl(rows))
    assert all_of(load(str(path)))[0].answers == ('["a"]',)


def test_scores_are_the_users(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", as_jsonl(ROWS))
    assert load(str(path)).scores == ("rouge",)
    assert load(str(path), scores=["exact"]).scores == ("exact",)
    with refusal("no score 'bleu'", *SCORES):
        load(str(path), scores=["bleu"])


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


CHAT = turns(("system", "s"), ("user", "u"), ("assistant", "a"))
OTHER = turns(("user", "v"), ("assistant", "b"), ("user", "w"), ("assistant", "c"))


@pytest.mark.parametrize("ending", WRITERS)
def test_chats_are_found_in_every_format(ending: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": CHAT}, {"messages": OTHER}]
    if ending == ".csv":
        rows = [{"messages": json.dumps(row["messages"])} for row in rows]
    one, other = all_of(load(str(written(tmp_path, ending, WRITERS[ending](rows)))))
    assert one.messages == tuple(Message(turn["role"], turn["content"]) for turn in CHAT)
    assert (one.prompt, one.completion) == ("system: s\nuser: u", "a")
    assert (len(other.messages), other.completion) == (4, "c")


def test_the_column_of_chats_is_the_users(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "talk": CHAT}, {"prompt": "p", "talk": OTHER}]
    path = written(tmp_path, ".jsonl", as_jsonl(rows))
    assert all_of(load(str(path), messages="talk"))[0].completion == "a"
    with refusal("line 1: no 'chat' among the keys 'prompt', 'talk'"):
        load(str(path), messages="chat").examples("train")


def test_a_prompt_goes_before_messages(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c", "messages": CHAT} for i in range(2)]
    assert all_of(load(str(written(tmp_path, ".jsonl", as_jsonl(rows)))))[0].messages == ()


NO_CHAT: dict[str, tuple[object, str]] = {
    "ends with the user": (CHAT[:-1], "the last turn is user"),
    "no turns": ([], "the last turn is missing"),
    "assistant only": (CHAT[2:], "nobody but the assistant"),
    "unknown role": (turns(("robot", "u"), ("assistant", "a")), "turn 1: the role is 'robot'"),
    "empty content": (turns(("user", "u"), ("assistant", " ")), "turn 2: 'content' is empty"),
    "no content": ([{"role": "user"}, CHAT[2]], "turn 1: no object with 'role' and 'content'"),
    "content of parts": ([{"role": "user", "content": ["u"]}, CHAT[2]], "turn 1: 'content' is"),
    "texts": (["u", "a"], "turn 1: no object"),
    "a number": (3, "is a int, not a list of turns"),
    "a text": ("hello", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_CHAT)
def test_what_is_no_chat_is_refused(kind: str, tmp_path: Path) -> None:
    messages, reason = NO_CHAT[kind]
    path = written(tmp_path, ".jsonl", as_jsonl([{"messages": CHAT}, {"messages": messages}]))
    with refusal(f"{path}, line 2: 'messages'", reason):
        load(str(path)).examples("train")


def test_what_an_error_quotes_of_a_row_is_cut(tmp_path: Path) -> None:
    long = "k" * 9000
    for row in ({long: "a"}, {"messages": turns((long, "u"), ("assistant", "a"))}):
        path = written(tmp_path, ".jsonl", as_jsonl([row]))
        with pytest.raises(ValueError, match="line 1") as caught:
            load(str(path)).examples("train")
        assert len(str(caught.value)) < 1000


def test_arrow_that_points_outside_of_itself_is_one_line(tmp_path: Path) -> None:
    """Reading it would end the process, or show what lies elsewhere in its memory."""
    import pyarrow

    table = pyarrow.table({"prompt": ["abc", "defg"], "completion": ["hijkl", "m"]})
    path = tmp_path / "rows.arrow"
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    ends, far = (struct.pack("<3i", 0, 3, end) for end in (7, 2**30))
    assert path.read_bytes().count(ends) == 1
    path.write_bytes(path.read_bytes().replace(ends, far))
    with refusal(str(path), "not Arrow"):
        load(str(path)).examples("train")
