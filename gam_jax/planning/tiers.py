"""Which array lies in which memory: near the processor, behind a slower link, or striped over both.

Sources: "Analysis and Optimized CXL-Attached Memory Allocation for Long-Context LLM Fine-Tuning"
(arXiv 2507.03305) for training with everything on the host; SN40L and Samba-CoE (arXiv
2405.07518) for many models of which a few are resident.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from sharding.bounds import NotNegative, Positive, Size, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Item:
    """Something that is kept on the host.

    Attributes:
      name: what it is.
      size: bytes.
      level: 1 where the processor works on it, then higher the less its latency matters.
    """

    name: str
    size: NotNegative
    level: Size = 1

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Host:
    """Memory of a host: its own, and cards that are read over a slower link.

    Attributes:
      near: bytes of the host's own memory.
      far: bytes of all cards together.
      cards: over which what is far is striped, page by page.
    """

    near: NotNegative
    far: NotNegative = 0.0
    cards: Size = 1

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where an item lies: bytes near, and bytes far, over all cards."""

    near: float
    far: float


def offloaded(params: float, batch: int, tokens: int, width: int, layers: int) -> list[Item]:
    """What training with everything on the host keeps there: 20 P + 2 B T D L bytes.

    Adam's moments, gradients and master parameters in float32 are what the processor works on
    (level 1); parameters in bfloat16 (2), what is kept between layers (3) and gradients in
    bfloat16 (4) are only copied.

    Args:
      params: P.
      batch: B.
      tokens: T, of each sequence.
      width: D.
      layers: L.
    """
    on_processor = ("momentum", "variance", "gradients", "master parameters")
    return [
        *(Item(name, 4 * params) for name in on_processor),
        Item("parameters, bfloat16", 2 * params, 2),
        Item("activations", 2.0 * batch * tokens * width * layers, 3),
        Item("gradients, bfloat16", 2 * params, 4),
    ]


def place(items: Iterable[Item], host: Host) -> dict[str, Placed]:
    """Where each lies, by the paper's rule: level by level, near while there is room.

    What fits near lies near. What does not is striped, page by page, over the host's own memory
    and all cards while there is any room near: a share of 1 / (1 + cards), or all that is free if
    that is less, or as much more as the cards cannot take. After that all is far. So everything
    is placed if, and only if, all of it fits into both together, which the published rule alone
    does not give: it may leave memory free near and yet find none far.

    Raises:
      UserError: it does not fit; the message says by how much.
    """
    ordered = sorted(items, key=lambda item: item.level)
    missing = sum(item.size for item in ordered) - host.near - host.far
    if missing > 0:
        raise UserError(
            f"{missing / 2**30:.2f} GiB do not fit into {host.near / 2**30:.6g} GiB near and "
            f"{host.far / 2**30:.6g} GiB far: give more memory, or train less at once"
        )
    near, far = host.near, host.far
    found = {}
    for item in ordered:
        if item.size <= near:
            here = item.size
        else:
            here = min(near, max(item.size / (1 + host.cards), item.size - far))
        found[item.name] = Placed(here, item.size - here)
        near, far = near - here, far - (item.size - here)
    return found


def striped(items: Iterable[Item], host: Host) -> dict[str, Placed]:
    """All items striped alike over the host's own memory and its cards, for comparison."""
    shares = 1 / (1 + host.cards)
    return {i.name: Placed(i.size * shares, i.size * (1 - shares)) for i in items}


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Bytes a second, which a paper or a measurement gives.

    Attributes:
      near, far: of the processor's own reading and writing, in each memory.
      copied: to and from the accelerator, out of the host's own memory.
      card: the same out of one card.
    """

    near: Positive
    far: Positive
    copied: Positive
    card: Positive

    def __post_init__(self) -> None:
        check_bounds(self)


def step_seconds(
    items: Iterable[Item], placed: Mapping[str, Placed], speeds: Speeds, cards: int = 1
) -> float:
    """Seconds a step spends on what lies on the host (a model of ours).

    The processor goes through level 1 once, each part at the speed of its memory. All else is
    copied once; cards are copied from side by side, until the accelerator's own link binds.
    """
    out = 0.0
    link = min(speeds.copied, cards * speeds.card)
    for item in items:
        own = placed[item.name]
        if item.level == 1:
            out += own.near / speeds.near + own.far / speeds.far
        else:
            out += own.near / speeds.copied + own.far / link
    return out


def resident(requests: Sequence[str], room: int) -> list[bool]:
    """Which requests find their model in fast memory, where it keeps those used last.

    Args:
      requests: name of the model that each wants, in order.
      room: models that fast memory holds; the one unused for longest makes room.

    Returns:
      True for a hit, one a request.
    """
    held: collections.OrderedDict[str, None] = collections.OrderedDict()
    hits = []
    for name in requests:
        hits.append(name in held)
        held[name] = None
        held.move_to_end(name)
        if len(held) > room:
            held.popitem(last=False)
    return hits
