"""Gradients through the ends of a batch's rows only.

A row is cut in two: the *tail* is its completion and the last positions of its prompt, the *prefix*
all before.  The prefix runs without gradients and hands its keys and values on, in the model's own
cache; the tail runs with gradients.  The loss is the same number, for labels lie in the tail.  The
gradient lacks its path through the prefix's keys and values: it is the sum over the tail's
positions of exactly what each of them has in ordinary training, for what comes before a position
has no part in its gradient.

A hook before the model runs the prefix and puts tail and cache in the batch's place.  So whoever
calls the model need not know: trainers, losses of one's own, replicas, and tracing.  Prefixes are
padded on the left and tails on the right, so that each row's tokens adjoin; a position keeps its
number.  Of an encoder-decoder the encoder is the prefix.  A part of a prefix may be read alone
(`parts.py`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn

from greentrainer.forward.check import Losses, Shortened, evaluating, piece
from greentrainer.forward.cut import Cut, Parted, Places, between, cut, parted
from greentrainer.forward.handed import HandedCache, is_compiled, take_plain_keys
from greentrainer.forward.host import on_host, remember
from greentrainer.forward.lower_right import seen, usable
from greentrainer.forward.packed import segments_of, unpacked
from greentrainer.forward.room import roomy_cache
from greentrainer.model import encoder_of
from greentrainer.types import IGNORED, Batch, Part

ENCODED = ("input_ids", "inputs_embeds", "attention_mask")
"""What an encoder is given."""

KEEPING = ("handed", "roomy", "grown")
"""How a prefix's keys and values are kept: handed to compiled blocks as plain tensors, in a cache
with room for the tail, or in one that grows."""

Compare = Callable[[Batch, Shortened], Losses]
"""Compares the loss of a batch within a context with that outside."""


class Asked:
    """What a cut was told for.  It is asked for many times a batch, and on a GPU each one waits."""

    def __init__(
        self,
        labels: torch.Tensor,
        mask: Any,
        tail: int,
        part: Part | None,
        ids: Any,
        positions: Any,
    ) -> None:
        self.given = labels, mask, ids, positions
        self.state = tail, part, *(_version(one) for one in self.given)

    def same_as(self, other: "Asked | None") -> bool:
        """Whether they are the same tensors, not written to since, and tail and part too."""
        if other is None or self.state != other.state:
            return False
        return all(a is b for a, b in zip(self.given, other.given, strict=True))


def _plain_mask(mask: Any, labels: torch.Tensor) -> bool:
    """Whether a mask says of each position that it counts or does not, or there is none."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.shape == labels.shape)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two batches hold the very same values."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _version(tensor: torch.Tensor | None) -> object:
    """What is another after each writing to a tensor; always another where that is not told."""
    if tensor is None:
        return None
    return object() if tensor.is_inference() else tensor._version


