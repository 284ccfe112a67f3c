"""What is not finite is never saved; what is suspect is passed over, and what is good stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.checkpoint import CheckpointConfig, Checkpoints, NotFinite, manifest
from sharding.checkpoint.__main__ import main as tool
from sharding.errors import UserError
from tests.arrays import put

SPIKE = "the gradient norm of step 3 was 1e+06"


def state(value=1.0, dtype=jnp.float32):
    """Parameters, moments, a step and a key."""
    return {
        "params": {"w": put(np.ones((2, 3)), np.float32)},
        "mu": put([value] * 3, dtype),
        "step": jnp.int32(2**31 - 1),
        "key": jax.random.key(0),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Steps 1 to 5 by loss: 3, the best, and 5 are suspect."""
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(path, CheckpointConfig(keep=9)) as checkpoints:
        for step, loss, suspect in (
            (1, 0.5, ""),
            (2, 0.4, ""),
            (3, 0.1, SPIKE),
            (4, None, ""),
            (5, 0.2, SPIKE),
        ):
            checkpoints.save(step, state(), {}, loss, suspect=suspect)
    return path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_refused_by_name_and_leaves_nothing(tmp_path, value, dtype):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFinite, match="step 1 is not saved: 'mu' is not finite"):
            checkpoints.save(1, state(float(value), dtype), {})
        assert not list(tmp_path.iterdir())


def test_a_suspect_checkpoint_says_why(folder, capsys):
    found = {step: manifest.read(folder / str(step)).suspect for step in range(1, 6)}
    assert found == {1: "", 2: "", 3: SPIKE, 4: "", 5: SPIKE}
    assert '"suspect"' not in (folder / "4" / "manifest.json").read_text()
    assert tool(["inspect", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "suspect: " in line]
    assert [line.split()[0] for line in lines] == ["3", "5"]


def test_best_and_latest_good_pass_over_it_and_the_latest_does_not(folder):
    with Checkpoints(folder, read_only=True) as checkpoints:
        words = ("latest", "latest-good", "best", "5")
        assert [checkpoints.choose(word) for word in words] == [5, 4, 2, 5]
        assert checkpoints.latest_good() == (4, [])
        assert checkpoints.best_loss() == 0.4


def test_where_all_are_suspect_none_is_good(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state(), {}, 0.1, suspect=SPIKE)
        checkpoints.wait()
        assert checkpoints.latest_good() == (None, [])
        assert checkpoints.best_loss() == float("inf")
        assert checkpoints.choose("latest") == 7
        for word in ("best", "latest-good"):
            with pytest.raises(UserError, match=r"every checkpoint .* suspect: name one of \[7\]"):
                checkpoints.choose(word)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_good_one_stays_however_many_suspects_follow(keep):
    config, steps = CheckpointConfig(keep=keep, keep_best=0), range(1, 9)
    for good in steps:
        suspect = {step for step in steps if step > good}
        kept = config.kept(steps, {}, suspect)
        assert kept == set(steps[-keep:]) | {good}


def test_whole_ones_that_are_set_aside_stay_and_damaged_ones_make_room(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep=9)) as checkpoints:
        for turn in ("", "-2"):
            for step in (2, 3, 4):
                checkpoints.save(step, state(), {}, suspect=SPIKE if step == 4 else "")
            checkpoints.wait()
            assert checkpoints.set_aside(2, {4}) == [f"3.aside{turn}"]
            assert (checkpoints.steps(), checkpoints.latest()) == ([2], 2)
        checkpoints.save(4, state(), {})
        checkpoints.wait()
        assert checkpoints.suspect(4) == ""
        assert checkpoints.set_aside(None) == ["4.aside", "2.aside"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"2.aside", "3.aside", "3.aside-2", "4.aside"}
