"""Everything that knows Hugging Face: loading models, the Trainers, and their checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greentrainer.hf.callback import GreenCallback as GreenCallback
    from greentrainer.hf.green import GreenConfig as GreenConfig
    from greentrainer.hf.models import load as load
    from greentrainer.hf.trainer import GreenSeq2SeqTrainer as GreenSeq2SeqTrainer
    from greentrainer.hf.trainer import GreenTrainer as GreenTrainer

_HOME = {
    "GreenCallback": "greentrainer.hf.callback",
    "GreenConfig": "greentrainer.hf.green",
    "GreenSeq2SeqTrainer": "greentrainer.hf.trainer",
    "GreenTrainer": "greentrainer.hf.trainer",
    "load": "greentrainer.hf.models",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: loading a model needs no Trainer."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
