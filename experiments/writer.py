"""A run that writes: its tokenizer and the ids that end its texts, then its parameters."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.devices import layout_from_flags, say_where
from experiments.streams import check_tokenizer, language_model, of_streams, params_of_streams
from gam_jax.adapters import merged
from gam_jax.continuations import Continuation
from gam_jax.data.text import TOKENIZER
from gam_jax.data.tokenizer import Tokenizer, tokenizer_from_text
from gam_jax.decode import ENDED
from gam_jax.models import LanguageModel, SideTuned
from gam_jax.params import Params
from gam_jax.sampling import Settings
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.layout import Layout

GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class TextRun:
    """A run of a language model on text, before its parameters are read.

    Attributes:
      folder: of the run.
      experiment: its configuration.
      tokenizer: the one that it keeps.
    """

    folder: RunFolder
    experiment: Experiment
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: str) -> TextRun:
        """The run of a folder.

        Raises:
          UserError: no run, no language model, or no text.
        """
        folder = RunFolder(pathlib.Path(path))
        experiment = folder.experiment()
        writing_model(experiment)
        return cls(folder, experiment, tokenizer_of_run(folder, experiment))

    @property
    def model(self) -> LanguageModel:
        """As it was trained, with all its streams."""
        return writing_model(self.experiment)

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """int32 ids of a text.

        Args:
          text: of characters.
          special: whether the name of a special token in it is that token.

        Raises:
          UserError: a text that cannot be written as UTF-8.
        """
        return encoded(self.tokenizer, text, special)

    def ends(self) -> tuple[int, ...]:
        """The ids that end a text: the tokenizer's separator, and those of generation_config.json.

        That file is one of those that a run keeps of the model folder that it was made of.

        Raises:
          UserError: its eos_token_id is no id of the vocabulary, and no list of such.
        """
        vocab = self.model.ids()["inputs"]
        return end_ids(self.tokenizer, self.folder.source / GENERATION, vocab)

    def load(self, checkpoint: str, streams: int) -> Writer:
        """The run with its parameters, on the devices that the flags ask for.

        Args:
          checkpoint: which one.
          streams: of parallel streams, how many; 0 for all.

        Raises:
          UserError: no such checkpoint, streams or devices; a damaged checkpoint.
        """
        experiment = self.experiment
        layout = layout_from_flags(experiment.parallel.whole)
        step, model, params = self.read(layout, checkpoint, streams)
        say_where(layout.mesh.size)
        return Writer(self, model, params, layout, step)

    def read(
        self, layout: Layout, checkpoint: str, streams: int
    ) -> tuple[int, LanguageModel, Params]:
        """Step, model and parameters as they write, adapters merged.

        Args:
          layout: where to put them.
          checkpoint: which one.
          streams: of parallel streams, how many; 0 for all.

        Raises:
          UserError: see `load`.
        """
        own = of_streams(self.experiment, streams)
        own.model.check_mesh(layout)
        given = self.folder, self.experiment, layout, checkpoint, streams
        step, params = params_of_streams(*given)
        check_tokenizer(self.folder, step, self.tokenizer)
        if isinstance(own.model, SideTuned):
            params = own.model.writing_params(params)
        return step, *merged(writing_model(own), params, layout)


def writing_model(experiment: Experiment) -> LanguageModel:
    """The experiment's model as it writes: a language model, or one that is tuned at its side.

    Raises:
      UserError: it is another.
    """
    model = experiment.model
    return model.writing() if isinstance(model, SideTuned) else language_model(experiment)


def tokenizer_of_run(folder: RunFolder, experiment: Experiment) -> Tokenizer:
    """The tokenizer that a run keeps.

    Raises:
      UserError: it was trained on no text.
    """
    kept = folder.kept(experiment.data)
    if TOKENIZER not in kept:
        raise UserError(f"{folder.path} was trained on {experiment.data.name}, which is no text")
    return tokenizer_from_text(kept[TOKENIZER], str(folder.path / TOKENIZER))


def encoded(tokenizer: Tokenizer, text: str, special: bool) -> np.ndarray:
    """int32 ids of a text, see `TextRun.encode`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("it is not UTF-8") from error
    if special:
        return tokenizer.encode_places([text], special=True)[0][0]
    return tokenizer.encode(text)


