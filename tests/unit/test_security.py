"""What `docs/security.md` says of the code as a whole: nothing that is read is ever run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "greentrainer"
FILES = sorted(SOURCE.rglob("*.py"))
RUN = {"eval", "exec", "compile", "__import__", "input"}
"""Built-in functions that turn a text into a program."""
PICKLES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "pandas.read_pickle", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive",
}  # fmt: skip


def wrong(tree: ast.AST) -> Iterator[str]:
    """What is not allowed, with its line."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if found := PICKLES & {name.split(".")[0] for name in names}:
            yield f"line {node.lineno}: imports {min(found)}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {said}" for said in _call(node))


def _call(node: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(node.func), {key.arg: key.value for key in node.keywords}

    def told(key: str) -> object:
        value = given.get(key)
        return value.value if isinstance(value, ast.Constant) else None

    if name in RUN or name in UNSAFE:
        yield f"calls {name}"
    if name == "torch.load" and told("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and told("allow_pickle") is not False:
        yield "np.load without allow_pickle=False"
    if "autoescape" in given and told("autoescape") is not True:
        yield "pages without autoescape=True"
    for key in ("trust_remote_code", "allow_pickle", "shell", "allow_all_kernels"):
        if key in given and told(key) is not False:
            yield f"{key} is not False"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert list(wrong(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=asked)",
        "Environment(autoescape=False)",
    ],
)
def test_what_is_wrong_is_found(text: str) -> None:
    assert len(list(wrong(ast.parse(text)))) == 1


def test_what_a_model_is_loaded_with_says_no() -> None:
    """Each dictionary of options too, where they are handed on by `**`."""
    said = [
        (path.name, ast.unparse(value))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
    ]
    assert said
    assert all(value == "False" for _, value in said)


def test_the_document_names_files_that_are_there() -> None:
    text = (SOURCE.parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w/]+\.py)`", text)
    assert len(names) > 25
    roots = (SOURCE, SOURCE.parents[1])
    assert [name for name in names if not any((root / name).is_file() for root in roots)] == []
