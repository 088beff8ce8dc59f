"""A picture of a page: `python benchmarks screenshot PAGE.html PICTURE.png`.

Needs Chromium or Chrome on the PATH.  `--dark` asks for the dark colours.  The page is drawn with
no network: whatever it asked for would be missing.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NOWHERE = "MAP * ~NOTFOUND"
"""No name is resolved."""


def browser() -> str:
    """The first browser found.  Raises SystemExit if there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is on the PATH: install one")
    return found


def shoot(page: Path, picture: Path, width: int, height: int, dark: bool) -> None:
    """Draw the top `height` pixels of a page."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser(),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--host-resolver-rules={NOWHERE}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={width},{height}",
                f"--screenshot={picture.resolve()}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1600)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    shoot(asked.page, asked.picture, asked.width, asked.height, asked.dark)
