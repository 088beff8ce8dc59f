"""What was traced is kept in the cache folder, so that a second run traces nothing.

`GREENTRAINER_TRACES=off` keeps nothing and looks at nothing that was kept.
"""

import os

from greentrainer.engine import Traces
from greentrainer.hf.smollm2 import cache_root

VARIABLE = "GREENTRAINER_TRACES"


def kept_traces(loss: str | None = "the model's own") -> Traces | None:
    """The folder; loss: by name what is computed of a batch, None for what has none."""
    if loss is None or os.environ.get(VARIABLE, "").lower() in ("off", "0", "no", "false"):
        return None
    return Traces(cache_root() / "traces", loss)