def end_ids(tokenizer: Tokenizer, path: pathlib.Path, vocab: int) -> tuple[int, ...]:
    """The ids that end a text, see `TextRun.ends`; a generation_config.json need not be there."""
    found = {tokenizer.separator}
    if path.is_file():
        given = read_json(path, finite=False).get("eos_token_id")
        ids = given if isinstance(given, list) else [given]
        for one in ids:
            if one is not None and not (type(one) is int and 0 <= one < vocab):
                raise UserError(
                    f"{path}: eos_token_id {str(one)[:60]} is no id from 0 to {vocab - 1}: "
                    f"mend it, or say --nostop_at_end"
                )
        found.update(ids)
    return tuple(sorted(one for one in found if one is not None))


@dataclasses.dataclass(frozen=True)
class Writer:
    """A run with its parameters.

    Attributes:
      run: the run.
      model: of the streams that were asked for.
      params: its parameters, on the layout's mesh.
      layout: the mesh.
      step: of the checkpoint.
    """

    run: TextRun
    model: LanguageModel
    params: Params
    layout: Layout
    step: int

    @property
    def where(self) -> str:
        """The run and its checkpoint, for messages."""
        return f"{self.run.folder.path} at checkpoint {self.step}"


@dataclasses.dataclass(frozen=True)
class Asked:
    """How texts are to be written.

    Attributes:
      tokens: the most that are written.
      drawn: settings by name, see `gam_jax.sampling.Settings`.
      stops: texts before which a text ends.
      ends: ids with which it ends.
    """

    tokens: int
    drawn: dict[str, Any]
    stops: Sequence[str]
    ends: Sequence[int]

    def row(self, tokenizer: Tokenizer) -> Continuation:
        """The start of what one row writes."""
        return Continuation(tokenizer.stream(), self.stops, self.ends)


def define_writing_flags() -> None:
    """How tokens are drawn, and what ends a text."""
    flags.DEFINE_integer("tokens", 200, "How many tokens to write at most.", 1)
    flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token each time.", 0)
    flags.DEFINE_float("top_p", 0.95, "Draw from the likeliest tokens of this probability.", 0, 1)
    flags.DEFINE_integer("top_k", 0, "Draw from that many likeliest tokens; 0 for all.", 0)
    flags.DEFINE_float(
        "min_p", 0, "Draw from tokens at least this part as likely as the likeliest.", 0, 1
    )
    flags.DEFINE_float(
        "repetition_penalty", 1, "Above 1, what was read or written gets less likely.", 0.001, 1000
    )
    flags.DEFINE_float(
        "presence_penalty", 0, "Taken from the logit of what was written.", -1000, 1000
    )
    flags.DEFINE_float(
        "frequency_penalty", 0, "Taken from it as often as it was written.", -1000, 1000
    )
    flags.DEFINE_multi_string(
        "stop", [], "End before this text, which is not written; may be given several times."
    )
    flags.DEFINE_bool("stop_at_end", True, "End with the run's end-of-text ids.")


def asked(run: TextRun) -> Asked:
    """What the flags of `define_writing_flags` say.

    Raises:
      UserError: an empty stop text, or end-of-text ids that are none.
    """
    args = flags.FLAGS
    if not all(args.stop):
        raise UserError("--stop is empty: give at least one character, or leave it out")
    names = [field.name for field in dataclasses.fields(Settings)]
    drawn = {name: getattr(args, name) for name in names}
    ends = run.ends() if args.stop_at_end else ()
    return Asked(args.tokens, drawn, tuple(args.stop), ends)


class Timed:
    """Pieces of text on their way, and how fast they come after the first one, which compiles."""

    def __init__(self, pieces: Iterable[np.ndarray]) -> None:
        self._pieces = pieces
        self._start = self._first = self._last = time.perf_counter()
        self._all = self._after = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self._pieces:
            self._last = time.perf_counter()
            tokens = int(np.sum(piece != ENDED))
            if self._all:
                self._after += tokens
            else:
                self._first = self._last
            self._all += tokens
            yield piece

    @property
    def speed(self) -> float:
        """Tokens a second, of all rows; with the first piece where there is no other."""
        if self._after:
            return self._after / (self._last - self._first)
        return self._all / max(self._last - self._start, 1e-9)
