"""Which rules keep a text's law while guesses are kept, and how many tokens a pass gives.

Source: "Falcon: Faster and Parallel Inference of Large Language Models through Enhanced
Semi-Autoregressive Drafting and Custom-Designed Decoding Tree" (arXiv 2412.12639), whose drafter
is judged by the rules of speculative decoding (arXiv 2211.17192, 2302.01318). Here laws are
enumerated and not sampled: of all guesses that can be drawn, each with its probability.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.drafting import beside, semi_of
from experiments.papers import looking_ahead
from experiments.papers.looking_ahead import (
    AHEAD,
    PROMPT,
    STEPS,
    TEXTS,
    WRITTEN,
    greedy,
    prompts_of,
)
from experiments.study import Arm, Claim, Measure, Setting, Study
from experiments.study.declare import Begins, Numbers
from gam_jax.models import SemiDrafter
from gam_jax.params import Params
from gam_jax.serve import rejection
from gam_jax.training import Experiment
from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh

VOCAB, CANDIDATES, GUESSES = 5, 3, 4
PAIRS = 10
EXACT, WRONG = 1e-12, 1e-3
"""Above the one a rule changes the law; a rule that is wrong changes it by more than the other."""
PAIR, NOISE = 1, 0.4
"""Of the Markov pair: what it is drawn from, and how much of the draft is noise."""

Law = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""p, q -> the distribution of the token that is written."""


def drawn(q: np.ndarray, count: int, replaced: bool) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All guesses for one place that a draft can draw, each with its probability."""
    for guesses in itertools.product(range(len(q)), repeat=count):
        if replaced or len(set(guesses)) == count:
            chance, left = 1.0, q
            for guess in guesses:
                chance *= left[guess]
                left = left if replaced else rejection.without(left, guess)
            yield float(chance), guesses


def law_of_drawn(
    p: np.ndarray, q: np.ndarray, count: int, replaced: bool, judged_replaced: bool
) -> np.ndarray:
    """The law under the rule for drawn guesses, judged as if they were replaced or not."""
    return sum(
        chance * rejection.judge_drawn(p, q, guesses, judged_replaced).law(guesses)
        for chance, guesses in drawn(q, count, replaced)
    )  # type: ignore[return-value]


def law_of_likeliest(p: np.ndarray, q: np.ndarray, certain: bool) -> np.ndarray:
    """The law where the draft's likeliest tokens are the guesses, as certain or as if drawn."""
    guesses = np.argsort(-q)[:CANDIDATES].tolist()
    if certain:
        return rejection.judge_certain(p, guesses).law(guesses)
    return rejection.judge_drawn(p, q, guesses, replaced=False).law(guesses)


def law_of_greedy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A draft's likeliest token, judged by the model's: rule 1 between laws of one token each."""
    likeliest, guess = (np.eye(len(p))[np.argmax(law)] for law in (p, q))
    return law_of_drawn(likeliest, guess, 1, True, True)


RULES: dict[str, tuple[str, Law, bool]] = {
    "chain": ("One guess", lambda p, q: law_of_drawn(p, q, 1, True, True), True),
    "greedy": ("One guess, greedy", law_of_greedy, True),
    "replaced": (
        "Guesses drawn with replacement",
        lambda p, q: law_of_drawn(p, q, CANDIDATES, True, True),
        True,
    ),
    "unreplaced": (
        "Guesses drawn without replacement",
        lambda p, q: law_of_drawn(p, q, CANDIDATES, False, False),
        True,
    ),
    "certain": (
        "The likeliest tokens, as certain",
        lambda p, q: law_of_likeliest(p, q, True),
        True,
    ),
    "likeliest_as_drawn": (
        "The likeliest tokens, as if drawn",
        lambda p, q: law_of_likeliest(p, q, False),
        False,
    ),
    "siblings_kept": (
        "Drawn without replacement, siblings' mass kept",
        lambda p, q: law_of_drawn(p, q, CANDIDATES, False, True),
        False,
    ),
}
"""Title, law, and whether it is to be that of the model."""


def error(name: str, setting: Setting, seed: int) -> Numbers:
    """The largest error of a rule's law over some drawn pairs of distributions."""
    rng, law = np.random.default_rng(0), RULES[name][1]
    worst = 0.0
    for _ in range(PAIRS):
        p, q = rng.dirichlet(np.ones(VOCAB), 2)
        wanted = np.eye(VOCAB)[np.argmax(p)] if name == "greedy" else p
        worst = max(worst, float(np.max(np.abs(law(p, q) - wanted))))
    return {"error": worst}


