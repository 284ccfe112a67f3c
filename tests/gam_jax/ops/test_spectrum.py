"""Spectra beside PyTorch's, their inverse, and what losses of phases do not see."""

from __future__ import annotations

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.ops import spectrum
from sharding.errors import UserError
from tests.golden import spectrum as golden

FILE = pathlib.Path(golden.__file__).with_suffix(".npz")


phase_losses = jax.jit(spectrum.phase_losses, static_argnames=("measure", "first"))


@pytest.fixture(scope="module")
def wanted():
    with np.load(FILE) as found:
        return dict(found)


@pytest.mark.parametrize("number", range(len(golden.CASES)))
def test_spectra_and_signals_are_those_of_torch(wanted, number):
    case = golden.CASES[number]
    window = golden.window_of(case)
    how = {"hop": case.hop, "size": case.size, "center": case.center}

    @jax.jit
    def both(signal, bins):
        return spectrum.stft(signal, window, **how), spectrum.istft(bins, window, **how)

    with jax.enable_x64(True):
        made, back = both(golden.signal(), golden.bins(case))
    np.testing.assert_allclose(made, wanted[f"stft {number}"], atol=1e-12)
    np.testing.assert_allclose(back, wanted[f"istft {number}"], atol=1e-12)
    assert made.shape[1] == spectrum.frames_of(golden.SAMPLES, case.size, case.hop, case.center)


@pytest.mark.parametrize("number", range(len(golden.MELS)))
def test_mels_are_those_of_transformers(wanted, number):
    rate, size, mels, low, high = golden.MELS[number]
    found = spectrum.mel_filters(rate, size, mels, low, high)
    np.testing.assert_allclose(found, wanted[f"mel {number}"], atol=1e-8)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 5), st.integers(20, 40))
