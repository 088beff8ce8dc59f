"""The pictures of `docs/method.md`, as SVG: `python tools/pictures.py` (part of `make figures`).

Their numbers are of examples, and say so; what was measured is drawn from `benchmarks/results`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
WIDTH = 720
GREEN, PALE, GREY, DARK, MUTED = "#2da44e", "#d9efdc", "#e4e4e4", "#1b1b1b", "#6e6e6e"


def box(
    x: float, y: float, w: float, h: float, fill: str = GREY, dashed: bool = False, r: float = 4
) -> str:
    """A rectangle."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" fill="{fill}" '
        f'stroke="{DARK}" stroke-width="0.8"{dash}/>'
    )


def text(
    x: float, y: float, said: str, size: int = 13, anchor: str = "middle", fill: str = DARK,
    weight: str = "normal",
) -> str:  # fmt: skip
    """A line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{said}</text>'
    )


def arrow(
    x1: float, y1: float, x2: float, y2: float, colour: str = DARK, width: float = 1.4
) -> str:
    """A straight arrow."""
    head = "green" if colour == GREEN else "dark"
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
        f'stroke-width="{width:g}" marker-end="url(#{head})"/>'
    )


def picture(title: str, height: int, parts: Iterator[str]) -> str:
    """A picture of these parts on white."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="{fill}"/>'
        "</marker>"
        for name, fill in (("dark", DARK), ("green", GREEN))
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        "font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\">\n"
        f"<title>{title}</title>\n<defs>{heads}</defs>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def step() -> str:
    """Where the FLOPs of a step go."""

    def parts() -> Iterator[str]:
        left, third, high = 150, 168, 34
        rows = [
            ("full fine-tuning", 1.0, 1.0, "3 of 3"),
            ("LoRA", 1.0, 0.0, "about 2 of 3"),
            ("green, rho 0.5", 0.25, 0.25, "1.5 of 3"),
        ]
        yield text(left + third / 2, 24, "forward pass", 13)
        yield text(left + third * 1.5, 24, "passing gradient on", 13)
        yield text(left + third * 2.5, 24, "gradients of weights", 13)
        for number, (name, onward, own, total) in enumerate(rows):
            y = 38 + number * 54
            yield text(left - 12, y + 22, name, 13, "end", weight="bold")
            yield box(left, y, third, high)
            if onward:
                yield box(left + third, y, third * onward, high, PALE)
            start = left + third * (1 + onward)
            if own:
                yield box(start, y, third * own, high, GREEN)
            yield text(start + third * own + 10, y + 22, total, 12, "start", MUTED)
        yield text(left, 212, "Each is one product with every weight matrix: a third.", 12, "start",
                   MUTED)  # fmt: skip

    return picture("Where the FLOPs of a step go", 226, parts())


