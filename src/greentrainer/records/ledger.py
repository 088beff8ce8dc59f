"""What a run has really spent, step by step, and what full fine-tuning would have.

`rho_spent` is the ratio of the two.  The reference is plain full fine-tuning of the same batches:
every tensor trained, nothing skipped, no probe.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

Kind = Literal["train", "probe", "select", "trace", "within"]


@dataclass(frozen=True)
class Entry:
    """One training batch, one probe, one selection, one cost that took a real pass to know, or what
    a Trainer does within its steps besides, such as generating: full fine-tuning would do it too.

    FLOPs are 2 per multiply-accumulate of matrix work.  `full_flops` is the cost of the same batch
    under full fine-tuning, 0 for what full fine-tuning would not do.  `skipped_flops` are those of
    the forward pass that kept activations spared, less what it took to learn them.  `tokens` are
    real ones, `padded_tokens` count padding too, `tail_tokens` are those that gradient may pass,
    `unread_tokens` those of prompts that are not read.

    `exchanged_bytes` are those of gradients that a process gave to be exchanged with others,
    `gathered_bytes` those of sharded weights made whole in it; of probes before a step too.

    `counted_flops` are what a batch was seen to execute while it was counted, and `told_flops` what
    the books had said of it; both 0 for one that was not.
    """

    kind: Kind
    forward_flops: int = 0
    backward_flops: int = 0
    full_flops: int = 0
    skipped_flops: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    tail_tokens: int = 0
    unread_tokens: int = 0
    counted_flops: int = 0
    told_flops: int = 0
    exchanged_bytes: int = 0
    gathered_bytes: int = 0
    seconds: float = 0.0

    @property
    def flops(self) -> int:
        """Forward and backward FLOPs together."""
        return self.forward_flops + self.backward_flops


class Ledger:
    """The entries of a run, and sums over them."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._sums: dict[tuple[str, str], float] = {}
        self.last_probe_flops, self.last_probe_seconds = 0, 0.0
        for entry in entries:
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Enter something that was spent."""
        self._entries.append(entry)
        if entry.kind == "probe":
            self.last_probe_flops, self.last_probe_seconds = entry.flops, entry.seconds
        self._count(entry, +1)

    def amend(self, **more: float) -> None:
        """Add to figures of the newest training batch (its backward pass, its seconds)."""
        position = next(
            i for i in range(len(self._entries) - 1, -1, -1) if self._entries[i].kind == "train"
        )
        entry = self._entries[position]
        amended = replace(entry, **{k: getattr(entry, k) + v for k, v in more.items()})
        self._entries[position] = amended
        self._count(entry, -1)
        self._count(amended, +1)

    @property
    def newest(self) -> Entry:
        """The newest training batch.  Raises StopIteration before the first."""
        return next(entry for entry in reversed(self._entries) if entry.kind == "train")

    @property
    def verified(self) -> int:
        """Batches that were counted while they ran."""
        return sum(entry.counted_flops > 0 for entry in self._entries)

    @property
    def worst_deviation(self) -> float:
        """The largest share by which a count and the books differed; 0 where nothing was counted.

        Since such a count the books are corrected by it.
        """
        counted = [entry for entry in self._entries if entry.told_flops]
        return max((abs(e.counted_flops / e.told_flops - 1) for e in counted), default=0.0)

    def total(self, figure: str, *kinds: Kind) -> float:
        """Sum of one figure (a field of `Entry`) over entries of the given kinds, or of all."""
        wanted = kinds or get_args(Kind)
        return sum(self._sums.get((kind, figure), 0) for kind in wanted)

    @property
    def batches(self) -> int:
        """Training batches so far."""
        return int(self.total("count", "train"))

    @property
    def forward_flops(self) -> int:
        """Forward FLOPs of training, without probes."""
        return int(self.total("forward_flops", "train"))

    @property
    def backward_flops(self) -> int:
        """Backward FLOPs of training, without probes."""
        return int(self.total("backward_flops", "train"))

    @property
    def probe_flops(self) -> int:
        """FLOPs of all probes."""
        return int(self.total("forward_flops", "probe") + self.total("backward_flops", "probe"))

    @property
    def trace_flops(self) -> int:
        """FLOPs of real passes that were made to learn what a batch costs."""
        return int(self.total("forward_flops", "trace") + self.total("backward_flops", "trace"))

    @property
    def within_flops(self) -> int:
        """FLOPs of what is done within steps besides, and would be in full fine-tuning."""
        return int(self.total("forward_flops", "within"))

    @property
    def spent_flops(self) -> int:
        """All FLOPs: training, what belongs to its steps, probes, and real passes of tracing."""
        training = self.forward_flops + self.backward_flops + self.within_flops
        return training + self.probe_flops + self.trace_flops

    @property
    def full_flops(self) -> int:
        """What full fine-tuning of the same batches would have spent."""
        return int(self.total("full_flops"))

    @property
    def saved_flops(self) -> int:
        """The difference between the two."""
        return self.full_flops - self.spent_flops

    @property
    def rho_spent(self) -> float:
        """Share of full fine-tuning's FLOPs that was spent; 0 before the first batch."""
        return self.spent_flops / self.full_flops if self.full_flops else 0.0

    def summary(self) -> dict[str, Any]:
        """The bill in figures: FLOPs, multiply-accumulates, tokens, seconds, shares."""
        spent, full = self.spent_flops, self.full_flops
        return {
            "batches": self.batches,
            "rho_spent": self.rho_spent,
            "spent_flops": spent,
            "forward_flops": self.forward_flops,
            "backward_flops": self.backward_flops,
            "probe_flops": self.probe_flops,
            "trace_flops": self.trace_flops,
            "within_flops": self.within_flops,
            "skipped_flops": int(self.total("skipped_flops")),
            "full_flops": full,
            "saved_flops": full - spent,
            "spent_macs": spent // 2,
            "full_macs": full // 2,
            "verified_batches": self.verified,
            "worst_deviation": self.worst_deviation,
            "probe_share": self.probe_flops / spent if spent else 0.0,
            "tokens": int(self.total("tokens")),
            "padded_tokens": int(self.total("padded_tokens")),
            "tail_tokens": int(self.total("tail_tokens")),
            "unread_tokens": int(self.total("unread_tokens")),
            "exchanged_bytes": int(self.total("exchanged_bytes")),
            "gathered_bytes": int(self.total("gathered_bytes")),
            "train_seconds": self.total("seconds", "train"),
            "probe_seconds": self.total("seconds", "probe"),
            "select_seconds": self.total("seconds", "select"),
        }

    def state_dict(self, start: int = 0) -> list[dict[str, Any]]:
        """The entries from number `start` on, as plain values."""
        return [asdict(entry) for entry in self._entries[start:]]

    def load_state_dict(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Replace all entries by those that `state_dict` described."""
        self._entries, self._sums = [], {}
        self.last_probe_flops, self.last_probe_seconds = 0, 0.0
        for entry in entries:
            self.add(Entry(**entry))

    def _count(self, entry: Entry, sign: int) -> None:
        figures = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "kind"}
        for name, value in {**figures, "count": 1}.items():
            key = (entry.kind, name)
            self._sums[key] = self._sums.get(key, 0) + sign * value
