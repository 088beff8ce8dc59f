"""The head of a GGUF file, walked through once: no list in it is longer than the file is.

The package that reads such a file believes the lengths that it names, and would go on for days.
"""

import struct
from pathlib import Path
from typing import IO

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its kind."""
_TEXT, _LIST = 8, 9
_DEEPEST = 8


def require_sound(path: Path) -> None:
    """Raise ValueError where the head names a length that the file has no room for."""
    with path.open("rb") as file:
        _Head(file, path.stat().st_size).walk()


class _Head:
    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size, self.order = file, size, "<"

    def walk(self) -> None:
        """From the first byte to the last of what the file says of itself and of its tensors."""
        self.file.seek(4)
        version = self._number(4)
        if not version & 0xFFFF:  # written in the other order of bytes
            self.order = ">"
        tensors, fields = self._number(8), self._number(8)
        for _ in range(fields):
            self._skip(self._number(8))
            self._value(self._number(4), 0)
        for _ in range(tensors):  # a name, sizes, a kind and a place
            self._skip(self._number(8))
            self._skip(8 * self._number(4) + 12)

    def _number(self, size: int) -> int:
        read = self.file.read(size)
        if len(read) < size:
            raise ValueError("it ends in its head")
        return int(struct.unpack(f"{self.order}{'I' if size == 4 else 'Q'}", read)[0])

    def _skip(self, size: int) -> None:
        if size > self.size - self.file.tell():
            raise ValueError("a length goes past its end")
        self.file.seek(size, 1)

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _TEXT:
            self._skip(self._number(8))
        elif kind == _LIST and depth < _DEEPEST:
            inner, count = self._number(4), self._number(8)
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                return
            for _ in range(count):  # each takes a few bytes: it ends with the file
                self._value(inner, depth + 1)
        else:
            raise ValueError(f"a value is of kind {kind}")
