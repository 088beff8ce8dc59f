"""Readers against files that were made wrong: `python -m tools.fuzz --minutes 10`.

Valid files are mutated (`mutations.py`) and given to what reads them (`readers.py`).  Each case
must end in time, and either well or with a `ValueError` or an `OSError`, which the command line
tells in one line.  Nothing may be written outside of the case's folder, nothing unpickled, no
program started, and no connection made.  Readers run in a process of their own, which may hang
or crash.

    python -m tools.fuzz --minutes 10 --only jsonl --only config
    python -m tools.fuzz --case "run folder" 127 --keep broken   # one case again, its files kept

Ends with exit code 1 if anything was found.
"""

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.readers import READERS, Reader, silently

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60.0
"""In which a case must end, the machine busy with other things."""
LONGEST = 4000
"""Characters that an error may have."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
            "os.truncate", "os.chmod", "os.chown", "shutil.rmtree", "shutil.move"}  # fmt: skip
WITHIN = {"os.remove", "os.rmdir", "os.mkdir"}
"""What may be told a folder by its number, as the last argument."""
FORBIDDEN = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
             "os.fork", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen"}  # fmt: skip


class Watch:
    """What the process does, by Python's audit events, while `folder` is set."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in FORBIDDEN and args != (None,):  # no library: the process itself
            self.seen.append(f"{event} {str(args)[:120]}")
        elif event in CHANGING or (event == "open" and (args[2] or 0) & WRITES):
            path, at = args[0], args[-1] if event in WITHIN else -1
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            within = os.readlink(f"/proc/self/fd/{at}") if at >= 0 else ""
            if not self._may(os.path.join(within, os.fsdecode(path))):
                self.seen.append(f"{event} of {os.fsdecode(path)}")

    def _may(self, path: str) -> bool:
        if path.startswith("/dev/") or path.endswith(".pyc") or "__pycache__" in path:
            return True
        full = os.path.abspath(path)
        return full == str(self.folder) or full.startswith(f"{self.folder}{os.sep}")


def case(reader: Reader, files: dict[str, bytes], seed: str, folder: Path, watch: Watch) -> str:
    """Run one; what is wrong with how it ended, in one line, or nothing."""
    chance = random.Random(seed)
    inside = folder / "given"
    for name, content in reader.mutated(files, chance).items():
        path = inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    watch.seen, watch.folder = [], folder
    said, elsewhere, tempfile.tempdir = "", tempfile.tempdir, str(folder)
    try:
        silently(reader.read, inside)
    except (ValueError, OSError) as error:
        told = " ".join(str(error).split())
        said = "" if 0 < len(told) <= LONGEST else f"an error of {len(told)} characters"
        said = f"{type(error).__name__} {_where(error)}: {said}" if said else ""
    except BaseException as error:
        said = f"{type(error).__name__} {_where(error)}: {' '.join(str(error).split())[:150]}"
    finally:
        watch.folder, tempfile.tempdir = None, elsewhere
    return said or "; ".join(dict.fromkeys(watch.seen))


def _where(error: BaseException) -> str:
    """The last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/greentrainer/" in f.filename] or frames
    return f"({Path(ours[-1].filename).name}:{ours[-1].lineno})"


def work(name: str, start: int, seed: int, seconds: float) -> None:
    """Cases of a reader from a number on for so long, told on standard output a line each."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    reader, watch = READERS[name], Watch()
    with tempfile.TemporaryDirectory() as top:
        files = reader.files(Path(top) / "made")
        os.environ["TMPDIR"] = tempfile.tempdir = top
        silently(reader.read, laid(files, Path(top) / "valid"))  # what is valid must be read
        number, until = start, time.monotonic() + seconds
        while time.monotonic() < until:
            folder = Path(top) / f"case-{number}"
            out.write(json.dumps({"begin": number}) + "\n")
            folder.mkdir()
            said = case(reader, files, f"{seed}/{name}/{number}", folder, watch)
            out.write(json.dumps({"end": number, "said": said}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            number += 1


def laid(files: dict[str, bytes], folder: Path) -> Path:
    """The folder with these files in it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def lines(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[dict[str, Any] | None]:
    """What a worker tells; None where it says nothing for so long, and ends with its end."""
    assert process.stdout is not None
    held, file = b"", process.stdout.fileno()
    while True:
        ready, _, _ = select.select([file], [], [], seconds)
        if not ready:
            yield None
            continue
        if not (more := os.read(file, 1 << 16)):
            return
        *whole, held = (held + more).split(b"\n")
        for line in whole:
            if line.startswith(b'{"'):
                yield json.loads(line)


def attack(name: str, seed: int, seconds: float) -> tuple[int, dict[str, list[int]]]:
    """Cases made, and by what was found (the first of its kind) the numbers of its cases."""
    number, found, left = 0, dict[str, list[int]](), seconds
    first: dict[str, str] = {}
    while left > 0:
        words = ["--work", name, str(number), str(seed), str(left)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.fuzz", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun, said, clock = None, "", time.monotonic()
        for told in lines(process, SECONDS):
            if told is None and begun is not None:
                said = f"takes more than {SECONDS:g} s"
                process.kill()
            elif told is not None and "begin" in told:
                begun = told["begin"]
            elif told is not None:
                number, begun = told["end"] + 1, None
                if here := told["said"]:
                    key = first.setdefault(here.partition(": ")[0], here)
                    found.setdefault(key, []).append(told["end"])
        _, errors = process.communicate()
        left -= time.monotonic() - clock
        if begun is not None:
            last = (errors.decode(errors="replace").strip() or "-").split("\n")[-1]
            said = said or f"crashed with {process.returncode}: {last[:150]}"
            found.setdefault(said, []).append(begun)
            number = begun + 1
        elif process.returncode:
            raise SystemExit(f"{name}: {errors.decode()[-3000:]}")
        else:
            break
    return number, found


def again(name: str, number: int, seed: int, keep: Path | None) -> str:
    """One case once more, in this process; keep: where its files are left."""
    reader = READERS[name]
    folder = keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    files = reader.files(Path(tempfile.mkdtemp()) / "made")
    silently(reader.read, laid(files, Path(tempfile.mkdtemp())))
    return case(reader, files, f"{seed}/{name}/{number}", folder.resolve(), Watch())


def main() -> None:
    """As the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=READERS, help="readers; all if not")
    parser.add_argument("--case", nargs=2, metavar=("READER", "NUMBER"))
    parser.add_argument("--keep", type=Path, help="folder for the files of --case")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        name, start, seed, seconds = asked.work
        work(name, int(start), int(seed), float(seconds))
        return
    if asked.case:
        print(again(asked.case[0], int(asked.case[1]), asked.seed, asked.keep) or "nothing")
        return
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    names, total = asked.only or list(READERS), 0
    for name in names:
        count, found = attack(name, asked.seed, 60 * asked.minutes / len(names))
        print(f"{name}: {count} cases, {len(found)} findings", flush=True)
        for said, numbers in found.items():
            print(f"  {said}: {len(numbers)} times, as in {numbers[0]}", flush=True)
        total += len(found)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
