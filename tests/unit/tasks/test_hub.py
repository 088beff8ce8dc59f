"""Data sets of the hub: what is asked for, and one line where it cannot be had."""

import sys
from typing import Any

import pytest

from greentrainer.tasks import load
from tests.tiny import refusal

datasets = pytest.importorskip("datasets")

QUESTIONS = [{"url": "u", "question": f"q{i}", "answers": ["a", "b"]} for i in range(20)]
PAIRS = [{"prompt": f"p{i}", "completion": "c"} for i in range(20)]
Asked = list[tuple[tuple[Any, ...], dict[str, Any]]]


def hub(monkeypatch: pytest.MonkeyPatch, found: Any, scripted: bool = False) -> Asked:
    """Put `found` in the place of the hub; returns what it will be asked for."""
    asked: Asked = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        if scripted and not options:
            raise RuntimeError("Dataset scripts are no longer supported")
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_named_task_comes_from_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"train": QUESTIONS, "test": QUESTIONS[:4]})
    task = load("webquestions")
    assert [len(task.examples(s)) for s in ("train", "validation", "test")] == [14, 2, 4]
    assert asked == [(("stanfordnlp/web_questions", None), {})]
    assert "stanfordnlp/web_questions on the hub" in task.describe()


@pytest.mark.parametrize(
    ("name", "place"),
    [("scitldr", "Abstract"), ("dialogsum", None), ("piqa", None), ("webquestions", None)],
)
def test_a_script_is_never_run(
    name: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, OSError("nothing\nhere"), scripted=True)
    with refusal("OSError: nothing here", f"give data_dir, a folder with the files of {name}"):
        load(name).examples("train")
    assert [options for _, options in asked] == [{}, {"revision": "refs/convert/parquet"}]
    assert {args[1] for args, _ in asked} == {place}


def test_the_users_own_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"train": PAIRS, "validation": PAIRS[:3]})
    task = load("some-one/pairs_2")
    assert [len(task.examples(split)) for split in ("train", "test")] == [17, 3]
    assert asked == [(("some-one/pairs_2", None), {})]
    assert task.describe() == (
        "some-one/pairs_2: 17 train, 3 test (test as on the hub; left out of train: 3 that are "
        "tested on); read as: prompt and completion"
    )
    hub(monkeypatch, {"train": PAIRS})
    assert len(load("some-one/pairs_2").examples("test")) == 2
    hub(monkeypatch, {"train": [*PAIRS, {"prompt": "p"}]})
    with refusal("some-one/pairs_2, train, row 21: no 'completion'"):
        load("some-one/pairs_2").examples("test")


def test_what_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ConnectionError("no way"))
    with refusal("org/name", "ConnectionError: no way", "give a file instead"):
        load("org/name").examples("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refusal("piqa", "needs the package datasets", "give data_dir"):
        load("piqa").examples("train")
