"""What a Trainer asks for that selection cannot be joined with, and what to do in its place."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

MIX = (
    "mix greentrainer.hf.Green into this Trainer (class GreenX(Green, X): pass) and give it "
    "green=GreenConfig(...) in place of the callback"
)
MADE_WITHIN = (
    "this Trainer makes what the model is called with in its step, where the callback cannot make "
    f"any: {MIX}"
)


def refuse(
    args: TrainingArguments,
    model: nn.Module,
    optimizer: Any,
    *,
    alone: bool,
    traceable: bool,
    in_backward: bool,
    callback: bool,
) -> None:
    """Raise ValueError where selection cannot work.

    alone: nothing is known of other processes.  in_backward: updates are made in the backward pass.
    callback: a callback asks, which sees no more than the model.
    """
    if args.deepspeed or type(optimizer).__module__.startswith("deepspeed"):
        raise ValueError("DeepSpeed ZeRO ignores what is frozen between steps: use DDP or FSDP2")
    if args.n_gpu > 1:
        raise ValueError(
            "DataParallel copies the model at each step: start with torchrun, or show one GPU "
            "(CUDA_VISIBLE_DEVICES)"
        )
    if args.torch_compile:
        raise ValueError(
            "torch_compile compiles the model whole, a graph for each selection: use "
            "greentrainer.hf.blocks.compile_blocks(model)"
        )
    if args.world_size > 1 and alone:
        raise ValueError(f"a callback cannot rebuild the wrapper of replicas: {MIX}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{type(optimizer).__name__} is no torch optimizer")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise ValueError(
            f"{len(missing)} trainable tensors are not in the optimizer ({missing[0]}, ...)"
        )
    if not traceable:
        raise ValueError(f"a sharded model cannot be traced any more: {MIX}")
    if in_backward:
        _refuse_in_backward(args, callback)


def _refuse_in_backward(args: TrainingArguments, callback: bool) -> None:
    if callback:
        raise ValueError(f"a callback does not know which backward pass is a step's: {MIX}")
    reasons = {
        "accumulated gradients (gradient_accumulation_steps)": args.gradient_accumulation_steps > 1,
        "several processes": args.world_size > 1,
        "scaled gradients (fp16)": args.fp16,
    }
    for what, asked in reasons.items():
        if asked:
            raise ValueError(f"updates in the backward pass do not go with {what}")
