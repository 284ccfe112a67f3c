"""The table of all layers has every layer, and its place on the page is found again."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import pytest

from experiments import audit, every_layer
from experiments.every_layer import BLOCKS, MESHES, PAGE, Row, chosen, kept, row_of, rows, table
from gam_jax.layers import GAM, LAYERS, MHS, MLP, Attention, Bidirectional
from gam_jax.planning.targets import topology
from sharding.errors import UserError
from tests.experiments.commands import ROOT
from tests.sharding.test_topology import there

HERE: Any = types.SimpleNamespace(devices=jax.devices()[:4], hosts=(0,) * 4)
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


def test_a_row_goes_where_the_marks_are_and_others_stay():
    begin = "<!-- every layer: v5e:2x2 -->"
    page = f"a\n{begin}\nold\n<!-- end -->\nb\n<!-- every layer: h100:1x4 -->\n<!-- end -->\n"
    mlp, gam = Row("MLP", (5, 6), (4, 4), 1.0), Row("GAM", (1234, "no | room"), (4, None), 2.5)
    once = kept(page, "v5e:2x2", [mlp])
    assert once == page.replace("\nold\n", f"\n\n{table([mlp])}\n\n")
    both = kept(once, "v5e:2x2", [gam])
    assert both == once.replace(table([mlp]), table([gam, mlp])), "in the order of LAYERS"
    assert r"| `GAM` | 1,234 | no \| room | 4 | - | 2.5 |" in both
    other = dataclasses.replace(mlp, seconds=9.0)
    assert kept(both, "v5e:2x2", [other]) == both.replace(table([gam, mlp]), table([gam, other]))
    assert kept(both, "v5e:2x2", [gam]) == both
    assert kept(page, "v5p:2x2x1", [gam]) == page, "of a machine without a place nothing is written"


def test_rows_of_layers_that_are_no_more_leave_the_page():
    page = "<!-- every layer: v5e:2x2 -->\n| `Gone` | 1 | 2 | 3 | 4 | 5.0 |\n<!-- end -->"
    assert "Gone" not in kept(page, "v5e:2x2", [Row("MLP", (5, 6), (4, 4), 1.0)])


def test_layers_are_chosen_by_name_and_a_name_that_there_is_not_says_the_nearest():
    assert chosen(["MLP", "GAM", "MLP"]) == [GAM, MLP]
    assert chosen([]) == list(LAYERS.values())
    with pytest.raises(UserError, match=r"--layers: unknown layer 'MLPs'; did you mean 'MLP'\?"):
        chosen(["GAM", "MLPs"])


def test_progress_tells_how_many_are_left():
    said: list[str] = []
    found = [row.layer for row in rows(HERE, [MHS, Bidirectional], said.append)]
    assert found == ["MHS", "Bidirectional"]
    assert said == ["1 of 2 layers, about 0 min left", "2 of 2 layers"]


def test_a_run_that_is_stopped_keeps_the_rows_it_has(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- every layer: v5e:2x2 -->\n<!-- end -->\n")

    def stopped(layer, machine):
        if layer is MHS:
            raise KeyboardInterrupt
        return Row(layer.__name__, (1, 2), (3, 4), 5.0)

    monkeypatch.setattr(every_layer, "PAGE", page)
    monkeypatch.setattr(every_layer, "row_of", stopped)
    monkeypatch.setattr(audit, "topology", lambda name: HERE)
    monkeypatch.setattr(
        audit.flags,
        "FLAGS",
        types.SimpleNamespace(every_layer=True, topology="v5e:2x2", layers=["GAM", "MHS"]),
    )
    with pytest.raises(KeyboardInterrupt):
        audit.main()
    assert "| `GAM` | 1 | 2 | 3 | 4 | 5.0 |" in page.read_text()


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
