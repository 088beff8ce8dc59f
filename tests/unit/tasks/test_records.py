"""The user's own file: which rows are read, what is refused and how, and what is held out."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.tasks import Example, load
from greentrainer.tasks.records import Records, read_rows
from tests.tiny import refusal

GOOD = b'{"prompt": "p", "completion": "c"}'
OTHER = b'{"prompt": "q", "completion": "d"}'


def written(folder: Path, content: bytes, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def rows(path: Path) -> list[tuple[str, str]]:
    return list(read_rows(path, "prompt", "completion"))


def jsonl(prompts: Sequence[str]) -> bytes:
    """Rows with these prompts and a completion that tells the row's number."""
    lines = [json.dumps({"prompt": p, "completion": f"c{i}"}) for i, p in enumerate(prompts)]
    return "\n".join(lines).encode()


BROKEN = {
    "bad JSON": (b'{"prompt": "p", ', "not JSON"),
    "text beside it": (GOOD + b" yes", "not JSON"),
    "two in a line": (GOOD + GOOD, "not JSON"),
    "nested too deeply": (b"[" * 100_000, "not JSON"),
    "huge number": (b'{"prompt": "p", "completion": ' + b"1" * 5000 + b"}", "not JSON"),
    "latin-1": ('{"prompt": "\xe9", "completion": "c"}'.encode("latin-1"), "not UTF-8"),
    "a list": (b'["p", "c"]', "list"),
    "a text": (b'"p"', "str"),
    "nothing": (b"null", "NoneType"),
    "no keys": (b"{}", "no 'prompt'"),
    "no prompt": (b'{"question": "p", "completion": "c"}', "no 'prompt' among the keys 'question'"),
    "no completion": (b'{"prompt": "p", "answer": "c"}', "no 'completion'"),
    "key with a line break": (b'{"a\\nb": "p"}', "no 'prompt'"),
    "number": (b'{"prompt": 3, "completion": "c"}', "'prompt' is a int"),
    "null text": (b'{"prompt": "p", "completion": null}', "'completion' is a NoneType"),
    "empty": (b'{"prompt": "", "completion": "c"}', "'prompt' is empty"),
    "white space": (b'{"prompt": "p", "completion": " \\n\\u00a0"}', "'completion' is empty"),
    "half a pair": (b'{"prompt": "p", "completion": "x\\ud83dx"}', "surrogate"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_named_by_file_and_line(kind: str, tmp_path: Path) -> None:
    line, reason = BROKEN[kind]
    path = written(tmp_path, b"\n".join([GOOD, b"", OTHER, line, GOOD]))
    with refusal(f"{path}, line 4: ", reason):
        load(str(path)).examples("train")


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with refusal(str(path), "no rows"):
        rows(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with refusal(str(tmp_path / "none.jsonl"), "No such file"):
        load(str(tmp_path / "none.jsonl")).examples("train")
    with refusal(str(tmp_path), "is a folder"):
        load(str(tmp_path)).examples("train")


def test_a_name_that_is_neither_task_nor_file_is_refused() -> None:
    with refusal("'pydocs'", "pydoc", ".jsonl"):
        load("pydocs")


CONTENTS = {
    "no line break at the end": GOOD + b"\n" + OTHER,
    "byte order mark": b"\xef\xbb\xbf" + GOOD + b"\n" + OTHER + b"\n",
    "CRLF": GOOD + b"\r\n" + OTHER + b"\r\n",
    "blank lines": b"\n\n" + GOOD + b"\n  \n\r\n" + OTHER + b"\n\n",
    "indented": b"  " + GOOD + b"  \n\t" + OTHER,
    "more keys": b'{"n": 1, "prompt": "p", "completion": "c", "x": {}}\n' + OTHER,
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_harmless_is_read(kind: str, tmp_path: Path) -> None:
    assert rows(written(tmp_path, CONTENTS[kind])) == [("p", "c"), ("q", "d")]


TEXT = st.text(min_size=1).filter(lambda text: text.strip())  # never holds half a pair


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1), st.booleans())
def test_any_text_comes_back_as_it_was(pairs: list[tuple[str, str]], escaped: bool) -> None:
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=escaped) for p, c in pairs]
    with TemporaryDirectory() as folder:
        assert rows(written(Path(folder), "\n".join(lines).encode())) == pairs


