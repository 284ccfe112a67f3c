"""Data by name: text through TensorFlow Datasets, arrays of one's own, generated sequences.

data = load(Text(name="python_stdlib"))
for batch in data.train_stream(rows=8, seed=0): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gam_jax.data.arrays import Arrays, arrays
from gam_jax.data.audio import Audio
from gam_jax.data.base import Data, Dataset
from gam_jax.data.digits import Digits
from gam_jax.data.holes import Holes
from gam_jax.data.mixture import TextMixture
from gam_jax.data.narrow_sounds import NarrowSounds
from gam_jax.data.noisy_sounds import NoisySounds
from gam_jax.data.recall import Recall
from gam_jax.data.signals import Sounds, TwoPaths
from gam_jax.data.source_facts import SourceFacts
from gam_jax.data.squares import MovingSquares
from gam_jax.data.text import Text
from gam_jax.data.videos import Videos
from gam_jax.data.views import BoxViews

if TYPE_CHECKING:
    from gam_jax.data.text_dataset import TextDataset
    from gam_jax.data.tokenizer import Tokenizer

__all__ = [
    "DATA",
    "Arrays",
    "Audio",
    "BoxViews",
    "Data",
    "Dataset",
    "Digits",
    "Holes",
    "MovingSquares",
    "NarrowSounds",
    "NoisySounds",
    "Recall",
    "Sounds",
    "SourceFacts",
    "Text",
    "TextMixture",
    "TwoPaths",
    "Videos",
    "arrays",
    "load",
]

READ = (Text, TextMixture, Digits, Audio)
DRAWN = (
    Recall,
    Sounds,
    NarrowSounds,
    NoisySounds,
    TwoPaths,
    SourceFacts,
    Videos,
    Holes,
    MovingSquares,
    BoxViews,
)
DATA: dict[str, type[Data]] = {
    name: kind for kind in (*READ, *DRAWN, Arrays) for name in kind.NAMES
}
"""What stands before the colon of `data.name` -> the class that reads it."""


def load(config: Text, tokenizer: Tokenizer | None = None) -> TextDataset:
    """Opens text, see `text_dataset.open_text`.

    Args:
      config: what to read.
      tokenizer: used in place of the one that `config` names: a run's own, on other text.
    """
    # Here, so that importing the package stays quick.
    from gam_jax.data.text_dataset import open_text

    return open_text(config, tokenizer)
