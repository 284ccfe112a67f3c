"""Engines for models that were opened: their parameters read, their programs compiled."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.serve.asked import Grammar
from experiments.serve.models import Opened, OpenedDrafter, open_drafter, open_run
from experiments.serve.served import Ids, Served
from gam_jax.models import LexicalUnits
from gam_jax.serve.constraints import Constraints
from gam_jax.serve.device import Device
from gam_jax.serve.drafts import Draft, NgramDraft, RunDraft, SemiDraft, UnitsDraft
from gam_jax.serve.engine import Engine
from gam_jax.serve.executor import Executor
from gam_jax.serve.request import Constraint
from gam_jax.serve.residents import Residents
from gam_jax.serve.seating import Settings
from sharding import processes
from sharding.errors import UserError
from sharding.layout import Layout

NGRAM, UNITS, RUN, SEMI = "ngram", "units", "run:", "semi:"
ENDINGS = 8
"""Sets of ids that end answers, for which what constraints need is kept."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How models are served.

    Attributes:
      rows: texts in progress at once.
      cache_tokens: that growing caches have room for, of all rows together; 0 for all they can
        take.
      block: tokens of a row that are checked at once; 1 where nobody guesses.
      draft: who guesses: "ngram", "units", a run, or a drafter beside the model; None for nobody.
      settings: how an engine shares out its rows.
      limit: tokens of the longest text; 0 for what each model takes.
      loaded: models that are on the devices at once; 0 for all.
    """

    rows: int
    cache_tokens: int
    block: int
    draft: str | Opened | OpenedDrafter | None
    settings: Settings
    limit: int = 0
    loaded: int = 0

    def order(self, models: int) -> list[tuple[int, bool]]:
        """The place of each of so many models in the order in which they are read.

        Returns:
          The place, and whether the model then waits in the host's memory. These come first, so
          that there is room for each.
        """
        room = self.loaded or models
        return [(place, place >= room) for place in (*range(room, models), *range(room))]

    @classmethod
    def from_flags(cls, models: Sequence[Opened]) -> Options:
        """What the flags of `gam serve` say, for some models.

        Raises:
          UserError: a limit beyond a model's; room for more models than there are; a draft that
            there is not, or that has another tokenizer than a model.
        """
        args = flags.FLAGS
        settings = Settings(
            prefill_budget=args.prefill_budget,
            queue=args.queue,
            snapshots=args.snapshots,
            folder=args.snapshot_dir,
            exact=args.exact,
        )
        for one in models:
            if one.model.limit and args.limit > one.model.limit:
                raise UserError(
                    f"--limit={args.limit}: {one.name} takes texts of {one.model.limit} tokens"
                )
        if args.loaded > len(models):
            raise UserError(
                f"--loaded={args.loaded}: {len(models)} models are served: give at most as many, "
                f"or leave it out"
            )
        block = args.block if args.draft else 1
        draft = _drafter(args.draft, models)
        sizes = args.rows, args.cache_tokens, block, draft
        return cls(*sizes, settings, args.limit, args.loaded)


def _drafter(text: str, models: Sequence[Opened]) -> str | Opened | OpenedDrafter | None:
    """Who guesses, as --draft says it."""
    if text in ("", NGRAM):
        return text or None
    if text == UNITS:
        for model in models:
            if not isinstance(model.model, LexicalUnits):
                raise UserError(
                    f"--draft={UNITS}: {model.name} was not trained to look ahead: gam draft units "
                    f"--run={model.name} does so"
                )
        return text
    if text.startswith(SEMI):
        return open_drafter(text.removeprefix(SEMI), models)
    if not text.startswith(RUN):
        raise UserError(
            f"--draft={text}: say {NGRAM}, {UNITS}, {RUN}PATH or {SEMI}PATH, or leave it out"
        )
    found = open_run(text.removeprefix(RUN), "latest", "")
    for model in models:
        if found.tokenizer.fingerprint != model.tokenizer.fingerprint:
            raise UserError(f"--draft={text} has another tokenizer than {model.name}")
    return found


Shared = Callable[[Executor], Executor]
"""What is called in place of a device whose calls all processes make."""


def rows_of(
    opened: Opened, layout: Layout, options: Options, shared: Shared, waits: bool = False
) -> tuple[Executor, Draft | None]:
    """Reads the parameters, of the draft too, and compiles; what waits then leaves the devices.

    Raises:
      UserError: see `served_of`.
    """
    beside = options.draft if isinstance(options.draft, OpenedDrafter) else None
    sizes = options.rows, options.limit, options.cache_tokens, options.block
    device = _device(opened, layout, *sizes, beside)
    if waits:
        device.sleep()
    device = shared(device)
    return device, _draft(opened, layout, options, device, shared, waits)


def served_of(
    opened: Opened,
    layout: Layout,
    options: Options,
    shared: Shared = lambda own: own,
    residents: Residents | None = None,
) -> Served:
    """Reads the parameters, compiles, and starts the engine.

    Args:
      opened: the model.
      layout: its mesh.
      options: how it is served.
      shared: called with each device, for what is called in its place.
      residents: which models are on the devices, where there is no room for all.

    Raises:
      UserError: a model that cannot be served; parameters that cannot be read; a draft of another
        vocabulary than the model's.
    """
    waits = residents is not None and not residents.loaded(opened.name)
    device, draft = rows_of(opened, layout, options, shared, waits)
    settings = options.settings
    if settings.folder:
        folder = str(pathlib.Path(settings.folder) / opened.name)
        settings = dataclasses.replace(settings, folder=folder)
    engine = Engine(device, settings, draft, residents=residents, name=opened.name)
    engine.start()
    vocab = device.sizes.vocab
    made = functools.lru_cache(ENDINGS)(functools.partial(Constraints, opened.tokenizer, vocab))

    def grammars(grammar: Grammar, ends: Ids) -> Constraint:
        return _constraint(made(ends), grammar)

    return Served(
        name=opened.name,
        created=opened.created,
        tokenizer=opened.tokenizer,
        vocab=vocab,
        limit=device.sizes.limit,
        ends=opened.ends,
        begins=opened.begins,
        special=opened.special,
        template=opened.template,
        engine=engine,
        grammars=grammars,
    )


def all_served(
    opened: Sequence[Opened],
    layouts: Sequence[Layout],
    options: Options,
    shared: Shared = lambda own: own,
) -> dict[str, Served]:
    """Serves several models; those for which there is no room wait, see `Options.loaded`.

    Args:
      opened: the models.
      layouts: their meshes.
      options: how they are served.
      shared: see `served_of`, which raises what this one does.
    """
    names = [one.name for one in opened]
    fewer = 0 < options.loaded < len(opened)
    residents = Residents(options.loaded, names[: options.loaded]) if fewer else None
    served = {
        names[place]: served_of(opened[place], layouts[place], options, shared, residents)
        for place, _ in options.order(len(opened))
    }
    return {name: served[name] for name in names}


def _constraint(constraints: Constraints, grammar: Grammar) -> Constraint:
    if grammar.kind == "json_object":
        return constraints.json_object()
    if grammar.kind == "json_schema":
        return constraints.json_schema(grammar.text)
    if grammar.kind == "regex":
        return constraints.regex(grammar.text)
    return constraints.choice(json.loads(grammar.text))


def _device(
    opened: Opened,
    layout: Layout,
    rows: int,
    limit: int,
    tokens: int,
    block: int,
    beside: OpenedDrafter | None = None,
) -> Device:
    begun = time.perf_counter()
    model, params = opened.read(layout)
    drafter = None if beside is None else (beside.model, beside.read(layout))
    sizes: Any = {"limit": limit, "tokens": tokens, "block": block}
    device = Device(model, params, rows, layout=layout, drafter=drafter, **sizes)
    names = device.compile()
    if not processes.is_first():
        return device
    state, page = device.row_bytes()
    print(
        f"{opened.name}: {len(names)} programs in {time.perf_counter() - begun:.1f} s "
        f"({', '.join(names)}); a row holds {state:,} bytes"
        + (f", and {page:,} for each {device.sizes.page} tokens" if page else ""),
        file=sys.stderr,
        flush=True,
    )
    return device


def _draft(
    opened: Opened,
    layout: Layout,
    options: Options,
    device: Executor,
    shared: Shared,
    waits: bool,
) -> Draft | None:
    if isinstance(options.draft, OpenedDrafter):
        return SemiDraft(device, options.draft.model.window)
    if isinstance(options.draft, Opened):
        guesses = _device(options.draft, layout, options.rows, 0, 0, 1)
        if waits:
            guesses.sleep()
        return RunDraft(shared(guesses), device.sizes)
    if options.draft == UNITS:
        assert isinstance(opened.model, LexicalUnits)
        return UnitsDraft(opened.model.placeholder, opened.model.unit)
    return NgramDraft() if options.draft else None
