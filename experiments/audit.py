"""What a training step sends between devices and holds on each, counted and by formula.

  gam audit --emulate=8 --mesh=data=2,seq=2,tensor=2
  gam audit --emulate=64 --mesh=data=64 --config.parallel.preset=fully_sharded
  gam audit --emulate=8 --mesh=data=2x2x2 \\
    --config.parallel.shards=weights:2,gradients:4,state:8
  gam audit --topology=v5e:4x4 --config.parallel.preset=fully_sharded

Nothing is trained: the step is lowered for the mesh, its collectives are counted in its jaxpr
and priced as rings, and the compiler tells what a device needs for arrays. --nocompile leaves the
compiler out, for meshes of very many devices.

With --topology the compiler is that of a machine which need not be there: a slice of TPUs, as
v5e:4x4 (v5e:4x4*2 for two of them), or hosts of GPUs, as h100:2x8. It needs the extra `compilers`.
--every-layer compiles a small model of each layer for it, of four devices: docs/accelerators.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from rich.table import Table as TextTable

from experiments import cli, every_layer, rings
from experiments.abstract_step import lowered
from experiments.adapt import adapt_from_flags, define_adapter_flags
from experiments.config_flags import define_config_flag, experiment_from_flags
from experiments.devices import define_device_flags, layout_from_flags
from experiments.streams import language_model
from experiments.tables import print_table
from gam_jax.data.base import Unread
from gam_jax.data.text import Text
from gam_jax.master import Mastered
from gam_jax.models import LanguageModel
from gam_jax.models.base import on_stages
from gam_jax.nested import with_held
from gam_jax.params import shardings
from gam_jax.planning.targets import GPUS, topology
from gam_jax.traffic import StateBytes, has_formula, state_bytes, step_bytes
from gam_jax.traffic.pipeline import Stages, stages_of
from gam_jax.traffic.rounds import round_traffic
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment, run_optimizer
from gam_jax.training.rounds import round_specs
from gam_jax.training.state import abstract_state, state_shardings
from gam_jax.training.step import batch_specs
from sharding import cost
from sharding.degrees import Degrees
from sharding.errors import UserError
from sharding.host_memory import DEVICE, HOST, copied, on_host
from sharding.layout import Layout, bytes_held
from sharding.messages import Kind, Total, compiled_messages, messages_of, totals
from sharding.topology import TPUS, Topology, compiled
from sharding.whole_file import write_atomically

AWAY = "of it in the host's memory"
LONGER = (1, 4, 16)
"""Multiples of the window at which traffic over split tokens is counted."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_bool("compile", True, "Ask the compiler too: memory, and bytes in its program.")
    flags.DEFINE_string(
        "topology",
        "",
        f"Compile for that machine: NAME:SHAPE, or *SLICES after it, of {', '.join(TPUS)}; "
        f"NAME:HOSTSxGPUS of {', '.join(GPUS)}.",
    )
    flags.DEFINE_bool(
        "every_layer",
        False,
        f"Compile a small step of every layer for --topology, and write {every_layer.PAGE}.",
    )
    flags.DEFINE_list("layers", [], "With --every-layer: of these alone; other rows stay.")
    flags.DEFINE_string(
        "rates",
        "",
        "Operations and bytes a second, as 200e12,150e9: what products and messages at the ends of "
        "layers take, one by one and in a ring. A third number: by what part products in steps "
        "are slower.",
    )
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_adapter_flags()
    define_device_flags()


def main() -> None:
    """Counts, compares and prints."""
    args = flags.FLAGS
    if args.every_layer:
        _every_layer(args.topology, every_layer.chosen(args.layers))
        return
    if args.layers:
        raise UserError("--layers are rows of a table: give --every-layer too")
    experiment = unread(adapt_from_flags(experiment_from_flags()))
    machine = topology(args.topology) if args.topology else None
    layout = layout_from_flags(experiment.parallel, topology=machine)
    check_batch(experiment, layout)
    check_fits(experiment, layout)
    rates = rings.rates_of(args.rates) if args.rates else None
    doors = rings.times(experiment, layout, rates) if rates else []
    result = audit(experiment, layout, args.compile, machine) | ({"doors": doors} if rates else {})
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)
        if rates:
            rings.print_times(doors, rates)


