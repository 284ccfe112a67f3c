"""What a training step sends between devices and holds on each, counted and by formula.

  python -m experiments.audit --emulate=8 --mesh=data=2,seq=2,tensor=2
  python -m experiments.audit --emulate=64 --mesh=data=64 --config.parallel.preset=fully_sharded

Nothing is trained: the step is lowered for the mesh, its collectives are counted in its jaxpr
and priced as rings, and the compiler tells what a device needs for arrays. --nocompile leaves the
compiler out, for meshes of very many devices.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.config_flags import define_config_flag, experiment_from_flags
from experiments.devices import define_device_flags, layout_from_flags
from experiments.tables import print_table
from gam_jax.optimizer import make_optimizer
from gam_jax.params import count_params
from gam_jax.traffic.step import step_traffic
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment
from gam_jax.training.step import abstract_state, make_train_step, state_shardings
from sharding import cost
from sharding.errors import UserError
from sharding.layout import Layout, bytes_held
from sharding.messages import Kind, Total, compiled_messages, messages_of, totals

LONGER = (1, 4, 16)
"""Multiples of the window at which traffic over split tokens is counted."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_bool("compile", True, "Ask the compiler too: memory, and bytes in its program.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main() -> None:
    """Counts, compares and prints."""
    args = flags.FLAGS
    experiment = with_vocab(experiment_from_flags())
    layout = layout_from_flags(experiment.parallel)
    check_batch(experiment, layout)
    check_fits(experiment, layout)
    result = audit(experiment, layout, args.compile)
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)


def with_vocab(experiment: Experiment) -> Experiment:
    """The experiment with its vocabulary, as far as the tokenizer's name tells it.

    Raises:
      UserError: the name does not tell it.
    """
    if experiment.model.vocab is not None:
        return experiment
    name, _, size = experiment.data.tokenizer.partition(":")
    if name not in ("bytes", "bpe"):
        raise UserError(
            f"data.tokenizer={experiment.data.tokenizer} does not tell its size: set "
            f"--config.model.vocab"
        )
    vocab = int(size) if name == "bpe" else 256
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab=vocab))


def audit(experiment: Experiment, layout: Layout, compiles: bool) -> dict[str, Any]:
    """Communication and memory of a training step, as JSON values; bytes are of one device."""
    step, state, batch = _lowered(experiment, layout)
    counted = totals(messages_of(step, state, batch))
    settings = experiment.train
    sizes = settings.batch, experiment.data.window, settings.accumulate
    rules_changed = bool(experiment.parallel.rules)
    expected = {} if rules_changed else totals(step_traffic(experiment.model, layout, *sizes))
    result = {
        "mesh": layout.shown,
        "preset": experiment.parallel.preset,
        "rows": [_row(kind, counted, expected) for kind in sorted({*counted, *expected})],
        "agree": None if rules_changed else counted == expected,
        "longer": longer_sequences(experiment, layout),
        "memory": state_memory(experiment, layout),
    }
    if compiles:
        program = step.lower(state, batch).compile()
        analysis = program.memory_analysis()
        result["memory"] |= {
            "arguments, by the compiler": analysis.argument_size_in_bytes,
            "activations and other temporaries": analysis.temp_size_in_bytes,
        }
        sent = sum(message.sent for message in compiled_messages(program.as_text()))
        result["compiled_sent"] = sent
    return result


def _lowered(experiment: Experiment, layout: Layout) -> tuple[Any, Any, Any]:
    """The step and abstract arguments for it."""
    model, settings = experiment.model, experiment.train
    optimizer = make_optimizer(experiment.optimizer, settings.steps, model.table())
    step = make_train_step(model, optimizer, layout, settings.accumulate)
    shape = (settings.batch, experiment.data.window)
    if settings.accumulate > 1:
        shape = (settings.accumulate, settings.batch // settings.accumulate, shape[1])
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {"inputs": ids, "targets": ids, "weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
    return step, abstract_state(model, optimizer), batch


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
    """Bytes of parameters and optimizer state on one device, and on one device alone."""
    model = experiment.model
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, model.table())
    state = abstract_state(model, optimizer)
    placed = state_shardings(model, optimizer, layout)

    return {
        "parameters": bytes_held(state.params, placed.params),
        "optimizer state": bytes_held(state.opt_state, placed.opt_state),
        "both on one device alone": cost.adam_state(4 * count_params(model.table()), 1, "data"),
    }


def longer_sequences(experiment: Experiment, layout: Layout) -> list[dict[str, int]]:
    """Bytes sent over `seq` in a step as windows grow, beside those of ring attention."""
    shards = layout.mesh.shape["seq"]
    if shards == 1:
        return []
    rows = experiment.train.batch // layout.row_parts
    model, found = experiment.model, []
    for multiple in LONGER:
        window = multiple * experiment.data.window
        longer = dataclasses.replace(
            experiment,
            model=with_context(model, multiple),
            data=dataclasses.replace(experiment.data, window=window),
        )
        counted = totals(messages_of(*_lowered(longer, layout)))
        kinds = (kind for kind in counted if kind[1] == ("seq",) and kind[0] != "all_reduce")
        sent = sum(counted[kind].sent for kind in kinds)  # sums are of gradients
        ring = model.depth * cost.ring_attention(rows, window, model.width, shards)
        found.append({"tokens": window, "halo_sent": sent, "ring_attention_sent": ring})
    return found


def with_context(config: Any, multiple: int) -> Any:
    """A model, or a layer, with every `context` in it that many times as long."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_context(value, multiple)
        elif field.name == "context":
            changes[field.name] = multiple * value
    return dataclasses.replace(config, **changes)


def _print(result: dict[str, Any]) -> None:
    table = TextTable(
        "collective", "axes", "count", "bytes sent", "by formula", title="a step, on each device"
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
    memory = TextTable("held by each device", "bytes")
    for name, size in result["memory"].items():
        memory.add_row(name, f"{size:,}")
    print_table(memory)
    if result["longer"]:
        longer = TextTable("tokens", "sent over seq", "ring attention would send")
        for row in result["longer"]:
            longer.add_row(*(f"{value:,}" for value in row.values()))
        print_table(longer)


if __name__ == "__main__":
    cli.run(main, define_flags)
