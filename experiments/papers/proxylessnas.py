"""One path at a time (ProxylessNAS): gates, memory, and nets for the machine that they run on.

Source: arXiv 1812.00332. Its spaces of mobile convolutions are not here: what is asked is what the
method does to gradients and memory, and whether an expected cost finds another net for another
machine. Options are feed-forward layers of a model of characters.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.bilevel import of_logits, without_logits
from gam_jax.data.text import Text
from gam_jax.extract import extraction
from gam_jax.layers import GAM, MLP, Block, Layer, Mixed, ProductMemory, inherit
from gam_jax.models.language import LanguageModel
from gam_jax.ops import choices
from gam_jax.params import abstract_params, init_params
from gam_jax.planning.profiles import profile

WIDTH, MOST = 64, 8
"""Channels, and options, of what is measured of one layer."""
SIZED = 1024
"""Channels at which an option's cost is told."""
MACHINES = {"t4": "float32", "h200": "bfloat16"}
"""Whose seconds are expected, and in which arithmetic: 25 and 206 operations a byte."""
FFNS = (MLP(expansion=8), ProductMemory(side=64, keys=32))
"""Many products on few bytes, and few products on many bytes."""
STEPS = {SHORT: 4, CPU: 300}
ROWS, TOKENS = 8, 64
RATE = 0.02
"""Adam's, of logits; that of weights is 3e-3."""
PRICE = 1.0
"""Nats for an expected cost as large as that of the dearest net."""


def _mixed(count: int, how: str, width: int = WIDTH) -> Mixed:
    return Mixed(tuple(MLP(hidden=4 * width + i) for i in range(count)), how, width=width)


def gates(setting: Setting, seed: int) -> Numbers:
    """Gradients by logits beside differentiation of all options, in float64, for 2 to 6 options."""
    off, total = 0.0, 0.0
    with jax.enable_x64(True):
        for count in range(2, 7):
            layer = _mixed(count, "one", 8)
            params = jax.tree.map(
                lambda p: np.asarray(p, np.float64), init_params(layer.table(), jax.random.key(1))
            )
            x = jax.random.normal(jax.random.key(2), (2, 3, 8), jnp.float64)
            key = jax.random.key(count)

            def found(p: Any, layer: Any = layer, x: Any = x, key: Any = key) -> Array:
                return jnp.sum(jnp.sin(layer(p, x, key=key)[0]))

            def full(g: Array, layer: Any = layer, x: Any = x, p: Any = params) -> Array:
                outs = [o(p["options"][n], x)[0] for n, o in layer.named.items()]
                return jnp.sum(jnp.sin(sum(a * y for a, y in zip(g, outs, strict=True))))

            logits = params[choices.ARCHITECTURE]["logits"]
            drawn = choices.draw(jnp.asarray(logits), jax.random.split(key)[0], count)
            by_gates = jax.jit(jax.grad(full))(jax.lax.stop_gradient(drawn.gates))
            p = jax.nn.softmax(jnp.asarray(logits))
            wanted = p * (by_gates - p @ by_gates)
            own = jax.jit(jax.grad(found))(params)[choices.ARCHITECTURE]["logits"]
            off = max(off, float(jnp.max(jnp.abs(own - wanted)) / jnp.max(jnp.abs(wanted))))
            total = max(total, float(abs(jnp.sum(own)) / jnp.max(jnp.abs(own))))
    return {"difference": off, "total": total}


def others(setting: Setting, seed: int) -> Numbers:
    """Largest change of another option's probability after a step of two, in float64."""
    with jax.enable_x64(True):
        before = jnp.asarray(np.random.default_rng(0).normal(size=(100, 7)))
        after = before.at[:, [2, 5]].add(jnp.asarray([0.3, -0.8]))
        kept = choices.others_kept(before, after)
        change = jax.nn.softmax(kept) - jax.nn.softmax(before)
        return {"change": float(jnp.max(jnp.abs(jnp.delete(change, jnp.asarray([2, 5]), axis=1))))}


