"""Decoding is the whole-sequence pass, a token at a time."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from gam_jax import decode, sampling
from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Block,
    InTurn,
    MoE,
    Pattern,
    Residual,
    Shallow,
)
from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.arrays import compiled, put, single
from tests.examples import random_like

MODEL = LanguageModel(Block(GAM(slots=8)), width=16, depth=2, vocab=32)
PARAMS = random_like(MODEL.table())
ATTENTION = dataclasses.replace(MODEL, block=Block(Attention(context=512)))
SHARED = dataclasses.replace(MODEL, block=Shallow(Block(GAM(slots=8)), 2))
EXPERTS = dataclasses.replace(MODEL, block=Block(GAM(slots=8), MoE(experts=4)))
PROMPT = np.random.default_rng(0).integers(0, 32, (2, 5)).astype(np.int32)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name="", **kw: (
        COMPILED.append(fun_name) if "backend_compile" in event else None
    )
)


def rows_of(x):
    """Each by itself."""
    return [x[row : row + 1] for row in range(len(x))]


def write(tokens, model=MODEL, **settings):
    params = random_like(model.table())
    pieces = decode.generate(model, params, PROMPT, tokens, jax.random.key(1), **settings)
    return np.concatenate(list(pieces), axis=1)


@pytest.mark.parametrize("length", [1, 7, 300])
def test_prefill_in_chunks_equals_the_whole(length):
    tokens = np.random.default_rng(1).integers(0, 32, (1, length)).astype(np.int32)
    logits, carry = decode.prefill(MODEL, PARAMS, tokens)
    whole, last = jax.jit(MODEL)(PARAMS, tokens)
    np.testing.assert_allclose(logits, np.asarray(whole)[:, -1], atol=1e-5)
    chex.assert_trees_all_close(carry, last, atol=1e-5)


@pytest.mark.parametrize("model", [SHARED, EXPERTS], ids=["shared", "MoE"])
def test_ready_parameters_read_and_write_the_same(model):
    """Blocks that are stacks themselves; experts, which lie by themselves."""
    params = random_like(model.table())
    ready = decode.ready(model, params)
    logits, carry = decode.prefill(model, params, PROMPT)
    found = decode.prefill(model, ready, PROMPT)
    chex.assert_trees_all_close(found, (logits, carry), atol=1e-5)
    texts = [
        decode.written(decode.generate(model, own, PROMPT, 9, jax.random.key(0), temperature=0.0))
        for own in (params, ready)
    ]
    chex.assert_trees_all_equal(*texts)


def test_parameters_ready_for_another_model_or_mesh_are_refused():
    ready = decode.ready(EXPERTS, random_like(EXPERTS.table()))
    deeper = dataclasses.replace(EXPERTS, depth=3)
    split = Layout(make_mesh(expert=2))
    logits, carry = decode.prefill(EXPERTS, ready, PROMPT)
    calls = [
        lambda: decode.prefill(deeper, ready, PROMPT),
        lambda: decode.prefill(EXPERTS, ready, PROMPT, layout=split),
        lambda: list(decode.write(deeper, ready, logits, carry, 1, jax.random.key(0))),
    ]
    for call in calls:
        with pytest.raises(UserError, match="made ready for another model, or another mesh"):
            call()


def test_three_programs_read_prompts_of_all_lengths_and_one_writes_any_number_of_tokens():
    model = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=31)
    params = random_like(model.table())
    COMPILED.clear()
    for length in (256, 300, 511, 20, 600):
        logits, carry = decode.prefill(model, params, np.zeros((1, length), np.int32))
    assert COMPILED.count("jit(_read)") == 3
    for tokens in (5, 8, 13):
        pieces = decode.write(model, params, logits, carry, tokens, jax.random.key(0))
        assert np.concatenate(list(pieces), axis=1).shape == (1, tokens)
    assert COMPILED.count("jit(_write)") == 1


@pytest.mark.parametrize("model", [MODEL, ATTENTION], ids=["GAM", "attention"])
def test_greedy_text_is_the_argmax_of_the_whole_pass(model):
    text = write(12, model, temperature=0.0)
    assert text.shape == (2, 12)
    whole = np.concatenate([PROMPT, text], axis=1)
    best = np.argmax(compiled(model, random_like(model.table()), whole)[0], axis=-1)
    np.testing.assert_array_equal(text, best[:, PROMPT.shape[1] - 1 : -1])


def test_the_same_key_gives_the_same_text_however_long_it_is_asked_for():
    np.testing.assert_array_equal(write(21)[:, :10], write(10))


@pytest.mark.parametrize("model", [MODEL, ATTENTION], ids=["GAM", "attention"])
def test_a_row_with_its_own_key_writes_what_it_writes_alone(model):
    """Prompts of unlike lengths, read apart and written side by side."""
    params, keys = random_like(model.table()), jax.random.split(jax.random.key(3), 2)
    own, alone, begun = compiled(rows_of, keys), [], []
    for row, length in enumerate((5, 2)):
        logits, carry = decode.prefill(model, params, PROMPT[row : row + 1, :length])
        pieces = decode.write(model, params, logits, carry, 8, own[row])
        alone.append(np.concatenate(list(pieces), axis=1))
        begun.append((logits, carry))
    logits = put(np.concatenate([logits for logits, _ in begun]))
    # Arrays of the layers are [L, B, ...]; the position is [B].
    layers = jax.tree.map(
        lambda *arrays: put(np.concatenate(arrays, axis=1)), *(carry.layers for _, carry in begun)
    )
    position = put(np.concatenate([carry.position for _, carry in begun]))
    together = ModelCarry(position, layers)
    pieces = decode.write(model, params, logits, together, 8, keys)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), np.concatenate(alone))


UNLIKE = [np.arange(length) % 32 for length in (40, 1, 17, 32)]
"""Prompts that end with chunks of 16 and of 1."""


@pytest.mark.parametrize("model", [MODEL, ATTENTION], ids=["GAM", "attention"])
def test_many_prompts_are_read_and_continued_as_each_is_alone(model):
    """With settings, keys and stop ids of their own."""
    params, keys = random_like(model.table()), jax.random.split(jax.random.key(3), 4)
    own_keys = compiled(rows_of, keys)
    drawn = {
        "temperature": (1.0, 0.0, 0.7, 1.0),
        "top_k": (0, 0, 5, 0),
        "repetition_penalty": (1.0, 1.5, 1.0, 1.2),
    }
    stop = [[], [7], range(10), [31]]
    pieces = decode.generate(model, params, UNLIKE, 20, keys, stop=stop, **drawn)
    together = decode.written(pieces)
    for row, prompt in enumerate(UNLIKE):
        own = {name: values[row] for name, values in drawn.items()}
        pieces = decode.generate(
            model, params, [prompt], 20, own_keys[row], stop=[stop[row]], **own
        )
        np.testing.assert_array_equal(decode.written(pieces)[0], together[row])


@pytest.mark.parametrize("model", [MODEL, ATTENTION], ids=["GAM", "attention"])
def test_a_carry_of_unlike_rows_is_that_of_each_alone(model):
    params = random_like(model.table())
    logits, carry = decode.prefill(model, params, UNLIKE)
    assert carry.position.tolist() == [40, 1, 17, 32]
    more = [[1, 2], [3] * 20, [4], [5]]
    again, after = decode.prefill(model, params, more, carry)
    logits, again, after = jax.tree.map(np.asarray, (logits, again, after))
    for row, (first, second) in enumerate(zip(UNLIKE, more, strict=True)):
        alone, begun = decode.prefill(model, params, [first])
        np.testing.assert_allclose(logits[row], np.asarray(alone)[0], atol=1e-5)
        alone, ended = decode.prefill(model, params, [second], begun)
        np.testing.assert_allclose(again[row], np.asarray(alone)[0], atol=1e-5)
        own = jax.tree.map(lambda x, at=row: x[:, at : at + 1], after.layers)
        chex.assert_trees_all_close(own, ended.layers, atol=1e-5)


def test_a_row_ends_with_its_first_stop_id_and_all_when_all_have_ended():
    whole = write(30)
    stop = [int(whole[0, 3]), int(whole[1, 11])]
    ends = [next(i for i, token in enumerate(row) if token in stop) + 1 for row in whole]
    pieces = list(
        decode.generate(MODEL, PARAMS, PROMPT, 30, jax.random.key(1), stop=np.array(stop))
    )
    text = np.concatenate(pieces, axis=1)
    assert text.shape[1] == max(ends) < 30
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(text[row, :end], whole[row, :end])
        assert set(text[row, end:].tolist()) <= {decode.ENDED}


def test_the_penalty_is_on_what_was_read_and_on_what_is_written():
    """At its most, no token comes twice, nor one of the prompt."""
    settings = {"temperature": 0.0, "repetition_penalty": 1000.0}
    norm = dict(zip(("scale", "bias"), single(([0] * 16, [1] * 16)), strict=True))
    # one logit a token, whatever came before
    params = {**PARAMS, "final_norm": norm}
    pieces = decode.generate(MODEL, params, PROMPT, 16, jax.random.key(1), **settings)
    sums = np.sum(np.asarray(PARAMS["embedding"]), axis=1)
    positive = set(np.flatnonzero(sums > 0).tolist())
    for row, prompt in zip(decode.written(pieces), PROMPT.tolist(), strict=True):
        left = positive - set(prompt)
        first = row[: len(left)].tolist()
        assert len(set(first)) == len(first) > 5
        assert set(first) <= left


@pytest.mark.parametrize("stop", [[32], [-1], [[1], [2], [3]], [0.5]], ids=str)
def test_stop_ids_that_are_none_are_refused(stop):
    with pytest.raises(ValueError, match="stop"):
        decode.generate(MODEL, PARAMS, PROMPT, 6, jax.random.key(0), stop=stop)


def test_the_carry_has_one_size_for_ever():
    _, short = decode.prefill(MODEL, PARAMS, PROMPT)
    _, long = decode.prefill(MODEL, PARAMS, np.tile(PROMPT, (1, 50)))
    assert decode.carry_bytes(short) == decode.carry_bytes(long) == 2 * 4 + 2 * 2 * 2 * 16 * 4


def test_writing_leaves_the_carry_that_it_was_given():
    params = random_like(ATTENTION.table())
    logits, carry = decode.prefill(ATTENTION, params, PROMPT)
    before = jax.tree.map(np.asarray, carry)
    texts = []
    for _ in range(2):
        pieces = decode.write(ATTENTION, params, logits, carry, 10, jax.random.key(1))
        texts.append(np.concatenate(list(pieces), axis=1))
    np.testing.assert_array_equal(*texts)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, carry), before)


def test_a_cache_is_written_to_where_it_lies():
    """So much is aliased, and what is needed besides does not grow with the cache."""

    def memory(context):
        model = dataclasses.replace(ATTENTION, block=Block(Attention(context=context)))
        return decode.carry_bytes(model.carry(2)), memory_of_writing(model)

    (small, of_small), (large, of_large) = memory(1024), memory(8192)
    assert of_large.alias_size_in_bytes - of_small.alias_size_in_bytes == large - small
    assert of_large.temp_size_in_bytes < 1.1 * of_small.temp_size_in_bytes


def test_parameters_are_read_where_they_lie():
    """A program that takes each block's part of stacked ones copies them all."""
    model = LanguageModel(Block(Attention(context=128)), width=64, depth=4, vocab=32)
    blocks = random_like(model.table())["blocks"]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(blocks))
    assert memory_of_writing(model).temp_size_in_bytes < held / 4


