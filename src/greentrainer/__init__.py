"""GreenTrainer: fine-tune a language model for a stated share of full fine-tuning's compute."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, not at its first use: the package of the same name would take its place when imported.
from greentrainer.select import select as select

if TYPE_CHECKING:
    from greentrainer.budget import Budget as Budget
    from greentrainer.cost import trace as trace
    from greentrainer.engine import AdaptiveBackprop as AdaptiveBackprop
    from greentrainer.importance import measure_importance as measure_importance
    from greentrainer.records import Ledger as Ledger
    from greentrainer.types import CostGraph as CostGraph
    from greentrainer.types import Selection as Selection

__version__ = "0.1.0"

_HOME = {
    "AdaptiveBackprop": "greentrainer.engine",
    "Budget": "greentrainer.budget",
    "CostGraph": "greentrainer.types",
    "Ledger": "greentrainer.records",
    "Selection": "greentrainer.types",
    "measure_importance": "greentrainer.importance",
    "trace": "greentrainer.cost",
}
__all__ = sorted({*_HOME, "select"})


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `greentrainer --help` needs no torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
