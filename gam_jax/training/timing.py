"""Where the time of a run goes, and how much of its devices it uses."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from gam_jax.planning import profile_of
from gam_jax.training.step import OPTIMIZER
from sharding.layout import Layout
from sharding.products import RECOMPUTED, product_flops


@dataclasses.dataclass(frozen=True)
class Lap:
    """Some steps in a row.

    Attributes:
      steps: how many; 0 if the first of all was among them, which compiles.
      seconds: that they took.
      data: of these, seconds in which the run waited for the next batch.
      saves: of these, seconds until a save went on in the background.
    """

    steps: int
    seconds: float
    data: float
    saves: float

    def scalars(self) -> dict[str, float]:
        """For metrics: means of a step; empty where no step was timed."""
        if not self.steps:
            return {}
        return {
            "step_seconds": self.seconds / self.steps,
            "data_wait_seconds": self.data / self.steps,
            "save_seconds": self.saves / self.steps,
        }


class Clock:
    """Seconds of steps, without the first one and without validation.

    Args:
      step: updates done before the first.
    """

    def __init__(self, step: int) -> None:
        self._first = step + 1
        self.pause(step)

    def lap(self, step: int) -> Lap:
        """The steps since the last lap or pause."""
        steps = step - self._step if self._step >= self._first else 0
        found = Lap(steps, time.perf_counter() - self._time, self._data, self._saves)
        self.pause(step)
        return found

    def pause(self, step: int) -> None:
        """Starts the next lap here."""
        self._step, self._time = step, time.perf_counter()
        self._data = self._saves = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the wait for a batch."""
        begun = time.perf_counter()
        yield
        self._data += time.perf_counter() - begun

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._saves += time.perf_counter() - begun


@dataclasses.dataclass(frozen=True)
class Work:
    """What a training step asks of its devices.

    Attributes:
      model_flops: operations in the products of the forward and the backward pass on one device;
        without what is computed again in the backward pass, and without the optimizer's. None
        where they cannot be counted.
      devices: of the mesh.
      peak_flops: of one device, see `gam_jax.planning`; None where nothing is known of it.
    """

    model_flops: int | None = None
    devices: int = 1
    peak_flops: float | None = None

    def scalars(self, lap: Lap) -> dict[str, float]:
        """For metrics: `model_flops_per_second` of all devices, and `mfu`, as far as known.

        MFU, model FLOP/s utilisation, is the share of the devices' peak (PaLM, arXiv 2204.02311,
        appendix B).
        """
        if self.model_flops is None or not lap.steps:
            return {}
        of_one = self.model_flops * lap.steps / lap.seconds
        mfu = {} if self.peak_flops is None else {"mfu": of_one / self.peak_flops}
        return {"model_flops_per_second": self.devices * of_one, **mfu}


def work_of(step: Callable[..., Any], layout: Layout, *args: Any, steps: int = 1) -> Work:
    """Counts the products of a compiled step, which keeps the trace that this makes.

    Args:
      step: of `make_train_step`.
      layout: where it runs.
      *args: that it will be called with.
      steps: of training that one call of it is.
    """
    devices = list(layout.mesh.devices.flat)
    profiles = {device.device_kind: profile_of(device.device_kind) for device in devices}
    peaks = {profile and profile.peak_flops for profile in profiles.values()}
    peak = peaks.pop() if len(peaks) == 1 else None
    traced = step.trace(*args)  # type: ignore[attr-defined]
    try:
        flops = product_flops(traced.jaxpr.jaxpr, (OPTIMIZER, RECOMPUTED))
    except ValueError:  # a product that nobody can count
        return Work(None, len(devices), peak)
    return Work(flops[""] // steps, len(devices), peak)
