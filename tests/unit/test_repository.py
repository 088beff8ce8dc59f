"""Files around the code: those that machines read can be read, and agree with one another."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = (".github", ".github/*", ".")
YAML = sorted(
    path
    for folder in FOLDERS
    for ending in ("yml", "yaml", "cff")
    for path in ROOT.glob(f"{folder}/*.{ending}")
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def read(path: str) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def text(path: str) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", YAML, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_yaml_is_a_mapping(path: Path) -> None:
    assert isinstance(read(str(path)), dict)


def test_the_gates_are_the_script_of_the_repository() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["gates"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_a_release_is_tried_and_published_without_a_token() -> None:
    workflow = read(".github/workflows/release.yml")
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in text(".github/workflows/release.yml")


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_may_only_read_unless_a_job_says_more(name: str) -> None:
    workflow = read(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_has_what_a_form_must(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    [paper] = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Huang", "Yin", "Huang", "Gao",
    ]  # fmt: skip
    assert paper["year"] == 2024


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {PROJECT['version']}" in text("CHANGELOG.md")


def test_containers_take_what_is_tested() -> None:
    json.loads(text(".devcontainer/devcontainer.json"))
    pinned = re.findall(r"^torch==(\S+)$", text("constraints.txt"), re.MULTILINE)
    assert re.findall(r"^ARG TORCH=(\S+)$", text("Dockerfile"), re.MULTILINE) == pinned
    kept = set(re.findall(r"^!(\S+)$", text(".dockerignore"), re.MULTILINE))
    copied = [words for line in re.findall(r"^COPY (.+)$", text("Dockerfile"), re.MULTILINE)
              for words in line.split()[:-1]]  # fmt: skip
    assert set(copied) == kept


def test_constraints_name_no_build_of_a_package() -> None:
    """One that ends in `+cpu` is on no index but its own."""
    assert "+" not in text("constraints.txt").split("\n", 1)[1]


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    links = LINK.findall(path.read_text(encoding="utf-8"))
    inside = [link for link in links if "." in link and ":" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []
