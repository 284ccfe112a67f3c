"""Plans a run for machines that need not be here: which mesh, whether it fits, what holds it back.

  gam plan --cluster=v5e:16x16 --config=mine.py
  gam plan --cluster=h100:4x8 --confirm=3   compiles the best: extra `compilers`
  gam plan --cluster=local.toml:8           a profile that `gam measure` wrote
  gam plan check --topology=v5e:2x4         memory beside a compiler's, by case
  gam plan measured --cluster=local.toml:8  seconds beside measured ones, here
  gam plan serve --cluster=h100:1x8 --trace=chat --ttft=0.5 --tpot=0.05

Meshes, presets, parts of a batch and recomputation are priced by formulas, and the best are
printed with the flags that `gam train` takes. Times are predicted: nothing is run.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.table import Table as TextTable

from experiments import cli, plan_check, plan_measured, plan_serve
from experiments.abstract_step import lowered
from experiments.audit import unread
from experiments.config_flags import config_title, define_config_flag, experiment_from_flags
from experiments.planned import run_of
from experiments.tables import print_table
from gam_jax.params import Param
from gam_jax.planning.between import between
from gam_jax.planning.cluster import Cluster, clusters
from gam_jax.planning.cost import OVERLAPS, PENALTY
from gam_jax.planning.order import best_order, seconds
from gam_jax.planning.search import DATA_WORDS, MORE_WORDS, ROWS, Plan, Priced, Space, plan
from gam_jax.planning.targets import GPUS, NAMES, topology
from gam_jax.planning.traces import Run
from gam_jax.planning.work import Work, work_of
from gam_jax.training.checks import check_fits
from gam_jax.training.experiment import Experiment
from sharding import processes
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.layout import Layout
from sharding.mesh import AXIS_NAMES, mesh_from_text
from sharding.topology import Topology, compiled

WORDS = ("train", "serve", "check", "measured")
REPEATS = 5
"""Steps that are measured on each mesh."""
COMPILERS = {profile: name for name, profile in GPUS.items()}
"""Profile of a GPU -> the name that compilers are asked for by."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_string(
        "cluster",
        "",
        "train, serve, measured: NAME:SHAPE of TPUs, or *SLICES after it; NAME:HOSTSxDEVICES; "
        "FILE.toml:DEVICES; A+B for "
        "two joined by a network. Names are those of gam_jax/planning/profiles.toml.",
    )
    flags.DEFINE_list(
        "axes",
        [],
        "train, serve: mesh axes that may have several devices; by the model if empty.",
    )
    flags.DEFINE_list(
        "presets",
        list(DATA_WORDS),
        f"train: uses of the data axis; also {', '.join(MORE_WORDS)} (all degrees of a cluster's "
        "levels).",
    )
    flags.DEFINE_enum("tensor", "tensor_tokens", ["tensor", "tensor_tokens"], "train: its use.")
    flags.DEFINE_enum(
        "remat",
        "auto",
        ["auto", "true", "false", "both"],
        "train: recompute blocks; auto: as --config.",
    )
    flags.DEFINE_integer("parts", 64, "train: the most parts that a batch is taken in.", 1)
    flags.DEFINE_enum("overlap", "none", OVERLAPS, "train: of messages with products.")
    flags.DEFINE_float(
        "penalty",
        PENALTY,
        "train: by what part small products of --overlap=decomposed are slower.",
        0.0,
        10.0,
    )
    flags.DEFINE_float("margin", 1.1, "train, serve: what is held counts so many times.", 1.0, 10.0)
    flags.DEFINE_integer("best", 3, "train, serve: how many are printed.", 1, 1000)
    flags.DEFINE_integer("confirm", 0, "train: compile so many for the machine itself.", 0, 1000)
    cli.define_path(
        "order",
        None,
        "train: bandwidths, as gam measure writes them, for where each device stands.",
    )
    flags.DEFINE_string("topology", "v5e:2x4", "check: the machine that cases are compiled for.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    plan_serve.define_flags()


def main(which: str) -> None:
    """Plans and prints."""
    args = flags.FLAGS
    if which == "check":
        _check(topology(args.topology), args.json)
        return
    if not args.cluster:
        raise UserError("--cluster is not given: say what to plan for, as v5e:16x16 or h100:2x8")
    machines = clusters(args.cluster)
    if which == "measured":
        _measured(machines, args.json)
        return
    experiment = unread(experiment_from_flags())
    if which == "serve":
        plan_serve.main(experiment.model, machines, _axes(experiment, ("stream", "expert")))
        return
    run, space = run_of(experiment, machines.profile), _space(experiment)
    matrix = _matrix(args.order, machines.devices) if args.order else None
    found = plan(
        run,
        machines,
        list(space.candidates(machines.devices, run.batch, machines)),
        args.overlap,
        args.penalty,
        args.margin,
        own=max(args.best, args.confirm),
    )
    if not found.priced and set(found.reasons) == {ROWS}:
        raise UserError(
            f"a batch of {run.batch} rows does not divide over {machines.devices} devices on any "
            f"mesh of {', '.join(space.axes)}: change train.batch or --axes"
        )
    best, struck = _best(found, experiment, args.best, args.confirm, machines)
    result = _result(found, best, struck, machines)
    if matrix is not None and best:
        result["order"] = _order(run, found, best[0][0], matrix)
    if machines.parts and best:
        told = between(run, best[0][0].candidate, _work(run, found, best[0][0]), machines)
        result["between"] = {**dataclasses.asdict(told), "outermost": told.outermost}
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)


