"""The house: which package stands on which floor, read off the imports and drawn as one picture.

`python tools/architecture.py` draws `docs/figures/architecture.svg`.  `tests/unit/test_floors.py`
holds the imports against `FLOORS`: a package imports only from floors below its own.
"""

import ast
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "greentrainer"
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "model", "records", "energy"),
    ("cost", "select", "report", "config", "tasks"),
    ("forward", "importance"),
    ("budget",),
    ("engine",),
    ("hf",),
    ("methods",),
    ("run",),
    ("plan", "compare"),
    ("cli",),
)
"""From the ground up."""
METHOD = {"types", "cost", "importance", "select", "forward", "budget", "engine"}
"""What the paper's method is, and what goes beyond it; the rest is a house around that."""


@dataclass(frozen=True)
class Import:
    """`from greentrainer.MODULE import NAME` in a file.  room: of the file; package: of MODULE."""

    file: Path
    line: int
    room: str
    module: str
    name: str

    @property
    def package(self) -> str:
        """The room that is imported from."""
        return (self.module or self.name).partition(".")[0]


def floor_of(room: str) -> int:
    """Its floor, from 1.  Raises ValueError for a room that is on none."""
    for number, rooms in enumerate(FLOORS, 1):
        if room in rooms:
            return number
    raise ValueError(f"{room} stands on no floor: add it to FLOORS in tools/architecture.py")


def room_of(path: Path) -> str:
    """The package, or the module beside the packages, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    """What a file imports from the package, at its head or late."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "greentrainer":
            module = (node.module or "").removeprefix("greentrainer").lstrip(".")
            for alias in node.names:
                yield Import(path, node.lineno, room_of(path), module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name.removeprefix("greentrainer.")
                if module != alias.name:
                    yield Import(path, node.lineno, room_of(path), module, "")


def files() -> list[Path]:
    """Every file of a room."""
    return sorted(
        path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[0] != "_"
    )


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms that it imports from."""
    found: dict[str, set[str]] = {room: set() for rooms in FLOORS for room in rooms}
    for path in files():
        for one in imports(path):
            if one.package != one.room:
                found[one.room].add(one.package)
    return found


def reduced(found: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a way over other rooms implies."""

    def reach(room: str) -> set[str]:
        return set().union(*({below} | reach(below) for below in found[room]), set())

    return {
        room: {one for one in below if not any(one in reach(other) for other in below - {one})}
        for room, below in found.items()
    }


def says(room: str) -> str:
    """What belongs in a room: the first clause of its docstring."""
    path = SOURCE / room / "__init__.py"
    path = path if path.exists() else SOURCE / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"[:;.](?:\s|$)", text)[0].replace("`", "").replace("\n", " ")


WIDTH, HEIGHT, GAP = 17.0, 0.62, 0.5


def draw() -> str:
    """The picture as SVG: floors from the ground up, and the arrows that no others imply."""
    import textwrap

    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    settings = {"svg.hashsalt": "architecture", "svg.fonttype": "none", "text.parse_math": False}
    with mpl.rc_context(settings), io.StringIO() as out:
        figure = Figure(figsize=(12.5, 11), layout="constrained")
        ax = figure.subplots()
        places: dict[str, tuple[float, float]] = {}
        for number, rooms in enumerate(FLOORS):
            step = WIDTH / len(rooms)
            for place, room in enumerate(rooms):
                places[room] = (step * (place + 0.5), number)
        for room, below in reduced(arrows()).items():
            for other in sorted(below):
                (x1, y1), (x2, y2) = places[room], places[other]
                ax.add_patch(
                    FancyArrowPatch(
                        (x1, y1 - HEIGHT / 2), (x2, y2 + HEIGHT / 2), arrowstyle="-|>",
                        mutation_scale=9, color="#9a9a9a", lw=0.9, zorder=1,
                        connectionstyle=f"arc3,rad={0.04 * (x1 - x2) / WIDTH}",
                    )
                )  # fmt: skip
        for room, (x, y) in places.items():
            half = min(1.62, WIDTH / len(FLOORS[int(y)]) / 2 - 0.06)
            face = "#d9efdc" if room in METHOD else "#f2f2f2"
            ax.add_patch(
                FancyBboxPatch(
                    (x - half, y - HEIGHT / 2), 2 * half, HEIGHT, "round,pad=0,rounding_size=0.08",
                    facecolor=face, edgecolor="#1b1b1b", lw=0.8, zorder=2,
                )
            )  # fmt: skip
            ax.text(x, y + 0.17, f"{room}", ha="center", va="center", fontsize=10, weight="bold",
                    zorder=3)  # fmt: skip
            text = textwrap.fill(says(room), 38)
            ax.text(x, y - 0.1, text, ha="center", va="center", fontsize=7, zorder=3)
        for number in range(len(FLOORS)):
            ax.text(-0.35, number, str(number + 1), ha="center", va="center", color="#6e6e6e")
        ax.set(xlim=(-0.6, WIDTH + 0.1), ylim=(-0.5, len(FLOORS) - 0.5))
        ax.axis("off")
        figure.savefig(out, format="svg", metadata={"Date": None}, facecolor="white")
        text = out.getvalue()
    return text[text.index("<svg") :]


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