def reach() -> str:
    """Which tensors a gradient reaches, and what has to be computed for it."""

    def parts() -> Iterator[str]:
        chosen = {3: (1,), 4: (0, 2), 6: (1, 2, 3), 7: (0, 1, 2, 3)}
        left, step_, wide = 74, 75, 58
        yield text(left - 24, 94, "rows", 13, "end")
        for block in range(8):
            x = left + block * step_
            fill = PALE if block >= 3 else "#f6f6f6"
            yield box(x, 48, wide, 84, fill, dashed=block < 3)
            yield text(x + wide / 2, 40, f"block {block + 1}", 11, fill=MUTED)
            for place in range(4):
                tx, ty = x + 8 + (place % 2) * 23, 58 + (place // 2) * 36
                on = place in chosen.get(block, ())
                yield box(tx, ty, 18, 28, GREEN if on else GREY, r=3)
        yield arrow(left - 20, 90, left - 2, 90)
        end = left + 8 * step_
        yield text(end + 16, 94, "loss", 13)
        yield arrow(end - 12, 150, left + 3 * step_ + 4, 150, GREEN, 3)
        yield text((end + left + 3 * step_) / 2, 170, "gradient is passed on as far as the deepest "
                   "chosen tensor", 12)  # fmt: skip
        yield text(left + 1.5 * step_ - 8, 155, "forward pass only", 12, fill=MUTED)
        yield box(left, 186, 14, 14, GREEN, r=3)
        yield text(
            left + 22, 198, "trained: its gradient is computed, and it is updated", 12, "start"
        )
        yield box(left + 340, 186, 14, 14, GREY, r=3)
        yield text(left + 362, 198, "frozen until the next choice", 12, "start")

    return picture("What is computed for a choice of tensors", 212, parts())


def loop() -> str:
    """Measure, price, choose, train, and again."""

    def parts() -> Iterator[str]:
        words = [
            ("measure", "what would each", "tensor's own update", "do to the loss?"),
            ("price", "what does training", "any set of tensors", "cost, exactly?"),
            ("choose", "the set worth most", "within the budget,", "a knapsack"),
            ("train", "freeze the rest,", "make the next steps,", "count what they cost"),
        ]
        for number, (name, *lines) in enumerate(words):
            x = 14 + number * 178
            yield box(x, 20, 152, 100, PALE if number < 3 else "#f6f6f6")
            yield text(x + 76, 46, name, 15, weight="bold")
            for line, said in enumerate(lines):
                yield text(x + 76, 68 + 18 * line, said, 12)
            if number < 3:
                yield arrow(x + 154, 70, x + 176, 70)
        yield (
            f'<path d="M 624 122 V 150 H 90 V 124" fill="none" stroke="{DARK}" '
            'stroke-width="1.4" marker-end="url(#dark)"/>'
        )
        yield text(357, 144, "again, a few times in a run", 12, fill=MUTED)

    return picture("The loop: measure, price, choose, train", 166, parts())


def positions() -> str:
    """A row cut in two: gradient passes through the tail only."""

    def parts() -> Iterator[str]:
        left, wide = 20, 27.2
        for place in range(25):
            x = left + place * wide
            fill = GREEN if place >= 19 else PALE if place >= 15 else GREY
            yield box(x, 60, wide - 3, 40, fill, r=3)
        tail, labelled, end = left + 15 * wide, left + 19 * wide, left + 25 * wide - 3
        yield box((left + tail) / 2 - 36, 68, 70, 24, GREY, r=12)
        yield text((left + tail) / 2, 85, "prefix", 13)
        yield text((left + labelled) / 2, 26, "the prompt", 13, weight="bold")
        yield text((labelled + end) / 2, 26, "the completion", 13, weight="bold")
        for a, b in ((left, labelled - 4), (labelled, end)):
            yield (
                f'<path d="M {a:g} 50 V 40 H {b:g} V 50" fill="none" stroke="{MUTED}" '
                'stroke-width="1"/>'
            )
        yield arrow(end, 122, tail + 2, 122, GREEN, 3)
        yield text((tail + end) / 2, 144, "the tail: gradient passes here", 12)
        yield arrow(tail - 190, 122, tail - 4, 122)
        yield text(tail - 100, 144, "keys and values are handed on", 12)
        yield text(left + 88, 126, "forward pass, no gradient", 12, fill=MUTED)
        yield box((labelled + end) / 2 - 36, 68, 72, 24, GREEN, r=12)
        yield text((labelled + end) / 2, 85, "labels", 13, fill="#ffffff", weight="bold")

    return picture("Gradient through the end of a row", 160, parts())


def budget() -> str:
    """One budget spent in three ways."""

    def parts() -> Iterator[str]:
        left, unit = 176, 42.0
        ways = [("whole steps", 1.0, 1.0, 7), ("a short tail", 0.7, 0.9, 10),
                ("a few tensors", 0.5, 0.4, 14)]  # fmt: skip
        for number, (name, cost, worth, count) in enumerate(ways):
            y = 20 + number * 62
            yield text(left - 14, y + 16, name, 13, "end", weight="bold")
            yield text(left - 14, y + 33, f"cost {cost:g}, worth {worth:g}", 11, "end", MUTED)
            for place in range(count):
                x, w = left + place * unit * cost, unit * cost - 2
                yield box(x, y, w, 38, "#f6f6f6", r=2)
                yield box(
                    x, y + 38 * (1 - worth), w, 38 * worth, GREEN if number == 1 else PALE, r=2
                )
            yield text(left + 7 * unit + 12, y + 24, f"{count} x {worth:g} = {count * worth:g}", 14,
                       "start", weight="bold" if number == 1 else "normal")  # fmt: skip
        yield arrow(left, 206, left + 7 * unit - 2, 206)
        yield text(
            left + 3.5 * unit, 224, "the budget: what seven whole steps cost", 12, fill=MUTED
        )
        yield text(left + 7 * unit + 12, 212, "progress", 12, "start", MUTED)

    return picture("One budget, three ways to spend it (an example)", 236, parts())


PICTURES: dict[str, Callable[[], str]] = {
    "method-step": step,
    "method-reach": reach,
    "method-loop": loop,
    "method-positions": positions,
    "method-budget": budget,
}


def path(name: str) -> Path:
    """Where a picture lies."""
    return FIGURES / f"{name}.svg"


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        path(name).write_text(draw(), encoding="utf-8")
        print(path(name).name)
