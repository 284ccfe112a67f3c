"""A semi-autoregressive drafter: what its slots see, its loss, and what it is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, MLP, Block
from gam_jax.models import LanguageModel, SemiDrafter
from gam_jax.models.semi import TRAINED, guess
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import init_state
from gam_jax.training.step import make_gradients, make_train_step, put_batch
from sharding.errors import UserError
from tests.arrays import compiled, put
from tests.examples import WIDTH, random_like
from tests.meshes import laid_out, layout_of

VOCAB, TOKENS, AHEAD, WINDOW = 11, 12, 2, 6
TARGET = LanguageModel(Block(GAM(slots=8), MLP(expansion=1)), WIDTH, depth=1, vocab=VOCAB)
MODEL = SemiDrafter(TARGET, ahead=AHEAD, window=WINDOW, heads=2, steps=4)
PARAMS = random_like(MODEL.table())


def batch_of(rows=2):
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB, (rows, TOKENS + 1)).astype(np.int32)
    weights = (random.random((rows, TOKENS)) < 0.9).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def slots(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(2, 2, TOKENS, WIDTH)).astype(np.float32)


def reaches(model):
    """[T, T]: whether what slot i tells depends on slot j."""
    embedded, before = slots()

    def told(embedded):
        return jnp.sum(model.tell(PARAMS["drafter"], embedded, before)[0], axis=-1)

    return np.any(np.asarray(jax.jit(jax.jacobian(told))(embedded))[:, 0] != 0, axis=-1)


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_slot_sees_its_own_block_and_those_before(ahead):
    """With blocks of one it is an autoregressive drafter."""
    place = np.arange(TOKENS) // ahead
    apart = place[:, None] - place[None]
    wanted = (apart >= 0) & (apart < WINDOW // ahead)
    np.testing.assert_array_equal(reaches(dataclasses.replace(MODEL, ahead=ahead)), wanted)


def test_the_last_block_tells_from_its_window_what_it_tells_from_the_text():
    embedded, before = slots()
    own = PARAMS["drafter"]
    whole = np.asarray(compiled(MODEL.tell, own, embedded, before))[:, -AHEAD:]
    last = (x[:, -WINDOW:] for x in (embedded, before))
    found = compiled(MODEL.tell_next, own, *last, np.ones((2, WINDOW), bool))
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_slots_that_are_not_there_change_nothing():
    embedded, before = (x[:, -WINDOW:] for x in slots())
    there = np.array([[False] * 2 + [True] * 4] * 2)
    found = []
    for value in (0.0, 7.0):
        embedded[:, :2] = value
        found.append(compiled(MODEL.tell_next, PARAMS["drafter"], embedded.copy(), before, there))
    np.testing.assert_array_equal(*found)


def test_its_loss_is_that_of_the_equations():
    batch = batch_of()
    target, own = PARAMS["target"], PARAMS["drafter"]
    total, _, told = jax.jit(MODEL.objective)(PARAMS, batch)
    f = np.asarray(compiled(TARGET.hidden, target, batch["inputs"])[0], np.float64)
    embedded = np.asarray(target["embedding"])[batch["inputs"]]
    before = np.pad(f[:, :-1], ((0, 0), (1, 0), (0, 0))).astype(np.float32)
    found = np.asarray(compiled(MODEL.tell, own, embedded, before), np.float64)
    head = np.asarray(target["embedding"], np.float64)
    wanted = agreed = 0.0
    for row in range(2):
        for slot in range(TOKENS - AHEAD + 1):
            at = slot + AHEAD - 1
            p, q = (np.exp(x - x.max()) for x in (f[row, at] @ head.T, found[row, slot] @ head.T))
            p, q = p / p.sum(), q / q.sum()
            gap = np.abs(found[row, slot] - f[row, at])
            one = np.mean(np.where(gap < 1, gap**2 / 2, gap - 0.5))
            one += 0.09 * np.sum(p * np.log(p / q)) - 0.01 * np.log(q[batch["targets"][row, at]])
            wanted += one * batch["weights"][row, at]
            agreed += (p.argmax() == q.argmax()) * batch["weights"][row, at]
    np.testing.assert_allclose(total, wanted, rtol=1e-4)
    assert told["agreed"][0] == agreed
    assert "glanced" not in told


def test_as_many_slots_are_shown_as_are_asked_for_in_runs_of_half_a_block():
    model = dataclasses.replace(MODEL, ahead=4, window=8)
    counts = put([0.0, 6.0, 40.0])
    shown = np.asarray(jax.jit(model._shown, static_argnums=1)(counts, 40, jax.random.key(0)))
    assert shown.sum(axis=1).tolist() == [0, 6, 20]  # at most one run in each of ten blocks
    for block in shown.reshape(-1, 4):
        places = np.flatnonzero(block)
        assert len(places) in (0, 2)
        assert len(places) == 0 or places[1] == places[0] + 1


def test_less_is_shown_as_the_training_goes_on_and_the_model_stays_as_it_is():
    optimizer = make_optimizer(OptimizerConfig(only=TRAINED, warmup=1), 4, MODEL.table())
    layout = layout_of((1, 1, 1), "data")
    model = dataclasses.replace(MODEL, glance=1.0)
    state = init_state(model, optimizer, layout, seed=0)
    first = jax.tree.map(np.asarray, state.params)
    step = make_train_step(model, optimizer, layout)
    glanced = []
    for number in range(4):
        assert np.asarray(state.params["drafter"]["progress"]) == number / 4
        state, told = step(state, put_batch(model, layout, batch_of()))
        glanced.append(float(told["glanced"]))
    assert glanced[0] > glanced[3] > 0
    jax.tree.map(np.testing.assert_array_equal, state.params["target"], first["target"])
    changed = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), state.params, first)
    assert all(jax.tree.leaves(changed["drafter"]))


@pytest.mark.parametrize(
    "preset", [pytest.param("data+tensor", marks=pytest.mark.slow), "fully_sharded+tensor_tokens"]
)
def test_loss_and_gradient_are_the_same_on_a_mesh(preset):
    model = dataclasses.replace(MODEL, glance=0.0, noise=0.0)
    found = []
    for shape in ((1, 1, 1), (2, 1, 2)):
        layout = layout_of(shape, preset)
        model.check_mesh(layout)
        gradients, placed = jax.jit(make_gradients(model, layout)), laid_out(model, PARAMS, layout)
        batch = put_batch(model, layout, batch_of(4))
        measures, own = jax.tree.map(np.asarray, gradients(placed, batch, jax.random.key(0)))
        assert not any(map(np.any, jax.tree.leaves(own["target"])))
        del own["drafter"]["progress"]  # a sign alone
        found.append((measures, own))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


def test_guesses_of_several_passes_read_what_those_before_have_told():
    embedded_of = np.asarray(PARAMS["target"]["embedding"])
    random = np.random.default_rng(3)
    tokens = random.integers(0, VOCAB, (2, WINDOW)).astype(np.int32)
    before = random.normal(size=(2, WINDOW, WIDTH)).astype(np.float32)
    there = np.ones((2, WINDOW), bool)

    def likeliest(kept, logits, place):
        return kept, jnp.argmax(logits, axis=-1)

    given = PARAMS["drafter"], PARAMS["target"], tokens, before, there
    found = np.asarray(jax.jit(lambda *given: guess(MODEL, *given, 2, likeliest, ()))(*given))
    for number in range(2):
        told = compiled(MODEL.tell_next, PARAMS["drafter"], embedded_of[tokens], before, there)
        wanted = np.argmax(compiled(TARGET.logits, PARAMS["target"], told), axis=-1)
        np.testing.assert_array_equal(found[:, number], wanted)
        tokens = np.concatenate([tokens[:, AHEAD:], wanted], axis=1)
        before = np.concatenate([before[:, AHEAD:], told], axis=1)


def test_what_does_not_fit_is_refused():
    for fields, message in (
        ({"window": 7}, "window=7 is no multiple of ahead=2"),
        ({"heads": 3}, "heads=3 do not divide a width of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(MODEL, **fields)
    with pytest.raises(UserError, match="sees a text whole"):
        MODEL.check_mesh(layout_of((1, 2, 1), "sequence"))
    with pytest.raises(UserError, match="is more than the 12 tokens"):
        dataclasses.replace(MODEL, ahead=20, window=20).objective(PARAMS, batch_of())
