"""What may be searched: spaces by name, and spaces of a file of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.config_flags import module_of
from experiments.configs.compare import OPTIMIZER
from experiments.contenders import CONTENDERS
from gam_jax.config import to_dict, unknown
from gam_jax.data.text import Text
from gam_jax.layers import Layer, Pattern, RMSNorm, Shallow
from gam_jax.models.language import LanguageModel
from gam_jax.search import Space
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig
from sharding.errors import UserError

WIDTH, DEPTH, WINDOW = 64, 4, 64
BUDGET = 49_300
"""Parameters of a block, about a transformer's of that width."""
MIXERS = ("transformer", "gam", "written_gam", "gated_deltanet", "mamba2")
"""Of blocks; the first one is the base's."""
SIDE_BY_SIDE = ("transformer", "gam")
"""Those that may also be two blocks of half the size with one input, see `Shallow`."""


def hybrid() -> Space:
    """Which mixer each of four blocks has, or two of half the size side by side; sizes alike."""
    blocks = [CONTENDERS[name].sized(WIDTH, BUDGET) for name in MIXERS]
    blocks += [Shallow(CONTENDERS[n].sized(WIDTH, BUDGET // 2), 2, WIDTH) for n in SIDE_BY_SIDE]
    order = tuple(range(DEPTH))
    model = LanguageModel(
        Pattern((blocks[0],) * DEPTH, order), WIDTH, depth=1, norm=RMSNorm(), unroll=1
    )
    base = Experiment(
        model=model,
        data=Text(name="python_stdlib", tokenizer="bytes", window=WINDOW),
        train=TrainConfig(
            steps=400, batch=12, log_every=50, validate_every=400, validation_tokens=65_536
        ),
        optimizer=OPTIMIZER,
        checkpoint=CheckpointConfig(every=10_000, keep=1),
    )
    values = [_plain(block) for block in blocks]
    return Space.of({f"model.block.layers.{place}": values for place in order}, base)


def _plain(layer: Layer) -> dict[str, Any]:
    """A layer as a configuration has it."""
    return to_dict(layer)


SPACES: Mapping[str, Callable[[], Space]] = {"hybrid": hybrid}
"""By the name that --space takes."""


def space_of(text: str) -> Space:
    """The space that --space names.

    Args:
      text: of `SPACES`, or a Python file with `get_space()`, which gives a `Space` whose base is
        an `Experiment`.

    Raises:
      UserError: neither; a file that cannot be run; a space of something else.
    """
    if text in SPACES:
        return SPACES[text]()
    if not text.endswith(".py"):
        raise UserError(f"--space: {unknown(text, SPACES, 'space')}; or give a file, as mine.py")
    module = module_of(text, "--space")
    make = getattr(module, "get_space", None)
    if make is None:
        raise UserError(f"--space={text} has no function get_space()")
    try:
        found = make()
    except UserError as error:
        raise UserError(f"--space={text}: {error}") from error
    if not isinstance(found, Space) or not isinstance(found.base, Experiment):
        raise UserError(
            f"--space={text}: get_space() must give Space.of(values, base) with an Experiment as "
            f"base"
        )
    return found
