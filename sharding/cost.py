"""What communication costs: bytes that a device sends, by formula.

Collectives are counted as rings, which send the least that is possible (Patarasuk and Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations"). `size` is always bytes
of the operand on one device, `devices` how many take part.
"""

from __future__ import annotations


def all_reduce(size: int, devices: int) -> int:
    """A reduce-scatter and an all-gather of the parts: 2 (n - 1) / n of the operand."""
    return 2 * size * (devices - 1) // devices


def all_gather(size: int, devices: int) -> int:
    """Each device's part goes n - 1 steps round the ring."""
    return size * (devices - 1)


def reduce_scatter(size: int, devices: int) -> int:
    """n - 1 parts of the operand, each 1 / n of it, are sent on."""
    return size * (devices - 1) // devices


def all_to_all(size: int, devices: int) -> int:
    """All of the operand but one's own part."""
    return size * (devices - 1) // devices


def permute(size: int, devices: int) -> int:
    """The operand, once."""
    return size if devices > 1 else 0


SENT = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "permute": permute,
}
"""Collective -> bytes sent, from (size, devices)."""


def data_parallel(params: int, devices: int) -> int:
    """Gradients of `params` bytes, all-reduced once a step."""
    return all_reduce(params, devices)


def zero1(params: int, devices: int) -> int:
    """Gradients reduce-scattered, new parameters gathered: as much as data parallelism."""
    return reduce_scatter(params, devices) + all_gather(params // devices, devices)


def fully_sharded(params: int, devices: int) -> int:
    """Parameters gathered forward and backward, gradients reduce-scattered: half as much again.

    ZeRO stage 3 (arXiv 1910.02054, section 7.2.2): 3 (n - 1) / n of the parameters.
    """
    return 2 * all_gather(params // devices, devices) + reduce_scatter(params, devices)


def adam_state(params: int, devices: int, preset: str) -> int:
    """Bytes of parameters and Adam's two moments that a device holds between steps.

    Args:
      params: bytes of the parameters, float32.
      devices: of the data axis.
      preset: "data", "zero1" or "fully_sharded".
    """
    moments = 2 * params
    if preset == "data":
        return params + moments
    if preset == "zero1":
        return params + moments // devices
    return (params + moments) // devices


def tensor_parallel_layer(activations: int, devices: int) -> int:
    """A transformer layer split over a tensor axis: two all-reduces forward, two backward.

    Megatron-LM (arXiv 2104.04473, section 3.2): 8 b s h (t - 1) / t elements; splitting the
    residual stream over tokens sends as much.

    Args:
      activations: bytes of [B, T, D].
      devices: of the tensor axis.
    """
    return 4 * all_reduce(activations, devices)


def halo(rows: int, taps: int, channels: int, itemsize: int = 4) -> int:
    """A causal convolution over split tokens, forward and backward: whatever the length."""
    return 2 * rows * (taps - 1) * channels * itemsize


def prefix_state(element: int, devices: int) -> int:
    """A linear memory over split tokens: one (decay, state) a shard is gathered, and back.

    LASP-2 (arXiv 2502.07563): bytes do not depend on the tokens.
    """
    return all_gather(element, devices) + reduce_scatter(element * devices, devices)


def ring_attention(rows: int, tokens: int, width: int, devices: int, itemsize: int = 4) -> int:
    """Keys and values go round the ring, forward; backward they go again, with their gradients.

    Ring Attention (arXiv 2310.01889): 2 (n - 1) C forward, and twice that and one homing hop of
    the gradients backward, C being the keys' bytes on one device.

    Args:
      rows: batch rows on a device.
      tokens: of the whole sequence.
      width: of keys, all heads; values are as wide.
      devices: of the sequence axis.
      itemsize: bytes of a number.
    """
    keys = rows * (tokens // devices) * width * itemsize
    forward = 2 * (devices - 1) * keys
    return forward + 2 * forward + (2 * keys if devices > 1 else 0)


def expert_exchange(slots: int, row: int, devices: int) -> int:
    """Tokens sent to experts and back, forward and backward, in places of a fixed number.

    GShard (arXiv 2006.16668): two all-to-alls forward, two backward, whatever the routing.

    Args:
      slots: places for all experts on all devices, of the tokens of one device.
      row: bytes of a token.
      devices: of the expert axis.
    """
    return 4 * all_to_all(slots * row, devices)


def expert_gather(tokens: int, row: int, devices: int) -> int:
    """Tokens gathered, results reduce-scattered, forward and backward.

    Args:
      tokens: on one device.
      row: bytes of a token.
      devices: of the expert axis.
    """
    return 2 * (all_gather(tokens * row, devices) + reduce_scatter(tokens * row * devices, devices))