def _space(experiment: Experiment) -> Space:
    """What the flags allow; axes that the model has a use for where they say nothing."""
    args, axes = flags.FLAGS, _axes(experiment, ("data", "stream", "expert"))
    for word in args.presets:
        if word not in DATA_WORDS + MORE_WORDS:
            words = ", ".join(DATA_WORDS + MORE_WORDS)
            raise UserError(f"--presets: '{word}' is none of {words}")
    if not hasattr(experiment.model, "remat"):
        raise UserError(
            f"a {type(experiment.model).__name__} computes no blocks again, which plans choose: it "
            f"cannot be planned by this command"
        )
    own = bool(getattr(experiment.model, "remat", False))
    remats = {"auto": (own,), "true": (True,), "false": (False,), "both": (True, False)}
    return Space(axes, tuple(args.presets), args.tensor, remats[args.remat], args.parts)


def _axes(experiment: Experiment, others: tuple[str, ...]) -> tuple[str, ...]:
    """Axes that the flags name; else those of `others` that the model uses, and `tensor`."""
    given = tuple(flags.FLAGS.axes)
    for name in given:
        if name not in AXIS_NAMES:
            raise UserError(f"--axes={','.join(given)}: '{name}' is no axis of a mesh")
        if given.count(name) > 1:
            raise UserError(f"--axes={','.join(given)}: '{name}' stands there twice")
    model = experiment.model
    leaves = jax.tree.leaves(model.table(), is_leaf=lambda x: isinstance(x, Param))
    known = {"data", *(axis for param in leaves for axis in param.axes)}
    return given or (*(name for name in others if name in known), "tensor")


def _best(
    found: Plan, experiment: Experiment, best: int, confirm: int, machines: Cluster
) -> tuple[list[tuple[Priced, dict[str, Any] | None]], list[dict[str, Any]]]:
    """The best that the model takes, and those that the compiler has struck out.

    The first `confirm` of them are compiled, or as many as are printed if that is fewer.
    """
    machine = _machine(machines) if confirm else None
    kept: list[tuple[Priced, dict[str, Any] | None]] = []
    struck = []
    for priced in found.priced:
        if len(kept) == max(best, confirm):
            break
        own = _as_run(experiment, priced)
        try:
            check_fits(own, priced.candidate.layout)
        except UserError as error:
            struck.append({"candidate": priced.candidate.shown, "why": str(error)})
            continue
        answer = None
        if machine is not None and sum(each is not None for _, each in kept) < confirm:
            answer = _compiled(own, priced, machine)
            if answer["reason"]:
                struck.append({"candidate": priced.candidate.shown, "why": answer["reason"]})
                continue
        kept.append((priced, answer))
    return kept, struck


