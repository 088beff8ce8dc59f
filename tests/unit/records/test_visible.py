"""Nothing that a terminal takes for an order is left in a text; all else is."""

from greentrainer.records import visible


def test_orders_are_marked_and_texts_are_not() -> None:
    assert visible("a\x1b]0;title\x07\r\x9b31m") == "a�]0;title���31m"
    assert visible("two\nlines\té 💩 日本") == "two\nlines\té 💩 日本"
