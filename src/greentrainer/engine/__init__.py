"""`AdaptiveBackprop`: when tracing, probing, choosing and freezing each have their turn.

Start with `engine.py`.  It is a schedule over the packages below; what they compute is theirs.
"""

from greentrainer.engine.chooser import Selector
from greentrainer.engine.controller import PROBE_SHARE
from greentrainer.engine.engine import AdaptiveBackprop, StepsAsked, release
from greentrainer.engine.graph_cache import GraphCache
from greentrainer.engine.hollow import hollow
from greentrainer.engine.state import STATE_VERSION
from greentrainer.engine.traces import Traces
from greentrainer.engine.worth_probe import FEW

__all__ = [
    "FEW",
    "PROBE_SHARE",
    "STATE_VERSION",
    "AdaptiveBackprop",
    "GraphCache",
    "Selector",
    "StepsAsked",
    "Traces",
    "hollow",
    "release",
]
