"""Summarising functions: what is cut out, what is kept, and how the splits are made."""

import ast
import os
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.tasks import Example, load, pydoc
from greentrainer.tasks.pydoc import CUE, PyDoc, scan, split_of
from tests.tiny import refusal

BODY = """\
    total = width * height  # both are given in metres
    if total < 0:
        raise ArithmeticError("an area is never negative")
    return total
"""
HEAD = "def area(width, height):\n"
SUMMARY = "Return the area of a rectangle."
DOCSTRING = f'    """{SUMMARY}\n\n    It is a product: of two lengths.\n    """\n'
FUNCTION = HEAD + DOCSTRING + BODY
STANDARD = PyDoc()
SPLITS = ("train", "validation", "test")


def library(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return folder


def found(folder: Path, source: str) -> list[Example]:
    entries = scan(library(folder, {"some_module.py": source})).entries
    return [entry.example for entry in entries]


def numbered(number: int) -> str:
    """A function with other code and another summary than those of other numbers."""
    source = FUNCTION.replace("rectangle", f"rectangle, version {number}")
    return source.replace("area(", f"area_{number}(")


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    trap = f"open({str(marker)!r}, 'w').close()\n"
    root = library(tmp_path / "lib", {"__init__.py": trap, "trap.py": trap + FUNCTION})
    assert len(scan(root).entries) == 1
    assert not marker.exists()
    assert "trap" not in sys.modules


WRAPPED = "@functools.cache\n@other(\n    1,\n)\n"
INNER = textwrap.indent(FUNCTION, "    ") + "    return area\n"
OUTER = "def outer():\n"
FORMS = {
    "plain": (FUNCTION, HEAD + BODY),
    "async": ("async " + FUNCTION, "async " + HEAD + BODY),
    "decorated": (WRAPPED + FUNCTION, WRAPPED + HEAD + BODY),
    "method": ("class Shape:\n    side = 1\n\n" + textwrap.indent(FUNCTION, "    "), HEAD + BODY),
    "in a branch": ("try:\n" + textwrap.indent(FUNCTION, "    ") + "except E: pass", HEAD + BODY),
    "line ends": (FUNCTION.replace("\n", "\r\n"), HEAD + BODY),
    "long head": (
        FUNCTION.replace("(width,", "(\n    width: int,  # across\n   "),
        (HEAD + BODY).replace("(width,", "(\n    width: int,  # across\n   "),
    ),
    "inner kept": (
        OUTER + DOCSTRING.replace("rectangle", "circle") + INNER,
        OUTER + INNER,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_docstring_is_cut_and_the_rest_is_intact(form: str, tmp_path: Path) -> None:
    source, prompt = FORMS[form]
    summary = SUMMARY.replace("rectangle", "circle") if form == "inner kept" else SUMMARY
    assert found(tmp_path, source) == [Example(prompt.rstrip(), summary, CUE)]


UNFIT = {
    "no docstring": HEAD + BODY,
    "no sentence": FUNCTION.replace(SUMMARY, "area of a rectangle in metres"),
    "short summary": FUNCTION.replace(SUMMARY, "Return the area."),
    "trivial": HEAD + DOCSTRING + "    return width * height\n",
    "huge": FUNCTION + "    print(total)\n" * 200,
    "code beside it": FUNCTION.replace('    """\n', '    """; print()\n'),
    "in one line with the head": HEAD.rstrip() + f' """{SUMMARY}"""',
    "told in the code": FUNCTION.replace("never negative", f"never: {SUMMARY.upper()}"),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_is_unfit_is_left_out(reason: str, tmp_path: Path) -> None:
    assert found(tmp_path, UNFIT[reason]) == []


def test_of_the_same_code_or_summary_the_first_is_kept(tmp_path: Path) -> None:
    other_words = FUNCTION.replace("a rectangle", "any rectangle")
    other_code = FUNCTION.replace("total", "product")
    examples = found(tmp_path, FUNCTION * 2 + other_words + other_code)
    assert examples == [Example((HEAD + BODY).rstrip(), SUMMARY, CUE)]


def test_unreadable_files_are_counted_and_skipped(tmp_path: Path) -> None:
    broken: dict[str, str | bytes] = {
        "syntax.py": "def f(:\n",
        "not_utf8.py": b"x = '\xff'\n",
        "null.py": "x = 1\0\n",
        "nested.py": "x = " + "-" * 100_000 + "1\n",
        "cookie.py": "# coding: no-such-code\n",
    }
    read: dict[str, str | bytes] = {
        "good.py": FUNCTION,
        "deep.py": "x = " + "+".join("a" * 2000) + "\n",
    }
    result = scan(library(tmp_path, broken | read))
    assert (result.files, result.unreadable) == (len(read), len(broken))
    assert [entry.module for entry in result.entries] == ["good"]


def test_a_file_in_another_encoding_is_read(tmp_path: Path) -> None:
    source = "# coding: latin-1\n" + FUNCTION.replace("metres", "m\xe8tres")
    root = library(tmp_path, {"latin.py": source.encode("latin-1")})
    assert "m\xe8tres" in scan(root).entries[0].example.prompt


@pytest.mark.parametrize("folder", ["site-packages", "test", "idlelib", "pkg/tests"])
def test_tests_and_installed_packages_are_left_out(folder: str, tmp_path: Path) -> None:
    root = library(tmp_path, {f"{folder}/mod.py": FUNCTION, "pkg/mod.py": numbered(1)})
    result = scan(root)
    assert (result.files, [entry.module for entry in result.entries]) == (1, ["pkg"])


def test_a_folder_without_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no code")
    for root in (tmp_path, tmp_path / "missing"):
        with refusal("no Python source", str(root)):
            PyDoc(root).examples("train")


def test_an_unknown_split_is_refused() -> None:
    with refusal("'dev'", "train, validation, test"):
        STANDARD.examples("dev")


def test_no_module_is_in_two_splits_of_the_standard_library() -> None:
    modules = [STANDARD.modules(split) for split in SPLITS]
    assert sum(map(len, modules)) == len(set.union(*modules))
    sizes = [len(STANDARD.examples(split)) for split in SPLITS]
    assert sum(sizes) == len(scan(Path(sysconfig.get_path("stdlib"))).entries)
    assert min(sizes) > 50
    assert sizes[0] > 1000
    assert STANDARD.describe().startswith(f"pydoc: {sizes[0]:,} train, {sizes[1]} validation")


def test_the_name_loads_the_standard_library() -> None:
    assert load("pydoc") == STANDARD
    assert load("pydoc").name == "pydoc"


@pytest.mark.parametrize("split", SPLITS)
def test_no_summary_is_inside_its_prompt(split: str) -> None:
    for example in STANDARD.examples(split):
        assert example.completion.rstrip(".").lower() not in example.prompt.lower()
        assert example.cue == CUE


def test_no_code_or_summary_of_the_standard_library_comes_twice() -> None:
    everything = [example for split in SPLITS for example in STANDARD.examples(split)]
    assert len({"".join(e.prompt.split()) for e in everything}) == len(everything)
    assert len({e.completion.lower() for e in everything}) == len(everything)


def codes(path: Path) -> Iterator[str]:
    """Syntax of each function of a file, less its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, pydoc.Function) and ast.get_docstring(node):
            del node.body[0]  # functions inside this one come later, whole until then
            yield ast.dump(node)


@pytest.mark.parametrize("module", ["tarfile", "_pydecimal", "smtplib", "inspect"])
def test_a_prompt_is_the_authors_code(module: str, tmp_path: Path) -> None:
    source = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
    root = library(tmp_path, {source.name: source.read_bytes()})
    originals = set(codes(source))
    prompts = [entry.example.prompt for entry in scan(root).entries]
    assert len(prompts) > 5
    for prompt in prompts:
        (function,) = ast.parse(prompt).body
        assert ast.dump(function) in originals


@pytest.mark.thorough
def test_order_is_the_same_in_every_process(tmp_path: Path) -> None:
    root = library(tmp_path, {f"mod_{i}.py": numbered(i) for i in range(20)})
    script = (
        "import pathlib, sys; from greentrainer.tasks.pydoc import PyDoc, scan;"
        "task = PyDoc(pathlib.Path(sys.argv[1]));"
        "print([(task.examples(s), sorted(task.modules(s))) for s in ('train', 'test')])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, str(root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    task = PyDoc(root)
    here = [(task.examples(s), sorted(task.modules(s))) for s in ("train", "test")]
    assert outputs == {f"{here}\n".encode()}
    assert len(here[0][0]) > 5


def test_other_modules_do_not_move_an_example(tmp_path: Path) -> None:
    files = {f"mod_{i}.py": numbered(i) for i in range(20)}
    few = PyDoc(library(tmp_path / "few", {name: files[name] for name in list(files)[:10]}))
    many = PyDoc(library(tmp_path / "many", dict(files)))
    for split in SPLITS:
        shared = set(few.examples(split))
        assert [e for e in many.examples(split) if e in shared] == few.examples(split)


@settings(deadline=None)
@given(st.text("abc_", min_size=1).filter(lambda name: name[0] != "_"))
def test_a_module_and_its_other_implementation_share_a_split(name: str) -> None:
    assert split_of(name) == split_of(f"_{name}") == split_of(f"_py{name}")


def test_splits_have_their_shares_of_many_modules() -> None:
    splits = [split_of(f"module{i}") for i in range(10_000)]
    assert splits.count("test") / 10_000 == pytest.approx(0.15, abs=0.015)  # 4 deviations
    assert splits.count("validation") / 10_000 == pytest.approx(0.10, abs=0.012)
