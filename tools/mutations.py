"""Valid files made wrong: bytes changed, or values of what they spell."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

TOKENS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b'"', b"'", b"{", b"}", b"[" * 2000, b"]",
    b":", b",", b"-", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"../../x", b"/etc/x",
    b"{{ 9**9 }}", b"{% for i in range(9) %}", b"{% endfor %}", b"&a [*a]", b"!!bool x",
    b"!!python/name:os.system ", b"\\ud800", b"<script>", b"$", b"%s", b"\xf0\x9f\x92\xa9",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", " ", "x",
    "../../x", "/etc/passwd", "\x00", "\ud800", "é" * 300, "<b>$x^{2}$</b>", [], {}, [[]], [None],
    {"": ""}, {"x": {"x": {"x": []}}}, [1, 2, 3], ["a", "b"], "9" * 400,
)  # fmt: skip


def bytewise(content: bytes, chance: random.Random) -> bytes:
    """A few places changed, taken out, doubled, moved or filled with something odd."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 200)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end]
        elif kind == 3:
            data[at:at] = chance.choice(TOKENS)
        elif kind == 4:
            data[at:end] = chance.randbytes(end - at)
        else:
            del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value with every key of it."""
    found: list[tuple[Any, Any]] = []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inside in items:
        found.append((value, key))
        found += _places(inside)
    return found


def changed(value: Any, chance: random.Random) -> Any:
    """The value with something in it replaced, taken out, renamed or put in another's place."""
    held = [deepcopy(value)]
    for _ in range(chance.choice((1, 1, 2, 4))):
        container, key = chance.choice(_places(held))
        others = [outer[name] for outer, name in _places(held)]
        kind = chance.randrange(5)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(chance.choice(VALUES))] = container.pop(key)
        elif kind == 2:
            container[key] = deepcopy(chance.choice(others))
        else:
            container[key] = deepcopy(chance.choice(VALUES))
    return held[0]


def _of_values(read: Callable[[str], Any], write: Callable[[Any], str]) -> Any:
    def mutated(content: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return bytewise(content, chance)
        value = changed(read(content.decode()), chance)
        return write(value).encode("utf-8", "surrogatepass")

    return mutated


json_values = _of_values(json.loads, json.dumps)
"""JSON with other values."""
yaml_values = _of_values(yaml.safe_load, lambda value: yaml.safe_dump(value, allow_unicode=False))
"""YAML with other values."""


def json_lines(content: bytes, chance: random.Random) -> bytes:
    """JSON lines, of which one or two have other values."""
    if chance.random() < 0.3:
        return bytewise(content, chance)
    lines = content.splitlines()
    for _ in range(chance.choice((1, 2))):
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode()
    return b"\n".join(lines) + b"\n"


def begun(content: bytes, chance: random.Random) -> bytes:
    """A file whose beginning says what the rest is (GGUF): bytes changed there, or behind."""
    size = chance.choice((64, 1024, 6000, len(content)))
    return bytewise(content[:size], chance) + content[size:]


def headed(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file: its header with other values, or bytes changed near its beginning."""
    size = int.from_bytes(content[:8], "little")
    if chance.random() < 0.4:
        return bytewise(content[: size + 64], chance) + content[size + 64 :]
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
