"""DialogSum (Chen et al., 2021): a conversation in, its summary out."""

from greentrainer.tasks.base import Example
from greentrainer.tasks.published import Dataset, Form, summary
from greentrainer.tasks.row import Row


def example(row: Row, form: Form) -> Example:
    """A dialogue; the test rows of the publisher have three summaries, `summary1` to `summary3`."""
    several = [name for name in ("summary1", "summary2", "summary3") if name in row.values]
    references = tuple(row.text(name) for name in several or ["summary"])
    return summary(row.text("dialogue"), references, form)


DIALOGSUM = Dataset("dialogsum", "knkarthick/dialogsum", ("rouge",), example, merges=True)