class SplitForward:
    """Lets a model's training passes send gradients through the tails of their rows only.

    `tail` says how many positions of the prompt, before the first that predicts a label, belong to
    the tail; None: all of them, as ever.  `part` says what is read of what comes before a tail;
    None: all of it.  It works while gradients are enabled and the model is in
    training mode, or within `on`.  `numbered` says whether positions are numbered by their columns;
    if not, the model does it itself, by the mask.  `keeping`: how the prefix's keys and values are
    kept, one of `KEEPING`.  `maskless`: a tail without padding before it does without a mask.

    Raises ValueError for a model that hands on no cache.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.tail: int | None = None
        self.part: Part | None = None
        inner: Any = getattr(model, "get_base_model", lambda: model)()  # of PEFT's wrapper
        self.encodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        accepted = inspect.signature(type(inner).forward).parameters
        self._cache = next((n for n in ("cache", "past_key_values") if n in accepted), None)
        self.numbered = "position_ids" in accepted
        if not self.encodes and self._cache is None:
            raise ValueError(f"{type(inner).__name__} takes no cache")
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ValueError("activation checkpointing drops the cache in training")
        take_plain_keys(model)
        self.coarse = False
        self.keeping = KEEPING[1]
        self.maskless = False
        self._always = False
        self._given: tuple[Cut | None] | None = None
        self._seen: Places | None = None
        self._asked: Asked | None = None
        self._answer: Cut | None = None
        self._known: tuple[Cut, dict[str, Any], list[object], Parted] | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
        ]

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def at(self, tail: int | None, part: Part | None = None) -> Iterator[None]:
        """In here it works with this tail, and this part is read."""
        before = self.tail, self.part
        self.tail, self.part = tail, part
        try:
            yield
        finally:
            self.tail, self.part = before

    @contextmanager
    def on(self, batch: Batch = None, where: Cut | None = None) -> Iterator[None]:
        """In here it works in any mode.

        batch: the one that the model is called with, where that has no values to look at.
        where: its cut, if that is not to be told from it.
        """
        before = self._always, self._given
        if batch is not None:
            where = self.cut(batch)
        self._given = (where,) if batch is not None or where is not None else None
        self._always = True
        try:
            yield
        finally:
            self._always, self._given = before

    def settle(self, batch: Batch, compare: Compare) -> str | None:
        """Find out how positions are numbered, and which cache; or why it cannot be split."""

        @contextmanager
        def shortened(_batch: Batch) -> Iterator[None]:
            with self.at(0), self.on():
                yield

        if self.encodes or not isinstance(batch, Mapping) or "labels" not in batch:
            return compare(batch, shortened).reason
        if not _plain_mask(batch.get("attention_mask"), batch["labels"]):
            return "a mask of its own between positions"
        try:
            segments = segments_of(batch)
        except ValueError as error:
            return str(error)
        if segments is not None:
            small = piece(batch)
            reason = self.settle(unpacked(small), compare)
            return reason or compare(small, shortened).reason
        hard, numbered = _hard(piece(batch)), sorted({False, self.numbered})
        found: dict[tuple[bool, str], Losses] = {}
        for keeping in KEEPING if is_compiled(self.model) else KEEPING[1:]:
            for way in product(numbered, [keeping]):
                self.numbered, self.keeping = way
                found[way] = compare(hard, shortened)
            if any(one.reason is None for one in found.values()):
                break
        self.numbered, self.keeping = best = min(found, key=lambda way: found[way].gap)
        if found[best].reason is None and usable(self.model):
            self.maskless = True
            self.maskless = compare(_easy(piece(batch)), shortened).reason is None
        return found[best].reason

    def cut(self, batch: Batch) -> Cut | None:
        """Where a batch is cut; None where it is not."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if self.tail is None or self.encodes or not isinstance(labels, torch.Tensor):
            return None
        if not _plain_mask(batch.get("attention_mask"), labels):
            return None
        if self._given is not None:
            return self._given[0]
        mask = batch.get("attention_mask")
        ids = batch.get("input_ids") if self.part else None
        asked = Asked(labels, mask, self.tail, self.part, ids, batch.get("position_ids"))
        if not asked.same_as(self._asked):
            where = self._told(batch, self.tail, ids)
            self._asked, self._answer = asked, where if where and where.prefix else None
        return self._answer

    def _told(self, batch: Batch, tail: int, ids: torch.Tensor | None) -> Cut | None:
        """The cut of a batch; None of a packed one that cannot be unpacked.  ids: to be read."""
        try:
            segments = segments_of(batch)
        except ValueError:
            return None
        mask, here = batch.get("attention_mask"), on_host(batch["labels"])
        read = None if ids is None else on_host(ids)
        real = torch.ones_like(here) if mask is None else on_host(mask)
        if segments is not None:
            here, real = segments.of(here, IGNORED), segments.real()
            read = None if read is None else segments.of(read)
        where = cut(here, real, tail, self.coarse, self.part, read)
        return replace(where, segments=segments)

    def parts(self, batch: Batch) -> Batch:
        """The batch in its two parts, if it is cut: their shapes tell what it costs."""
        if self.encodes:
            return {"encoded": batch} if self._encodes(batch) else batch
        where = self.cut(batch)
        return batch if where is None else self._parts(batch, where).parts

    def last(self, batch: Batch) -> Batch:
        """What the model's labels are compared in: the tail of a batch, or all of it."""
        where = self.cut(batch)
        return batch if where is None else self._parts(batch, where).parts["tail"]

    def _parts(self, batch: Batch, where: Cut) -> Parted:
        """The batch in two, made once however often it is asked for."""
        versions = [_version(v) for v in batch.values() if isinstance(v, torch.Tensor)]
        known = self._known
        if known is None or known[0] is not where or known[2] != versions:
            known = None
        if known is None or not _same(known[1], batch):
            made = parted(batch, where)
            _tell_labels(made.parts["tail"]["labels"], batch["labels"], where)
            self._known = known = where, dict(batch), versions, made
        found = known[3]
        return replace(found, parts={name: dict(part) for name, part in found.parts.items()})

    def view(self, value: torch.Tensor) -> torch.Tensor:
        """What the part that is running now has of a value of all positions.  (B, T, ...)."""
        return value if self._seen is None else self._seen.of(value)

    def _encodes(self, batch: Batch) -> bool:
        """Whether the encoder is run beforehand."""
        if self.tail is None or not isinstance(batch, Mapping):
            return False
        ready = batch.get("encoder_outputs") is not None
        return not ready and any(batch.get(name) is not None for name in ENCODED[:2])

    def _before_model(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._seen = None  # Ctrl-C may have broken off the pass before
        seen.whole = False
        working = self._always or (model.training and torch.is_grad_enabled())
        if not working or args or self.tail is None:
            return None
        if self.encodes:
            return (args, self._encoded(kwargs)) if self._encodes(kwargs) else None
        where = self.cut(kwargs)
        return None if where is None else (args, self._tail(model, kwargs, where))

    def _encoded(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {name: kwargs[name] for name in ENCODED if kwargs.get(name) is not None}
        with torch.no_grad(), evaluating(self.model):
            encoded = encoder_of(self.model)(**given)
        rest = {k: v for k, v in kwargs.items() if k not in ENCODED[:2]}
        return {**rest, "encoder_outputs": encoded}

    def _tail(self, model: Any, kwargs: dict[str, Any], where: Cut) -> dict[str, Any]:
        """Run the prefix; what the model is to be called with in place of the batch."""
        made = self._parts(kwargs, where)
        prefix, tail = made.parts["prefix"], made.parts["tail"]
        tail["attention_mask"] = made.mask
        if not where.padded:  # no mask is a faster kernel, and nobody looks whether it hides any
            del prefix["attention_mask"], tail["attention_mask"]
        if not self.numbered:
            prefix.pop("position_ids")
            tail.pop("position_ids")
        self._seen = made.before
        with torch.no_grad(), evaluating(model), _headless(model):
            if self.keeping == "handed":
                prefix[str(self._cache)] = HandedCache()
            elif self.keeping == "roomy":
                prefix[str(self._cache)] = roomy_cache(model.config, where.tail)
            out = model.forward(**{**prefix, "use_cache": True})
        known = out.get(self._cache)
        if known is None:
            raise ValueError(f"{type(model).__name__} hands on no cache: it cannot be split")
        _bridge(known)
        if isinstance(known, HandedCache):
            known.filled = True
        self._seen = made.after
        seen.whole = self.maskless and not where.padded
        return {**tail, str(self._cache): known, "use_cache": True}

    def _after_model(self, *_: Any) -> None:
        self._seen = self._known = None
        seen.whole = False


def _tell_labels(tail: torch.Tensor, labels: torch.Tensor, where: Cut) -> None:
    """What the tail's labels are on the host too, where they lie on a device."""
    here = on_host(labels)
    if here is not labels:
        here = here if where.segments is None else where.segments.of(here, IGNORED)
        after = between(where.start, where.end, where.tail, where.start)
        remember(tail, Places(after.clamp(min=0), after >= 0).of(here, IGNORED))


def _bridge(cache: Any) -> None:
    """Give layers that did not run (their activations are kept) the length of one that did."""
    layers = getattr(cache, "layers", [])
    ran = {type(layer): layer for layer in layers if getattr(layer, "keys", None) is not None}
    for number, layer in enumerate(layers):
        if getattr(layer, "keys", None) is None:
            layers[number] = ran.get(type(layer), layer)


def _easy(batch: Batch) -> Batch:
    """The batch without padding, every row with a prompt of the same length."""
    labels = torch.zeros_like(batch["labels"])
    labels[:, : 1 + labels.shape[1] // 2] = IGNORED
    mask = batch.get("attention_mask")
    whole = {} if mask is None else {"attention_mask": torch.ones_like(mask)}
    return {**batch, **whole, "labels": labels}


def _hard(batch: Batch) -> Batch:
    """The batch with a prompt and, where there is a mask, padding on the left of a row.

    None of it where a label is predicted: that would be another batch's loss.
    """
    labels = batch["labels"].clone()
    labels[:, : 1 + labels.shape[1] // 2] = IGNORED
    if not bool((labels != IGNORED).any()):
        labels = batch["labels"]
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.shape != labels.shape:
        return {**batch, "labels": labels}
    mask = mask.clone()
    for row in range(len(mask)):
        given = int((labels[row] != IGNORED).int().argmax()) - 1
        mask[row, : min(max(given, 0), (row + 1) * labels.shape[1] // (4 * len(mask)))] = 0
    return {**batch, "labels": labels, "attention_mask": mask}


@contextmanager
def _headless(model: nn.Module) -> Iterator[None]:
    """In here the output projection works on no position."""
    head = getattr(model, "get_output_embeddings", lambda: None)()

    def none(_head: Any, args: tuple[Any, ...]) -> Any:
        return args[0][:, :0], *args[1:]

    handle = head.register_forward_pre_hook(none) if isinstance(head, nn.Module) else None
    with handle or nullcontext():
        yield
