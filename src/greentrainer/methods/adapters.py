"""What the methods out of PEFT share.  The package is an extra, imported when one is used."""

from typing import Any

from greentrainer.hf import peft


def adapted(model: Any, config: Any, revision: str | None = None) -> Any:
    """The model with the adapter that this configuration of PEFT describes.

    revision: of the model on the hub, for the adapter to name beside it.

    Raises ValueError for a model that has one.
    """
    if isinstance(model, peft().PeftModel):
        raise ValueError("the model has an adapter already: start from its base model")
    return peft().get_peft_model(model, config, revision=revision)


def task_type(model: Any) -> str:
    """PEFT's name for what the model does."""
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
