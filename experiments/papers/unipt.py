"""A network beside a frozen model (UniPT): what it costs and what it must not do.

Source: arXiv 2308.14316. Its tasks of images and text are not here; the form is that of its text
encoder, made causal for a model of characters.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers, as_printed, closed
from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel, SideTuned
from gam_jax.models.side_tuned import SIDE, side_table
from gam_jax.params import abstract_params, count_params

TOKENS = {SHORT: 16, CPU: 256}
ROWS, WIDTH = 4, 64
DEPTHS = (2, 6)


def model_of(depth: int) -> LanguageModel:
    """A model of characters; its blocks are one loop."""
    return LanguageModel(Block(GAM(slots=64)), width=WIDTH, depth=depth, vocab=256)


def rows(tokens: int) -> dict[str, np.ndarray]:
    """A drawn batch."""
    ids = np.random.default_rng(0).integers(0, 256, (ROWS, tokens + 1)).astype(np.int32)
    weights = np.ones((ROWS, tokens), np.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def frozen(setting: Setting, seed: int) -> Numbers:
    """Gradients of the frozen model, and what an edit of later tokens changes earlier."""
    model, batch = SideTuned(model_of(2)), rows(16)
    params = model.init_params(jax.random.key(seed))
    heard = np.random.default_rng(1).normal(size=(WIDTH // 2, WIDTH)).astype(np.float32)
    side = {**params[SIDE], "w_out": heard}
    params = {**params, SIDE: side}
    slopes = jax.jit(jax.grad(lambda p: model.objective(p, batch)[0]))(params)
    own = [x for name, branch in slopes.items() if name != SIDE for x in jax.tree.leaves(branch)]
    losses = jax.jit(model.losses)
    other = {**batch, "inputs": batch["inputs"].copy()}
    other["inputs"][:, 9:] = (other["inputs"][:, 9:] + 1) % 256
    change = np.abs(np.asarray(losses(params, batch)) - np.asarray(losses(params, other)))
    return {
        "gradient": max(float(np.max(np.abs(x))) for x in own),
        "earlier": float(change[:, :9].max()),
        "later": float(change[:, 9:].max()),
    }


def memory(tuned: bool, setting: Setting, seed: int) -> Numbers:
    """Temporary bytes of a gradient; what a block adds to them, in outputs of a layer."""
    found, tokens = [], TOKENS[setting.scale]
    for depth in DEPTHS:
        inner = model_of(depth)
        model = SideTuned(inner) if tuned else inner
        params: Any = abstract_params(model.table())
        own = {SIDE: params[SIDE]} if tuned else params
        rest = {name: x for name, x in params.items() if name not in own}

        def loss(own: Any, rest: Any, batch: Any, model: Any = model) -> Any:
            return model.objective({**own, **rest}, batch)[0]

        program: Any = jax.jit(jax.grad(loss)).lower(own, rest, rows(tokens)).compile()
        found.append(float(program.memory_analysis().temp_size_in_bytes))
    output = 4.0 * ROWS * tokens * WIDTH
    a_block = (found[1] - found[0]) / (DEPTHS[1] - DEPTHS[0]) / output
    return {"bytes": found[1], "a_block": a_block}


def parameters() -> Numbers:
    """Of the text side: 13 taps of 768, a factor of 2 of 1,024."""
    return {"parameters": float(count_params(side_table(768, 13, 512, 1024)))}


CLAIMS = (
    Claim(
        "The text side has 5,921,281 parameters",
        "printed",
        ("published",),
        "parameters",
        figures=("5921281",),
        source="a recount of the released code",
    ),
    Claim(
        "The frozen model has gradient 0", "at_most", ("side",), "gradient", 0, source="abstract"
    ),
    Claim(
        "Made causal, an edit of later tokens changes nothing before them",
        "at_most",
        ("side",),
        "earlier",
        0,
        source="derived",
    ),
    Claim(
        "A gradient of the side needs less memory than one of the whole model",
        "lower",
        ("memory-side", "memory-full"),
        "bytes",
        source="abstract: memory of 24.4 against 176.8 GB",
    ),
    Claim(
        "A block of the frozen model adds less to it than of one that is trained",
        "lower",
        ("memory-side", "memory-full"),
        "a_block",
        source="section 3.1",
    ),
)

STUDY = Study(
    name="unipt",
    title="A network beside a frozen model",
    source="arXiv 2308.14316",
    page="adapters.md",
    arms={
        "published": closed("the text side as published", parameters),
        "side": Arm("a frozen model", numbers=frozen, exact=True),
        "memory-side": Arm(
            "memory, tuned at the side", numbers=functools.partial(memory, True), exact=True
        ),
        "memory-full": Arm(
            "memory, all trained", numbers=functools.partial(memory, False), exact=True
        ),
    },
    measures={
        "bytes": Measure(f"temporaries, {DEPTHS[1]} blocks", "lower", "B", form=",.0f"),
        "a_block": Measure("a block more, in outputs of a layer", "lower", form=".2f"),
        "parameters": Measure("parameters", form=".0f"),
        "gradient": Measure("largest gradient of what is frozen", "lower", form=".2g"),
        "earlier": Measure("change of losses before an edit", "lower", form=".2g"),
        "later": Measure("and after it", form=".2g"),
    },
    published=as_printed(CLAIMS[:1]),
    claims=CLAIMS,
    notes=("memory is what the processor's compiler tells of a program for one device",),
    absent=(
        Absent("Rsum 537.4 on Flickr30K; VQA, GQA, MSVD, RefCOCO", "sets of images and texts"),
        Absent(
            "All taps beat the last one, and full tuning by little",
            "not asked yet of a model of characters",
        ),
    ),
)