def test_the_inverse_gives_the_signal_back(width, hop, more, samples):
    """Of any window that leaves no sample out, in float32."""
    size, hop = width + more, min(hop, max(1, width // 2))
    window = spectrum.hann(width + 2)[1:-1] + 0.1
    x = np.random.default_rng(samples).normal(size=(2, samples)).astype(np.float32)

    @jax.jit
    def there_and_back(x):
        made = spectrum.stft(x, window, hop=hop, size=size)
        return spectrum.istft(made, window, hop=hop, size=size)

    back = there_and_back(x)
    shown = back.shape[1]
    assert samples - hop - 1 <= shown <= samples
    np.testing.assert_allclose(back, x[:, :shown], atol=2e-6)


def test_a_signal_of_any_length_comes_back_and_only_spectra_of_signals_are_consistent():
    window = spectrum.hann(16)
    x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)

    @jax.jit
    def both(x):
        back = spectrum.istft(spectrum.stft(x, window, hop=4), window, hop=4, length=50)
        return back, spectrum.stft(x[:, :48], window, hop=4)

    back, made = both(x)
    np.testing.assert_allclose(back, x, atol=1e-6)
    inconsistency = jax.jit(lambda bins: spectrum.inconsistency(bins, window, hop=4))
    assert np.max(inconsistency(made)) < 1e-10
    assert np.min(inconsistency(1j * np.real(made))) > 1e-3


@pytest.mark.parametrize("measure", [spectrum.anti_wrapped, spectrum.negative_cosine])
@pytest.mark.parametrize("first", [False, True])
def test_losses_of_phases_do_not_see_turns(measure, first):
    draw = np.random.default_rng(1)
    a, b = draw.uniform(-math.pi, math.pi, (2, 3, 5, 6))
    turns = draw.integers(-3, 4, (2, 3, 5, 6)) * 2 * math.pi
    how = {"measure": measure, "first": first}
    with jax.enable_x64(True):
        one = phase_losses(a, b, **how)
        other = phase_losses(a + turns[0], b + turns[1], **how)
        same = phase_losses(a, a - turns[0], **how)
    np.testing.assert_allclose(np.stack(one), np.stack(other), atol=1e-12)
    np.testing.assert_allclose(np.stack(same), measure(np.zeros(())), atol=1e-6)


def test_losses_of_phases_are_the_written_ones():
    """Of errors that no turn is in: means of absolute differences, and of their first ones."""
    error = np.random.default_rng(2).uniform(-1.5, 1.5, (2, 4, 5))
    with jax.enable_x64(True):
        found = phase_losses(error, np.zeros(error.shape))
        kept = phase_losses(error, np.zeros(error.shape), first=True)
    delay = np.abs(error[..., 1:] - error[..., :-1])
    frequency = np.abs(error[..., 1:, :] - error[..., :-1, :])
    turned = [np.where(x > math.pi, 2 * math.pi - x, x) for x in (delay, frequency)]
    np.testing.assert_allclose(found.instantaneous, np.abs(error).mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.group_delay, turned[0].mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.angular_frequency, turned[1].mean((1, 2)), rtol=1e-12)
    own = (np.abs(error[..., 0]).sum(1) + turned[0].sum((1, 2))) / 20
    np.testing.assert_allclose(kept.group_delay, own, rtol=1e-12)


def test_the_gradient_of_a_phase_is_finite_and_exact_where_it_has_a_length():
    lengths = np.array([0.0, 1e-38, 1e-30, 1e-12, 1e-8, 1e-3, 1.0, 1e18, 1e30], np.float32)
    real, imaginary = lengths * np.float32(0.6), lengths * np.float32(-0.8)
    slopes = jax.jit(jax.vmap(jax.grad(spectrum.phase_of, argnums=(0, 1))))(real, imaginary)
    assert np.all(np.isfinite(slopes))
    assert np.all(np.abs(slopes) <= 1.001 / spectrum.SMALLEST)
    exact = lengths >= 1e-8
    wanted = np.array([0.8, 0.6])[:, None] / lengths[exact].astype(float)
    np.testing.assert_allclose(np.stack(slopes)[:, exact], wanted, rtol=1e-5)
    assert float(jax.jit(spectrum.phase_of)(np.float32(0), np.float32(0))) == 0


def test_amplitude_and_phase_are_the_spectrum_and_their_gradient_is_finite_at_silence():
    x = np.random.default_rng(3).normal(size=(1, 40)).astype(np.float32)

    @jax.jit
    def taken_apart(x):
        made = spectrum.stft(x, spectrum.hann(8), hop=2)
        phases = spectrum.phase_of(made.real, made.imag)
        return made, spectrum.polar(spectrum.log_amplitude(made, floor=0.0), phases)

    made, back = taken_apart(x)
    np.testing.assert_allclose(back, made, atol=1e-5)

    def loss(x):
        made = spectrum.stft(x, spectrum.hann(8), hop=2)
        phases = spectrum.phase_of(made.real, made.imag)
        return jnp.sum(spectrum.log_amplitude(made)) + jnp.sum(phases)

    assert np.all(np.isfinite(jax.jit(jax.grad(loss))(np.zeros((1, 40), np.float32))))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: spectrum.stft(np.ones((1, 40)), np.ones(9), hop=2, size=8), "window"),
        (lambda: spectrum.stft(np.ones((1, 40)), np.ones(8), hop=0), "hop 0"),
        (lambda: spectrum.stft(np.ones((1, 4)), np.ones(8), hop=2), "give more than 4"),
        (lambda: spectrum.stft(np.ones((1, 7)), np.ones(8), hop=2, center=False), "than 7"),
        (lambda: spectrum.stft(np.ones(40), np.ones(8), hop=2), "[B, N]"),
        (lambda: spectrum.istft(np.ones((1, 3, 4)), np.ones(8), hop=2), "[B, T, 5]"),
        (lambda: spectrum.istft(np.ones((1, 3, 5)), np.ones(8), hop=9), "no window tells"),
        (lambda: spectrum.istft(np.ones((1, 3, 5)), np.ones(8), hop=2, length=9), "length 9"),
        (lambda: spectrum.phase_losses(np.ones((1, 5)), np.ones((1, 5))), "no differences"),
        (lambda: spectrum.mel_filters(16000, 512, 10, 0, 9000), "9000"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
