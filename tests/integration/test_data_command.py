"""`greentrainer data`: what it prints of a task, and that it needs no weights."""

import json
from pathlib import Path

import pytest
from rich.text import Text

from greentrainer.cli import app
from greentrainer.tasks import Encoded, show
from greentrainer.tasks.encode import IGNORED
from tests.tiny import characters, refusal, saved


def greentrainer(*arguments: str | Path) -> None:
    app([*map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights in `model`, and questions in `train.json`."""
    root = tmp_path_factory.mktemp("data")
    saved(root / "model", tokenizer=characters(pad_token=None))
    (root / "model" / "model.safetensors").write_bytes(b"none")
    rows = [{"qText": f"who was {i}?", "answers": ["some one"]} for i in range(30)]
    (root / "train.json").write_text(json.dumps(rows))
    return root


def test_a_task_is_shown_as_a_model_reads_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greentrainer(
        "data", "webquestions", "--model", folder / "model", "--data-dir", folder,
        "--prompt-format", "paper", "--count", "2", "--max-length", "40", "--split", "train",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith(f"webquestions of {folder}: 24 train (of train.json, by hash)")
    assert printed.count("example of ") == 2
    assert "9 labelled (in green)" in printed  # some one, and the end
    assert "</s>answer:some one</s>" in printed
    assert "train, 24 examples: median" in printed
    assert "█" in printed


def test_what_cannot_be_shown_is_one_line(folder: Path) -> None:
    model = ("--model", folder / "model")
    with refusal(f"no folder {folder / 'none'}"):
        greentrainer("data", "webquestions", *model, "--data-dir", folder / "none")
    with refusal("no split 'dev'", "train, validation, test"):
        greentrainer("data", "webquestions", *model, "--data-dir", folder, "--split", "dev")
    with refusal("prompt_format is 'papers'"):
        greentrainer("data", "webquestions", *model, "--prompt-format", "papers")


def test_labelled_tokens_are_marked() -> None:
    tokenizer = characters()
    ids = tuple(tokenizer("ab cd").input_ids)
    text = show.marked(Encoded(ids, (IGNORED,) * 3 + ids[3:]), tokenizer, False)
    assert text.plain == "example of 5 tokens, 2 labelled (in green):\nab cd"
    green = [text.plain[s.start : s.end] for s in text.spans if s.style == "bold green"]
    assert green == ["cd"]
    two_sided = show.marked(Encoded(ids[:2], ids[3:]), tokenizer, True)
    assert two_sided.plain.endswith("\nab\ncd")


def test_figures_of_lengths_are_exact() -> None:
    found = show.Lengths(tuple(range(1, 101)), (3, 4, 8), 75)
    assert (found.quantile(0.9), found.quantile(1), found.cut_share) == (90, 100, 0.25)
    assert found.line() == (
        "100 examples: median 50 tokens, 90% within 90, longest 100; 25.0% cut by the window of "
        "75; 4 tokens labelled (median)"
    )


def test_bars_count_every_example_once() -> None:
    found = show.Lengths((1, 1, 9, 10, 11, 120), (1,), 50)
    text: Text = show.histogram(found)
    lines = text.plain.splitlines()
    assert sum(int(line.split()[-1]) for line in lines) == 6
    assert lines[0].split() == ["1-10", "█" * 40, "4"]
    red = [text.plain[s.start : s.end] for s in text.spans if s.style == "red"]
    assert "".join(red) == "█" * 10  # one of four, beyond the window
