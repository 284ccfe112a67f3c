"""Sound from files: what is read is what was written, and what is not understood is one line."""

from __future__ import annotations

import struct
import wave

import numpy as np
import pytest

from experiments.wav import write_wav
from gam_jax.config import from_dict, to_dict
from gam_jax.data import DATA, Audio, Data
from sharding.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files: 10 rows of 16 samples and 3 over, 5 rows; a text beside them."""
    path = tmp_path_factory.mktemp("sounds")
    for name, samples in (("b.wav", 163), ("in/a.WAV", 80)):
        (path / name).parent.mkdir(exist_ok=True)
        write_wav(path / name, np.random.default_rng(samples).uniform(-1, 1, samples), 8000)
    (path / "about.txt").write_text("not a sound")
    return path


def test_rows_are_those_of_the_files_in_the_order_of_their_names(folder):
    data = Audio(f"audio:{folder}", rate=8000, samples=16)
    assert DATA["audio"] is Audio
    assert from_dict(Data, to_dict(data)) == data
    opened = data.open()
    (held,) = opened.validation_stream("", 1)
    seen = {bytes(row) for row in next(opened.train_stream(14, seed=0))["audio"]}
    wanted = [np.random.default_rng(n).uniform(-1, 1, n)[: n // 16 * 16] for n in (163, 80)]
    wanted = np.concatenate([part.reshape(-1, 16) for part in wanted])
    np.testing.assert_allclose(held["audio"][0], wanted[-1], atol=2 / 32768)
    found = np.stack([np.frombuffer(row, np.float32) for row in seen])
    assert len(found) == 14
    for row in wanted[:-1]:
        assert np.abs(found - row).max(1).min() < 2 / 32768
    for name, shape in data.batch(14).items():
        assert next(opened.train_stream(14, seed=0))[name].shape == shape.shape


def cut(path, says, kept=None):
    """160 samples behind a header that says so many bytes of them; so much of the file is kept."""
    write_wav(path, np.random.default_rng(0).uniform(-1, 1, 160), 8000)
    raw = path.read_bytes()
    path.write_bytes((raw[:40] + struct.pack("<I", says) + raw[44:])[:kept])


def test_samples_whose_number_the_writer_could_not_know_are_all_read(tmp_path):
    rows = []
    for says in (320, 0xFFFFFFFF):
        cut(tmp_path / "one.wav", says)
        rows.append(Audio(f"audio:{tmp_path}", rate=8000, samples=16).open().source["audio"])
    np.testing.assert_array_equal(*rows)
    assert len(rows[0]) == 9


def changed(path, channels=1, width=2, rate=8000):
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(bytes(64 * channels * width))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: changed(path, channels=2), "2 channels of 16 bits"),
        (lambda path: changed(path, width=3), "1 channels of 24 bits"),
        (lambda path: changed(path, rate=16000), "16000 samples a second and data.rate=8000"),
        (lambda path: path.write_bytes(b"RIFF"), "no WAV file that is understood"),
        (lambda path: path.write_bytes(b"ID3" * 40), "no WAV file that is understood"),
        (lambda path: path.write_bytes(b""), "no WAV file that is understood"),
        (lambda path: cut(path, 320, 30), "ends within its header"),
        (lambda path: cut(path, 320, 44 + 201), "says 160 samples, and 201 bytes .* 100 samples"),
        (lambda path: cut(path, 0), "says 0 samples, and 320 bytes follow"),
        (lambda path: None, "there is no WAV file"),
        (lambda path: write_wav(path, np.zeros(20), 8000), "1 rows of data.samples=16"),
    ],
)
def test_what_is_not_understood_is_one_line(make, says, tmp_path):
    make(tmp_path / "one.wav")
    with pytest.raises(UserError, match=says) as error:
        Audio(f"audio:{tmp_path}", rate=8000, samples=16).open()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="names no file"):
        Audio("audio:", rate=8000, samples=16).open()
