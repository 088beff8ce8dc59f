"""Tables, plots, pages and cards, drawn from the files of a folder alone: start with `run.py`.

matplotlib is loaded when something is drawn.  Nothing here runs or imports a model.
"""

from greentrainer.report.bill import bill_table, energy_rows, spent_seconds
from greentrainer.report.draw import draw, draw_comparison, write_card, write_plan
from greentrainer.report.masks import grid
from greentrainer.report.plan import head as plan_head
from greentrainer.report.plan import tables as plan_tables
from greentrainer.report.shelf import runs_in, shelf
from greentrainer.report.tables import SCORES

__all__ = [
    "SCORES",
    "bill_table",
    "draw",
    "draw_comparison",
    "energy_rows",
    "grid",
    "plan_head",
    "plan_tables",
    "runs_in",
    "shelf",
    "spent_seconds",
    "write_card",
    "write_plan",
]
