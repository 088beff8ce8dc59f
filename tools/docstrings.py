"""Docstrings as this project writes them, for the site: prose, and a line or more for each name.

    rho: share of full fine-tuning's FLOPs,
        probes included.
    model, optimizer: what is trained.

Names stand at the beginning of a line, several with commas between them, and what is said of them
goes on in lines that are indented.  Code is between single backticks, as in Markdown.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAMES = re.compile(r"([*]{0,2}\w+(?:, [*]{0,2}\w+)*):\s+(\S.*)", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """A piece of a docstring: about some names, or prose where there are none."""

    names: tuple[str, ...]
    text: str


def pieces(text: str) -> Iterator[Said]:
    """A docstring, without its indentation, in pieces; those of code are prose as it stands."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith((" ", "* ", "- ")):
            yield Said((), paragraph)
            continue
        for entry in re.split(r"\n(?=\S)", paragraph) if _is_list(paragraph) else [paragraph]:
            found = _NAMES.fullmatch(entry.strip()) if _is_list(paragraph) else None
            names = tuple(found[1].split(", ")) if found else ()
            yield from _several(names, " ".join((found[2] if found else entry).split()))


def _is_list(paragraph: str) -> bool:
    """Whether each of its entries begins with names."""
    entries = re.split(r"\n(?=\S)", paragraph)
    return all(_NAMES.fullmatch(entry.strip()) for entry in entries)


def _several(names: tuple[str, ...], text: str) -> Iterator[Said]:
    """An entry; `one: this.  other: that` on one line are two."""
    parts = re.split(r"(?<=\.)\s+(?=\w+(?:, \w+)*: )", text) if names else [text]
    yield Said(names, parts[0])
    for part in parts[1:]:
        found = _NAMES.fullmatch(part)
        assert found is not None
        yield Said(tuple(found[1].split(", ")), found[2])


def described(text: str) -> dict[str, str]:
    """What is said of each name."""
    return {name: said.text for said in pieces(text) for name in said.names}


def as_rst(lines: list[str], known: frozenset[str]) -> list[str]:
    """A docstring in reStructuredText; what is said of the names `known` as fields."""
    found: list[str] = []
    fields: list[str] = []
    for said in pieces("\n".join(lines)):
        names = [name for name in said.names if name.lstrip("*") in known]
        if names and len(names) == len(said.names):
            fields += [f":param {name.lstrip('*')}: {code(said.text)}" for name in names]
        elif said.names:
            found += [f"*{', '.join(said.names)}*: {code(said.text)}", ""]
        elif said.text.startswith("    "):
            found += ["::", "", *said.text.splitlines(), ""]
        else:
            found += [*code(said.text).splitlines(), ""]
    return [*found, *fields, ""]


def code(text: str) -> str:
    """Markdown's code as that of reStructuredText."""
    escaped = re.sub(r"(?<!\w)\*(?=\w)|(?<=\w)_(?=\s|$|\W)", lambda mark: f"\\{mark[0]}", text)
    parts = re.split(r"(`[^`]+`)", text)
    if len(parts) == 1:
        return escaped
    return "".join(f"``{part[1:-1]}``" if part[:1] == "`" else part for part in parts)
