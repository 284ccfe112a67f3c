"""Rows on the device: whatever the others do, each writes what it writes alone."""

import dataclasses
import functools
import gc

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
from gam_jax.models.side_tuned import SideTuned
from gam_jax.ops.rotary import Positions
from gam_jax.ops.routing import Capacity
from gam_jax.serve.device import Device
from gam_jax.serve.drafts import NgramDraft
from gam_jax.serve.engine import Engine
from gam_jax.serve.executor import Draws
from gam_jax.serve.saved import to_bytes
from gam_jax.serve.seating import Settings
from sharding.errors import UserError
from tests.examples import EXAMPLES, VARIANTS, WIDTH, random_like
from tests.gam_jax.serve.test_engine import ask, waited
from tests.gam_jax.serve.turns import Text, Turns, run
from tests.meshes import layout_of

VOCAB, LIMIT = 19, 32
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: COMPILED.append(event) if "backend_compile" in event else None
)
OF_MANY = Pattern(
    (
        Block(Attention(heads=4, kv_heads=2, sinks=True, context=64), MoE(ffn=MLP(expansion=1))),
        Block(LatentAttention(heads=2, latent=5, head_size=2, rotary_size=2, context=64)),
        Residual(LinearMemory(heads=2)),
        Block(GAM(slots=8), MLP(expansion=1)),
    ),
    (0, 1, 2, 3),
)


def model_of(block, **fields):
    return LanguageModel(block, width=WIDTH, depth=1, vocab=VOCAB, **fields)


@functools.cache
def device_of(model, **sizes):
    made = Device(model, random_like(model.table()), limit=LIMIT, page=4, widths=(4, 1), **sizes)
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
    "tuned at its side": SideTuned(
        model_of(Block(Attention(heads=2, context=64), MLP(expansion=1)))
    ).writing(),
    **{
        name: model_of(layer if isinstance(layer, Pattern) else Residual(layer, width=WIDTH))
        for name, layer in EXAMPLES.items()
        if layer.causal and (layer.limit == 0 or layer.limit >= LIMIT) and name not in VARIANTS
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
            assert found.scores == alone.scores[: len(found.scores)]
            assert bool(alone.scores) == bool(text.key % 2 and len(text.prompt) > 1)


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


def unbiased(random, count):
    """Requests that `generate` can be asked for, of one length."""
    return [
        dataclasses.replace(text, tokens=8, draws=dataclasses.replace(text.draws, bias=()))
        for text in texts(random, count)
    ]


def generated(model, asked):
    names = [field.name for field in dataclasses.fields(Draws) if field.name not in ("bias", "top")]
    drawn = {name: tuple(getattr(text.draws, name) for text in asked) for name in names}
    keys = jax.numpy.stack([jax.random.key(text.key) for text in asked])
    pieces = decode.generate(
        model, random_like(model.table()), [text.prompt for text in asked], 8, keys, **drawn
    )
    return [row.tolist() for row in decode.written(pieces)]


@LAW
def test_texts_are_those_of_generate(model):
    device, random = device_of(model, rows=3, block=4), np.random.default_rng(2)
    asked = unbiased(random, 4)
    found = run(device, asked, random, departures=0)
    assert [text.ids for text in found] == generated(model, asked)


@pytest.mark.parametrize("draft", [None, NgramDraft()], ids=["plain", "ngram"])
def test_texts_of_an_engine_are_those_of_the_device_alone(draft):
    """Two turns of each conversation: what the first has read is remembered, and pages shared."""
    device, random = device_of(MODELS["of many"], rows=3, block=4), np.random.default_rng(6)
    engine = Engine(device, Settings(prefill_budget=16), draft)
    engine.start()
    begins = [random.integers(0, VOCAB, random.integers(17, 20)) for _ in range(8)]
    done = []
    for turn in range(2):
        asked = []
        for number, prompt in enumerate(begins):
            draws = Draws(float(number % 2), presence_penalty=0.3 * (number % 3), top=0)
            asked.append(Text(prompt, int(random.integers(1, 5)), number + turn, draws))
        texts = [ask(engine, t.prompt.tolist(), t.tokens, t.key, t.draws) for t in asked]
        engine.cancel(texts[-1].number)
        waited(texts)
        done += zip(asked, texts, strict=True)
        begins = [[*t.prompt, *one.tokens, 1, 2] for t, one in zip(asked, texts, strict=True)]
        begins = list(map(np.asarray, begins))
    engine.stop(60)
    assert not engine.failure()
    counts = engine.counts()
    assert (counts.rows, counts.queued) == (0, 0)
    assert counts.cached > 0
    for text, one in done:
        (alone,) = run(device, [text], random, departures=0)
        assert one.tokens == alone.ids[: len(one.tokens)]
        assert one.end.reason == "cancelled" or one.tokens == alone.ids


def memory_of_a_step(tokens):
    model = model_of(OF_MANY)
    made = Device(
        model, random_like(model.table()), 2, limit=16, tokens=tokens, page=4, widths=(1,)
    )
    return made.sizes.pages * made.row_bytes()[1], made.memory("step 1")


def test_pages_are_written_to_where_they_lie():
    """The pools are aliased, and what a step needs besides does not grow with them."""
    (small, of_small), (large, of_large) = map(memory_of_a_step, (64, 6400))
    assert of_large.alias_size_in_bytes - of_small.alias_size_in_bytes == large - small
    assert of_large.temp_size_in_bytes == of_small.temp_size_in_bytes


def of_devices(name, shape):
    marks = () if name == "GAM" else pytest.mark.slow
    return pytest.param(MODELS[name], shape, id=f"{name} {shape}", marks=marks)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        of_devices("GAM", (2, 1, 2)),
        of_devices("of many", (2, 1, 2)),
        of_devices("streams", (2, 1, 2)),
        of_devices("streams", (1, 1, 2, 2)),
        of_devices("LinearMemory gla", (2, 1, 2)),
    ],
)
def test_devices_write_what_one_writes(model, shape):
    """Rows are split over two, channels over two; a row is copied from one device to another."""
    device, random = device_of(model, rows=4, layout=layout_of(shape)), np.random.default_rng(5)
    asked = unbiased(random, 6)
    found = run(device, asked, random, departures=0)
    assert [text.ids for text in found] == generated(model, asked)
    saved = [device.bytes_of(device.save(row), ()) for row in range(4)]
    device.load(3, device.from_bytes(saved[0], ()))
    assert saved[0] != saved[3]
    assert [device.bytes_of(device.save(row), ()) for row in (0, 1, 2, 3)] == [*saved[:3], saved[0]]


