"""An interruption that a library made an error of its own is one still."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import pytest
from pydantic import BaseModel, PlainSerializer
from rich.console import Console

from greentrainer.cli import main
from greentrainer.compare import trial
from greentrainer.records import interrupted


def stopped(_value: int) -> int:
    raise KeyboardInterrupt


class Written(BaseModel):
    number: Annotated[int, PlainSerializer(stopped)]


def writing(*_: Any, **__: Any) -> None:
    """As where Ctrl-C comes while a configuration is written."""
    Written(number=1).model_dump(mode="json")


def test_what_pydantic_makes_of_it_is_an_interruption() -> None:
    with pytest.raises(ValueError, match="KeyboardInterrupt") as found:
        writing()
    assert interrupted(found.value)
    assert not interrupted(ValueError("another"))


def test_a_command_ends_as_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[main.__module__], "app", writing)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("raised", "recorded"), [(writing, False), (lambda *_: int("no"), True)]
)  # fmt: skip
def test_an_interrupted_run_of_a_comparison_leaves_no_record(
    raised: Callable[..., Any], recorded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "measure", raised)
    path, blank = tmp_path / "record.json", cast(Any, SimpleNamespace(config=None))
    expected = nullcontext() if recorded else pytest.raises(KeyboardInterrupt)
    with expected:
        trial.run(blank, {"provenance": {}}, path, Console())
    assert path.exists() == recorded
