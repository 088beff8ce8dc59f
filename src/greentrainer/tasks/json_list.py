"""A long list in JSON, element by element: a piece of the file and an element are in memory."""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PIECE = 2**20
"""Bytes that are read at a time."""
_NEAR = 16
"""An error so near to the end of what was read may be that end's (in characters)."""
_OPEN = "Unterminated string"
"""How the parser's error begins where a text has no end, which is told of its beginning."""
_BLANK = re.compile("[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


def elements(path: Path, file: IO[bytes]) -> Iterator[object]:
    """The elements of the list in a file (UTF-8), as they come.

    Raises ValueError, naming the line, for what is no JSON, and no UTF-8.
    """
    text = _Text(path, file)
    text.take("[")
    more = text.mark() != "]"
    if not more:
        text.take("]")
    while more:
        yield text.value()
        more = text.mark() == ","
        text.take("," if more else "]")
    if text.mark():
        raise text.wrong("Extra data")


class _Text:
    """What was read of a file and not yet taken, from the place `at` on, in line `line`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.decoder = getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def mark(self) -> str:
        """The next character that is no white space, which is not taken; nothing at the end."""
        while True:
            found = _BLANK.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, mark: str) -> None:
        """Pass over the mark that must come next."""
        if self.mark() != mark:
            raise self.wrong("Expecting ',' delimiter")
        self.at += 1

    def value(self) -> object:
        """Take the next value."""
        self.mark()
        while True:
            try:
                value, end = _decode(self.text, self.at)
                number = isinstance(value, (int, float)) and end > len(self.text) - _NEAR
                if not number or not self._more():  # which has no mark at its end
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith(_OPEN) or error.pos > len(self.text) - _NEAR
                if not cut or not self._more():
                    raise self.wrong(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.wrong(str(error)) from error

    def wrong(self, reason: str, at: int | None = None) -> ValueError:
        """That the text is no JSON, at this place or where it stands."""
        line = self.line + self.text.count("\n", 0, self.at if at is None else at)
        return ValueError(
            f"{self.path}, line {line}: not JSON ({reason}): write objects with named texts"
        )

    def _more(self) -> bool:
        """Read on, as much again as is there (so that a long element is not read often)."""
        if self.ended:
            return False
        piece = self.file.read(max(_PIECE, len(self.text) - self.at))
        self.ended = not piece
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        try:
            self.text += self.decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].count(b"\n") + self.text.count("\n")
            raise ValueError(
                f"{self.path}, line {self.line + before}: not UTF-8: save the file as UTF-8"
            ) from error
        return True
