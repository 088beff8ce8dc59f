"""What the site is made of: current pictures, a reference that lacks nothing, no dead links."""

import inspect
from pathlib import Path

import pytest

from greentrainer import hf
from greentrainer.cli.shell import app
from tools import check_site, pictures, reference

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_a_picture_is_current(name: str) -> None:
    assert pictures.path(name).read_text(encoding="utf-8") == pictures.PICTURES[name]()


def test_the_reference_has_every_command_with_every_option() -> None:
    page = reference.commands()
    for command in app.registered_commands:
        assert command.callback is not None
        section = page.partition(f"## {command.callback.__name__}\n")[2].partition("\n## ")[0]
        for name in inspect.signature(command.callback).parameters:
            option = name.rstrip("_").replace("_", "-").removeprefix("as-")
            assert f"`--{option}`" in section or f"`{name.upper()}`" in section


def test_the_reference_has_every_key_with_its_default() -> None:
    page = reference.configuration()
    assert "| `rho` | number | `0.5` | share of" in page
    assert "## Others" not in page


def test_the_reference_has_every_name_once() -> None:
    listed = f"{reference.trainers()}\n{reference.parts()}"
    assert sorted(hf.__all__) == sorted(
        line.removeprefix("### ") for line in listed.splitlines() if line.startswith("### ")
    )


def test_every_mark_on_a_page_stands_for_something() -> None:
    used = {
        mark
        for page in DOCS.rglob("*.md")
        for mark in reference.MARK.findall(page.read_text(encoding="utf-8"))
    }
    assert used == set(reference.PARTS)


def test_a_dead_link_and_a_fetch_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html#there"></a><a href="#nowhere"></a>'
        '<a href="c.html"></a><a href="https://example.org/"></a>'
        '<script src="https://example.org/x.js"></script><img src="d.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html"></a>')
    (tmp_path / "s.css").write_text("@import 'https://example.org/f.css'; a {b: url(x.png)}")
    said = list(check_site.faults(tmp_path))
    assert [line.split(" ")[0] for line in said] == ["a.html"] * 4 + ["s.css"]
    assert all(
        any(what in line for line in said) for what in ("x.js", "d.png", "c.html", "#nowhere")
    )
    assert list(check_site.faults(tmp_path / "empty")) != []
