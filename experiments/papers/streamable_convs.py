"""Networks trained offline that run on a stream: what a stream loses, and what it costs.

Source: "Streamable Neural Audio Synthesis With Non-Causal Convolutions" (arXiv 2204.07064).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.found import Found
from gam_jax.data import Sounds
from gam_jax.data.drawn import TO_SCORE
from gam_jax.layers.convolution import causal
from gam_jax.layers.delayed import Node, started, streamed
from gam_jax.models.autoencoder import Autoencoder
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params, init_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh

STEPS = {"short": 10, "cpu": 600}
MODEL = Autoencoder()
SOUNDS = Sounds(samples=1024, scored=48)
CHUNK = 128
BUFFERS = (128, 512, 2048)
"""Samples that come in at a time."""


def experiment(model: Autoencoder, setting: Setting) -> Experiment:
    """Sixteen sounds of 1,024 samples an update."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=model,
        data=SOUNDS,
        train=TrainConfig(steps=steps, batch=16, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            warmup=max(1, steps // 20),
            final=0.1,
            beta2=0.99,
            weight_decay=0.0,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def as_streams(run: RunFolder, experiment: Experiment) -> dict[str, float]:
    """What a finished run gives as a stream, and with its padding forced to be causal."""
    model: Any = experiment.model
    _, params = load_params(run, experiment, Layout(make_mesh()))
    data: Any = experiment.data
    rows = [data.row(TO_SCORE, number)["audio"] for number in range(data.scored)]
    return compared(model.network, jax.device_get(params)["network"], np.stack(rows))


def compared(network: Node, params: Params, audio: np.ndarray) -> dict[str, float]:
    """Losses behind a field of zeros: offline, as a stream, and forced to be causal.

    What is forced to be causal is scored at the shift that suits it best.
    """
    zeros = -(-network.field // CHUNK) * CHUNK
    x = np.pad(audio, ((0, 0), (zeros, 0)))[..., None]
    late, samples = network.delay(), audio.shape[1]
    run = {
        "offline": jax.jit(network.__call__)(params, x),
        "stream": jax.jit(lambda p, x: streamed(network, p, x, CHUNK))(params, x),
        "causal": jax.jit(causal(network).__call__)(params, x),
    }
    made = {name: np.asarray(y)[..., 0] for name, y in run.items()}
    shown = samples - late

    def loss(y: np.ndarray, shift: int) -> float:
        error = np.mean((y[:, zeros + shift :][:, :shown] - audio[:, :shown]) ** 2, 1)
        return float(np.mean(error / (np.mean(audio[:, :shown] ** 2, 1) + 1e-8)))

    apart = made["stream"][:, zeros + late :] - made["offline"][:, zeros : zeros + shown]
    stream = loss(made["stream"], late)
    forced = min(loss(made["causal"], shift) for shift in range(late + 1))
    return {
        "offline_loss": loss(made["offline"], 0),
        "stream_loss": stream,
        "apart": float(np.abs(apart).max()),
        "causal_loss": forced,
        "causal_times": forced / stream,
    }


@functools.cache
def _parameters() -> Params:
    return init_params(MODEL.table(), jax.random.key(0))["network"]


def of_buffers(samples: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """A step of the stream, and the exact way without one: the field before each buffer again."""
    network = MODEL.network
    again = -(-(network.field - 1) // network.multiple) * network.multiple
    x = jnp.zeros((1, samples, 1))
    return {
        "stream": (network.stream, (_parameters(), x, started(network, 1, 1))),
        "save": (network.__call__, (_parameters(), jnp.zeros((1, samples + again, 1)))),
    }


def operations(samples: int) -> dict[str, float]:
    """Counted by XLA, for one buffer."""
    counts = {}
    for name, (call, given) in of_buffers(samples).items():
        cost: Any = jax.jit(call).lower(*given).cost_analysis()
        counts[name] = float(cost["flops"])
    again = of_buffers(samples)["save"][1][1].shape[1]
    ratio = counts["save"] / counts["stream"]
    return {"operations": counts["stream"] / samples, "ratio": ratio / (again / samples)}


def calls(which: str) -> Mapping[str, Callable[[], Any]]:
    """One buffer of each size, compiled."""
    found: dict[str, Callable[[], Any]] = {}
    for samples in BUFFERS:
        call, given = of_buffers(samples)[which]
        program = jax.jit(call)
        found[f"time_{samples}"] = lambda program=program, given=given: jax.block_until_ready(
            program(*given)
        )
    return found


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """A sound offline, as a stream and forced to be causal, where a run of `free` is there."""
    folder = path.parent / found.scale / "free-0"
    if not folder.is_dir():
        return
    run = RunFolder(folder)
    experiment = run.experiment()
    model: Any = experiment.model
    data: Any = experiment.data
    _, params = load_params(run, experiment, Layout(make_mesh()))
    network, own = model.network, jax.device_get(params)["network"]
    x = data.row(TO_SCORE, 0)["audio"][None, :, None]
    made = {
        "offline": network(own, x),
        f"as a stream, {network.delay()} samples late": streamed(network, own, x, CHUNK),
        "the same weights forced to be causal": causal(network)(own, x),
    }
    with drawn(path, 9, 5) as figure:
        for axes, (name, y) in zip(figure.subplots(3, 1, sharex=True), made.items(), strict=True):
            axes.plot(x[0, :400, 0], color="#bbbbbb", label="given")
            axes.plot(np.asarray(y)[0, :400, 0], color="#08519c", label=name)
            axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
            axes.set_ylim(-1, 1.4)
            axes.grid(alpha=0.25)
        figure.axes[-1].set_xlabel("sample")


STUDY = Study(
    name="streamable-convs",
    title="Non-causal convolutions on a stream",
    source="arXiv 2204.07064",
    page="papers/streamable_convs.md",
    arms={
        "free": Arm(
            "sees ahead, streams late", experiment=lambda s: experiment(MODEL, s), also=as_streams
        ),
        "causal": Arm(
            "trained causal",
            experiment=lambda s: experiment(dataclasses.replace(MODEL, causal=True), s),
            also=as_streams,
        ),
        **{
            f"buffer_{n}": Arm(
                f"buffers of {n}", numbers=lambda s, seed, n=n: operations(n), exact=True
            )
            for n in BUFFERS
        },
        "stream": Arm("a step of the stream", timed=lambda s: calls("stream")),
        "save": Arm("overlap and save", timed=lambda s: calls("save")),
    },
    measures={
        "loss": Measure("loss in training's validation", "lower", "of silence's"),
        "offline_loss": Measure("offline", "lower", "of silence's"),
        "stream_loss": Measure("as a stream", "lower", "of silence's"),
        "apart": Measure("farthest apart", "lower", form=".1e"),
        "causal_loss": Measure("same weights forced causal", "lower", "of silence's"),
        "causal_times": Measure("of the stream's loss", form=".2f"),
        "parameters": Measure("parameters", form=",.0f"),
        "operations": Measure("operations a sample", "lower", form=",.0f"),
        "ratio": Measure("of overlap-save over stream, by (N + R) / N", form=".4f"),
        **{f"time_{n}": Measure(f"buffer of {n}", "lower", "s", ".5f") for n in BUFFERS},
    },
    claims=(
        Claim(
            "A stream is the offline output: no sample is off by 1e-5",
            "at_most",
            ("free",),
            "apart",
            1e-5,
            source="abstract",
        ),
        Claim(
            "The same weights forced to be causal are worse, at the shift that suits them best",
            "at_least",
            ("free",),
            "causal_times",
            1.0,
            source="ours",
        ),
        Claim(
            "What sees ahead learns better than what does not",
            "lower",
            ("free", "causal"),
            "loss",
            source="ours",
        ),
        Claim(
            "Operations of overlap-save over those of the stream are (N + R) / N",
            "near",
            tuple(f"buffer_{n}" for n in BUFFERS),
            "ratio",
            1.0,
            0.03,
            source="derived",
        ),
        Claim(
            "The stream is faster than overlap-save at buffers of 128",
            "faster",
            ("stream", "save"),
            "time_128",
            source="abstract, of overlap-add",
        ),
    ),
    figure=draw,
    notes=("1 is the error of silence, behind a field of zeros but in training's validation",),
    absent=(
        Absent("Tables of quality on music and speech", "the abstract and the code are at hand"),
    ),
)
