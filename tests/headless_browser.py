"""A page in a real browser, where there is one: what its document became, what it complained of, how it looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in _NAMES if (found := shutil.which(name))), None)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"NO HEADLESS BROWSER: pages are checked by a parser only; none of {', '.join(_NAMES)}"
)


@dataclass(frozen=True)
class Rendered:
    """A page as the browser has it.

    Attributes:
        dom: the document, serialised.
        complaints: its console, line by line.
        pixels: (H, W, 3) uint8 of a screenshot.
    """

    dom: str
    complaints: list[str]
    pixels: np.ndarray


def render(page: Path, folder: Path, *, width: int = 1000, height: int = 3000) -> Rendered:
    """Open a page from disk, without a network."""
    shot = folder / "page.png"
    dom, log = _run(page, folder, "--dump-dom", "--enable-logging=stderr", "--v=0")
    _run(page, folder, f"--screenshot={shot}", f"--window-size={width},{height}", "--hide-scrollbars")
    pixels = cv2.imread(str(shot))
    assert pixels is not None
    return Rendered(dom, [line for line in log.splitlines() if "CONSOLE" in line], pixels)


def _run(page: Path, folder: Path, *arguments: str) -> tuple[str, str]:
    assert BROWSER is not None
    profile = tempfile.mkdtemp(dir=folder)  # a second browser in the first one's profile may wait for it for ever
    command = [BROWSER, "--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    done = subprocess.run([*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
