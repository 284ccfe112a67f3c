"""Any load on a double of the executor: each text is that of the request alone, nothing is left."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.continuations import Continuation
from gam_jax.serve.drafts import NgramDraft, RunDraft, UnitsDraft
from gam_jax.serve.executor import UNSURE, Draws, Sizes
from gam_jax.serve.pace import Pace
from gam_jax.serve.request import End, Request, Token
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text
from tests.gam_jax.serve.fake import FakeExecutor, alone

VOCAB = 40
BUDGET = 12


class Letters:
    """A stream whose text is a letter for each id."""

    def push(self, token):
        return chr(97 + token)

    def flush(self):
        return ""


def sizes_of(rows=2, block=1, page=0, pages=1, limit=0, vocab=VOCAB):
    row_pages = min(pages - 1, -(-limit // page) if limit else pages - 1) if page else 0
    return Sizes(rows, (8, 4, 1), block, page, pages, row_pages, limit, vocab)


@dataclasses.dataclass
class Asked:
    """A request and what was told of it."""

    request: Request
    told: list

    @property
    def tokens(self):
        return [t.id for t in self.told if isinstance(t, Token)]

    @property
    def written(self):
        """Without tokens of the prompt, which are told first where they are scored."""
        return self.tokens[len(self.request.prompt) if self.request.scores_prompt else 0 :]

    @property
    def end(self):
        ends = [t for t in self.told if isinstance(t, End)]
        assert len(ends) <= 1
        assert not ends or self.told[-1] is ends[0]
        return ends[0] if ends else None

    @property
    def text(self):
        return "".join(t.text for t in self.told)

    @property
    def alone(self):
        r = self.request
        found = alone(r.prompt, r.max_tokens, r.seed, r.draws, VOCAB, r.continuation.ends)
        return [*r.prompt, *found] if r.scores_prompt else found


def asked(prompt, count=5, seed=0, draws=Draws(), ends=(), stops=(), **options):
    told: list = []
    continuation = Continuation(Letters(), stops, ends)
    request = Request(tuple(prompt), count, draws, continuation, told.append, seed, **options)
    return Asked(request, told)


class Always(Pace):
    """Guesses in each step."""

    def pays(self):
        return True


class Load:
    """A service, and what it was asked."""

    def __init__(self, sizes, options=Settings(prefill_budget=BUDGET), draft=None, executor=None):
        self.executor = executor or FakeExecutor(sizes)
        self.service = Service(self.executor, options, draft, clock=lambda: 0.0)
        self.all: list[Asked] = []
        self.fed: list[list] = []
        self.budget = options.prefill_budget

    def ask(self, *args, **kwargs):
        self.all.append(asked(*args, **kwargs))
        self.service.queue.push(
            self.all[-1].request.user, Text(len(self.all), self.all[-1].request)
        )
        return self.all[-1]

    def turn(self):
        before = len(self.executor.fed)
        self.service.turn()
        turn = self.executor.fed[before:]
        self.fed.append(turn)
        assert sum(kind == "step" for kind, _, _ in turn) <= 1
        prompts = [count * len(rows) for kind, count, rows in turn if kind == "read"]
        assert sum(prompts) <= self.budget
        rows = [text.row for text in self.service.seats.texts if text]
        assert rows == [row for row, text in enumerate(self.service.seats.texts) if text]

    def run(self):
        for _ in range(3000):
            if not self.service.busy:
                return self
            self.turn()
        raise AssertionError("no end")

    def check_nothing_is_left(self):
        service = self.service
        assert service.counts().rows == service.counts().queued == 0
        service.seats.carries.close()
        assert service.seats.pool.used == 0
        if self.executor.sizes.page:
            assert service.seats.pool.free == self.executor.sizes.pages - 1


def test_one_text_is_that_of_the_model():
    load = Load(sizes_of())
    one = load.ask([1, 2, 3], count=7)
    load.run().check_nothing_is_left()
    assert one.tokens == one.alone
    assert one.end == End("length", "", 3, 0, 7)
    assert load.service.counts().wasted == 0


HEADS = [[], [1] * 5, list(range(9)), list(range(30)), [*range(30), 5, 5], [2, 3] * 20]
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.tuples(st.sampled_from(HEADS), st.lists(st.integers(0, 4), max_size=9)).map(
            lambda parts: [*parts[0], *parts[1]] or [0]
        ),
        "count": st.integers(1, 24),
        "seed": st.integers(0, 2),
        "draws": st.sampled_from([Draws(), Draws(temperature=0), Draws(presence_penalty=1)]),
        "ends": st.sampled_from([(), (1, 2), tuple(range(0, VOCAB, 5))]),
        "user": st.sampled_from(["", "a", "b"]),
        "scores_prompt": st.sampled_from([False, False, True]),
    }
)
FEW = st.fixed_dictionaries(
    {
        "prompt": st.tuples(st.integers(1, 2), st.lists(st.integers(0, 1), max_size=2)).map(
            lambda parts: [parts[0]] * 20 + parts[1]
        ),
        "count": st.integers(1, 20),
        "seed": st.integers(0, 1),
        "draws": st.sampled_from([Draws(), Draws(presence_penalty=1)]),
        "scores_prompt": st.booleans(),
    }
)
"""Long enough to be remembered, and like each other."""
TURNS = st.tuples(st.just("turns"), st.integers(1, 12))
CANCELS = st.tuples(st.just("cancel"), st.integers(0, 20))


@settings(max_examples=40, deadline=None)
@given(
    actions=st.lists(st.one_of(REQUESTS, TURNS, CANCELS), min_size=1, max_size=14),
    rows=st.integers(1, 4),
    place=st.sampled_from([(0, 1), (4, 22), (4, 40), (8, 12), (16, 60)]),
    block=st.sampled_from([1, 2, 6]),
    snapshots=st.sampled_from([0, 300, 1500, 10**6]),
    exact=st.booleans(),
    drafts=st.sampled_from(["none", "ngram", "run", "units"]),
    pays=st.booleans(),
)
def test_any_load(actions, rows, place, block, snapshots, exact, drafts, pays):
    check_load(actions, rows, place, block, snapshots, exact, drafts, pays)


@settings(max_examples=40, deadline=None)
@given(
    actions=st.lists(st.one_of(FEW, FEW, TURNS, CANCELS), min_size=6, max_size=14),
    rows=st.integers(2, 4),
    place=st.sampled_from([(0, 1), (4, 12), (4, 16), (4, 30), (8, 9)]),
    snapshots=st.sampled_from([700, 10**6]),
    exact=st.booleans(),
    guesses=st.booleans(),
)
def test_like_prompts_and_few_pages(actions, rows, place, snapshots, exact, guesses):
    drafts, block = ("run", 4) if guesses else ("none", 1)
    check_load(actions, rows, place, block, snapshots, exact, drafts, pays=True)


class OftenRight(FakeExecutor):
    """Draws as the model, but at some places."""

    def _draw(self, work, row, seen, first):
        return (super()._draw(work, row, seen, first) + (len(seen) % 5 == 0)) % self.sizes.vocab


class LooksAhead(FakeExecutor):
    """Draws at places that are filled up, but at some, and is wrong there at others."""

    def _look(self, work, row, seen):
        if len(seen) % 7 == 0:
            return UNSURE
        return (self._draw(work, row, seen, first=False) + (len(seen) % 5 == 0)) % self.sizes.vocab


def check_load(actions, rows, place, block, snapshots, exact, drafts, pays):
    """Does what is said, and looks at all that is promised."""
    page, pages = place
    limit = (pages - 1) * page if page else 0
    sizes = sizes_of(rows, block, page, pages, limit)
    draft = {"none": None, "ngram": NgramDraft()}.get(drafts)
    if drafts == "run":
        other = sizes_of(rows, 1, 4 if page else 0, 12, 44 if page else 0)
        draft = RunDraft(OftenRight(other), sizes)
    executor = None
    if drafts == "units":
        draft, executor = UnitsDraft(sizes.vocab, 4), LooksAhead(sizes)
    load = Load(sizes, Settings(BUDGET, snapshots=snapshots, exact=exact), draft, executor)
    if pays and block > 1 and draft:
        load.service._pace = Always(block)
    cancelled = set()
    for action in actions:
        if isinstance(action, dict):
            if not limit or len(action["prompt"]) + action["count"] <= limit:
                load.ask(**action)
        elif action[0] == "turns":
            for _ in range(action[1]):
                if load.service.busy:
                    load.turn()
        elif action[1] < len(load.all):
            cancelled.add(action[1])
            load.service.cancel({action[1] + 1})
            gone = load.all[action[1]]
            assert gone.end is not None
    load.run()
    counts = load.service.counts()
    for number, one in enumerate(load.all):
        assert one.end is not None
        if one.end.reason == "cancelled":
            assert number in cancelled
            assert one.tokens == one.alone[: len(one.tokens)]
        else:
            assert one.tokens == one.alone
            stopped = one.tokens[-1] in one.request.continuation.ends
            assert one.end.reason == ("stop" if stopped else "length")
        assert one.end.completion_tokens == len(one.written)
    assert counts.wasted <= len(load.all)
    assert counts.written == sum(len(one.written) for one in load.all)
    assert sum(count for _, count in counts.requests) == len(load.all)
    if not cancelled and (draft is None or block == 1):
        fed = sum(count * len(rows) for kind, count, rows in load.executor.fed)
        assert fed == counts.read + counts.written - len(load.all) + counts.wasted
        assert counts.read + counts.cached == sum(len(one.request.prompt) for one in load.all)
    load.check_nothing_is_left()


@pytest.mark.parametrize("place", [(0, 1), (4, 60)])
def test_a_draft_that_was_wrong_goes_on_from_what_was_written(place):
    sizes = sizes_of(2, 6, *place)
    load = Load(sizes, Settings(BUDGET), RunDraft(OftenRight(sizes_of(2, 1, *place)), sizes))
    load.service._pace = Always(6)
    ones = [load.ask([seed] * 9, count=60, seed=seed) for seed in range(2)]
    load.run()
    assert all(one.tokens == one.alone for one in ones)
    counts = load.service.counts()
    assert 0.5 * counts.guessed < counts.accepted < counts.guessed


def test_a_model_that_looks_ahead_guesses_for_itself():
    sizes = sizes_of(2, 6)
    load = Load(sizes, Settings(BUDGET), UnitsDraft(VOCAB, 4), LooksAhead(sizes))
    load.service._pace = Always(6)
    ones = [load.ask([seed] * 9, count=60, seed=seed) for seed in range(2)]
    load.run()
    assert all(one.tokens == one.alone for one in ones)
    counts = load.service.counts()
    assert 0.5 * counts.guessed < counts.accepted < counts.guessed
    assert counts.passes < 0.8 * counts.written
