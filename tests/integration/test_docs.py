"""Every block of code on README's and the site's pages, as a reader would use it: `tests.pages`."""

import json
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from greentrainer import cli
from greentrainer.cli.shell import app, asked_for
from greentrainer.compare import spec
from greentrainer.config import RunConfig, merged, settings, validated
from greentrainer.hf import models
from tests.pages import GIVEN, PAGES, ROOT, Block, blocks, commands, rows, stand_in

GROUP: Any = typer.main.get_command(app)
LANGUAGES = {"python", "sh", "yaml", "json", "text", "", "indented", "{toctree}", "{eval-rst}"}
SHELL = ("greentrainer ", "torchrun ", "python ", "make ", "pip ")
"""How an indented block begins that is shell; others are pictures in letters, or formulas."""
SLOW = {"start", "trl", "huggingface", "gpus", "from-lora", "memory", "budgets", "report"}
"""Pages whose code takes more than a few seconds: their runs are left to `make test-all`."""
ALL = [block for page in PAGES for block in blocks(page)]
ids = [block.where for block in ALL]


@pytest.mark.parametrize("block", ALL, ids=ids)
def test_a_block_is_of_a_kind_that_is_tested(block: Block) -> None:
    assert block.language in LANGUAGES
    assert block.mark != "not run" or len(block.reason) > 10
    check = {"yaml": read_yaml, "json": read_json, "": read_json, "sh": read_shell}
    if block.language == "" and not block.text.startswith("{"):
        check.pop("")  # a picture in letters
    if block.text.startswith(SHELL):
        check["indented"] = read_shell
    if block.language in check:
        check[block.language](block)


def read_yaml(block: Block) -> None:
    """A run's configuration, a comparison, or a part of one."""
    found = yaml.safe_load(block.text)
    if isinstance(found, list):
        found = {"name": "part", "run": {}, "methods": found}
    if "methods" in found:
        validated(spec.Spec, found)
    else:
        validated(RunConfig, found)


def read_json(block: Block) -> None:
    for line in block.text.splitlines():
        json.loads(line)


def read_shell(block: Block) -> None:
    for words in commands(block):
        for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
            read_command(shlex.split(part), block)


def read_command(words: list[str], block: Block) -> None:
    """What a line names is there: a command with its options, a target of make, a benchmark."""
    first, rest = words[0], words[1:]
    if "greentrainer.cli" in rest:
        first, rest = "greentrainer", rest[rest.index("greentrainer.cli") + 1 :]
    if first == "greentrainer":
        read_greentrainer(rest)
    elif first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif words[:2] == ["python", "benchmarks"]:
        assert list((ROOT / "benchmarks").glob(f"*/{rest[1]}.py"))
    elif first in ("python", "torchrun", ".venv/bin/python"):
        assert all(
            (ROOT / word).exists() for word in rest if word.startswith(("examples/", "tests/"))
        )
    elif "pip" in words[:3]:
        named = re.findall(r"greentrainer\[(\w+)\]|\.\[(\w+)\]", " ".join(words))
        text = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra or other} = [" in text for extra, other in named)
    else:
        known = ("git", "cd", "chmod", "sbatch", "accelerate", "pre-commit", "export")
        assert block.language == "indented" or first in known


def read_greentrainer(words: list[str]) -> None:
    command = GROUP.commands[words[0]]
    given = command.make_context(words[0], list(words[1:])).params
    if words[0] in ("train", "evaluate", "plan", "init", "generate"):
        keys = {k: v for k, v in given.items() if k in RunConfig.model_fields or k == "task"}
        keys.pop("batch_size" if keys.get("batch_size") == "auto" else "", None)
        validated(RunConfig, merged(None, asked_for(keys) | settings(given.get("set_") or [])))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("model"))


RUN = [
    page for page in PAGES if any(b.language == "python" or b.mark == "run" for b in blocks(page))
]


@pytest.mark.filterwarnings("default")  # a reader's program is not stopped by a warning
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.thorough if page.stem in SLOW else (), id=page.stem)
        for page in RUN
    ],
)
def test_the_code_of_a_page_runs(
    page: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GREENTRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "rebuilt_smollm2", lambda notify: model)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # a command sets it
    given = GIVEN.get(str(page.relative_to(ROOT)))
    names: dict[str, Any] = {"__name__": "page", **(given(model) if given else {})}
    for block in blocks(page):
        if block.language == "python" and block.mark != "not run":
            source = "\n" * block.line + block.text  # so that a traceback tells the page's line
            exec(compile(source, str(page), "exec"), names)
        elif block.mark == "run":
            for words in commands(block):
                assert words[0] == "greentrainer"
                monkeypatch.setattr(sys, "argv", words)
                with pytest.raises(SystemExit) as left:
                    cli.main()
                assert not left.value.code, f"{block.where}: {' '.join(words)}"
