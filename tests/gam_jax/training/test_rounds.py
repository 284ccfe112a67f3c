"""Rounds of workers: one device's run on any mesh, what is sent, what waits, and resuming."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.extend.core import Var

from gam_jax.layers import GAM, MLP, Block, Mixed
from gam_jax.local import Local, with_workers
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import count_params
from gam_jax.traffic import state_bytes
from gam_jax.traffic.rounds import round_traffic
from gam_jax.training import fit
from gam_jax.training.checks import check_batch
from gam_jax.training.experiment import CHANGEABLE, FREE_TO_CHANGE, TrainConfig, may_change
from gam_jax.training.folder import logical_axes
from gam_jax.training.metrics import read_metrics
from gam_jax.training.profile import Span
from gam_jax.training.progress import Progress
from gam_jax.training.rounds import make_step, put_round
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import put_batch
from sharding.errors import UserError
from sharding.layout import Layout, bytes_held
from sharding.mesh import make_mesh
from sharding.messages import inner_jaxprs, messages_of, totals
from sharding.parallel import Parallel
from tests.gam_jax.training import line
from tests.meshes import ONE, assert_leaves_close, layout_of

pytestmark = pytest.mark.usefixtures("compiled_once")
MODEL = LanguageModel(Block(GAM(slots=16)), width=16, depth=1, vocab=32, context=16, dropout=0.1)
CONFIG = OptimizerConfig(warmup=1, eps=1e-4)
OPTIMIZER = make_optimizer(CONFIG, 10, MODEL.table())
STEPS, ROWS, PARTS = 4, 32, 2
LATE = Local(4, 2, 1, momentum=0.3, penalty=1.2)
SLOW = Local(4, 2, 0, rate=0.9, momentum=0.3)


def parts():
    """Of all steps, each batch in two."""
    draw = np.random.default_rng(0)
    for _ in range(STEPS * PARTS):
        tokens = draw.integers(0, 32, (ROWS // PARTS, 17)).astype(np.int32)
        weights = draw.uniform(0.5, 1, (ROWS // PARTS, 16)).astype(np.float32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def workers_mesh(worker=1, data=1, seq=1, tensor=1, preset=ONE[1], shards=""):
    plain = layout_of((1, 1, 1), preset, shards=shards)
    return dataclasses.replace(
        plain, mesh=make_mesh(data=data, seq=seq, tensor=tensor, worker=worker)
    )


@functools.cache
def run(local, layout):
    """Losses and norms of every step, and the last state."""
    optimizer = with_workers(OPTIMIZER, local)
    state = init_state(MODEL, optimizer, layout, 0)
    step, every, told = make_step(MODEL, optimizer, layout, PARTS), list(parts()), []
    for first in range(0, len(every), local.every * PARTS):
        some = every[first : first + local.every * PARTS]
        if local.on:
            batch = put_round(MODEL, layout, some, local, PARTS)
        else:
            whole = {name: np.stack([part[name] for part in some]) for name in some[0]}
            batch = put_batch(MODEL, layout, whole, PARTS)
        state, metrics = step(state, batch)
        told += [*zip(*(np.atleast_1d(metrics[x]) for x in ("loss", "grad_norm")), strict=True)]
    return np.array(told), jax.tree.map(np.asarray, state.params), state


@pytest.mark.parametrize("every", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_one_worker_that_meets_itself_is_the_plain_run(every):
    told, params, state = run(Local(), layout_of((1, 1, 1)))
    again, same, after = run(Local(every=every), layout_of((1, 1, 1)))
    np.testing.assert_allclose(again, told, rtol=1e-6)
    assert_leaves_close(same, params, 2e-6)
    assert int(after.step) == int(state.step) == STEPS


MESHES = {
    "workers": workers_mesh(worker=4),
    "zero1": workers_mesh(worker=2, data=2, preset="zero1+tensor"),
    "fully_sharded": workers_mesh(2, 2, 1, 2, "fully_sharded+tensor_tokens"),
    "sequence": workers_mesh(2, seq=2),
    "data alone": workers_mesh(data=2),
    "levels": workers_mesh(2, (2, 2), shards="weights:2,gradients:2,state:4"),
    "second copy": workers_mesh(2, (2, 2), preset="hpz"),
}
CASES = [
    pytest.param(local, name, id=f"{name}, delay {local.delay}", marks=() if chosen else slow)
    for slow in (pytest.mark.slow,)
    for name in MESHES
    for local in (LATE, SLOW)
    for chosen in ((name, local.delay) in {("zero1", 1)},)
]


@pytest.mark.parametrize(("local", "mesh"), CASES)
def test_any_mesh_gives_the_run_of_one_device_and_sends_what_formulas_say(local, mesh):
    layout = MESHES[mesh]
    told, params, _ = run(local, layout_of((1, 1, 1)))
    again, same, state = run(local, layout)
    np.testing.assert_allclose(again, told, rtol=1e-5)
    assert_leaves_close(same, params)
    optimizer = with_workers(OPTIMIZER, local)
    abstract = abstract_state(MODEL, optimizer)
    batch = put_round(MODEL, layout, list(parts())[: local.every * PARTS], local, PARTS)
    counted = totals(messages_of(make_step(MODEL, optimizer, layout, PARTS), abstract, batch))
    assert counted == totals(round_traffic(MODEL, layout, local, ROWS, 16, PARTS))
    held = bytes_held(abstract.opt_state, state_shardings(MODEL, optimizer, layout).opt_state)
    assert held == state_bytes(MODEL, CONFIG, layout, local).optimizer
    for leaf in jax.tree.leaves(state.params):
        assert_alike_on_all_that_hold_a_part(leaf)


@pytest.mark.slow
def test_workers_gather_and_scatter_in_few_bits_too():
    exact = MESHES["fully_sharded"]
    parallel = dataclasses.replace(exact.parallel, bits="weights:8,gradients:4")
    layout = dataclasses.replace(exact, parallel=parallel)
    told, again = run(SLOW, exact)[0], run(SLOW, layout)[0]
    np.testing.assert_allclose(again, told, rtol=1e-2)
    assert not np.array_equal(again, told)
    batch = put_round(MODEL, layout, list(parts())[: SLOW.every * PARTS], SLOW, PARTS)
    optimizer = with_workers(OPTIMIZER, SLOW)
    abstract = abstract_state(MODEL, optimizer)
    counted = totals(messages_of(make_step(MODEL, optimizer, layout, PARTS), abstract, batch))
    assert counted == totals(round_traffic(MODEL, layout, SLOW, ROWS, 16, PARTS))


def assert_alike_on_all_that_hold_a_part(leaf):
    """Workers begin a round alike: what several devices hold of an array is the same to the bit."""
    seen = {}
    for shard in leaf.addressable_shards:
        first = seen.setdefault(str(shard.index), np.asarray(shard.data))
        assert np.array_equal(first, np.asarray(shard.data))


@pytest.mark.parametrize("local", [LATE, SLOW], ids=["delay 1", "delay 0"])
def test_a_round_sends_each_number_once_over_workers(local):
    layout = workers_mesh(worker=4)
    found = round_traffic(MODEL, layout, local, ROWS, 16)
    sent = sum(m.size * m.count for m in found if m.axes == ("worker",))
    assert sent == 4 * count_params(MODEL.table())


def loop_and_means(local):
    """The equation of the steps in a round's jaxpr, those of sums over workers, and all of them."""
    layout = workers_mesh(worker=4)
    optimizer = with_workers(OPTIMIZER, local)
    batch = put_round(MODEL, layout, list(parts())[: local.every * PARTS], local, PARTS)
    step = make_step(MODEL, optimizer, layout, PARTS)
    closed = jax.make_jaxpr(step)(abstract_state(MODEL, optimizer), batch)
    (program,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name in ("jit", "pjit"))
    eqns = program.params["jaxpr"].jaxpr.eqns
    (loop,) = (eqn for eqn in eqns if eqn.primitive.name == "scan")
    means = [eqn for eqn in eqns if eqn.primitive.name == "shard_map" and sums_workers(eqn)]
    assert means
    return loop, means, eqns


