"""scikit-learn's 1,797 images of digits, 8 x 8 pixels, inside that package: no download."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gam_jax.data.arrays import ArraysDataset, digest_of_arrays, with_weights
from gam_jax.data.base import Data
from sharding.bounds import Seed, Size, check_bounds
from sharding.errors import UserError

SIDE, CLASSES = 8, 10


@dataclasses.dataclass(frozen=True)
class Digits(Data):
    """Grey images in [0, 1] and their labels.

    Attributes:
      name: `digits`.
      held_out: images to validate on.
      split_seed: of which images those are.

    Raises:
      UserError: a number of images that leaves none to train on.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("digits",)

    name: str = "digits"
    held_out: Size = 360
    split_seed: Seed = 0

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        if self.held_out > 1700:
            raise UserError(f"data.held_out={self.held_out}: give 1 to 1700 images")

    def open(self, files: Mapping[str, str] | None = None) -> ArraysDataset:
        """Shuffles and splits; the baseline is logistic regression on the pixels.

        Raises:
          UserError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("digits needs scikit-learn: pip install 'gam_jax[digits]'") from error
        found: Any = load_digits()
        order = np.random.default_rng(self.split_seed).permutation(len(found.target))
        images = (found.images[order] / 16).astype(np.float32)
        labels = found.target[order].astype(np.int32)
        cut = self.held_out
        held = with_weights({"images": images[:cut], "labels": labels[:cut]})
        own = with_weights({"images": images[cut:], "labels": labels[cut:]})
        return ArraysDataset(
            config=self,
            source=own,
            held_out={"": held},
            sizes=self.sizes(),
            fingerprints={"images": digest_of_arrays({**held, "train": own["images"]})},
            unit="images",
            known={"linear": _linear(own, held)},
        )

    def sizes(self) -> dict[str, int]:
        """side and classes."""
        return {"side": SIDE, "classes": CLASSES}

    def batch(self, rows: int) -> dict[str, Any]:
        """images float32 [rows, 8, 8], labels int32 [rows], weights float32 [rows]."""
        import jax
        import jax.numpy as jnp

        return {
            "images": jax.ShapeDtypeStruct((rows, SIDE, SIDE), jnp.float32),
            "labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "weights": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }


def _linear(own: Mapping[str, np.ndarray], held: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Loss and accuracy of logistic regression on the pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    pixels, to_score = (part["images"].reshape(-1, SIDE**2) for part in (own, held))
    model = LogisticRegression(max_iter=1000).fit(pixels, own["labels"])
    loss = log_loss(held["labels"], model.predict_proba(to_score), labels=range(CLASSES))
    return {"loss": float(loss), "accuracy": float(model.score(to_score, held["labels"]))}
