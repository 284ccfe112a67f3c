"""One architecture of `experiments.compare`, named after a colon, as a run of its own.

  gam train --config=compare:mamba2

The setting is nanoGPT's for a CPU: 4 layers of width 128, windows of 64 tokens, 2,000 updates of
12 windows, a tenth of the text held out. Each block's feed-forward layer is made as wide as the
budget allows, so that all architectures have the same number of parameters, within 2 %; what
parallel streams add is counted.
"""

from ml_collections import ConfigDict

from experiments.config_flags import config
from experiments.contenders import Contender, chosen
from gam_jax.data.text import Text
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

WIDTH, DEPTH, WINDOW = 128, 4, 64
BLOCK_BUDGET = 196_600
"""Parameters of a block, about a transformer's of that width: with a vocabulary of bytes, a whole
model has 0.82 million."""

OPTIMIZER = OptimizerConfig(
    kind="muon",
    learning_rate=3e-3,
    matrix_rate=1.3,
    weight_decay=0.2,
    warmup=0.01,
    schedule="linear",
    final=0.0,
)


def experiment(contender: Contender) -> Experiment:
    """The run of a contender."""

    def model(streams: int, added: int = 0) -> LanguageModel:
        block = contender.sized(WIDTH, BLOCK_BUDGET - added // DEPTH)
        ladder = DEPTH if contender.ladder else 0
        return LanguageModel(block, WIDTH, DEPTH, unroll=DEPTH, streams=streams, ladder=ladder)

    one, all_of_them = (count_params(model(n).trunk.table()) for n in (1, contender.streams))
    return Experiment(
        model=model(contender.streams, all_of_them - one),
        data=Text(name="python_stdlib", tokenizer="bytes", window=WINDOW),
        train=TrainConfig(steps=2000, batch=12, validate_every=500, log_every=20),
        optimizer=OPTIMIZER,
        checkpoint=CheckpointConfig(every=250, keep=1),
    )


def get_config(name: str = "written_gam") -> ConfigDict:
    """The contender of that name."""
    return config(experiment(chosen(name)[name]))
