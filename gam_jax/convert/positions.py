"""Rotary positions of a config.json, wherever a version of transformers wrote them, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gam_jax.convert.fields import Fields
from gam_jax.ops.rotary import Positions
from sharding.errors import UserError

ORIGINAL = "original_max_position_embeddings"
LIMIT = "max_position_embeddings"
PARTIAL = "partial_rotary_factor"


class Turned(NamedTuple):
    """What config.json says of positions.

    Attributes:
      rotary: base of the wavelengths.
      positions: how they are stretched.
      context: the most tokens of a sequence.
    """

    rotary: float
    positions: Positions
    context: int


def read_positions(
    config: Fields,
    size: int,
    context: int,
    *,
    theta: float = 10_000.0,
    partial: float = 0.0,
    given: Fields | None = None,
) -> Turned:
    """The positions of a head of `size` channels.

    Args:
      config: of the folder.
      size: channels of a head.
      context: tokens of a sequence where config.json does not tell.
      theta: base of the wavelengths, likewise.
      partial: of classes that may turn a part of a head alone: which part, likewise.
      given: what config.json says of these positions; None for what it says of all.

    Raises:
      UserError: a kind of positions that is not known here, or a field of it that makes no sense.
    """
    context = config.size(LIMIT, context)
    given = rope(config) if given is None else given
    kind = rope_type(given)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"config.json: rope_type={kind!a} of model_type {config.get('model_type')!a} is not "
            f"known here: {', '.join(_KINDS)} alone"
        )
    fields = _KINDS[kind](config, given, size, context)
    if partial:
        fields["turned"] = _turned(config, given, size, partial)
    positions = Positions(kind=kind, **fields)
    if kind == "dynamic":  # the declared limit is that of the training
        context = int(positions.original * positions.factor)
    return Turned(_theta(config, given, theta), positions, context)


def _turned(config: Fields, given: Fields, size: int, default: float = 1.0) -> int:
    """How many channels turn; 0 for all of them."""
    inside, outside = (one.number(PARTIAL, None, above=0) for one in (given, config))
    if inside is not None and outside is not None and inside != outside:
        raise config.refused(PARTIAL, f"is not that of its rope_parameters, {inside:g}")
    share = inside or outside or default
    turned = int(size * share)
    if share > 1 or not turned or turned % 2:
        raise config.refused(PARTIAL, f"turns {turned} of {size} channels: they turn in pairs")
    return 0 if turned == size else turned


def _no_fields(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    return {}


def _linear(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    return {"factor": given.number("factor", least=1)}


def _dynamic(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    return {"factor": given.number("factor", least=1), "original": context}


def _original(config: Fields, given: Fields, context: int) -> int:
    """Tokens of the training: outside has the last word, as in transformers."""
    return config.size(ORIGINAL, given.size(ORIGINAL, context))


def _llama3(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    return {
        "factor": given.number("factor", least=1),
        "fast": given.number("high_freq_factor", above=0),
        "slow": given.number("low_freq_factor", above=0),
        "original": _original(config, given, context),
    }


def _yarn(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    original = _original(config, given, context)
    factor = given.number("factor", context / original, least=1)
    mscale, all_dim = (given.number(n, None, least=0) for n in ("mscale", "mscale_all_dim"))
    scale = sharper(factor)
    if mscale and all_dim:
        scale = sharper(factor, mscale) / sharper(factor, all_dim)
    return {
        "factor": factor,
        "original": original,
        "fast": given.number("beta_fast", 32.0, above=0),
        "slow": given.number("beta_slow", 1.0, above=0),
        "whole": given.flag("truncate", True),
        "scale": given.number("attention_factor", scale, above=0),
    }


def sharper(factor: float, weight: float = 1.0) -> float:
    """What queries and keys are multiplied by with YaRN (arXiv 2309.00071, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1


def _longrope(config: Fields, given: Fields, size: int, context: int) -> dict[str, Any]:
    original = _original(config, given, context)
    factor = given.number("factor", context / original, above=0)
    pairs = (_turned(config, given, size) or size) // 2
    return {
        "factor": factor,
        "original": original,
        "short": _divisors(given, "short_factor", pairs),
        "long": _divisors(given, "long_factor", pairs),
        "scale": given.number("attention_factor", _smoother(factor, original), above=0),
    }


def _smoother(factor: float, original: int) -> float:
    """What queries and keys are multiplied by (arXiv 2402.13753, section 3.3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _divisors(given: Fields, name: str, pairs: int) -> tuple[float, ...]:
    if given.get(name) is None:
        raise given.refused(name, "is needed for rope_type='longrope'")
    found = given.numbers(name, pairs)
    if min(found) <= 0:
        raise given.refused(name, "has a divisor that is not above 0")
    return found


_KINDS = {
    "default": _no_fields,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""rope_type -> what its fields are as `Positions`."""


def written_positions(
    official: str, turned: Turned, size: int, partial: bool = False
) -> dict[str, Any]:
    """The inverse of `read_positions`: fields of config.json, those that are not their defaults.

    How channels are paired (`Positions.neighbours`) is said by the class, not here.

    Args:
      official: the class, for messages.
      turned: what is written.
      size: channels of a head.
      partial: whether this class may turn a part of a head alone.

    Raises:
      UserError: positions that these fields cannot say.
    """
    theta, positions, context = turned
    kind = positions.kind
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if partial:
        found[PARTIAL] = (positions.turned or size) / size
    for name, (theirs, default) in _NAMES[kind].items():
        value = getattr(positions, name)
        if default is None or value != default(positions, context):
            found[theirs] = list(value) if isinstance(value, tuple) else value
    top: dict[str, Any] = {LIMIT: positions.original if kind == "dynamic" else context}
    if kind == "longrope":
        top[ORIGINAL] = positions.original
    config = {**top, "rope_theta": theta, "rope_parameters": found}  # of transformers 4 and 5
    again = read_positions(Fields(config), size, context, partial=float(partial))
    said = dataclasses.replace(positions, neighbours=False, length=0)
    if again != turned._replace(positions=said):
        raise UserError(f"{official} of transformers has no such positions: {shown(said)}")
    return config


def shown(positions: Positions) -> str:
    """The fields that are not their defaults."""
    pairs = ((f.name, f.default) for f in dataclasses.fields(Positions))
    changed = [(name, getattr(positions, name), default) for name, default in pairs]
    return ", ".join(f"{name}={value!r}" for name, value, old in changed if value != old)


_Default = Callable[[Positions, int], Any]


def _always(value: Any) -> _Default:
    return lambda positions, context: value


def _reached(positions: Positions, context: int) -> float:
    return context / positions.original


_FACTOR: dict[str, tuple[str, _Default | None]] = {"factor": ("factor", None)}
_ORIGINAL: dict[str, tuple[str, _Default | None]] = {"original": (ORIGINAL, None)}
_NAMES: dict[str, dict[str, tuple[str, _Default | None]]] = {
    "default": {},
    "linear": _FACTOR,
    "dynamic": _FACTOR,
    "llama3": {
        **_FACTOR,
        **_ORIGINAL,
        "fast": ("high_freq_factor", None),
        "slow": ("low_freq_factor", None),
    },
    "yarn": {
        **_FACTOR,
        **_ORIGINAL,
        "fast": ("beta_fast", _always(32.0)),
        "slow": ("beta_slow", _always(1.0)),
        "whole": ("truncate", _always(True)),
        "scale": ("attention_factor", lambda positions, context: sharper(positions.factor)),
    },
    "longrope": {
        **_ORIGINAL,
        "factor": ("factor", _reached),
        "short": ("short_factor", None),
        "long": ("long_factor", None),
        "scale": ("attention_factor", lambda p, context: _smoother(p.factor, p.original)),
    },
}
"""rope_type -> field of `Positions` -> its name in rope_parameters, and its default there."""


def _theta(config: Fields, given: Fields, default: float) -> float:
    inside, outside = (one.number("rope_theta", None, above=0) for one in (given, config))
    if inside is not None and outside is not None and inside != outside:
        raise config.refused("rope_theta", f"is not that of its rope_parameters, {inside:g}")
    return inside or outside or default


def rope_type(given: Fields) -> Any:
    """How positions are scaled, by what `rope` gives; "default" for not at all."""
    new, old = given.get("rope_type"), given.get("type")
    if new is not None and old is not None and new != old:
        raise given.refused("rope_type", f"is not its type, {old!a}")
    kind = old if new is None else new
    if kind == "su":  # what Phi-3 called it first
        return "longrope"
    return "default" if kind is None else kind


def rope(config: Fields) -> Fields:
    """What config.json says of rotary positions, wherever this version of transformers did."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new is not None and old is not None and new != old:
        raise config.refused("rope_scaling", "is not the same as its rope_parameters")
    return config.part("rope_scaling" if new is None else "rope_parameters")
