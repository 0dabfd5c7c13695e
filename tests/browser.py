"""A headless browser, where one is installed: what it makes of a page of `lmdali.tools.html_page`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
NO_BROWSER = "no chromium and no chrome on this machine: the page was only parsed, not shown (apt-get install chromium)"

# The page is shown in a frame of each width, and a script of the page around it measures; the page itself may run none.
_MEASURE = """<!DOCTYPE html><title>measure</title><body>{frames}<pre id="out"></pre><script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, root = page.documentElement, clipped = [];
    for (const svg of page.querySelectorAll("svg")) {{
      const box = svg.viewBox.baseVal;
      for (const text of svg.querySelectorAll("text")) {{
        const place = text.getBBox();
        if (place.x < box.x || place.x + place.width > box.x + box.width || place.y < box.y
            || place.y + place.height > box.y + box.height) clipped.push(text.textContent);
      }}
    }}
    return {{width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, clipped,
      plots: [...page.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect().height),
      pictures: [...page.images].map((image) => image.naturalWidth)}};
  }});
  document.getElementById("out").textContent = JSON.stringify(found);
}});
</script></body>"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses to have one as root
    command = [BROWSER, "--headless", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", *sandbox]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=250, check=True)


def measure_page(page: str, scratch: Path, widths: tuple[int, ...] = (380, 1000)) -> list[dict[str, Any]]:
    """Sizes of what is shown, for each width of the window; and texts of plots that do not fit into them."""
    frame = '<iframe width="{}" height="900" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(width, escape(page)) for width in widths)
    (scratch / "measure.html").write_text(_MEASURE.format(frames=frames))
    dump = _run("--virtual-time-budget=5000", "--dump-dom", f"file://{scratch / 'measure.html'}").stdout
    out = re.search(r'<pre id="out">(.*?)</pre>', dump, re.DOTALL)
    assert out is not None and out[1], dump[-2000:]
    found: list[dict[str, Any]] = json.loads(unescape(out[1]))
    return found


def show_page(page: Path, scratch: Path, *, dark: bool, width: int = 1000, height: int = 1600) -> NDArray[np.uint8]:
    """A screenshot, (H, W, 3) uint8 RGB; fails where the browser had something to complain about."""
    out = scratch / "screenshot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = _run(*scheme, f"--window-size={width},{height}", f"--screenshot={out}", f"file://{page}")
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def print_page(page: Path, scratch: Path) -> bytes:
    """The page on paper: a PDF."""
    out = scratch / "paper.pdf"
    _run(f"--print-to-pdf={out}", "--no-pdf-header-footer", f"file://{page}")
    return out.read_bytes()
