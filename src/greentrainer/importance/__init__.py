"""`I[k] = -sum(delta_w * dL/dw)`: what each tensor's own update would do to the loss.

Start with `measure.py`; `metrics.py` names the variants.  When it is measured, `engine` decides.
"""

from greentrainer.importance.measure import measure_importance, measure_statistics, measure_tails
from greentrainer.importance.metrics import METRICS, Metric, metric_named
from greentrainer.importance.update import twin
from greentrainer.importance.worth import Judge, Pair, measure_worth

__all__ = [
    "METRICS",
    "Judge",
    "Metric",
    "Pair",
    "measure_importance",
    "measure_statistics",
    "measure_tails",
    "measure_worth",
    "metric_named",
    "twin",
]
