"""Libraries that talk to the terminal, told not to: what is said there is said by the command."""

import logging
import os

_LOUD = ("huggingface_hub", "bitsandbytes", "torchao", "torch.utils._pytree")
"""Warn while they try again, or that they found no kernel for a device that is not there."""


def hush() -> None:
    """Let these be silent from now on, but for errors; loads none of them.

    One of several processes has torch keep to itself what it thinks of how they exchange gradients.
    """
    if "RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def quieten() -> None:
    """The same of transformers, bars and all."""
    from transformers.utils import logging as loud

    hush()  # again: a library that was loaded since has said how loud it is to be
    loud.set_verbosity_error()
    loud.disable_progress_bar()
