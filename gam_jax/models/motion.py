"""A denoiser of clips tuned to one clip's motion, beside a frozen copy that keeps appearances.

Source: MotionCrafter (arXiv 2312.05288), of which no code is public.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.models.base import Batch, Measures, Model
from gam_jax.models.pictures import ONLY_BETWEEN, ONLY_WITHIN, PictureDenoiser
from gam_jax.params import Params, Table
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import NotNegative
from sharding.layout import Layout

TUNED, FROZEN = "tuned", "frozen"
"""The two copies in a table."""
MOTION = f"{TUNED}/{ONLY_BETWEEN}"
"""What an optimizer trains on the path of motion."""
LOOKS = ",".join(f"{TUNED}/{one}" for one in ONLY_WITHIN.split(","))
"""What it trains on the path of appearance."""
ALL = f"{TUNED}/*"


@dataclasses.dataclass(frozen=True)
class MotionTuned(Model):
    """A denoiser of clips, twice: one is tuned to a clip, the other stays as it was.

    The tuned one lowers the error of velocities v under the clip's own prompt. Under the prompt
    `other`, of the same motion and another colour, both predict for the same noised frames, and

      appearance |mean over frames and places of (v_tuned - v_frozen)|^2

    is added: how much there is of each colour stays what the frozen one says, and where it is in
    which frame is free. Which statistic the source compares is not said; this is our choice (the
    mean over frames alone holds the path too, which it is to learn), as is the velocity in place of
    the noise: at high noise, where colours are settled, two velocities differ by more than the two
    noises do, by 1 / alpha.

    `optimizer.only` is `ALL`, `MOTION`, `LOOKS` or other patterns of the tuned copy: a run in which
    the frozen one would move is refused (`Model.frozen`).

    Attributes:
      inner: the denoiser.
      appearance: weight of what is added; 0 and the frozen copy is not run.
    """

    inner: PictureDenoiser = PictureDenoiser(sees="time", beside=False)
    appearance: NotNegative = 1.0

    def fitted(self, data: Dataset) -> MotionTuned:
        """With the inner model fitted.

        Raises:
          UserError: see `PictureDenoiser.fitted`.
        """
        return dataclasses.replace(self, inner=self.inner.fitted(data))

    def check_mesh(self, layout: Layout) -> None:
        """Refuses what the inner model refuses.

        Raises:
          UserError: such a mesh.
        """
        super().check_mesh(layout)
        self.inner.check_mesh(layout)

    def table(self) -> Table:
        """tuned and frozen, each the inner model's."""
        return {TUNED: self.inner.table(), FROZEN: self.inner.table()}

    @property
    def frozen(self) -> tuple[str, ...]:
        """The frozen copy."""
        return (FROZEN,)

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The inner model's, and other [rows, 2] as prompt."""
        inner = self.inner.batch_axes()
        return {**inner, "other": inner["prompt"]} if "prompt" in inner else inner

    def ids(self) -> dict[str, int]:
        """The words of both prompts."""
        return dict.fromkeys(("prompt", "other"), self.inner.words) if self.inner.words else {}

    def begun(self, base: Params) -> Params:
        """Parameters with which both are the model of these."""
        return {TUNED: base, FROZEN: jax.tree.map(jnp.copy, base)}

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of both errors; `error` is that of velocities, `strayed` the other's."""
        inner, weights = self.inner, batch["weights"]
        total, _, _ = inner.objective(params[TUNED], batch, axes, key=key)
        count = jnp.sum(weights)
        measures: Measures = {"error": (total, count)}
        if not self.appearance:
            return total, 0.0, measures
        strayed = self._strayed(params, batch, axes)
        # It is over all frames already: each device that has some of them adds its part.
        strayed = jnp.sum(weights * strayed) / collectives.axis_size(axes.seq)
        if axes.seq:
            strayed = collectives.as_varying(strayed, axes.seq)
        return total + self.appearance * strayed, 0.0, {**measures, "strayed": (strayed, count)}

    def _strayed(self, params: Params, batch: Batch, axes: Axes) -> Float[Array, B]:
        inner = self.inner
        x, time, _ = inner.lesson(batch)
        given = {**batch, "prompt": batch["other"]} if inner.words else batch
        frozen = lax.stop_gradient(inner(params[FROZEN], x, time, given, axes))
        off = inner(params[TUNED], x, time, given, axes) - frozen
        mean = collectives.psum(jnp.sum(jnp.mean(off, (2, 3)), 1), axes.seq)
        return jnp.mean(jnp.square(mean / known(inner.pictures, "pictures", self)), 1)
