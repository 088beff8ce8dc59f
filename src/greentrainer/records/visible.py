"""Text of others on a terminal, which takes some characters for orders."""

_ORDERS = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}
_TABLE = str.maketrans(dict.fromkeys(_ORDERS, "\N{REPLACEMENT CHARACTER}"))


def visible(text: str) -> str:
    """The text with a mark in the place of each character that would move a cursor or more."""
    return text.translate(_TABLE)
