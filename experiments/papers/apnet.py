"""A vocoder in frames alone, phases by two linear maps and their angle, and what that saves.

Source: APNet (arXiv 2305.07952). Its ablation of phases is asked on responses of two paths.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.found import Found
from experiments.wav import write_wav
from gam_jax.data import Sounds, TwoPaths
from gam_jax.data.drawn import TO_SCORE
from gam_jax.layers.convolution import Convolution, Pointwise, Transposed
from gam_jax.layers.delayed import MEAN, Node, Parallel, Sequential, residual
from gam_jax.models import APNet, Model, PhaseModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params, init_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh

STEPS = {"short": 4, "cpu": 1500}
RATE = 8e-3
"""Of all heads: the best of 5e-4, 2e-3 and 8e-3 for each of both that learn by angles, one seed."""
SPOKEN_STEPS = {"short": 2, "cpu": 400}
HEADS: Mapping[str, tuple[str, PhaseModel]] = {
    "pair_turns": ("two maps and their angle, loss of angles", PhaseModel()),
    "one_turns": ("one map, loss of angles", PhaseModel(parallel=False)),
    "one_squares": ("one map, squared error", PhaseModel(parallel=False, wrapped=False)),
    "pair_squares": ("two maps and their angle, squared error", PhaseModel(wrapped=False)),
}
"""In the order in which they are to come out."""
SPEAKER = APNet(32, mels=40, rate=8000, size=256, window=160, hop=40)
SOUNDS = Sounds(samples=2000, scored=12)
FRAMES = APNet(64)
"""What is timed: the published rates and frames, an eighth of the width."""
RATIOS = (5, 4, 4)
"""Of the stack of transposed convolutions: together the hop of 80 samples."""


def experiment(model: Model, data: Any, steps: int, batch: int, rate: float) -> Experiment:
    """One run; Adam's beta2 is the released one."""
    return Experiment(
        model=model,
        data=data,
        train=TrainConfig(steps=steps, batch=batch, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=rate,
            warmup=max(1, steps // 20),
            final=0.01,
            beta2=0.99,
            weight_decay=0.0,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def upsampler(width: int, mels: int) -> Node:
    """HiFi-GAN's generator: transposed convolutions, each before residual stacks side by side."""
    bend = Pointwise("leaky_relu_0.1")
    nodes: list[Node] = [Convolution(width, kernel=7, normed=True)]
    for ratio in RATIOS:
        width //= 2
        nodes += [bend, Transposed(width, 2 * ratio, ratio, ratio // 2, normed=True)]
        stacks = (
            Sequential(
                tuple(
                    residual(
                        bend,
                        Convolution(kernel=kernel, dilation=d, normed=True),
                        bend,
                        Convolution(kernel=kernel, normed=True),
                    )
                    for d in (1, 3, 5)
                )
            )
            for kernel in (3, 7, 11)
        )
        nodes.append(Parallel(tuple(stacks), MEAN))
    nodes += [Pointwise("leaky_relu"), Convolution(1, kernel=7, normed=True), Pointwise("tanh")]
    return Sequential(tuple(nodes))


def equal_width() -> int:
    """The width at which the stack has as many parameters as the frames' model, nearly."""
    wanted = count_params(FRAMES.table())

    def off(width: int) -> int:
        return abs(count_params(upsampler(width, FRAMES.mels).table(FRAMES.mels)) - wanted)

    return min(range(8, 1024, 8), key=off)


def programs() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]]:
    """One second of sound: program, arguments, parameters."""
    mel = jnp.zeros((1, FRAMES.rate // FRAMES.hop, FRAMES.mels))
    stack = upsampler(equal_width(), FRAMES.mels)
    found = {}
    tables = {"frames": FRAMES.table(), "samples": stack.table(FRAMES.mels)}
    for name, call in (("frames", FRAMES.__call__), ("samples", stack.__call__)):
        params = init_params(tables[name], jax.random.key(0))
        found[name] = call, (params, mel), count_params(tables[name])
    return found


def counted(which: str) -> dict[str, float]:
    """Operations of one second of sound, by XLA's count, and parameters."""
    call, given, parameters = programs()[which]
    cost: Any = jax.jit(call).lower(*given).cost_analysis()
    return {"operations": float(cost["flops"]), "parameters": float(parameters)}


def timed(which: str) -> Mapping[str, Callable[[], Any]]:
    """One second of sound, compiled."""
    call, given, _ = programs()[which]
    program = jax.jit(call)
    return {"time": lambda: jax.block_until_ready(program(*given))}


def sizes(part: str) -> dict[str, float]:
    """Parameters of the published model, by its table."""
    table = APNet().table()
    return {"parameters": float(count_params(table if part == "whole" else table[part]))}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Errors of phases by arm and, where a speaker was trained, its spectra; WAV files beside."""
    folder = path.parent / found.scale / "speaker-0"
    spoken = folder.is_dir()
    with drawn(path, 9, 6 if spoken else 2.4) as figure:
        grid = figure.add_gridspec(3 if spoken else 1, 2)
        axes = figure.add_subplot(grid[0, :])
        values = found.of("phase_error")
        names = [name for name in HEADS if name in values]
        for row, name in enumerate(names):
            axes.scatter(values[name].values, [row] * len(values[name].values), s=22)
        axes.set_yticks(range(len(names)), [HEADS[name][0] for name in names], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("mean error of an angle, radians")
        axes.grid(alpha=0.25)
        if spoken:
            _draw_spoken(figure, grid, folder, path.parent)


def _draw_spoken(figure: Any, grid: Any, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Log amplitudes of two sounds and of what was made of their mels."""
    run = RunFolder(folder)
    experiment = run.experiment()
    model: Any = experiment.model
    data: Any = experiment.data
    _, params = load_params(run, experiment, Layout(make_mesh()))
    for column, number in enumerate((0, 1)):
        audio = data.row(TO_SCORE, number)["audio"][None]
        mel = model.mel_of(model.spectrum_of(jnp.asarray(audio)))
        made = np.asarray(model(jax.device_get(params), mel).audio)
        kind = data.kinds[number % len(data.kinds)]
        for row, (name, sound) in enumerate((("given", audio), ("made", made))):
            write_wav(out / f"{kind}_{name}.wav", sound[0], model.rate)
            axes = figure.add_subplot(grid[1 + row, column])
            shown = np.log(np.abs(np.asarray(model.spectrum_of(jnp.asarray(sound))[0])) + 1e-3).T
            axes.imshow(shown, origin="lower", aspect="auto", vmin=-6.9, vmax=3, cmap="magma")
            axes.set_title(f"{kind}, {name}", fontsize=8, loc="left")
            axes.set(xticks=[], yticks=[])


CLAIMS = (
    Claim(
        "Parameters of the released generator",
        "printed",
        ("amplitudes", "phases", "whole"),
        "parameters",
        figures=("35175938", "37015556", "72191494"),
        source="released code, counted",
    ),
    Claim(
        "Two maps with a loss of angles err least, then one map with it, one map with squares, and "
        "most of all two maps with squares",
        "ordered",
        tuple(HEADS),
        "phase_error",
        source="ablation, on responses of two paths",
    ),
    Claim(
        "With a loss of angles two maps and their angle err less than half as much as one map",
        "times_at_most",
        ("pair_turns", "one_turns"),
        "phase_error",
        0.5,
        source="a trial in PyTorch: 0.03 to 0.044 and 0.125",
    ),
    Claim(
        "Frames need fewer operations for a second of sound than transposed convolutions with as "
        "many parameters",
        "lower",
        ("frames", "samples"),
        "operations",
        source="abstract",
    ),
    Claim(
        "and less time",
        "faster",
        ("frames", "samples"),
        "time",
        source="abstract",
    ),
)

STUDY = Study(
    name="apnet",
    title="A vocoder in frames alone",
    source="arXiv 2305.07952",
    page="papers/apnet.md",
    arms={
        **{
            name: Arm(
                title,
                experiment=lambda s, model=model: experiment(
                    model, TwoPaths(), STEPS[s.scale], 256, RATE
                ),
            )
            for name, (title, model) in HEADS.items()
        },
        "speaker": Arm(
            "APNet of width 32 on drawn sounds",
            experiment=lambda s: experiment(SPEAKER, SOUNDS, SPOKEN_STEPS[s.scale], 8, 2e-3),
            default=False,
        ),
        "amplitudes": closed("published size, amplitudes", lambda: sizes("amplitudes")),
        "phases": closed("published size, phases", lambda: sizes("phases")),
        "whole": closed("published size", lambda: sizes("whole")),
        **{
            name: Arm(
                title,
                numbers=lambda s, seed, name=name: counted(name),
                timed=lambda s, name=name: timed(name),
                exact=True,
            )
            for name, title in (
                ("frames", "APNet of width 64, a second of 16 kHz"),
                ("samples", "transposed convolutions, as many parameters"),
            )
        },
    },
    measures={
        "phase_error": Measure("mean error of an angle", "lower", "rad"),
        "frequency_error": Measure("of its change in a frame", "lower", "rad"),
        "lsd": Measure("log-spectral distance", "lower", "dB", ".2f"),
        "parameters": Measure("parameters", form=",.0f"),
        "operations": Measure("operations of a second", "lower", form=".3g"),
        "time": Measure("time of a second", "lower", "s", ".4f"),
    },
    published=as_printed(CLAIMS[:1]),
    claims=CLAIMS,
    figure=draw,
    notes=(
        "an angle errs by 0 to pi, by pi / 2 if guessed; the speaker's is weighed by amplitude and "
        "is trained without discriminators",
    ),
    absent=(
        Absent(
            "About 8 times as fast as HiFi-GAN v1 on a CPU",
            "published sizes are not timed; here both have as many parameters",
        ),
        Absent("Quality on LJSpeech and VCTK, by listeners", "the speech is not here"),
        Absent("The paper's own tables", "its abstract and the released code are at hand"),
    ),
)