def test_a_row_goes_on_from_bytes_in_other_pages_and_damage_is_told():
    model = MODELS["of many"]
    device, random = device_of(model, rows=3, block=4), np.random.default_rng(4)
    (text,) = texts(random, 1)
    (whole,) = run(device, [text], random, departures=0)
    turns = Turns(device, random)
    row = turns.seat(text, 1)
    while len(row.left):
        turns.read(row)
    turns.step([row], [0])
    data = device.bytes_of(device.save(1), tuple(row.pages))
    turns.step([row], [0])
    other = turns.seat(text, 2)
    other.pages = [int(turns.free.pop()) for _ in row.pages]
    for bad, words in (
        (data[:-1], "damaged"),
        (data[:50] + b"?" + data[51:], "damaged"),
        (to_bytes(bytes(32), []), "another model"),
    ):
        with pytest.raises(UserError, match=words):
            device.from_bytes(bad, tuple(other.pages))
    with pytest.raises(UserError, match="give as many pages"):
        device.from_bytes(data, ())
    device.load(2, device.from_bytes(data, tuple(other.pages)))
    device.copy_page(other.pages[0], page := int(turns.free.pop()))
    other.pages[0] = page
    device.seat(2, text.key, text.draws, text.prompt, np.array(whole.ids[:1]))
    other.left, other.read = row.left[:0], len(text.prompt)
    other.ids, other.unread = whole.ids[:1], whole.ids[:1]
    while not other.done:
        turns.step([other], [0])
    assert other.ids == whole.ids


@pytest.mark.parametrize(
    ("bias", "words"),
    [(((VOCAB, 1.0),), "19 is no id"), (((-1, 1.0),), "-1 is no"), (((1, 1.0),) * 301, "at most")],
)
def test_a_bias_that_cannot_be_given_is_refused(bias, words):
    device = device_of(MODELS["of many"], rows=3, block=4)
    with pytest.raises(UserError, match=words):
        device.seat(0, 0, Draws(bias=bias), np.zeros(0, int))


def test_sizes_that_make_no_sense_are_refused():
    params = random_like(MODELS["GAM"].table())
    for sizes in ({"rows": 0}, {"rows": 2, "block": 0}, {"rows": 2, "limit": -1}):
        with pytest.raises(UserError, match=f"{list(sizes)[-1]}="):
            Device(MODELS["GAM"], params, **sizes)


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


def on_devices():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


GROWS = model_of(Block(Attention(heads=2, context=64), MLP(expansion=1)))


@pytest.mark.parametrize("shape", [None, pytest.param((2, 1, 2), marks=pytest.mark.slow)])
def test_a_device_that_sleeps_holds_little_and_wakes_as_it_was(shape):
    """Parameters wait in the host's memory; what rows held is gone; nothing is compiled."""
    before = on_devices()
    params = jax.tree.map(np.array, random_like(GROWS.table()))  # on no device
    layout = None if shape is None else layout_of(shape)
    device = Device(GROWS, params, 3, limit=LIMIT, page=4, widths=(4, 1), layout=layout)
    device.compile()
    wanted = unbiased(np.random.default_rng(5), 3)
    found = run(device, wanted, np.random.default_rng(5), departures=0)
    saved, there = device.bytes_of(device.save(0), ()), on_devices() - before
    programs = len(COMPILED)
    device.sleep()
    assert on_devices() - before < there / 20
    device.wake()
    assert on_devices() - before == there
    again = run(device, wanted, np.random.default_rng(5), departures=0)
    assert [text.ids for text in again] == [text.ids for text in found]
    assert device.bytes_of(device.save(0), ()) == saved
    assert len(COMPILED) == programs
