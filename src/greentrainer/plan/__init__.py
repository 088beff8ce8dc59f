"""What each budget would buy, before anything is trained: start with `planner.py`.

Costs and memory are told from the configuration alone; what is trained in the end, `engine` says.
"""

from greentrainer.plan.planner import Planner
from greentrainer.plan.probe import probe
from greentrainer.plan.start import fitting, propose

__all__ = ["Planner", "fitting", "probe", "propose"]
