"""Runs from and to model folders of Hugging Face transformers, without torch.

  gam convert --from-hf=FOLDER --run=runs/x
  gam convert --run=runs/x --to-hf=FOLDER
  gam convert --run=runs/x --to-gam=FOLDER
  gam convert --from-gam=FOLDER --run=runs/x
  gam convert --from-hf=FOLDER --from-peft=ADAPTERS --run=runs/y
  gam convert --from-peft=ADAPTERS --base=runs/x --run=runs/y
  gam convert --run=runs/y --to-peft=NEW_FOLDER
  gam convert --check=FOLDER --emulate=8 --mesh=data=4,tensor=2
  gam convert --selftest --only=Llama,hf_gemma2 --draws=20

The first makes a run of a folder's config.json, safetensors and tokenizer.json: one that evaluate
and sample open, and that `train --init=runs/x` goes on from. The second writes such a folder from a
run of an architecture that transformers has; adapters are merged. The next two do so for any model,
in gam_jax's own format: JSON and safetensors. The others make a run with the
low-rank adapters of a PEFT folder, of a model folder or of a run, and write such adapters. --check
reads no numbers: it says what a folder is, whether it is read here, and what it takes on a mesh.
--selftest has transformers make random folders of each class, and compares what they mean here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_device_flags, layout_from_flags
from experiments.folder_check import facts, told
from experiments.imported import Imported
from experiments.own_folder import read_own, write_own
from experiments.selftest.run import chosen, drawn_cases, keep, outcomes
from experiments.selftest.run import told as told_of
from experiments.streams import check_tokenizer, language_model
from gam_jax.adapters import NAMES, merged, plain
from gam_jax.convert import from_peft, to_hf, to_peft
from gam_jax.convert.hf import written_as
from gam_jax.convert.new_tokens import tokenizer_of
from gam_jax.convert.placing import placed, where
from gam_jax.convert.source import read_source, without_tokens
from gam_jax.data.chat_template import JINJA, ChatTemplate, template_from_text, template_in
from gam_jax.data.text import TEMPLATE, TOKENIZER
from gam_jax.data.tokenizer import HFTokenizer, Tokenizer, tokenizer_from_text
from gam_jax.models.base import PARAM_DTYPES
from gam_jax.params import FLOAT32, Params, count_params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, load_params, logical_axes
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from sharding.paths import local_path

OF_A_WAY = {
    "check": ("preset", "json", "mesh", "across", "emulate"),
    "selftest": ("only", "draws", "keep"),
    "from_hf": ("param_dtype",),
    "to_hf": ("as_stored",),
}
"""Flag -> those that mean something beside it alone."""


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("from_hf", None, "Model folder to make a run of.")
    cli.define_path("to_hf", None, "Model folder to write a run to.")
    cli.define_path("from_gam", None, "Model folder of gam_jax to make a run of.")
    cli.define_path("to_gam", None, "Folder to write a run's model to, of any architecture.")
    cli.define_path("from_peft", None, "PEFT folder of adapters, for --from-hf or --base.")
    cli.define_path("to_peft", None, "PEFT folder to write a run's adapters to.")
    flags.DEFINE_string(
        "base",
        "",
        "With --from-peft: the run that its adapters are for. With --to-peft: the name of the "
        "model without adapters, to be written down there.",
    )
    cli.define_path("check", None, "Model folder to tell about: sizes, bytes, what is not read.")
    cli.define_path("run", None, "Run folder.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of the run that is read: latest, latest-good, best, or a step."
    )
    flags.DEFINE_enum(
        "param_dtype", FLOAT32, PARAM_DTYPES, "With --from-hf: in which the run stores parameters."
    )
    flags.DEFINE_bool(
        "as_stored", False, "With --to-hf: arrays in the run's own dtype, not in float32."
    )
    flags.DEFINE_string("preset", "", "With --check: what the mesh is used for, as fully_sharded.")
    flags.DEFINE_bool("selftest", False, "Compare random folders of each class with transformers.")
    flags.DEFINE_list("only", [], "With --selftest: these folders or classes alone.")
    flags.DEFINE_integer("draws", 0, "With --selftest: so many draws of legal fields a class.", 0)
    cli.define_path("keep", None, "With --selftest: write the folders here, and compare nothing.")
    flags.DEFINE_bool("json", False, "With --check: print one JSON object.")
    define_device_flags()


def main() -> None:
    """One way or the other."""
    args = flags.FLAGS
    register_classes()
    _check_flags()
    if args.check:
        _check(pathlib.Path(args.check))
        return
    if args.selftest:
        _selftest()
        return
    folder = RunFolder(pathlib.Path(args.run))
    if args.from_hf:
        make_run(pathlib.Path(args.from_hf), folder, args.from_peft, args.param_dtype)
    elif args.from_peft:
        add_adapters(RunFolder(local_path(args.base)), args.checkpoint, folder, args.from_peft)
    elif args.from_gam:
        make_run_of_own(local_path(args.from_gam), folder)
    elif args.to_gam:
        beside = source_of(folder, *_kept(folder))
        write_own(folder, local_path(args.to_gam), args.checkpoint, _one_device(), beside)
    elif args.to_hf:
        export_run(folder, pathlib.Path(args.to_hf), args.checkpoint, args.as_stored)
    else:
        export_adapters(folder, pathlib.Path(args.to_peft), args.checkpoint, args.base)


def _check_flags() -> None:
    """A UserError unless there is one way, with what it needs and nothing that is another's."""
    args = flags.FLAGS
    ways = (args.from_hf, args.from_peft and args.base, args.to_hf, args.to_peft)
    ways += (args.from_gam, args.to_gam, args.check, args.selftest)
    runs = args.run or args.check or args.selftest
    if not runs or sum(map(bool, ways)) != 1 or (args.from_peft and not any(ways[:2])):
        raise UserError(
            "give --run, and one of --from-hf, --to-hf, --from-gam, --to-gam, each with a folder; "
            "for adapters --to-peft, or --from-peft with --from-hf or --base; or --check or "
            "--selftest alone"
        )
    for way, names in OF_A_WAY.items():
        for name in names:
            if flags.FLAGS[name].present and not getattr(args, way):
                raise UserError(f"--{name} goes with --{way}: leave it out, or give that too")


