"""What a batch's own values tell a trace: operations on them are made for real beside the fake.

A model may look at its batch: pick the positions that have a label, count image tokens, see where
packed rows begin.  Under fake tensors there are no values to look at, but those of the batch are
at hand.  So whatever is computed of the batch alone is computed beside the trace, on the host, and
when the model asks (a branch, a number, how many there are) it is answered truly.  What was asked
is kept as a small program (`Questions`): a batch of the same shapes that gives the same answers
has the same costs.

Numbers that depend on weights, and at first all numbers, are given as symbols without a value: what
is only logged needs none.  Whether they are numbers at all is taken to be so.  A model that goes by
such a number cannot be traced.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from greentrainer.cost.questions import Made, Questions, Slot, named_tensors
from greentrainer.types import Batch

__all__ = ["Values"]

aten = torch.ops.aten

LARGEST = 1 << 23
"""Elements of a tensor whose values are followed."""
SIZED_BY_VALUES = frozenset(
    {
        aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,
        aten.repeat_interleave, aten.bincount,
    }
)  # fmt: skip
"""Operations whose results' shapes depend on values."""


@dataclass
class Values:
    """The values known during one trace.

    numbers: whether numbers are told too, or stand as symbols until they are needed.
    """

    numbers: bool = False
    _known: dict[int, tuple[Any, torch.Tensor, int]] = field(default_factory=dict)
    _paths: dict[int, str] = field(default_factory=dict)
    _program: list[Made] = field(default_factory=list)
    _asked: list[tuple[int, Any]] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)
    """Of each number in the program the storage that it lies in."""
    _symbols: ShapeEnv = field(default_factory=ShapeEnv)

    def begin(self, blank: Batch, batch: Batch) -> None:
        """A batch, and one without values that stands for it."""
        fakes = named_tensors(blank)
        for path, real in named_tensors(batch).items():
            if not real.is_meta and _worth_following(real):
                with _disable_current_modes():
                    value = real.detach().cpu().clone()
                self._paths[self._note(fakes[path], value)] = path

    def questions(self) -> Questions:
        """What was asked, and how it is answered for another batch."""
        needed = {self._places[number] for number, _ in self._asked}
        kept: list[Made] = []
        for made in reversed(self._program):
            given = [a.number for a in tree_leaves((made.args,)) if isinstance(a, Slot)]
            if any(self._places[number] in needed for number in made.outs):
                kept.append(made)
                needed |= {self._places[number] for number in given}
        inputs = [(p, n) for n, p in self._paths.items() if self._places[n] in needed]
        asked, answers = zip(*self._asked, strict=True) if self._asked else ((), ())
        return Questions(tuple(inputs), tuple(reversed(kept)), tuple(asked), tuple(answers))

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation that asks for values; NotImplemented for any other."""
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense:
            return self._number(args[0])
        if packet is aten.equal and all(self._value(one) is not None for one in args):
            if args[0].shape != args[1].shape:
                return False
            same = self._derive(aten.all.default, (self._derive(aten.eq.Tensor, args, {}),), {})
            return self._number(same)
        if packet is aten.index and any(_is_mask(one) for one in args[1]):
            return self._picked(func, args[0], args[1])
        if packet in SIZED_BY_VALUES:
            return self._sized(func, args, kwargs)
        return NotImplemented

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Make an operation for real, if all that goes into it is known."""
        changes = func._schema.is_mutable
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        results = tree_leaves(out)
        if any(self._value(one) is None for one in given) or not _certain(func):
            sound = _of_sound_numbers(func.overloadpacket, args)
            if sound is not None and _worth_following(out):
                make = aten.ones if sound else aten.zeros
                shape, kind = list(out.shape), {"dtype": torch.bool}
                with _disable_current_modes():
                    real = make.default(shape, **kind)
                self._write(make.default, (shape,), kind, [out], [real])
            if changes:
                self._forget(func, args, kwargs)
            return
        if all(isinstance(one, torch.Tensor) and _worth_following(one) for one in results):
            kwargs = _at_home(kwargs)
            with _disable_current_modes(), torch.no_grad():
                reals = tree_leaves(func(*self._real(args), **self._real(kwargs)))
            self._write(func, args, kwargs, results, reals)
        elif changes:
            self._forget(func, args, kwargs)

    def _number(self, tensor: torch.Tensor) -> Any:
        value = self._value(tensor)
        if value is not None and (self.numbers or value.dtype == torch.bool):
            with _disable_current_modes():
                told = value.item()
            self._ask(tensor, told)
            return told
        if tensor.dtype == torch.bool:
            return NotImplemented
        if tensor.is_floating_point():
            return self._symbols.create_unbacked_symfloat()
        return self._symbols.create_unbacked_symint()

    def _picked(self, func: Any, tensor: torch.Tensor, indices: Sequence[Any]) -> Any:
        """Indexing by masks, as indexing by the places that are true."""
        places: list[Any] = []
        for one in indices:
            if not _is_mask(one):
                places.append(one)
                continue
            found = self._sized(aten.nonzero.default, (one,), {})
            if found is NotImplemented:
                return NotImplemented
            ways = range(found.shape[1])
            places += [self._derive(aten.select.int, (found, 1, i), {}) for i in ways]
        out = func(tensor, places)
        self.follow(func, (tensor, places), {}, out)
        return out

    def _sized(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """An operation that has as many results as its values say."""
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if all(self._value(one) is not None for one in given):
            fakes = self._derive(func, args, kwargs)
            for fake in tree_leaves(fakes):
                self._ask(fake, tuple(fake.shape))
            return fakes
        if func.overloadpacket is aten.masked_select and self._value(args[1]) is not None:
            shape = list(torch.broadcast_shapes(*(one.shape for one in args)))
            mask = self._derive(aten.expand.default, (args[1], shape), {})
            return self._picked(aten.index.Tensor, args[0].expand(shape), [mask])
        return NotImplemented

    def _derive(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Make an operation for real, and blanks for what comes of it."""
        home = next((a.device for a in tree_leaves(args) if isinstance(a, torch.Tensor)), None)
        kwargs = _at_home(kwargs)
        with _disable_current_modes(), torch.no_grad():
            leaves, form = tree_flatten(func(*self._real(args), **self._real(kwargs)))
        fakes = [torch.empty(tuple(one.shape), dtype=one.dtype, device=home) for one in leaves]
        self._write(func, args, kwargs, fakes, leaves)
        return form.unflatten(fakes)

    def _write(
        self, func: Any, args: Any, kwargs: Any, fakes: Sequence[Any], reals: Sequence[torch.Tensor]
    ) -> None:
        """Note what came of an operation, and the operation itself."""
        put: Callable[[Any], Any] = self._slotted
        given = put(args), put(kwargs)
        numbers = [self._note(f, r) for f, r in zip(fakes, reals, strict=True)]
        self._program.append(Made(func, *given, tuple(numbers)))

    def _ask(self, tensor: torch.Tensor, told: Any) -> None:
        self._asked.append((self._known[id(tensor)][2], told))

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What is known of a tensor; a real one is known itself."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        if not isinstance(tensor, FakeTensor | nn.Parameter) and _worth_following(tensor):
            return tensor.detach()
        return None

    def _real(self, values: Any) -> Any:
        return tree_map(lambda a: self._value(a) if isinstance(a, torch.Tensor) else a, values)

    def _slotted(self, values: Any) -> Any:
        def slot(one: Any) -> Any:
            return Slot(self._known[id(one)][2]) if id(one) in self._known else one

        return tree_map(slot, values)

    def _note(self, fake: Any, real: torch.Tensor) -> int:
        """A value; kept with its tensor, so that this stays the one of its number."""
        known = self._known.get(id(fake))
        number = known[2] if known is not None else len(self._places)
        self._known[id(fake)] = fake, real, number
        self._places[number] = real.untyped_storage().data_ptr() or -1 - number
        return number

    def _forget(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What is written to without our knowing is known no more, nor are its views."""
        names = [one.name for one in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for one in func._schema.arguments:
            if one.alias_info is None or not one.alias_info.is_write:
                continue
            for tensor in tree_leaves(given.get(one.name)):
                known = self._known.get(id(tensor))
                if known is not None:
                    place = self._places[known[2]]
                    gone = [k for k, (_, _, n) in self._known.items() if self._places[n] == place]
                    for key in gone:
                        del self._known[key]


def _worth_following(tensor: torch.Tensor) -> bool:
    try:
        size = math.prod(int(n) for n in tensor.shape)
    except RuntimeError:  # a symbol
        return False
    return size <= LARGEST


def _of_sound_numbers(packet: Any, args: tuple[Any, ...]) -> bool | None:
    """What a test for infinity or for what is no number gives where all is well; None for others.

    (`isnan` compares a tensor with itself.)
    """
    if packet in (aten.isnan, aten.isinf):
        return False
    if packet not in (aten.ne, aten.eq) or len(args) != 2:
        return None
    same = args[0] is args[1]
    infinite = isinstance(args[1], float) and math.isinf(args[1])
    return (packet is aten.eq) == same if same or infinite else None


def _certain(func: Any) -> bool:
    """Whether the same comes out each time."""
    random = torch.Tag.nondeterministic_seeded in func.tags
    return not random and "empty" not in func.overloadpacket.__name__


def _at_home(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same on the host."""
    kept = {k: v for k, v in kwargs.items() if k not in ("pin_memory", "non_blocking")}
    return {k: torch.device("cpu") if k == "device" and v is not None else v
            for k, v in kept.items()}  # fmt: skip


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
