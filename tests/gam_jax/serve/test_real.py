"""The engine on real rows: a text is that of the request alone, whatever is served beside it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.layers import GAM, MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.models.semi import SemiDrafter
from gam_jax.models.units import as_units
from gam_jax.planning.batching import Clock, Priced
from gam_jax.serve.device import Device
from gam_jax.serve.drafts import NgramDraft, RunDraft, SemiDraft, UnitsDraft
from gam_jax.serve.executor import Draws, Work
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text
from tests.examples import WIDTH, random_like
from tests.gam_jax.serve.test_service import Always, asked
from tests.meshes import layout_of

VOCAB, LIMIT, BLOCK = 23, 48, 4
MIXERS = {"gam": GAM(slots=8), "attention": Attention(heads=2, context=64)}
SIZES = {"limit": LIMIT, "page": 4, "widths": (8, 4, 1), "block": BLOCK}
COLD = Settings(prefill_budget=8, snapshots=0)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: COMPILED.append(event) if "backend_compile" in event else None
)


@functools.cache
def device_of(mixer, block=BLOCK, tokens=3 * LIMIT):
    model = LanguageModel(Block(MIXERS[mixer], MLP(expansion=1)), WIDTH, depth=1, vocab=VOCAB)
    params = random_like(model.table())
    device = Device(model, params, 3, **{**SIZES, "block": block, "tokens": tokens})
    device.compile()
    return device


def requests(random, count):
    """Prompts that share beginnings; likeliest tokens, drawn ones, penalties, stops."""
    found = []
    head = random.integers(0, VOCAB, 20).tolist()
    for number in range(count):
        prompt = [*head[: random.integers(1, 21)], *random.integers(0, VOCAB, 4).tolist()]
        draws = (Draws(temperature=0), Draws(), Draws(0.8, 0.9, presence_penalty=0.5, top=2))
        ends = random.integers(0, VOCAB, number % 3).tolist()
        options = {"count": int(random.integers(1, 20)), "seed": number, "ends": ends}
        found.append({"prompt": prompt, "draws": draws[number % 3], **options})
    return found


def served(device, wanted, settings=COLD, draft=None, always=False, departures=()):
    """Asks for all, a few turns apart, and runs to the end."""
    service = Service(device, settings, draft, clock=lambda: 0.0)
    if always:
        service._pace = Always(BLOCK)
    ones = [asked(**one) for one in wanted]
    for number, one in enumerate(ones):
        service.queue.push(str(number % 2), Text(number, one.request))
        for _ in range(number % 3):
            service.turn()
        if number in departures:
            service.cancel({number})
    while service.busy:
        service.turn()
    service.seats.carries.close()
    assert service.counts().rows == service.counts().pages == 0
    return ones, service.counts()


def told(ones):
    return [[(t.id, t.log_prob, t.top) for t in one.told[:-1]] for one in ones]


@pytest.mark.parametrize("mixer", MIXERS)
def test_load_remembered_states_and_drafts_change_no_text(mixer):
    device = device_of(mixer)
    wanted = requests(np.random.default_rng(0), 7)
    alone = [served(device, [one])[0][0] for one in wanted]
    itself = RunDraft(device_of(mixer, block=1), device.sizes) if mixer == "gam" else None
    before = len(COMPILED)
    together, counts = served(device, wanted)
    assert told(together) == told(alone)  # log probabilities bit for bit
    assert counts.read == sum(len(one["prompt"]) for one in wanted)
    texts = [one.tokens for one in alone]
    warm, counts = served(device, [*wanted, *wanted], Settings(prefill_budget=8))
    assert [one.tokens for one in warm] == texts * 2
    assert counts.cached > 0
    exact, counts = served(device, [*wanted, *wanted], Settings(prefill_budget=8, exact=True))
    assert told(exact) == told(alone) * 2
    assert counts.cached > 0
    drafted, counts = served(device, wanted, draft=NgramDraft(), always=True)
    assert [one.tokens for one in drafted] == texts
    assert 0 < counts.accepted < counts.guessed
    if itself is not None:
        drafted, counts = served(device, wanted, draft=itself, always=True)
        assert [one.tokens for one in drafted] == texts
        assert counts.accepted > 0.9 * counts.guessed  # its own draft draws the same
    left, _ = served(device, wanted, departures=(1, 4))
    for number, one in enumerate(left):
        assert one.tokens == texts[number][: len(one.tokens)]
        assert number in (1, 4) or one.tokens == texts[number]
    assert len(COMPILED) == before


@pytest.mark.parametrize("mixer", ["gam", pytest.param("attention", marks=pytest.mark.slow)])
def test_a_model_that_looks_ahead_writes_the_same(mixer):
    """With parameters that were never trained to: most guesses are wrong, and no text is."""
    model = LanguageModel(Block(MIXERS[mixer], MLP(expansion=1)), WIDTH, depth=1, vocab=VOCAB)
    model = as_units(model, unit=3, accept=0.05)
    device = Device(model, random_like(model.table()), 3, **SIZES)
    device.compile()
    wanted = requests(np.random.default_rng(3), 5)
    plain, _ = served(device, wanted)
    drafted, counts = served(device, wanted, draft=UnitsDraft(VOCAB, 3), always=True)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    assert 0 < counts.accepted < counts.guessed
    unsure, counts = served(device, wanted, draft=UnitsDraft(VOCAB, 1), always=True)
    assert [one.tokens for one in unsure] == [one.tokens for one in plain]
    assert counts.guessed == 0


SLOW = pytest.mark.slow
DRAFTED = {
    "gam on a mesh": ("gam", (2, 1, 2)),  # rows over two, channels over two
    "attention": pytest.param("attention", None, marks=SLOW),
    "gam": pytest.param("gam", None, marks=SLOW),
    "attention on a mesh": pytest.param("attention", (2, 1, 2), marks=SLOW),
}


@pytest.mark.parametrize(("mixer", "shape"), DRAFTED.values(), ids=DRAFTED)
def test_a_drafter_from_features_changes_no_text(mixer, shape):
    """A text that goes on from a remembered state has none at first."""
    model = LanguageModel(Block(MIXERS[mixer], MLP(expansion=1)), WIDTH, depth=1, vocab=VOCAB)
    drafter = SemiDrafter(model, ahead=2, window=6, heads=2)
    params = random_like(drafter.table())
    layout = None if shape is None else layout_of(shape)
    beside = drafter, params["drafter"]
    device = Device(model, params["target"], 4, **SIZES, layout=layout, drafter=beside)
    assert "guess" in device.compile()
    wanted = requests(np.random.default_rng(4), 5)
    plain, _ = served(device, wanted)
    before = len(COMPILED)
    drafted, counts = served(device, wanted, draft=SemiDraft(device, 6), always=True)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    assert 0 < counts.accepted < counts.guessed
    assert counts.tokens_a_pass < counts.ideal_tokens_a_pass < BLOCK
    options = Settings(prefill_budget=8)
    warm, counts = served(device, wanted * 2, options, SemiDraft(device, 6), always=True)
    assert [one.tokens for one in warm] == [one.tokens for one in plain] * 2
    assert counts.cached > 0
    assert len(COMPILED) == before


@pytest.mark.slow
def test_rows_that_leave_for_want_of_pages_go_on_with_the_same_bits():
    wanted = [{**one, "count": 20, "ends": ()} for one in requests(np.random.default_rng(1), 5)]
    alone = [served(device_of("attention"), [one])[0][0] for one in wanted]
    small = device_of("attention", tokens=LIMIT + 12)
    assert small.sizes.pages < device_of("attention").sizes.pages
    together, _ = served(small, wanted)
    assert told(together) == told(alone)


class Noted:
    """An executor with a note of each call, and perhaps fewer pages than it has."""

    def __init__(self, executor, pages):
        self.executor, self.notes = executor, []
        self.sizes = dataclasses.replace(executor.sizes, pages=pages)
        self.fingerprint = executor.fingerprint

    def __getattr__(self, name):
        call = getattr(self.executor, name)

        def noted(*args):
            states = {"bytes_of": 0, "load": 1}  # whatever stands for one
            shown = [x for place, x in enumerate(args) if place != states.get(name)]
            self.notes.append((name, *map(self.shown, shown)))
            return call(*args)

        return noted

    @staticmethod
    def shown(x):
        """What a call depends on, but for the tokens themselves."""
        if isinstance(x, Work):
            return x.tokens.shape, *(y.tolist() for y in (x.known, x.guesses, x.pages))
        if isinstance(x, np.ndarray):
            return x.shape
        return x if isinstance(x, int | tuple) else None


@pytest.mark.parametrize("mixer", MIXERS)
@given(
    wanted=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=5
    ),
    pages=st.integers(1 + LIMIT // 4, 1 + 2 * LIMIT // 4),
)
def test_a_plan_makes_the_calls_that_the_device_gets(mixer, wanted, pages):
    """Reads and steps of the same rows on the same pages in the same order, and as many tokens."""
    device = device_of(mixer)
    priced = Priced(device.sizes, lambda name, tokens: 0.0, Clock(), (1, 1), lambda size: 0.0)
    pages = pages if device.sizes.page else 0
    told = []
    for executor in (Noted(device, pages), Noted(priced, pages)):
        service = Service(executor, COLD, None, clock=lambda: 0.0)
        for number, (reads, writes, turns) in enumerate(wanted):
            prompt = np.random.default_rng(number).integers(0, VOCAB, reads).tolist()
            service.queue.push("", Text(number, asked(prompt, writes, ends=()).request))
            for _ in range(turns):
                service.turn()
        while service.busy:
            service.turn()
        told.append((executor.notes, service.counts()))
    (calls, counts), (planned, expected) = told
    assert counts == expected
    assert counts.written == sum(writes for _, writes, _ in wanted)
    assert planned == calls


def test_what_was_written_to_a_folder_is_read_by_another_process_of_the_same_model(tmp_path):
    device = device_of("attention")
    wanted = requests(np.random.default_rng(2), 3)
    settings = Settings(prefill_budget=8, folder=str(tmp_path))
    first, _ = served(device, wanted, settings)
    again, counts = served(device, wanted, settings)
    assert [one.tokens for one in again] == [one.tokens for one in first]
    assert counts.cached > 0
