"""AP-BWE: the released generator and judges, their sizes, and streams that add each other."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.config import from_dict, to_dict
from gam_jax.data import NarrowSounds, Sounds
from gam_jax.layers.branches import coupled, swapped_bytes
from gam_jax.models import Model
from gam_jax.models.discriminators import Discriminators
from gam_jax.models.extender import RIVALS, BandExtender, signal_to_error
from gam_jax.ops.spectrum import log_spectral_distance
from gam_jax.params import abstract_params, count_params, init_params, param_specs, path_name
from sharding.errors import UserError
from sharding.messages import Message, messages_of
from tests.arrays import put
from tests.examples import random_like
from tests.golden import extender as golden
from tests.meshes import layout_of

FILE = pathlib.Path(golden.__file__).with_suffix(".npz")
FRAMES = {"rate": 1000, "size": golden.SIZE, "window": golden.WINDOW, "hop": golden.HOP}
SMALL = BandExtender(golden.WIDTH, golden.ROUNDS, **FRAMES)
JUDGES = Discriminators(golden.PERIODS, golden.FRAMES, 32 // golden.LESS, 64 // golden.LESS)
TINY = BandExtender(4, 2, 2, 3, rate=1000, size=16, window=8, hop=4)


def test_published_counts_by_shapes_alone():
    """29,760,515 of the generator; 41,105,770, 600,198 and 600,198 of the judges."""
    table = BandExtender(discriminators=Discriminators()).table()
    drawn = jax.eval_shape(lambda: init_params(table, jax.random.key(0)))
    sizes = {name: sum(x.size for x in jax.tree.leaves(own)) for name, own in drawn.items()}
    rivals = drawn[RIVALS]
    kinds = {"period": 0, "amplitude": 0, "phase": 0}
    for name, own in rivals.items():
        kinds[name.split("_")[0]] += sum(x.size for x in jax.tree.leaves(own))
    assert sizes.pop(RIVALS) == sum(kinds.values())
    assert sum(sizes.values()) == 29_760_515
    assert kinds == {"period": 41_105_770, "amplitude": 600_198, "phase": 600_198}
    assert count_params(BandExtender().table()) == 29_760_515


def test_a_model_with_judges_is_a_configuration():
    for judges in (JUDGES, None):
        model = BandExtender(discriminators=judges)
        assert from_dict(Model, to_dict(model)) == model
    wrong = {**to_dict(model), "discriminators": {"periods": [2], "places": 3}}
    with pytest.raises(UserError, match=r"discriminators.places"):
        from_dict(Model, wrong)


def of_formula():
    """The generator's parameters: those of the golden file, in our order of axes."""
    shapes = abstract_params(SMALL.table())
    flat = {path_name(p): np.zeros(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    for ours, stream, number, _ in golden.generator_names():
        own = flat[ours][stream] if number is None else flat[ours][number, stream]
        place = "" if number is None else str(number)
        path = f"{ours}/{stream}/{place}"
        if ours == "rounds/depthwise/weight":  # [D, 1, K] there
            own[...] = golden.values(path, (own.shape[1], 1, own.shape[0]))[:, 0].T
        else:
            own[...] = golden.values(path, own.shape[::-1]).T
    for ours, names in (("amplitude", ("mag",)), ("phase", ("pha_r", "pha_i"))):
        for kind in ("weight", "bias"):
            shape = (SMALL.bins, SMALL.width)[: 2 if kind == "weight" else 1]
            parts = [golden.values(f"linear_post_{name}/{kind}", shape).T for name in names]
            flat[f"{ours}/{kind}"] = np.concatenate(parts, -1)
    return jax.tree_util.tree_map_with_path(lambda p, _: flat[path_name(p)], shapes)


def judges_of_formula():
    found: dict = {}
    for ours, _ in golden.judge_names():
        judge, own = ours.split("/")
        shapes = {name: x.shape for name, x in abstract_params(JUDGES.table())[judge][own].items()}
        *taps, inputs, outputs = shapes["weight"]
        weight = golden.values(f"{ours}/weight", (outputs, inputs, *taps))
        found.setdefault(judge, {})[own] = {
            "weight": np.moveaxis(weight, (0, 1), (3, 2)),
            "gain": golden.values(f"{ours}/gain", (outputs, 1, 1, 1))[:, 0, 0, 0],
            "bias": golden.values(f"{ours}/bias", (outputs,)),
        }
    return found


@functools.cache
def made():
    """What our model and judges make of what the file's were given, in float64."""

    def run(params, judges, file, wide):
        out = SMALL.extended(params, file["given_log_amplitude"], file["given_phase"])
        found = {"log_amplitude": out.log_amplitude, "phase": out.phase, "audio": out.audio}
        losses = SMALL.loss_parts(out, wide)
        found |= {f"loss_{name}": jnp.mean(x) for name, x in losses.items()}
        longer = [jnp.pad(x, ((0, 0), (0, 2000))) for x in (out.audio, wide)]
        found["lsd"] = jnp.mean(log_spectral_distance(*longer))
        found["snr"] = jnp.mean(signal_to_error(out.audio, wide))
        seen = {"true": JUDGES.seen(wide), "made": JUDGES.seen(out.audio)}
        for kind, own in seen.items():
            for number, size in enumerate(golden.FRAMES):
                phases = own[f"phase_{size}"][..., 0]
                found[f"phases_{kind}_{number}"] = phases
                own[f"phase_{size}"] = file[f"phases_{kind}_{number}"][..., None]
        game = JUDGES.verdicts_of(judges, seen["true"], seen["made"])
        found |= {f"game_{name}": jnp.mean(x) for name, x in game._asdict().items()}
        judged = JUDGES(judges, seen["made"])
        kinds = {"mpd": "period", "mrad": "amplitude", "mrpd": "phase"}
        for theirs, ours in kinds.items():
            for number, size in enumerate(golden.PERIODS if theirs == "mpd" else golden.FRAMES):
                found[f"scores_{theirs}_{number}"] = judged[f"{ours}_{size}"].scores
        return found

    file = dict(np.load(FILE))
    _, wide = golden.audio()
    with jax.enable_x64(True):
        found = jax.jit(run)(of_formula(), judges_of_formula(), file, wide)
    return jax.tree.map(np.asarray, found), file


def test_outputs_losses_and_scores_are_those_of_the_released_code():
    found, wanted = made()
    for name in wanted.keys() - {"given_log_amplitude", "given_phase"}:
        off = found[name] - wanted[name]
        if "phase" in name and "loss" not in name:
            off = off - 2 * np.pi * np.round(off / (2 * np.pi))
        scale = np.abs(wanted[name]).max()
        assert np.abs(off).max() < 1e-4 * scale + 1e-9, (name, np.abs(off).max(), scale)


def pair(shape=(2, 2, 5, 4)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_streams_that_add_each_other_are_m_plus_p_and_m_plus_2_p_on_any_mesh():
    x, layout = pair(), layout_of((1, 1, 1, 2), "data")

    def own(x):
        return coupled(x, layout.axes)

    spread = jax.shard_map(own, mesh=layout.mesh, in_specs=P("stream"), out_specs=P("stream"))
    m, p = x
    for found in (jax.jit(coupled)(x), jax.jit(spread)(x)):
        np.testing.assert_array_equal(found, np.stack([m + p, p + (m + p)]))
    sent = Message("permute", ("stream",), 2, swapped_bytes(m.size))
    assert messages_of(spread, put(x)) == [sent]


def test_without_their_blocks_the_streams_are_a_known_linear_map():
    """gamma 0: two rounds of [[1, 1], [1, 2]], 2.618 times a round in the end, and the norms."""

    def normed(own, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return own["scale"][:, None, None] * x + own["shift"][:, None, None]

    params = jax.tree.map(np.asarray, random_like(TINY.table()))
    params["rounds"]["gamma"] = np.zeros_like(params["rounds"]["gamma"])
    x = pair((2, 2, 6, TINY.bins))
    enter = params["enter"]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (0, 0)))
    taps = [
        np.einsum("pbtf,pfd->pbtd", padded[:, :, k : k + 6], enter["weight"][:, k])
        for k in range(3)
    ]
    first = normed(enter, sum(taps) + enter["bias"][:, None, None])
    rounds = np.linalg.matrix_power(np.array([[1.0, 1.0], [1.0, 2.0]]), TINY.rounds)
    wanted = normed(params["leave"], np.einsum("qp,pbtd->qbtd", rounds, first))
    np.testing.assert_allclose(run_streams()(params, x), wanted, atol=2e-5)


@functools.cache
def run_streams(shape=(1, 1, 1, 1)):
    layout, table = layout_of(shape, "data"), TINY.table()

    def own(params, x):
        return TINY.streams(params, x, layout.axes)

    specs = param_specs(table, layout), P()
    return jax.jit(jax.shard_map(own, mesh=layout.mesh, in_specs=specs, out_specs=P()))


def test_a_stream_on_each_device_is_both_on_one():
    params, x = random_like(TINY.table()), pair((2, 2, 6, TINY.bins))
    one, two = (run_streams(shape)(params, x) for shape in ((1, 1, 1, 1), (1, 1, 1, 2)))
    np.testing.assert_allclose(two, one, atol=1e-6)
    assert np.abs(np.asarray(one)).max() > 0.5


def test_judges_and_maker_have_gradients_of_their_own_losses_alone():
    judges = Discriminators((), (8,), 2, 2)
    params, (narrow, wide) = random_like(judges.table()), golden.audio()

    def slopes(params, made):
        def losses(params, made):
            own = judges.verdicts(params, wide, made)
            return jnp.sum(own.judges), jnp.sum(own.made + own.features)

        _, pull = jax.vjp(losses, params, made)
        return pull((1.0, 0.0)), pull((0.0, 1.0))

    own, other = jax.jit(slopes)(params, jnp.float32(narrow))
    assert not any(np.any(x) for x in jax.tree.leaves((own[1], other[0])))
    assert all(any(map(np.any, jax.tree.leaves(x))) for x in (own[0], other[1]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BandExtender(kernel=4), "odd number of taps"),
        (lambda: BandExtender(hop=200), "hop of at most half"),
        (lambda: Discriminators(periods=(0,)), "whole numbers from 1"),
        (lambda: Discriminators(frames=(30,)), "multiples of 4"),
        (lambda: Discriminators((), ()), "there is no judge"),
        (lambda: Discriminators((2, 3, 2)), "give each once"),
        (lambda: BandExtender().fitted(NarrowSounds(scored=1).open()), "8000 samples a second"),
        (
            lambda: BandExtender(rate=8000, size=4000).fitted(
                NarrowSounds(scored=1, samples=2400).open()
            ),
            "frames of 8000",
        ),
        (
            lambda: BandExtender(
                rate=8000, size=256, window=160, hop=40, discriminators=Discriminators()
            ).fitted(NarrowSounds(scored=1, samples=960).open()),
            "give at least 1025",
        ),
        (lambda: TINY.check_mesh(layout_of((1, 2, 1))), "no array of BandExtender"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)


def test_a_narrow_band_keeps_what_is_below_and_nothing_above():
    data = NarrowSounds(samples=2000)
    row, window = data.row(3, 0), np.hanning(2000)
    np.testing.assert_array_equal(
        row["wide"], Sounds(samples=2000, kinds=("tone",)).row(3, 0)["audio"]
    )
    wide, narrow = (np.abs(np.fft.rfft(row[name] * window)) for name in ("wide", "audio"))
    below, above = slice(0, 180), slice(320, None)  # of 250 bins in a quarter of the band
    np.testing.assert_allclose(narrow[below], wide[below], atol=0.02 * wide.max())
    assert np.sum(narrow[above] ** 2) < 1e-4 * np.sum(wide[above] ** 2)
