"""The report in a real browser: it renders without a complaint, and fits a phone.

Screenshots are kept in the folder that REPORT_SCREENSHOTS names, else beside the test's files.
"""

from __future__ import annotations

import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image

from experiments.report.page import page
from experiments.report.runs import read_runs

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
PHONE, DESK = (390, 2400), (1200, 2400)
DARK = "--blink-settings=preferredColorScheme=0"
MEASURE = """<!doctype html><iframe width="{width}" height="800" srcdoc="{page}"></iframe><script>
onload = () => {{
  const inside = document.querySelector("iframe").contentDocument;
  const names = [...inside.querySelectorAll("body *:not(svg *)")].filter(
    (e) => e.getBoundingClientRect().right > {width} + 1 && !e.closest(".scroll"));
  document.body.innerHTML = JSON.stringify({{
    width: inside.documentElement.scrollWidth,
    beyond: names.map((e) => e.outerHTML.slice(0, 80)),
    small: [...inside.querySelectorAll("svg text")].filter(
      (e) => e.getBoundingClientRect().height < 9).length,
    figures: inside.querySelectorAll("figure > svg").length,
  }}).replaceAll("<", "&lt;");
}};
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture
def browse(tmp_path):
    """What the browser prints for a file, and what its page and itself complain of."""

    def browse(path: pathlib.Path, *args: str) -> tuple[str, list[str]]:
        assert BROWSER is not None
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [BROWSER, *QUIET, profile, *args, path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)

    return browse


@pytest.fixture
def report(runs, tmp_path):
    """A report on runs with long names, long fields and more runs than colours."""
    for i in range(9):
        name = f"a_rather_long_name_without_any_space_number_{i}" if i % 3 == 0 else f"run{i}"
        path = f"/a/long/path/of/many/words/to/some/text/{i}.txt"
        size = {"width": 16 * (1 + i % 4), "kernel": 3 + i, "speed": 900.0 - 70 * i}
        runs.add(name, 1.2 + 0.1 * i, **size, dir=path)
    out = tmp_path / "report.html"
    out.write_text(page(read_runs([str(runs.path)]), "python -m experiments.report runs"))
    return out


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [("desk", DESK, ()), ("phone", PHONE, ()), ("phone_dark", PHONE, (DARK,))],
)
def test_it_renders_without_a_complaint(name, size, args, report, browse, tmp_path):
    kept = pathlib.Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    picture = kept / f"report_{name}.png"
    window = f"--window-size={size[0]},{size[1]}"
    _, complaints = browse(report, window, f"--screenshot={picture}", *args)
    assert complaints == []
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (size[1], size[0])
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200  # curves, badges, text
    paper = pixels[2, 2].mean()
    assert paper < 0.2 if args else paper > 0.8


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(width, report, browse, tmp_path):
    outer = tmp_path / "outer.html"
    outer.write_text(MEASURE.format(width=width, page=html.escape(report.read_text())))
    printed, complaints = browse(outer, "--dump-dom")
    assert complaints == []
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", printed, re.S)[1]))
    assert found["beyond"] == []
    assert found["width"] <= width
    assert found["small"] == 0  # every word of a picture can be read
    assert found["figures"] == 6
