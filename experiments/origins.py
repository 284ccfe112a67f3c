"""The flags that say what a new run starts from: another run, or a model folder."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from experiments.imported import Imported
from gam_jax.training.folder import RunFolder
from gam_jax.training.warm_start import Source
from sharding.errors import UserError
from sharding.paths import local_path

HF = "hf:"
"""What stands before a model folder of Hugging Face in --init."""


def define_origin_flags() -> None:
    """--init, which of its parameters are taken, and what is added to them."""
    flags.DEFINE(
        _Init(),
        "init",
        None,
        "Start from parameters of another run, RUN or RUN@STEP; or, as hf:FOLDER, from a model "
        "folder of Hugging Face, which gives model and tokenizer too.",
    )
    flags.DEFINE_string("init_include", "", "Only parameters of these names, as 'blocks/*,emb*'.")
    flags.DEFINE_string("init_exclude", "", "But not those of these names.")
    flags.DEFINE_enum(
        "init_vocab",
        "same",
        ("same", "resize"),
        "resize: cut a vocabulary of another size, or fill it up with new rows.",
    )
    flags.DEFINE_list(
        "add_tokens",
        [],
        "With --init=hf:FOLDER: special tokens to add, as '<|im_start|>,<|im_end|>'. Their rows of "
        "the embedding begin as the mean of the others.",
    )


class _Init(flags.ArgumentParser):
    syntactic_help = "a run, or hf: and a model folder"

    def parse(self, argument: Any) -> str:
        """The path as text, with what stands before it."""
        text = str(argument or "")
        kind = HF if text.startswith(HF) else ""
        path = text.removeprefix(kind)
        if kind and not path:
            raise ValueError("name the folder, as hf:FOLDER")
        return path and kind + str(local_path(path))

    def flag_type(self) -> str:
        """Its name in --help."""
        return "path"


def folder_named() -> pathlib.Path | None:
    """The model folder that --init names; None for a run, or nothing."""
    text = flags.FLAGS.init or ""
    return pathlib.Path(text.removeprefix(HF)) if text.startswith(HF) else None


def imported_from_flags(folder: RunFolder, resume: bool) -> Imported | None:
    """The model folder that a run starts from; None where it starts elsewhere, or has started.

    Raises:
      UserError: flags that do not go together, or what `Imported.open` refuses.
    """
    args, path = flags.FLAGS, folder_named()
    if path is None:
        if args.add_tokens:
            raise UserError("--add_tokens needs --init=hf:FOLDER")
        return None
    for name in ("init_include", "init_exclude", "init_vocab"):
        if flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise UserError(
                f"--{name} is for --init=RUN: a model folder is taken whole; convert it to a run "
                f"first (gam convert --from-hf) to take a part"
            )
    if not flags.FLAGS["config"].using_default_value:
        raise UserError(
            f"--init={args.init} takes the model from that folder: leave --config out, and set "
            f"fields by --config.a.b=value"
        )
    if resume and folder.has_checkpoints():
        return None
    _check_new(folder, resume)
    return Imported.open(path, args.add_tokens)


def source_from_flags(folder: RunFolder, resume: bool) -> Source | None:
    """The run that a run starts from; None where --init names none.

    Raises:
      UserError: flags that do not go together, or no such checkpoint.
    """
    args = flags.FLAGS
    if not args.init:
        if args.init_include or args.init_exclude or args.init_vocab != "same":
            raise UserError("--init_include, --init_exclude, --init_vocab need --init=RUN")
        return None
    if folder_named() is not None:
        return None
    source = Source.parse(
        args.init, args.init_include, args.init_exclude, args.init_vocab == "resize"
    )
    _check_new(folder, resume)
    source.open()
    return source


def _check_new(folder: RunFolder, resume: bool) -> None:
    if folder.ran() and not resume:
        raise UserError(
            f"--init starts a new run, and {folder.path} holds one: name another with --run"
        )
