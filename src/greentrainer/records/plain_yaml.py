"""YAML as values, within bounds: a file of a few lines can stand for more than any memory holds."""

from typing import Any

MOST = 200_000
"""Values that a document may come to, each counted as often as it is referred to."""
DEEPEST = 100
"""How far one may lie within others."""


def read_yaml(text: str) -> Any:
    """What a YAML document holds: plain values only.

    Raises ValueError, in one line, for what is no YAML, and for a document that is too deep, holds
    itself, or comes to more than `MOST` values where it refers to itself again and again.
    """
    import yaml

    class Bounded(yaml.SafeLoader):
        """Composes one level more only where that is allowed."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            """A node, and all in it."""
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels, one within the other")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        loader = Bounded(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise ValueError(f"more than {MOST} values, with all that it refers to")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (KeyError, AttributeError, IndexError, TypeError, OverflowError) as error:
        # what the library makes of `!!bool 1`, `!!timestamp x` and the like
        raise ValueError(f"a value that is not what its tag says ({error})") from error


def _size(node: Any, known: dict[int, int | None]) -> int:
    """Values that a node comes to.  Raises ValueError for one that holds itself."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise ValueError("it holds itself")
        return size
    known[id(node)] = None
    inside = [] if isinstance(node.value, str) else node.value
    parts = (part for one in inside for part in (one if isinstance(one, tuple) else (one,)))
    known[id(node)] = size = 1 + sum(_size(part, known) for part in parts)
    return size
