"""The forward pass starts where nothing below is trained: activations kept from earlier epochs.

What leaves the last idle stage is the same whenever an example comes by again.  So each step has
two parts: the stages below the cut run for the examples not known yet, without gradients and
without dropout, and what leaves them is kept; then the model runs as usual, with these stages
replaced by stubs, the last of which gives what is kept.

An example is known again by its content: all the model is given of it but labels and padding.  It
does not matter which batch it comes in, in what order, or who made it.

What was kept at a depth holds as long as nothing below is trained or changed.  A selection that
goes deeper drops it; one that stays above goes on from there.  Should a frozen weight change all
the same, everything is dropped (`Watch`).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from greentrainer.forward.check import evaluating
from greentrainer.forward.packed import SEVERAL, begins_anew
from greentrainer.forward.rows import Rows, Unknown
from greentrainer.forward.store import Store
from greentrainer.forward.watch import Watch
from greentrainer.model import stages

STUBBED = ("forward", "_compiled_call_impl")
"""Attributes of a module that a stub takes the place of."""
Counting = Callable[[], Any]
"""Makes a context that counts FLOPs and has `get_total_flops()`."""
View = Callable[[torch.Tensor], torch.Tensor]


class KeptActivations:
    """Keeps activations of a model's stages and lets its forward pass start from them.

    store: where they are kept.
    dtype: what they are kept as; as they are when None.
    examples: distinct ones that each epoch has, if that is known.
    counter: counts the FLOPs of the part below the cut.
    view: what the pass that is running has of a value of all positions; by default all.

    `cut` is the number of stages that are skipped.  `off` says why nothing is skipped any more.
    `row_tokens` are those of an average example, by which it is told how many there is room for
    before any is kept.

    Raises ValueError for a model whose loss takes something from every stage.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        counter: Counting,
        dtype: torch.dtype | None = None,
        examples: int | None = None,
        view: View | None = None,
    ) -> None:
        if getattr(getattr(model, "config", None), "output_router_logits", False):
            raise ValueError("its loss takes something from each stage (output_router_logits)")
        self.model, self.store, self.counter = model, store, counter
        self.dtype, self.examples = dtype, examples
        self.view = view or _whole
        self.stages = list(stages(model).values())
        self.cut = 0
        self.off: str | None = None
        self.by_data = False
        self._depth: dict[bytes, int] = {}
        self._at: Counter[int] = Counter()
        self._watch = Watch()
        self._costs: dict[tuple[Any, ...], int] = {}
        self._seen: set[bytes] = set()
        self._again = False
        self._outputs: dict[int, Any] = {}
        self._stubbed: list[tuple[nn.Module, dict[str, Any]]] = []
        self.filling = False
        self._rows_bytes = (0, 0)
        self._token_bytes = 0.0
        self.row_tokens = 0.0

    def close(self) -> None:
        """Leave the model as it was and give the store's space back."""
        self.leave()
        self.store.close()

    def go_to(self, cut: int) -> None:
        """Skip so many stages from now on; what was kept above them is no longer true."""
        self.cut = 0 if self.off else cut
        for key in [key for key, depth in self._depth.items() if depth > self.cut]:
            self.store.discard(key)
        self._depth = {key: depth for key, depth in self._depth.items() if key in self.store}
        self._at = Counter(self._depth.values())
        if not self._watch.follow(self._below()):
            self._drop("frozen weights were changed between two selections")

    def hits(self, visits: float, standing: bool = False) -> float:
        """Share of so many coming visits of examples that find an activation kept.

        standing: at the depth where they are kept now; otherwise all begin anew.
        """
        known = self.examples or (len(self._seen) if self._again else None)
        if self.off or not known or visits <= 0:
            return 0.0
        count, size = self._rows_bytes
        one = size / count if count else self._token_bytes * self.row_tokens
        room = min(1.0, self.store.budget / (one * known)) if one else 1.0
        begun = len(self.store) if standing else 0
        return max(0.0, visits - max(0, known - begun)) * room / visits

    @property
    def depth(self) -> int:
        """The depth above which anything may be trained with all that is kept staying true.

        (What is kept less deep goes on from there.)  0 where nothing is kept.
        """
        return max((depth for depth, count in self._at.items() if count > 0), default=0)

    def enter(self, kwargs: Mapping[str, Any], worth: float) -> int:
        """Before a forward pass: put the stubs in.  Returns FLOPs spent on examples not yet known.

        worth: FLOPs that one kept token spares.
        """
        if not self.cut or self.filling:
            return 0
        if not self._watch.unchanged(self._below()):
            self._drop("a frozen weight was changed")
        try:
            rows = self._rows(kwargs)
            spent, known = self._gather(rows, worth)
            self._put_stubs(rows.joined(known))
        except Unknown as reason:
            self.turn_off(str(reason))
            return 0
        return spent

    def leave(self) -> None:
        """After a forward pass: take the stubs out."""
        while self._stubbed:
            module, own = self._stubbed.pop()
            for name in STUBBED:
                vars(module).pop(name, None)
            vars(module).update(own)

    @contextmanager
    def trial(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """In here a forward pass over this batch is cut in the middle; nothing of it is kept."""
        self.cut = -(-len(self.stages) // 2)
        try:
            rows = self._rows(batch)
            self._put_stubs(rows.joined(self._gather(rows, 1.0)[1]))
            count, size = self._rows_bytes
            self._token_bytes = size / max(1, sum(rows.lengths)) if count else 0.0
            yield
        finally:
            self.leave()
            self.store.clear()
            self.cut, self._rows_bytes = 0, (0, 0)
            self._depth.clear()
            self._at.clear()
            self._seen.clear()

    def turn_off(self, reason: str) -> None:
        """Skip nothing any more."""
        self.leave()
        self.off, self.cut = reason, 0
        self._depth.clear()
        self._at.clear()
        self.store.clear()
        warnings.warn(f"no forward pass is skipped from here on: {reason}", stacklevel=2)

    # Filling

    def _gather(self, rows: Rows, worth: float) -> tuple[int, list[torch.Tensor]]:
        """What leaves the last skipped stage, for each row; and FLOPs spent on it."""
        if self.examples is None and not self._again:
            self._again = any(key in self._seen for key in rows.keys)
            self._seen.update(rows.keys)
        fresh: dict[int, torch.Tensor] = {}
        spent = 0
        for start in sorted({self._start(key) for key in rows.keys} - {self.cut}):
            numbers = [i for i, key in enumerate(rows.keys) if self._start(key) == start]
            flops, filled = self._fill(rows, numbers, start)
            spent += flops
            fresh |= dict(zip(numbers, filled, strict=True))
        found = [  # before any is kept, for which others may have to go
            fresh[i] if i in fresh else self._kept(key).to(rows.device)
            for i, key in enumerate(rows.keys)
        ]
        for number, activation in fresh.items():
            self._keep(rows.keys[number], activation, worth)
        return spent, found

    def _start(self, key: bytes) -> int:
        return self._depth[key] if key in self.store else 0

    def _fill(self, rows: Rows, numbers: list[int], start: int) -> tuple[int, list[torch.Tensor]]:
        """Run the stages from `start` to the cut for some rows, which are kept at `start`."""
        part = rows.part(numbers)
        given = [self._kept(key).to(part.device) for key in part.keys] if start else []
        below = part.joined(given) if start else None
        shapes = tuple(
            (k, tuple(v.shape)) for k, v in part.batch.items() if isinstance(v, torch.Tensor)
        )
        known = self._costs.get((shapes, start, self.cut))
        with evaluating(self.model), torch.no_grad(), self._filled_from(start, below):
            if known is None or self.by_data:
                with self.counter() as count:
                    out = self._until(self.cut, part.batch)
                known = self._costs[(shapes, start, self.cut)] = count.get_total_flops()
            else:
                out = self._until(self.cut, part.batch)
        hidden = _hidden_of(out)
        self._outputs[self.cut] = _like(out, hidden.new_empty(0))
        return known, part.split(hidden)

    @contextmanager
    def _filled_from(self, start: int, hidden: torch.Tensor | None) -> Iterator[None]:
        self.filling, cut = True, self.cut
        try:
            if hidden is not None:
                self.cut = start
                self._put_stubs(hidden)
                self.cut = cut
            yield
        finally:
            self.filling, self.cut = False, cut
            self.leave()

    def _until(self, cut: int, batch: Mapping[str, Any]) -> Any:
        """What leaves the last of the first `cut` stages; nothing after it runs."""

        def stop(_module: Any, _args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.stages[cut - 1].register_forward_hook(stop)
        try:
            self.model(**batch)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise Unknown("a forward pass did not come to the end of its stages")

    def _keep(self, key: bytes, activation: torch.Tensor, worth: float) -> None:
        data = activation.to(self.dtype) if self.dtype else activation
        count, size = self._rows_bytes
        self._rows_bytes = (count + 1, size + data.numel() * data.element_size())
        if self.store.put(key, data, worth * len(data)):
            self._at[self._depth.get(key, 0)] -= key in self._depth
            self._at[self.cut] += 1
            self._depth[key] = self.cut

    def _kept(self, key: bytes) -> torch.Tensor:
        data = self.store.get(key)
        like = _hidden_of(self._outputs[self._depth[key]]).dtype
        return data.to(like)

    def _drop(self, reason: str) -> None:
        self._depth.clear()
        self._at.clear()
        self.store.clear()
        warnings.warn(f"kept activations were dropped: {reason}", stacklevel=3)

    # Stubs

    def _put_stubs(self, hidden: torch.Tensor) -> None:
        """Let the first `cut` stages do nothing, and the last of them give `hidden`."""
        like = self._outputs[self.cut]
        last = self.cut - 1
        for number, module in enumerate(self.stages[: self.cut]):

            def stub(*args: Any, last: bool = number == last, **kwargs: Any) -> Any:
                return _like(like, self.view(hidden) if last else _first(args, kwargs))

            own = {name: vars(module)[name] for name in STUBBED if name in vars(module)}
            self._stubbed.append((module, own))
            module.forward = stub
            module._compiled_call_impl = None

    def _below(self) -> dict[str, torch.Tensor]:
        """What the kept activations depend on: all frozen weights but those of later stages."""
        if not self.cut:
            return {}
        above = {id(p) for stage in self.stages[self.cut :] for p in stage.parameters()}
        found = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and id(parameter) not in above
        }
        after = {id(b) for stage in self.stages[self.cut :] for b in stage.buffers()}
        return found | {n: b for n, b in self.model.named_buffers() if id(b) not in after}

    def _rows(self, kwargs: Mapping[str, Any]) -> Rows:
        """The examples of a batch, by all that the model is given of them but targets."""
        if begins_anew(kwargs) is not None:
            raise Unknown(SEVERAL)
        batch = {k: v for k, v in kwargs.items() if not self._is_target(k)}
        decoder = not getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        labels = kwargs.get("labels") if decoder else None
        return Rows(batch, labels if isinstance(labels, torch.Tensor) else None)

    def _is_target(self, name: str) -> bool:
        """Whether an argument says what is wanted of the model and not what it is given."""
        config = getattr(self.model, "config", None)
        decoder = getattr(config, "is_encoder_decoder", False) and name.startswith("decoder_")
        return decoder or name in ("labels", "num_items_in_batch")


class _Reached(Exception):
    """The forward pass has come as far as wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _hidden_of(output: Any) -> torch.Tensor:
    """The activation in what a stage gives: it comes first."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    first = values[0] if isinstance(values, (list, tuple)) else values
    if not isinstance(first, torch.Tensor):
        raise Unknown("a stage gives no activation")
    return first


def _like(output: Any, hidden: Any) -> Any:
    """What a stage gives, with another activation in it and nothing besides."""
    if isinstance(output, Mapping):
        return type(output)(**dict.fromkeys(list(output)[:1], hidden))
    if isinstance(output, (list, tuple)):
        return type(output)([hidden, *(None for _ in output[1:])])
    return hidden