def _every_layer(name: str, layers: Sequence[type]) -> None:
    """Prints the table of some layers, and writes each row where the page has a place for it."""
    if not name:
        raise UserError("--every-layer needs a machine: give --topology, as v5e:2x2")
    machine, found = topology(name), []
    for row in every_layer.rows(machine, layers, lambda line: print(line, file=sys.stderr)):
        found.append(row)
        print(every_layer.table([row]).splitlines()[-1], file=sys.stderr)
        if every_layer.PAGE.is_file():
            page = every_layer.PAGE.read_text(encoding="utf-8")
            write_atomically(every_layer.PAGE, every_layer.kept(page, name, [row]))
    print(every_layer.table(found))


def unread(experiment: Experiment) -> Experiment:
    """The experiment with its model fitted to its data, as far as these are known unread.

    Raises:
      UserError: the model needs to know more, as the size of a tokenizer that is a file.
    """
    model, data = experiment.model, experiment.data
    if isinstance(model, LanguageModel):
        if model.vocab is not None:
            packed = bool(data.sizes().get("packed", 0))
            return dataclasses.replace(experiment, model=dataclasses.replace(model, packed=packed))
        if isinstance(data, Text) and "vocab" not in data.sizes():
            raise UserError(
                f"data.tokenizer={data.tokenizer} does not tell its size: set --config.model.vocab"
            )
    return dataclasses.replace(experiment, model=model.fitted(Unread(data)))


def audit(
    experiment: Experiment, layout: Layout, compiles: bool, machine: Topology | None = None
) -> dict[str, Any]:
    """Communication and memory of a training step, as JSON values; bytes are of one device.

    Args:
      experiment: with a model that is fitted to its data.
      layout: the mesh, of the machine's devices if there is one.
      compiles: whether to ask the compiler.
      machine: whose compiler; that of JAX's own devices if None.
    """
    step, state, batch = lowered(experiment, layout)
    counted = totals(messages_of(step, state, batch))
    formula = expected_traffic(experiment, layout)
    expected = {} if formula is None else formula
    result = {
        "mesh": layout.shown,
        "preset": experiment.parallel.preset,
        "steps": experiment.train.local.every,
        "rows": [_row(kind, counted, expected) for kind in sorted({*counted, *expected})],
        "agree": None if formula is None else counted == formula,
        "longer": longer_sequences(experiment, layout),
        "memory": state_memory(experiment, layout),
        "memory_by_formula": memory_by_formula(experiment, layout),
    }
    if experiment.parallel.offload:
        result["offload"] = copied_bytes(experiment, layout)
    if layout.degrees != Degrees():
        result["degrees"] = dataclasses.asdict(layout.degrees)
        result["in_a_step"] = dataclasses.asdict(step_bytes(experiment.model, layout))
    if layout.stages > 1 and formula is not None:
        result["schedule"] = experiment.parallel.schedule
        result["stages"] = dataclasses.asdict(kept_by_stages(experiment, layout))
    if compiles and machine is not None:
        found = dataclasses.asdict(compiled(step, (state, batch), machine))
        by_formula = {"arguments_by_formula": argument_bytes(experiment, layout)}
        result["topology"] = {"name": machine.name, **found, **by_formula}
    elif compiles:
        program = step.lower(state, batch).compile()
        analysis = program.memory_analysis()
        result["memory"] |= {
            "arguments, by the compiler": analysis.argument_size_in_bytes,
            "activations and other temporaries": analysis.temp_size_in_bytes,
        }
        sent = sum(message.sent for message in compiled_messages(program.as_text()))
        result["compiled_sent"] = sent
    return result


def expected_traffic(experiment: Experiment, layout: Layout) -> dict[Kind, Total] | None:
    """What a step should send by the formulas.

    None where there are none: for changed rules, where only some parameters are trained, and where
    logits are trained apart.
    """
    changed = experiment.parallel.rules or experiment.optimizer.only or experiment.train.bilevel.on
    if changed or not has_formula(experiment.model, layout):
        return None
    settings, data = experiment.train, experiment.data
    length = getattr(data, "window", 0) or getattr(data, "samples", 0)
    sizes = settings.batch, length, settings.accumulate
    return totals(round_traffic(experiment.model, layout, settings.local, *sizes))


def kept_by_stages(experiment: Experiment, layout: Layout) -> Stages:
    """What the schedule of the stages costs."""
    settings, window = experiment.train, getattr(experiment.data, "window", 0)
    rows = settings.batch // settings.accumulate
    return stages_of(experiment.model, layout, rows, window, settings.parts)


