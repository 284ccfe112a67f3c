"""Tokens that a model tells several at once, and what it costs to believe them unseen.

Source: "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs"
(arXiv 2405.15208). It has no published code, and its text was read in its abstract and in others'
words alone: the loop here is ours. Published, and lossy: what placeholders tell is written if it is
likely enough. Checked: it is written if the model, given the tokens before, writes it too.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.drafting import units_of
from experiments.papers.looking_ahead import (
    AHEAD,
    PROMPT,
    STEPS,
    TEXTS,
    WRITTEN,
    base,
    greedy,
    prompts_of,
)
from experiments.study import Arm, Claim, Measure, Setting, Study
from experiments.study.declare import Absent, Begins, Numbers
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models import LanguageModel, LexicalUnits
from gam_jax.models.units import as_units, mark_units
from gam_jax.params import Params
from gam_jax.training import Experiment
from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh

BARS = (0.3, 0.6, 0.9)
"""Probabilities from which on a placeholder's token is written."""
FEW = 6
"""Texts that are written in each way."""
NEVER = 1.1
"""A bar that no token reaches."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A text, and how it came about.

    Attributes:
      tokens: of the prompt and what was written.
      spans: tokens that each pass has written.
      fed: tokens that all passes were fed, placeholders too.
    """

    tokens: tuple[int, ...]
    spans: tuple[int, ...]
    fed: int


@functools.partial(jax.jit, static_argnums=0)
def _read(model: LexicalUnits, params: Params, tokens: Any, carry: Any) -> Any:
    """The likeliest tokens after each token and at k - 1 placeholders behind, how likely; the carry
    before the placeholders."""
    hidden, after = model.hidden(params, tokens, carry)
    if model.unit > 1:
        hidden = jnp.concatenate([hidden, model.ahead(params, after, 1)], axis=1)
    law = jax.nn.softmax(model.logits(params, hidden)[0])
    return jnp.argmax(law, axis=-1), jnp.max(law, axis=-1), after


def write(
    model: LexicalUnits,
    params: Params,
    prompt: Sequence[int],
    count: int,
    bar: float,
    checked: bool,
) -> Written:
    """Writes the likeliest tokens, several in a pass.

    Args:
      model: trained to look ahead, or not.
      params: its parameters.
      prompt: at least two tokens.
      count: tokens to write.
      bar: the probability from which on a placeholder's token counts; none does after one that
        repeats the token before it.
      checked: whether it is a guess for the next pass; else it is written as it is.
    """
    text, guesses, spans, fed = list(prompt), [], [], 0
    carry = _read(model, params, jnp.asarray([text[:-1]]), model.carry(1))[2]
    read = len(text) - 1
    while len(text) < len(prompt) + count:
        known = text[read:]
        block = [*known, *guesses]
        found, likely, after = _read(model, params, jnp.asarray([block]), carry)
        tokens, sure = np.asarray(found).tolist(), np.asarray(likely)
        fed += len(tokens)
        stood = 0
        while stood < len(guesses) and tokens[len(known) - 1 + stood] == guesses[stood]:
            stood += 1
        new = tokens[len(known) - 1 : len(known) + stood]
        whole, ahead = stood == len(guesses), []
        if whole:
            carry, read = after, read + len(block)
            for token, chance in zip(tokens[len(block) :], sure[len(block) :], strict=True):
                if chance < bar or token == [*new, *ahead][-1]:
                    break
                ahead.append(token)
        guesses = ahead if checked else []
        new = new if checked else [*new, *ahead]
        text += new
        spans.append(len(new))
    return Written(tuple(text), tuple(spans), fed)


def looked(run: RunFolder, experiment: Experiment) -> Numbers:
    """Tokens a pass, and how much of the text is that of the model, on texts of the validation."""
    params = load_params(run, experiment, Layout(make_mesh()))[1]
    own = experiment.model
    assert isinstance(own, LanguageModel)
    prompts = prompts_of(run, experiment)
    if isinstance(own, LexicalUnits):
        model = own
    else:  # placeholders that were never trained
        model = as_units(own, unit=AHEAD)
        params = {**model.init_params(jax.random.key(experiment.train.seed)), **params}
    wanted = greedy(model, params, prompts)
    probabilities = _probabilities(model, params, prompts)
    lengths = np.concatenate([mark_units(row, model.sure, AHEAD) for row in probabilities])
    found = {"single": float(np.mean(lengths == 1)), "unit": float(np.mean(lengths))}
    for bar in BARS:
        ways = {"": False, "checked_": True}
        for way, checked in ways.items():
            texts = [
                write(model, params, row.tolist(), WRITTEN, bar, checked) for row in prompts[:FEW]
            ]
            passes = sum(len(one.spans) for one in texts)
            found[f"{way}tokens_{bar:g}"] = sum(sum(one.spans) for one in texts) / passes
            same = [_same(one.tokens, row) for one, row in zip(texts, wanted, strict=False)]
            found[f"{way}same_{bar:g}"] = float(np.mean(same))
    return found


def _same(tokens: Sequence[int], wanted: np.ndarray) -> float:
    """The part of what was written before the first other token."""
    alike = np.asarray(tokens[: len(wanted)])[PROMPT:] == wanted[PROMPT:]
    return float(np.mean(np.cumprod(alike)))


