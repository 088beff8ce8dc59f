"""Methods side by side: a specification, runs in processes of their own, records, a summary.

Start with `study.py`.  A single run is `run`'s, pages are `report`'s.
"""

from greentrainer.compare.spec import read
from greentrainer.compare.study import Study

__all__ = ["Study", "read"]
