"""What can be served: runs and model folders, opened before their numbers are read."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Sequence

from experiments.chat import template_of
from experiments.imported import Imported
from experiments.writer import GENERATION, TextRun, end_ids, tokenizer_of_run
from gam_jax.adapters import merged
from gam_jax.convert.hf import from_hf
from gam_jax.convert.new_tokens import tokenizer_of
from gam_jax.data.chat_template import ChatTemplate, find_template
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.models import LanguageModel, SemiDrafter
from gam_jax.params import Params
from gam_jax.training.folder import RunFolder, load_params
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.parallel import Parallel
from sharding.paths import local_path

NAME = re.compile(r"[\w.-]+")
"""A model's, where a person gives one."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model whose parameters are not read yet.

    Attributes:
      name: by which it is asked for.
      created: in seconds since 1970.
      model: as it was trained.
      parallel: how it is split over a mesh.
      tokenizer: of its texts.
      ends: ids that end a text.
      begins: the id that stands before a text; None for none.
      special: whether the name of a special token in a text is that token, as in model folders.
      template: how conversations are written; None for no conversations.
      read: (layout) -> the model that runs and its parameters there.
    """

    name: str
    created: int
    model: LanguageModel
    parallel: Parallel
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    begins: int | None
    special: bool
    template: ChatTemplate | None
    read: Callable[[Layout], tuple[LanguageModel, Params]]


def open_run(path: str, checkpoint: str, template: str) -> Opened:
    """A run.

    Args:
      path: of its folder; NAME=PATH for another name than the folder's.
      checkpoint: which one, as latest, best or a step.
      template: a file with a chat template; empty for the run's own.

    Raises:
      UserError: no run of a language model on text.
    """
    name, folder = _named(path)
    run = TextRun.open(str(folder))
    imported = run.folder.source.is_dir()

    def read(layout: Layout) -> tuple[LanguageModel, Params]:
        return run.read(layout, checkpoint, 0)[1:]

    return Opened(
        name=name,
        created=int(folder.stat().st_mtime),
        model=run.model,
        parallel=run.experiment.parallel,
        tokenizer=run.tokenizer,
        ends=run.ends(),
        begins=run.tokenizer.begins if imported else None,
        special=imported,
        template=_template(template, functools.partial(template_of, run)),
        read=read,
    )


@dataclasses.dataclass(frozen=True)
class OpenedDrafter:
    """A drafter beside a model, whose parameters are not read yet.

    Attributes:
      model: the drafter.
      read: (layout) -> its own parameters there.
    """

    model: SemiDrafter
    read: Callable[[Layout], Params]


def open_drafter(path: str, models: Sequence[Opened]) -> OpenedDrafter:
    """What `gam draft semi` has trained.

    Args:
      path: of its run folder.
      models: for all of which it is to guess.

    Raises:
      UserError: no run of a drafter; one of another model, or of another tokenizer.
    """
    folder = RunFolder(local_path(path))
    experiment = folder.experiment()
    model = experiment.model
    if not isinstance(model, SemiDrafter):
        raise UserError(
            f"--draft=semi:{path} holds no drafter: gam draft semi trains one, and run:{path} "
            f"guesses by a whole model"
        )
    tokenizer = tokenizer_of_run(folder, experiment)
    for one in models:
        if tokenizer.fingerprint != one.tokenizer.fingerprint:
            raise UserError(f"--draft=semi:{path} has another tokenizer than {one.name}")
        if one.model != model.target:
            raise UserError(
                f"--draft=semi:{path} guesses for another model than {one.name}: train one for it "
                f"by gam draft semi"
            )

    def read(layout: Layout) -> Params:
        return load_params(folder, experiment, layout)[1]["drafter"]

    return OpenedDrafter(model, read)


def open_folder(path: str, template: str) -> Opened:
    """A model folder of Hugging Face, as it was published.

    Args:
      path: of the folder; NAME=PATH for another name than the folder's.
      template: a file with a chat template; empty for the folder's own.

    Raises:
      UserError: what `convert.from_hf` refuses.
    """
    name, folder = _named(path)
    imported = Imported.open(folder)
    tokenizer = tokenizer_of(imported.source, folder)
    vocab = imported.model.ids()["inputs"]

    def read(layout: Layout) -> tuple[LanguageModel, Params]:
        model, params = from_hf(folder, layout)
        return merged(model, params, layout)

    return Opened(
        name=name,
        created=int(time.time()),
        model=imported.model,
        parallel=Parallel(),
        tokenizer=tokenizer,
        ends=end_ids(tokenizer, folder / GENERATION, vocab),
        begins=tokenizer.begins,
        special=True,
        template=_template(template, functools.partial(find_template, str(folder))),
        read=read,
    )


def _named(path: str) -> tuple[str, pathlib.Path]:
    """The name and the folder of NAME=FOLDER, or of a folder, in whose own name a = may stand."""
    name, equals, rest = path.partition("=")
    given = bool(equals) and NAME.fullmatch(name) is not None
    folder = local_path(rest if given else path)
    return (name if given else folder.resolve().name), folder


def _template(path: str, own: Callable[[], ChatTemplate]) -> ChatTemplate | None:
    """The template of a file, or the model's own, which it need not have."""
    if path:
        return find_template("bytes", path)
    try:
        return own()
    except UserError:
        return None
