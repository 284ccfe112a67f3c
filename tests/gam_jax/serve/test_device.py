"""Rows on the device: whatever the others do, each writes what it writes alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Block,
    LatentAttention,
    LinearMemory,
    MoE,
    Pattern,
    Residual,
)
from gam_jax.models.language import LanguageModel
from gam_jax.ops.rotary import Positions
from gam_jax.ops.routing import Capacity
from gam_jax.serve.device import Device
from gam_jax.serve.executor import Draws
from sharding.errors import UserError
from tests.examples import EXAMPLES, WIDTH, random_like
from tests.gam_jax.serve.turns import Text, run

VOCAB, LIMIT = 19, 32
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: COMPILED.append(event) if "backend_compile" in event else None
)
OF_MANY = Pattern(
    (
        Block(Attention(heads=4, kv_heads=2, sinks=True, context=64), MoE(ffn=MLP(expansion=1))),
        Block(LatentAttention(heads=2, latent=5, head_size=2, rotary_size=2, context=64)),
        Block(Attention(heads=2, window=3), MLP(expansion=1)),
        Residual(LinearMemory(heads=2)),
        Block(GAM(slots=8), MLP(expansion=1)),
    ),
    (0, 1, 2, 3, 4),
)


def model_of(block, **fields):
    return LanguageModel(block, width=WIDTH, depth=1, vocab=VOCAB, **fields)


@functools.cache
def device_of(model, **sizes):
    made = Device(model, random_like(model.table()), limit=LIMIT, page=4, widths=(8, 2, 1), **sizes)
    made.compile()
    return made


def texts(random, count=7):
    """Requests of all kinds."""
    found = []
    for number in range(count):
        prompt = random.integers(0, VOCAB, random.integers(1, 15))
        draws = Draws(temperature=float(number % 2), top=3)
        if number % 4 == 3:
            draws = Draws(0.7, 0.9, 12, 0.01, 1.2, 0.3, 0.2, ((3, 2.0), (5, -1.0)), top=0)
        found.append(Text(prompt, int(random.integers(1, 12)), int(number), draws))
    return found


MODELS = {
    "of many": model_of(OF_MANY),
    "streams": model_of(Block(Attention(heads=2, context=64), MLP(expansion=1)), streams=2),
    **{
        name: model_of(layer if isinstance(layer, Pattern) else Residual(layer, width=WIDTH))
        for name, layer in EXAMPLES.items()
        if layer.causal and (layer.limit == 0 or layer.limit >= LIMIT)
    },
}
ALWAYS = ("of many",)
"""The others are `slow`."""
LAW = pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name, model in MODELS.items()
    ],
)


@LAW
def test_a_text_is_what_it_is_alone_whoever_else_is_served(model):
    """To the bit, log probabilities too; alone, it stands in any row and in any pages."""
    device, random = device_of(model, rows=3, block=4), np.random.default_rng(0)
    for _ in range(3):
        asked = texts(random)
        together = run(device, asked, random)
        for text, found in zip(asked, together, strict=True):
            (alone,) = run(device, [text], random, departures=0)
            assert found.ids == alone.ids[: len(found.ids)]
            assert found.log_probs == alone.log_probs[: len(found.ids)]


@LAW
def test_guesses_change_no_text_whether_right_or_wrong(model):
    device, random = device_of(model, rows=3, block=4), np.random.default_rng(1)
    asked = texts(random)
    plain = run(device, asked, random, departures=0)
    for share in (0.0, 0.6, 1.0):
        drafted = run(device, asked, random, departures=0, share=share, plain=plain)
        assert [text.ids for text in drafted] == [text.ids for text in plain]
        for one, other in zip(drafted, plain, strict=True):
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


@LAW
def test_texts_are_those_of_generate(model):
    device, random = device_of(model, rows=3, block=4), np.random.default_rng(2)
    asked = [
        dataclasses.replace(text, tokens=8, draws=dataclasses.replace(text.draws, bias=()))
        for text in texts(random, 4)
    ]
    names = [field.name for field in dataclasses.fields(Draws) if field.name not in ("bias", "top")]
    drawn = {name: tuple(getattr(text.draws, name) for text in asked) for name in names}
    keys = jax.numpy.stack([jax.random.key(text.key) for text in asked])
    pieces = decode.generate(
        model, random_like(model.table()), [text.prompt for text in asked], 8, keys, **drawn
    )
    found = run(device, asked, random, departures=0)
    assert [text.ids for text in found] == [row.tolist() for row in decode.written(pieces)]


def test_nothing_is_compiled_once_rows_are_served():
    device, random = device_of(MODELS["of many"], rows=3, block=4), np.random.default_rng(3)
    run(device, texts(random, 3), random)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr(
            jax._src.compiler, "compile_or_get_cached", lambda *a, **k: compiled.append(a)
        )
        run(device, texts(random, 3), random, share=0.5)
    assert not compiled


def memory_of_a_step(tokens):
    model = model_of(OF_MANY)
    made = Device(
        model, random_like(model.table()), 2, limit=16, tokens=tokens, page=4, widths=(1,)
    )
    made.compile()
    return made.sizes.pages * made.row_bytes()[1], made.memory("step 1")


def test_pages_are_written_to_where_they_lie():
    """The pools are aliased, and what a step needs besides does not grow with them."""
    (small, of_small), (large, of_large) = map(memory_of_a_step, (64, 6400))
    assert of_large.alias_size_in_bytes - of_small.alias_size_in_bytes == large - small
    assert of_large.temp_size_in_bytes == of_small.temp_size_in_bytes


REFUSED = {
    "meet": (Block(GAM(slots=8), MoE(capacity=Capacity(1.0, tokens=0))), 0),
    "turn by the length": (
        Block(Attention(context=64, positions=Positions("dynamic", 2.0, original=16))),
        32,
    ),
    "at most 100 tokens": (Block(Attention(context=64)), 100),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line(words):
    block, limit = REFUSED[words]
    model = model_of(block)
    with pytest.raises(UserError, match=words) as found:
        Device(model, random_like(model.table()), 2, limit=limit)
    assert "\n" not in str(found.value)
