"""Serves trained runs and model folders behind the OpenAI API.

  gam serve --run=runs/gam_small
  gam serve --run=small=runs/a --run=large=runs/b --port=8001
  gam serve --run=runs/a --run=runs/b --run=runs/c --loaded=2
  gam serve --hf=FOLDER --rows=16 --mesh=data=2,tensor=2
  gam launch --processes=2 -- gam serve --run=runs/gam_small --mesh=tensor=2

/v1/completions, /v1/chat/completions, /v1/models, /tokenize, /health, /metrics, and / to try it. A
text depends on its own request alone, never on what else is served. With --loaded, models for
which there is no room wait in the host's memory until they are asked for. Ctrl-C or SIGTERM lets
running answers end, for at most --drain seconds, and refuses new ones. Of several processes the
first one listens, and tells the others each step.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_cache_flag, define_device_flags, join_devices, say_where
from gam_jax.serve.device import check_mesh
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import mesh_from_text

if TYPE_CHECKING:
    from experiments.serve.models import Opened

KEY = "GAM_API_KEY"
"""Of the environment: what stands in the arguments is seen by all users of a machine."""

GARBAGE = 50_000, 20, 20
"""After how many objects Python looks for garbage: tracing makes many, few of which are any."""


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    flags.DEFINE_multi_string("run", [], "Run folder, or NAME=FOLDER; may be given several times.")
    flags.DEFINE_multi_string("hf", [], "Model folder of Hugging Face, or NAME=FOLDER; likewise.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of runs: latest, latest-good, best (validation loss), or a step."
    )
    cli.define_path("chat_template", "", "File with a chat template, in place of the model's own.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for any that is free.", 0, 65535)
    flags.DEFINE_string("api_key", "", f"What clients must give; better in {KEY}.")
    flags.DEFINE_integer("rows", 8, "Texts in progress at once, of each model.", 1, 4096)
    flags.DEFINE_integer(
        "limit", 0, "Tokens of the longest text, prompt and answer; 0 for the model's limit.", 0
    )
    flags.DEFINE_integer(
        "cache_tokens", 0, "Tokens in the KV caches of all rows; 0 for --rows times the limit.", 0
    )
    flags.DEFINE_integer(
        "prefill_budget", 512, "Tokens of prompts read between two steps.", 256, 2**20
    )
    flags.DEFINE_integer(
        "loaded", 0, "Models on the devices at once, where several are served; 0 for all.", 0
    )
    flags.DEFINE_integer("queue", 256, "Requests that may wait for a row.", 1, 2**20)
    flags.DEFINE_integer(
        "snapshots", 2**28, "Bytes of states that are remembered in host memory; 0 for none.", 0
    )
    cli.define_path("snapshot_dir", "", "Folder where states are remembered over a restart.")
    flags.DEFINE_string("draft", "", "Who guesses: ngram, units, run:PATH, semi:PATH.")
    flags.DEFINE_integer(
        "block", 16, "With --draft: tokens of a row that are checked at once.", 2, 256
    )
    flags.DEFINE_bool("exact", False, "Texts after a remembered state are those of a cold one.")
    flags.DEFINE_float("drain", 30, "Seconds that running answers have to end after a signal.", 0)
    define_device_flags()
    define_cache_flag()


def main() -> None:
    """Looks at everything that was asked for, then listens, and reads and compiles meanwhile."""
    args = flags.FLAGS
    gc.set_threshold(*GARBAGE)
    register_classes()
    try:
        from experiments.serve.app import State
        from experiments.serve.engines import Options, all_served
        from experiments.serve.models import open_folder, open_run
        from experiments.serve.served import Served
        from experiments.serve.server import listen, serve
        from experiments.serve.several import Several, first_does
    except ImportError as error:
        raise UserError(f"gam serve needs {error.name}: pip install 'gam_jax[serve]'") from error
    opened: list[Opened] = [
        open_run(path, args.checkpoint, args.chat_template) for path in args.run
    ]
    opened += [open_folder(path, args.chat_template) for path in args.hf]
    names = [one.name for one in opened]
    if not opened:
        raise UserError("give what to serve: --run=FOLDER or --hf=FOLDER")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two models are called '{twice}': say --run=NAME=FOLDER for one of them")
    options = Options.from_flags(opened)
    layouts = _layouts(opened)
    bound = first_does(lambda: listen(args.host, args.port))
    several = Several.join(opened, layouts, options)
    assert bound is not None  # the others do not come here
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{shown}:{bound.getsockname()[1]}/", flush=True)

    def load() -> dict[str, Served]:
        served = all_served(opened, layouts, options, several.share)
        several.begin()
        return served

    state = State(args.api_key or os.environ.get(KEY, ""), several.lost)
    several.run(lambda: serve(state, bound, load, args.drain))


def _layouts(opened: list[Opened]) -> list[Layout]:
    """A mesh for each model: of --mesh=A;B the first for the first, or one for all."""
    args = flags.FLAGS
    join_devices()
    texts = args.mesh.split(";")
    texts = texts * len(opened) if len(texts) == 1 else texts
    if len(texts) != len(opened):
        raise UserError(f"--mesh names {len(texts)} meshes for {len(opened)} models")
    meshes = [mesh_from_text(text, args.across) for text in texts]
    say_where(max(mesh.size for mesh in meshes))
    layouts = [Layout(mesh, one.parallel.whole) for mesh, one in zip(meshes, opened, strict=True)]
    for layout in layouts:
        check_mesh(layout)
    return layouts


if __name__ == "__main__":
    cli.run(main, define_flags)