def test_keys_and_cue_are_the_users(tmp_path: Path) -> None:
    line = b'{"question": "q%d", "answer": "a"}\n'
    path = written(tmp_path, line % 1 + line % 2)
    task = load(str(path), prompt="question", completion="answer", cue=" -> ")
    both = [*task.examples("train"), *task.examples("test")]
    assert {e.prompt for e in both} == {"q1", "q2"}
    assert {(e.completion, e.cue) for e in both} == {("a", " -> ")}


PROMPTS = st.lists(st.sampled_from([f"p{i}" for i in range(12)]), min_size=2).filter(
    lambda prompts: len(set(prompts)) > 1
)
FRACTIONS = st.floats(0.01, 0.99)


def split(prompts: Sequence[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Prompts of train and of test."""
    with TemporaryDirectory() as folder:
        task = Records(written(Path(folder), jsonl(prompts)), test_fraction=fraction, seed=seed)
        train, test = (task.examples(side) for side in ("train", "test"))
    assert sorted(e.completion for e in [*train, *test]) == sorted(
        f"c{i}" for i in range(len(prompts))
    )
    return [e.prompt for e in train], [e.prompt for e in test]


@settings(deadline=None)
@given(PROMPTS, FRACTIONS)
def test_equal_prompts_are_on_one_side_and_no_side_is_empty(
    prompts: list[str], fraction: float
) -> None:
    train, test = (set(side) for side in split(prompts, fraction))
    assert not train & test
    assert train
    assert test
    asked = round(fraction * len(set(prompts)))
    assert len(test) == min(max(asked, 1), len(set(prompts)) - 1)


@settings(deadline=None)
@given(PROMPTS, FRACTIONS)
def test_another_row_moves_at_most_one_prompt(prompts: list[str], fraction: float) -> None:
    before = set(split(prompts, fraction)[1])
    after = set(split([*prompts, "another"], fraction)[1])
    assert len((before ^ after) - {"another"}) <= 1


@settings(deadline=None)
@given(PROMPTS, FRACTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_file_is_kept_and_does_not_matter(
    prompts: list[str], fraction: float, chance: Random
) -> None:
    shuffled = chance.sample(prompts, len(prompts))
    held_out = set(split(prompts, fraction)[1])
    train, test = split(shuffled, fraction)
    assert set(test) == held_out
    assert test == [p for p in shuffled if p in held_out]
    assert train == [p for p in shuffled if p not in held_out]


def test_the_seed_chooses_what_is_held_out() -> None:
    prompts = [f"p{i}" for i in range(100)]
    sides = [split(prompts, 0.1, seed)[1] for seed in (0, 0, 1)]
    assert [len(side) for side in sides] == [10, 10, 10]
    assert sides[0] == sides[1] != sides[2]


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl(["p", "p"]))
    with refusal(str(path), "one prompt only"):
        load(str(path)).examples("test")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_outside_0_to_1_is_refused(fraction: float, tmp_path: Path) -> None:
    with refusal("test_fraction", str(fraction)):
        load(str(written(tmp_path, GOOD)), test_fraction=fraction)


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    test = written(tmp_path, OTHER + b"\n" + OTHER, "test.jsonl")
    task = load(str(path), test_path=str(test), cue="!")
    assert task.examples("train") == [Example("p", "c", "!")]
    assert task.examples("test") == [Example("q", "d", "!")] * 2
    assert task.name == "mine"
    assert task.describe().startswith(f"{path}: 1 train, 2 test (test from {test}); read as: ")


def test_an_error_in_the_test_file_names_that_file(tmp_path: Path) -> None:
    test = written(tmp_path, GOOD + b"\n{}", "test.jsonl")
    with refusal(f"{test}, line 2: "):
        load(str(written(tmp_path, GOOD)), test_path=str(test)).examples("train")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with refusal("mine has no split 'validation'", "train, test"):
        load(str(written(tmp_path, jsonl(["p", "q"])))).examples("validation")
