"""Benchmarks by name: `python benchmarks NAME [options]`; without a name, what there is.

A folder holds those of one kind; `shared/` what they have in common and what draws from results.
Each writes `results/NAME.json`.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent


def scripts() -> dict[str, Path]:
    """The files that can be run, by name."""
    found = sorted(path for path in HERE.glob("*/*.py") if "\ndef main(" in path.read_text())
    return {path.stem: path for path in found}


def summary(path: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def main() -> None:
    """Run the benchmark that was named."""
    found = scripts()
    name, *rest = sys.argv[1:] or [""]
    if name not in found:
        print("python benchmarks NAME [options], where NAME is one of")
        for known, path in found.items():
            print(f"  {known:20} {summary(path)}")
        sys.exit(f"error: no benchmark {name!r}" if name else 0)
    sys.argv = [name, *rest]
    path = found[name]
    import_module(f"{path.parent.name}.{name}").main()


if __name__ == "__main__":
    main()