def _probabilities(model: LexicalUnits, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Of each token but the first, given those before."""
    law = jax.nn.softmax(jax.jit(lambda x: model(params, x)[0])(jnp.asarray(tokens[:, :-1])))
    return np.take_along_axis(np.asarray(law), tokens[:, 1:, None], axis=-1)[..., 0]


def trained(setting: Setting) -> Experiment:
    """The small model, trained on to look ahead."""
    return units_of(base(setting), AHEAD, STEPS[setting.scale][1])


def identities(setting: Setting, seed: int) -> Numbers:
    """On a model that was never trained, what must be exactly so: errors, which are to be 0."""
    model = as_units(LanguageModel(Block(GAM(slots=4), MLP(expansion=1)), 8, 1, vocab=7), unit=3)
    params = model.init_params(jax.random.key(3))
    prompt, count = [1, 5, 2, 2], 12
    plain = write(model, params, prompt, count, NEVER, checked=False)
    errors = collections.Counter(greedy=len(plain.spans) != count)
    text = list(prompt)
    for _ in range(count):
        logits = model(params, jnp.asarray([[*text, *[0] * (len(prompt) + count - len(text))]]))[0]
        text.append(int(jnp.argmax(logits[0, len(text) - 1])))
    errors["greedy"] += tuple(text) != plain.tokens
    for bar in (0.0, 0.2, NEVER):
        for checked in (False, True):
            one = write(model, params, prompt, count, bar, checked)
            errors["text"] += checked and one.tokens[: len(text)] != tuple(text)
            errors["histogram"] += sum(one.spans) != len(one.tokens) - len(prompt)
            errors["passes"] += len(one.spans) > count or (bar > 1 and len(one.spans) != count)
            if not checked:  # a pass feeds what the last one wrote, and k - 1 placeholders
                fed = sum(span + model.unit - 1 for span in (1, *one.spans[:-1]))
                errors["fed"] += one.fed != fed
    single = write(dataclasses.replace(model, unit=1), params, prompt, count, 0.0, checked=False)
    errors["greedy"] += single.tokens != plain.tokens
    return {"errors": float(sum(errors.values()))}


def _measures() -> dict[str, Measure]:
    found = {
        "loss": Measure("validation loss", "lower", "nats a token"),
        "errors": Measure("identities that fail", "lower", form=".0f"),
        "unit": Measure("tokens of a unit", form=".2f"),
        "single": Measure("units of one token", form=".3f"),
    }
    for bar in BARS:
        found[f"tokens_{bar:g}"] = Measure(f"tokens a pass from {bar:g}", "higher", form=".3f")
        found[f"same_{bar:g}"] = Measure(f"of the model's text from {bar:g}", "higher", form=".3f")
        found[f"checked_tokens_{bar:g}"] = Measure(
            f"tokens a pass, checked, from {bar:g}", "higher", form=".3f"
        )
        found[f"checked_same_{bar:g}"] = Measure(
            f"of the model's text, checked, from {bar:g}", "higher", form=".3f"
        )
    return found


STUDY = Study(
    name="lexical_unit_decoding",
    title="Several tokens at once, believed or checked",
    source="arXiv 2405.15208",
    page="drafts.md",
    arms={
        "identities": Arm("Never trained", numbers=identities, exact=True),
        "model": Arm("The model", experiment=base, also=looked),
        "units": Arm("Trained on", experiment=trained, begins=Begins(("model",)), also=looked),
    },
    measures=_measures(),
    claims=(
        Claim(
            "Greedy text above a bar of 1, with k = 1 and wherever it is checked; spans add up",
            "at_most",
            ("identities",),
            "errors",
            0,
            source="ours",
        ),
        Claim(
            "A third faster: 1.33 tokens a pass at least, believed from 0.6",
            "at_least",
            ("units",),
            "tokens_0.6",
            1.33,
            source="abstract: 33 %",
        ),
        Claim(
            "Placeholders that are not trained tell less",
            "higher",
            ("units", "model"),
            "tokens_0.3",
            source="ours",
        ),
        Claim(
            "Believed from 0.3, less than 0.97 of the model's text is left",
            "at_most",
            ("units",),
            "same_0.3",
            0.97,
            source="abstract: code loses 3 %",
        ),
        Claim(
            "Checked, all of it is",
            "at_least",
            ("units",),
            "checked_same_0.3",
            1.0,
            source="ours",
        ),
        Claim(
            "Checked, a pass still gives more than one token",
            "at_least",
            ("units",),
            "checked_tokens_0.6",
            1.1,
            source="ours",
        ),
    ),
    notes=(
        f"a GAM of two blocks on the bytes of Python's library; {FEW} of {TEXTS} texts of "
        f"{WRITTEN} bytes, always the likeliest; units of at most {AHEAD}",
        "'of the model's text' is the part before the first byte that differs from it",
    ),
    absent=(
        Absent("Quality of generated text and code", "the tables could not be read"),
        Absent("67 to 75 % of spans have one token", "of LLaMA-13B; ours are bytes"),
    ),
)
