"""What config.json says of attention, layer by layer, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gam_jax.convert.fields import Fields
from gam_jax.convert.parts import head_size
from gam_jax.convert.positions import Turned, read_positions, rope, written_positions
from gam_jax.layers import Attention
from gam_jax.ops.rotary import Positions

FULL, SLIDING = "full_attention", "sliding_attention"
CAPS = "attn_logit_softcapping", "final_logit_softcapping"


@dataclasses.dataclass(frozen=True)
class Attentions:
    """What tells the attention of one class of transformers from that of others.

    Attributes:
      official: its name in transformers.
      kind: its model_type.
      context, kv_heads, head_size, theta: what is meant where config.json does not tell; 0 for as
        many heads of keys as of queries, and for width / heads.
      biases: "all", attention_bias says whether; "inputs", it does so for queries, keys and values
        alone; "always", those have them; "never".
      biased: what attention_bias is where config.json does not tell.
      sinks: whether each head has one.
      qk_norm: what a norm of queries and keys is over; "" for none.
      norm_switch: whether use_qk_norm says if there is one.
      centred: whether scales of norms are 1 + what is stored.
      windows: "never"; "all": sliding_window is that of all layers; "listed": of some.
      window: sliding_window where config.json does not tell; 0 for none.
      kinds: (config, layers) -> FULL or SLIDING of each, where layer_types does not tell.
      switch: whether windows need use_sliding_window.
      partial: the part of a head that is turned where config.json does not tell; 0 where it may
        not tell.
      neighbours: whether channels are turned in neighbouring pairs.
      stretched: rope_parameters where config.json has none.
      local: base of the positions of sliding layers, which then have their own; 0 where all layers
        have the same.
      skips: whether no_rope_layers may say which layers have positions.
      scaled: whether query_pre_attn_scalar is told.
      caps: which of `CAPS` may be told, and what is meant where config.json does not tell.
    """

    official: str
    kind: str
    context: int = 2048
    kv_heads: int = 0
    head_size: int = 0
    theta: float = 10_000.0
    biases: str = "never"
    biased: bool = False
    sinks: bool = False
    qk_norm: str = ""
    norm_switch: bool = False
    centred: bool = False
    windows: str = "never"
    window: int = 0
    kinds: Callable[[Fields, int], list[str]] = lambda config, layers: [FULL] * layers
    switch: bool = False
    partial: float = 0.0
    neighbours: bool = False
    stretched: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    local: float = 0.0
    skips: bool = False
    scaled: bool = False
    caps: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def attentions(
        self, config: Fields, width: int, layers: int, eps: float
    ) -> Sequence[Attention]:
        """That of each layer.

        Args:
          config: of the folder.
          width: D.
          layers: L.
          eps: of norms.

        Raises:
          UserError: a field that makes no sense, or that is not known here.
        """
        heads = config.size("num_attention_heads")
        size = config.size("head_dim", self.head_size) if self.head_size else 0
        size = size or head_size(config, width, heads)
        biased = self.biases == "always"
        if self.biases in ("all", "inputs"):
            biased = config.flag("attention_bias", self.biased)
        normed = bool(self.qk_norm) and (not self.norm_switch or config.flag("use_qk_norm", False))
        scale = config.number("query_pre_attn_scalar", 256.0, above=0) if self.scaled else 0.0
        plain = Attention(
            heads=heads,
            kv_heads=config.size("num_key_value_heads", self.kv_heads or heads),
            head_size=size,
            bias=biased,
            out_bias=biased and self.biases == "all",
            sinks=self.sinks,
            qk_norm=normed,
            qk_norm_over=self.qk_norm if normed else "head",
            qk_norm_eps=eps if normed else 1e-6,
            qk_norm_centred=normed and self.centred,
            scale=scale**-0.5 if scale else 0.0,
            soft_cap=self.cap(config, CAPS[0]),
        )
        turned = self._turned(config, size)
        kinds, window = self._windows(config, layers)
        found = []
        for kind, turns in zip(kinds, self._turns(config, layers), strict=True):
            theta, positions, context = turned[kind if self.local else FULL]
            found.append(
                dataclasses.replace(
                    plain,
                    rotary=theta if turns else 0.0,
                    positions=positions if turns else Positions(),
                    context=context,
                    window=window if kind == SLIDING else 0,
                )
            )
        return found

    def cap(self, config: Fields, name: str) -> float:
        """One of `CAPS`; 0 for none."""
        if name not in self.caps or config.is_null(name):
            return 0.0
        return config.number(name, self.caps[name], least=0)

    def _turned(self, config: Fields, size: int) -> dict[str, Turned]:
        """The positions of each kind of layer."""

        def read(given: Fields, theta: float) -> Turned:
            found = read_positions(
                config, size, self.context, theta=theta, partial=self.partial, given=given
            )
            if not self.neighbours:
                return found
            return found._replace(positions=dataclasses.replace(found.positions, neighbours=True))

        given = rope(config)
        if not any(config.get(name) for name in ("rope_parameters", "rope_scaling")):
            given = Fields(self.stretched)
        if not self.local:
            return {FULL: read(given, self.theta)}
        if FULL in given or SLIDING in given:
            return {
                FULL: read(given.part(FULL), self.theta),
                SLIDING: read(given.part(SLIDING), self.local),
            }
        full = read(given, self.theta)  # as transformers 4 wrote it
        theta = config.number("rope_local_base_freq", self.local, above=0)
        return {FULL: full, SLIDING: full._replace(rotary=theta, positions=Positions())}

    def _windows(self, config: Fields, layers: int) -> tuple[list[str], int]:
        """FULL or SLIDING of each layer, and the window."""
        if self.windows == "never":
            return self._listed(config, layers) or [FULL] * layers, 0
        null = config.is_null("sliding_window")
        least = 0 if self.switch else 1
        window = 0 if null else config.size("sliding_window", self.window, least=least)
        if self.switch and not config.flag("use_sliding_window", False):
            window = 0
        listed = self._listed(config, layers)
        if self.windows == "all":
            return [SLIDING if window else FULL] * layers, window
        kinds = listed or (self.kinds(config, layers) if window else [FULL] * layers)
        if SLIDING in kinds and not window:
            raise config.refused("layer_types", "has windows, and no sliding_window is set")
        return kinds, window

    def _listed(self, config: Fields, layers: int) -> list[str]:
        """What layer_types says; nothing where it does not."""
        kinds = config.get("layer_types")
        known = (FULL, SLIDING) if self.windows == "listed" else (FULL,)
        if kinds is None:
            return []
        if not isinstance(kinds, list | tuple) or any(kind not in known for kind in kinds):
            raise config.refused("layer_types", f"is not known here, {' or '.join(known)} for each")
        if len(kinds) != layers:
            raise config.refused("layer_types", f"is no list of num_hidden_layers={layers}")
        return list(kinds)

    def _turns(self, config: Fields, layers: int) -> list[bool]:
        """Whether each layer has positions."""
        return turning(config, layers) if self.skips else [True] * layers

    def written(self, attentions: Sequence[Attention]) -> dict[str, Any]:
        """The inverse of `attentions`, of what all layers may have in common and the first has."""
        first = attentions[0]
        config: dict[str, Any] = {
            "num_attention_heads": first.heads,
            "num_key_value_heads": first.groups,
            "head_dim": first.size,
            **self._written_positions(attentions),
            **self._written_windows(attentions),
        }
        if self.biases in ("all", "inputs"):
            config["attention_bias"] = first.bias
        if self.norm_switch:
            config["use_qk_norm"] = first.qk_norm
        if self.scaled:
            config["query_pre_attn_scalar"] = round((first.scale or first.size**-0.5) ** -2)
        if CAPS[0] in self.caps:
            config[CAPS[0]] = first.soft_cap or None
        if self.skips:
            config["no_rope_layers"] = [int(attention.rotary > 0) for attention in attentions]
        return config

    def _written_positions(self, attentions: Sequence[Attention]) -> dict[str, Any]:
        def written(attention: Attention) -> dict[str, Any]:
            turned = Turned(attention.rotary, attention.positions, attention.context)
            return written_positions(self.official, turned, attention.size, bool(self.partial))

        turning = [one for one in attentions if one.rotary] or [
            dataclasses.replace(attentions[0], rotary=self.theta)
        ]
        if not self.local:
            return written(turning[0])
        found = written(next((one for one in turning if not one.window), turning[0]))
        near = next((one for one in turning if one.window), None)
        sliding = {"rope_type": "default", "rope_theta": self.local}
        sliding = written(near)["rope_parameters"] if near else sliding
        del found["rope_theta"]
        return found | {"rope_parameters": {FULL: found["rope_parameters"], SLIDING: sliding}}

    def _written_windows(self, attentions: Sequence[Attention]) -> dict[str, Any]:
        window = max(attention.window for attention in attentions)
        if self.windows == "never":
            return {}
        config: dict[str, Any] = {"sliding_window": window or None}
        if self.switch:
            config["use_sliding_window"] = bool(window)
        if self.windows == "listed":
            config["layer_types"] = [SLIDING if one.window else FULL for one in attentions]
        return config


def turning(config: Fields, layers: int) -> list[bool]:
    """Which layers have positions, of classes in which some have none.

    Raises:
      UserError: no_rope_layers is no list of 0 or 1 for each layer.
    """
    every = config.size("no_rope_layer_interval", 4)
    kinds = config.get("no_rope_layers")
    if kinds is None:
        return [(i + 1) % every != 0 for i in range(layers)]
    if not isinstance(kinds, list | tuple) or len(kinds) != layers or {*kinds} - {0, 1}:
        raise config.refused("no_rope_layers", f"is no list of {layers} numbers 0 or 1")
    return [bool(kind) for kind in kinds]
