"""Every figure of a device has a value, a unit, a kind and a source; what is not known says so."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import pytest

from gam_jax.planning import Figure, Profile, profile, profile_of, profiles, read_profiles
from gam_jax.planning.profiles import KINDS
from sharding.errors import UserError
from sharding.topology import TPUS

VENDORS = [each for each in profiles() if "." not in each.name]
PAPERS = [each for each in profiles() if "." in each.name]
NAMED = [each for each in profiles() if each.kinds]
UNITS = {"flops": {"FLOP/s", "OP/s"}, "reached": {"share"}}


def named(each):
    return each.name


@pytest.mark.parametrize("each", profiles(), ids=named)
def test_every_figure_has_a_unit_that_makes_sense_a_kind_and_a_source(each):
    assert each.figures
    for name, figure in each.figures.items():
        assert figure.kind in KINDS
        assert len(figure.source) > 10
        assert figure.unit in UNITS.get(name.split(".")[0], {figure.unit})
        if name.startswith("flops.") and "pulp" not in each.name:
            assert 1e12 < figure.value < 1e17  # neither teraflops nor a whole machine
        if name.startswith("reached."):
            assert figure.value <= 1
        if figure.kind == "derived":  # it says from what, unless it is a part of a chip's
            assert figure.note or each.name in ("v3", "tpu7x")


@pytest.mark.parametrize("each", PAPERS, ids=named)
def test_a_papers_figures_are_never_mixed_with_the_makers(each):
    assert {figure.kind for figure in each.figures.values()} <= {"paper", "derived"}
    assert len({figure.source for figure in each.figures.values()}) == 1
    assert not each.kinds  # no device is told to be a paper's


@pytest.mark.parametrize("each", VENDORS, ids=named)
def test_a_makers_figures_are_of_no_paper(each):
    assert "paper" not in {figure.kind for figure in each.figures.values()}
    assert not any("arXiv" in figure.source for figure in each.figures.values())


@pytest.mark.parametrize("each", NAMED, ids=named)
def test_a_device_is_found_by_its_kind_and_has_a_peak(each):
    for kind in each.kinds:
        assert profile_of(kind) is each
        assert each.backend == ("tpu" if kind.startswith("TPU") else "gpu")
    assert jnp.dtype(each.dtype).itemsize in (2, 4)
    assert 1e12 < each.peak_flops < 1e17


def test_no_device_is_told_of_twice_and_an_unknown_one_not_at_all():
    kinds = collections.Counter(kind for each in profiles() for kind in each.kinds)
    assert max(kinds.values()) == 1
    assert profile_of("cpu") is None
    assert profile_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None  # a seventh of one


@pytest.mark.parametrize("name", TPUS)
def test_what_programs_can_use_of_a_tpu_is_what_its_compiler_says(name):
    assert profile(name).memory.capacity == TPUS[name].memory


def test_levels_and_tiers_are_in_the_order_of_the_file():
    found = profile("frontier_gcd")
    assert found.levels == ("package", "node", "network")
    assert [tier.name for tier in found.tiers] == ["device", "host"]


def test_what_is_reached_is_a_share_of_the_peak():
    found = profile("a100_80.parscale")
    assert found.flops("float16") == 0.7 * 312e12
    assert found.bandwidth == 0.9 * 2039e9
    assert profile("a100_80").flops("bfloat16") == 312e12  # nothing is known of shares: all of it
    assert profile("a100_80.nanoflow").flops("float16") == pytest.approx(260e12)


def test_a_blank_figure_is_refused_by_name_in_one_line():
    with pytest.raises(UserError, match=r"v4 has no figure links\.torus\.bandwidth") as caught:
        profile("v4").value("links.torus.bandwidth")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'v5e'"):
        profile("v5ee")


GOOD = """
[mine]
about = "a machine"
flops.float32 = { value = 1e9, unit = "FLOP/s", kind = "measured", source = "here" }
links.node.bandwidth = { value = 2, unit = "B/s", kind = "measured", source = "a" }
[sources]
a = "a page"
"""


def test_a_file_of_ones_own_is_read_likewise(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    found = read_profiles(path)["mine"]
    figures = {
        "flops.float32": Figure(1e9, "FLOP/s", "measured", "here"),
        "links.node.bandwidth": Figure(2.0, "B/s", "measured", "a page"),
    }
    assert found == Profile("mine", "a machine", figures, file="mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (', source = "here"', "", r"mine\.flops\.float32 has no source"),
        ('source = "here"', 'source = ""', "has no source"),
        ('unit = "FLOP/s", ', "", "has no unit"),
        ('kind = "measured", source = "here"', 'kind = "guess", source = "here"', "unknown kind"),
        ("value = 1e9", "value = 0", "must be above 0"),
        ("value = 1e9", 'value = "1e9"', "is no number"),
        ("value = 1e9", "value = inf", "must be above 0"),
        ("{ value = 1e9", "7 # ", "has no value"),
        ('unit = "B/s"', 'unit = "GB/s"', "its unit is 'B/s'"),
        ('about = "a machine"', "", "says nothing about itself"),
        ("[mine]", "[mine", "no file of profiles"),
    ],
)
def test_a_figure_without_its_words_is_refused_in_one_line(tmp_path, old, new, says):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=says) as caught:
        read_profiles(path)
    assert "\n" not in str(caught.value)
