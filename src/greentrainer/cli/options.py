"""Flags that several commands share: their names, types and one line of help each."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option(help="smollm2-135m, a folder, a GGUF file, or a hub id")]
Task = Annotated[
    list[str] | None,
    typer.Option(help="pydoc, scitldr, ..., your own file, or a hub id; several are mixed"),
]
ChatTemplate = Annotated[
    Path | None, typer.Option(help="file with a chat template, in place of the tokenizer's")
]
DataDir = Annotated[Path | None, typer.Option(help="folder with a published data set's files")]
PromptFormat = Annotated[str | None, typer.Option(help="plain, paper or source")]
Method = Annotated[
    str | None,
    typer.Option(help="green, full, full_at_budget, lora, prefix, top2, bitfit, lisa, ..."),
]
Rho = Annotated[float | None, typer.Option(help="share of full fine-tuning's FLOPs to spend")]
Hours = Annotated[float | None, typer.Option(help="a budget in place of rho: hours of training")]
Memory = Annotated[
    str | None, typer.Option(help="bytes that the run may take, as 6GB; auto: what there is")
]
Kwh = Annotated[float | None, typer.Option(help="a budget in place of rho: kilowatt-hours")]
Grams = Annotated[float | None, typer.Option(help="a budget in place of rho: grams of CO2")]
FlopsBudget = Annotated[float | None, typer.Option(help="a budget in place of rho: FLOPs")]
Cost = Annotated[str | None, typer.Option(help="what tensors are weighed by: flops or seconds")]
CarbonSchedule = Annotated[Path | None, typer.Option(help="CSV of times and gCO2/kWh to follow")]
Epochs = Annotated[int | None, typer.Option(help="passes over the training data, at most")]
StepsAsked = Annotated[
    str | None, typer.Option("--steps", help="choose how many steps are made, or make all")
]
Passes = Annotated[
    str | None, typer.Option(help="all: every pass in full; useful: where it is worth its cost")
]
Prompts = Annotated[
    str | None, typer.Option(help='whole, or a part of each is read: "last half", ...; or choose')
]
Published = Annotated[
    bool | None, typer.Option("--published", help="tensors alone, at every step, as in the paper")
]
LearningRate = Annotated[float | None, typer.Option(help="peak learning rate of AdamW")]
BatchSize = Annotated[int | None, typer.Option(help="examples a batch, of each process")]
BatchSizeOrAuto = Annotated[
    str | None,
    typer.Option("--batch-size", help="examples a batch of each process; auto: as many as fit"),
]
Processes = Annotated[
    str | None, typer.Option(help="that train together; auto: one for each GPU (docs/scale.md)")
]
Parallel = Annotated[
    str | None, typer.Option(help="ddp: each holds the model; fsdp: a part of it; auto")
]
Revision = Annotated[str | None, typer.Option(help="of a model on the hub: branch, tag or commit")]
MaxLength = Annotated[int | None, typer.Option(help="tokens of prompt and completion together")]
Seed = Annotated[int | None, typer.Option(help="of shuffling, sampling and dropout")]
OutputDir = Annotated[Path | None, typer.Option(help="the run's folder")]
TrainLimit = Annotated[int | None, typer.Option(help="training examples used")]
TestLimit = Annotated[int | None, typer.Option(help="held-out examples used")]
Selections = Annotated[int | None, typer.Option(help="how often tensors are chosen over the run")]
ProbeBatches = Annotated[int | None, typer.Option(help="batches importance is measured on")]
Generate = Annotated[int | None, typer.Option(help="held-out completions to generate and score")]
DecodingName = Annotated[str | None, typer.Option("--decoding", help="greedy, or paper: 4 beams")]
Accumulate = Annotated[int | None, typer.Option(help="batches an optimizer step")]
Bf16 = Annotated[bool | None, typer.Option(help="compute in bfloat16 where that is safe")]
Checkpointing = Annotated[bool | None, typer.Option(help="recompute activations to save memory")]
Compile = Annotated[bool | None, typer.Option(help="compile the model block by block")]
LoraRank = Annotated[int | None, typer.Option(help="train adapters of this rank, chosen among")]
LoadIn4Bit = Annotated[
    bool | None, typer.Option("--load-in-4bit", help="the base in 4 bits, adapters beside it")
]
LoadIn8Bit = Annotated[
    bool | None, typer.Option("--load-in-8bit", help="the base in 8 bits, adapters beside it")
]
EvaluateEvery = Annotated[int | None, typer.Option(help="steps between evaluations")]
Patience = Annotated[int | None, typer.Option(help="evaluations without gain that end the run")]
SaveEvery = Annotated[int | None, typer.Option(help="steps between checkpoints")]
Keep = Annotated[int | None, typer.Option(help="checkpoints kept")]
Resume = Annotated[bool | None, typer.Option(help="go on from the last whole checkpoint")]
Overwrite = Annotated[
    bool | None, typer.Option("--overwrite", help="remove an earlier run from the folder first")
]
Watts = Annotated[float | None, typer.Option(help="power that an estimate of energy goes by")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any other key, as training.lr_scheduler_type=cosine"),
]
Folder = Annotated[Path, typer.Argument(help="a folder")]
BaseModel = Annotated[str, typer.Argument(help="the model that training began with")]