def _row(kind: Kind, counted: dict[Kind, Total], expected: dict[Kind, Total]) -> dict[str, Any]:
    found, wanted = counted.get(kind, Total()), expected.get(kind)
    return {
        "collective": kind[0],
        "axes": list(kind[1]),
        "count": found.count,
        "sent": found.sent,
        "formula_count": wanted.count if wanted else None,
        "formula_sent": wanted.sent if wanted else None,
    }


def state_memory(experiment: Experiment, layout: Layout) -> dict[str, int]:
    """Bytes of parameters and optimizer state on each device, and on one device alone."""
    model = experiment.model
    optimizer = run_optimizer(experiment)
    state = abstract_state(on_stages(model, layout)[0], optimizer)
    placed = state_shardings(model, optimizer, layout)

    held = {
        "parameters": bytes_held(state.params, placed.params),
        "optimizer state": bytes_held(state.opt_state, placed.opt_state),
    }
    if isinstance(state.opt_state, Mastered):
        master = bytes_held(state.opt_state.master, placed.opt_state.master)
        held["of it the float32 master copy"] = master
    if experiment.parallel.offload:
        leaves = zip(
            jax.tree.leaves(state.opt_state), jax.tree.leaves(placed.opt_state), strict=True
        )
        held[AWAY] = sum(bytes_held(x, lies) for x, lies in leaves if on_host(lies))
    alone = _state_bytes(experiment, None).total
    return {**held, "both on one device alone": alone}


def memory_by_formula(experiment: Experiment, layout: Layout) -> dict[str, int]:
    """What `state_memory` should find, from sizes and dtypes."""
    found = _state_bytes(experiment, layout)
    master = {"of it the float32 master copy": found.master} if found.master else {}
    away = {AWAY: found.host} if experiment.parallel.offload else {}
    return {"parameters": found.parameters, "optimizer state": found.optimizer, **master, **away}


def _state_bytes(experiment: Experiment, layout: Layout | None) -> StateBytes:
    train = experiment.train
    return state_bytes(experiment.model, experiment.optimizer, layout, train.local, train.bilevel)


def copied_bytes(experiment: Experiment, layout: Layout) -> dict[str, int]:
    """Bytes that a step copies between a device and the host's memory, counted and by formula."""
    step, state, batch = lowered(experiment, layout)
    found = copied(jax.make_jaxpr(step)(state, batch).jaxpr)
    away = _state_bytes(experiment, layout).host
    return {"to_devices": found[DEVICE], "to_host": found[HOST], "each_by_formula": away}


def argument_bytes(experiment: Experiment, layout: Layout) -> int:
    """What a step is given on each device: state by formula, the batch, the step and the key."""
    settings, model = experiment.train, experiment.model
    _, state, batch = lowered(experiment, layout)
    specs = round_specs if settings.local.on else batch_specs
    placed = shardings(specs(model, layout, settings.accumulate), layout)
    whole = NamedSharding(layout.mesh, PartitionSpec())
    scalars = (state.step, state.key)
    held = bytes_held(batch, placed) + bytes_held(scalars, (whole, whole))
    state_held = _state_bytes(experiment, layout)
    return state_held.total - state_held.host + held


def longer_sequences(experiment: Experiment, layout: Layout) -> list[dict[str, int]]:
    """Bytes sent over `seq` in a step as windows grow, beside those of ring attention."""
    shards, data = layout.mesh.shape["seq"], experiment.data
    if shards == 1 or not isinstance(data, Text):
        return []
    rows = experiment.train.batch // layout.row_parts
    model, found = language_model(experiment), []
    for multiple in LONGER:
        window = multiple * data.window
        longer = dataclasses.replace(
            experiment,
            model=with_context(model, multiple),
            data=dataclasses.replace(data, window=window),
        )
        counted = totals(messages_of(*lowered(longer, layout)))
        kinds = (kind for kind in counted if kind[1] == ("seq",) and kind[0] != "all_reduce")
        sent = sum(counted[kind].sent for kind in kinds)  # sums are of gradients
        ring = model.depth * cost.ring_attention(rows, window, model.width, shards)
        found.append({"tokens": window, "halo_sent": sent, "ring_attention_sent": ring})
    return found


