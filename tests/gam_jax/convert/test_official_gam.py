"""Weights of the official implementation, against its own figures and against the oracle.

The golden file was made by running the official PyTorch code (rishiraj/gam) on a tiny
configuration: its state, logits, loss and every gradient.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.convert import from_official_gam, to_official_gam
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError
from tests import oracle
from tests.examples import random_like

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "official_gam.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def part(golden, kind):
    return {n.removeprefix(kind): v for n, v in golden.items() if n.startswith(kind)}


def test_imported_weights_give_the_official_logits(golden):
    model, params = from_official_gam(part(golden, "state/"))
    logits, _ = jax.jit(model)(params, golden["tokens"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)


def test_the_oracle_gives_the_official_logits_and_loss(golden):
    state = part(golden, "state/")
    rows = [oracle.logits(state, tokens) for tokens in golden["tokens"]]
    np.testing.assert_allclose(rows, golden["logits"], atol=1e-5)
    losses = [oracle.cross_entropy(r, t) for r, t in zip(rows, golden["targets"], strict=True)]
    np.testing.assert_allclose(np.mean(losses), golden["loss"], rtol=1e-6)


def test_loss_and_every_gradient_equal_the_official_ones(golden):
    model, params = from_official_gam(part(golden, "state/"))
    loss, gradient = jax.jit(jax.value_and_grad(model.loss))(
        params, golden["tokens"], golden["targets"]
    )
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-6)
    ours = to_official_gam(model, gradient)
    for name, theirs in part(golden, "grad/").items():
        np.testing.assert_allclose(ours[name], theirs, atol=1e-6, err_msg=name)


def test_import_then_export_is_the_identity(golden):
    state = part(golden, "state/")
    exported = to_official_gam(*from_official_gam(state))
    assert exported.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


@pytest.mark.parametrize("variant", ["sum", "global", "local"])
def test_the_ablations_equal_the_oracle(golden, variant):
    state = part(golden, "state/")
    gone = {
        "sum": ("gate",),
        "global": ("gate", "causal_conv"),
        "local": ("gate", "memory_bank"),
    }[variant]
    kept = {n: v for n, v in state.items() if not any(g in n for g in gone)}
    full, params = from_official_gam(state)
    ablated = LanguageModel(
        Block(GAM(slots=full.block.mixer.slots, variant=variant)),
        width=full.width,
        depth=full.depth,
        vocab=full.vocab,
        context=full.context,
    )
    names = ablated.block.mixer.table()
    mixer = {name: params["blocks"]["mixer"][name] for name in names}
    params = {**params, "blocks": {**params["blocks"], "mixer": mixer}}
    logits, _ = jax.jit(ablated)(params, golden["tokens"])
    want = [oracle.logits(kept, tokens) for tokens in golden["tokens"]]
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_a_missing_array_is_named(golden):
    state = part(golden, "state/")
    del state["blocks.1.gate.bias"]
    with pytest.raises(UserError, match=r"blocks\.1\.gate\.bias"):
        from_official_gam(state)


def test_an_array_of_another_shape_is_named(golden):
    state = part(golden, "state/")
    state["ln_f.weight"] = np.ones(3)
    with pytest.raises(UserError, match="final_norm/scale"):
        from_official_gam(state)


def test_what_the_official_code_lacks_is_refused():
    model = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=16)
    with pytest.raises(UserError, match="positions"):
        to_official_gam(model, random_like(model.table()))


def test_imported_arrays_are_float32_whatever_came(golden):
    state = {n: v.astype(np.float64) for n, v in part(golden, "state/").items()}
    _, params = from_official_gam(state)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("fields", "block", "words"),
    [
        ({"ladder": 1}, {}, "ladder"),
        ({}, {"norms": "sandwich"}, "norms"),
        ({}, {"residual_scale": 0.5}, "residual_scale"),
        ({}, {"mixer": GAM(slots=8, kernel=3, slot_bias=True)}, "slot_bias"),
    ],
)
def test_what_the_official_code_would_leave_out_is_refused_by_name(fields, block, words):
    block = Block(**{"mixer": GAM(slots=8, kernel=3), **block})
    model = LanguageModel(block, width=8, depth=1, vocab=16, context=8, **fields)
    with pytest.raises(UserError, match=f"^GAM_Model of rishiraj/gam has .*{words}"):
        to_official_gam(model, random_like(model.table()))
