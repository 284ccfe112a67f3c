"""The table of all layers has every layer, and its place on the page is found again."""

from __future__ import annotations

import types

import jax
import pytest

from experiments import every_layer
from experiments.every_layer import BLOCKS, MESHES, PAGE, Row, kept, row_of, table
from gam_jax.layers import LAYERS, MHS, Attention
from gam_jax.planning.targets import topology
from tests.experiments.commands import ROOT
from tests.sharding.test_topology import there

HERE = types.SimpleNamespace(devices=jax.devices()[:4], hosts=(0,) * 4)
"""Four emulated devices, laid out as a machine's are."""


def test_every_layer_has_a_block():
    assert set(BLOCKS) == set(LAYERS.values())


def test_a_layer_that_predicts_no_next_token_says_so_in_its_row():
    row = row_of(MHS, HERE)
    assert (row.chains, row.seconds) == ((None, None), 0)
    assert all("reads the whole sequence" in str(held) for held in row.held)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_fits_its_mesh(mesh):
    step, *args = every_layer.step_of(Attention, 64, mesh, MESHES[mesh], HERE)
    assert jax.eval_shape(step, *args)


def test_the_table_goes_where_the_marks_are():
    rows = [Row("GAM", (1234, "no room"), (4, None), 2.5)]
    text = table(rows)
    assert text.endswith("| `GAM` | 1,234 | no room | 4 | - | 2.5 |")
    page = "a\n<!-- every layer: v5e:2x2 -->\nold\n<!-- end -->\nb"
    once = kept(page, "v5e:2x2", text)
    assert once == f"a\n<!-- every layer: v5e:2x2 -->\n\n{text}\n\n<!-- end -->\nb"
    assert kept(once, "v5e:2x2", text) == once
    assert kept(once, "h100:1x4", text) == once


def test_the_page_has_a_row_for_each_layer():
    page = (ROOT / PAGE).read_text()
    missing = [name for name in LAYERS if f"| `{name}` |" not in page]
    assert missing == []


@there
@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_compiler_takes_every_layer_that_the_page_says_it_takes(layer):
    row = row_of(layer, topology("v5e:2x2"))
    if layer.__name__ not in ("MHS", "Bidirectional"):
        assert [held for held in row.held if isinstance(held, str)] == []
        assert f"| `{row.layer}` |" in (ROOT / PAGE).read_text()
