"""Recall: what is alike for all mixers, when training ends, and what the command tells."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments.contenders import CONTENDERS, EVERY
from experiments.papers.recall import ADAMW, SCALES, STUDY, experiment
from experiments.study import Setting
from gam_jax.config import flatten, to_dict
from gam_jax.training import fit
from gam_jax.training.progress import Progress


@pytest.mark.parametrize("scale", SCALES)
def test_every_mixer_reads_the_same_sequences_and_trains_alike(scale):
    runs = [STUDY.arms[name].experiment(Setting(scale)) for name in EVERY]
    assert len({(run.data, run.train, run.optimizer) for run in runs}) == 1
    assert len({(run.model.width, run.model.depth) for run in runs}) == 1


@pytest.mark.parametrize("name", ADAMW)
def test_an_arm_by_adamw_differs_in_the_optimizer_alone(name):
    runs = [STUDY.arms[arm].experiment(Setting()) for arm in (name, f"{name}_adamw")]
    one, other = (flatten(to_dict(run)) for run in runs)
    differ = {field for field in one | other if one.get(field) != other.get(field)}
    assert differ == {"optimizer.kind"}


@pytest.mark.parametrize("scale", SCALES)
def test_training_ends_once_the_hardest_number_of_pairs_is_answered(scale):
    train = STUDY.arms["gam"].experiment(Setting(scale)).train
    scores = {f"accuracy_{n}": 0.9995 for n in SCALES[scale].data.pairs}
    hardest = f"accuracy_{max(SCALES[scale].data.pairs)}"
    assert train.reached(scores)
    assert not train.reached({**scores, hardest: 0.998})
    assert train.steps % train.validate_every == 0


def test_a_batch_has_as_many_sequences_of_each_number_of_pairs():
    assert all(scale.rows % len(scale.data.pairs) == 0 for scale in SCALES.values())


@pytest.mark.slow
def test_the_command_prints_shares_draws_them_and_goes_on(workshop, tmp_path, command):
    args = ("--scale=short", "--mixers=gam", "--steps=4", f"--out={tmp_path}", "--json")
    result = workshop.run("recall", *args)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    figures = found["arms"]["gam"]["figures"]
    assert figures["steps"] == [4]
    assert all(0 <= share <= 1 for n in (2, 4) for share in figures[f"accuracy_{n}"])
    assert found["baselines"]["chance"]["accuracy_4"] == 0.25
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    told = command("recall", *args[:-1], "--seed=0")  # nothing is left to train
    assert told.code == 0, told.err
    shares = (f"{figures[f'accuracy_{n}'][0]:.1%}" for n in (2, 4))
    assert all(word in told.out for word in ("GAM", "4 pairs", "(chance)", "25.0%", *shares))
    report = command("report.__main__", str(tmp_path / "short"), "--markdown", "--out=-")
    assert report.code == 0, report.err
    assert "| chance |" in report.out


@pytest.mark.slow
def test_the_scale_of_a_laptop_has_another_name(command, tmp_path):
    result = command("recall", "--scale=default", "--mixers=gam", "--steps=1", f"--out={tmp_path}")
    assert result.code == 0, result.err
    assert (tmp_path / "cpu" / "gam-0" / "config.json").exists()


@pytest.mark.slow
def test_a_written_memory_recalls_where_a_bank_of_weights_cannot(tmp_path):
    scale = dataclasses.replace(SCALES["short"], steps=250)
    shares = {}
    for name in ("written_gam", "gam"):
        run = experiment(CONTENDERS[name], scale)
        fitted = fit(run, run=tmp_path / name, progress=Progress(visible=False))
        shares[name] = fitted.outcome.last.values["accuracy_4"]
    assert shares["written_gam"] > 0.8
    assert shares["gam"] < 0.6
