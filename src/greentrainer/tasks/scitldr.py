"""SciTLDR (Cachola et al., 2020): the abstract of a paper in, a summary of one sentence out."""

from greentrainer.tasks.base import Example
from greentrainer.tasks.published import Dataset, Form, summary
from greentrainer.tasks.row import Row


def example(row: Row, form: Form) -> Example:
    """The abstract's sentences (some are empty) in one text; several summaries may be right."""
    return summary(" ".join(row.texts("source", blanks=True)), row.texts("target"), form)


SCITLDR = Dataset("scitldr", "allenai/scitldr", ("rouge",), example, config="Abstract")
