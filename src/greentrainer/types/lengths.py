"""Lengths that rows are padded to."""

SPARE = 8
"""By less than one part in so many a length is padded."""


def rounded(size: int, multiple: int | None = None, least: int = 1) -> int:
    """A length at least so large.

    A multiple of `multiple`, or else of the greatest power of two within `SPARE`; least: which it
    is a multiple of then in any case.
    """
    if multiple is None:
        multiple = max(least, 1 << max(0, (size // SPARE).bit_length() - 1))
    return -(-size // multiple) * multiple
