"""What a run is told: one set of names for YAML files, flags and the saved `config.yaml`."""

from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from greentrainer.energy import WORLD_INTENSITY
from greentrainer.types import Unit, parts_of

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MethodName = Literal[
    "green",
    "full",
    "full_at_budget",
    "top2",
    "top_blocks",
    "lora",
    "prefix",
    "prompt",
    "bitfit",
    "lisa",
    "zero_shot",
]
Metric = Literal[
    "first_order",
    "two_pass",
    "gradient_magnitude",
    "weight_magnitude",
    "fisher",
    "snip",
    "random",
    "top_layers",
]

BUDGETS: tuple[Unit, ...] = get_args(Unit)
"""Keys that say what may be spent; exactly one counts."""
RHO = 0.5
"""What may be spent where nothing is said."""


def _positions(value: Any) -> Any:
    counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if counted or value in ("all", "choose", None):
        return value
    raise ValueError("give all, choose, or a number from 0 upwards")


def _memory(value: Any) -> Any:
    if value in ("auto", None):
        return value
    try:
        found = int(_BYTES.validate_python(value))
    except ValidationError:
        found = 0
    if found <= 0:
        raise ValueError("give a size, as 6GB or 512MiB, or auto")
    return found


def _processes(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        found = _COUNT.validate_python(value)
    except ValidationError:
        found = 0
    if found < 1:
        raise ValueError("give a number from 1 upwards, or auto")
    return found


def _packing(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML's on, off


_BYTES = TypeAdapter(ByteSize)
_COUNT = TypeAdapter(int)


def _prompts(value: str) -> str:
    parts_of(value)
    return value


class Source(BaseModel):
    """One of several tasks that are mixed.

    path: as `RunConfig.task`.  weight: how often its examples are seen in a pass over the mix.
    limit: of its training examples, before they are weighed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    limit: Count | None = None


class RunConfig(BaseModel):
    """A fine-tuning run.

    revision: of a model on the hub: a branch, tag or commit.
    task: pydoc, scitldr, dialogsum, piqa, webquestions, or one's own file, folder or pattern of
        files, a hub id (`org/name`, `org/name:split`), or - for standard input.
    tasks: several of these, mixed, in place of one: each a path, a weight and a limit.
    data_dir: folder with the files of a published data set; from the hub when None.
    prompt_format: of a published data set: natural text, the paper's, or the bare source.
    prompt_column, completion_column, messages_column: of one's own file.
    turns: each: every turn of the assistant is learned, in the context in which the chat template
        shows it, so one row may become several examples; last: the last turn alone.
    chat_template: file with the template to use in place of the tokenizer's.
    test_path: one's own file to test on; some rows are held out when None.
    method: one of `greentrainer.methods`.
    rho: share of full fine-tuning's FLOPs (of method green, and where a run stops early); 0.5 if
        no budget is given, and 1 where `memory` is the only one.
    hours, kwh, co2_grams, flops: a budget in another unit, in place of rho; exactly one counts.
    cost: what rho is a share of, and tensors are weighed by: FLOPs, or seconds on this device. When
        None, seconds on a GPU where steps are chosen, so that nothing is chosen there which saves
        FLOPs and no time; else FLOPs.
    carbon_schedule: CSV file of times and grams of CO2 a kWh: more is then spent where less is
        emitted, within the same budget.
    data_seed: of which examples are used where there are limits.
    processes: that train together, or auto: one for each GPU (docs/scale.md).
    parallel: ddp: each process holds the model; fsdp: its part of it (FSDP2); auto: the latter on
        GPUs where weights, gradients and moments do not fit one.
    batch_size: examples a batch of each process.
    max_length: tokens of prompt and completion together; longer prompts are cut.
    pad_multiple: batches are padded to a multiple of so many tokens; when None, to the next of few
        lengths, by less than an eighth; or to a multiple of 64 where activations are kept.
    packing: examples of a batch share rows without seeing each other, which changes no gradient:
        on, off, or auto, where that saves a tenth of the positions (docs/data.md).
    train_limit, test_limit: examples used, all when None.
    validation_limit: training examples held back to choose a learning rate on.
    selections: how often tensors are chosen, evenly spaced over the run.
    probe_batches: batches that importance is measured on at each selection.
    metric: what tensors are chosen by: importance, or a control at the same cost.
    optimizer_state: what becomes of a frozen tensor's optimizer state.
    memory: bytes that the run may take, as 6GB; or auto, what the device has (docs/memory.md).
    weights: what the model is held in: float32; or bfloat16, in half the memory, where updates are
        rounded stochastically. When None, float32 unless it takes more than half of `memory`.
    fewer: what is trained where `memory` has no room for everything: adapters on all linear layers,
        at ten times the learning rate, if peft is installed; or tensors, those worth most.
    updates: step, in the optimizer's step; or backward, of each tensor as its gradient arrives, so
        that gradients take no memory. When None, as `memory` says.
    generate: test examples for which a completion is generated and scored.
    decoding: how: greedy, or as in the paper (4 beams, repetition penalty 2.5, 64 tokens).
    lora_rank: of method lora; with green or full, train adapters of this rank on all linear layers,
        and choose among them.
    lora_targets: where method lora has its adapters.
    load_in_4bit, load_in_8bit: the base in few bits, by bitsandbytes, and adapters beside it.
    virtual_tokens: of prefix and prompt tuning.
    top_blocks: how many of the last blocks method top_blocks trains.
    positions: positions of each prompt that gradient passes through: all, so many before the
        completion (0: the completion alone), or as many as the budget and importance say (choose);
        when None, choose for method green by importance, unless activations are recomputed; and
        all for others.
    steps: choose, with tensors and positions, how many steps are made, where fewer are worth more
        for what they cost; or make all. When None, choose for method green by importance, unless a
        carbon schedule is followed.
    prompts: how much of each prompt a training step reads, where steps are chosen: whole; a part
        (last, first, ends or grounds, and half, quarter or tenth, as "last half"); or choose.
    passes: all: every epoch in full, so all steps are made; useful: `epochs` is an upper bound, and
        rows are seen again only where that is worth it.
    published: as in the paper: tensors alone are chosen, by their own rows, and all steps made.
    stop_early: make only as many steps as `rho` pays for, the schedule of the learning rate
        compressed; for methods that choose nothing by a budget (full_at_budget always does).
    labelled_head: compute logits and loss on labelled positions only; when None, for method green.
    keep_activations: start forward passes at activations kept from earlier epochs, in memory or on
        disk; when None, in memory for method green in more than one epoch.
    keep_bytes, keep_folder: how many bytes are kept, a quarter of what is free when None; and where
        on the disk.
    keep_bfloat16: in half the bytes, and no longer to the bit.
    compile: compile the model block by block.
    evaluate_every, patience: steps between evaluations, and how many without a better held-out
        loss end the run.
    save_every, keep: steps between checkpoints, and how many are kept.
    resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    overwrite: remove an earlier run from `output_dir` first.
    meter: what says how much energy training takes: the hardware's counters, or an estimate where
        there are none (auto); the package codecarbon; or an estimate in any case.
    watts: power of all devices together that an estimate goes by; an assumed one when None.
    carbon_intensity: grams of CO2 a kilowatt hour; by default the world's average of 2023 (Ember,
        Global Electricity Review 2024).
    license: of the trained model, for its card, in the Hub's short form; the base model's if None.
    training: any other `transformers.TrainingArguments`, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "smollm2-135m"
    revision: str | None = None
    task: str = "pydoc"
    tasks: Annotated[tuple[Source, ...], Field(min_length=1)] | None = None
    data_dir: Path | None = None
    prompt_format: Literal["plain", "paper", "source"] = "plain"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    messages_column: str | None = None
    turns: Literal["each", "last"] = "each"
    chat_template: Path | None = None
    test_path: str | None = None
    method: MethodName = "green"
    rho: Share | None = RHO
    hours: Positive | None = None
    kwh: Positive | None = None
    co2_grams: Positive | None = None
    flops: Positive | None = None
    cost: Literal["flops", "seconds"] | None = None
    carbon_schedule: Path | None = None
    epochs: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Amount = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    processes: Annotated[Literal["auto"] | int, BeforeValidator(_processes)] = 1
    parallel: Literal["ddp", "fsdp", "auto"] = "auto"
    batch_size: Count = 4
    accumulate: Count = 1
    max_length: Annotated[int, Field(ge=8)] = 512
    pad_multiple: Count | None = None
    packing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_packing)] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    data_seed: Annotated[int, Field(ge=0)] = 0
    output_dir: Path = Path("runs/green")
    train_limit: Count | None = None
    test_limit: Count | None = None
    validation_limit: Annotated[int, Field(ge=0)] = 0
    selections: Count = 2
    probe_batches: Count = 2
    metric: Metric = "first_order"
    optimizer_state: Literal["keep", "drop", "offload"] = "keep"
    memory: Annotated[Literal["auto"] | int | None, BeforeValidator(_memory)] = None
    weights: Literal["float32", "bfloat16"] | None = None
    fewer: Literal["adapters", "tensors"] = "adapters"
    updates: Literal["step", "backward"] | None = None
    generate: Annotated[int, Field(ge=0)] = 32
    decoding: Literal["greedy", "paper"] = "greedy"
    lora_rank: Count | None = None
    lora_targets: Literal["attention", "all-linear"] = "attention"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    virtual_tokens: Count = 20
    top_blocks: Count = 2
    bf16: bool = False
    activation_checkpointing: bool = False
    positions: Annotated[Literal["all", "choose"] | int | None, BeforeValidator(_positions)] = None
    steps: Literal["all", "choose"] | None = None
    prompts: Annotated[str, AfterValidator(_prompts)] = "whole"
    passes: Literal["all", "useful"] = "useful"
    published: bool = False
    stop_early: bool = False
    labelled_head: bool | None = None
    keep_activations: Literal["nothing", "memory", "disk"] | None = None
    keep_bytes: Count | None = None
    keep_folder: Path | None = None
    keep_bfloat16: bool = False
    compile: bool = False
    evaluate_every: Count | None = None
    patience: Count | None = None
    save_every: Count | None = None
    keep: Count = 2
    license: str | None = None
    resume: bool = False
    overwrite: bool = False
    meter: Literal["auto", "codecarbon", "estimate"] = "auto"
    watts: Annotated[float, Field(gt=0)] | None = None
    carbon_intensity: Positive = WORLD_INTENSITY
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = [name for name in BUDGETS if values.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"give {given[0]} or {given[1]}, not both")
        if values.get("cost") == "seconds" and given == ["flops"]:
            raise ValueError("cost seconds goes with rho: a budget in flops is counted in flops")
        values = {
            name: value for name, value in values.items() if name != "rho" or value is not None
        }
        if values.get("memory") is not None and not given:
            values["rho"] = 1.0
        return values | {"rho": None} if given and given != ["rho"] else values

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("task") is not None and values.get("tasks") is not None:
            raise ValueError("give task or tasks, not both: of several each is one of tasks")
        return {name: value for name, value in values.items() if (name, value) != ("task", None)}

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError(
                "give resume, to go on with the run in the folder, or overwrite, to lose it, not "
                "both"
            )
        if self.carbon_schedule and self.carbon_intensity != WORLD_INTENSITY:
            raise ValueError("give carbon_schedule or carbon_intensity, not both")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("give load_in_4bit or load_in_8bit, not both")
        return self

    @property
    def bits(self) -> Literal[4, 8] | None:
        """Of the base's weights, where they are few."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def count(self) -> int:
        """How many processes train; 1 before it is known what `auto` comes to."""
        return 1 if self.processes == "auto" else self.processes

    @property
    def budget(self) -> tuple[Unit, float]:
        """Unit and amount of what may be spent."""
        given = ((name, getattr(self, name)) for name in BUDGETS)
        return next(((unit, amount) for unit, amount in given if amount is not None), ("rho", RHO))

    def yaml(self, leave_out: Set[str] = frozenset()) -> str:
        """The configuration as YAML; of `task` and `tasks` the one that counts."""
        unused = {*leave_out, *(("task",) if self.tasks else ())}
        text: str = yaml.safe_dump(self.model_dump(mode="json", exclude=unused), sort_keys=False)
        return text

    def save(self, path: Path) -> None:
        """Write the configuration as YAML."""
        path.write_text(self.yaml(), encoding="utf-8")
