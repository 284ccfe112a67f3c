"""The digits are classified beside a linear model."""

import json

import pytest

from experiments.papers.digits import MIXERS, STUDY
from experiments.study import Setting

pytest.importorskip("sklearn")


def test_an_unknown_mixer_is_refused(command):
    result = command("digits", "--mixer=mhsx")
    assert result.code == 2
    assert "did you mean 'mhs'" in result.err


@pytest.mark.parametrize("scale", STUDY.scales)
def test_mixers_differ_in_the_mixer_alone(scale):
    runs = [arm.experiment(Setting(scale)) for arm in STUDY.arms.values()]
    assert len({(run.data, run.train, run.optimizer) for run in runs}) == 1
    assert len({run.model.block.mixer for run in runs}) == len(MIXERS)


@pytest.mark.slow
def test_a_short_training_learns_what_the_linear_model_knows_in_part(command, tmp_path):
    args = ("--mixer=gru", "--steps=60", f"--out={tmp_path}")
    result = command("digits", *args, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    (accuracy,) = found["arms"]["gru"]["figures"]["accuracy"]
    assert 0.5 < accuracy < found["baselines"]["linear"]["accuracy"] + 0.03
    assert found["baselines"]["linear"]["accuracy"] > 0.9
    told = command("digits", *args)  # nothing is left to train
    assert f"{accuracy:.4f}" in told.out
    assert "(linear)" in told.out
