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
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.imported import Imported
from experiments.streams import check_tokenizer, language_model
from gam_jax.convert import to_hf
from gam_jax.convert.new_tokens import tokenizer_of
from gam_jax.convert.source import read_source, without_tokens
from gam_jax.data.chat_template import JINJA, ChatTemplate, template_from_text, template_in
from gam_jax.data.text import TEMPLATE, TOKENIZER
from gam_jax.data.tokenizer import HFTokenizer, Tokenizer, tokenizer_from_text
from gam_jax.params import count_params
from gam_jax.training.folder import RunFolder, load_params, logical_axes
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


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
      UserError: a run folder that is in use, or what `Imported` refuses.
    """
    folder.check_new()
    imported = Imported.open(source)
    experiment, params = imported.experiment, imported.read()
    files = {TOKENIZER: imported.tokenizer.to_text()}
    folder.start(experiment, files, imported.source)
    with Checkpoints(folder.checkpoints) as checkpoints:
        axes = logical_axes(experiment)
        extra = {"position": 0, "tokenizer": imported.tokenizer.fingerprint}
        checkpoints.save(0, {"params": jax.tree.map(jnp.asarray, params)}, extra, axes=axes)
        checkpoints.wait()
    print(f"{count_params(imported.model.table()):,} parameters of {source} in {folder.path}")
    print(f"next: gam sample --run={folder.path}")


def export_run(folder: RunFolder, target: pathlib.Path, which: str) -> None:
    """A model folder with the weights of a checkpoint, and what the run keeps beside them."""
    experiment = folder.experiment()
    model, kept = language_model(experiment), folder.kept(experiment.data)
    tokenizer = tokenizer_from_text(kept[TOKENIZER]) if TOKENIZER in kept else None
    template = template_from_text(kept[TEMPLATE], TEMPLATE) if TEMPLATE in kept else None
    source = source_of(folder, tokenizer, template)
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    step, params = load_params(folder, experiment, layout, which)
    if tokenizer is not None:
        check_tokenizer(folder, step, tokenizer)
    to_hf(model, params, target, source=source)
    print(f"{folder.path} at step {step} in {target}")
    if not isinstance(tokenizer, HFTokenizer):
        print("without a tokenizer: token ids are bytes, for which that format has no file")


def source_of(
    folder: RunFolder, tokenizer: Tokenizer | None, template: ChatTemplate | None
) -> dict[str, bytes]:
    """The files of a model folder besides its weights: those that a run kept of its own.

    Args:
      folder: the run.
      tokenizer: its tokenizer. Where it is not the kept one, what speaks of that one's ids is left
        out.
      template: that its conversations were written by; it takes the place of another.

    Raises:
      UserError: a kept file that is damaged.
    """
    files = read_source(folder.source) if folder.source.is_dir() else {}
    if not isinstance(tokenizer, HFTokenizer):
        return without_tokens(files)
    if (
        TOKENIZER not in files
        or tokenizer_of(files, folder.source).fingerprint != tokenizer.fingerprint
    ):
        files = {**without_tokens(files), TOKENIZER: tokenizer.to_text().encode()}
    if template is not None and template.source != template_in(files):
        files = {**files, JINJA: template.source.encode()}
    return files


if __name__ == "__main__":
    cli.run(main, define_flags)