def _check(source: pathlib.Path) -> None:
    parallel = Parallel(flags.FLAGS.preset) if flags.FLAGS.preset else Parallel()
    found = facts(local_path(source), layout_from_flags(parallel, one_device=True))
    print(json.dumps(found) if flags.FLAGS.json else told(source, found))


def _selftest() -> None:
    """A line for each folder; the exit code is 1 if something does not hold."""
    args = flags.FLAGS
    for needed in ("torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise UserError(f"--selftest needs {needed}: pip install 'gam_jax[official]'")
    cases = chosen(args.only)
    if args.draws:
        cases = drawn_cases(cases, args.draws)
    if args.keep:
        keep(cases, local_path(args.keep))
        return
    wrong = 0
    for found in outcomes(cases):
        print(told_of(found), flush=True)
        wrong += bool(found.wrong)
    print(f"{len(cases) - wrong} of {len(cases)} folders hold")
    if wrong:
        raise SystemExit(1)


def make_run(
    source: pathlib.Path,
    folder: RunFolder,
    adapters: str | None = None,
    param_dtype: str = FLOAT32,
) -> None:
    """A run folder with the weights as checkpoint 0.

    Args:
      source: the model folder.
      folder: of the run.
      adapters: a PEFT folder for that model, if any.
      param_dtype: in which parameters are stored, see `Model`.

    Raises:
      UserError: a run folder that is in use, or what `Imported` and `from_peft` refuse.
    """
    folder.check_new()
    imported = Imported.open(source)
    files = {TOKENIZER: imported.tokenizer.to_text()}
    experiment = imported.experiment
    model = dataclasses.replace(experiment.model, param_dtype=param_dtype)
    experiment = dataclasses.replace(experiment, model=model)
    made = _with(experiment, imported.read(), adapters, imported.source)
    _write_run(folder, *made, files, imported.source, imported.tokenizer.fingerprint)
    print(f"{count_params(made[0].model.table()):,} parameters of {source} in {folder.path}")
    print(f"next: gam sample --run={folder.path}")


def add_adapters(base: RunFolder, which: str, folder: RunFolder, adapters: str) -> None:
    """A run folder with the weights of another run and the adapters of a PEFT folder.

    Raises:
      UserError: a run folder that is in use, a run without a checkpoint, or what `from_peft`
        refuses.
    """
    folder.check_new()
    experiment = base.experiment()
    step, params = load_params(base, experiment, _one_device(), which)
    with Checkpoints(base.checkpoints, read_only=True) as checkpoints:
        fingerprint = checkpoints.extra(step).get("tokenizer")
    files = base.kept(experiment.data)
    source = _kept_source(base)
    _write_run(folder, *_with(experiment, params, adapters, source), files, source, fingerprint)
    print(f"{base.path} at step {step} with the adapters of {adapters} in {folder.path}")


def _with(
    experiment: Experiment, params: Params, adapters: str | None, source: Mapping[str, bytes]
) -> tuple[Experiment, Any]:
    """Experiment and parameters with the adapters of a PEFT folder, which alone are trained."""
    if adapters is None:
        return experiment, params
    plain_model = language_model(experiment)
    model, params = from_peft(plain_model, params, adapters, written_as(plain_model, source))
    optimizer = dataclasses.replace(experiment.optimizer, only=NAMES)
    return dataclasses.replace(experiment, model=model, optimizer=optimizer), params


def _write_run(
    folder: RunFolder,
    experiment: Experiment,
    params: Params,
    files: Mapping[str, str],
    source: Mapping[str, bytes],
    tokenizer: str | None,
) -> None:
    """A run whose checkpoint 0 holds parameters alone."""
    folder.start(experiment, files, source)
    with Checkpoints(folder.checkpoints) as checkpoints:
        axes = logical_axes(experiment)
        extra = {"position": 0, **({"tokenizer": tokenizer} if tokenizer else {})}
        params = placed(params, where(experiment.model.stored_table(), None))
        checkpoints.save(0, {"params": params}, extra, axes=axes)
        checkpoints.wait()


def _kept_source(folder: RunFolder) -> dict[str, bytes]:
    """The files that a run keeps of the model folder that it was made of."""
    return read_source(folder.source) if folder.source.is_dir() else {}


def _one_device() -> Layout:
    return Layout(make_mesh(devices=jax.devices()[:1]))


def export_adapters(folder: RunFolder, target: pathlib.Path, which: str, base: str) -> None:
    """A PEFT folder with the adapters of a checkpoint."""
    experiment = folder.experiment()
    step, params = load_params(folder, experiment, _one_device(), which)
    model = language_model(experiment)
    to_peft(model, params, target, base, written_as(plain(model), _kept_source(folder)))
    print(f"the adapters of {folder.path} at step {step} in {target}")


def export_run(
    folder: RunFolder, target: pathlib.Path, which: str, as_stored: bool = False
) -> None:
    """A model folder with the weights of a checkpoint, and what the run keeps beside them.

    Adapters are merged. Arrays are float32, or `as_stored`.
    """
    experiment = folder.experiment()
    model = language_model(experiment)
    tokenizer, template = _kept(folder)
    source = source_of(folder, tokenizer, template)
    step, params = load_params(folder, experiment, _one_device(), which)
    if tokenizer is not None:
        check_tokenizer(folder, step, tokenizer)
    to_hf(*merged(model, params), target, source=source, as_stored=as_stored)
    print(f"{folder.path} at step {step} in {target}")
    if not isinstance(tokenizer, HFTokenizer):
        print("without a tokenizer: token ids are bytes, for which that format has no file")


def make_run_of_own(source: pathlib.Path, folder: RunFolder) -> None:
    """A run folder with the weights of a model folder of gam_jax as checkpoint 0.

    Raises:
      UserError: a run folder that is in use, or what `read_own` refuses.
    """
    folder.check_new()
    experiment, params, tokenizer, kept = read_own(source)
    files = {TOKENIZER: tokenizer.to_text()}
    _write_run(folder, experiment, params, files, kept, tokenizer.fingerprint)
    print(f"{count_params(experiment.model.table()):,} parameters of {source} in {folder.path}")
    print(f"next: gam sample --run={folder.path}")


def _kept(folder: RunFolder) -> tuple[Tokenizer | None, ChatTemplate | None]:
    """The tokenizer and the chat template that a run keeps, if any."""
    kept = folder.kept(folder.experiment().data)
    tokenizer = tokenizer_from_text(kept[TOKENIZER]) if TOKENIZER in kept else None
    return tokenizer, template_from_text(kept[TEMPLATE], TEMPLATE) if TEMPLATE in kept else None


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
    files = _kept_source(folder)
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