def _machine(machines: Cluster) -> Topology:
    name, _, shape = machines.name.partition(":")
    name = COMPILERS.get(name, name)
    if name not in NAMES:
        raise UserError(f"--confirm: there is no compiler for {name}: {', '.join(NAMES)}")
    return topology(f"{name}:{shape}", "--cluster")


def _as_run(experiment: Experiment, priced: Priced) -> Experiment:
    """The experiment as the candidate has it."""
    one = priced.candidate
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, remat=one.remat),  # type: ignore[call-arg]
        train=dataclasses.replace(experiment.train, accumulate=one.accumulate),
        parallel=one.layout.parallel,
    )


def _compiled(experiment: Experiment, priced: Priced, machine: Topology) -> dict[str, Any]:
    """What the machine's compiler says of a candidate."""
    axes = priced.candidate.axes
    mesh = mesh_from_text(axes, "", machine.devices, machine.hosts)
    step, state, batch = lowered(experiment, Layout(mesh, experiment.parallel))
    found = compiled(step, (state, batch), machine)
    return {"held": found.held, "reason": found.reason, "seconds": found.seconds}


def _result(
    found: Plan,
    best: list[tuple[Priced, dict[str, Any] | None]],
    struck: list[dict[str, Any]],
    machines: Cluster,
) -> dict[str, Any]:
    silent = [level.name for level in machines.levels if not level.latency]
    return {
        "cluster": machines.name,
        "devices": machines.devices,
        "candidates": len(found.priced) + len(found.refused),
        "traces": found.traces,
        "refused": found.reasons,
        "struck": struck,
        "without_latency": silent,
        "best": [_shown(priced, answer) for priced, answer in best],
    }


def _shown(priced: Priced, answer: dict[str, Any] | None) -> dict[str, Any]:
    one, price = priced.candidate, priced.cost
    return {
        "axes": one.axes,
        "mesh": {name: size for name, size in one.mesh if size > 1},
        "levels": list(one.use.sizes),
        "preset": one.preset,
        "shards": one.use.shards,
        "accumulate": one.accumulate,
        "remat": one.remat,
        "schedule": one.schedule if one.sizes["pipe"] > 1 else None,
        "turns": one.turns,
        "seconds": price.seconds,
        "products": price.products,
        "memory": price.memory,
        "messages": dict(price.messages),
        "idle": price.idle,
        "held": round(price.held),
        "capacity": round(price.capacity),
        "limit": price.limit,
        "compiled": answer,
        "flags": f"gam train --config={config_title().replace('-', ':')} {one.flags}",
    }


def _matrix(name: str, devices: int) -> np.ndarray:
    """Bandwidths between devices, bytes a second [N, N]."""
    try:
        found = np.asarray(read_json(pathlib.Path(name), finite=False)["bandwidth"], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--order={name}: it is no matrix that gam measure wrote: {error}"
        ) from error
    if found.shape != (devices, devices):
        raise UserError(
            f"--order={name}: a matrix of {devices} x {devices} devices is needed, and it is "
            f"{' x '.join(map(str, found.shape))}"
        )
    others = found[~np.eye(devices, dtype=bool)]
    if not (np.isfinite(others) & (others > 0)).all():
        raise UserError(f"--order={name}: every bandwidth must be above 0")
    return found


def _work(run: Run, found: Plan, best: Priced) -> Work:
    return work_of(run, best.candidate, found.program(best.candidate))


