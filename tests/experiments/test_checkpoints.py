"""Runs that go on, start from others, and outlive a full disk or a damaged checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil

import chex
import jax
import numpy as np
import pytest

from gam_jax.data import Text, load
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import beginning, loop
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.loop import Beginning, train
from gam_jax.training.progress import Progress
from gam_jax.training.warm_start import Source
from sharding.checkpoint import CheckpointConfig, Checkpoints, Damaged, names
from sharding.checkpoint.__main__ import main as tool
from sharding.errors import UserError
from tests.meshes import layout_of
from tests.workshop import metrics_of

ONE = (1, 1, 1), "data+sequence+tensor"
SHARDED = (2, 2, 2), "fully_sharded+sequence+tensor"
LEVELS = ((2, 2, 2), 1, 1), ONE[1], "", "1f1b", 1, "", "weights:2,gradients:4,state:8"
OTHERS = ((4, 2), 1, 1), ONE[1], "", "1f1b", 1, "", "weights:8,secondary:2"


@dataclasses.dataclass
class Maker:
    """Trains small runs in this process.

    Attributes:
      path: where they are.
      experiment: what each is, but for changes.
    """

    path: object
    experiment: Experiment

    def data(self):
        return load(self.experiment.data, None)

    def run(self, name, where=ONE, beginning=Beginning(), **changes) -> RunFolder:
        """Trains `name` further, on a mesh; `changes` are of train, checkpoint or model."""
        experiment = self.experiment
        for part in ("train", "checkpoint", "model"):
            fields = {f.name for f in dataclasses.fields(getattr(experiment, part))}
            own = {k: v for k, v in changes.items() if k in fields}
            whole = dataclasses.replace(getattr(experiment, part), **own)
            experiment = dataclasses.replace(experiment, **{part: whole})
        folder, data = RunFolder(self.path / name), self.data()
        if not folder.config.exists():
            folder.start(experiment, data.files)
        train(experiment, data, folder, layout_of(*where), Progress(), beginning=beginning)
        return folder


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def maker(tmp_path_factory, workshop) -> Maker:
    model = LanguageModel(Block(GAM(slots=16, kernel=3)), width=16, depth=2, vocab=256, dropout=0.1)
    experiment = Experiment(
        model,
        Text(f"text:{workshop.path / 'corpus.txt'}", dir=str(workshop.path / "data"), window=16),
        TrainConfig(steps=40, batch=8, log_every=1, validate_every=100, validation_tokens=256),
        OptimizerConfig(learning_rate=1e-2, warmup=5),
        CheckpointConfig(every=10, keep=2),
    )
    return Maker(tmp_path_factory.mktemp("runs"), experiment)


@pytest.fixture(scope="module")
def whole(maker) -> RunFolder:
    """Forty steps on one device, without a break."""
    return maker.run("whole")


def losses(folder: RunFolder) -> list[float]:
    return [row["loss"] for row in metrics_of(folder.path) if row["split"] == "train"]


def params(folder: RunFolder, which: str = "latest"):
    return load_params(folder, folder.experiment(), layout_of(*ONE), which)


def test_on_the_same_mesh_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(maker, whole):
    maker.run("parts", stop_at=13)
    folder = maker.run("parts")
    assert losses(folder) == losses(whole)
    assert tool(["diff", str(whole.path), str(folder.path)]) == 0


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(ONE, SHARDED, id="to the mesh"),
        pytest.param(SHARDED, ONE, id="from the mesh"),
        pytest.param(LEVELS, OTHERS, id="to other degrees", marks=pytest.mark.slow),
    ],
)
def test_on_another_mesh_it_is_the_same_to_1e_5_after_twenty_steps(maker, whole, first, then):
    name = f"moved {first[0]}"
    maker.run(name, first, stop_at=20)
    folder = maker.run(name, then)
    assert len(losses(folder)) == 40
    np.testing.assert_allclose(losses(folder), losses(whole), rtol=1e-5)


def test_a_checkpoint_says_all_that_there_is_to_know_of_it(maker, whole):
    with Checkpoints(whole.checkpoints, read_only=True) as checkpoints:
        manifest = checkpoints.manifest(40)
    data, extra = maker.data(), manifest.extra
    assert extra["position"] == 40
    assert extra["tokenizer"] == data.tokenizer.fingerprint
    assert extra["corpus"] == data.corpus.fingerprint
    assert extra["config"]["model"]["width"] == 16
    assert extra["versions"]["jax"] == jax.__version__
    assert extra["compiler"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert manifest.loss is not None
    table = names.flat(maker.experiment.model.table())
    for name, param in table.items():
        for prefix in ("params", "opt_state/1/0/mu", "opt_state/1/0/nu"):
            stored = manifest.arrays[f"{prefix}/{name}"]
            assert (stored.fact.shape, stored.axes) == (param.shape, param.axes)
    rest = manifest.arrays.keys() - {
        name for name in manifest.arrays if name.endswith(tuple(table))
    }
    assert {"step", "key"} <= rest
    assert all(manifest.arrays[name].axes is None for name in rest)


def copy(maker, whole, name) -> RunFolder:
    shutil.copytree(whole.path, maker.path / name)
    return RunFolder(maker.path / name)


def damage(folder: RunFolder, step: int) -> None:
    """One bit of the largest file."""
    files = [path for path in (folder.checkpoints / str(step)).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_before_a_step_is_done(maker, whole, monkeypatch):
    folder = copy(maker, whole, "refused")
    damage(folder, 40)
    monkeypatch.setattr(loop, "TrainFeed", None)  # no step could be taken
    with pytest.raises(Damaged, match=r"checkpoint 40 .*--resume=latest-good"):
        maker.run("refused")


def test_latest_good_goes_on_from_the_one_before_and_ends_the_same(maker, whole, capsys):
    folder = copy(maker, whole, "good")
    damage(folder, 40)
    maker.run("good", beginning=Beginning("latest-good"))
    said = capsys.readouterr().err
    assert "checkpoint 40 in" in said
    assert "is damaged (arrays/" in said
    assert "going on from checkpoint 30" in said
    assert losses(folder) == losses(whole)
    assert tool(["diff", str(whole.path), str(folder.path)]) == 0
    assert {path.name for path in folder.checkpoints.iterdir()} == {"30", "40"}


def test_where_none_is_good_a_run_does_not_begin_anew(maker, whole):
    folder = copy(maker, whole, "none good")
    for step in (30, 40):
        damage(folder, step)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        maker.run("none good", beginning=Beginning("latest-good"))
    assert {path.name for path in folder.checkpoints.iterdir()} == {"30", "40"}


# Orbax leaves what it was still writing behind when one of its writes fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_training_goes_on_when_a_save_fails_and_the_last_good_one_is_kept(
    maker, whole, capsys, monkeypatch
):
    """Writes fail in the operating system, from step 20 to 29 of the run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real, kept = Checkpoints.save, {}

    def save(self, step, *args):
        self._join()
        limit = 6000 if step == 20 else soft
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        real(self, step, *args)
        if step == 20:
            self._join()
            kept[step] = self.latest_good()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(Checkpoints, "save", save)
    folder = maker.run("full", keep=9)
    said = capsys.readouterr().err
    assert said.count("training goes on") == 1
    assert "cannot save in" in said
    assert "checkpoint 10 is kept, training goes on" in said
    assert kept == {20: (10, [])}
    assert {path.name for path in folder.checkpoints.iterdir()} == {"10", "30", "40"}
    assert losses(folder) == losses(whole)
    assert tool(["diff", str(whole.path), str(folder.path)]) == 0


