"""The report in a real browser: silent, alone, and deaf to hostile names."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from greentrainer.report.draw import draw
from tests.folders import HOSTILE, folder

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")


def opened(page: Path, tmp_path: Path) -> tuple[str, str, list[str]]:
    """The page as it stands after loading, what was said on the console, and what it asked for."""
    assert BROWSER is not None
    net = tmp_path / "net.json"
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={net}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    log: Any = json.loads(net.read_text())
    events = [event.get("params", {}) for event in log["events"]]
    # a file has no origin; what the browser asks for itself is "not an origin"
    asked = [event["url"] for event in events if event.get("initiator") == "null"]
    return done.stdout, said, asked


@pytest.mark.parametrize("status", ["done", "failed", "running"])
def test_a_report_opens_without_a_word_or_a_request(status: str, tmp_path: Path) -> None:
    steps = 6 if status == "done" else 3
    run = folder(tmp_path / "run", status, steps=steps, evil=HOSTILE)
    page = draw(run)
    dom, said, asked = opened(page, tmp_path)
    assert said == ""
    assert asked == []
    assert "alert(" in dom
    assert "<script" not in dom


def test_a_page_that_does_both_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('oh')</script><img src='http://example.org/a.png'>")
    _, said, asked = opened(page, tmp_path)
    assert "oh" in said
    assert asked == ["http://example.org/a.png"]