def expected(setting: Setting, seed: int) -> Numbers:
    """The gradient of an expected cost beside p_i (F_i - E F), in float64."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        logits, costs = random.normal(size=(4, 6)), random.uniform(1, 9, (4, 6))
        found = jax.grad(choices.expected_cost)(jnp.asarray(logits), costs)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        wanted = p * (costs - (p * costs).sum(1, keepdims=True))
        sure = choices.expected_cost(jnp.asarray([[800.0, 0.0, -5.0]]), np.array([[2.5, 7.0, 1.0]]))
        return {
            "difference": float(np.max(np.abs(found - wanted))),
            "one_hot": float(abs(sure - 2.5)),
        }


def memory(how: str, setting: Setting, seed: int) -> Numbers:
    """Temporary bytes of a step's gradient by logits alone, with 2 options and with 8."""
    found = {}
    tokens = 64 if setting.scale == SHORT else 1024
    for count in (2, MOST):
        layer = _mixed(count, how)

        def loss(logits: Array, params: Any, x: Array, key: Array, layer: Any = layer) -> Array:
            own = {**params, choices.ARCHITECTURE: {"logits": logits}}
            return jnp.sum(jnp.sin(layer(own, x, key=key)[0]))

        params = abstract_params(layer.table())
        x = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)
        logits = params[choices.ARCHITECTURE]["logits"]
        key = jax.eval_shape(lambda: jax.random.key(0))
        program: Any = jax.jit(jax.grad(loss)).lower(logits, params, x, key).compile()
        found[f"bytes_{count}"] = float(program.memory_analysis().temp_size_in_bytes)
    return {**found, "growth": found[f"bytes_{MOST}"] / found["bytes_2"]}


@functools.cache
def costs(machine: str) -> tuple[float, ...]:
    """Seconds that each option takes at least, of 2,048 tokens of 1,024 channels.

    Operations by the machine's rate or bytes by its memory's, whichever takes longer; both counted
    by XLA of a program for this processor.
    """
    found = []
    for option in FFNS:
        layer: Layer = inherit(option, width=SIZED)
        x = jax.ShapeDtypeStruct((4, 512, SIZED), jnp.float32)
        program = jax.jit(lambda p, x, layer=layer: layer(p, x)[0])
        told: Any = program.lower(abstract_params(layer.table()), x).compile().cost_analysis()
        own = profile(machine)
        rate = own.value(f"flops.{MACHINES[machine]}")
        byte = told["bytes accessed"] * jnp.dtype(MACHINES[machine]).itemsize / 4
        found.append(max(told["flops"] / rate, byte / own.value("memory.device.bandwidth")))
    return tuple(found)


def searched(machine: str, setting: Setting, seed: int) -> Numbers:
    """A search of both levels with a machine's expected cost; what the chosen net costs on each."""
    block = Block(GAM(slots=64), Mixed(FFNS, "one"))
    model = LanguageModel(block, width=WIDTH, depth=3, vocab=256)
    steps = setting.steps or STEPS[setting.scale]
    text = Text(name=setting.data or "python_stdlib", tokenizer="bytes", window=TOKENS)
    if setting.data_dir:
        text = Text(name=text.name, tokenizer="bytes", window=TOKENS, dir=setting.data_dir)
    data = text.open()
    stream = data.train_stream(2 * ROWS, seed)
    price = np.zeros(len(FFNS)) if not machine else np.asarray(costs(machine))
    price = PRICE * price / max(price.max() * model.depth, 1e-30)
    params = model.init_params(jax.random.key(seed))
    weights, logits = optax.adam(3e-3), optax.adam(RATE, 0.0, 0.999)
    states = weights.init(without_logits(params)), logits.init(of_logits(params))

    def loss(params: Any, rows: Any, key: Array) -> Array:
        total, _, _ = model.objective(params, rows, key=key)
        mixed = params["blocks"]["ffn"][choices.ARCHITECTURE]["logits"]
        return total / model.count(rows) + choices.expected_cost(mixed, price.astype(np.float32))

    def moved(optimizer: Any, part: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        changes, state = optimizer.update(part(grads), state)
        return _put(params, optax.apply_updates(part(params), changes)), state

    @jax.jit
    def step(params: Any, states: Any, batch: Any, key: Array) -> tuple[Any, Any]:
        own, held = ({n: x[i::2] for n, x in batch.items()} for i in range(2))
        one, two = jax.random.split(key)
        grads = jax.grad(loss)(params, held, one)
        params, of_them = moved(logits, of_logits, params, states[1], grads)
        grads = jax.grad(loss)(params, own, two)
        params, of_all = moved(weights, without_logits, params, states[0], grads)
        return params, (of_all, of_them)

    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(seed), number)
        params, states = step(params, states, next(stream), key)
    stream.close()
    found = extraction(model, params)
    options = found.options["blocks/ffn"]
    scored = next(iter(data.validation_stream("", 64)))
    total, _, _ = jax.jit(found.model.objective)(found.pick(params), scored)
    told = {f"cost_{name}": 1e6 * sum(costs(name)[i] for i in options) for name in MACHINES}
    loss_of_it = float(total) / float(np.sum(scored["weights"]))
    return {**told, "loss": loss_of_it, "memories": float(sum(options))}


