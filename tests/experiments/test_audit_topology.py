"""The compilers of machines that are not here agree with the formulas, as far as they tell."""

from __future__ import annotations

import json
import math

import jax
import pytest

from experiments.abstract_step import abstract_batch
from gam_jax.optimizer import make_optimizer
from gam_jax.params import shardings
from gam_jax.training.state import abstract_state, state_shardings
from gam_jax.training.step import batch_specs
from sharding.layout import Layout
from sharding.mesh import mesh_from_text
from sharding.parallel import Parallel
from tests.experiments import commands
from tests.sharding.test_topology import there

pytestmark = there

CONFIG = """
from experiments.config_flags import config
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.training.experiment import Experiment, TrainConfig

model = LanguageModel(Block(GAM(slots=64, kernel=4)), width=64, depth=2, vocab=256)
experiment = Experiment(model, Text(window=64), train=TrainConfig(batch=16))

def get_config():
    return config(experiment)
"""

THREE = ("data=2,seq=2,tensor=2", "data+sequence+tensor_tokens", "float32")
SHARDS = ("data=8", "fully_sharded", "bfloat16")


@pytest.fixture
def audit(tmp_path):
    """The audit's JSON, of a process that has the flags of a person; the norm has no formula."""

    def run(machine, mesh, preset, dtype, *args):
        (tmp_path / "tiny.py").write_text(CONFIG)
        words = (
            f"--config={tmp_path / 'tiny.py'}",
            f"--topology={machine}",
            f"--mesh={mesh}",
            f"--config.parallel.preset={preset}",
            f"--config.model.dtype={dtype}",
        )
        ended = commands.finish(commands.start("audit", *words, "--json", *args))
        assert (ended.code, ended.err) == (0, "")
        result = json.loads(ended.out)
        assert result["agree"]
        found = result["topology"]
        assert found["arguments"] < found["held"] < found["memory"]
        assert found["fits"]
        kinds = {row["collective"] for row in result["rows"]}
        assert set(found["collectives"]) == kinds | {"all_reduce"}
        return found, sum(row["formula_sent"] for row in result["rows"])

    return run


MERGED = 4 * 128 * 3 / 2 + 4 * 128 - 4 * 128 * 7 / 4
"""The last norm's 128 numbers are summed over 4 devices, then over 2: XLA sums them over 8."""


@pytest.mark.parametrize(
    ("machine", "case", "norm", "merged"),
    [("h100:1x8", SHARDS, 14, 0), ("h100:2x4", (*THREE, "--across=tensor=2"), 72, MERGED)],
    ids=["state in shards, bfloat16", "three axes, two hosts"],
)
def test_a_gpu_s_program_is_given_and_sends_what_the_formulas_say(
    machine, case, norm, merged, audit
):
    found, sent = audit(machine, *case)
    assert found["arguments"] == found["arguments_by_formula"]
    assert found["sent"] == sent + norm - merged


@pytest.mark.parametrize("case", [SHARDS, THREE], ids=["state in shards", "three axes"])
def test_a_tpu_s_program_is_given_what_the_formulas_say_in_tiles(case, audit):
    found, _ = audit("v5e:2x4", *case)
    assert found["arguments_by_formula"] <= found["arguments"] <= in_tiles(*case)
    assert found["sent"] is None


def in_tiles(mesh, preset, dtype):
    """The most bytes that tiles of 8 x 128 words can make of what a step is given."""
    names: dict = {}
    exec(CONFIG, names)
    experiment = names["experiment"]
    layout, model = Layout(mesh_from_text(mesh), Parallel(preset)), experiment.model
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, model.table())
    state, placed = abstract_state(model, optimizer), state_shardings(model, optimizer, layout)
    batch = abstract_batch(experiment)
    lies = shardings(batch_specs(model, layout), layout)
    leaves = zip(*map(jax.tree.leaves, ((state, batch), (placed, lies))), strict=True)
    return sum(tile_bytes(sharding.shard_shape(x.shape)) for x, sharding in leaves)


def tile_bytes(shape):
    """Of words of four bytes, the last two dimensions in tiles; a vector is one row of them."""
    *outer, rows, lanes = (1, 1, *shape)
    rows = 8 if rows == 1 else -(-rows // 8) * 8
    return 4 * math.prod(outer) * rows * -(-lanes // 128) * 128
