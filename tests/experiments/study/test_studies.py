"""Every study is whole and runs: claims name what there is, arms train, time and compute."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from experiments.papers import STUDIES
from experiments.report.markdown import escaped
from experiments.study.declare import SHORT, Setting, Study
from experiments.study.found import read
from experiments.study.run import Request, experiment_of, run_study
from experiments.study.sheet import PUBLISHED, Sheet
from experiments.study.sheets import page, sheet
from gam_jax.config import from_dict, to_dict
from gam_jax.data import Text
from gam_jax.training import Experiment
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

each_study = pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)

ARMS = [
    pytest.param(study, arm, id=f"{study.name}-{arm}", marks=[pytest.mark.slow] * (number > 0))
    for study in STUDIES.values()
    for number, arm in enumerate(study.arms)
    if not study.arms[arm].reads
]
"""The first arm of each study by default; all of them among the slow tests, but for those that
read a file which is not here."""


def setting_of(study: Study, arms, workshop=None) -> Setting:
    """Two steps; where text is read, that of the tests, kept where they keep it."""
    own = [arm.experiment for arm in map(study.arms.get, arms) if arm.experiment is not None]
    data = [experiment(Setting(SHORT)).data for experiment in own]
    if workshop is None or not any(isinstance(one, Text) for one in data):
        return Setting(SHORT, steps=2)
    plain = all(type(one) is Text for one in data)
    text = f"text:{workshop.path / 'corpus.txt'}" if plain else ""
    return Setting(SHORT, text, str(workshop.path / "data"), steps=2)


def run(study: Study, arms, path, seeds=(0,), workshop=None, **changes):
    setting = setting_of(study, arms, workshop)
    request = Request(tuple(arms), tuple(seeds), setting, path, repeats=1, **changes)
    devices = jax.devices()[:1]
    return run_study(study, request, Layout(make_mesh(devices=devices)), Progress(visible=False))


@each_study
def test_it_says_whose_it_is_and_where_it_is_told(study):
    assert study.scales[0] == SHORT
    assert study.claims
    assert study.source
    assert study.default_arms
    for names in study.groups.values():
        assert set(names) <= study.arms.keys()


@each_study
def test_its_experiments_are_configurations_at_every_scale(study):
    for scale in study.scales:
        for name, arm in study.arms.items():
            if arm.experiment is not None:
                experiment = experiment_of(arm, Setting(scale))
                assert from_dict(Experiment, to_dict(experiment)) == experiment, (scale, name)


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_an_arm_runs_two_steps(study, arm, tmp_path, workshop):
    found = run(study, [arm], tmp_path, workshop=workshop)
    assert found.arms[arm].figures
    shown = sheet(study, found)
    assert any(row[0] == study.arms[arm].title for row in shown.rows)
    assert set(found.arms[arm].figures) & set(study.measures)


@each_study
def test_what_it_found_is_of_arms_and_measures_that_it_has(study):
    for scale, found in read(study.name).items():
        assert scale in study.scales
        assert found.arms.keys() <= study.arms.keys()
        for name, arm in found.arms.items():
            assert arm.figures.keys() & study.measures.keys(), name
            assert arm.command, name


@pytest.mark.slow
def test_a_finished_run_is_only_read_and_another_seed_is_added(tmp_path):
    study = STUDIES["digits"]
    first = run(study, ["raster"], tmp_path)
    folder = tmp_path / SHORT / "raster-0"
    kept = json.loads((folder / "found.json").read_text())
    (folder / "found.json").write_text(json.dumps({**kept, "accuracy": 0.123}))
    again = run(study, ["raster"], tmp_path, seeds=(0, 1))
    assert again.arms["raster"].figures["accuracy"][0] == 0.123
    assert len(again.arms["raster"].figures["accuracy"]) == 2
    assert again.arms["raster"].figures["loss"][0] == first.arms["raster"].figures["loss"][0]
    (folder / "found.json").write_text('{"loss": ["1"]}')
    with pytest.raises(UserError, match=r"found.json: 'loss' is no number"):
        run(study, ["raster"], tmp_path)


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(tmp_path):
    study = STUDIES["digits"]
    run(study, ["raster"], tmp_path)
    arm = study.arms["raster"]

    def other(setting):
        one = arm.experiment(setting)
        return dataclasses.replace(one, train=dataclasses.replace(one.train, batch=32))

    changed = dataclasses.replace(
        study, arms={"raster": dataclasses.replace(arm, experiment=other)}, claims=()
    )
    with pytest.raises(UserError, match=r"holds a different run \(train.batch: 64 -> 32\)"):
        run(changed, ["raster"], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "digit"), "unknown study 'digit'; did you mean 'digits'?"),
        (("run", "digits", "--arms=rasta"), "unknown arm 'rasta'; did you mean 'raster'?"),
        (("run", "digits", "--scale=huge"), "--scale: unknown scale 'huge'"),
        (("run", "digits", "--seeds=a"), "give whole numbers"),
        (("run", "digits", "--group=table9"), "--group: unknown group 'table9'"),
        (("claims", "--page=nowhere/claims.md"), "there is no folder nowhere"),
    ],
)
def test_what_there_is_not_is_one_line(command, words, message, tmp_path):
    result = command("study.__main__", *words, f"--out={tmp_path / 'out'}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_the_page_of_claims_is_that_of_what_was_found(tmp_path):
    """docs/claims.md is made of the committed files: `gam study claims`."""
    made = page(STUDIES, {name: read(name) for name in STUDIES})
    with open("docs/claims.md", encoding="utf-8") as file:
        assert file.read() == made
    for study in STUDIES.values():
        for claim in study.claims:
            assert escaped(claim.text) in made, claim.text


def test_a_table_is_parted_and_loses_no_cell():
    """Rows without a column in common are no table; published figures stay beside ours."""
    many = [f"m{number}" for number in range(11)]
    head = ("", *(text for name in many for text in (name, PUBLISHED)), "alone")
    rows = (("one", *"x" * 22, ""), ("two", "y", *[""] * 22), ("three", *[""] * 22, "z"))
    blocks = Sheet("title", head, rows).blocks
    assert [[row[0] for row in own] for _, own in blocks] == [
        ["one", "two"],
        *[["one"]] * 2,
        ["three"],
    ]
    assert all(own[1] != PUBLISHED for own, _ in blocks)
    assert all(len(own) <= 10 for own, _ in blocks)
    cells = [cell for _, own in blocks for row in own for cell in row[1:] if cell]
    assert sorted(cells) == sorted("x" * 22 + "yz")
