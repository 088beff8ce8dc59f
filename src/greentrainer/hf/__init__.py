"""Everything that knows Hugging Face: loading models, and the Trainer."""

from greentrainer.hf.models import load

__all__ = ["load"]
