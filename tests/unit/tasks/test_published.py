"""Published data sets: both layouts of files, prompt formats, and which split comes from where."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.tasks import Example, PromptFormat, load
from greentrainer.tasks.holdout import cut
from greentrainer.tasks.published import Part, settle
from tests.tiny import refusal

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet as format_

    path.parent.mkdir(parents=True, exist_ok=True)
    format_.write_table(pyarrow.Table.from_pylist(rows), path)


def shard(split: str) -> str:
    return f"{split}-00000-of-00001.parquet"


def scitldr(theirs: Path, hubs: Path) -> None:
    for split, own in [("train", "train"), ("validation", "dev"), ("test", "test")]:
        rows = [
            {"source": [f"{split} {i}.", "", "More."], "target": [f"t{i}", f"u{i}"]}
            for i in range(6)
        ]
        jsonl(theirs / f"{own}.jsonl", rows)
        parquet(hubs / "Abstract" / shard(split), rows)


def dialogsum(theirs: Path, hubs: Path) -> None:
    for split, own in [("train", "train"), ("validation", "dev")]:
        rows = [{"id": i, "dialogue": f"{split} {i}", "summary": f"s{i}"} for i in range(6)]
        jsonl(theirs / f"dialogsum.{own}.jsonl", rows)
        parquet(hubs / shard(split), rows)
    several = [{"dialogue": f"d{i}", **{f"summary{k}": f"s{k}" for k in (1, 2, 3)}} for i in (1, 2)]
    jsonl(theirs / "dialogsum.test.jsonl", several)
    one = [{"dialogue": f"d{i}", "summary": f"s{k}"} for i in (1, 2) for k in (1, 2, 3)]
    parquet(hubs / shard("test"), one)


def webquestions(theirs: Path, hubs: Path) -> None:
    for split, own in [("train", "trainmodel"), ("test", "test")]:
        rows = [(f"{split} who {i}?", [f"a{i}", f"b{i}"]) for i in range(12)]
        questions = [{"qId": "w", "qText": q, "answers": a} for q, a in rows]
        theirs.mkdir(exist_ok=True)
        (theirs / f"{own}.json").write_text(json.dumps(questions))
        parquet(
            hubs / "data" / shard(split),
            [{"url": "u", "question": q, "answers": a} for q, a in rows],
        )


def piqa(theirs: Path, hubs: Path) -> None:
    for split, own in [("train", "train"), ("validation", "valid"), ("test", "tests")]:
        rows: Rows = [{"goal": f"{split} {i}", "sol1": "x", "sol2": "y"} for i in range(12)]
        labels = [-1 if split == "test" else i % 2 for i in range(12)]
        jsonl(theirs / f"{own}.jsonl", rows)
        (theirs / f"{own}-labels.lst").write_text("\n".join(map(str, labels)))
        pairs = zip(rows, labels, strict=True)
        parquet(hubs / shard(split), [row | {"label": label} for row, label in pairs])


LAYOUTS = {"scitldr": scitldr, "dialogsum": dialogsum, "webquestions": webquestions, "piqa": piqa}
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_layouts_give_the_same_examples(name: str, tmp_path: Path) -> None:
    theirs, hubs = tmp_path / "theirs", tmp_path / "hubs"
    LAYOUTS[name](theirs, hubs)
    one, other = load(name, data_dir=theirs), load(name, data_dir=str(hubs))
    for split in SPLITS:
        assert one.examples(split) == other.examples(split) != []
    assert one.name == name
    assert f"{len(one.examples('train'))} train" in one.describe()


FORMATS = {
    ("scitldr", "plain"): ("test 0. More.", "\nTL;DR:", " t0", True),
    ("scitldr", "paper"): ("test 0. More.", " TL;DR:", " t0", False),
    ("scitldr", "source"): ("test 0. More.", "", "t0", True),
    ("dialogsum", "plain"): ("d1", "\nTL;DR:", " s1", True),
    ("dialogsum", "paper"): ("d1", " TL;DR:", " s1", False),
    ("webquestions", "plain"): ("Question: test who 0?", "\nAnswer:", " a0", True),
    ("webquestions", "paper"): ("question:test who 0?", "<E>answer:", "a0", True),
    ("webquestions", "source"): ("test who 0?", "", "a0", True),
    ("piqa", "plain"): (
        "Goal: validation 0\nSolution 0: x\nSolution 1: y",
        "\nThe better solution is number",
        " 0",
        True,
    ),
    ("piqa", "paper"): ("goal:validation 0<E>sol1:x<E>sol2:y", "<E>label:", "0", True),
    ("piqa", "source"): ("Goal: validation 0\nSolution 0: x\nSolution 1: y", "", "0", True),
}


@pytest.mark.parametrize(("name", "prompt_format"), FORMATS)
def test_prompts_are_as_the_format_says(
    name: str, prompt_format: PromptFormat, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path / "a", tmp_path / "b")
    task = load(name, data_dir=tmp_path / "a", prompt_format=prompt_format, eos="<E>")
    first = task.examples("test")[0]
    got = (first.prompt, first.cue, first.completion, first.ends)
    assert got == FORMATS[name, prompt_format]
    assert first.completion.strip() == first.answers[0].strip()
    assert first.choices == () or first.completion in first.choices


REFERENCES = {
    "scitldr": ("t0", "u0"),
    "dialogsum": ("s1", "s2", "s3"),
    "webquestions": ("a0", "b0"),
    "piqa": (),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_every_right_answer_is_a_reference(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "a", tmp_path / "b")
    task = load(name, data_dir=tmp_path / "a")
    assert task.examples("test")[0].references == REFERENCES[name]
    scores = {"webquestions": ("exact",), "piqa": ("choice", "exact")}
    assert task.scores == scores.get(name, ("rouge",))


def made(split: str, count: int) -> Part:
    return Part([Example(f"{split}{i}", "c") for i in range(count)], f"{split}.x")


def settled(counts: Mapping[str, int]) -> dict[str, Part]:
    return settle({split: made(split, count) for split, count in counts.items()}, "here")


def origins(parts: Mapping[str, Part]) -> dict[str, str]:
    return {split: part.origin for split, part in parts.items()}


def test_the_sources_own_splits_are_used() -> None:
    parts = settled({"train": 20, "validation": 5, "test": 4})
    assert [len(parts[split].examples) for split in SPLITS] == [20, 5, 4]
    assert origins(parts) == {split: f"{split}.x" for split in SPLITS}


def test_without_test_validation_is_test() -> None:
    parts = settled({"train": 20, "validation": 5})
    assert parts["test"] == made("validation", 5)
    assert [len(parts[split].examples) for split in SPLITS] == [18, 2, 5]
    assert parts["validation"].origin == "held out of train.x, by hash"


@pytest.mark.parametrize("own", ["train", "validation"])
def test_without_the_other_a_tenth_is_held_out(own: str) -> None:
    parts = settled({own: 20, "test": 5})
    assert [len(parts[split].examples) for split in SPLITS] == [18, 2, 5]
    assert parts["train"].origin == f"{own}.x"


@pytest.mark.parametrize("own", SPLITS)
def test_one_split_is_cut_in_three(own: str) -> None:
    parts = settled({own: 20})
    assert [len(parts[split].examples) for split in SPLITS] == [16, 2, 2]
    assert origins(parts) == dict.fromkeys(SPLITS, f"of {own}.x, by hash")


def test_too_few_prompts_cannot_be_cut() -> None:
    with refusal("here has 2 prompts only"):
        settled({"train": 2})


PROMPTS = st.lists(st.sampled_from([f"p{i}" for i in range(30)]), min_size=6)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(SPLITS), PROMPTS, min_size=1))
def test_a_prompt_is_in_one_split_and_none_is_invented(own: dict[str, list[str]]) -> None:
    source = {
        split: Part([Example(p, "c") for p in own[split]], split)
        for split in SPLITS
        if split in own
    }
    try:
        parts = settle(source, "here")
    except ValueError as error:
        if "only, none can be held out" not in str(error):
            raise
        return
    sides = [{e.prompt for e in parts[split].examples} for split in SPLITS]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert set.union(*sides) == {p for prompts in own.values() for p in prompts}


@given(st.sets(st.text(), min_size=4), st.lists(st.floats(0.01, 0.99), min_size=2, max_size=3))
def test_no_side_of_a_cut_is_empty(prompts: set[str], shares: list[float]) -> None:
    examples = [Example(prompt, "c") for prompt in sorted(prompts)]
    parts = cut(examples, {f"s{i}": share for i, share in enumerate(shares)}, 0, "here")
    assert all(parts.values())
    assert sorted(e.prompt for side in parts.values() for e in side) == sorted(prompts)
    assert len(parts["s0"]) <= max(1, round(shares[0] * len(prompts)))


def test_labels_must_be_as_many_as_rows(tmp_path: Path) -> None:
    piqa(tmp_path, tmp_path / "hub")
    (tmp_path / "train-labels.lst").write_text("0\n1\n")
    with refusal("train-labels.lst holds 2 labels for 12 rows"):
        load("piqa", data_dir=tmp_path).examples("train")
    (tmp_path / "train-labels.lst").write_text("0\n" * 11 + "2")
    with refusal("train.jsonl, line 12", "'2'"):
        load("piqa", data_dir=tmp_path).examples("train")


def test_rows_without_labels_are_no_rows(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"goal": "g", "sol1": "x", "sol2": "y"}])
    with refusal("no rows with labels"):
        load("piqa", data_dir=tmp_path).examples("train")


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with refusal(f"no folder {tmp_path / 'none'}"):
        load("piqa", data_dir=tmp_path / "none").examples("train")
    (tmp_path / "notes.jsonl").write_text("{}")
    with refusal(f"{tmp_path} holds no files of piqa"):
        load("piqa", data_dir=tmp_path).examples("train")


def test_a_data_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    webquestions(tmp_path / "one", tmp_path / "two")
    with refusal("more than once", "one, data"):
        load("webquestions", data_dir=tmp_path).examples("train")
    (tmp_path / "one" / "train.csv").write_text("question,answers\nq,a\n")
    with refusal("holds train more than once (train.csv, trainmodel.json)"):
        load("webquestions", data_dir=tmp_path / "one").examples("train")


def test_a_bad_line_of_a_published_file_is_named(tmp_path: Path) -> None:
    scitldr(tmp_path, tmp_path / "hub")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{\n")
    with refusal(f"{tmp_path / 'train.jsonl'}, line 7: not JSON"):
        load("scitldr", data_dir=tmp_path).examples("train")


def test_a_csv_cell_can_hold_a_list(tmp_path: Path) -> None:
    lines = [f'q{i},"[""a"", ""b""]"' for i in range(9)]
    (tmp_path / "train.csv").write_text("\n".join(["question,answers", *lines]))
    first = load("webquestions", data_dir=tmp_path).examples("train")[0]
    assert first.references == ("a", "b")


def test_keywords_that_do_not_fit_are_refused() -> None:
    with refusal("prompt format 'papper'", "plain, paper, source"):
        load("scitldr", prompt_format="papper")  # type: ignore[arg-type]
    with refusal("pydoc takes no data_dir"):
        load("pydoc", data_dir="x")
    with refusal("mine.jsonl takes no data_dir and no prompt_format"):
        load("mine.jsonl", prompt_format="paper")
