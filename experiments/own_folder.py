"""Runs from and to model folders of gam_jax's own format, see `gam_jax.convert.own`."""

from __future__ import annotations

import pathlib

from experiments.imported import RATE, WINDOW
from gam_jax.convert import save_model
from gam_jax.convert.own import open_model
from gam_jax.convert.source import TOKENIZER, read_source
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import HFTokenizer, Tokenizer, load_tokenizer
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, load_params
from sharding.errors import UserError
from sharding.layout import Layout


def write_own(
    folder: RunFolder, target: pathlib.Path, which: str, layout: Layout, beside: dict[str, bytes]
) -> None:
    """A model folder with the parameters of a checkpoint, as they are stored.

    Args:
      folder: the run.
      target: new or empty.
      which: the checkpoint.
      layout: where parameters are read to.
      beside: what the run keeps beside them, see `convert.source`.
    """
    experiment = folder.experiment()
    kept = folder.kept(experiment.data)
    if TOKENIZER in kept:  # of bytes too
        beside = {TOKENIZER: kept[TOKENIZER].encode(), **beside}
    step, params = load_params(folder, experiment, layout, which)
    save_model(experiment.model, params, target, beside=beside)
    print(f"{folder.path} at step {step} in {target}")


def read_own(source: pathlib.Path) -> tuple[Experiment, Params, Tokenizer, dict[str, bytes]]:
    """A run of the language model of a folder on text of its tokenizer, open to be changed.

    Returns:
      The run, its parameters, which are not read yet, the tokenizer, and files to keep.

    Raises:
      UserError: as `convert.load_model`; a model of something else than text.
    """
    model, params = open_model(source)
    if not isinstance(model, LanguageModel) or not (source / TOKENIZER).exists():
        raise UserError(
            f"{source} holds no language model with a tokenizer.json: open it in Python, "
            f"gam_jax.convert.load_model({str(source)!r})"
        )
    tokenizer, vocab = load_tokenizer(source), model.vocab or 0
    if tokenizer.vocab > vocab:
        raise UserError(
            f"{source / TOKENIZER} has {tokenizer.vocab} ids, the model {vocab}: it is not this "
            f"model's tokenizer"
        )
    text = Text(
        tokenizer=str((source / TOKENIZER).absolute())
        if isinstance(tokenizer, HFTokenizer)
        else "bytes",
        window=min(WINDOW, model.limit or WINDOW),
        separators=tokenizer.separator is not None,
    )
    experiment = Experiment(model, text, optimizer=OptimizerConfig(learning_rate=RATE))
    kept = read_source(source) if isinstance(tokenizer, HFTokenizer) else {}
    return experiment, params, tokenizer, kept
