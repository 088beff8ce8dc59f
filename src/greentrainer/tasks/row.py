"""A row of data with its place, and rows that are values already."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

TOLD = 500
"""Characters of a row's keys that an error names at most."""


@dataclass(frozen=True)
class Row:
    """One row.

    where: its file and line, for errors; values: by column.
    cells: whether the values are texts only (CSV), so that a list can only be spelled as JSON.
    unified: whether objects were all given the same keys (Parquet), None where they had none.
    """

    where: str
    values: Mapping[str, object]
    cells: bool = False
    unified: bool = False

    def listed(self, name: str) -> object:
        """The value of a column; a list that a cell spells as JSON is one."""
        value = self.values.get(name)
        if self.cells and isinstance(value, str) and value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                return value
            return found if isinstance(found, list) else value
        return value

    def key(self, *names: str) -> str:
        """The first of the names that the row has; raises ValueError naming those it has."""
        for name in names:
            if name in self.values:
                return name
        raise ValueError(self.lacks(*names))

    def lacks(self, *names: str) -> str:
        """That the row has none of these names, in words."""
        wanted = " or ".join(map(repr, names))
        have = ", ".join(map(repr, self.values))
        have = have if len(have) <= TOLD else f"{have[:TOLD]} ..."
        return f"{self.where}: no {wanted} among the keys {have}"

    def text(self, *names: str) -> str:
        """The text in the first of these columns that there is; raises ValueError if empty."""
        key = self.key(*names)
        return checked(self.values[key], f"{self.where}: {key!r}")

    def texts(self, *names: str, blanks: bool = False) -> tuple[str, ...]:
        """The texts of a column that holds one or a list (in CSV: a JSON list), at least one.

        blanks: whether empty items of a list are passed over; else they raise ValueError.
        """
        key = self.key(*names)
        value, where = self.values[key], f"{self.where}: {key!r}"
        value = _json_list(value) if self.cells and isinstance(value, str) else value
        if not isinstance(value, list):
            return (checked(value, where),)
        if blanks:
            value = [text for text in value if not isinstance(text, str) or text.strip()]
        if not value:
            raise ValueError(f"{where} is an empty list")
        return tuple(checked(text, f"{where}, item {i}") for i, text in enumerate(value, 1))


HALF = re.compile("[\ud800-\udfff]")
"""Of a surrogate pair one: JSON can spell it, and it is no text."""


def checked(value: object, where: str) -> str:
    """A value that must be a text with something in it; ValueError beginning with `where`."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}, not a text")
    if not value.strip():
        raise ValueError(f"{where} is empty")
    if not value.isascii() and HALF.search(value):
        raise ValueError(f"{where} holds half of a surrogate pair, which is no text")
    return value


def _json_list(text: str) -> object:
    """The list that a CSV cell spells, or the text itself."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    whole = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if whole else text


@dataclass(frozen=True)
class Numbered:
    """Rows that are values already, named by number from 1; made when they are asked for."""

    rows: Collection[Mapping[str, object]]
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        for number, values in enumerate(self.rows, 1):
            yield Row(f"{self.where}, row {number}", values, unified=True)