def markov_pair(seed: int, vocab: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A drawn Markov chain [V, V], and a draft of it that is part noise."""
    rng = np.random.default_rng(seed)
    p, noise = rng.dirichlet(np.ones(vocab), (2, vocab))
    return p, (1 - NOISE) * p + NOISE * noise


def at_rest(moves: np.ndarray) -> np.ndarray:
    """The stationary distribution of a Markov chain."""
    size = len(moves)
    wanted = np.append(np.zeros(size), 1.0)
    found: np.ndarray = np.linalg.lstsq(
        np.vstack([moves.T - np.eye(size), np.ones(size)]), wanted, rcond=None
    )[0]
    return found


def passes(p: np.ndarray, q: np.ndarray, start: int) -> tuple[float, np.ndarray]:
    """Tokens of a pass that begins after a token, on average, and the law of its last token.

    By all chains of guesses, each judged by the rule.
    """
    tokens, last = 0.0, np.zeros(len(p))
    for guesses in itertools.product(range(len(p)), repeat=GUESSES):
        states = [start, *guesses]
        chance = float(np.prod(q[states[:-1], states[1:]]))
        for end, stood, law in rejection.ends_of_chain(p[states], q[states[:-1]], guesses):
            tokens += chance * end * (stood + 1)
            last += chance * end * law
    return tokens, last


def pair(setting: Setting, seed: int) -> Numbers:
    """Tokens a pass of the Markov pair, beside the formula at the chain's mean acceptance."""
    p, q = markov_pair(PAIR)
    found = [passes(p, q, start) for start in range(len(p))]
    begins = at_rest(np.stack([last for _, last in found]))
    rest = at_rest(p)
    tokens = float(begins @ [count for count, _ in found])
    chance = float(rest @ rejection.stands(p, q))
    formula = rejection.tokens_a_pass(chance, GUESSES)
    return {
        "tokens": tokens,
        "formula": formula,
        "apart": abs(tokens - formula),
        "accepted": chance,
    }


def same_draw(setting: Setting, seed: int) -> Numbers:
    """How often the Markov pair draws one token from the same noise, as this project's server."""
    p, q = markov_pair(PAIR)
    chance = float(at_rest(p) @ rejection.same_draw(p, q))
    return {"accepted": chance, "formula": rejection.tokens_a_pass(chance, GUESSES)}


def drafter(glance: float, setting: Setting) -> Experiment:
    """A drafter of the small model, trained with or without glancing."""
    one = semi_of(looking_ahead.base(setting), AHEAD, STEPS[setting.scale][1])
    model = dataclasses.replace(one.model, glance=glance)  # type: ignore[call-arg]
    optimizer = dataclasses.replace(one.optimizer, learning_rate=3e-3)
    return dataclasses.replace(one, model=model, optimizer=optimizer)


def first(
    experiment: Experiment, others: Sequence[Experiment], params: Sequence[Params], seed: int
) -> Params:
    """A new drafter beside the model."""
    return beside(experiment, params[0])


def accepted(run: RunFolder, experiment: Experiment) -> Numbers:
    """What one pass of the drafter gives on texts that the model writes, by its likeliest tokens.

    A chain is the likeliest token of each slot; a tree has the two likeliest of the first two, in
    four paths. Each pass begins where the one before has ended.
    """
    model = experiment.model
    assert isinstance(model, SemiDrafter)
    params = load_params(run, experiment, Layout(make_mesh()))[1]
    target, own = params["target"], params["drafter"]
    tokens = greedy(model.target, target, prompts_of(run, experiment))
    features = jax.jit(lambda x: model.target.hidden(target, x)[0])(jnp.asarray(tokens))
    ends = np.arange(PROMPT, PROMPT + WRITTEN - AHEAD)
    window = ends[:, None] - model.window + np.arange(model.window)

    @jax.jit
    def likeliest(tokens: jax.Array, features: jax.Array) -> jax.Array:
        shape = -1, model.window, model.target.width
        embedded = model.embedded(target, tokens)[:, window].reshape(shape)
        before = features[:, window - 1].reshape(embedded.shape)
        told = model.tell_next(own, embedded, before, jnp.ones(embedded.shape[:2], bool))
        top = jax.lax.top_k(model.target.logits(target, told), 2)[1]
        return top.reshape(len(tokens), len(ends), AHEAD, 2)

    found = np.asarray(likeliest(jnp.asarray(tokens), features))
    wanted = tokens[:, ends[:, None] + np.arange(AHEAD)]
    hits = found == wanted[..., None]
    chain = hits[..., 0]
    tree = np.where(np.arange(AHEAD) < 2, hits.any(-1), chain)
    stood = {name: walked(np.cumprod(x, -1).sum(-1)) for name, x in (("", chain), ("tree", tree))}
    return {"stood": stood[""], "tree": stood["tree"], "gain": stood["tree"] - stood[""]}


def walked(stood: np.ndarray) -> float:
    """Guesses that stand in a pass, on average; [TEXTS, places] if a pass begins there."""
    found = []
    for row in stood.tolist():
        place = 0
        while place < len(row):
            found.append(row[place])
            place += row[place] + 1
    return float(np.mean(found))


STUDY = Study(
    name="falcon_sd",
    title="Guesses that change no law",
    source="arXiv 2412.12639",
    page="drafts.md",
    arms={
        **{
            name: Arm(title, numbers=functools.partial(error, name), exact=True)
            for name, (title, _, _) in RULES.items()
        },
        "pair": Arm("A Markov pair, by rejection", numbers=pair, exact=True),
        "same_draw": Arm("A Markov pair, by the same draw", numbers=same_draw, exact=True),
        "model": Arm("The model", experiment=looking_ahead.base),
        **{
            name: Arm(
                title,
                experiment=functools.partial(drafter, glance),
                begins=Begins(("model",), first),
                also=accepted,
            )
            for name, title, glance in (
                ("csgd", "Drafter, glancing", 0.4),
                ("plain", "Drafter, without", 0.0),
            )
        },
    },
    measures={
        "error": Measure("error of the law", "lower", form=".1e"),
        "tokens": Measure("tokens a pass", "higher", form=".3f"),
        "formula": Measure("by the formula", form=".3f"),
        "apart": Measure("apart", "lower", form=".4f"),
        "accepted": Measure("accepted", "higher", form=".3f"),
        "stood": Measure("guesses that stand", "higher", form=".3f"),
        "tree": Measure("in a tree of four paths", "higher", form=".3f"),
        "gain": Measure("gained by the tree", "higher", form=".3f"),
        "loss": Measure("validation loss", "lower", "nats a token"),
    },
    claims=(
        *(
            Claim(
                f"{title}: the law is {'' if right else 'not '}the model's",
                "at_most" if right else "at_least",
                (name,),
                "error",
                EXACT if right else WRONG,
                source="arXiv 2211.17192 and 2305.09781" if right else "ours",
            )
            for name, (title, _, right) in RULES.items()
        ),
        Claim(
            "Tokens a pass are (1 - a^(g + 1)) / (1 - a), within 0.01",
            "at_most",
            ("pair",),
            "apart",
            0.01,
            source="arXiv 2211.17192",
        ),
        Claim(
            "Rejection accepts more than the same draw, which keeps the text itself",
            "higher",
            ("pair", "same_draw"),
            "accepted",
            source="ours",
        ),
        Claim(
            "A drafter accepts more with CSGD than without",
            "higher",
            ("csgd", "plain"),
            "stood",
            source="arXiv 2412.12639, ablation: 2.13 against 1.64, of Vicuna-7B",
        ),
        Claim(
            "A tree accepts more than a chain",
            "at_least",
            ("csgd", "plain"),
            "gain",
            0.05,
            source="arXiv 2412.12639, ablation: 2.78 against 1.64, of Vicuna-7B",
        ),
    ),
    notes=(
        f"laws of {VOCAB} symbols and {CANDIDATES} guesses for a place, {PAIRS} drawn pairs, by "
        "all guesses that can be drawn; the Markov pair has 6 symbols, "
        f"q = {1 - NOISE:g} p + {NOISE:g} noise and {GUESSES} guesses",
        f"drafters tell {AHEAD} tokens a pass for a GAM of two blocks on the bytes of Python's "
        f"library; guesses that stand are counted on {TEXTS} texts that it writes greedily",
    ),
)
