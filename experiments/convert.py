"""Runs from and to model folders of Hugging Face transformers, without torch.

  gam convert --from-hf=FOLDER --run=runs/x
  gam convert --run=runs/x --to-hf=FOLDER

The first makes a run of a folder's config.json, safetensors and tokenizer.json: one that evaluate
and sample open, and that `train --init=runs/x` goes on from. The second writes such a folder from a
run of an architecture that transformers has.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.streams import check_tokenizer, language_model
from gam_jax.convert import from_hf, to_hf
from gam_jax.data.text import TOKENIZER, Text
from gam_jax.data.tokenizer import FILE_NAME, HFTokenizer, load_tokenizer, tokenizer_from_text
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, load_params, logical_axes
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

WINDOW = 1024
"""Tokens of a window of an imported run, where its context is not shorter."""


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("from_hf", None, "Model folder to make a run of.")
    cli.define_path("to_hf", None, "Model folder to write a run to.")
    cli.define_path("run", None, "Run folder.")
    flags.DEFINE_string(
        "checkpoint", "latest", "With --to-hf: latest, latest-good, best, or a step."
    )


def main() -> None:
    """One way or the other."""
    args = flags.FLAGS
    register_classes()
    if not args.run or (args.from_hf is None) == (args.to_hf is None):
        raise UserError("give --run, and either --from-hf=FOLDER or --to-hf=FOLDER")
    folder = RunFolder(pathlib.Path(args.run))
    if args.from_hf is not None:
        make_run(pathlib.Path(args.from_hf), folder)
    else:
        export_run(folder, pathlib.Path(args.to_hf), args.checkpoint)


def make_run(source: pathlib.Path, folder: RunFolder) -> None:
    """A run folder with the weights as checkpoint 0.

    Raises:
      UserError: a run folder that is in use, a tokenizer that is missing or too large, or what
        `from_hf` refuses.
    """
    folder.check_new()
    tokenizer = load_tokenizer(source / FILE_NAME)
    model, params = from_hf(source)
    if model.vocab is not None and tokenizer.vocab > model.vocab:
        raise UserError(
            f"{source / FILE_NAME} has {tokenizer.vocab} ids, the model {model.vocab}: it is not "
            f"this model's tokenizer"
        )
    window = min(WINDOW, model.limit or WINDOW)
    data = Text(
        tokenizer=str((source / FILE_NAME).absolute()),
        window=window,
        separators=tokenizer.separator is not None,
    )
    experiment = Experiment(model, data)
    folder.start(experiment, {TOKENIZER: tokenizer.to_text()})
    with Checkpoints(folder.checkpoints) as checkpoints:
        axes = logical_axes(experiment)
        extra = {"position": 0, "tokenizer": tokenizer.fingerprint}
        checkpoints.save(0, {"params": params}, extra, axes=axes)
        checkpoints.wait()
    print(f"{count_params(model.table()):,} parameters of {source} in {folder.path}")
    print(f"next: gam sample --run={folder.path}")


def export_run(folder: RunFolder, target: pathlib.Path, which: str) -> None:
    """A model folder with the weights of a checkpoint, and the tokenizer if it is of that kind."""
    experiment = folder.experiment()
    model, kept = language_model(experiment), folder.kept(experiment.data)
    tokenizer = tokenizer_from_text(kept[TOKENIZER]) if TOKENIZER in kept else None
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    step, params = load_params(folder, experiment, layout, which)
    if tokenizer is not None:
        check_tokenizer(folder, step, tokenizer)
    to_hf(model, params, target)
    print(f"{folder.path} at step {step} in {target}")
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save(target / FILE_NAME)
    else:
        print("without a tokenizer: token ids are bytes, for which that format has no file")


if __name__ == "__main__":
    cli.run(main, define_flags)
