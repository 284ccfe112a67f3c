"""What models of short-time spectra give, and ask of their own sizes and of their data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array

from sharding.errors import UserError


class SpectralSound(NamedTuple):
    """A sound as T frames of F bins, and as samples.

    Attributes:
      log_amplitude: [B, T, F].
      phase: [B, T, F], radians.
      audio: [B, N], N = (T - 1) hop.
    """

    log_amplitude: Array
    phase: Array
    audio: Array


def check_frames(name: str, size: int, window: int, hop: int) -> None:
    """Raises a UserError if frames do not tell every sample of a signal."""
    if window > size or size % 2 or hop > window // 2:
        raise UserError(
            f"{name}: window {window} of frames of {size} at hop {hop}: give an even size, a "
            f"window within it, and a hop of at most half the window"
        )


def check_rows(data: str, sizes: Mapping[str, int], rate: int, size: int, hop: int) -> None:
    """Refuses data whose sounds do not fit a model's frames.

    Raises:
      UserError: another rate, or a number of samples that is no multiple of the hop above half a
        frame.
    """
    own, samples = sizes.get("rate", rate), sizes.get("samples", 0)
    if rate != own:
        raise UserError(
            f"model.rate={rate}, and data.name={data} has {own} samples a second: give both the "
            f"same"
        )
    if samples % hop or 0 < samples <= size // 2:
        raise UserError(
            f"rows of {samples} samples are no multiple of model.hop={hop} above half a frame, "
            f"{size // 2}: set data.samples"
        )
