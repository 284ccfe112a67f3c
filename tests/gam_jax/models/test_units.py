"""Lexical units: marks partition a text, and placeholders are rows that begin from one state."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data import Text
from gam_jax.layers import GAM, MLP, Attention, Block, LinearMemory
from gam_jax.layers.base import WHOLE
from gam_jax.models import LanguageModel
from gam_jax.models.units import as_units, mark_units
from gam_jax.training.step import make_gradients, put_batch
from sharding.errors import UserError
from tests.arrays import put
from tests.examples import WIDTH, random_like
from tests.meshes import laid_out, layout_of

VOCAB, TOKENS = 11, 13
MIXERS = {
    "gam": GAM(slots=8),
    "attention": Attention(heads=2, context=32),
    "linear memory": LinearMemory(heads=2),
}
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.asarray)


@given(SHARES, st.floats(0, 1.5), st.integers(1, 6))
def test_units_partition_the_text(probs, sure, unit):
    lengths = mark_units(probs, sure, unit)
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    assert ends[-1] == len(probs)
    assert 1 <= lengths.min() <= lengths.max() <= unit
    for first, end in zip(firsts, ends, strict=True):
        assert (probs[first + 1 : end] >= sure).all()
    for first, length in zip(firsts[1:], lengths[:-1], strict=True):
        assert probs[first] < sure or length == unit


@given(SHARES, st.floats(0, 1.5), st.floats(0, 1.5))
def test_a_higher_bar_lengthens_no_unit(probs, sure, more):
    low, high = (np.cumsum(mark_units(probs, s, 99)) for s in sorted((sure, more)))
    assert set(low) <= set(high)


@given(SHARES, st.integers(1, 6))
def test_a_bar_above_one_leaves_single_tokens_and_none_leaves_whole_units(probs, unit):
    assert (mark_units(probs, 1.1, unit) == 1).all()
    lengths = mark_units(probs, 0, unit)
    assert (lengths[:-1] == unit).all()


def model_of(mixer, **fields):
    base = LanguageModel(Block(MIXERS[mixer], MLP(expansion=1)), WIDTH, depth=2, vocab=VOCAB)
    return as_units(base, **{"unit": 3, "sure": 0.08, "every": 2, **fields})


def batch_of(seed=0, rows=2):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (rows, TOKENS + 1)).astype(np.int32)
    weights = (random.random((rows, TOKENS)) < 0.9).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def separate(model, params, batch, losses):
    """The sum over examples by themselves: a text, then placeholders, in one ordinary reading."""
    blocks, wanted = [], []
    sure = (losses <= -math.log(model.sure)) & (batch["weights"] > 0)
    for row, read in enumerate(batch["inputs"]):
        for end in range(model.every, TOKENS, model.every):
            unknown = [model.placeholder] * (model.unit - 1)
            blocks.append(np.concatenate([read[:end], unknown, np.zeros(TOKENS, int)])[:TOKENS])
            for place in range(end, min(end + model.unit - 1, TOKENS - TOKENS % model.every)):
                if not sure[row, place]:
                    break
                wanted.append((len(blocks) - 1, place, batch["targets"][row, place]))
    logits = model(params, put(np.stack(blocks), jnp.int32))[0]
    number, place, token = np.asarray(wanted).T
    each = jax.nn.logsumexp(logits[number, place], axis=-1) - logits[number, place, token]
    return jnp.sum(each), len(wanted)


@functools.cache
def valued(model, derived=False):
    """As a function of its parameters, and the other way to the same; with the gradient too."""
    batch = batch_of()
    losses = np.asarray(jax.jit(model.losses)(random_like(model.table()), batch))

    def split(found):
        return found[0], found[1:]

    ways = (
        lambda params: split(model.placeholder_losses(params, batch)),
        lambda params: split(separate(model, params, batch, losses)),
    )
    return [jax.jit(jax.value_and_grad(way, has_aux=True) if derived else way) for way in ways]


@pytest.mark.parametrize("mixer", MIXERS)
def test_loss_and_gradient_are_those_of_examples_by_themselves(mixer):
    model = model_of(mixer)
    params = random_like(model.table())
    found = [way(params) for way in valued(model, derived=mixer == "gam")]
    if mixer == "gam":
        found, gradients = zip(*found, strict=True)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)
    (total, (count, begun)), (wanted, (number,)) = found
    assert 0 < number == count < begun * (model.unit - 1)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_its_objective_is_that_of_the_language_model_and_of_the_placeholders():
    model, batch = model_of("gam"), batch_of()
    params = random_like(model.table())
    total, _, told = jax.jit(model.objective)(params, batch)
    plain = jax.jit(functools.partial(LanguageModel.objective, model))(params, batch)[0]
    (found, (count, begun)), _ = valued(model, derived=True)[0](params)
    np.testing.assert_allclose(total, plain + found, rtol=1e-6)
    assert told["placeholder_loss"][1] == count
    np.testing.assert_allclose(told["units"][0] / told["units"][1], 1 + count / begun)
    one = dataclasses.replace(model, unit=1)
    assert jax.jit(one.objective)(params, batch)[0] == plain


@pytest.mark.parametrize("accept", [0.0, 0.12])
def test_its_scores_are_what_guesses_at_placeholders_would_have_given(accept):
    """Beside the guesses one by one, each after its text and the placeholders before it."""
    model, batch = model_of("gam", unit=4, accept=accept), batch_of()
    params = random_like(model.table())
    told = jax.jit(model.scored)(params, batch)
    read = jax.jit(lambda tokens: model(params, tokens)[0])
    size, unknown = TOKENS - TOKENS % model.every, [model.placeholder] * (model.unit - 1)
    stood = judged = begun = 0
    for row, tokens in enumerate(batch["inputs"]):
        ends = [
            end for end in range(model.every, size, model.every) if batch["weights"][row, end - 1]
        ]
        blocks = [np.concatenate([tokens[:end], unknown, [0] * TOKENS])[:TOKENS] for end in ends]
        law = np.asarray(jax.nn.softmax(read(put(np.stack([tokens, *blocks])))))
        begun += len(ends)
        for end, own in zip(ends, law[1:], strict=True):
            for place in range(end, min(end + model.unit - 1, size)):
                if own[place].max() < accept or not batch["weights"][row, place]:
                    break
                judged += 1
                if own[place].argmax() != law[0, place].argmax():
                    break
                stood += 1
    assert 0 < stood < judged
    assert told["agreed"] == (stood, judged)
    assert told["tokens_a_pass"] == (begun + stood, begun)


def test_what_a_placeholder_stands_for_is_not_seen():
    model, batch = model_of("attention", sure=0.0), batch_of()
    params = random_like(model.table())
    ahead = jax.jit(lambda tokens: model._looking_ahead(params, tokens, WHOLE)[1])
    guessed = ahead(batch["inputs"])
    changed = np.array(batch["inputs"])
    changed[:, 4:] = (changed[:, 4:] + 1) % VOCAB
    others = ahead(changed)
    first = 2 * (model.unit - 1)  # placeholders of the two states before token 4
    np.testing.assert_array_equal(guessed[:, :first], others[:, :first])
    assert not np.allclose(guessed[:, first:], others[:, first:])


def test_without_placeholders_it_is_the_language_model_to_the_bit():
    model, batch = model_of("gam"), batch_of()
    params = random_like(model.table())
    base = LanguageModel(model.block, WIDTH, depth=2, vocab=VOCAB)
    inputs = put(batch["inputs"])
    ours, theirs = (jax.jit(one)(params, inputs)[0] for one in (model, base))
    np.testing.assert_array_equal(ours, theirs)


def test_packed_rows_and_split_tokens_are_refused():
    model = model_of("gam")
    with pytest.raises(UserError, match="placeholders would look over"):
        dataclasses.replace(model, vocab=None).fitted(_Sized(Text(documents="packed")))
    with pytest.raises(UserError, match="its tokens are not split"):
        model.check_mesh(layout_of((1, 2, 1), "sequence"))
    with pytest.raises(UserError, match=r"model\.every=99 is more than the 13 tokens"):
        dataclasses.replace(model, every=99).objective(random_like(model.table()), batch_of())


class _Sized:
    def __init__(self, config):
        self.config, self.sizes = config, {**config.sizes(), "window": TOKENS}


@pytest.mark.parametrize(
    "preset", [pytest.param("data+tensor", marks=pytest.mark.slow), "fully_sharded+tensor"]
)
def test_loss_and_gradient_are_the_same_on_a_mesh(preset):
    model = model_of("gam")
    params, batch = random_like(model.table()), batch_of(rows=4)
    found = []
    for shape in ((1, 1, 1), (2, 1, 2)):
        layout = layout_of(shape, preset)
        gradients, placed = jax.jit(make_gradients(model, layout)), laid_out(model, params, layout)
        found.append(gradients(placed, put_batch(model, layout, batch), jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
