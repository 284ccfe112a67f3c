"""`gam plan serve`: how to serve a model on machines that need not be here."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.table import Table as TextTable

from experiments.tables import print_table
from gam_jax.models.language import LanguageModel
from gam_jax.planning.cluster import Cluster
from gam_jax.planning.requests import TRACES, Asked, drawn, read_trace
from gam_jax.planning.serve_search import (
    SHARE,
    Arriving,
    Bounds,
    Served,
    in_halves,
    plan,
    told_flags,
    ways,
)
from sharding.errors import UserError
from sharding.paths import local_path


def define_flags() -> None:
    """What is told of requests, and what is tried."""
    flags.DEFINE_string(
        "trace", "chat", "serve: summarisation, creation, chat, or a file: arrives,reads,writes."
    )
    flags.DEFINE_float(
        "rate", 0.0, "serve: requests a second; 0: all at once, or as the file says.", 0.0
    )
    flags.DEFINE_integer("requests", 256, "serve: how many of them; 0 for all of the trace.", 0)
    flags.DEFINE_integer("requests_seed", 0, "serve: of lengths and arrivals that are drawn.", 0)
    flags.DEFINE_list("rows", ["8", "32", "128"], "serve: texts in progress at once, of a replica.")
    flags.DEFINE_list("budgets", ["512"], "serve: tokens of prompts that are read in one turn.")
    flags.DEFINE_float(
        "ttft", 0.0, f"serve: seconds to a first token for {SHARE:.0%} of requests; 0: any.", 0.0
    )
    flags.DEFINE_float(
        "tpot", 0.0, f"serve: seconds a token after it for {SHARE:.0%} of requests; 0: any.", 0.0
    )
    flags.DEFINE_float(
        "host_seconds", 0.0, "serve: of the host, to begin a program; 0: none.", 0.0, 1.0
    )


def main(model: Any, machines: Cluster, axes: Sequence[str]) -> None:
    """Plans and prints."""
    args = flags.FLAGS
    if not isinstance(model, LanguageModel):
        raise UserError(f"plan serve: {type(model).__name__} is no language model: it writes none")
    arriving, rate = _requests()
    bounds = Bounds(args.ttft or math.inf, args.tpot or math.inf)
    tried = list(ways(machines.devices, axes, _numbers("rows"), _numbers("budgets", 256)))
    found = plan(model, machines, tried, arriving, rate, bounds, args.margin, args.host_seconds)
    result = {
        "cluster": machines.name,
        "devices": machines.devices,
        "requests": len(arriving(math.inf)),
        "ways": len(tried),
        "traces": found.traces,
        "refused": found.reasons,
        "why": next((f"{way.shown}: {why}" for way, _, why in found.refused if why), ""),
        "best": [
            _shown(each, in_halves(model, machines, each, found.programs))
            for each in found.served[: args.best]
        ],
    }
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)


def _requests() -> tuple[Arriving, float]:
    """The requests at any rate, and the rate that the flags ask for."""
    args = flags.FLAGS
    if args.trace in TRACES:
        use = TRACES[args.trace]

        @functools.cache
        def arriving(rate: float) -> tuple[Asked, ...]:
            return drawn(use, rate, args.requests_seed, args.requests)

        return arriving, args.rate or math.inf
    found = read_trace(pathlib.Path(local_path(args.trace)))
    found = found[: args.requests or len(found)]
    if args.rate and found[-1].arrives == 0:
        raise UserError(
            f"--trace={args.trace}: its requests all arrive at once, and no --rate spreads them: "
            f"leave --rate out, or give times"
        )
    if args.rate or found[-1].arrives == 0:
        return functools.partial(_stretched, found), args.rate or math.inf
    return functools.partial(_stretched, found), (len(found) - 1) / found[-1].arrives


def _stretched(found: tuple[Asked, ...], rate: float) -> tuple[Asked, ...]:
    """Requests of a file, in such a time that they come at another rate."""
    last = found[-1].arrives
    factor = (len(found) - 1) / rate / last if last else 0.0
    return tuple(dataclasses.replace(one, arrives=factor * one.arrives) for one in found)


def _numbers(flag: str, least: int = 1) -> list[int]:
    words = getattr(flags.FLAGS, flag)
    try:
        found = sorted({int(word) for word in words})
    except ValueError as error:
        raise UserError(f"--{flag}={','.join(words)}: give whole numbers, as 8,32") from error
    if not found or found[0] < least:
        raise UserError(f"--{flag}={','.join(words)}: give numbers of at least {least}")
    return found


def _shown(each: Served, halves: float | None) -> dict[str, Any]:
    return {
        "replicas": each.way.replicas,
        "mesh": {name: size for name, size in each.way.mesh if size > 1},
        "rows": each.way.rows,
        "prefill_budget": each.way.budget,
        "requests_a_second": each.rate if math.isfinite(each.rate) else None,
        "tokens_a_second": each.tokens,
        "first": {"median": each.first[0], "most": each.first[1]},
        "between": {"median": each.between[0], "most": each.between[1]},
        "busy": each.busy,
        "left_their_rows": each.left,
        "pages": each.sizes.pages,
        "held": round(each.held),
        "capacity": round(each.capacity),
        "step": {
            "seconds": each.step.seconds,
            "products": each.step.products,
            "memory": each.step.memory,
            "messages": dict(each.step.messages),
            "in_halves": halves,
        },
        "flags": f"gam serve --run=RUN {told_flags(each)}",
    }


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['cluster']}: {result['devices']:,} devices, {result['requests']:,} requests, "
        f"{result['ways']:,} ways, {result['traces']} programs traced; times are predicted"
        f"{'' if flags.FLAGS.host_seconds else ', and the host counts for nothing'}"
    )
    for reason, count in result["refused"].items():
        print(f"refused {count:,}: {reason}")
    if not result["best"]:
        print(f"none can be: {result['why']}" if result["why"] else "none can be")
        return
    table = TextTable(
        *("replicas", "mesh", "rows", "requests/s", "tokens/s", "first token, s", "a token, s"),
        *("busy", "GiB held"),
    )
    for each in result["best"]:
        rate = each["requests_a_second"]
        table.add_row(
            str(each["replicas"]),
            ",".join(f"{name}={size}" for name, size in each["mesh"].items()) or "one device",
            str(each["rows"]),
            "at once" if rate is None else f"{rate:.3g}",
            f"{each['tokens_a_second']:,.0f}",
            *(f"{each[n]['median']:.3g}, {each[n]['most']:.3g}" for n in ("first", "between")),
            f"{each['busy']:.0%}",
            f"{each['held'] / 2**30:.2f} of {each['capacity'] / 2**30:.2f}",
        )
    print_table(table)
    first = result["best"][0]["step"]
    halves = "" if first["in_halves"] is None else f"; in halves {first['in_halves']:.3g} s"
    print(
        f"a step of the first takes {first['seconds']:.3g} s where texts are half written{halves}"
    )
    print(f"seconds are the median, and what {SHARE:.0%} of the requests keep; of each replica:")
    for each in result["best"]:
        print(each["flags"])