def with_context(config: Any, multiple: int) -> Any:
    """A model, or a layer, with every `context` in it that many times as long."""
    own = {"context": multiple * config.context} if hasattr(config, "context") else {}
    return with_held(config, lambda inner: with_context(inner, multiple), **own)


def _print(result: dict[str, Any]) -> None:
    what = "a step" if result["steps"] == 1 else f"a round of {result['steps']} steps"
    table = TextTable(
        "collective", "axes", "count", "bytes sent", "by formula", title=f"{what}, on each device"
    )
    for row in result["rows"]:
        formula = "-" if row["formula_sent"] is None else f"{row['formula_sent']:,}"
        axes = " x ".join(row["axes"])
        cells = (row["collective"], axes, f"{row['count']:,}", f"{row['sent']:,}", formula)
        table.add_row(*cells)
    print(f"{result['mesh']}, {result['preset']}")
    print_table(table)
    if result["agree"] is not None:
        print(
            "counts and bytes " + ("equal" if result["agree"] else "DIFFER from") + " the formulas"
        )
    if "compiled_sent" in result:
        print(f"{result['compiled_sent']:,} bytes in the compiled program")
    memory = TextTable("held by each device", "bytes", "by formula")
    for name, size in result["memory"].items():
        formula = result["memory_by_formula"].get(name)
        memory.add_row(name, f"{size:,}", "-" if formula is None else f"{formula:,}")
    print_table(memory)
    if "degrees" in result:
        _print_degrees(result["degrees"], result["in_a_step"])
    if "offload" in result:
        found = result["offload"]
        print(
            f"copied in a step: {found['to_devices']:,} bytes of moments to the device and "
            f"{found['to_host']:,} back to the host's memory; by formula "
            f"{found['each_by_formula']:,} each way"
        )
    if "stages" in result:
        _print_stages(result["schedule"], result["stages"])
    if "topology" in result:
        _print_machine(result["topology"])
    if result["longer"]:
        longer = TextTable("tokens", "sent over seq", "ring attention would send")
        for row in result["longer"]:
            longer.add_row(*(f"{value:,}" for value in row.values()))
        print_table(longer)


def _print_degrees(degrees: dict[str, int], held: dict[str, int]) -> None:
    """How state is split over `data`, and what a step holds for a while."""
    parts = (f"{kind} {degree}" for kind, degree in degrees.items() if degree)
    print(f"split over so many devices of data: {', '.join(parts)}")
    kind = "a second copy of parameters" if degrees["secondary"] else "parameters in few bits"
    second = f", {kind} {held['secondary']:,}" if held["secondary"] else ""
    print(f"while a step runs, by formula: gradients {held['gradients']:,} bytes{second}")


def _print_stages(schedule: str, found: dict[str, Any]) -> None:
    """What a schedule leaves idle and keeps."""
    print(
        f"{schedule}: {found['parts']} parts through {found['stages']} stages, chunks a stage: "
        f"{found['turns']}; {found['ticks']} ticks each way"
    )
    print(
        f"idle {found['idle']:.1%} by the table, {found['idle_by_formula']:.1%} by "
        f"(p - 1) / (v m + p - 1); idle stages work too, and send as much"
    )
    print(
        f"kept between ticks, each of {found['input_bytes']:,} bytes: inputs "
        f"{found['inputs_kept']}, gradients {found['gradients_kept']}"
    )


def _print_machine(found: dict[str, Any]) -> None:
    """What a machine's compiler made of the step."""
    answer = {True: "it fits", False: "it does not fit", None: "it does not compile"}
    print(f"{found['name']}: {answer[found['fits']]} (compiled in {found['seconds']:.1f} s)")
    if found["reason"]:
        print(found["reason"])
    memory = TextTable("on each device, by its compiler", "bytes", "by formula")
    for name, size, formula in (
        ("arguments", found["arguments"], found["arguments_by_formula"]),
        ("held at most", found["held"], None),
        ("memory for programs", found["memory"], None),
        ("sent", found["sent"], None),
    ):
        memory.add_row(name, *("-" if x is None else f"{x:,}" for x in (size, formula)))
    print_table(memory)
    if found["collectives"]:
        counts = (f"{name} {count:,}" for name, count in found["collectives"].items())
        print(f"collectives: {', '.join(counts)}")


if __name__ == "__main__":
    cli.run(main, define_flags)
