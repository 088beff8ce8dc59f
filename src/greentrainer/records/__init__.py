"""What is written down and told: the ledger, files whole at any moment, provenance, progress.

Start with `ledger.py`.  What a run's files mean belongs to `run`, what they look like to `report`.
"""

from greentrainer.records.crew import in_order, processes
from greentrainer.records.files import (
    Growing,
    read_lines,
    write_json,
    write_lines,
    write_text,
    written,
)
from greentrainer.records.interrupted import interrupted
from greentrainer.records.ledger import Entry, Ledger
from greentrainer.records.plain_yaml import read_yaml
from greentrainer.records.progress import Work, over, tell, working
from greentrainer.records.provenance import processor, provenance
from greentrainer.records.quiet import hush, quieten
from greentrainer.records.spill import Spill
from greentrainer.records.visible import visible

__all__ = [
    "Entry",
    "Growing",
    "Ledger",
    "Spill",
    "Work",
    "hush",
    "in_order",
    "interrupted",
    "over",
    "processes",
    "processor",
    "provenance",
    "quieten",
    "read_lines",
    "read_yaml",
    "tell",
    "visible",
    "working",
    "write_json",
    "write_lines",
    "write_text",
    "written",
]
