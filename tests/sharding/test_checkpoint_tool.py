"""python -m sharding.checkpoint: what it shows, compares, moves, and how it says no."""

from __future__ import annotations

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sharding.checkpoint import Checkpoints, manifest
from sharding.checkpoint.__main__ import main
from tests.arrays import put

LARGE = np.random.default_rng(0).normal(size=4000).astype(np.float32)
"""Not stored inside the index, as small arrays are."""
CONFIG = {"model": {"width": 4}}
AXES = {"params/blocks/w": ("layer", "embed"), "mu/blocks/w": ("layer", "embed")}


def arrays(change: float = 0.0):
    """Parameters, a moment of theirs and a counter."""
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    w[1, 2] += change
    b = put([1.5, -2.0], jnp.bfloat16)
    return {
        "params": {"blocks": {"w": put(w)}, "b": b, "large": put(LARGE)},
        "mu": {"blocks": {"w": put(np.zeros((3, 4)), "float32")}},
        "step": jnp.int32(7),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: `a` with steps 5 and 7, `b` with a step 7 that differs in one number."""
    folder = tmp_path_factory.mktemp("runs")
    for name, saves in {"a": {5: 1.0, 7: 0.0}, "b": {7: 1e-3}}.items():
        with Checkpoints(folder / name / "checkpoints") as checkpoints:
            for step, change in saves.items():
                loss = 2.0 if step == 5 else 1.0
                checkpoints.save(step, arrays(change), {"config": CONFIG}, loss, AXES)
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def tool(capsys):
    """tool("inspect", ...) -> exit code, output, errors."""

    def run(*args):
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def test_inspect_lists_steps_and_arrays(runs, tool):
    code, out, _ = tool("inspect", runs / "a", "--json")
    found = json.loads(out)
    assert (code, found["step"], found["extra"]) == (0, 7, {"config": CONFIG})
    assert [(row["step"], row["arrays"], row["loss"]) for row in found["steps"]] == [
        (5, 5, 2.0),
        (7, 5, 1.0),
    ]
    assert all(row["bytes"] > 100 for row in found["steps"])
    rows = {row["name"]: row for row in found["arrays"]}
    w = rows["params/blocks/w"]
    assert (w["shape"], w["dtype"], w["axes"]) == ([3, 4], "float32", ["layer", "embed"])
    assert (w["bytes"], w["mean"]) == (48, 5.5)
    assert w["std"] == pytest.approx(math.sqrt(143 / 12))
    assert (rows["params/b"]["dtype"], rows["params/b"]["axes"]) == ("bfloat16", None)


def test_inspect_is_for_people_too(runs, tool):
    code, out, err = tool("inspect", f"{runs / 'a'}@5", "--verify")
    assert (code, err) == (0, "")
    assert "layer embed" in out
    assert "step 5 " in out
    assert out.splitlines()[-1] == "verified: every file and every array is as it was saved"


def test_verify_names_the_file_and_the_array(runs, tool, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "a")
    data = tmp_path / "a" / "checkpoints" / "5" / "arrays" / "ocdbt.process_0" / "d"
    file = max(data.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, out, err = tool("inspect", f"{tmp_path / 'a'}@5", "--verify", "--json")
    assert code == 1
    damaged = json.loads(out)["damaged"]
    assert damaged.keys() == {"5"}
    assert (
        damaged["5"][0] == f"{file.relative_to(data.parents[2])} has other bytes than were written"
    )
    assert damaged["5"][1].startswith("'params/large' ")
    assert len(damaged["5"]) == 2
    assert err.splitlines() == [f"checkpoint 5 is damaged: {reason}" for reason in damaged["5"]]


@pytest.mark.parametrize(
    ("args", "code", "differ"),
    [
        (["a@7", "a@7"], 0, set()),
        (["a", "b"], 1, {"params/blocks/w"}),
        (["a", "b", "--rtol=1e-3"], 0, {"params/blocks/w"}),
        (["a", "b", "--rtol=1e-6"], 1, {"params/blocks/w"}),
        (["a", "b", "--only=mu/*"], 0, set()),
        (["a", "b", "--only=nothing"], 1, set()),
        (["a@best", "a@latest"], 0, set()),
    ],
)
def test_diff_is_zero_only_if_all_is_equal(runs, tool, monkeypatch, args, code, differ):
    monkeypatch.chdir(runs)
    found_code, out, _ = tool("diff", *args, "--json")
    found = json.loads(out)
    assert (found_code, {row["name"] for row in found["arrays"]}) == (code, differ)
    assert found["equal"] == (code == 0)
    for row in found["arrays"]:
        assert (row["elements"], row["of"]) == (1, 12)
        assert row["largest"] == pytest.approx(1e-3, rel=1e-3)


def one(folder, tree):
    """A run of one checkpoint."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, tree, {})
    return folder


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (put([0, 0, 0], "float32"), put([0, 0, 0, 0], "float32"), "float32 [3] and float32 [4]"),
        (put([0, 0, 0], "float32"), put([0, 0, 0], jnp.bfloat16), "bfloat16"),
        (put([0.0], "float32"), put([-0.0], "float32"), "1 differ"),
        (put([np.nan], "float32"), put([1.0], "float32"), "1 differ"),
        (put([1000000], "int32"), put([1000001], "int32"), "1 differ"),
    ],
    ids=["shape", "dtype", "signs of zero", "not a number", "integers"],
)
def test_what_is_not_the_same_is_never_equal(tool, tmp_path, monkeypatch, a, b, words):
    monkeypatch.setattr(
        "sharding.checkpoint.arrays._is_finite", lambda _: True
    )  # as version 0.1 saved
    folders = one(tmp_path / "a", {"x": a}), one(tmp_path / "b", {"x": b})
    code, out, _ = tool("diff", *folders)
    assert code == 1
    assert words in out
    if words == "1 differ" and a.dtype == jnp.int32:
        assert tool("diff", *folders, "--rtol=0.1")[0] == 1


