"""Models of signals: their run on any mesh, and that it goes on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.data import NarrowSounds, NoisySounds, Sounds, SourceFacts, TwoPaths
from gam_jax.layers.branches import branches, exchanged_bytes
from gam_jax.models import APNet, Autoencoder, BandExtender, Enhancer, PhaseModel, SourceReader
from gam_jax.models.discriminators import Discriminators
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import abstract_params
from gam_jax.traffic import step_traffic
from gam_jax.training import Experiment, TrainConfig, fit
from gam_jax.training.state import abstract_state
from gam_jax.training.step import make_eval_step, make_gradients, make_train_step, put_batch
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.messages import Message, messages_of, totals
from tests.arrays import initial
from tests.meshes import assert_leaves_close, laid_out, layout_of

pytestmark = pytest.mark.usefixtures("compiled_once")
SOUNDS = Sounds(rate=1000, samples=64, scored=4)
NARROW = NarrowSounds(rate=1000, samples=64, scored=4)
EXTENDER = BandExtender(4, 2, 2, 3, rate=1000, size=16, window=8, hop=4)
JUDGES = Discriminators((2,), (8,), 2, 2)
CASES = {
    "apnet": (APNet(4, (3,), (1,), 3, 4, 1000, 16, 8, 4), SOUNDS),
    "autoencoder": (Autoencoder(width=4, code=2), SOUNDS),
    "extender": (EXTENDER, NARROW),
    "game": (dataclasses.replace(EXTENDER, discriminators=JUDGES), NARROW),
    "enhancer": (Enhancer(4, 2, 2, 16, 8), NoisySounds(rate=1000, samples=48, scored=2)),
    "phases": (PhaseModel(width=8, depth=1), TwoPaths(bins=5, scored=8)),
    "sources": (SourceReader(8, 2, 4, sources=2), SourceFacts(lengths=(1, 3), scored=8)),
}
ROWS = 8
FLOORS = {"enhancer": 1e-6, "game": 1e-7}
"""What gradients may differ by that are 0 but for rounding: biases before an instance norm, and
judges whose slopes cancel."""


@functools.cache
def found(name, shape, preset):
    """Measures, gradients and evaluation of one batch."""
    model, config = CASES[name]
    data, layout = config.open(), layout_of(shape, preset)
    model = model.fitted(data)
    batch = dict(next(data.train_stream(ROWS, seed=0)))
    batch["weights"] = np.linspace(0.2, 1.0, ROWS, dtype=np.float32)
    params = laid_out(model, initial(model), layout)
    placed = put_batch(model, layout, batch)
    measures, gradients = jax.jit(make_gradients(model, layout))(params, placed, jax.random.key(0))
    evaluation = make_eval_step(model, layout)(params, placed)
    return jax.tree.map(np.asarray, (measures, gradients, evaluation))


@pytest.mark.parametrize(
    "name",
    [
        "apnet",
        pytest.param("autoencoder", marks=pytest.mark.slow),
        pytest.param("extender", marks=pytest.mark.slow),
        pytest.param("game", marks=pytest.mark.slow),
        "phases",
    ],
)
@pytest.mark.parametrize(("shape", "preset"), [((4, 1, 1), "fully_sharded")])
def test_measures_gradients_and_scores_equal_those_of_one_device(name, shape, preset):
    for own, other in zip(found(name, shape, preset), found(name, (1, 1, 1), "data"), strict=True):
        # A phase near a turn has a steep gradient: what rounding differs in is seen in it.
        assert_leaves_close(own, other, 2e-4 if name == "apnet" else 2e-5, FLOORS.get(name, 0))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("apnet", marks=pytest.mark.slow),
        pytest.param("extender", marks=pytest.mark.slow),
        pytest.param("game", marks=pytest.mark.slow),
        "phases",
    ],
)
def test_a_run_goes_on_exactly(name, tmp_path):
    model, config = CASES[name]
    whole = Experiment(model, config, TrainConfig(steps=4, batch=4, validate_every=4))
    straight = fit(whole, config.open(), run=tmp_path / "straight").outcome.last
    half = dataclasses.replace(whole, train=dataclasses.replace(whole.train, stop_at=2))
    fit(half, config.open(), run=tmp_path / "halves")
    again = fit(whole, config.open(), run=tmp_path / "halves", resume=True).outcome.last
    assert again.values == straight.values


@pytest.mark.parametrize("preset", ["data", "fully_sharded"])
def test_two_branches_on_two_devices_are_one_device_s(preset):
    for own, other in zip(
        found("apnet", (2, 1, 1, 2), preset), found("apnet", (1, 1, 1), "data"), strict=True
    ):
        assert_leaves_close(own, other, 2e-4)


@pytest.mark.slow
def test_two_streams_on_two_devices_are_one_device_s():
    for own, other in zip(
        found("extender", (2, 1, 1, 2), "fully_sharded"),
        found("extender", (1, 1, 1), "data"),
        strict=True,
    ):
        assert_leaves_close(own, other, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 4, 1)])
def test_bins_and_frames_over_devices_in_turn_are_one_device_s(shape):
    for own, other in zip(
        found("enhancer", shape, "fully_sharded+sequence"),
        found("enhancer", (1, 1, 1), "data"),
        strict=True,
    ):
        assert_leaves_close(own, other, 2e-4, FLOORS["enhancer"])


@pytest.mark.parametrize(
    ("name", "shape", "preset"),
    [
        pytest.param("extender", (1, 1, 1, 2), "data", marks=pytest.mark.slow),
        ("extender", (2, 1, 1, 2), "fully_sharded"),
        pytest.param("enhancer", (1, 2, 1), "data+sequence", marks=pytest.mark.slow),
        ("enhancer", (2, 4, 1), "fully_sharded+sequence"),
    ],
)
def test_messages_of_a_step_are_those_of_the_formula(name, shape, preset):
    """Swaps of streams, and all-to-alls of frames and bins, forward and backward."""
    model, config = CASES[name]
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    step = make_train_step(model, optimizer, layout)
    counted = totals(messages_of(step, abstract_state(model, optimizer), config.batch(ROWS)))
    assert counted == totals(step_traffic(model, layout, ROWS, config.samples))


def test_a_source_on_each_device_is_one_device_s():
    for own, other in zip(
        found("sources", (2, 1, 1, 2), "fully_sharded"),
        found("sources", (1, 1, 1), "data"),
        strict=True,
    ):
        assert_leaves_close(own, other, 2e-5)


def test_branches_meet_in_one_gather_of_the_bytes_that_were_said():
    model, config = CASES["apnet"]
    layout = layout_of((2, 1, 1, 2), "data")
    evaluate = make_eval_step(model, layout)
    messages = messages_of(evaluate, abstract_params(model.table()), config.batch(ROWS))
    numbers = ROWS // 2 * (SOUNDS.samples // model.hop + 1) * model.bins
    wanted = Message("all_gather", ("stream",), 2, exchanged_bytes((numbers, numbers)))
    assert [message for message in messages if "stream" in message.axes] == [wanted]


def test_unlike_branches_meet_whole_and_unlike_dtypes_are_refused():
    mesh, x = layout_of((1, 1, 1, 2)).mesh, np.arange(6.0, dtype=np.float32).reshape(2, 3)

    def both(b):
        def run(x):
            return branches(lambda x: x[:1] * 2, b, x, Axes(splits=(("stream", "stream"),)))

        return jax.shard_map(run, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())

    first, second = jax.jit(both(lambda x: x.T + 1))(x)
    np.testing.assert_array_equal(first, x[:1] * 2)
    np.testing.assert_array_equal(second, x.T + 1)
    with pytest.raises(UserError, match="float32 and int32"):
        jax.eval_shape(both(lambda x: x.astype("int32")), x)


def test_a_mesh_axis_without_work_and_sizes_that_differ_are_refused():
    for shape, says in (
        ((1, 2, 1), "no array of APNet"),
        ((1, 1, 1, 4), "2 branches"),
        ((1, 2, 1, 2), "would wait for ever"),
    ):
        with pytest.raises(UserError, match=says):
            CASES["apnet"][0].check_mesh(layout_of(shape))
    with pytest.raises(UserError, match=r"parallel.overlap=ring: .* would wait for ever"):
        CASES["apnet"][0].check_mesh(layout_of((1, 1, 2, 2), "data+tensor_tokens+ring"))
    with pytest.raises(UserError, match="no parallel streams"):
        CASES["phases"][0].check_mesh(layout_of((1, 1, 1, 2)))
    with pytest.raises(UserError, match=r"model\.bins=9"):
        PhaseModel(bins=9).fitted(CASES["phases"][1].open())
    with pytest.raises(UserError, match="no inputs"):
        PhaseModel().fitted(SOUNDS.open())
    with pytest.raises(UserError, match="from 1 to 64"):
        Autoencoder(ratios=(4, 65))