@pytest.mark.parametrize("of", ["block", "turns", "pattern"])
def test_experts_are_read_where_they_lie(of):
    """A program that takes one of stacked matrices copies it."""
    block = Block(
        GAM(slots=8), MoE(experts=4, ffn=MLP(hidden=2048, activation="swiglu", bias=False))
    )
    held = {
        "block": block,
        "turns": InTurn((block, Residual(GAM(slots=8)))),
        "pattern": Pattern((block, Residual(GAM(slots=8))), (0, 1)),
    }
    model = LanguageModel(held[of], width=64, depth=1, vocab=32)
    assert memory_of_writing(model).temp_size_in_bytes < 64 * 2048 * 4


def memory_of_writing(model):
    decoder = decode.Decoder(model, Layout(make_mesh()).whole)
    state = (
        decode.made_ready(decoder, random_like(model.table())),
        put(np.zeros((2, 32), np.float32)),
        decode._to_write(decoder, model.carry(2)),
    )
    keys, past = sampling.row_keys(jax.random.key(0), 2), sampling.Past.of(np.zeros((2, 32), bool))
    settings = sampling.Settings().of_rows(2)
    lowered = decode._write.lower(decoder, *state, keys, settings, past)
    return lowered.compile().memory_analysis()


def test_more_than_the_learned_positions_is_refused_before_anything_is_written():
    model = dataclasses.replace(MODEL, context=10)
    params = random_like(model.table())
    with pytest.raises(ValueError, match="row 0: 11 tokens do not fit the model's 10"):
        next(decode.generate(model, params, PROMPT, 6, jax.random.key(0)))
    with pytest.raises(ValueError, match="row 1: 11 tokens do not fit the model's 10"):
        decode.generate(model, params, [[1], [1, 2, 3, 4], [5, 6]], 7, jax.random.key(0))
    logits, carry = decode.prefill(model, params, PROMPT)
    with pytest.raises(ValueError, match="11 tokens do not fit the model's 10"):
        next(decode.write(model, params, logits, carry, 6, jax.random.key(0)))


