"""Magnitudes and phases out of noise: sizes, PyTorch's block, and rows that know of no others."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.data import NoisySounds
from gam_jax.models.enhancer import Enhancer, si_sdr
from gam_jax.params import count_params
from gam_jax.training.step import make_eval_step, put_batch
from sharding.errors import UserError
from tests.arrays import compiled, put
from tests.examples import random_like
from tests.golden.enhancer import HEADS, WIDTH, given, numbers
from tests.meshes import assert_leaves_close, layout_of

GOLDEN = pathlib.Path(__file__).parents[2] / "golden/enhancer.npz"
MODEL = Enhancer(4, 1, 2, 16, 8)
DATA = NoisySounds(rate=1000, samples=48, scored=2)


def test_sizes_are_those_of_the_released_generator():
    table = Enhancer().table()
    sizes = {name: count_params(own) for name, own in table.items()}
    both = sum(size for name, size in sizes.items() if "_" in name)
    found = sizes["encoder"], both, sizes["magnitude"], sizes["phase"], count_params(table)
    assert found == (259_712, 1_459_712, 272_010, 271_938, 2_263_372)


def test_a_block_is_pytorch_s_with_rows_first():
    def gates(name, inputs):
        own = numbers(name, (6 * WIDTH, inputs)).reshape(3, 2 * WIDTH, inputs)
        return np.moveaxis(own, 2, 0)

    def gru(end):
        biases = (numbers(f"gru.bias_{kind}_l0{end}", (6 * WIDTH,)) for kind in ("ih", "hh"))
        bias, state_bias = (own.reshape(3, -1) for own in biases)
        return {
            "w_in": gates(f"gru.weight_ih_l0{end}", WIDTH),
            "w_state": gates(f"gru.weight_hh_l0{end}", 2 * WIDTH),
            "bias": bias,
            "state_bias": state_bias,
        }

    def affine(name, inputs, outputs, middle=""):
        weight = numbers(f"{name}{middle}weight", (outputs, inputs)).T
        return {"weight": weight, "bias": numbers(f"{name}{middle}bias", (outputs,))}

    def norm(name):
        return {key: numbers(f"{name}.{old}", (WIDTH,)) for key, old in NORM.items()}

    params = {
        **{name: norm(name) for name in ("norm_0", "norm_1", "norm_2")},
        "attention": {
            "in": affine("attention", WIDTH, 3 * WIDTH, ".in_proj_"),
            "out": affine("attention", WIDTH, WIDTH, ".out_proj."),
        },
        "forward": gru(""),
        "backward": gru("_reverse"),
        "out": affine("out", 4 * WIDTH, WIDTH, "."),
    }
    params = jax.tree.map(lambda x: put(x, np.float32), params)
    model = Enhancer(WIDTH, 1, HEADS, 16, 8)
    found = jax.jit(model._mixed)(params, put(given(), np.float32))
    np.testing.assert_allclose(found, np.load(GOLDEN)["block"], atol=2e-5)


NORM = {"scale": "weight", "bias": "bias"}


@functools.cache
def params():
    return random_like(MODEL.table())


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, audio):
    return model(params, audio)


def sounds(count):
    return np.stack([DATA.row(1, number)["audio"] for number in range(count)])


def test_a_row_does_not_depend_on_the_others_nor_its_strength_on_anything():
    """The released code fails the first: it mixes rows where it says time."""
    audio = sounds(2)
    whole, other = (
        jax.tree.map(np.asarray, run(MODEL, params(), rows))
        for rows in (audio, np.stack([3 * audio[0], sounds(3)[2]]))
    )
    np.testing.assert_allclose(other.magnitude[0], whole.magnitude[0], atol=2e-5)
    np.testing.assert_allclose(other.audio[0], 3 * whole.audio[0], atol=1e-4)
    turns = (other.phase[0] - whole.phase[0]) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-3)


@pytest.mark.slow
def test_without_phases_the_noisy_ones_are_kept():
    plain = dataclasses.replace(MODEL, phases=False)
    own = {name: value for name, value in params().items() if name != "phase"}
    audio = sounds(2)
    found = run(plain, own, audio)
    np.testing.assert_allclose(found.magnitude, run(MODEL, params(), audio).magnitude, atol=1e-6)
    scale = np.sqrt(np.mean(audio**2, 1, keepdims=True))
    np.testing.assert_allclose(found.phase, plain.spectrum_of(audio / scale)[1], atol=1e-4)


@pytest.mark.slow
def test_decoders_on_two_devices_score_as_on_one():
    batch = dict(next(DATA.open().train_stream(4, seed=0)))
    found = []
    for shape in ((1, 1, 1), (2, 1, 1, 2)):
        layout = layout_of(shape, "data")
        evaluate = make_eval_step(MODEL, layout)
        found.append(jax.tree.map(np.asarray, evaluate(params(), put_batch(MODEL, layout, batch))))
    assert_leaves_close(found[1], found[0], 1e-4)


def test_time_and_frequency_over_devices_in_turn_are_one_device_s():
    """Bins and frames, 5 and 7 of them, divide into no 4 parts; slopes are in test_signals.py."""
    model = dataclasses.replace(MODEL, blocks=2)
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 4)).astype(np.float32)
    own = {name: part for name, part in random_like(model.table()).items() if "_" in name}

    def run(devices):
        layout = layout_of((1, devices, 1), "data+sequence")

        def program(params, x):
            return model._turns(params, x, layout.axes.seq)[None]

        specs = (PartitionSpec(), PartitionSpec())
        out = PartitionSpec("seq")
        return jax.jit(jax.shard_map(program, mesh=layout.mesh, in_specs=specs, out_specs=out))

    one, found = (np.asarray(run(devices)(own, x)) for devices in (1, 4))
    assert one.shape == (1, *x.shape)
    np.testing.assert_allclose(found, np.broadcast_to(one, found.shape), atol=1e-5)


def test_distortion_is_blind_to_scale_and_counts_the_rest():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(2, 400))
    noise = rng.normal(size=(2, 400))
    noise -= (noise * clean).sum(1, keepdims=True) / (clean**2).sum(1, keepdims=True) * clean
    noise *= np.sqrt((clean**2).sum(1) / (noise**2).sum(1) / 10)[:, None]
    found = compiled(si_sdr, put(0.3 * (clean + noise)), put(clean))
    np.testing.assert_allclose(found, 10, atol=1e-3)


def test_noise_has_the_power_that_was_said_and_the_sound_is_beside_it():
    row = NoisySounds(samples=512, ratio=3.0).row(4, 2)
    noise = row["audio"].astype(float) - row["clean"]
    ratio = 10 * np.log10(np.mean(row["clean"].astype(float) ** 2) / np.mean(noise**2))
    assert ratio == pytest.approx(3.0, abs=1e-3)


def test_what_does_not_fit_is_refused():
    for change in ({"heads": 3}, {"size": 18}, {"hop": 9}):
        with pytest.raises(UserError, match="heads that divide it"):
            dataclasses.replace(MODEL, **change)
