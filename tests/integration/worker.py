"""What each process of a two-process test does: `torchrun worker.py SCENARIO FOLDER`.

Every scenario leaves `FOLDER/RANK.json`, which the test reads.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from greentrainer import AdaptiveBackprop
from greentrainer.engine import hollow
from greentrainer.forward import ForwardOptions
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.model import Alone, Replicas, Together, blocks, checksums
from tests.conformance.families import batch_for, build
from tests.trainer import arguments, mixed

Batches = Callable[[int, int], dict[str, torch.Tensor]]
Exchanged = torch.futures.Future[torch.Tensor]
STEPS = 24
RHO = 0.6


def batch(step: int, rank: int) -> dict[str, torch.Tensor]:
    """Every process has batches of its own."""
    return batch_for("", seed=2 * step + rank)


def prompted(step: int, rank: int) -> dict[str, torch.Tensor]:
    """A batch whose prompt is shorter in the second process."""
    found = batch_for("", length=40, seed=2 * step + rank)
    found["labels"][:, : 36 - 12 * rank] = -100
    return found


def loop(
    model: nn.Module, engine: AdaptiveBackprop, rank: int, batch: Batches = batch
) -> list[bool]:
    """Train; whether the processes held the same weights after each step."""
    equal, bare = [], engine.model
    for step in range(STEPS):
        engine.prepare(lambda step=step: [batch(1000 + step, rank)])  # type: ignore[misc]
        model(**batch(step, rank)).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        if not any(isinstance(p, DTensor) for p in bare.parameters()):
            equal.append(engine.processes.same(dict(bare.named_parameters())))
    return equal


def start(family: str, **more: Any) -> tuple[nn.Module, Callable[..., AdaptiveBackprop]]:
    """A model, and what makes its engine."""
    model = build(family, **more).train()

    def engine(processes: Alone, **options: Any) -> AdaptiveBackprop:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return AdaptiveBackprop(
            model, optimizer, batch(0, 0), rho=RHO, total_batches=STEPS, every=STEPS // 2,
            processes=processes, **options,
        )  # fmt: skip

    return model, engine


def result(engine: AdaptiveBackprop, **more: Any) -> dict[str, Any]:
    """What a test wants to know of a finished run."""
    return {
        "names": [list(event["names"]) for event in engine.history],
        "rho_spent": engine.ledger.rho_spent,
        "spent": [engine.ledger.spent_flops, engine.ledger.full_flops],
        "weights": whole(engine.model),
        **more,
    }


def whole(model: nn.Module) -> list[int]:
    """A checksum of each whole tensor."""
    tensors = {
        name: p.full_tensor() if isinstance(p, DTensor) else p
        for name, p in model.named_parameters()
    }
    found: list[int] = checksums(tensors).tolist()
    return found


def ddp(folder: Path, rank: int) -> dict[str, Any]:
    """A plain loop under DDP; counts what is exchanged."""
    model, make = start("llama")
    wrapper = DistributedDataParallel(model)
    exchanged: list[int] = []

    def note(_state: Any, bucket: dist.GradBucket) -> Exchanged:  # type: ignore[name-defined]
        exchanged.append(bucket.buffer().numel())
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        mean: Exchanged = work.get_future().then(lambda done: done.value()[0] / 2)
        return mean

    wrapper.register_comm_hook(None, note)
    engine = make(Replicas(wrapper))
    equal = loop(wrapper, engine, rank)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    last = sum(sizes[name] for name in engine.history[-1]["names"])
    torch.save(dict(model.named_parameters()), folder / f"ddp-{rank}.pt")
    return result(engine, equal=equal, exchanged=exchanged, last=last)


def ddp_positions(folder: Path, rank: int) -> dict[str, Any]:
    """A loop under DDP with gradient through the ends of rows, which differ in length."""
    model = build("llama").train()
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = AdaptiveBackprop(
        model, optimizer, prompted(0, rank), rho=RHO, total_batches=STEPS, every=STEPS // 2,
        processes=Replicas(wrapper), positions="choose",
    )  # fmt: skip
    equal = loop(wrapper, engine, rank, prompted)
    tails = [event["tail"] for event in engine.history]
    tokens = engine.ledger.summary()
    return result(engine, equal=equal, tails=tails, share=tokens["tail_tokens"] / tokens["tokens"])


def fsdp(folder: Path, rank: int) -> dict[str, Any]:
    """The same loop with FSDP2 shards."""
    model, make = start("llama")
    copy = hollow(model)
    for block in blocks(model):
        fully_shard(block)
    fully_shard(model)
    engine = make(Together(), hollow=copy)
    loop(model, engine, rank)
    shards = [p for p in model.parameters() if isinstance(p, DTensor)]
    return result(engine, sharded=len(shards), tensors=len(list(model.parameters())))


class Killed(TrainerCallback):
    """The second process dies in the middle."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(folder: Path, rank: int, **more: Any) -> dict[str, Any]:
    """`GreenTrainer` under DDP, with accumulation."""
    settings = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    made = GreenTrainer(
        build("llama"),
        arguments(folder / "run", **settings),
        **mixed(96),
        green=GreenConfig(rho=RHO, probe_batches=1, every_epochs=0.5),
        callbacks=more.get("callbacks", []),
    )
    made.train(resume_from_checkpoint=more.get("resume"))
    assert isinstance(made.model_wrapped, DistributedDataParallel)
    return result(made.engine, steps=made.state.global_step)


def trainer_short(folder: Path, rank: int) -> dict[str, Any]:
    """`GreenTrainer` under DDP with forward passes shortened, each process for its own examples."""
    forward = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=10**8)
    made = GreenTrainer(
        build("llama"),
        arguments(folder / "short", num_train_epochs=4),
        **mixed(16),
        green=GreenConfig(rho=0.45, probe_batches=1, every_epochs=2, forward=forward),
    )
    made.train()
    return result(made.engine, skipped=made.ledger.total("skipped_flops"))


def trainer_killed(folder: Path, rank: int) -> dict[str, Any]:
    """The same, and the second process dies."""
    return trainer(folder, rank, callbacks=[Killed()])


def trainer_resumed(folder: Path, rank: int) -> dict[str, Any]:
    """Goes on where that left off."""
    return trainer(folder, rank, resume=True)


def drifting(folder: Path, rank: int) -> dict[str, Any]:
    """A replica is changed behind DDP's back: the next selection must notice."""
    model, make = start("llama")
    engine = make(Replicas(DistributedDataParallel(model)))
    with torch.no_grad():
        next(model.parameters())[0, 0] += float(rank)
    try:
        engine.reselect([batch(0, rank)])
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": None}


SCENARIOS = {
    s.__name__: s
    for s in (
        ddp,
        ddp_positions,
        fsdp,
        trainer,
        trainer_short,
        trainer_killed,
        trainer_resumed,
        drifting,
    )
}


def main() -> None:
    torch.set_num_threads(1)
    name, folder = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = SCENARIOS[name](folder, rank)
    (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    gc.collect()  # reducers go before the group that they belong to
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
