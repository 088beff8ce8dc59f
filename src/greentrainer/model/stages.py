"""Where a model's forward pass can be cut: modules that run one after the other.

Found by structure, not by name: of an encoder-decoder it is the encoder as a whole, of a decoder
its repeated blocks.
"""

from typing import Any

from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks: members of the outermost module lists of more than one member."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            found += list(child)
        else:
            found += blocks(child)
    return found


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module, in the order in which they run; empty where nothing is known of a model.

    The activation that leaves one of them is all that the later ones need of the earlier ones.
    """
    config = getattr(model, "config", None)
    wanted = [encoder_of(model)] if getattr(config, "is_encoder_decoder", False) else blocks(model)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: module for module in wanted if id(module) in names}


def encoder_of(model: Any) -> Any:
    """The encoder of an encoder-decoder; None if it does not say which that is."""
    return model.get_encoder() if hasattr(model, "get_encoder") else None
