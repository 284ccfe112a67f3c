"""Serving without padding, and calls that all processes make in one order (EnergonAI).

Source: "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models" (arXiv
2209.02341); its mechanisms as the makers' code has them. Operations are counted in the programs
that this project's server runs, times the calls that it makes of them.
"""

from __future__ import annotations

import collections
import functools
import random
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.continuations import Continuation
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.layers import MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.serve.device import Device
from gam_jax.serve.executor import Blocks, Draws, Executor, Sizes, Work
from gam_jax.serve.programs import SCORES
from gam_jax.serve.request import Request
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text
from gam_jax.serve.tickets import Ticketed, Tickets, follow
from sharding.links import Link
from sharding.products import product_flops

VOCAB, DEPTH, EXPANSION = 256, 2, 4
LONGEST, PAGE = 64, 16
"""Tokens of a prompt at most; lengths are drawn evenly from 1 to that."""
PROMPTS = {SHORT: 4, CPU: 16}
"""Scale -> how many."""
ROWS = 8
NARROW, WIDE = 64, 512
LOOPS = [f"turns_{count}" for count in range(1, 1025)]
"""Scopes of the loops over keys: products in them are those of attention."""
BATCHES, THREADS, RANKS = 1000, 8, 4


def model_of(width: int) -> LanguageModel:
    """Attention of one head for 64 channels, and a feed-forward of 4 D hidden units."""
    block = Block(Attention(heads=width // 64), MLP(expansion=EXPANSION))
    return LanguageModel(block, width, depth=DEPTH, vocab=VOCAB)


def model_params(model: LanguageModel) -> Any:
    """Drawn."""
    return model.init_params(jax.random.key(0))


@functools.cache
def lengths_of(scale: str) -> tuple[int, ...]:
    """Of the prompts."""
    return tuple(np.random.default_rng(0).integers(1, LONGEST + 1, PROMPTS[scale]).tolist())


def token_flops(params: Any) -> int:
    """Operations that blocks spend on one token, but for scores: two for each weight of a product.

    For a feed-forward of 4 D without gates that is the 24 D^2 a layer of the paper's kind of model.
    """
    matrices = [x for x in jax.tree.leaves(params["blocks"]) if x.ndim > 2]
    return 2 * sum(x.size for x in matrices)


def of_tokens(program: Callable[..., Any], *args: Any) -> int:
    """Operations in a program's products, but for those of attention."""
    return product_flops(jax.make_jaxpr(program)(*args).jaxpr, LOOPS)[""]


class Counted:
    """A device that counts how often each of its programs is called; `of` are its operations.

    Args:
      device: compiled.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.calls: collections.Counter[tuple[str, int]] = collections.Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def read(self, blocks: Blocks) -> Any:
        """Counts."""
        self.calls["read", blocks.tokens.shape[1]] += 1
        return self._device.read(blocks)

    def step(self, work: Work) -> Any:
        """Counts."""
        self.calls["step", work.tokens.shape[1]] += 1
        return self._device.step(work)


def served(setting: Setting, rows: int) -> Numbers:
    """All prompts through a server, one token written to each."""
    model = model_of(NARROW)
    params = model_params(model)
    sizes = {"limit": LONGEST + 1, "page": PAGE}
    device = Device(model, params, rows, **sizes)  # type: ignore[arg-type]
    device.compile()
    counted = Counted(device)
    service = Service(counted, Settings(prefill_budget=LONGEST, snapshots=0))  # type: ignore[arg-type]
    rng, lengths = np.random.default_rng(1), lengths_of(setting.scale)
    for number, length in enumerate(lengths):
        prompt = tuple(rng.integers(0, VOCAB, length).tolist())
        row = Continuation(ByteTokenizer().stream())
        request = Request(prompt, 1, Draws(temperature=0), row, lambda event: None, seed=number)
        service.queue.push(str(number), Text(number, request))
    while service.busy:
        service.turn()
    done = sum(
        device.flops(f"{kind} {width}", [*LOOPS, SCORES])[""] * times
        for (kind, width), times in counted.calls.items()
    )
    head = 2 * NARROW * VOCAB
    asked = sum(lengths) * token_flops(params) + len(lengths) * head
    return {"fed": service.counts().read, "work": done / 1e6, "over": done / asked}


def whole(setting: Setting, packed: bool) -> Numbers:
    """All prompts in one program: filled up to [B, T], or one behind the other, [1, N]."""
    model = model_of(NARROW)
    params = model_params(model)
    program, args = reading(model, params, lengths_of(setting.scale), packed)
    done, tokens = of_tokens(program, *args), sum(lengths_of(setting.scale))
    asked = tokens * token_flops(params)
    return {"fed": args[1].size, "work": done / 1e6, "over": done / asked}


def reading(
    model: LanguageModel, params: Any, lengths: Sequence[int], packed: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program that reads prompts without a head, and its arguments."""
    starts = None
    shape = (1, sum(lengths)) if packed else (len(lengths), LONGEST)
    if packed:
        begins = np.cumsum([0, *lengths[:-1]])
        starts = jnp.zeros(shape, bool).at[0, begins].set(True)

    def program(params: Any, tokens: Any, starts: Any) -> Any:
        return model.hidden(params, tokens, starts=starts)[0]

    return program, (params, jnp.zeros(shape, jnp.int32), starts)


def read_whole(setting: Setting, width: int, packed: bool) -> Mapping[str, Callable[[], Any]]:
    """A call that reads all prompts at once."""
    model = model_of(width)
    params = model_params(model)
    program, args = reading(model, params, lengths_of(setting.scale), packed)
    compiled = jax.jit(program).lower(*args).compile()
    return {"seconds": functools.partial(compiled, *args)}


def arrivals(order: str) -> Numbers:
    """Batches of several ranks, whose calls arrive in any order at each, as numbered calls do.

    A rank's threads bring one message each. In order of arrival, a rank runs what a thread brings.
    By tickets a thread that has brought a message runs the one whose turn it is. Of a batch that
    is run, its place on the first rank must be that on all. The engine's first generation took the
    lengths of the message that its thread had brought, and all else of the one whose turn it was.
    """
    draw = random.Random(0)
    ran: list[list[int]] = []
    lengths_apart = 0
    for _ in range(RANKS):
        # No more calls are under way at once than there are threads.
        waiting, coming, done = list(range(THREADS)), THREADS, []
        box: set[int] = set()
        brought: list[int] = []
        while waiting or box:
            if waiting:
                message = waiting.pop(draw.randrange(len(waiting)))
                if coming < BATCHES:
                    waiting.append(coming)
                    coming += 1
                if order == "arrival":
                    done.append(message)
                    continue
                box.add(message)
                brought.append(message)
            while len(done) in box:
                own = brought.pop(0)
                lengths_apart += own != len(done)
                box.remove(len(done))
                done.append(len(done))
        ran.append(done)
    apart = sum(len(set(place)) > 1 for place in zip(*ran, strict=True))
    return {"apart": apart, "lengths": lengths_apart / RANKS}


class Written:
    """An executor that writes down what it is called with, and computes nothing."""

    sizes = Sizes(1, (1,), 1, 0, 1, 0, 0, 2)
    fingerprint = "written"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def copy_page(self, source: int, target: int) -> None:
        """Is told a batch's number."""
        self.calls.append(source)


def linked() -> Numbers:
    """The same number of calls from as many threads, over a connection of this project's server."""
    one, other = socket.socketpair()
    with one, other:
        first, second = Written(), Written()
        devices: list[Executor] = [second]  # type: ignore[list-item]
        follower = threading.Thread(target=follow, args=(lambda: devices, Link(other, 0)))
        follower.start()
        tickets = Tickets([Link(one, 1)])
        tickets.meet([first])  # type: ignore[list-item]
        device = Ticketed(first, tickets)  # type: ignore[arg-type]

        def call(thread: int) -> None:
            for batch in range(thread, BATCHES, THREADS):
                device.copy_page(batch, 0)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tickets.end()
        follower.join()
    apart = sum(x != y for x, y in zip(first.calls, second.calls, strict=True))
    return {"apart": apart, "run": len(second.calls)}


def _arm(title: str, numbers: Callable[..., Numbers], *args: Any) -> Arm:
    return Arm(title, numbers=lambda setting, seed: numbers(setting, *args), exact=True)


def _timed(title: str, width: int, packed: bool) -> Arm:
    return Arm(title, timed=lambda setting: read_whole(setting, width, packed))


ARMS = {
    "padded": _arm("One batch, filled up", whole, False),
    "packed": _arm("One behind the other, as documents", whole, True),
    "served": _arm("A server of one row", served, 1),
    "served-8": _arm(f"A server of {ROWS} rows", served, ROWS),
    "padded-narrow": _timed(f"filled up, width {NARROW}", NARROW, False),
    "packed-narrow": _timed(f"packed, width {NARROW}", NARROW, True),
    "padded-wide": _timed(f"filled up, width {WIDE}", WIDE, False),
    "packed-wide": _timed(f"packed, width {WIDE}", WIDE, True),
    "arrival": Arm("In order of arrival", numbers=lambda s, n: arrivals("arrival"), exact=True),
    "tickets": Arm("By tickets", numbers=lambda s, n: arrivals("tickets"), exact=True),
    "linked": Arm("This project's tickets", numbers=lambda s, n: linked(), exact=True),
}
NO_PADDING = ("packed", "served")

STUDY = Study(
    name="energonai",
    title="No padding, and one order of calls",
    source="arXiv 2209.02341",
    page="serving.md",
    arms=ARMS,
    measures={
        "over": Measure("operations over those of the tokens asked", "lower", form=".4f"),
        "work": Measure("operations", "lower", "M", ",.1f"),
        "fed": Measure("tokens fed", "lower", form=",.0f"),
        "apart": Measure("batches whose place is not the same on all", "lower", form=",.0f"),
        "lengths": Measure("batches with another's lengths", "lower", form=",.0f"),
        "run": Measure("batches run", form=",.0f"),
        "seconds": Measure("time here", "lower", "s", ".5f"),
    },
    claims=(
        Claim(
            "Without padding operations are those of the tokens asked, to the last one",
            "near",
            NO_PADDING,
            "over",
            1.0,
            source="the paper's DRCE",
        ),
        Claim(
            "Filled up, they are more",
            "at_least",
            ("padded",),
            "over",
            1.1,
            source="the paper's DRCE",
        ),
        Claim(
            "Tokens fed are fewer than in a batch that is filled up",
            "lower",
            ("served", "padded"),
            "fed",
            source="the paper's DRCE",
        ),
        *(
            Claim(
                f"Packed is faster at width {width}",
                "lower",
                (f"packed-{name}", f"padded-{name}"),
                "seconds",
                source="the paper's DRCE",
            )
            for name, width in (("narrow", NARROW), ("wide", WIDE))
        ),
        Claim(
            "Calls that arrive in any order are run in one, by tickets",
            "near",
            ("tickets", "linked"),
            "apart",
            source="the paper's engine",
        ),
        Claim(
            "Without tickets hardly a batch has one place on all ranks",
            "at_least",
            ("arrival",),
            "apart",
            BATCHES / 2,
            source="the paper's engine",
        ),
        Claim(
            "The makers' first engine gives batches the lengths of others",
            "at_least",
            ("tickets",),
            "lengths",
            1.0,
            source="the makers' code",
        ),
    ),
    notes=(
        f"prompts of 1 to {LONGEST} tokens, {PROMPTS[CPU]} of them, {DEPTH} blocks of width "
        f"{NARROW}; a server writes one token to each, and the step that draws reads a prompt's "
        "last token. Operations are those of a program's products, counted before it is compiled, "
        "times its calls; scores and mixtures of attention are left out",
        f"a server's step is of all its rows: of {ROWS}, those that do not write cost as much",
        f"{BATCHES} batches, {RANKS} ranks, {THREADS} calls under way at once",
    ),
    absent=(
        Absent(
            "37 % less latency than FasterTransformer with tensor parallelism",
            "measured on A100 with models of 10 to 100 billion parameters",
        ),
        Absent(
            "10 % better scalability by stages that do not wait for each other",
            "rows are not served through stages here",
        ),
        Absent(
            "Larger models by parking layers in a neighbour's memory",
            "parameters stay where they are here",
        ),
    ),
)
