"""Several processes from the command line: one run, as one process would make it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from greentrainer.model import checksums
from tests.tiny import saved

pytestmark = pytest.mark.thorough

MODULE = ["-m", "greentrainer.cli"]
PYTHON = [sys.executable]
TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [*PYTHON, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0", "--module", "greentrainer.cli"]  # fmt: skip
WAYS = {
    "processes": ([*PYTHON, *MODULE], ["--processes", "2"]),
    "torchrun": ([*TORCHRUN, *MODULE], []),
    "accelerate": (ACCELERATE, []),
}
FLAGS = ["--max-length", "32", "--generate", "2", "--selections", "2", "--probe-batches", "2",
         "--learning-rate", "1e-3", "--batch-size", "2"]  # fmt: skip
ROWS = 80
CLEAR_END = 30.0
"""Seconds in which a run has to be over when one of its processes is."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    saved(folder / "base")
    rows = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(ROWS + 6)]
    for name, some in (("mine", rows[:ROWS]), ("test", rows[ROWS:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    return folder


def start(home: Path, name: str, way: str | None, *flags: str) -> "subprocess.Popen[str]":
    """`greentrainer train` into the folder `name`; way: how several are started."""
    before, after = WAYS[way] if way else ([*PYTHON, *MODULE], [])
    words = ["train", "--model", "base", "--task", "mine.jsonl", "--output-dir", name,
             "--set", "test_path=test.jsonl", *FLAGS, *after, *flags]  # fmt: skip
    own = {"OMP_NUM_THREADS": "1", "GREENTRAINER_KEEP": "off", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*before, *words], cwd=home, env=os.environ | own, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def trained(home: Path, name: str, way: str | None, *flags: str) -> dict[str, Any]:
    """The same, to its end; its bill."""
    process = start(home, name, way, *flags)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    bill: dict[str, Any] = json.loads((home / name / "metrics.json").read_text())["bill"]
    return bill


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder / "steps.jsonl")]


def weights(folder: Path) -> list[int]:
    found: list[int] = checksums(load_file(folder / "model" / "model.safetensors")).tolist()
    return found


@pytest.mark.parametrize(("method", "count"), [("full", 2), ("green", 2), ("full", 4)])
def test_processes_make_the_run_of_one_with_the_same_global_batch(
    home: Path, method: str, count: int
) -> None:
    own = ["--method", method, "--rho", "0.6", "--published", "--epochs", "2"]
    alone, shared = f"{method}-{count}-one", f"{method}-{count}-all"
    one = trained(home, alone, None, *own, "--accumulate", str(count))
    two = trained(home, shared, "processes", *own, "--processes", str(count))
    assert two["processes"] == count
    told = losses(home / alone), losses(home / shared)
    assert len(told[0]) == len(told[1]) == 2 * ROWS // (2 * count)
    assert told[1] == pytest.approx(told[0], abs=1e-5)
    for key in ("spent_flops", "full_flops", "plain_full_flops", "batches", "tokens"):
        assert one[key] == two[key], key
    books = lines(home / shared / "ledger.jsonl")
    spent = sum(row["forward_flops"] + row["backward_flops"] for row in books)
    assert spent == two["spent_flops"]
    if method == "green":
        assert 0.5 < two["rho_spent"] <= 0.6
    chosen = [lines(home / name / "selections.jsonl") for name in (alone, shared)]
    assert [e["names"] for e in chosen[0]] == [e["names"] for e in chosen[1]]
    assert [e["batch"] for e in chosen[0]] == [e["batch"] for e in chosen[1]]
    after = [json.loads((home / n / "metrics.json").read_text()) for n in (alone, shared)]
    assert after[1]["before"]["loss"] == after[0]["before"]["loss"]  # the evaluation was shared
    assert after[1]["after"]["loss"] == pytest.approx(after[0]["after"]["loss"], abs=1e-5)


def test_four_processes_keep_to_a_share_together(home: Path) -> None:
    """Each measures a batch at least, so what is chosen may be another than one would choose.

    That all hold the same weights after each choice is looked at as they train.
    """
    flags = ["--rho", "0.6", "--published", "--epochs", "2", "--processes", "4"]
    bill = trained(home, "four", "processes", *flags)
    assert bill["processes"] == 4
    assert 0.5 < bill["rho_spent"] <= 0.6
    books = lines(home / "four" / "ledger.jsonl")
    spent = sum(row["forward_flops"] + row["backward_flops"] for row in books)
    assert spent == bill["spent_flops"]
    assert bill["exchanged_bytes"] < bill["full_exchanged_bytes"]


def test_it_is_the_same_run_however_it_is_started(home: Path) -> None:
    bills = {way: trained(home, way, way, "--rho", "0.6") for way in WAYS}
    for way, bill in bills.items():
        assert bill["processes"] == 2
        assert bill["spent_flops"] <= 0.6 * bill["plain_full_flops"]
        assert bill["spent_flops"] == bills["processes"]["spent_flops"]
        assert weights(home / way) == weights(home / "processes")
        assert (home / way / "logs" / "rank1.log").is_file()
        assert {path.name for path in (home / way).iterdir()} == {
            "config.yaml", "run.json", "costs.json", "steps.jsonl", "report.html", "ledger.jsonl",
            "selections.jsonl", "log.jsonl", "metrics.json", "predictions.jsonl", "model", "logs",
        }  # fmt: skip


@pytest.mark.parametrize("budget", [("flops", "2e8"), ("kwh", "2e-4"), ("hours", "0.003")])
def test_every_budget_is_kept_to_together(home: Path, budget: tuple[str, str]) -> None:
    unit, amount = budget
    bill = trained(home, unit, "processes", f"--{unit}", amount, "--epochs", "6")
    spent = {"flops": bill["spent_flops"], "kwh": bill["energy_kwh"],
             "hours": bill["used_seconds"] / 3600}  # fmt: skip
    most = 1.0 if unit == "flops" else 1.5  # a busy machine may be slower than its clock says
    assert 0 < spent[unit] <= most * float(amount)
    assert bill["steps"] > 1
    if unit == "flops":
        assert bill["ending"] == "the budget is spent"


def test_one_process_under_a_launcher_is_wrapped_as_any(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be seen of several GPUs on one: DDP with a reducer that has to be rebuilt."""
    monkeypatch.setitem(WAYS, "one", ([*TORCHRUN[:-1], "1", *MODULE], []))
    bill = trained(home, "one", "one", "--rho", "0.6", "--published", "--accumulate", "2")
    assert bill["processes"] == 1
    assert 0.5 < bill["rho_spent"] <= 0.6


METHODS = {
    "lora": ["--method", "lora", "--lora-rank", "2"],
    "lisa": ["--method", "lisa"],
    "stop_early": ["--method", "full_at_budget", "--rho", "0.6"],
    "evaluated": ["--rho", "0.6", "--evaluate-every", "5", "--patience", "9"],
}


@pytest.mark.parametrize("name", list(METHODS))
def test_the_other_methods_run_so_too(home: Path, name: str) -> None:
    bill = trained(home, name, "processes", *METHODS[name])
    assert bill["processes"] == 2
    assert bill["steps"] > 0
    if name == "stop_early":
        assert bill["spent_flops"] <= 0.6 * bill["plain_full_flops"]


def test_only_gradients_of_what_is_trained_travel(home: Path) -> None:
    bill = trained(home, "bytes", "processes", "--rho", "0.5", "--published")
    sizes = {
        one["name"]: one["elements"]
        for one in json.loads((home / "bytes" / "costs.json").read_text())["tensors"]
    }
    events = lines(home / "bytes" / "selections.jsonl")
    batches = [row["batches"] for row in lines(home / "bytes" / "steps.jsonl")]
    wanted = 0
    for end in batches:  # what was in force before the step's last batch
        chosen = [event for event in events if event["batch"] < end][-1]
        wanted += 2 * 4 * sum(sizes[name] for name in chosen["names"])
    assert bill["exchanged_bytes"] == wanted
    assert bill["full_exchanged_bytes"] == 2 * 4 * sum(sizes.values()) * len(batches)
    assert wanted < 0.7 * bill["full_exchanged_bytes"]


def test_shards_make_the_run_of_one_process(home: Path) -> None:
    own = ["--rho", "0.6", "--published", "--epochs", "2"]
    flags = [*own, "--parallel", "fsdp", "--save-every", "30"]
    bill = trained(home, "shards", "processes", *flags)
    assert bill["spent_flops"] <= 0.6 * bill["plain_full_flops"]
    whole = weights(home / "shards")
    names = {path.name for path in (home / "shards" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    shutil.rmtree(home / "shards" / "checkpoints" / "checkpoint-40")
    shutil.rmtree(home / "shards" / "model")
    trained(home, "shards", "processes", *flags, "--resume")
    assert weights(home / "shards") == whole
    trained(home, "replicas", "processes", *own, "--method", "full")
    trained(home, "sharded-full", "processes", *own, "--method", "full", "--parallel", "fsdp")
    assert losses(home / "sharded-full") == pytest.approx(losses(home / "replicas"), abs=1e-5)


def test_of_shards_only_gradients_of_what_is_trained_travel(home: Path) -> None:
    """Given once a batch by each; weights are made whole for both passes, where both need them."""
    flags = ["--parallel", "fsdp", "--published"]
    bills = {
        name: trained(home, f"sent-{name}", "processes", *flags, "--method", name, "--rho", "0.5")
        for name in ("full", "green")
    }
    whole = bills["full"]["full_exchanged_bytes"]
    assert whole == bills["green"]["full_exchanged_bytes"]
    assert whole <= bills["full"]["exchanged_bytes"] <= 1.1 * whole  # filled up to even shares
    assert 0 < bills["green"]["exchanged_bytes"] < 0.8 * bills["full"]["exchanged_bytes"]
    assert 0 < bills["green"]["gathered_bytes"] < bills["full"]["gathered_bytes"]


# Ends


def processes_of(command: "subprocess.Popen[str]") -> dict[int, psutil.Process]:
    """The processes that train, by rank."""
    found = {}
    for child in psutil.Process(command.pid).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None:
            found[int(rank)] = child
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def steps(folder: Path) -> int:
    path = folder / "steps.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


LONG = ["--rho", "0.6", "--epochs", "6", "--passes", "all", "--save-every", "4",
        "--set", "keep_activations=nothing"]  # fmt: skip
"""What is kept is gone when a run resumes, and then costs are others."""


@pytest.fixture(scope="module")
def whole(home: Path) -> list[int]:
    trained(home, "whole", "processes", *LONG)
    return weights(home / "whole")


def moments() -> Iterator[tuple[int, float, int]]:
    """Steps after which, and the part of a second after these, and who is killed."""
    from random import Random

    chance = Random(22)
    for _ in range(int(os.environ.get("GREENTRAINER_KILLS", "2"))):
        yield chance.randrange(100), chance.random() / 5, chance.randrange(2)


def test_a_killed_process_ends_all_and_the_run_resumes_to_the_same_bits(
    home: Path, whole: list[int]
) -> None:
    """GREENTRAINER_KILLS: at how many moments, 2 if nothing else is said."""
    for number, (step, more, rank) in enumerate(moments()):
        name = f"killed-{number}"
        command = start(home, name, "processes", *LONG)
        wait_for(lambda name=name, step=step: steps(home / name) > step)  # type: ignore[misc]
        time.sleep(more)
        there = processes_of(command)
        if rank not in there:  # it was over already
            command.communicate(timeout=60)
            continue
        begun = time.monotonic()
        there[rank].kill()
        _, told = command.communicate(timeout=60)
        assert time.monotonic() - begun < CLEAR_END
        last = told.strip().splitlines()[-1]
        assert last.startswith(f"error: process {rank} ended by SIGKILL")
        assert command.returncode == 2
        assert not any(one.is_running() for one in there.values())
        state = json.loads((home / name / "run.json").read_text())
        assert state["status"] == "failed"
        assert f"process {rank} ended by SIGKILL" in state["error"]
        bill = trained(home, name, "processes", *LONG, "--resume")
        assert weights(home / name) == whole
        told = json.loads((home / "whole" / "metrics.json").read_text())["bill"]
        for key in ("spent_flops", "exchanged_bytes", "batches"):
            assert bill[key] == told[key], key
        assert losses(home / name) == losses(home / "whole")


@pytest.mark.parametrize("way", ["processes", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_at_one_step_and_loses_nothing(
    home: Path, whole: list[int], way: str, number: signal.Signals
) -> None:
    """SIGUSR1 as Slurm sends it: to one of the processes here."""
    name = f"stopped-{way}-{number}"
    command = start(home, name, way, *LONG)
    wait_for(lambda: steps(home / name) > 9)
    if number == signal.SIGUSR1:
        processes_of(command)[1].send_signal(number)
    else:
        command.send_signal(number)
    command.communicate(timeout=60)
    assert command.returncode != 0
    state = json.loads((home / name / "run.json").read_text())
    assert state["status"] == "interrupted"
    made = state["steps"]
    assert (home / name / "checkpoints" / f"checkpoint-{made}").is_dir()
    trained(home, name, way, *LONG, "--resume")
    assert weights(home / name) == whole


HANGING = """
import os, time
from greentrainer import cli
from greentrainer.run import training

plain, steps = training.RunTrainer.training_step, []

def step(self, *args, **kwargs):
    steps.append(1)
    if len(steps) == 5 and os.environ["RANK"] == "1":
        time.sleep(1000)
    return plain(self, *args, **kwargs)

training.RunTrainer.training_step = step
cli.main()
"""


def test_a_hang_is_ended_by_a_time_limit_that_names_the_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "hanging.py").write_text(HANGING)
    monkeypatch.setitem(WAYS, "hanging", ([*TORCHRUN, "hanging.py"], []))
    command = start(home, "hanging", "hanging", "--rho", "0.6", "--set", "training.ddp_timeout=6")
    _, told = command.communicate(timeout=200)
    assert command.returncode != 0
    assert "error: process 1 stands still for more than 6 seconds" in told
    state = json.loads((home / "hanging" / "run.json").read_text())
    assert state["status"] == "failed"
    assert state["error"] == "process 1 stands still for more than 6 seconds"


def test_a_launcher_that_is_killed_leaves_nobody_behind(home: Path) -> None:
    command = start(home, "orphans", "processes", *LONG)
    wait_for(lambda: steps(home / "orphans") > 3)
    there = processes_of(command)
    command.kill()
    command.communicate(timeout=CLEAR_END)  # until none of them holds its pipes
    wait_for(lambda: not any(one.is_running() for one in there.values()), CLEAR_END)
    state = json.loads((home / "orphans" / "run.json").read_text())
    assert state["status"] == "failed"


def test_another_number_of_processes_goes_on(home: Path) -> None:
    own = ["--rho", "0.6", "--epochs", "2", "--published", "--save-every", "15"]
    two = trained(home, "two", "processes", *own)
    for name in ("checkpoints/checkpoint-40", "checkpoints/checkpoint-30", "model"):
        shutil.rmtree(home / "two" / name, ignore_errors=True)
    command = start(home, "two", None, *own, "--resume")
    _, told = command.communicate(timeout=200)
    assert command.returncode == 0, told[-3000:]
    assert "a run of 2 processes goes on in 1: each accumulates 2 batches" in told
    one = json.loads((home / "two" / "metrics.json").read_text())["bill"]
    assert one["steps"] == two["steps"]
    assert one["batches"] == two["batches"]
    assert one["full_flops"] == two["full_flops"]
    assert one["spent_flops"] <= 0.6 * one["plain_full_flops"]
    refused = start(home, "two", None, *own, "--resume", "--processes", "3")
    _, told = refused.communicate(timeout=100)
    assert refused.returncode == 2
    assert "steps of 2 batches" in told


def test_what_a_user_can_mend_is_told_once(home: Path) -> None:
    wrong = start(home, "wrong", "processes", "--rho", "0.05")
    _, told = wrong.communicate(timeout=120)
    assert wrong.returncode == 2
    assert told.count("error:") == 1
    assert "rho" in told
    assert "Traceback" not in told
