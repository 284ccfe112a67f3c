"""The flags that say which devices a command runs on, and the line that tells them."""

from __future__ import annotations

import sys

from absl import flags

from experiments import cli
from sharding import machine, processes
from sharding.compile_cache import keep_programs
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import mesh_from_text
from sharding.parallel import Parallel
from sharding.topology import Topology


def define_device_flags() -> None:
    """--mesh, --across and --emulate."""
    flags.DEFINE_string(
        "mesh",
        "",
        "Devices along each axis, as data=2,seq=2,tensor=2; -1 is what is left; data=2x4 is in "
        "levels, outer first. All the devices on data if not given.",
    )
    flags.DEFINE_string(
        "across",
        "",
        "Hosts that each axis crosses, as data=2; the outermost axes cross first if not given.",
    )
    flags.DEFINE_integer("emulate", 0, "Run on that many emulated CPU devices.", 0)


def define_cache_flag() -> None:
    """--compile_cache, of commands that are started again and again with the same programs."""
    cli.define_path(
        "compile_cache",
        None,
        "Folder of compiled programs, which the next start reads; off for none. "
        "~/.cache/gam_jax if not given.",
    )


def layout_from_flags(
    parallel: Parallel = Parallel(),
    *,
    one_device: bool = False,
    topology: Topology | None = None,
) -> Layout:
    """Joins the job's other processes, if any, and lays out the mesh that the flags ask for.

    Args:
      parallel: what the axes are used for.
      one_device: without --mesh, take one device and not all of them.
      topology: devices to compile for, in place of those of this job.

    Raises:
      UserError: a mesh that the devices or the preset do not fit.
    """
    args = flags.FLAGS
    if topology is not None:
        if args.emulate:
            raise UserError("--topology and --emulate both say which devices there are: give one")
        mesh = mesh_from_text(args.mesh, args.across, topology.devices, topology.hosts)
        return Layout(mesh, parallel)
    join_devices()
    text = args.mesh or ("data=1" if one_device else "")
    return Layout(mesh_from_text(text, args.across), parallel)


def join_devices() -> None:
    """Makes the devices ready that the flags ask for, and the cache of compiled programs."""
    args = flags.FLAGS
    if "compile_cache" in args:
        keep_programs(args.compile_cache or "")
    if args.emulate:
        processes.emulate(args.emulate)
    else:
        processes.emulate_from_environment()
    processes.join()


def say_where(used: int | None = None) -> None:
    """Says on standard error, once a job, where the command runs and what it leaves unused.

    Args:
      used: devices that it takes; all if None.
    """
    if processes.is_first():
        for line in machine.told_of(used):
            print(line, file=sys.stderr, flush=True)
