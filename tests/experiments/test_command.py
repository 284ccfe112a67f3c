"""The command `gam`: what it lists, how flags are written, how configs are named, its help."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys

import pytest
from absl import flags

from experiments import cli, command
from experiments.config_flags import config_file, config_names
from experiments.configs import gam_small
from experiments.contenders import EVERY
from experiments.show_config import fields_of, meanings
from gam_jax.config import flatten, from_dict, to_dict
from gam_jax.layers import LAYERS
from gam_jax.layers.base import INHERITED
from gam_jax.training.experiment import Experiment
from sharding.checkpoint.__main__ import _parser
from sharding.errors import UserError
from tests.experiments import commands
from tests.experiments.commands import ROOT

OURS = {
    name: module.removeprefix("experiments.")
    for name, (module, _) in command.COMMANDS.items()
    if module.startswith("experiments.")
}
"""Commands whose flags are absl's."""


@pytest.fixture
def gam(monkeypatch, capsys):
    """Runs `gam` with these words, where it starts no other module."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["gam", *words])
        code = 0
        try:
            command.main()
        except SystemExit as ended:
            code = ended.code
        return commands.Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process."""
    return lambda name, *words: commands.in_process(monkeypatch, capsys, module_of(name), *words)


def module_of(name):
    """The module below experiments that holds a command's main()."""
    package = (ROOT / "experiments" / OURS[name]).is_dir()
    return f"{OURS[name]}.__main__" if package else OURS[name]


def test_every_module_that_can_be_run_is_a_command():
    runnable = set()
    for path in (ROOT / "experiments").rglob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text():
            inside = path.relative_to(ROOT).with_suffix("")
            parts = inside.parts[:-1] if inside.name == "__main__" else inside.parts
            runnable.add(".".join(parts))
    runnable = {name for name in runnable if not name.startswith("experiments.papers.")}
    listed = {module for module, _ in command.COMMANDS.values()}
    assert listed == (runnable - {command.__name__}) | {"sharding.checkpoint"}


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_gam_alone_lists_the_commands(words, gam):
    result = gam(*words)
    assert (result.code, result.err) == (0, "")
    listed = re.findall(r"^  (\w+)  +\S", result.out, re.MULTILINE)
    assert listed == list(command.COMMANDS)
    assert max(map(len, result.out.splitlines())) <= 80


def test_an_unknown_command_is_one_line_with_the_nearest_name(gam):
    result = gam("trian", "--run=x")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "unknown command 'trian'; did you mean 'train'?" in result.err


@pytest.mark.parametrize("name", OURS)
def test_help_shows_every_flag_in_eighty_columns(name, run, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])
    module = importlib.import_module(f"experiments.{module_of(name)}")
    before = set(flags.FLAGS)
    module.define_flags()
    own = set(flags.FLAGS) - before
    for flag in own:
        delattr(flags.FLAGS, flag)
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert set(re.findall(r"^  --(?:\[no\])?(\w+)", result.out, re.MULTILINE)) == own
    assert [line for line in result.out.splitlines() if len(line) > 80] == []


def test_help_names_what_decides_config_and_devices(run):
    shown = run("train", "--help").out
    assert all(f"  --{name}=" in shown for name in ("config", "mesh", "emulate", "across"))
    assert all(name in shown for name in config_names())


def test_help_of_checkpoints_fits_too(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in _parser().format_help().splitlines() if len(line) > 80] == []


@pytest.fixture
def two_flags():
    """A flag of text and a flag of yes or no."""
    flags.DEFINE_string("top_p", "", "")
    flags.DEFINE_bool("as_json", False, "")
    yield
    for name in ("top_p", "as_json"):
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--top-p=a-b"], ["--top_p=a-b"]),
        (["--top_p=a_b", "-top-p=x"], ["--top_p=a_b", "-top_p=x"]),
        (["--top-p", "--as-json"], ["--top_p", "--as-json"]),  # the second is the first's value
        (["--as-json", "--top-p=1"], ["--as_json", "--top_p=1"]),
        (["--noas-json"], ["--noas_json"]),
        (["--config.a-b.c=d-e"], ["--config.a-b.c=d-e"]),
        (["a-word", "-", "-1"], ["a-word", "-", "-1"]),
        (["--as-json", "--", "gam", "--top-p=1"], ["--as_json", "--", "gam", "--top-p=1"]),
    ],
)
def test_a_name_is_written_with_either_sign_and_a_value_stays(words, meant, two_flags):
    assert cli.normalised(["gam", *words]) == ["gam", *meant]


def test_either_sign_reaches_the_command(run):
    result = run("launch", "--devices-per-process=-1", "--", "true")
    assert result.code == 2
    assert "devices_per_process=-1" in result.err


def test_a_config_is_found_by_its_name_and_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    folder = ROOT / "experiments" / "configs"
    assert config_file("gam_paper") == f"{folder}/gam_paper.py"
    assert config_file("compare:mamba2") == f"{folder}/compare.py:mamba2"
    assert config_file("mine.py:small") == "mine.py:small"


@pytest.mark.parametrize("wrong", ["gam_papr", "nowhere.py", "no/where.py:mamba2"])
def test_a_wrong_config_is_told_the_right_ones(wrong):
    with pytest.raises(UserError, match="choose one of compare, gam_paper, gam_small, moe_small"):
        config_file(wrong)


def test_a_run_is_named_after_its_config(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "runs" / "compare-mamba2"
    taken.mkdir(parents=True)
    (taken / "config.json").write_text("{}")
    (taken / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    assert "runs/compare-mamba2 already holds a run" in run("train", "--config=compare:mamba2").err


@pytest.mark.parametrize("config", [*config_names(), *(f"compare:{name}" for name in EVERY)])
def test_every_field_is_shown_with_a_meaning(config):
    name, _, argument = config.partition(":")
    module = importlib.import_module(f"experiments.configs.{name}")
    values = module.get_config(*([argument] if argument else [])).to_dict()
    experiment = from_dict(Experiment, values)
    fields = fields_of(experiment)
    assert {field.name: field.value for field in fields} == flatten(to_dict(experiment))
    assert [field.name for field in fields if not field.meaning] == []


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_layer_says_what_its_fields_mean(layer):
    names = {field.name for field in dataclasses.fields(layer)}
    assert names - set(INHERITED) - set(meanings(layer)) == set()


def test_show_config_prints_what_would_run_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", "--show-config", "--config.train.steps=300")
    assert (result.code, result.err) == (0, "")
    assert re.search("^train.steps=300 +updates in the whole schedule.$", result.out, re.MULTILINE)
    count = len(flatten(to_dict(from_dict(Experiment, gam_small.get_config().to_dict()))))
    assert result.out.count("\n") == count
    assert list(tmp_path.iterdir()) == []


def test_other_programs_are_started_as_they_are():
    assert command.as_process(("python", "gam")) == ("python", "gam")


def test_it_runs_beside_a_folder_of_the_same_name_and_without_gam_on_the_path(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit('not this one')")
    job = ("gam", "launch", "--processes=1", "--", "gam", "train", "--show-config")
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        command.as_process(job), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "[0] data.name=python_stdlib " in result.stdout
