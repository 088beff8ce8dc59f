"""A configuration out of files, flags and pairs of names and values; every fault is one line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from greentrainer.config.keys import BUDGETS, RunConfig
from greentrainer.records import read_yaml

Model = TypeVar("Model", bound=BaseModel)
MAY_DIFFER = frozenset(
    {
        "resume",
        "overwrite",
        "output_dir",
        "save_every",
        "keep",
        "generate",
        "decoding",
        "evaluate_every",
        "patience",
        "keep_activations",
        "keep_bytes",
        "keep_bfloat16",
        "keep_folder",
        "meter",
        "watts",
        "carbon_intensity",
        "license",
        "processes",
        "parallel",
    }
)
"""Keys that a resumed run may change."""


def read(path: Path | None, flags: dict[str, Any]) -> RunConfig:
    """The configuration in a YAML file, overridden by flags that were given (not None).

    Raises ValueError of one line for a file that is no YAML mapping, an unknown key (with the
    nearest known one) or a value that does not fit.
    """
    return validated(RunConfig, merged(path, flags))


def merged(path: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of a YAML file, overridden by flags that were given; as of `read`."""
    values = read_mapping(path) if path else {}
    given = {name: value for name, value in flags.items() if value is not None}
    if isinstance(values.get("training"), dict) and isinstance(given.get("training"), dict):
        given["training"] = values["training"] | given["training"]
    return over(values, given)


def over(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those given in their place; a budget takes the place of any other.

    So does one task of several, several of one, and `resume` of `overwrite`.
    """
    for kinds in (BUDGETS, ("task", "tasks"), ("resume", "overwrite")):
        if any(given.get(name) not in (None, False) for name in kinds):
            values = {name: value for name, value in values.items() if name not in kinds}
    return {**values, **given}


def validated(kind: type[Model], values: dict[str, Any]) -> Model:
    """The values as a model that forbids other keys.  Raises ValueError, in one line."""
    for name in values:
        if name not in kind.model_fields:
            raise ValueError(f"unknown key {name!r}{nearest(str(name), kind.model_fields)}")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ValueError(first["msg"].removeprefix("Value error, ")) from None
        name, said = ".".join(str(part) for part in first["loc"]), first["msg"]
        ours = "Value error, "
        said = said.removeprefix(ours) if said.startswith(ours) else said.lower()
        raise ValueError(f"{name} is {first['input']!r}: {said}") from None


def nearest(name: str, known: Any) -> str:
    """`: did you mean ...?` if one of the known names is like this one, else nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]!r}?" if near else ""


def settings(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs, values as in YAML; `training.NAME` goes below `training`.

    Raises ValueError, in one line, for what is no such pair.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--set takes NAME=VALUE, not {pair!r}")
        try:
            value = read_yaml(text)
        except ValueError:
            raise ValueError(f"--set {name}: {text!r} is no YAML value") from None
        outer, dot, rest = name.partition(".")
        if dot and isinstance(found.setdefault(outer, {}), dict):
            found[outer][rest] = value
        elif dot:
            raise ValueError(f"--set {name}: {outer} was set to {found[outer]!r} before")
        else:
            found[name] = value
    return found


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds.  Raises ValueError, in one line, for what is no mapping.

    A run's folder of an earlier release has `task` beside the `tasks` that counted: it is left out.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the configuration {path}: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"the configuration {path} is no mapping of names to values")
    if values.get("tasks") is not None and _of_a_run(path):
        values.pop("task", None)
    return values


def _of_a_run(path: Path) -> bool:
    """Whether the file was written by a run, beside its record."""
    return path.name == "config.yaml" and path.with_name("run.json").is_file()


def require_resumable(config: RunConfig, path: Path) -> None:
    """Raise ValueError if the run whose configuration is in `path` was another one."""
    if not path.is_file():
        return
    before, now = read(path, {}).model_dump(mode="json"), config.model_dump(mode="json")
    for name in before:
        if name not in MAY_DIFFER and before[name] != now[name]:
            raise ValueError(
                f"{name} was {before[name]!r} in the run to resume and is {now[name]!r} now: "
                "leave it as it was, or choose another output_dir"
            )
