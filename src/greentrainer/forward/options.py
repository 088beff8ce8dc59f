"""What may be left out of the forward pass: `ForwardOptions`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Keep = Literal["nothing", "memory", "disk"]
"""Where activations are kept."""
Positions = Literal["all", "choose"] | int
"""Of each prompt that gradient passes through: all, so many before the completion, or as many as
importance says."""


@dataclass(frozen=True)
class ForwardOptions:
    """Both are exact; what a model does not allow is left undone, with a warning.

    labelled_head: compute logits and loss on labelled positions only.
    keep: start forward passes at activations kept in memory or on disk.
    keep_folder: for the disk; the system's folder for temporary files when None.
    keep_bytes: how much each process may keep; when None, a quarter of what is free, shared by the
        processes of the machine.
    keep_bfloat16: keep them in bfloat16 whatever they are (then no longer exact).
    examples: distinct ones that a process may see, by which it is known beforehand what keeping
        will spare; otherwise it is learned when the first comes again.

    Raises ValueError for values that cannot work.
    """

    labelled_head: bool = False
    keep: Keep = "nothing"
    keep_folder: Path | None = None
    keep_bytes: int | None = None
    keep_bfloat16: bool = False
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep is {self.keep!r}: choose nothing, memory or disk")
        if self.keep_bytes is not None and self.keep_bytes < 1:
            raise ValueError(f"keep_bytes is {self.keep_bytes}: it must be at least 1")
