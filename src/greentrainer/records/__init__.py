"""What is written down: the ledger of a run, files that are whole at any moment, provenance.

Start with `ledger.py`.  What a run's files mean belongs to `run`, what they look like to `report`.
"""

from greentrainer.records.files import (
    Growing,
    read_lines,
    write_json,
    write_lines,
    write_text,
    written,
)
from greentrainer.records.ledger import Entry, Ledger
from greentrainer.records.provenance import processor, provenance

__all__ = [
    "Entry",
    "Growing",
    "Ledger",
    "processor",
    "provenance",
    "read_lines",
    "write_json",
    "write_lines",
    "write_text",
    "written",
]
