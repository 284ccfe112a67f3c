"""The digits are classified beside a linear model."""

import pytest

from experiments import digits
from tests.experiments.commands import in_process

pytest.importorskip("sklearn")


def test_an_unknown_mixer_is_refused(monkeypatch, capsys):
    result = in_process(monkeypatch, capsys, "digits", "--mixer=mhsx")
    assert result.code == 2
    assert "choose from mhs, raster, gru, gam" in result.err


def test_a_short_training_learns_what_the_linear_model_knows_in_part():
    data = digits.load(0)
    assert len(data["images"]) + len(data["test_images"]) == 1797
    assert digits.linear_accuracy(data) > 0.9
    assert digits.train(digits.MIXERS["gru"], data, 60, 0)["accuracy"] > 0.5
