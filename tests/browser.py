# SPDX-License-Identifier: Apache-2.0
"""Pages in a headless browser without a network: what they show, whether they fit, what the console says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from sparcl_mcu.spec.paths import ROOT

TOOLS = str(ROOT / "tools")
sys.path.append(TOOLS)  # tools/setup.py imports the file beside it
from tools.setup import BROWSERS  # noqa: E402

sys.path.remove(TOOLS)

_SCRIPT = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => d.open = true);
  const scrolls = e => e && (e.classList.contains("scroll") || scrolls(e.parentElement));
  const wide = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1
    && !scrolls(e));
  const images = [...page.images];
  const sections = {};
  page.querySelectorAll("section").forEach(s => sections[s.id] = s.innerText);
  document.querySelector("pre").textContent = JSON.stringify({
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    wide: wide.map(e => e.tagName + "." + e.className.toString() + ": " + e.textContent.trim().slice(0, 40)),
    pictures: images.length,
    broken: images.filter(i => i.naturalWidth == 0).length,
    sections: sections,
    background: getComputedStyle(page.body).backgroundColor,
  });
};
"""


@dataclass(frozen=True)
class Seen:
    """A page as the browser shows it at one width, everything that can be unfolded being so.

    ``wide``: elements that reach over the right border and do not scroll on their own; ``sections``: their
    visible text by id; ``console``: what the console says.
    """

    width: int
    scroll_width: int
    wide: list[str]
    pictures: int
    broken: int
    sections: dict[str, str]
    background: str
    console: list[str]


@cache
def program() -> str:
    """The browser, installed if that is allowed; else the test is skipped."""
    if not any(shutil.which(name) for name in BROWSERS):
        needs = [sys.executable, str(ROOT / "tools" / "setup.py"), "--need", "chromium"]
        done = subprocess.run(needs, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no headless browser: {done.stderr.strip()}")
    return next(path for name in BROWSERS if (path := shutil.which(name)))


def look(page: Path, width: int, folder: Path, *, dark: bool = False) -> Seen:
    """Open a page in a frame ``width`` pixels wide (a window cannot be that narrow); ``folder``: for the browser."""
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page.read_text())}"></iframe>'
    outside = folder / "frame.html"
    outside.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{frame}<pre></pre><script>{_SCRIPT}</script>")
    done = subprocess.run(
        [
            *(program(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *(f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--window-size={width + 100},1000"),
            *(("--blink-settings=preferredColorScheme=0",) if dark else ()),
            *("--dump-dom", outside.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"<pre>(\{.*?)</pre>", done.stdout, re.DOTALL)
    assert found, f"the browser did not show {page}:\n{done.stderr}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), console=console)