def test_what_only_one_has_is_named(tool, tmp_path):
    folders = (one(tmp_path / n, {n: put([0.0], "float32")}) for n in "xy")
    code, out, _ = tool("diff", *folders)
    assert code == 1
    assert out.count("only in") == 2


def test_parameters_go_out_and_come_in_again(runs, tool, tmp_path):
    file, run = tmp_path / "w.safetensors", tmp_path / "again"
    assert tool("export", runs / "a", "--to", file)[0] == 0
    assert tool("import", file, "--run", run)[0] == 0
    assert tool("diff", runs / "a", run, "--only=params/*")[0] == 0
    assert json.loads((run / "config.json").read_text()) == CONFIG
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        manifest = checkpoints.manifest(7)
    assert manifest.extra == {"config": CONFIG}
    assert manifest.arrays["params/blocks/w"].axes == ("layer", "embed")
    assert manifest.arrays.keys() == {"params/blocks/w", "params/b", "params/large"}


def test_another_program_reads_what_is_exported(runs, tool, tmp_path):
    tool("export", runs / "a", "--to", tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found["blocks/w"], arrays()["params"]["blocks"]["w"])


def test_what_another_program_wrote_is_read(tool, tmp_path):
    values = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_file(values, tmp_path / "x.safetensors")
    assert tool("import", tmp_path / "x.safetensors", "--run", tmp_path / "run")[0] == 0
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.whole(0, "params/layer.weight")
    np.testing.assert_array_equal(found, values["layer.weight"])


def test_bad_input_is_one_line_and_code_two(runs, tool, tmp_path):
    text = tmp_path / "text"
    text.write_text("no arrays")
    for args, words in [
        (("inspect", tmp_path / "none"), "has no checkpoints/"),
        (("inspect", f"{runs / 'a'}@6"), "no checkpoint '6'"),
        (("diff", runs / "a", f"{runs / 'b'}@5"), "say latest, best, or one of [7]"),
        (("export", runs / "a", "--to", text), "exists"),
        (("import", text, "--run", tmp_path / "new"), "not a safetensors file"),
        (("import", tmp_path / "no", "--run", tmp_path / "new"), "not a safetensors file"),
        (("import", text, "--run", runs / "a"), "has checkpoints"),
    ]:
        code, out, err = tool(*args)
        assert (code, out, err.count("\n")) == (2, "", 1), args
        assert words in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "required: inspect|diff|export|import; see gam checkpoint --help"),
        (("look", "run"), "invalid choice: 'look'"),
        (("inspect",), "required: RUN[@STEP]; see gam checkpoint inspect --help"),
        (("inspect", "run", "--verify=no"), "--verify"),
        (("diff", "a", "b", "--rtol=much"), "--rtol: invalid float value: 'much'"),
        (("export", "run"), "required: --to"),
        (("inspect", "run", "more\nwords"), "unrecognized arguments: more words"),
    ],
    ids=" ".join,
)
def test_words_that_make_no_command_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert said in err


FORGED = {
    "a step that is a text": {"step": "7"},
    "a step that is a truth": {"step": True},
    "a loss that is a list": {"loss": [1.0]},
    "extra that is a list": {"extra": []},
    "suspicion that is a number": {"suspect": 3},
    "files that are a list": {"files": ["manifest.json"]},
    "a file of negative size": {"files": {"x": {"bytes": -1, "sha256": ""}}},
    "a file outside": {"files": {"../../config.json": {"bytes": 1, "sha256": "0" * 64}}},
    "arrays that are a list": {"arrays": []},
    "a shape of texts": {"arrays": {"params/b": {"shape": ["2"]}}},
    "a negative shape": {"arrays": {"params/b": {"shape": [-2]}}},
    "a shape of 400 GB": {"arrays": {"params/b": {"shape": [10**11]}}},
    "no shape": {"arrays": {"params/b": {"shape": None}}},
    "a dtype that is none": {"arrays": {"params/b": {"dtype": "float33"}}},
    "a dtype of objects": {"arrays": {"params/b": {"dtype": "object"}}},
    "another dtype": {"arrays": {"params/b": {"dtype": "float32"}}},
    "a kind of keys that is a list": {"arrays": {"params/b": {"key": ["x"]}}},
    "axes of another count": {"arrays": {"params/b": {"axes": ["embed", "embed"]}}},
    "axes of numbers": {"arrays": {"params/b": {"axes": [1]}}},
    "a digest that is a number": {"arrays": {"params/b": {"digest": 1}}},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_manifest_with_the_right_checksum_is_one_line(change, runs, tool, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "a")
    place = tmp_path / "a" / "checkpoints" / "7" / manifest.FILE
    values = json.loads(place.read_text())["manifest"]
    for name, found in change.items():
        if name == "arrays" and isinstance(found, dict):
            for array, fields in found.items():
                values["arrays"][array] |= fields
        else:
            values[name] = found
    place.write_text(manifest._text(values))
    lines = [
        ("export", tmp_path / "a", "--to", tmp_path / "x"),
        ("inspect", tmp_path / "a", "--verify"),
    ]
    for line in lines:
        code, _, err = tool(*line)
        assert code == (1 if "--verify" in line else 2)
        assert err.count("\n") == 1
        assert "is damaged" in err
    assert not (tmp_path / "x").exists()
