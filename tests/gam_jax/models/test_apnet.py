"""APNet: the released generator's outputs, its size, its stream, and its run on a mesh."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.data import Sounds
from gam_jax.layers.delayed import streamed
from gam_jax.models.apnet import APNet
from gam_jax.models.frames import SpectralSound
from gam_jax.ops.spectrum import anti_wrapped
from gam_jax.params import abstract_params, count_params, init_params, path_name
from sharding.errors import UserError
from tests.arrays import compiled, initial, put
from tests.golden import apnet as golden

FILE = pathlib.Path(golden.__file__).with_suffix(".npz")
SMALL = APNet(
    golden.WIDTH,
    golden.KERNELS,
    golden.DILATIONS,
    mels=golden.MELS,
    size=golden.SIZE,
    window=golden.WINDOW,
    hop=golden.HOP,
)
TINY = APNet(4, (3,), (1,), 3, mels=4, rate=1000, size=16, window=8, hop=4)


def of_formula(model):
    shapes = abstract_params(model.table())
    return jax.tree_util.tree_map_with_path(
        lambda path, x: golden.values(path_name(path), x.shape), shapes
    )


@functools.cache
def stream_of(network):
    """As a function of parameters and frames, four frames a chunk."""
    return lambda params, frames: streamed(network, params, frames, 4)


@functools.cache
def spoken():
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(SMALL, of_formula(SMALL), put(golden.mel())))


def test_outputs_are_those_of_the_released_generator():
    with np.load(FILE) as wanted:
        for name in ("log_amplitude", "audio"):
            found = getattr(spoken(), name)
            np.testing.assert_allclose(found, wanted[name], rtol=1e-9, atol=1e-9, err_msg=name)
        with jax.enable_x64(True):
            off = compiled(anti_wrapped, put(spoken().phase - wanted["phase"]))
        assert np.max(off) < 1e-9


def test_every_parameter_is_one_of_the_released_generator():
    paths = {f"{ours}/{part}" for ours, _ in golden.names() for part in ("weight", "gain", "bias")}
    table = abstract_params(SMALL.table())
    own = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(table)}
    assert own == paths


def test_published_counts_by_shapes_alone():
    """APNet at full size: 35,175,938 for amplitudes, 37,015,556 for phases."""
    model = APNet()
    parts = {name: count_params(table) for name, table in model.table().items()}
    assert parts == {"amplitudes": 35_175_938, "phases": 37_015_556}
    drawn = jax.eval_shape(lambda: init_params(model.table(), jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(drawn)) == 72_191_494


def test_frames_stream_some_frames_late():
    """Both branches side by side: what was said at once, `delay` frames later."""
    network, late = SMALL.network, SMALL.network.delay()
    # The widest stack: kernel 5, dilated 1, 2 and 3 and plain; and seven taps at both ends.
    assert late == 3 + (2 + 2) + (4 + 2) + (6 + 2) + 3
    tables = of_formula(SMALL)
    params = {"0": tables["amplitudes"], "1": tables["phases"]}
    ahead = 2 * network.field
    ahead += -ahead % 4
    mel = np.random.default_rng(0).normal(size=(1, 40 + late + -late % 4, golden.MELS))
    mel = np.pad(mel, ((0, 0), (ahead, 0), (0, 0)))
    with jax.enable_x64(True):
        offline = np.asarray(compiled(network, params, put(mel)))
        stream = np.asarray(compiled(stream_of(network), params, put(mel)))
    shown = offline.shape[1] - late
    off = stream[:, ahead + late :] - offline[:, ahead:shown]
    bins = SMALL.bins
    assert np.abs(off[..., :bins]).max() < 1e-10
    with jax.enable_x64(True):
        assert np.max(compiled(anti_wrapped, put(off[..., bins:]))) < 1e-8


@pytest.mark.parametrize("released", [False, True])
def test_losses_are_least_at_the_sound_itself_and_their_gradients_are_finite(released):
    model = APNet(4, (3,), (1,), 3, 4, 1000, 16, 8, 4, released=released)
    audio = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)

    @jax.jit
    def both(audio):
        target = model.spectrum_of(audio)
        mel = model.mel_of(target)

        def losses(spectrum):
            logs = jnp.log(jnp.abs(spectrum) + 1e-5)
            phase = jnp.angle(spectrum)
            return model.loss_parts(
                SpectralSound(logs, phase, model.sound_of(spectrum)), target, mel
            )

        return losses(target), losses(target * jnp.exp(1j * 0.5))

    own, other = both(audio)
    least = -3 * model.phase if released else 0.0
    np.testing.assert_allclose(own["phase"], least, atol=1e-2)
    for name in ("amplitude", "spectrum", "mel"):
        assert np.max(own[name]) < 1e-2
    assert np.min(np.asarray(other["phase"]) - own["phase"]) > 1
    params = initial(TINY)  # the other losses have the same parameters
    batch = {"audio": audio * np.array([[1.0], [0.0]], np.float32), "weights": np.ones(2)}
    slopes = jax.jit(jax.grad(lambda p: model.objective(p, batch)[0]))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_errors_of_phases_weigh_loud_places_and_change_sees_no_constant():
    """A phase that is off by 0.5 everywhere is off by nothing from a frame to the next."""
    audio = np.random.default_rng(2).normal(size=(1, 64)).astype(np.float32)
    target = compiled(TINY.spectrum_of, put(audio))

    class Turned(APNet):
        def __call__(self, params, mel, axes=None):
            logs, phase = jnp.log(jnp.abs(target) + 1e-5), jnp.angle(target) + 0.5
            return SpectralSound(logs, phase, self.sound_of(target))

    model = Turned(**{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)})
    _, _, told = compiled(model.objective, {}, {"audio": audio, "weights": np.ones(1)})
    means = {name: float(x / count) for name, (x, count) in told.items()}
    assert means["phase_error"] == pytest.approx(0.5, rel=1e-4)
    assert means["frequency_error"] < 1e-5
    assert means["lsd"] < 1e-2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: APNet(window=2048), "window 2048"),
        (lambda: APNet(hop=200), "hop of at most half"),
        (lambda: APNet(size=1023), "even size"),
        (lambda: APNet(kernels=()), "APNet.kernels=()"),
        (lambda: APNet().fitted(Sounds(scored=1).open()), "8000 samples a second"),
        (lambda: APNet(rate=8000, hop=100).fitted(Sounds(scored=1).open()), "2048 samples"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
