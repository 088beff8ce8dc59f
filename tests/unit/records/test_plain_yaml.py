"""YAML within bounds: what is meant is read, what would fill the memory or hang is one line."""

import pytest
import yaml

from greentrainer.records import read_yaml
from tests.tiny import refusal


def doubled(inner: str, link: str, levels: int = 20) -> str:
    """Each level holds the one before it nine times."""
    lines = [f"a0: &a0 {inner}"]
    for level in range(1, levels):
        inside = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {link.replace('@', inside)}")
    return "\n".join(lines)


GOOD = [
    "",
    "a: 1\nb: [1, 2.5, null, yes]\nc: {d: 2026-01-01}",
    "base: &base {rho: 0.5}\nmine: {<<: *base, epochs: 2}",
    "[" * 80 + "]" * 80,
    "x: !!binary aGk=",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_is_meant_is_read_as_ever(text: str) -> None:
    assert read_yaml(text) == yaml.safe_load(text)


BAD = {
    doubled("[1, 1, 1]", "[@]"): "more than",
    doubled("{x: 1}", "{<<: [@]}"): "more than",
    "a: &a [*a]": "holds itself",
    "[" * 5000: "more than 100 levels",
    "- " * 300 + "x": "more than 100 levels",
    "!!bool x": "not what its tag says",
    "!!timestamp x": "not what its tag says",
    "!!int ''": "not what its tag says",
    "!!python/object/apply:os.system [id]": "could not determine a constructor",
    "2001-99-99": "month",
    "a: [": "parsing",
    "a\n---\nb": "single document",
    "\0": "not allowed",
    "9" * 5000: "digits",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_not_is_one_line(text: str) -> None:
    with refusal(BAD[text]):
        read_yaml(text)
