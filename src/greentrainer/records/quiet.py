"""Libraries that talk to the terminal, told not to: what is said there is said by the command."""

import logging

_LOUD = ("huggingface_hub", "bitsandbytes", "torchao", "torch.utils._pytree")
"""Warn while they try again, or that they found no kernel for a device that is not there."""


def quieten() -> None:
    """Let transformers and what it loads be silent from now on, but for errors."""
    from transformers.utils import logging as loud

    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    loud.set_verbosity_error()
    loud.disable_progress_bar()
