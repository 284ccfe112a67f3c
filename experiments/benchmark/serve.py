"""Serving: many texts at once beside one by one, remembered conversations, guesses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark import peers, starts
from experiments.benchmark.length import mixer_of
from experiments.benchmark.timing import Quantity, Rows
from gam_jax import decode
from gam_jax.continuations import Continuation
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.layers import Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from gam_jax.serve.device import Device
from gam_jax.serve.drafts import Draft, NgramDraft
from gam_jax.serve.engine import Engine
from gam_jax.serve.executor import Draws
from gam_jax.serve.request import End, Request, Token
from gam_jax.serve.seating import Settings
from gam_jax.training.progress import Progress

WIDTH, DEPTH, VOCAB, CONTEXT = 128, 4, 256, 4096
MIXERS = ("GAM", "LinearMemory.gated_deltanet")
KINDS = (*MIXERS, "Mamba2", "Attention", "FalconH1")
ROWS = (1, 8, 16)
PROMPT, WRITTEN = 32, 128
PASTS = (64, 192, 256, 320, 384, 512, 768, 1024)
"""Tokens before those that attention writes: unlike ones, 440 on average, and 512 in a batch."""
PADDED = tuple(range(16, 257, 16))
"""Tokens of prompts that transformers' `generate` fills up to the longest, on the left."""
TURN = 2048
GUESSED = 1024
"""Tokens written with guesses and without: half a second, so that a twentieth of it is seen."""
MANY = 4
"""Turns of guesses for each of others: what they may cost is less than turns differ."""
BLOCK = 16
GREEDY = Draws(temperature=0)


def run(repeats: int, short: bool = False) -> Rows:
    """Texts of several servers, which take turns; greedy, but for what says otherwise.

    Args:
      repeats: timed turns of each.
      short: the smallest sizes alone.
    """
    progress, rows = Progress(), _held(KINDS[:1] if short else KINDS)
    progress.say("starts ...")
    rows |= starts.run(1, 32, 1) if short else starts.run(repeats, WIDTH, DEPTH)
    for name in MIXERS[:1] if short else MIXERS:
        progress.say(f"{name} ...")
        rows |= _full(name, ROWS[:2] if short else ROWS, repeats)
    progress.say("Attention ...")
    rows |= _unlike(repeats, PASTS[:2] if short else PASTS)
    progress.say("conversations ...")
    rows |= _second_turn(repeats, 256 if short else TURN)
    progress.say("departures ...")
    rows |= _left(repeats)
    progress.say("guesses ...")
    rows |= _guessed(repeats, 64 if short else GUESSED)
    if not peers.installed():
        progress.say("transformers is left out: pip install 'gam_jax[official]'")
        return rows
    progress.say("transformers ...")
    return rows | _beside_generate(repeats, *((PADDED[:4], 16) if short else (PADDED, WRITTEN)))


@dataclasses.dataclass
class Asked:
    """A request, and when its tokens came.

    Attributes:
      prompt: ids.
      tokens: to be written.
      draws: how.
      times: of the start, and of each token.
      ids: that were written.
    """

    prompt: Sequence[int]
    tokens: int
    draws: Draws = GREEDY
    times: list[float] = dataclasses.field(default_factory=list)
    ids: list[int] = dataclasses.field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[1] - self.times[0]


def _model(name: str) -> tuple[LanguageModel, Params]:
    mixer = mixer_of(name, CONTEXT, slots=WIDTH)
    model = LanguageModel(Block(mixer), width=WIDTH, depth=DEPTH, vocab=VOCAB)
    return model, model.init_params(jax.random.key(0))


@contextlib.contextmanager
def _engine(
    model: LanguageModel,
    params: Params,
    rows: int,
    snapshots: int = 0,
    limit: int = CONTEXT,
) -> Iterator[Engine]:
    device = Device(model, params, rows, limit=limit)
    device.compile()
    with _on(device, snapshots) as engine:
        yield engine


@contextlib.contextmanager
def _on(device: Device, snapshots: int = 0, draft: Draft | None = None) -> Iterator[Engine]:
    """An engine on a device; several take turns if each is asked when the others have nothing."""
    engine = Engine(device, Settings(snapshots=snapshots), draft)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(0)


def _ask(engine: Engine, asked: Sequence[Asked]) -> float:
    """Seconds until all have been answered."""
    left, done = len(asked), threading.Semaphore(0)
    begun = time.perf_counter()
    for number, one in enumerate(asked):

        def tell(event: Token | End, one: Asked = one) -> None:
            one.times.append(time.perf_counter())
            if isinstance(event, End):
                done.release()
            else:
                one.ids.append(event.id)

        one.times[:], one.ids[:] = [time.perf_counter()], []
        row = Continuation(ByteTokenizer().stream())
        engine.submit(Request(tuple(one.prompt), one.tokens, one.draws, row, tell, seed=number))
    for _ in range(left):
        done.acquire()
    return time.perf_counter() - begun


