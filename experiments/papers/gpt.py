"""GPT models as Megatron-LM's papers count them: parameters, operations, memory, a step's time.

Sources: arXiv 2104.04473 (sections 3, 5 and the appendix) and 2205.05198. The step is a model of
closed formulas: 1F1B, collectives that nothing hides, a link as slow as the slowest level that
a group crosses.
"""

from __future__ import annotations

import dataclasses

from gam_jax.planning import Figure, Profile

HALF = 2
"""Bytes of weights, gradients and activations."""
VOCAB, TOKENS = 51_200, 2048
NODE = 8
"""Devices of a node."""


@dataclasses.dataclass(frozen=True)
class Gpt:
    """A model of blocks with 4 D hidden units.

    Attributes:
      layers, width, heads: l, h and a.
      vocab, tokens: V and s.
    """

    layers: int
    width: int
    heads: int
    vocab: int = VOCAB
    tokens: int = TOKENS

    @property
    def params(self) -> float:
        """P = 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h))."""
        h, blocks = self.width, 12 * self.layers * self.width
        return blocks * h * (1 + 13 / (12 * h) + (self.vocab + self.tokens) / blocks)

    @property
    def block_params(self) -> float:
        """12 l h^2, without embeddings, biases and norms."""
        return 12.0 * self.layers * self.width**2

    def operations(self, batch: int) -> float:
        """Of a step that recomputes every layer: 96 B s l h^2 (1 + s / 6h + V / 16 l h)."""
        h = self.width
        more = self.tokens / (6 * h) + self.vocab / (16 * self.layers * h)
        return 96.0 * batch * self.tokens * self.layers * h**2 * (1 + more)

    def useful(self, batch: int, again: bool = False) -> float:
        """Of a step without recomputation, 72 B l s h^2 (1 + s / 6h + V / 12 h l).

        Args:
          batch: B.
          again: whether the core of attention is computed twice, as selective recomputation does:
            s / 3h in place of s / 6h.
        """
        h = self.width
        more = self.tokens / ((3 if again else 6) * h) + self.vocab / (12 * h * self.layers)
        return 72.0 * batch * self.layers * self.tokens * h**2 * (1 + more)

    def layer_bytes(self, tensor: int, micro: int = 1) -> float:
        """Activations of a layer that keeps all of them: s b h (10 + 24 / t + 5 a s / h t)."""
        core = 5 * self.heads * self.tokens / (self.width * tensor)
        return self.tokens * micro * self.width * (10 + 24 / tensor + core)


@dataclasses.dataclass(frozen=True)
class Split:
    """How a step is split over devices.

    Attributes:
      tensor, pipe, data: t, p and d.
      parts: m, microbatches of a pipeline.
      micro: b, sequences of one.
      recompute: whether each layer is computed again in the backward pass.
      zero: whether Adam's state is split over `data` (ZeRO-1).
    """

    tensor: int = 1
    pipe: int = 1
    data: int = 1
    parts: int = 1
    micro: int = 1
    recompute: bool = True
    zero: bool = True

    @property
    def devices(self) -> int:
        """t p d."""
        return self.tensor * self.pipe * self.data


def linked(profile: Profile, inside: float, outside: float) -> Profile:
    """A device with links inside and between nodes of eight, in bytes a second, of ours."""
    links = {
        "links.node.devices": Figure(NODE, "devices", "derived", "ours"),
        "links.node.bandwidth": Figure(inside, "B/s", "derived", "ours"),
        "links.network.bandwidth": Figure(outside, "B/s", "derived", "ours"),
    }
    others = {name: f for name, f in profile.figures.items() if not name.startswith("links.")}
    return dataclasses.replace(profile, figures={**others, **links})


def link(profile: Profile, devices: int) -> float:
    """Bytes a second of the slowest level that a group of neighbouring devices crosses."""
    for level in profile.levels:
        if devices <= profile.known(f"links.{level}.devices", float("inf")):
            return profile.value(f"links.{level}.bandwidth")
    return profile.value(f"links.{profile.levels[-1]}.bandwidth")


def part_seconds(model: Gpt, split: Split, profile: Profile, efficiency: float) -> float:
    """Forward and backward of one microbatch on one stage, collectives of `tensor` among them.

    Per layer 24 b s h^2 (1 + s / 6h) operations forward, three times that backward where it is
    recomputed, twice where not; and 8 b s h (t - 1) / t numbers over the link of t devices.
    """
    s, h, b, t = model.tokens, model.width, split.micro, split.tensor
    layers = model.layers / split.pipe
    forward = 24.0 * b * s * h**2 * (1 + s / (6 * h)) * layers / t
    work = forward * (4 if split.recompute else 3) / (profile.peak_flops * efficiency)
    sent = 8.0 * b * s * h * (t - 1) / t * HALF * layers
    return work + sent / link(profile, t)


def step_seconds(model: Gpt, split: Split, profile: Profile, efficiency: float) -> float:
    """A step: 1F1B with its hops on the critical path, then gradients and new parameters.

    k [p C + 2 (p - 1) c] + (p - 1) C + 2 (p - 2) c, with k = m / p turns, C of a part and c of a
    hop; and 2 (d - 1) / d P / t p numbers over the network.
    """
    p, d = split.pipe, split.data
    part = part_seconds(model, split, profile, efficiency)
    network = profile.value(f"links.{profile.levels[-1]}.bandwidth")
    hop = model.tokens * split.micro * model.width * HALF / network if p > 1 else 0.0
    pipeline = one_f_one_b(part, hop, p, split.parts)
    sent = 2 * (d - 1) / d * model.params / (split.tensor * p) * HALF
    return pipeline + sent / network


def one_f_one_b(part: float, hop: float, stages: int, parts: float) -> float:
    """Seconds of 1F1B, exact where parts are a multiple of stages (see the study `pipette`)."""
    turn = stages * part + 2 * (stages - 1) * hop
    return parts / stages * turn + (stages - 1) * part + 2 * max(stages - 2, 0) * hop


def bubble(pipe: int, parts: int) -> float:
    """Idle over ideal time, (p - 1) / m."""
    return (pipe - 1) / parts


def held_bytes(model: Gpt, split: Split) -> float:
    """Bytes of one device: weights and gradients in two, Adam's state in twelve, activations.

    With recomputation a stage keeps the inputs of its layers for p parts in flight, and one layer
    whole; without it, all of every layer.
    """
    own = model.params / (split.tensor * split.pipe)
    state = own * (2 * HALF + 12 / (split.data if split.zero else 1))
    whole = model.layer_bytes(split.tensor, split.micro)
    if not split.recompute:
        return state + whole * model.layers
    inputs = HALF * model.tokens * split.micro * model.width
    return state + inputs * model.layers + whole