def _order(run: Run, found: Plan, best: Priced, matrix: np.ndarray) -> dict[str, Any]:
    """Where devices stand on the best mesh, and what that is worth."""
    sizes = best.candidate.in_levels
    sent = dict.fromkeys(sizes, 0.0)
    for message in _work(run, found, best).messages:
        for name in message.axes:
            sent[name] += message.sent / len(message.axes)
    order, best_seconds = best_order(matrix, sizes, sent)
    plain = seconds(range(len(matrix)), matrix, sizes, sent)
    return {"devices": list(order), "seconds": best_seconds, "as_they_are": plain}


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['cluster']}: {result['devices']:,} devices, {result['candidates']:,} candidates, "
        f"{result['traces']} programs traced; times are predicted"
    )
    for reason, count in result["refused"].items():
        print(f"refused {count:,}: {reason}")
    for each in result["struck"]:
        print(f"struck out: {each['candidate']}: {each['why']}")
    if result["without_latency"]:
        print(f"latency counted as 0, nobody has said it: {', '.join(result['without_latency'])}")
    if not result["best"]:
        print("none fits")
        return
    table = TextTable(
        *("mesh", "preset", "parts", "remat", "s a step", "products", "memory", "messages"),
        *("idle", "GiB held", "compiled", "limit"),
    )
    for each in result["best"]:
        answer = each["compiled"]
        messages = ", ".join(f"{name} {took:.3g}" for name, took in each["messages"].items())
        table.add_row(
            each["axes"],
            f"{each['preset']} {each['shards']}".strip(),
            str(each["accumulate"]),
            "yes" if each["remat"] else "no",
            f"{each['seconds']:.3g}",
            f"{each['products']:.3g}",
            f"{each['memory']:.3g}",
            messages or "-",
            f"{each['idle']:.3g}",
            f"{each['held'] / 2**30:.2f} of {each['capacity'] / 2**30:.2f}",
            "-" if answer is None else f"{answer['held'] / 2**30:.2f}",
            each["limit"],
        )
    print_table(table)
    for each in result["best"]:
        print(each["flags"])
    if "between" in result:
        told = result["between"]
        print(f"groups over {', '.join(told['crossing']) or 'no axis'} cross the clusters")
        print(
            f"outermost should be {told['outermost']}: data sends {told['data']:.3g} s a step "
            f"between them, a pipeline {told['pipe']:.3g}"
        )
    if "order" in result:
        order = result["order"]
        print(f"devices in the order {','.join(map(str, order['devices']))}:")
        print(f"messages {order['seconds']:.3g} s a step, {order['as_they_are']:.3g} as they are")


def _measured(machines: Cluster, as_json: bool) -> None:
    """Prints predicted seconds beside measured ones, mesh by mesh, and their rank correlation."""
    if machines.devices != plan_measured.DEVICES:
        raise UserError(f"measured: give {plan_measured.DEVICES} devices, as local.toml:8")
    processes.emulate(plan_measured.DEVICES)
    rows = []
    for row in plan_measured.timed(machines, REPEATS):
        rows.append(row)
        if not as_json:
            shown = f"{row.mesh} {row.preset}, {row.parts} parts"
            print(f"{shown}: predicted {row.predicted:.4g} s, measured {row.measured:.4g} s")
    rank = plan_measured.correlation(rows)
    if as_json:
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "rank": rank}))
    else:
        print(f"rank correlation {rank:.2f}")


def _check(machine: Topology, as_json: bool) -> None:
    """Prints predicted memory beside the compiler's, case by case, and the errors."""
    rows = []
    for row in plan_check.rows(machine):
        rows.append(row)
        if not as_json:
            print(row.shown, flush=True)
    errors = plan_check.errors(rows)
    if as_json:
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], **errors}))
    else:
        print("  ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items()))


if __name__ == "__main__":
    cli.run(main, define_flags, choices=WORDS, otherwise=WORDS[0])
