"""Tables, plots and pages, drawn from files alone."""

from greentrainer.report.compare import Written, write
from greentrainer.report.draw import draw

__all__ = ["Written", "draw", "write"]
