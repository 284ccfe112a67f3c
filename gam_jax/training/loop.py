"""The training loop: steps, metrics, validation, checkpoints, and ways to end early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gam_jax.data.base import Dataset
from gam_jax.optimizer import learning_rate_schedule
from gam_jax.training.batches import BatchShape, TrainFeed
from gam_jax.training.beginning import Beginning, begin
from gam_jax.training.divergence import Diverged, GradientNorms, diverged
from gam_jax.training.experiment import Experiment, run_optimizer
from gam_jax.training.expert_load import SPLIT, routing_lines, routing_scalars
from gam_jax.training.folder import RunFolder, describe, frozen_names, logical_axes
from gam_jax.training.heartbeat import TRAINING, Heartbeat
from gam_jax.training.metrics import MetricsWriter, peak_memory, read_metrics
from gam_jax.training.order import moves
from gam_jax.training.profile import Span, Tracer
from gam_jax.training.progress import Progress
from gam_jax.training.rounds import make_step
from gam_jax.training.scoring import NotANumber, Score, score
from gam_jax.training.state import TrainState, state_shardings
from gam_jax.training.step import make_eval_step
from gam_jax.training.stop_request import StopRequest
from gam_jax.training.stragglers import Pace, Straggler, Stragglers
from gam_jax.training.timing import Clock, Work, work_of
from sharding import processes
from sharding.checkpoint import CannotSave, Checkpoints, NotFinite
from sharding.layout import Layout

AGREE_EVERY = 10
"""Steps between the moments at which several processes may stop together."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: updates done.
      last: the last validation.
      interrupted: whether a signal ended it early.
      per_second: units (tokens, images) a second, median over logged steps; 0 if none was timed.
      reached: whether it ended because a validation reached `train.goal`.
    """

    step: int
    last: Score | None
    interrupted: bool
    per_second: float
    reached: bool = False


def train(
    experiment: Experiment,
    data: Dataset,
    folder: RunFolder,
    layout: Layout,
    progress: Progress,
    heartbeat: Heartbeat | None = None,
    beginning: Beginning = Beginning(),
    profile: Span | None = None,
) -> Outcome:
    """Trains from a checkpoint in the folder, or from the start, to the last step.

    Args:
      heartbeat: tells a launcher how far this is; None where nobody watches.
      beginning: which checkpoint to go on from, or what a new run takes from another.
      profile: steps to trace.

    Raises:
      UserError: a loss or a state that is not finite (earlier checkpoints stay), a checkpoint
        that is not there, is damaged or does not fit, a disk that is full at the end.
    """
    heartbeat = Heartbeat(None) if heartbeat is None else heartbeat
    with Checkpoints(folder.checkpoints, experiment.checkpoint) as checkpoints:
        start = begin(experiment, data, folder, layout, checkpoints, beginning, progress)
        step, first = int(start.state.step), processes.is_first()
        if profile is not None:
            profile.check(step, experiment.train.last_step, experiment.train.local.every)
        tracer = Tracer(profile, folder.profile, progress.say)
        with MetricsWriter(folder.metrics, step, first, progress.say, start.aside) as metrics:
            run = _Run(
                *(experiment, data, folder, layout),
                *(checkpoints, metrics, progress, heartbeat, tracer),
            )
            run.norms = GradientNorms(start.norms)
            run.reached = _was_reached(experiment, folder, step)
            if start.step is None and (beginning.source or beginning.params):
                run.save(0, start.state, 0)  # what was taken is a part of this run from here on
            return run.go(start.state, start.position)


def _was_reached(experiment: Experiment, folder: RunFolder, step: int) -> bool:
    """Whether the validation of the step that a run goes on from reached the goal already."""
    rows = read_metrics(folder.metrics)
    found = [row for row in rows if row["split"] == "validation" and row["step"] == step]
    return bool(found) and experiment.train.reached(found[-1])


class _Run:
    """One process's way through the steps."""

    def __init__(
        self,
        experiment: Experiment,
        data: Dataset,
        folder: RunFolder,
        layout: Layout,
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        progress: Progress,
        heartbeat: Heartbeat,
        tracer: Tracer,
    ) -> None:
        self.heartbeat, self.pace = heartbeat, Pace()
        self.tracer, self.clock, self.work = tracer, Clock(0), Work()
        self.stragglers = Stragglers(experiment.train.straggler)
        self.experiment, self.data, self.folder, self.layout = experiment, data, folder, layout
        self.checkpoints, self.metrics, self.progress = checkpoints, metrics, progress
        model, settings = experiment.model, experiment.train
        optimizer = run_optimizer(experiment)
        self.to_stages, self.from_stages = moves(model, optimizer, layout)
        self.stride = settings.local.every  # steps of one call
        self.train_step = make_step(model, optimizer, layout, settings.accumulate)
        self.together = layout.without_workers
        self.eval_step = make_eval_step(model, self.together, settings.accumulate)
        self.rate = learning_rate_schedule(experiment.optimizer, settings.steps)
        self.best = checkpoints.best_loss()
        self.axes = logical_axes(experiment)
        self.frozen = frozen_names(experiment)
        self.norms, self.reached = GradientNorms(), False
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.last: tuple[int, Score] | None = None
        self.speeds: list[float] = []

    def go(self, state: TrainState, position: int) -> Outcome:
        """Steps until the last one, or until a signal."""
        settings = self.experiment.train
        step = int(state.step)
        state = self.to_stages(state)
        batches = TrainFeed(
            self.data,
            self.experiment.model,
            BatchShape(settings.batch, settings.accumulate, settings.local),
            self.layout,
            seed=settings.seed,
            position=position,
        )
        units = settings.batch * self.data.units_per_row
        progress = self.progress.training(step, settings.last_step, units, self.data.unit)
        with batches, StopRequest() as stop, progress, self.tracer:
            self.clock = Clock(step)
            first = step
            while self._goes_on(step, stop.asked):
                # The first steps compile.
                self.heartbeat.beat(step, TRAINING if step > first + self.stride else "starting")
                if self.tracer.begins(step + 1):
                    self._untimed(step, self.tracer.start, step + 1, state)
                self.pace.own()
                with self.clock.waiting_for_data():
                    batch = next(batches)
                if step == first:
                    args = self.train_step, self.layout, state, batch
                    self.work = work_of(*args, steps=self.stride)
                self.pace.wait()
                with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                    state, values = self.train_step(state, batch)
                step += self.stride
                self._report()  # the loss of the step before, while the device works at this one
                self.pace.pause()
                self.pending = step, self._last(values)
                if self.tracer.ends(step):
                    self._untimed(step, self.tracer.stop, step, state)
                improved = settings.validates(step) and self._validate(step, state)
                due = improved or settings.due(step, self.experiment.checkpoint.every)
                if due and not self._ends(step):  # the last is saved below, validated
                    self.save(step, self.from_stages(state), batches.position)
            self._report()
            self.tracer.stop(step, state)
            if self._ends(step) and (self.last is None or self.last[0] != step):
                self._validate(step, state)
            self.save(step, self.from_stages(state), batches.position, last=True)
            self.heartbeat.beat(step, "ending")
        speed = sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else 0.0
        last = self.last and self.last[1]
        return Outcome(step, last, not self._ends(step), speed, self.reached)

    def _last(self, values: dict[str, Any]) -> dict[str, Any]:
        """The metrics of the last step of a call; the norms of all are noted."""
        if not self.experiment.train.local.on:
            self.norms.add(values["grad_norm"])  # read at the next save
            return values
        for place in range(self.stride):
            self.norms.add(values["grad_norm"][place])
        return {name: x[-1] for name, x in values.items()}

    def _untimed(self, step: int, call: Callable[..., object], *args: Any) -> None:
        """Calls in no step's time."""
        self._report()
        call(*args)
        self.clock.pause(step)

    def _ends(self, step: int) -> bool:
        """Whether the run is at its end: its last step, or its goal."""
        return self.reached or step >= self.experiment.train.last_step

    def _goes_on(self, step: int, asked: bool) -> bool:
        return not self._ends(step) and not self._stops(step, asked)

    def _stops(self, step: int, asked: bool) -> bool:
        """Whether to stop before this step, the same in all processes of a job.

        Several processes ask each other only now and then, since the asking waits for the step;
        they say then how long they worked and waited, too.
        """
        if processes.count() == 1:
            return asked
        if step // self.stride % AGREE_EVERY:
            return False
        said = processes.gather(np.array([asked, *self.pace.lap()], np.float32))
        if found := self.stragglers.note(said[:, 1].tolist(), said[:, 2].tolist()):
            self._tell_slow(step, found)
        return bool(said[:, 0].any())

    def _tell_slow(self, step: int, slow: Straggler) -> None:
        host, ratio = processes.hosts()[slow.rank], slow.seconds / slow.median
        self.progress.say(
            f"step {step:>6}  process {slow.rank} ({host}) is slow: {slow.seconds:.3f} s a step, "
            f"{ratio:.1f} times the median of {slow.median:.3f} s"
        )
        self.metrics.write(
            step, "straggler", rank=slow.rank, seconds=slow.seconds, median=slow.median, ratio=ratio
        )

    def _report(self) -> None:
        """Reads and writes the metrics of the step that is pending, if any."""
        if failure := self.checkpoints.failure():
            self.norms.lost()
            self._tell(failure)
        if self.pending is None:
            return
        (step, values), self.pending = self.pending, None
        loss, settings = float(values["loss"]), self.experiment.train
        if not math.isfinite(loss):
            raise self._diverged(f"the loss of step {step} is {loss}", step)
        self.progress.step(step, loss)
        if not settings.due(step, settings.log_every) and step != settings.last_step:
            return
        lap = self.clock.lap(step)
        speed = lap.steps * settings.batch * self.data.units_per_row / lap.seconds
        if lap.steps:
            self.speeds.append(speed)
        timed = lap.scalars() | self.work.scalars(lap)
        self.progress.used(timed.get("mfu"))
        scalars = {name: float(x) for name, x in values.items() if not np.ndim(x)}
        self.metrics.write(
            step,
            "train",
            learning_rate=float(np.asarray(self.rate(step - 1))),
            **{f"{self.data.unit}_per_second": round(speed, 1)},
            **timed,
            **scalars,
            **routing_scalars(values),
            **peak_memory(),
        )
        for line in routing_lines(values):
            self.metrics.write(step, SPLIT, **line)

    def _validate(self, step: int, state: TrainState) -> bool:
        """Scores the validation split; True if no earlier score was as good."""
        self._report()
        self.heartbeat.beat(step, "validating")
        settings = self.experiment.train
        model, rows = self.experiment.model, settings.batch
        try:
            params = state.params
            if self.together is not self.layout:
                optimizer = run_optimizer(self.experiment)
                placed = state_shardings(model, optimizer, self.together)
                params = jax.device_put(params, placed.params)
            found = score(self.eval_step, params, self.data, model, rows, self.together)
        except NotANumber as error:
            raise self._diverged(f"after step {step} {error.what}", step) from error
        self.metrics.write(step, "validation", **found.values)
        self.progress.validation(step, found)
        self.clock.pause(step)
        self.reached = settings.reached(found.values)
        self.last = step, found
        return found.loss < self.best

    def save(self, step: int, state: TrainState, position: int, last: bool = False) -> None:
        """Saves in the background; a disk that is full is told, and training goes on.

        Raises:
          UserError: the state is not finite.
          CannotSave: at the last step, for which this waits.
        """
        self.heartbeat.beat(step, "saving")
        self._report()  # a step whose loss is not a number is never saved
        norms = self.norms.last()
        if norms and not math.isfinite(norms[-1]):
            what = f"step {step} is not saved: its gradient norm is {norms[-1]}"
            if last:
                raise self._diverged(what, step)
            self.progress.say(f"{what}; training goes on")
            return
        extra = describe(self.experiment, self.data, position, norms)
        loss = self.last[1].loss if self.last is not None and self.last[0] == step else None
        spike = self.norms.spike(step)
        try:
            with self.clock.saving():
                self.checkpoints.save(step, state, extra, loss, self.axes, spike, self.frozen)
            if last:
                self.checkpoints.wait()
        except NotFinite as error:
            raise self._diverged(str(error), step) from error
        except CannotSave as error:
            if last:
                raise
            self._tell(error)
            return
        if spike:
            self.progress.say(f"checkpoint {step} is suspect: {spike}")
        elif loss is not None:
            self.best = min(self.best, loss)
        self.norms.saved()

    def _diverged(self, what: str, step: int) -> Diverged:
        """The error of a run that has gone wrong at a step."""
        self._settle()
        return diverged(what, step, self.experiment, self.folder, self.checkpoints)

    def _settle(self) -> None:
        """Waits for a save that is under way."""
        try:
            self.checkpoints.wait()
        except CannotSave as error:
            self._tell(error)

    def _tell(self, error: CannotSave) -> None:
        kept = self.checkpoints.latest()
        where = "there is no checkpoint yet" if kept is None else f"checkpoint {kept} is kept"
        self.progress.say(f"{error}; {where}, training goes on")
