"""What the methods out of PEFT share.  The package is an extra, imported when one is used."""

import warnings
from importlib import import_module
from typing import Any


def peft() -> Any:
    """The package.  Raises ValueError, with what to install, where it is missing.

    It hands prefixes to models under a name that transformers gives up; no user can mend that.
    """
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    try:
        return import_module("peft")
    except ImportError:
        raise ValueError("adapters need peft: pip install 'greentrainer[lora]'") from None


def adapted(model: Any, config: Any) -> Any:
    """The model with the adapter that this configuration of PEFT describes.

    Raises ValueError for a model that has one.
    """
    if isinstance(model, peft().PeftModel):
        raise ValueError("the model has an adapter already: start from its base model")
    return peft().get_peft_model(model, config)


def task_type(model: Any) -> str:
    """PEFT's name for what the model does."""
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