def _prompts(lengths: Sequence[int]) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, VOCAB, length).tolist() for length in lengths]


def _turns(calls: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What calls say they took, in turns, each first as often; the first turn does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            seconds = calls[name]()
            if turn:
                found[name].append(seconds)
    return found


def _held(names: Sequence[str]) -> Rows:
    """Bytes of a row, without pages of growing caches and of such a page."""
    rows = Rows()
    for name in names:
        device = Device(*_model(name), 1, limit=CONTEXT)
        state, page = device.row_bytes()
        rows[f"{name}, a row of {DEPTH} blocks of width {WIDTH}"] = {
            "state": Quantity.exactly(state, "B"),
            f"page of {device.sizes.page or 0} tokens": Quantity.exactly(page, "B"),
        }
    return rows


def _full(name: str, sizes: Sequence[int], repeats: int) -> Rows:
    """Tokens a second of servers of several sizes, each of them full, and over that of one row."""
    model, params = _model(name)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], float]] = {}
        for size in sizes:
            engine = stack.enter_context(_engine(model, params, size))
            asked = [Asked(prompt, WRITTEN) for prompt in _prompts([PROMPT] * size)]
            calls[str(size)] = lambda engine=engine, asked=asked: _ask(engine, asked)
        taken = _turns(calls, repeats)
    speeds = {size: [size * WRITTEN / seconds for seconds in taken[str(size)]] for size in sizes}
    one = speeds[sizes[0]]
    return {
        f"{name}, {size} rows": {
            "speed": Quantity.of(own, "tokens/s"),
            "over one row": Quantity.of([x / y for x, y in zip(own, one, strict=True)], ""),
        }
        for size, own in speeds.items()
    }


def _unlike(repeats: int, pasts: Sequence[int]) -> Rows:
    """Attention, a row for each past, beside `decode.write` of as many equal ones."""
    model, params = _model("Attention")
    equal = [512] * len(pasts)
    prompts = np.asarray(_prompts(equal), np.int32)
    fitted = model.for_length(512 + WRITTEN)
    logits, carry = decode.prefill(fitted, params, prompts)

    def write() -> float:
        begun = time.perf_counter()
        for _ in decode.write(
            fitted, params, logits, carry, WRITTEN, jax.random.key(0), temperature=0.0
        ):
            pass
        return time.perf_counter() - begun

    with _engine(model, params, len(pasts)) as engine:
        asked = [Asked(prompt, WRITTEN) for prompt in _prompts(pasts)]

        def serve() -> float:
            """From the first moment at which all rows write."""
            _ask(engine, asked)
            return max(one.times[-1] for one in asked) - max(one.times[1] for one in asked)

        taken = _turns({"serve": serve, "write": write}, repeats)
    count = len(pasts) * WRITTEN
    ratios = [x / y for x, y in zip(taken["serve"], taken["write"], strict=True)]
    return {
        f"Attention, {len(pasts)} rows of {min(pasts)} to {max(pasts)}": {
            "speed": Quantity.of([count / seconds for seconds in taken["serve"]], "tokens/s"),
            "time over decode's equal rows": Quantity.of(ratios, ""),
        }
    }


def _second_turn(repeats: int, tokens: int) -> Rows:
    """Seconds to the first token, of a conversation that is read first, and of its next turn."""
    rows = Rows()
    for name in ("GAM", "Attention"):
        model, params = _model(name)
        with _engine(model, params, 1, snapshots=2**28) as engine:
            found: dict[str, list[float]] = {"cold": [], "second turn": []}
            for turn in range(repeats + 1):
                random = np.random.default_rng(turn)
                prompt = random.integers(1, VOCAB, tokens).tolist()
                cold, next_one = Asked(prompt, 8), Asked([*prompt, *prompt[:16]], 8)
                for kind, one in (("cold", cold), ("second turn", next_one)):
                    _ask(engine, [one])
                    if turn:
                        found[kind].append(one.first)
        ratios = [y / x for x, y in zip(*found.values(), strict=True)]
        rows[f"{name}, first token after {tokens:,}"] = {
            **{kind: Quantity.of(own, "s") for kind, own in found.items()},
            "second over cold": Quantity.of(ratios, ""),
        }
    return rows