def sums_workers(eqn):
    for jaxpr in inner_jaxprs(eqn):
        for inner in jaxpr.eqns:
            axes = inner.params.get("axes", ())
            own = inner.primitive.name.startswith("psum") and "worker" in axes
            if own or sums_workers(inner):
                return True
    return False


def waits_for(eqns, first, last):
    """Whether equation `last` needs anything that equation `first` gives."""
    needed = {x for x in first.outvars if isinstance(x, Var)}
    for eqn in eqns:
        if any(isinstance(x, Var) and x in needed for x in eqn.invars):
            if eqn is last:
                return True
            needed |= set(eqn.outvars)
    return False


def test_of_delay_1_no_step_waits_for_the_sum_nor_the_sum_for_a_step():
    loop, means, eqns = loop_and_means(LATE)
    for mean in means:
        assert not waits_for(eqns, mean, loop)
        assert not waits_for(eqns, loop, mean)
    loop, means, eqns = loop_and_means(SLOW)
    assert any(waits_for(eqns, loop, mean) for mean in means)


def fitted(folder, local, layout, stop=0, resume=False):
    experiment = line.experiment(12, local=local, stop_at=stop, validate_every=5)
    quiet = Progress(visible=False)
    fit(experiment, line.data(), run=folder, layout=layout, resume=resume, progress=quiet)
    return list(read_metrics(folder / "metrics.jsonl"))


