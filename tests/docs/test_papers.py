"""The code on the pages of papers runs as it stands, and says what is so."""

from __future__ import annotations

import pathlib
import re

import pytest

PAGES = pathlib.Path(__file__).parents[2] / "docs/papers"


@pytest.mark.parametrize(
    "page",
    [
        "apnet",
        "streamable_convs",
        "kling_avatar",
        "imagine_yourself",
        "vins",
        "pepsi",
        "motioncrafter",
        pytest.param("mv_adapter", marks=pytest.mark.slow),
        pytest.param("../architectures/images", marks=pytest.mark.slow),
        "ap_bwe",
        pytest.param("mp_senet", marks=pytest.mark.slow),
    ],
)
def test_the_code_on_a_page_runs(page):
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for code in blocks:
        exec(code, {})
