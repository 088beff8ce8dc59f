"""What to fine-tune on: data in, examples, tensors and metrics out.  Start with `registry.py`.

    task = load("pydoc")                 # or load("mine.jsonl", prompt="question", ...)
    task.examples("train")[0]            # Example(prompt=..., cue=..., completion=...)

`encode` makes tensors of examples, `metrics` measures a model on them.  What trains is elsewhere.
"""

from greentrainer.tasks import encode, metrics, packing, show
from greentrainer.tasks.base import SPLITS, Example, Message, Task
from greentrainer.tasks.encode import Encoded
from greentrainer.tasks.generation import virtual_config
from greentrainer.tasks.holdout import apart
from greentrainer.tasks.many import encoded
from greentrainer.tasks.mixed import Mixed, Part
from greentrainer.tasks.modes import evaluating
from greentrainer.tasks.positions import limit as position_limit
from greentrainer.tasks.positions import require_room
from greentrainer.tasks.published import FORMATS, PromptFormat
from greentrainer.tasks.registry import NAMES, is_published, load
from greentrainer.tasks.segments import stop_ids
from greentrainer.tasks.stored import Chosen, read_examples, write_examples
from greentrainer.tasks.template import rendered
from greentrainer.tasks.turns import expanded

__all__ = [
    "FORMATS",
    "NAMES",
    "SPLITS",
    "Chosen",
    "Encoded",
    "Example",
    "Message",
    "Mixed",
    "Part",
    "PromptFormat",
    "Task",
    "apart",
    "encode",
    "encoded",
    "evaluating",
    "expanded",
    "is_published",
    "load",
    "metrics",
    "packing",
    "position_limit",
    "read_examples",
    "rendered",
    "require_room",
    "show",
    "stop_ids",
    "virtual_config",
    "write_examples",
]