IN_LEVELS = workers_mesh(2, (2, 2), shards="weights:2,state:4")


@pytest.mark.parametrize(
    ("delay", "layout"),
    [
        pytest.param(0, workers_mesh(worker=2, data=2), marks=pytest.mark.slow),
        (1, workers_mesh(worker=2, data=2)),
        pytest.param(1, IN_LEVELS, marks=pytest.mark.slow),
    ],
    ids=["delay 0", "delay 1", "levels"],
)
def test_a_run_goes_on_on_another_mesh_from_what_was_under_way(delay, layout, tmp_path):
    local = Local(2, 3, delay, momentum=0.2)
    whole = fitted(tmp_path / "whole", local, layout_of((1, 1, 1)))
    fitted(tmp_path / "parted", local, layout, stop=6)
    parted = fitted(tmp_path / "parted", local, layout_of((2, 1, 1)), resume=True)
    for split in ("train", "validation"):
        found, wanted = (
            [(row["step"], row["loss"]) for row in rows if row["split"] == split]
            for rows in (parted, whole)
        )
        assert [step for step, _ in wanted] == {"train": [3, 6, 9, 12], "validation": [6, 12]}[
            split
        ]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def check(change, layout, **more):
    train = TrainConfig(**{"steps": 12, "batch": 8, **more}, local=Local(**change))
    check_batch(dataclasses.replace(line.experiment(12), train=train), layout)


