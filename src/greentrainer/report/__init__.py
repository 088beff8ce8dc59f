"""Tables, plots and pages, drawn from JSON alone."""

from greentrainer.report.compare import Written, write

__all__ = ["Written", "write"]