def _left(repeats: int) -> Rows:
    """Seconds from a client's leaving to the moment at which its row is free, as counts tell it."""
    model, params = _model("GAM")
    (prompt,) = _prompts([PROMPT])
    found: list[float] = []
    with _engine(model, params, 1) as engine:
        for _ in range(repeats + 1):
            written = threading.Event()
            row = Continuation(ByteTokenizer().stream())
            number = engine.submit(
                Request(tuple(prompt), CONTEXT // 2, GREEDY, row, lambda _: written.set(), seed=0)  # noqa: B023
            )
            written.wait()
            begun = time.perf_counter()
            engine.cancel(number)
            while engine.counts().rows:
                time.sleep(1e-5)
            found.append(time.perf_counter() - begun)
    return {"GAM, a client that leaves": {"row free after": Quantity.of(found[1:], "s")}}


def _guessed(repeats: int, tokens: int) -> Rows:
    """Guesses by n-grams: of greedy text, which repeats itself, and of noise, where none is right.

    Three engines take turns on one device, with its programs and arrays: equal devices are not
    equally fast. One guesses, one does not, and another one that does not tells how far two equal
    ones are apart. Weights are random; how well a trained model's text is guessed is told by
    /metrics.
    """
    model, params = _model("GAM")
    prompt, rows = _prompts([PROMPT])[0], Rows()
    device = Device(model, params, 1, limit=CONTEXT, block=BLOCK)
    device.compile()
    with contextlib.ExitStack() as stack:
        drafts = {"plain": None, "guessing": NgramDraft(), "plain again": None}
        engines = {
            name: stack.enter_context(_on(device, draft=draft)) for name, draft in drafts.items()
        }
        for kind, draws in (("greedy", GREEDY), ("noise", Draws())):
            before = engines["guessing"].counts()
            spent: dict[str, list[float]] = {name: [] for name in engines}

            def ask(name: str, draws: Draws = draws, spent: Any = spent) -> float:
                begun = time.process_time()
                seconds = _ask(engines[name], [Asked(prompt, tokens, draws)])
                spent[name].append(time.process_time() - begun)
                return seconds

            calls = {name: functools.partial(ask, name) for name in engines}
            taken = _turns(calls, MANY * repeats)
            after = engines["guessing"].counts()
            passes = (after.passes - before.passes) / max(after.written - before.written, 1)
            processor = {name: own[1:] for name, own in spent.items()}
            rows[f"GAM, guesses of {kind} text"] = {
                "passes a token": Quantity.exactly(passes),
                "time over plain": _over(taken, "guessing"),
                "processor time over plain": _over(processor, "guessing"),
                "plain again over plain": _over(taken, "plain again"),
                "its processor time": _over(processor, "plain again"),
            }
    return rows


def _over(taken: dict[str, list[float]], name: str) -> Quantity:
    """Of each turn, over the plain one's."""
    pairs = zip(taken["plain"], taken[name], strict=True)
    return Quantity.of([y / x for x, y in pairs], "")


def _beside_generate(
    repeats: int, lengths: Sequence[int], written: int, kind: str = "Llama"
) -> Rows:
    """A model, a row for each prompt, beside `generate` of transformers with the same weights.

    Seconds are from the prompts to the last token. `generate` wants prompts of one length: shorter
    ones are filled up on the left, as its documentation says.
    """
    peers.use_own_cores()
    theirs = peers.transformers_model(kind)
    model, params = peers.converted(theirs)
    asked = [Asked(prompt, written) for prompt in _prompts(lengths)]
    longest = max(lengths)
    tokens, mask = np.zeros((2, len(lengths), longest), int)
    for row, one in enumerate(asked):
        begins = longest - len(one.prompt)
        tokens[row, begins:], mask[row, begins:] = one.prompt, 1
    write = peers.generating(theirs, tokens, written, mask)
    found: list[np.ndarray] = []

    def generate() -> float:
        begun = time.perf_counter()
        found[:] = write()
        return time.perf_counter() - begun

    with _engine(model, params, len(lengths), limit=longest + written) as engine:
        taken = _turns({"serve": lambda: _ask(engine, asked), "generate": generate}, repeats)
    alike = sum(one.ids == ids.tolist() for one, ids in zip(asked, found, strict=True))
    count = len(lengths) * written
    ratios = [y / x for x, y in zip(taken["serve"], taken["generate"], strict=True)]
    return {
        f"{kind}, {len(lengths)} prompts of {min(lengths)} to {longest}, {written} each": {
            "gam_jax": Quantity.of([count / seconds for seconds in taken["serve"]], "tokens/s"),
            "transformers": Quantity.of(
                [count / seconds for seconds in taken["generate"]], "tokens/s"
            ),
            "speed over transformers": Quantity.of(ratios, ""),
            "texts alike": Quantity.exactly(alike),
        }
    }
