"""What a Trainer is told about selection: `GreenConfig`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from greentrainer.budget import Budget
from greentrainer.engine import Selector, StepsAsked
from greentrainer.forward import ForwardOptions, Positions
from greentrainer.model import OptimizerState
from greentrainer.select import select
from greentrainer.types import Prompts, parts_of


@dataclass(frozen=True)
class GreenConfig:
    """How much to spend, and how often to choose.

    rho: share of full fine-tuning's FLOPs for the whole run, probes included; or a `Budget` in
        another unit.
    every_epochs, every_steps: how often tensors are chosen, in epochs or in optimizer steps; the
        second wins if both are given.
    probe_batches: batches importance is measured on at each selection; fewer where the run is too
        short to pay for them.
    metric: first_order or two_pass importance, or a control's score (`importance.METRICS`).
    optimizer_state: what becomes of a frozen tensor's state: keep, drop or offload.
    updates: made in the optimizer's step, or of each tensor as its gradient arrives in the backward
        pass, so that gradients take no memory (docs/memory.md; `GreenTrainer`, one process, no
        accumulation).
    stochastic_rounding: of updates of weights in bfloat16, which are lost where they are small; the
        optimizer's state is in float32 then (`GreenTrainer`).
    selector: chooses tensors; `select`, or a control to compare it with.
    forward: what may be left out of the forward pass.
    positions: of each prompt that gradient passes through: "all", so many before the completion, or
        "choose".
    steps: "all" that the Trainer plans; or "choose", fewer where they are worth more, with learning
        rates that come to their end when the run does (`GreenTrainer`).
    prompts: how much of each is read where steps are chosen: "whole", a part by its name, or
        "choose" (docs/positions.md says what that does to what a model writes).
    seed: of the examples that probes are made on; the Trainer's own data order is left alone.

    Raises ValueError for values that cannot work.
    """

    rho: float | Budget = 0.5
    every_epochs: float = 1.0
    every_steps: int | None = None
    probe_batches: int = 2
    metric: str = "first_order"
    optimizer_state: OptimizerState = "keep"
    updates: Literal["step", "backward"] = "step"
    stochastic_rounding: bool = False
    selector: Selector = select
    forward: ForwardOptions = field(default_factory=ForwardOptions)
    positions: Positions = "all"
    steps: StepsAsked = "all"
    prompts: Prompts = "whole"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rho, Budget) and not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}: choose it between 0 and 1")
        if self.every_epochs <= 0 or (self.every_steps is not None and self.every_steps < 1):
            raise ValueError("every_epochs must be above 0, and every_steps at least 1")
        counted = isinstance(self.positions, int) and self.positions >= 0
        if not counted and self.positions not in ("all", "choose"):
            raise ValueError(f"positions is {self.positions!r}: all, choose, or at least 0")
        if self.updates not in ("step", "backward"):
            raise ValueError(f"updates is {self.updates!r}: step, or backward")
        if self.steps not in ("all", "choose"):
            raise ValueError(f"steps is {self.steps!r}: all, or choose")
        if parts_of(self.prompts) != (None,) and self.steps != "choose":
            raise ValueError("prompts are read in part where steps are chosen: give steps='choose'")
        if self.probe_batches < 1:
            raise ValueError(f"probe_batches is {self.probe_batches}: it must be at least 1")

    @classmethod
    def published(cls, rho: float = 0.5, **more: Any) -> "GreenConfig":
        """As in the paper: tensors alone, judged by their own rows, at every step."""
        forward = ForwardOptions(labelled_head=False)
        return cls(rho=rho, **{"positions": "all", "steps": "all", "forward": forward, **more})

    @property
    def budget(self) -> Budget:
        """What may be spent."""
        return self.rho if isinstance(self.rho, Budget) else Budget("rho", self.rho)
