"""How the paper counted: the rules of its released code (`tensor_flops.py`), restated.

Multiply-accumulates of one batch; a parameter is charged for what its module does.

====================  ============================  ==========================================
parameter             forward                       gradients passed on; of the weight itself
====================  ============================  ==========================================
matrix, in x out      tokens in out                 the same; the same
bias                  tokens out                    0; tokens out
norm's weight         tokens hidden                 the same; the same
norm's bias           tokens hidden                 0; 0
values (or fused qkv) and 2 rows queries keys D     and 4 rows queries keys D; nothing more
tied embedding        tokens hidden (1 + V)         tokens V hidden; (tokens + 1) V hidden
untied embedding      tokens hidden                 0; 2 V hidden
====================  ============================  ==========================================

Of an encoder-decoder everything outside the encoder is charged the decoder's tokens: its keys and
values of the encoder's output too, although they are computed at every position of the encoder.

Parameters are taken in `named_parameters()` order for the order of execution.  A set of trained
parameters costs their weights' gradients, and what is passed on by the first of them in that order
and all after it.

The released code prints a total for green and for full fine-tuning only.  For the baselines the
rules below are what reproduces most of the published figures; no source states them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

from paper.paper_models import ROWS, top_two
from paper.published import Chain, published
from torch import nn

BINS = 1000
_VALUES = ("v_proj", "v", "query_key_value")


@dataclass(frozen=True)
class Charge:
    """Multiply-accumulates charged to one parameter."""

    name: str
    forward: int
    passing: int
    own: int


def charges(model: nn.Module, length: int, target: int | None) -> list[Charge]:
    """The charges of all parameters, in `named_parameters()` order."""
    found = [_charge(model, name, length, target or length) for name, _ in model.named_parameters()]
    if target is not None:
        return found
    embedding, last = found[0], found[-1]  # the tied head's passing on goes to the last parameter
    head = embedding.own // (ROWS * length + 1) * ROWS * length
    found[-1] = Charge(last.name, last.forward, last.passing + head, last.own)
    return found


def _charge(model: nn.Module, name: str, length: int, target: int) -> Charge:
    owner, _, kind = name.rpartition(".")
    module = model.get_submodule(owner)
    shape = model.get_parameter(name).shape
    tokens = ROWS * (length if name.startswith("encoder.") else target)
    if isinstance(module, nn.Embedding):
        return _table(name, shape, tokens, tied=model.get_parameter(name) is _head(model))
    each = tokens * prod(shape)
    if kind == "bias":
        return Charge(name, each, 0, each if isinstance(module, nn.Linear) else 0)
    if owner.rpartition(".")[2] not in _VALUES:
        return Charge(name, each, each, each)
    queries = length if name.startswith("encoder.") else target
    keys = length if "EncDecAttention" in name else queries
    scores = ROWS * queries * keys * shape[1]
    return Charge(name, each + 2 * scores, each + 4 * scores, each)


def _table(name: str, shape: tuple[int, ...], tokens: int, tied: bool) -> Charge:
    rows, width = shape
    if tied:
        return Charge(name, tokens * width * (1 + rows), 0, (tokens + 1) * rows * width)
    return Charge(name, tokens * width, 0, 0)


def _head(model: nn.Module) -> nn.Parameter:
    weight: nn.Parameter = model.get_output_embeddings().weight  # type: ignore[operator]
    return weight


def cost(found: list[Charge], trained: Collection[str]) -> int:
    """What training a set costs, with the forward pass: the released code's `flops_counter`."""
    first = next(k for k, c in enumerate(found) if c.name in trained)
    own = sum(c.own for c in found if c.name in trained)
    return sum(c.forward for c in found) + sum(c.passing for c in found[first:]) + own


def full(found: list[Charge]) -> int:
    """Full fine-tuning."""
    return sum(c.forward + c.passing + c.own for c in found)


def green(found: list[Charge], importance: Mapping[str, float], rho: float) -> int:
    """What the published selection costs at rho, its rounding down to 1000 bins included."""
    back = found[::-1]
    chain = Chain(tuple(c.name for c in back), [c.own for c in back], [c.passing for c in back])
    budget = rho * full(found) - sum(c.forward for c in found)
    return cost(found, published(chain, importance, budget, BINS))


def adapters(found: list[Charge]) -> float:
    """LoRA, and prefix tuning of a decoder: two thirds of full fine-tuning.

    As if passing gradients on cost no more than the forward pass; but attention's part is twice it.
    """
    return full(found) * 2 / 3


def prefix_in_decoder(found: list[Charge]) -> int:
    """Prefix tuning of an encoder-decoder: no gradient enters the encoder."""
    passing = sum(c.passing for c in found if c.name.startswith(("decoder.", "lm_head.")))
    return sum(c.forward for c in found) + passing


def top_two_tied(model: nn.Module, found: list[Charge]) -> float:
    """Head and last block where the head is the embedding: adapters, and these weights' own."""
    trained = set(top_two(model))
    return adapters(found) + sum(c.own for c in found if c.name in trained)


def top_two_untied(model: nn.Module, found: list[Charge]) -> int:
    """Head and last block where the head is a matrix of its own."""
    return cost(found, set(top_two(model)))
