"""What was traced and timed is kept in the cache folder, so that a second run need not do it again.

`GREENTRAINER_KEEP=off`: a run keeps nothing, and looks at no trace that was kept.
"""

import os

from greentrainer.engine import Traces
from greentrainer.hf.smollm2 import cache_root

VARIABLE = "GREENTRAINER_KEEP"


def keeps() -> bool:
    """Whether runs keep anything."""
    return os.environ.get(VARIABLE, "").lower() not in ("off", "0", "no", "false")


def kept_traces(loss: str | None = "the model's own") -> Traces | None:
    """The folder; loss: by name what is computed of a batch, None for what has none."""
    if loss is None or not keeps():
        return None
    return Traces(cache_root() / "traces", loss)