def test_a_run_whose_end_cannot_be_saved_says_so(maker, monkeypatch):
    usage = shutil.disk_usage(maker.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match="10 free on the disk"):
        maker.run("no room", stop_at=2)


# Starting from another run.


def test_a_run_starts_from_parameters_of_another(maker, whole, capsys):
    source = Source(whole, "30", include=("blocks/*", "embedding"), exclude=("*/bias",))
    folder = maker.run("warm", beginning=Beginning(source=source), stop_at=1, keep=9)
    report = json.loads(folder.init.read_text())
    assert report["source"].endswith("whole@30")
    assert set(report["left"]) == {
        "blocks/ffn_norm/bias",
        "blocks/mixer_norm/bias",
        "final_norm/bias",
        "final_norm/scale",
    }
    assert not report["missing"] + report["unexpected"] + report["other_shape"]
    found, old = (names.flat(params(*which)[1]) for which in ((folder, "0"), (whole, "30")))
    assert set(report["taken"]) | set(report["left"]) == set(found)
    for name in report["taken"]:
        chex.assert_trees_all_equal(found[name], old[name])
    for name in report["left"]:
        assert np.any(np.asarray(found[name]) != np.asarray(old[name]))
    assert "taken: 12 (" in capsys.readouterr().err


def test_the_report_names_what_is_missing_unexpected_and_of_another_shape(maker, whole):
    other = LanguageModel(Block(GAM(slots=16, variant="global")), 16, 3, 256, context=16)
    report = Source(whole).plan(other.table())
    assert report.missing == ("positions",)
    assert set(report.taken) == {"embedding", "final_norm/bias", "final_norm/scale"}
    assert "blocks/mixer/memory" in report.other_shape
    assert set(report.unexpected) >= {"blocks/mixer/conv", "blocks/mixer/conv_bias"}
    assert not report.left + report.resized
    chosen = Source(whole, include=("emb*", "blocks/*/memory")).plan(other.table())
    assert (chosen.taken, chosen.unexpected) == (("embedding",), ())
    assert any("missing: 1 (positions)" in line for line in report.lines())


