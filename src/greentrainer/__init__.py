"""GreenTrainer: fine-tune a language model for a stated share of full fine-tuning's compute."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greentrainer.budget import Budget as Budget
    from greentrainer.cost import trace as trace
    from greentrainer.engine import AdaptiveBackprop as AdaptiveBackprop
    from greentrainer.importance import measure_importance as measure_importance
    from greentrainer.records import Ledger as Ledger
    from greentrainer.select import select as select
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
    "select": "greentrainer.select",
    "trace": "greentrainer.cost",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `greentrainer --help` needs no torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, loaded or not."""
    return sorted({*globals(), *__all__})


class _Door(ModuleType):
    """This module, in which `select` stays the function.

    The package of that name would take its place when it is imported: Python sets a package that
    was imported as an attribute of the one above.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "select" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
