"""A run that trains some of its parameters stores these alone, and reads the others in its base."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models import LanguageModel, SideTuned
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig, fit
from gam_jax.training.adapt import with_adapters
from gam_jax.training.beginning import Beginning
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.progress import Progress
from gam_jax.training.warm_start import Source
from sharding.checkpoint import Checkpoints
from sharding.checkpoint.diff import diff
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("compiled_once")
QUIET = Progress(visible=False)
TRAIN = TrainConfig(steps=4, batch=4, validate_every=4, validation_tokens=64, log_every=1)


def begun(experiment, run, base, **fields):
    """A run from the parameters of another."""
    experiment = changed(experiment, **fields)
    fit(experiment, run=run, beginning=Beginning(source=Source(base)), progress=QUIET)
    return run


def changed(experiment, stop_at=0, **fields):
    train = dataclasses.replace(experiment.train, stop_at=stop_at)
    checkpoint = dataclasses.replace(experiment.checkpoint, **fields)
    return dataclasses.replace(experiment, train=train, checkpoint=checkpoint)


def size(run, step):
    return Checkpoints(run / "checkpoints", read_only=True).manifest(step).bytes


MODEL = LanguageModel(Block(GAM(slots=16), MLP(hidden=64)), width=16, depth=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained language model."""
    path = tmp_path_factory.mktemp("runs")
    (path / "corpus.txt").write_text("the cat sat on the mat and the dog on the log. " * 40)
    data = Text(f"text:{path / 'corpus.txt'}", tokenizer="bytes", window=16)
    experiment = Experiment(MODEL, data, TRAIN, OptimizerConfig(warmup=1))
    fit(experiment, run=path / "base", progress=QUIET)
    return RunFolder(path / "base")


@pytest.fixture(params=["side", pytest.param("adapters", marks=pytest.mark.slow)])
def tuned(request, base):
    """An experiment that trains what is new alone, on the model of the base."""
    old = base.experiment()
    if request.param == "adapters":
        return with_adapters(old, "mixer/*,ffn/*", rank=2)
    optimizer = dataclasses.replace(old.optimizer, only="side/*")
    return dataclasses.replace(old, model=SideTuned(old.model), optimizer=optimizer)


def test_it_resumes_bit_for_bit_opens_on_any_mesh_and_needs_its_base(tuned, base, tmp_path):
    whole = begun(tuned, tmp_path / "each", base, frozen="each")
    part = begun(tuned, tmp_path / "part", base, stop_at=2)
    assert Checkpoints(part / "checkpoints", read_only=True).steps() == [0, 2]
    fit(changed(tuned), run=part, resume=True, progress=QUIET)
    assert diff(str(whole), str(part))["equal"]
    assert size(part, 4) < 0.6 * size(whole, 4)
    assert (base.checkpoints / "4.named").exists()  # so that the base never removes it
    folder, experiment = RunFolder(part), RunFolder(part).experiment()
    split = Layout(make_mesh(data=2, tensor=2, devices=jax.devices()[:4]))
    step, params = load_params(folder, experiment, split)
    _, wanted = load_params(RunFolder(whole), RunFolder(whole).experiment(), split)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    away = base.path.with_name("away")
    shutil.move(base.path, away)
    try:
        with pytest.raises(UserError, match="is not there: bring that checkpoint back"):
            load_params(folder, experiment, split)
        with pytest.raises(UserError, match="is not there: bring that checkpoint back"):
            fit(changed(tuned), run=part, resume=True, progress=QUIET)
    finally:
        shutil.move(away, base.path)


def test_what_begins_new_is_saved_as_ever(base, tmp_path):
    """And a checkpoint that was saved when all were whole goes on."""
    old = base.experiment()
    optimizer = dataclasses.replace(old.optimizer, only="side/*")
    new = dataclasses.replace(old, model=SideTuned(old.model), optimizer=optimizer)
    fit(changed(new, stop_at=2), run=tmp_path / "new", progress=QUIET)
    fit(changed(new), run=tmp_path / "new", resume=True, progress=QUIET)
    arrays = Checkpoints(tmp_path / "new" / "checkpoints", read_only=True).manifest(4).arrays
    assert all(stored.place is None for stored in arrays.values())
