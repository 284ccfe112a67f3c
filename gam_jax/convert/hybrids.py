"""Hybrids of state spaces and attention: what their classes of transformers have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from gam_jax.convert import patterns
from gam_jax.convert.family import Family, one
from gam_jax.convert.fields import Fields
from gam_jax.convert.parts import head_size
from gam_jax.convert.positions import LIMIT, Turned, read_positions, written_positions
from gam_jax.layers import MLP, Attention, Layer, Mamba, Mamba2
from gam_jax.ops.rotary import Positions

LINEAR, FULL = "linear_attention", "full_attention"
OLDER = {"mamba": LINEAR, "attention": FULL}
"""What versions of transformers before 5 call them."""
NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}
INSIDE = {Attention: "self_attn", Mamba: "mamba", Mamba2: "mamba"}


def read_kinds(config: Fields, name: str, known: Sequence[str] = (LINEAR, FULL)) -> list[str]:
    """What each block is, by a field that lists them; nothing where it is not given.

    Raises:
      UserError: the field is no list of what is known.
    """
    found = config.get(name)
    if found is None:
        return []
    if not isinstance(found, list | tuple) or not all(isinstance(kind, str) for kind in found):
        raise config.refused(name, "is no list of names")
    kinds = [str(OLDER.get(kind, kind)) for kind in found]
    if not kinds or set(kinds) - set(known):
        raise config.refused(name, f"is not known here, {' or '.join(known)} for each")
    return kinds


def read_heads(
    config: Fields,
    width: int,
    context: int,
    turns: bool = True,
    partial: float = 0.0,
    head: int = 0,
    kv_heads: int = 8,
    **fields: Any,
) -> Attention:
    """The attention of a config.json.

    Args:
      config: of the folder.
      width: D.
      context: tokens of a sequence where config.json does not tell.
      turns: whether there are positions; what is said of them otherwise must make sense too.
      partial: of classes that may turn a part of a head alone: which part.
      head: channels of a head where config.json does not tell; 0 for D / heads.
      kv_heads: heads of keys where config.json does not tell; 0 for as many as of queries, which
        null always means.
      **fields: of `Attention`, besides.
    """
    heads = config.size("num_attention_heads")
    size = config.size("head_dim", head) if head else head_size(config, width, heads)
    found = read_positions(config, size, context, partial=partial)
    usual = heads if "num_key_value_heads" in config else kv_heads or heads
    return Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", usual),
        head_size=size,
        rotary=found.rotary if turns else 0.0,
        positions=found.positions if turns else Positions(),
        context=found.context,
        **fields,
    )


def written_heads(
    official: str, attention: Attention | None, width: int, partial: bool = False
) -> dict[str, Any]:
    """The inverse of `read_heads`; of a model that has no attention, what can be read.

    The size of a head is not written where it is D / heads, which these classes take it to be.
    """
    if attention is None:
        return {"num_attention_heads": 1, "num_key_value_heads": 1}
    config: dict[str, Any] = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
    }
    if attention.size * attention.heads != width:
        config["head_dim"] = attention.size
    if not attention.rotary:
        return config | {LIMIT: attention.context}
    turned = Turned(attention.rotary, attention.positions, attention.context)
    return config | written_positions(official, turned, attention.size, partial)


def check_mixers(mixers: Sequence[Layer], ssm: type[Layer], official: str) -> None:
    """A UserError for the first that is neither attention nor that state space."""
    for mixer in mixers:
        if not isinstance(mixer, ssm):
            one(mixer, Attention, official)


def first_of(layers: Sequence[Layer], cls: type[Any]) -> Any:
    """The first layer of that class; None if there is none."""
    return next((layer for layer in layers if isinstance(layer, cls)), None)


def no_ssm(width: int) -> Mamba2:
    """What is told of the state spaces of a model that has none."""
    return Mamba2(inner=width, head=width, state=1)


def hidden_of(ffn: MLP, width: int) -> int:
    """F."""
    return ffn.hidden or ffn.expansion * width


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `patterns.family` asks for: a class's model_type, config.json -> model, and back."""

    kind: str
    read: Callable[..., Any]
    write: Callable[..., Any]


def family(
    spec: Spec, read: Callable[..., Any], write: Callable[..., Any], **places: str
) -> Family:
    """`patterns.family` of a class whose arrays outside of blocks have other names.

    Args:
      spec: of the class.
      read: (model, one block of a folder) -> its parameters.
      write: the inverse of `read`.
      **places: what is not as in Llama: `embedding`, `norm` or `blocks`.
    """
    plain = patterns.family(spec, lambda _, *given: read(*given), lambda _, *given: write(*given))
    return plain._replace(**places)
