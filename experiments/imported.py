"""Starts a run from a model folder of Hugging Face: its model, tokenizer and parameters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gam_jax.config import flatten, to_dict
from gam_jax.convert.folder import open_arrays
from gam_jax.convert.hf import model_of, open_hf
from gam_jax.convert.new_tokens import VOCAB, tokenizer_of, with_rows, with_tokens
from gam_jax.convert.placing import placed
from gam_jax.convert.source import CONFIG, TOKENIZER, read_source
from gam_jax.convert.tensor_file import ends
from gam_jax.data.base import Data
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import HFTokenizer
from gam_jax.layers.base import as_usual
from gam_jax.models.base import Model
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params, Table
from gam_jax.training.experiment import Experiment
from gam_jax.training.warm_start import Report
from sharding import processes
from sharding.checkpoint import names
from sharding.checkpoint.manifest import Stored
from sharding.errors import UserError
from sharding.paths import local_path

WINDOW = 1024
"""Tokens of a window, where the model's limit is not shorter."""
RATE = 2e-5
"""The highest learning rate if none is given: what was trained is not to be overrun."""
FREE = frozenset({"dropout", "dtype", "param_dtype"})
"""Fields of a model that leave its parameters and its function as they are; layers tell of theirs,
see `Layer.computed`."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model folder: whose parameters to start from.

    Attributes:
      folder: where it lies.
      model: of its config.json, with a vocabulary that has room for new tokens.
      source: the files of it that a run keeps, by name, see `convert.source`.
      known: ids that its own tokenizer has.
      added: ids of tokens that are new.
    """

    folder: pathlib.Path
    model: LanguageModel
    source: Mapping[str, bytes]
    known: int
    added: tuple[int, ...] = ()

    @classmethod
    def open(cls, folder: pathlib.Path, tokens: Sequence[str] = ()) -> Imported:
        """Looks at everything but the numbers of its arrays.

        Args:
          folder: of config.json, safetensors and tokenizer.json.
          tokens: names of special tokens to add.

        Raises:
          UserError: what `convert.from_hf` refuses; a tokenizer that is missing, damaged or of
            another model; tokens that cannot be added.
        """
        folder = local_path(folder)
        source = read_source(folder)
        model, known = model_of(folder), tokenizer_of(source, folder).vocab
        vocab = model.vocab or 0
        if known > vocab:
            raise UserError(
                f"{folder / TOKENIZER} has {known} ids, the model {vocab}: it is not this model's "
                f"tokenizer"
            )
        added: tuple[int, ...] = ()
        if tokens:
            source, added = with_tokens(source, tokens, folder)
            model = dataclasses.replace(model, vocab=max(vocab, known + len(added)))
        return cls(folder, model, source, known, added)

    @functools.cached_property
    def tokenizer(self) -> HFTokenizer:
        """Its tokenizer, with the tokens that are new."""
        return tokenizer_of(self.source, self.folder)

    @property
    def experiment(self) -> Experiment:
        """A run of the model on text of its tokenizer, open to be changed."""
        data = Text(
            tokenizer=str((self.folder / TOKENIZER).absolute()),
            window=min(WINDOW, self.model.limit or WINDOW),
            separators=self.tokenizer.separator is not None,
        )
        return Experiment(self.model, data, optimizer=OptimizerConfig(learning_rate=RATE))

    def check_model(self, model: Model) -> None:
        """Refuses a model that is not the folder's, but for fields that are `FREE`.

        Raises:
          UserError: it names the first field that is another.
        """
        own, other = (flatten(to_dict(as_usual(each))) for each in (self.model, model))
        for name in sorted(own.keys() | other.keys(), key=lambda name: (name.count("."), name)):
            before, now = own.get(name), other.get(name)
            if before != now and name.split(".")[-1] not in FREE:
                mend = "add tokens by --add_tokens" if name == VOCAB else "leave it out"
                raise UserError(
                    f"model.{name}={now} but the model of {self.folder} has {before}, which is "
                    f"what was trained: {mend}"
                )

    def files(self, data: Data) -> Mapping[str, str] | None:
        """The tokenizer, where data read with that of this folder; else None."""
        own = self.experiment.data
        if isinstance(data, Text) and isinstance(own, Text) and data.tokenizer == own.tokenizer:
            return {TOKENIZER: self.tokenizer.to_text()}
        if self.added:
            raise UserError(
                f"--add_tokens adds to {self.folder / TOKENIZER}, and the data (data.name="
                f"{data.name}) do not read with it: leave data.tokenizer out"
            )
        return None

    def plan(self, table: Table) -> Report:
        """What is taken: everything; what has rows for new tokens is told as resized.

        What the folder does not have is missing: adapters, which begin new.
        """
        mine, own = names.flat(table), names.flat(self.model.table())
        missing = tuple(name for name in mine if name not in own)
        grown = [name for name, param in mine.items() if self.added and VOCAB in param.axes]
        taken = tuple(name for name in mine if name not in grown and name in own)
        where = f"hf:{self.folder}"
        return Report(where, taken, tuple(grown), (), (), missing, (), ())

    def read(self) -> Params:
        """The parameters, not read yet, see `convert.lazy`.

        Raises:
          UserError: what only the numbers tell, or a folder that has changed.
        """
        model, params = open_hf(self.folder)
        if dataclasses.replace(model, vocab=self.model.vocab) != self.model:
            raise UserError(f"{self.folder} has changed while it was read: begin again")
        if not self.added:
            return params
        return with_rows(model.table(), params, self.known, self.model.vocab or 0, self.added)

    def standing(self) -> Mapping[str, Stored]:
        """None: a model folder is no checkpoint."""
        return {}

    def start(self, table: Table, fresh: Params) -> tuple[Params, Report]:
        """The folder's parameters, placed as new ones are, in whose place they are put.

        Each process reads what its devices hold.

        Args:
          table: of the model.
          fresh: its new parameters, on the mesh. They are deleted.

        Raises:
          UserError: as `read`; or the processes have different folders.
        """
        self._check_same()
        leaves: dict[str, Any] = names.flat(fresh)
        read = names.flat(self.read())
        leaves |= placed(read, {name: leaves[name] for name in read}, instead=True)
        begun = jax.tree.unflatten(jax.tree.structure(fresh), list(leaves.values()))
        return begun, self.plan(table)

    def _check_same(self) -> None:
        """A UserError where processes of a job have different folders.

        No process reads all numbers, so they compare the first and last bytes of each array.
        """
        if processes.count() == 1:
            return
        read = hashlib.sha256(self.source[CONFIG] + self.tokenizer.fingerprint.encode())
        for name, (dtype, array) in sorted(open_arrays(self.folder).items()):
            read.update(f"{name!a} {dtype} {array.shape} ".encode() + ends(array))
        rows = processes.gather(np.frombuffer(read.digest(), np.uint8))
        if other := [i for i, row in enumerate(rows) if row.tobytes() != rows[0].tobytes()]:
            raise UserError(
                f"--init: {self.folder} of process {other[0]} is not that of process 0: give all "
                f"processes the same folder"
            )
