"""What a page says in code is what the layer does: each loop is run and held against its layer."""

import pathlib
import re

import jax
import numpy as np
import pytest

from gam_jax.layers import (
    GAM,
    GRU,
    LSTM,
    MLP,
    TCN,
    TCNCA,
    Attention,
    FalconH1,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    MoE,
    WrittenGAM,
)
from gam_jax.ops.scan import memory_scan
from tests.arrays import single
from tests.examples import WIDTH, apply, inputs, params_of

PAGES = pathlib.Path(__file__).parents[2] / "docs/architectures"
TOKENS = 7
WITHOUT = {"index", "blocks", "images"}
"""Pages of no single mixer of tokens; MHS is several scans."""

MEMORY = LinearMemory(width=WIDTH, heads=2, variant="linear")
FALCON = FalconH1(
    Attention(heads=1, rotary=0.0, context=TOKENS),
    Mamba2(head=4, state=3),
    width=WIDTH,
    attention_in=0.5,
    attention_out=0.7,
    ssm_out=1.5,
)


def loops(page: str) -> dict:
    """The functions of the loop on a page."""
    text = (PAGES / f"{page}.md").read_text().split("## As a loop\n")[1]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    return names


def wide(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def one_head(loop):
    """The layer `Attention` of one head, from the loop of a head."""

    def mixer(x, p):
        q, k, v = (x @ p[name][:, 0] for name in ("query", "key", "value"))
        return loop(q, k, v) @ p["out"][0]

    return mixer


def written(x, p):
    """The loop of a written GAM, around what its memory gives."""
    given, _ = apply(MEMORY, p["memory"], np.asarray(x, np.float32)[None])
    return loops("written_gam")["written_gam"](x, np.asarray(given, np.float64)[0], p)


def falcon(x, p):
    attention = one_head(loops("attention")["attention"])
    return loops("falcon_h1")["falcon_h1"](
        x,
        lambda x: attention(x, p["attention"]),
        lambda x: loops("mamba2")["mamba2"](x, p["ssm"]),
        FALCON.attention_in,
        FALCON.attention_out,
        FALCON.ssm_out,
    )


LAYERS = {
    "gam": (GAM(width=WIDTH, slots=5, kernel=3), loops("gam")["gam"]),
    "written_gam": (WrittenGAM(MEMORY, width=WIDTH, kernel=3), written),
    "written_gam with a bank": (WrittenGAM(MEMORY, width=WIDTH, kernel=2, slots=5), written),
    "attention": (
        Attention(width=WIDTH, heads=1, rotary=0.0, context=TOKENS),
        one_head(loops("attention")["attention"]),
    ),
    "mamba": (Mamba(width=WIDTH, state=3), loops("mamba")["mamba"]),
    "mamba2": (Mamba2(width=WIDTH, head=4, state=3, chunk=4), loops("mamba2")["mamba2"]),
    "falcon_h1": (FALCON, falcon),
    "recurrent lstm": (LSTM(width=WIDTH), loops("recurrent")["lstm"]),
    "recurrent gru": (GRU(width=WIDTH), loops("recurrent")["gru"]),
    "minimal gru": (MinimalRNN(width=WIDTH), loops("minimal")["minimal"]),
    "minimal lstm": (MinimalRNN(width=WIDTH, variant="lstm"), loops("minimal")["minimal"]),
    "tcnca": (
        TCNCA(width=WIDTH, tcn=TCN(kernel=2, levels=2, factor=2), chunk=3, keys=4),
        lambda x, p: loops("tcnca")["tcnca"](x, p, factor=2),
    ),
    "moe": (
        MoE(width=WIDTH, experts=4, chosen=2, ffn=MLP(activation="swiglu", bias=False, hidden=6)),
        lambda x, p: loops("moe")["moe"](x, p, chosen=2),
    ),
}


@pytest.mark.parametrize(("layer", "loop"), LAYERS.values(), ids=LAYERS)
def test_the_loop_on_the_page_is_the_layer(layer, loop):
    params, x = params_of(layer), inputs(1, TOKENS)
    found, _ = apply(layer, params, x)
    wanted = loop(np.asarray(x, np.float64)[0], wide(params))
    np.testing.assert_allclose(np.asarray(found)[0], wanted, rtol=1e-4, atol=1e-5)


VARIANTS = {
    "linear": ("hebb", None, False),
    "retnet, mamba2": ("hebb", (TOKENS, 1), False),
    "gla": ("hebb", (TOKENS, 3), False),
    "deltanet": ("delta", None, True),
    "gated_deltanet": ("delta", (TOKENS, 1), True),
    "kimi_delta": ("delta", (TOKENS, 3), True),
}


@pytest.mark.parametrize(("rule", "decays", "strong"), VARIANTS.values(), ids=VARIANTS)
def test_the_loop_of_linear_memories_is_the_scan(rule, decays, strong):
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, TOKENS, 3))
    k = k / np.linalg.norm(k, axis=1, keepdims=True)
    v = random.normal(size=(TOKENS, 2))
    decay = np.ones((TOKENS, 1)) if decays is None else random.uniform(0.1, 1, decays)
    beta = random.uniform(0, 1, TOKENS) if strong else np.ones(TOKENS)
    log_decay = np.log(decay)[None, :, None] if decay.shape[1] > 1 else np.log(decay)[None]
    y, _ = jax.jit(memory_scan, static_argnames="rule")(
        *single(part[None, :, None] for part in (q, k, v)),
        log_decay=None if decays is None else log_decay.astype(np.float32),
        beta=beta[None, :, None].astype(np.float32),
        rule=rule,
    )
    loop = loops("linear_memories")["linear_memories"]
    wanted = loop(q, k, v, decay, beta, delta=rule == "delta")
    np.testing.assert_allclose(np.asarray(y)[0, :, 0], wanted, rtol=1e-4, atol=1e-5)


def test_every_page_of_a_mixer_has_its_loop_and_its_test():
    tested = {name.split()[0] for name in LAYERS} | {"linear_memories"}
    assert {page.stem for page in PAGES.glob("*.md")} == tested | WITHOUT


def test_the_python_of_the_front_page_runs():
    text = (PAGES.parents[1] / "README.md").read_text().split("## In Python\n")[1]
    model, ops = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(model, names)
    exec(ops, names)
    second = (np.asarray(names[name])[:, 3:] for name in "qkv")
    scan = jax.jit(memory_scan, static_argnames="rule")
    alone, _ = scan(*second, rule="delta", beta=np.full((1, 3, 2), np.float32(0.1)))
    np.testing.assert_allclose(np.asarray(names["y"])[:, 3:], alone, atol=1e-6)
    whole, _ = jax.jit(names["model"])(names["params"], names["tokens"])
    np.testing.assert_allclose(names["logits"], np.asarray(whole)[:, 4:], rtol=1e-4, atol=1e-5)
