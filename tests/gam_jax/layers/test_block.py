"""How a block's layers stand to each other, and to its norms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, MLP, Attention, Block, Residual, RMSNorm, Shallow, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.params import count_params
from tests.examples import apply, inputs, params_of

PLAIN = Block(GAM(slots=16), norm=RMSNorm(), width=8)


def part(block, params, name, x):
    """A layer or norm of a block, alone."""
    layer = block.norm if name.endswith("norm") else getattr(block, name)
    return np.asarray(apply(layer, params[name], x)[0])


def parallel(f, x):
    u = f("norm", x)
    return x + f("mixer", u) + f("ffn", u)


def parallel_post(f, x):
    return f("norm", x + f("mixer", x) + f("ffn", x))


def parallel_sandwich(f, x):
    u = f("norm", x)
    return x + f("out_norm", f("mixer", u) + f("ffn", u))


def pre(f, x):
    x = x + f("mixer", f("mixer_norm", x))
    return x + f("ffn", f("ffn_norm", x))


def post(f, x):
    x = f("mixer_norm", x + f("mixer", x))
    return f("ffn_norm", x + f("ffn", x))


def sandwich(f, x):
    x = x + f("mixer_out_norm", f("mixer", f("mixer_norm", x)))
    return x + f("ffn_out_norm", f("ffn", f("ffn_norm", x)))


FORMULAS = {
    ("sequential", "pre"): pre,
    ("sequential", "post"): post,
    ("sequential", "sandwich"): sandwich,
    ("parallel", "pre"): parallel,
    ("parallel", "post"): parallel_post,
    ("parallel", "sandwich"): parallel_sandwich,
}


@pytest.mark.parametrize(("form", "norms"), FORMULAS)
def test_a_block_is_its_formula(form, norms):
    block = dataclasses.replace(PLAIN, form=form, norms=norms)
    params, x = params_of(block), inputs(2, 5)
    want = FORMULAS[form, norms](lambda name, x: part(block, params, name, x), x)
    np.testing.assert_allclose(apply(block, params, x)[0], want, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"), [({"form": "wide"}, "sequential"), ({"norms": "none"}, "sandwich")]
)
def test_an_unknown_form_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **fields)


def test_the_parallel_block_has_the_published_count_of_bam_s_seed():
    """arXiv 2408.08274, the dense 590M model: 587,209,728 parameters."""
    block = Block(
        Attention(heads=8),
        MLP(activation="swiglu", hidden=2048, bias=False),
        RMSNorm(),
        form="parallel",
    )
    model = LanguageModel(block, width=1024, depth=6, vocab=256_000, norm=RMSNorm(), tied=False)
    assert count_params(model.table()) == 587_209_728


def test_shallow_has_the_parameters_of_the_stack():
    assert count_params(Shallow(PLAIN, 3).table()) == count_params(Stack(PLAIN, 3).table())


def test_one_shallow_layer_is_its_block():
    shallow = Shallow(PLAIN, 1)
    params, x = params_of(shallow), inputs(2, 5)
    alone = jax.tree.map(lambda p: p[0], params)
    np.testing.assert_allclose(apply(shallow, params, x)[0], apply(PLAIN, alone, x)[0], atol=1e-5)


def test_shallow_feed_forwards_are_one_wide_feed_forward():
    """sum_i W2_i act(W1_i x) is one layer with all the hidden units (arXiv 2309.08414)."""
    depth, x = 4, inputs(2, 5)
    shallow = Shallow(Residual(MLP(width=8, hidden=6), norm=RMSNorm(width=8)), depth)
    params = dict(params_of(shallow))
    same = jnp.broadcast_to(params["norm"]["scale"][:1], (depth, 8))
    params["norm"] = {"scale": same}
    inner = params["inner"]
    joined = {
        "w_in": jnp.concatenate(list(inner["w_in"]), axis=1),
        "b_in": jnp.concatenate(list(inner["b_in"])),
        "w_out": jnp.concatenate(list(inner["w_out"]), axis=1),
        "b_out": inner["b_out"].sum(axis=0),
    }
    wide = Residual(MLP(width=8, hidden=depth * 6), norm=RMSNorm(width=8))
    want, _ = apply(wide, {"norm": {"scale": same[0]}, "inner": joined}, x)
    np.testing.assert_allclose(apply(shallow, params, x)[0], want, rtol=1e-4, atol=1e-4)


def test_the_gap_to_the_stack_falls_with_the_square_of_the_layers_size():
    """Terms of first order are the same, so the gap is of second order: slope 2."""
    block = Block(MLP(hidden=8, bias=False), MLP(hidden=8, bias=False), RMSNorm(), width=8)
    params = params_of(Stack(block, 4))
    x = inputs(1, 3)
    sizes, gaps = (0.04, 0.02), []
    for size in sizes:
        small = {
            name: {n: a * (size if n == "w_out" else 1) for n, a in layer.items()}
            for name, layer in params.items()
        }
        shallow, deep = (apply(c(block, 4), small, x)[0] for c in (Shallow, Stack))
        gaps.append(float(jnp.max(jnp.abs(shallow - deep))))
    slope = np.log(gaps[0] / gaps[1]) / np.log(sizes[0] / sizes[1])
    assert 1.8 < slope < 2.2