@pytest.mark.parametrize("bad", [-1, 32, 2**31, 2**32 + 3])
def test_ids_outside_the_vocabulary_are_refused_by_name(bad):
    prompt = np.zeros((2, 5), np.int64)
    prompt[1, 3] = bad
    for refused in (
        lambda: decode.prefill(MODEL, PARAMS, prompt),
        lambda: decode.generate(MODEL, PARAMS, prompt, 6, jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=f"prompt: id {bad} at row 1, position 3 is outside"):
            refused()


@pytest.mark.parametrize(
    "prompt",
    [PROMPT[:, :0], PROMPT[:0], PROMPT[0], PROMPT * 1.0, [], [[1], []], [1, 2], [[1], [0.5]]],
    ids=str,
)
def test_what_is_no_prompt_is_refused(prompt):
    for refused in (
        lambda: decode.prefill(MODEL, PARAMS, prompt),
        lambda: decode.generate(MODEL, PARAMS, prompt, 6, jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match="prompt"):
            refused()


BEFORE = [0.0] * 32


@pytest.mark.parametrize(
    ("row", "drawn"),
    [
        ([np.nan] + 31 * [0], False),
        (31 * [0] + [np.nan], False),
        ([np.inf] + 31 * [0], False),
        (32 * [-np.inf], False),
        (31 * [-np.inf] + [np.nan], False),
        (31 * [-np.inf] + [5], True),
        (31 * [-np.inf] + [-1e38], True),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_is_drawn_from_a_distribution_or_none_is(row, drawn, temperature):
    """Of several rows one is enough to stop; a lone -inf is a token that is never drawn."""
    _, carry = decode.prefill(MODEL, PARAMS, PROMPT)
    logits = put([BEFORE, row], np.float32)
    key = jax.random.key(0)
    pieces = decode.write(MODEL, PARAMS, logits, carry, 10, key, temperature=temperature)
    if drawn:
        assert next(pieces)[1, 0] == 31
        return
    with pytest.raises(ValueError, match="the logits for position 5 of row 1 are no numbers"):
        next(pieces)


def test_what_was_drawn_before_the_first_logit_that_is_no_number_is_given_out():
    model = dataclasses.replace(MODEL, context=64)
    params = random_like(model.table())
    positions = np.array(params["positions"])
    positions[14] = np.nan
    params = {**params, "positions": put(positions)}
    pieces = decode.generate(model, params, PROMPT, 20, jax.random.key(0))
    assert [next(pieces).shape for _ in range(2)] == [(2, 8), (2, 2)]
    with pytest.raises(ValueError, match="the logits for position 15 of row 0 are no numbers"):
        next(pieces)