def refused(change, layout=None, **more):
    with pytest.raises(UserError) as caught:
        check(change, layout_of((1, 1, 1)) if layout is None else layout, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused_in_one_line():
    assert "train.steps=12 is no whole number of rounds" in refused({"every": 5})
    assert "train.stop_at=5 is no whole number" in refused({"every": 4}, stop_at=5)
    assert "dealt out to train.local.workers=3" in refused({"workers": 3})
    assert "choose a multiple of 16" in refused({"workers": 8}, accumulate=2)
    four = workers_mesh(worker=4)
    assert "worker=4 does not divide train.local.workers=2" in refused({"workers": 2}, four)
    assert "worker=4 does not divide train.local.workers=1" in refused({}, four)
    staged = Layout(make_mesh(pipe=2))
    assert "pipe=2: workers (train.local) have no stages" in refused({"workers": 2}, staged)
    experiment = line.experiment(12, local=Local(2))
    stored = dataclasses.replace(line.Line(), param_dtype="bfloat16")
    with pytest.raises(UserError, match="param_dtype=bfloat16: workers"):
        check_batch(dataclasses.replace(experiment, model=stored), layout_of((1, 1, 1)))
    with pytest.raises(UserError, match="there are no workers here"):
        line.Line().check_mesh(four)
    with pytest.raises(UserError, match="trace whole ones, as 1:3"):
        Span(2, 3).check(0, 12, 3)


def test_a_checkpoint_names_the_axis_of_workers():
    found = logical_axes(line.experiment(12, local=Local(2, 3, 1, momentum=0.2)))
    axes = {name.split("opt_state/")[-1].split("/")[0]: axes for name, axes in found.items()}
    assert axes["momentum"] == (None, None)
    assert axes["sent"] == axes["inner"] == ("worker", None, None)


def test_workers_decide_what_a_run_is():
    names = [f"train.local.{field.name}" for field in dataclasses.fields(Local)]
    assert not {*names} & {*FREE_TO_CHANGE, *CHANGEABLE}
    assert not any(map(may_change, names))


def test_devices_of_workers_validate_rows_together():
    layout = workers_mesh(worker=2, data=2, tensor=2)
    together = layout.without_workers
    assert {"worker": 1, "data": 4, "tensor": 2}.items() <= dict(together.mesh.shape).items()
    assert list(together.mesh.devices.flat) == list(layout.mesh.devices.flat)
    apart = IN_LEVELS.without_workers
    assert [*apart.mesh.shape.items()][2:5] == [("data_0", 2), ("data_1", 2), ("data_2", 2)]
    assert list(apart.mesh.devices.flat) == list(IN_LEVELS.mesh.devices.flat)
    assert (apart.degrees.weights, apart.worker_axis, apart.row_parts) == (2, None, 8)
    staged = Layout(make_mesh(pipe=2, data=2, worker=2)).without_workers.mesh
    assert staged.devices.shape[:3] == (1, 2, 4)
    ids = np.vectorize(lambda device: device.id)(staged.devices).reshape(2, 4)
    assert ids.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]  # a stage's devices stay its own


def test_workers_that_draw_layers_over_split_tokens_are_refused_before_and_while_tracing():
    """Each would send along `seq` what the others, which drew another option, never take."""
    local, seq = Local(2), workers_mesh(worker=2, seq=2)
    model = dataclasses.replace(MODEL, block=Block(Mixed((GAM(slots=16), MLP(hidden=8)), "one")))
    run = dataclasses.replace(line.experiment(12, local=local), model=model)
    says = "mesh axis worker, which would wait for one another's messages along seq"
    with pytest.raises(UserError, match=says):
        check_batch(run, seq)
    for fine in (workers_mesh(seq=2), workers_mesh(worker=2, tensor=2)):
        check_batch(run, fine)
    ring = Parallel(preset="data+tensor_tokens", overlap="ring")
    with pytest.raises(UserError, match=r"along tensor \(parallel.overlap=ring\)"):
        check_batch(run, dataclasses.replace(workers_mesh(worker=2, tensor=2), parallel=ring))
    summed = dataclasses.replace(model, block=Block(Mixed((GAM(slots=16), MLP(hidden=8)))))
    check_batch(dataclasses.replace(run, model=summed), seq)
    optimizer = with_workers(make_optimizer(CONFIG, 10, model.table()), local)
    state, batch = abstract_state(model, optimizer), put_round(model, seq, [next(parts())], local)
    with pytest.raises(UserError, match=says):
        make_step(model, optimizer, seq).trace(state, batch)