def _put(params: Any, own: Any) -> Any:
    return {
        name: _put(branch, own[name])
        if isinstance(branch, dict) and name in own
        else own.get(name, branch)
        for name, branch in params.items()
    }


STUDY = Study(
    name="proxylessnas",
    title="One path at a time",
    source="arXiv 1812.00332",
    page="mixed.md",
    arms={
        "cost": Arm("an expected cost", numbers=expected, exact=True),
        "gates": Arm("gradients by gates", numbers=gates, exact=True),
        "two": Arm("a step of two logits", numbers=others, exact=True),
        "one": Arm("one option", numbers=functools.partial(memory, "one"), exact=True),
        "pair": Arm("one of two options", numbers=functools.partial(memory, "two"), exact=True),
        "sum": Arm("a sum of options", numbers=functools.partial(memory, "sum"), exact=True),
        "free": Arm("a net at no price", numbers=functools.partial(searched, "")),
        "for_t4": Arm("a net for a T4", numbers=functools.partial(searched, "t4")),
        "for_h200": Arm("a net for an H200", numbers=functools.partial(searched, "h200")),
    },
    measures={
        "loss": Measure("validation loss of the chosen net", "lower", "nats a token"),
        "cost_t4": Measure("µs on a T4", "lower", form=".0f"),
        "cost_h200": Measure("µs on an H200", "lower", form=".0f"),
        "memories": Measure("layers of 3 with a memory", form=".1f"),
        "difference": Measure("largest difference", "lower", form=".2g"),
        "total": Measure("sum of gradients by logits", "lower", form=".2g"),
        "change": Measure("change of other probabilities", "lower", form=".2g"),
        "one_hot": Measure("difference where one option is sure", "lower", form=".2g"),
        "bytes_2": Measure("temporaries of 2 options", "lower", "B", form=",.0f"),
        f"bytes_{MOST}": Measure(f"temporaries of {MOST} options", "lower", "B", form=",.0f"),
        "growth": Measure("times as many", "lower", form=".2f"),
    },
    claims=(
        Claim(
            "Gradients by gates are those of full differentiation (relative)",
            "at_most",
            ("gates",),
            "difference",
            1e-10,
            source="section 3.2",
        ),
        Claim("and sum to 0", "at_most", ("gates",), "total", 1e-12, source="derived"),
        Claim(
            "A step of two logits leaves the other probabilities",
            "at_most",
            ("two",),
            "change",
            1e-15,
            source="section 3.2.1",
        ),
        Claim(
            "The gradient of an expected cost is p_i (F_i - E F)",
            "at_most",
            ("cost",),
            "difference",
            1e-12,
            source="section 3.3",
        ),
        Claim(
            "and a sure option has its own cost",
            "at_most",
            ("cost",),
            "one_hot",
            1e-12,
            source="derived",
        ),
        Claim(
            "The memory of a step of the logits with one path does not depend on how many options "
            "there are",
            "at_most",
            ("one",),
            "growth",
            1.05,
            source="section 3.2",
        ),
        Claim("nor with two paths", "at_most", ("pair",), "growth", 1.05, source="section 3.2.1"),
        Claim("that of a sum does", "at_least", ("sum",), "growth", 2.0, source="section 3.2"),
        Claim(
            "A net that was searched for a T4 is faster there than one for an H200",
            "lower",
            ("for_t4", "for_h200"),
            "cost_t4",
            source="Table 5: nets are best on their own machine",
        ),
        Claim(
            "and the other way round",
            "lower",
            ("for_h200", "for_t4"),
            "cost_h200",
            source="Table 5",
        ),
    ),
    notes=(
        "seconds are operations or bytes by the machine's published rates, whichever takes longer, "
        "at 1,024 channels; nothing ran on either machine",
        f"the price is {PRICE:g} nat for the dearest net; logits and weights are trained on halves "
        "of each batch",
    ),
    absent=(
        Absent(
            "75.1 % of ImageNet at 5.1 ms on a V100; 2.08 % error on CIFAR-10",
            "nets of mobile convolutions, searched for 200 GPU hours",
        ),
        Absent("Proxyless-R", "a table that is reinforced is there; see the page on searches"),
    ),
)
