"""The WikiText-2 protocol of the GAM paper (arXiv 2509.00605, Table 1), from its official code.

22.6 M parameters with a vocabulary of 10,000; the BPE is trained on every split, whitespace is
lost and no separator is put between documents; blocks of 257 tokens. 1,500 steps are about five
epochs. What differs: random numbers, and the last, smaller batch of an epoch, which goes on into
the next epoch here.
"""

from ml_collections import ConfigDict

from experiments.config_flags import config
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig


def experiment() -> Experiment:
    """The run of the full GAM; `experiments.papers.gam` makes the others from it."""
    return Experiment(
        model=LanguageModel(
            Block(GAM(slots=512, kernel=3)),
            width=512,
            depth=6,
            context=256,
            dropout=0.1,
            init="published",
        ),
        data=Text(
            name="wikitext2",
            tokenizer="bpe:10000",
            bpe_splits="all",
            bpe_pre_tokenizer="whitespace",
            window=256,
            stride=257,
            separators=False,
        ),
        train=TrainConfig(steps=1500, batch=32, validate_every=300),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, warmup=100, final=0.0, weight_decay=0.1, decay_all=True
        ),
        checkpoint=CheckpointConfig(every=300),
    )


def get_config() -> ConfigDict:
    """Use --config.model.init=sound to let tokens be seen beside positions."""
    return config(experiment())
