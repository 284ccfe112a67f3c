"""Random folders of every class, written by transformers and read here, and the other way."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.selftest import official
from experiments.selftest.families import CONFIGS
from experiments.selftest.legal import LEGAL, fields
from gam_jax import decode
from gam_jax.convert import from_hf, to_hf
from gam_jax.convert.folder import CONFIG, read_config
from gam_jax.convert.hf import FAMILIES
from gam_jax.models.language import LanguageModel
from gam_jax.params import abstract_params
from sharding.errors import UserError

CLOSE = 2e-4
"""The most that a logit may be from that of transformers."""
ENDING = "ForCausalLM"


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration, by the name of its folder.

    Attributes:
      name: of the folder.
      kind: the class of transformers, without its ending.
      values: fields of its configuration.
      drawn: those of them that were drawn.
    """

    name: str
    kind: str
    values: Mapping[str, Any]
    drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a folder.

    Attributes:
      case: what it was made of.
      error: the largest difference of a logit; NaN where it was not read.
      largest: the largest logit.
      wrong: what does not hold, in words; empty if all holds.
    """

    case: Case
    error: float
    largest: float
    wrong: str = ""


def chosen(only: Iterable[str]) -> list[Case]:
    """The cases of these folders or classes; all for none.

    Raises:
      UserError: a name that is neither.
    """
    only = set(only)
    found = [Case(name, *value) for name, value in CONFIGS.items()]
    if unknown := only - {*CONFIGS, *(case.kind for case in found)}:
        raise UserError(
            f"--only: {sorted(unknown)[0]!a} is neither a folder nor a class; known are "
            f"{', '.join(dict.fromkeys(case.kind for case in found))}; {', '.join(CONFIGS)}"
        )
    return [case for case in found if not only or {case.name, case.kind} & only]


def drawn_cases(cases: Iterable[Case], count: int, seed: int = 0) -> list[Case]:
    """So many draws of legal fields of each class, over the first case of it."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.kind, case)
    found = []
    for kind, case in first.items():
        draw = np.random.default_rng([seed, *kind.encode()])
        for number in range(count):
            legal = LEGAL[kind].items()
            drawn = fields({name: values[draw.integers(len(values))] for name, values in legal})
            found.append(Case(f"{case.name} {number}", kind, {**case.values, **drawn}, drawn))
    return found


def outcomes(cases: Iterable[Case]) -> Iterator[Outcome]:
    """That of each case, in a folder that is thrown away."""
    for case in cases:
        with tempfile.TemporaryDirectory() as place:
            model = official.random_model(case.kind, case.values)
            yield compared(case, model, pathlib.Path(place))


def compared(case: Case, model: Any, place: pathlib.Path) -> Outcome:
    """Logits, greedy text, fields that are left out, and the folder that is written back."""
    expected = official.expected(model)
    official.write_folder(place / "theirs", model, expected)
    try:
        ours, params = from_hf(place / "theirs")
    except UserError as error:
        return Outcome(case, float("nan"), float("nan"), f"not read: {error}")
    tokens = expected["tokens"]
    logits, _ = jax.jit(ours.for_length(tokens.shape[1]))(params, tokens)
    error = float(np.abs(logits - expected["logits"]).max())
    wrong = [] if error <= CLOSE else [f"a logit differs by {error:.1e}"]
    pieces = decode.generate(
        ours, params, tokens, official.WRITTEN, jax.random.key(0), temperature=0.0
    )
    if not _by_length(ours) and not np.array_equal(decode.written(pieces), expected["greedy"]):
        wrong.append("greedy text differs")
    if left_out(case):
        wrong.append("a config.json that leaves out what is usual is another model")
    beside = {CONFIG: (place / "theirs" / CONFIG).read_bytes()}
    to_hf(ours, params, place / "ours", name=case.kind + ENDING, source=beside)
    before = official.logits_of(place / "theirs", case.kind, tokens)
    if not np.array_equal(official.logits_of(place / "ours", case.kind, tokens), before):
        wrong.append("what is written back is another model there")
    return Outcome(case, error, float(np.abs(logits).max()), "; ".join(wrong))


def _by_length(model: Any) -> bool:
    """Whether positions turn by the length of the sequence: transformers then turns anew."""
    saved = json.dumps(dataclasses.asdict(model), default=str)
    return any(f'"kind": "{kind}"' in saved for kind in ("dynamic", "longrope"))


def left_out(case: Case) -> bool:
    """Whether a config.json of `case.values` alone is another program here than a whole one."""
    import transformers  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as place:
        config = getattr(transformers, official.config_class(case.kind))(
            **copy.deepcopy(dict(case.values))
        )
        config.save_pretrained(place)
        whole = read_config(pathlib.Path(place))
    name = case.kind + ENDING
    said = {**case.values, "architectures": [name], "model_type": whole["model_type"]}
    read = FAMILIES[name].model
    try:
        few = read(said)
    except UserError:  # a field that must be told here
        return False
    return _program(few) != _program(read({**whole, "architectures": [name]}))


def _program(model: LanguageModel) -> str:
    """What it computes of a sequence, as text."""
    tokens = jax.ShapeDtypeStruct((1, official.PROMPT), "int32")
    program = str(jax.make_jaxpr(model)(abstract_params(model.table()), tokens))
    return re.sub("0x[0-9a-f]+", "", program)


def told(found: Outcome) -> str:
    """One line; another with what was drawn, where something is wrong."""
    case = found.case
    line = (
        f"{case.name:24} {case.kind + ENDING:26} {found.error:.1e} of {found.largest:.0f}  "
        f"{found.wrong or 'holds'}"
    )
    return f"{line}\n    {json.dumps(case.drawn)}" if found.wrong and case.drawn else line


def keep(cases: Iterable[Case], place: pathlib.Path) -> None:
    """The folders themselves, by name, each with `expected.npz`."""
    for case in cases:
        model = official.random_model(case.kind, case.values)
        official.write_folder(place / case.name, model, official.expected(model))