@pytest.mark.parametrize(("size", "where"), [(192, SHARDED), (320, ONE), (320, SHARDED)])
def test_a_vocabulary_is_cut_or_filled_up_on_request(maker, whole, size, where):
    model = dataclasses.replace(maker.experiment.model, vocab=size)
    experiment = dataclasses.replace(maker.experiment, model=model)
    folder = RunFolder(maker.path / f"{size} {where[0]}")
    layout = layout_of(*where)
    say = Progress(visible=False)
    fresh = beginning._new(experiment, layout, folder, Beginning(), say).params
    folder.path.mkdir()
    with pytest.raises(UserError, match=f"vocabulary of 256 in .*@40 and of {size} here"):
        Source(whole).plan(model.table())
    with pytest.raises(UserError, match="nothing to take"):
        Source(whole, include=("emb*",), exclude=("embedding",)).plan(model.table())
    warm = Beginning(source=Source(whole, resize=True))
    found = beginning._new(experiment, layout, folder, warm, say).params
    assert json.loads(folder.init.read_text())["resized"] == ["embedding"]
    old, new = np.asarray(params(whole)[1]["embedding"]), np.asarray(found["embedding"])
    common = min(size, 256)
    np.testing.assert_array_equal(new[:common], old[:common])
    np.testing.assert_array_equal(new[common:], np.asarray(fresh["embedding"])[common:])
    assert found["embedding"].sharding == fresh["embedding"].sharding
    chex.assert_trees_all_equal(found["blocks"], params(whole)[1]["blocks"])


def test_parameters_alone_serve_and_start_runs_but_do_not_resume(maker, whole):
    file, run = maker.path / "w.safetensors", maker.path / "imported"
    assert tool(["export", str(whole.path), "--to", str(file)]) == 0
    assert tool(["import", str(file), "--run", str(run)]) == 0
    step, found = params(RunFolder(run))
    chex.assert_trees_all_equal((step, found), params(whole))
    with pytest.raises(UserError, match="parameters only"):
        maker.run("imported", stop_at=41)
    warm = maker.run("from file", beginning=Beginning(source=Source(RunFolder(run))), stop_at=1)
    assert len(json.loads(warm.init.read_text())["taken"]) == 16


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--init=none",), "no checkpoint in"),
        (("--init_include=blocks/*",), "need --init=RUN"),
        (("--init_vocab=resize",), "need --init=RUN"),
        (("--resume=newest",), "say latest, latest-good, best or a step"),
    ],
)
def test_bad_input_is_one_line(command, maker, args, words):
    result = command("train", f"--run={maker.path / 'new'}", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert words in result.err
    assert not (maker.path / "new").exists()


def test_a_source_without_the_checkpoint_is_named_before_anything_starts(command, maker, whole):
    result = command("train", f"--run={maker.path / 'new'}", f"--init={whole.path}@11")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no checkpoint '11'" in result.err
