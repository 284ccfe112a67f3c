"""Weights from and to the official PyTorch code of the GAM paper."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.convert.same import check_same
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

State = Mapping[str, np.ndarray]
"""PyTorch parameter names to arrays."""

# Ours, under blocks/, to the official name under blocks.N., and how the array turns.
_BLOCK = {
    ("mixer_norm", "scale"): "ln1.weight",
    ("mixer_norm", "bias"): "ln1.bias",
    ("mixer", "conv"): "causal_conv.weight",
    ("mixer", "conv_bias"): "causal_conv.bias",
    ("mixer", "memory"): "memory_bank",
    ("mixer", "gate"): "gate.weight",
    ("mixer", "gate_bias"): "gate.bias",
    ("ffn_norm", "scale"): "ln2.weight",
    ("ffn_norm", "bias"): "ln2.bias",
    ("ffn", "w_in"): "ffn.0.weight",
    ("ffn", "b_in"): "ffn.0.bias",
    ("ffn", "w_out"): "ffn.2.weight",
    ("ffn", "b_out"): "ffn.2.bias",
}
_TOP = {
    "token_embedding.weight": ("embedding",),
    "pos_embedding.weight": ("positions",),
    "ln_f.weight": ("final_norm", "scale"),
    "ln_f.bias": ("final_norm", "bias"),
}
_TRANSPOSED = {"conv", "gate", "w_in"}


def from_official_gam(state: State) -> tuple[LanguageModel, Params]:
    """A model and its parameters from the official PyTorch implementation (rishiraj/gam).

    Args:
      state: `GAM_Model(...).state_dict()` with each value as a NumPy array.

    Returns:
      The model, its sizes read from the arrays, dropout 0.1 as the official default; parameters
      in float32. Logits agree within float32 rounding.

    Raises:
      UserError: a name that is missing, or an array of an unexpected shape.
    """
    state = {name: np.asarray(array, np.float32) for name, array in state.items()}
    numbers = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    depth = 1 + max(numbers, default=-1)
    if depth == 0:
        raise UserError("the state holds no blocks.N.* arrays: is it the official GAM_Model's?")
    vocab, width = _official(state, "token_embedding.weight").shape
    slots = len(_official(state, "blocks.0.memory_bank"))
    kernel = _official(state, "blocks.0.causal_conv.weight").shape[-1]
    hidden = len(_official(state, "blocks.0.ffn.0.weight"))
    model = LanguageModel(
        block=Block(GAM(slots=slots, kernel=kernel), MLP(expansion=hidden // width)),
        width=width,
        depth=depth,
        vocab=vocab,
        context=len(_official(state, "pos_embedding.weight")),
        dropout=0.1,
        init="published",
    )
    params: dict = {"blocks": {}}
    for (layer, name), official in _BLOCK.items():
        arrays = [_official(state, f"blocks.{i}.{official}") for i in range(depth)]
        stacked = np.stack([a.T if name in _TRANSPOSED else a for a in arrays])
        params["blocks"].setdefault(layer, {})[name] = stacked
    for official, path in _TOP.items():
        _put(params, path, _official(state, official))
    return model, _shaped(model, params)


def to_official_gam(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `from_official_gam`: what `GAM_Model.load_state_dict` takes.

    Raises:
      UserError: a model that the official code cannot express.
    """
    mixer = model.block.mixer if isinstance(model.block, Block) else None
    if not isinstance(mixer, GAM) or mixer.variant != "full" or not model.context:
        raise UserError(
            "the official GAM code has only the full variant with learned positions: "
            "this model cannot be written in its names"
        )
    width = model.width
    state: dict[str, np.ndarray] = {}
    for official, path in _TOP.items():
        state[official] = np.asarray(_get(params, path))
    state["head.weight"] = state["token_embedding.weight"]
    official_shapes = {
        "conv": (width, 1, mixer.kernel),
        "gate": (2 * width, width),
        "gate_bias": (2 * width,),
    }
    for (layer, name), official in _BLOCK.items():
        for i, array in enumerate(np.asarray(params["blocks"][layer][name])):
            if name in _TRANSPOSED:
                array = array.reshape(array.shape[0], -1).T
            shape = official_shapes.get(name, array.shape)
            state[f"blocks.{i}.{official}"] = np.ascontiguousarray(array.reshape(shape))
    check_same("GAM_Model", lambda state: from_official_gam(state)[0], model, state, "rishiraj/gam")
    return state


def _official(state: State, name: str) -> np.ndarray:
    if name not in state:
        raise UserError(f"the state has no '{name}': is it the official GAM_Model's state_dict?")
    return state[name]


def _shaped(model: LanguageModel, params: dict) -> Params:
    """`params` in the shapes of the model's table; the same numbers in the same order."""

    def reshape(path: tuple, want: jax.ShapeDtypeStruct, array: np.ndarray) -> jax.Array:
        if array.size != np.prod(want.shape):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{name}: official shape {array.shape} does not fit {want.shape}")
        return jnp.asarray(array.reshape(want.shape))

    abstract = jax.eval_shape(model.init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(reshape, abstract, params)


def _put(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _get(tree: Params, path: tuple[str, ...]) -> jax.Array:
    for name in path:
        tree = tree[name]
    return tree  # type: ignore[return-value]
