"""Part of the channels through a mixture (PC-DARTS): what it is, and what it saves.

Source: arXiv 1907.05737. Image cells are not here; the mixture is of mixers in a model of
characters. The genotype rule and the shuffle are held against the official code in the tests.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.bilevel import Bilevel, of_logits, two_levels
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block, LinearMemory, Mixed
from gam_jax.models.language import LanguageModel
from gam_jax.ops import choices
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import abstract_params, init_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh

WIDTH = 64
SHARES = (1, 2, 4)
STEPS = {SHORT: 8, CPU: 300}
MIXERS = (GAM(slots=64), LinearMemory(heads=2, key_width=16, value_width=16), GAM(variant="local"))
LEVELS = Bilevel(rate=6e-3, weight_decay=1e-3, warmup=0.3)


def identities(setting: Setting, seed: int) -> Numbers:
    """Differences to a plain mixture, to a permutation matrix, and of what passes by."""
    layer = Mixed((MLP(hidden=8), MLP(hidden=16)), width=12)
    params = init_params(layer.table(), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 12))
    w = np.asarray(jax.nn.softmax(params[choices.ARCHITECTURE]["logits"]))
    outs = [np.asarray(o(params["options"][n], x)[0]) for n, o in layer.named.items()]
    plain = np.max(np.abs(np.asarray(layer(params, x)[0]) - w[0] * outs[0] - w[1] * outs[1]))
    matrix = np.zeros((12, 12))
    for r in range(4):
        for q in range(3):
            matrix[r * 3 + q, q * 4 + r] = 1
    shuffle = np.max(np.abs(np.asarray(choices.shuffled(x, 4)) - np.asarray(x) @ matrix))
    part = Mixed(layer.options, share=4, width=48)
    wide = jnp.concatenate([x, x, x, x], axis=-1)

    def passed(x: Array) -> Array:
        y = part(params, x)[0]
        return y[..., np.argsort(choices.shuffle_of(48, 4))][..., 12:]

    slope = jax.grad(lambda x: jnp.sum(passed(x) * wide[..., 12:]))(wide)
    by = float(jnp.max(jnp.abs(slope[..., 12:] - wide[..., 12:])))
    return {"plain": float(plain), "shuffle": float(shuffle), "passed": by}


def memory(share: int, setting: Setting, seed: int) -> Numbers:
    """Temporary bytes of the gradients of such a layer, and as a share of those of K = 1.

    All channels go in, and what passes by is held and dealt out with the rest.
    """
    tokens = 64 if setting.scale == SHORT else 512

    def temporaries(share: int) -> float:
        options = tuple(MLP(expansion=4, activation=a) for a in ("gelu", "relu", "silu", "relu2"))
        inside = Mixed(options, share=share, width=4 * WIDTH)

        def loss(params: Any, x: Array) -> Array:
            return jnp.sum(jnp.sin(inside(params, x)[0]))

        x = jax.ShapeDtypeStruct((4, tokens, 4 * WIDTH), jnp.float32)
        params = abstract_params(inside.table())
        logits = {n: p for n, p in params.items() if n == choices.ARCHITECTURE}

        def by_logits(logits: Any, rest: Any, x: Array) -> Any:
            return jax.grad(lambda own: loss({**rest, **own}, x))(logits)

        program: Any = jax.jit(by_logits).lower(logits, params, x).compile()
        return float(program.memory_analysis().temp_size_in_bytes)

    own = temporaries(share)
    return {"bytes": own, "of_whole": own / temporaries(1)}


def model_of(share: int) -> LanguageModel:
    """Two blocks, in each a mixture of three mixers on 1 / K of the channels."""
    return LanguageModel(Block(Mixed(MIXERS, share=share)), width=WIDTH, depth=2, vocab=256)


def warm_up(setting: Setting, seed: int) -> Numbers:
    """Logits that differ by any bit, before the first step of theirs and after it."""
    model, steps = model_of(4), 4
    levels = Bilevel(rate=6e-4, warmup=2)
    optimizer = two_levels(OptimizerConfig(warmup=0), levels, steps, model.table())
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    step = make_train_step(model, optimizer, layout, 2)
    state = init_state(model, optimizer, layout, seed)

    def logits(params: Any) -> np.ndarray:
        return np.asarray(jax.tree.leaves(of_logits(params))[0])

    first = logits(state.params)
    ids = np.random.default_rng(0).integers(0, 256, (2, 2, 17)).astype(np.int32)
    weights = np.ones((2, 2, 16), np.float32)
    batch = {"inputs": ids[..., :-1], "targets": ids[..., 1:], "weights": weights}
    changed = []
    for _ in range(3):
        state, _ = step(state, batch)
        changed.append(int(np.sum(first != logits(state.params))))
    return {"early": float(changed[1]), "late": float(changed[2])}


def experiment(share: int, setting: Setting) -> Experiment:
    """A search: logits apart, frozen for the first 0.3 of the steps."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=model_of(share),
        data=Text(name="python_stdlib", tokenizer="bytes", window=128),
        train=TrainConfig(
            steps=steps,
            batch=16,
            accumulate=2,
            bilevel=LEVELS,
            validate_every=steps,
            validation_tokens=16_384,
            log_every=steps,
        ),
        optimizer=OptimizerConfig(3e-3, warmup=max(1, steps // 20)),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


STUDY = Study(
    name="pc-darts",
    title="Part of the channels through a mixture",
    source="arXiv 1907.05737",
    page="mixed.md",
    arms={
        "identities": Arm("identities", numbers=identities, exact=True),
        "warm-up": Arm("steps of the weights alone", numbers=warm_up, exact=True),
        **{
            f"memory-{k}": Arm(
                f"a mixture of 1 / {k} of the channels",
                numbers=functools.partial(memory, k),
                exact=True,
            )
            for k in SHARES
        },
        "search-1": Arm("a search, all channels", experiment=functools.partial(experiment, 1)),
        "search-4": Arm("a search, 1 / 4 of them", experiment=functools.partial(experiment, 4)),
    },
    measures={
        "loss": Measure("validation loss of the mixture", "lower", "nats a token"),
        "parameters": Measure("parameters", form=",.0f"),
        "bytes": Measure("temporaries of the layer", "lower", "B", form=",.0f"),
        "of_whole": Measure("as a share", "lower", form=".3f"),
        "plain": Measure("difference to a mixed cell", "lower", form=".2g"),
        "shuffle": Measure("to a permutation", "lower", form=".2g"),
        "passed": Measure("of the gradient of what passes by", "lower", form=".2g"),
        "early": Measure("logits that moved in the warm-up", form=".0f"),
        "late": Measure("and a step later", form=".0f"),
    },
    claims=(
        Claim(
            "With K = 1 it is a mixed cell",
            "at_most",
            ("identities",),
            "plain",
            1e-5,
            source="section 3.2",
        ),
        Claim(
            "The shuffle is the permutation of q K + r",
            "at_most",
            ("identities",),
            "shuffle",
            1e-6,
            source="the released code",
        ),
        Claim(
            "What passes by has the identity for its gradient",
            "at_most",
            ("identities",),
            "passed",
            1e-6,
            source="section 3.2",
        ),
        Claim(
            "A mixture of 1 / 2 of the channels needs about half of the memory",
            "near",
            ("memory-2",),
            "of_whole",
            0.5,
            0.05,
            source="section 3.2: K-fold less",
        ),
        Claim(
            "that of 1 / 4 about a quarter",
            "near",
            ("memory-4",),
            "of_whole",
            0.25,
            0.05,
            source="section 3.2",
        ),
        Claim(
            "Logits stay as they are in the warm-up, bit for bit",
            "at_most",
            ("warm-up",),
            "early",
            0,
            source="section 4.1: frozen for 15 epochs",
        ),
        Claim("and move after it", "at_least", ("warm-up",), "late", 1, source="section 4.1"),
        Claim(
            "A search on part of the channels ends no worse",
            "lower",
            ("search-4", "search-1"),
            "loss",
            source="Table 4: partial channels lower the error of the found net; here of the "
            "mixture itself",
        ),
    ),
    notes=(
        "gradients are by logits alone, weights being frozen in that step",
        "the two searches take as many steps; the narrower mixture has fewer parameters",
    ),
    absent=(
        Absent(
            "2.57 % error on CIFAR-10 in 0.1 GPU days, 24.2 % on ImageNet",
            "cells of convolutions on images",
        ),
    ),
)
