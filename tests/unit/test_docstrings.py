"""Public names say what they are: parameters, errors, units, and where they come from."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from greentrainer.config import RunConfig
from tools.docstrings import as_rst, described, pieces
from tools.reference import GROUPS, told

PUBLIC = [
    (module, name)
    for module in ("greentrainer", "greentrainer.hf")
    for name in import_module(module).__all__
]
UNITS = {"flops": "FLOPs", "macs": "multiply-accumulate", "bytes": "byte", "seconds": "second",
         "rho": "hare"}  # fmt: skip
"""What the docstring of a name that ends so has to say."""
FROM_THE_PAPER = {"AdaptiveBackprop", "CostGraph", "Selection", "measure_importance", "select",
                  "trace"}  # fmt: skip
SOURCE = re.compile(r"ICLR|paper|[Ss]ection \d|equation|`(T_full|I\[k\]|t_dw|m)`")
OTHERS = {"self", "cls", "args", "kwargs", "more"}
"""Parameters that are handed on as they are."""


def functions() -> Iterator[tuple[str, Any, str]]:
    """Each public function, method and property; its name, itself, and the class's docstring."""
    for module, name in PUBLIC:
        value = getattr(import_module(module), name)
        if inspect.isfunction(value):
            yield f"{module}.{name}", inspect.unwrap(value), ""
        elif inspect.isclass(value):
            for own, member in vars(value).items():
                made = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if own[0] != "_" and inspect.isfunction(made):
                    yield f"{module}.{name}.{own}", made, inspect.getdoc(value) or ""


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_has_a_docstring(module: str, name: str) -> None:
    value = getattr(import_module(module), name)
    callable_ = inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)
    said = inspect.getdoc(value) if callable_ else told(name)
    assert len(said or "") > 15
    if inspect.isclass(value):
        taken = set(inspect.signature(value).parameters) - OTHERS
        assert not {one for one in taken if not re.search(rf"\b{one}\b", said or "")}
    if name in FROM_THE_PAPER:
        home = import_module(value.__module__).__doc__ or ""
        assert SOURCE.search(f"{said}\n{home}")


@pytest.mark.parametrize(
    ("name", "function", "around"), [pytest.param(*one, id=one[0]) for one in functions()]
)
def test_a_public_function_tells_all(name: str, function: Any, around: str) -> None:
    said = inspect.getdoc(function) or ""
    assert said, "no docstring"
    hook = name.split(".")[-1].startswith("on_") or said.startswith("As the Trainer's")
    if not hook:
        taken = set(inspect.signature(function).parameters) - OTHERS
        known = f"{said}\n{around}"
        assert not {one for one in taken if not re.search(rf"\b{one}s?\b", known)}
    for error in raised(function):
        assert error in said, f"raises {error}, and does not say so"
    for ending, unit in UNITS.items():
        if name.endswith((f"_{ending}", f".{ending}")):
            assert unit in said


def raised(function: Any) -> set[str]:
    """The errors that a function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id[0].isupper()
    }


def test_every_key_of_a_run_is_described_and_has_its_place() -> None:
    said = described(inspect.getdoc(RunConfig) or "")
    keys = list(RunConfig.model_fields)
    assert [key for key in keys if len(said.get(key, "")) < 5] == []
    assert sorted(key for keys in GROUPS.values() for key in keys.split()) == sorted(keys)


def test_docstrings_are_read_as_they_are_written() -> None:
    text = """What it does.

rho, cost: a share,
    of `T_full`.
seed: one.  other: two.

Raises ValueError: never.

    some(code)
"""
    assert described(text) == {
        "rho": "a share, of `T_full`.", "cost": "a share, of `T_full`.", "seed": "one.",
        "other": "two.",
    }  # fmt: skip
    assert next(said.text for said in pieces(text) if not said.names) == "What it does."
    lines = as_rst(text.splitlines(), frozenset({"rho", "cost"}))
    assert ":param rho: a share, of ``T_full``." in lines
    assert "*seed*: one." in lines
    assert lines[lines.index("::") + 2] == "    some(code)"
