"""Dry runs print what would be started and need no cluster; the shell code is clean."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
import yaml

from tests.experiments.commands import ROOT, tool

PODS = ROOT / "experiments" / "pods"
TRAIN = ("python", "-m", "experiments.train", "--run=/shared/a run", "--mesh=data=-1", "--resume")
ARGUMENTS = {
    "slurm.sh": ("--nodes", "2", "--gpus", "4", "--partition", "long"),
    "tpu_vm.sh": ("--name", "pod", "--zone", "us-west4-a", "--project", "mine"),
    "kubernetes.sh": ("--image", "gam:1", "--processes", "3", "--claim", "runs"),
}
every_script = pytest.mark.parametrize("name", ARGUMENTS)


def run(name, *args):
    """The script with a PATH on which there is no cluster's program."""
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        ["/bin/bash", str(PODS / name), *args], env=environment, capture_output=True, text=True
    )


def dry_run(name):
    result = run(name, *ARGUMENTS[name], "--dry-run", "--", *TRAIN)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_shellcheck_finds_nothing():
    assert {path.name for path in PODS.glob("*.sh")} == set(ARGUMENTS)
    scripts = sorted(map(str, PODS.glob("*.sh")))
    found = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@every_script
def test_it_can_be_started_and_says_how(name):
    assert os.access(PODS / name, os.X_OK)
    result = run(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: {name}")


def test_slurm_runs_the_command_once_on_each_node():
    script = dry_run("slurm.sh")
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for option in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "partition=long"):
        assert f"#SBATCH --{option}" in lines
    (call,) = (line for line in lines if "srun" in line)
    words = shlex.split(call)
    assert words[0] == "srun"
    assert words[-len(TRAIN) - 2 :] == [*TRAIN, "||", "code=$?"]


def failing(folder, program, codes):
    """A PATH on which a cluster's program ends with these codes, one after another."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    script = folder / program
    script.write_text(
        '#!/bin/bash\ncd "$(dirname "$0")" && echo "$@" >> calls\n'
        'code=$(head -1 codes) && sed -i 1d codes && exit "$code"\n'
    )
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("codes", "calls", "code"),
    [([0], 1, 0), ([1, 137, 0], 3, 0), ([1, 1, 1, 1, 1], 3, 1), ([1, 2, 0], 2, 2)],
)
@pytest.mark.parametrize("name", ["slurm.sh", "tpu_vm.sh"])
def test_a_command_that_fails_is_started_again_but_not_for_ever(name, codes, calls, code, tmp_path):
    """The batch script, or the script itself, with a stand-in for the cluster's program."""
    arguments = [*ARGUMENTS[name], "--restarts", "2", "--", *TRAIN]
    if name == "slurm.sh":
        (tmp_path / "batch.sh").write_text(run(name, "--dry-run", *arguments).stdout)
        command = ["/bin/bash", str(tmp_path / "batch.sh")]
        environment = failing(tmp_path, "srun", codes)
    else:
        command = ["/bin/bash", str(PODS / name), *arguments]
        environment = failing(tmp_path, "gcloud", codes)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == code
    made = (tmp_path / "calls").read_text().splitlines()
    assert len(made) == calls
    assert all("--resume" in call for call in made)


def test_tpu_hosts_all_run_the_command_and_look_for_each_other():
    words = shlex.split(dry_run("tpu_vm.sh"))
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"pod", "--zone=us-west4-a", "--worker=all", "--project=mine"} <= set(words)
    remote = next(word for word in words if word.startswith("--command="))
    remote = shlex.split(remote.removeprefix("--command="))
    assert remote[:4] == ["cd", "gam_jax", "&&", "GAM_JAX_JOIN=1"]
    assert remote[4:] == list(TRAIN)


def test_kubernetes_numbers_the_pods_and_names_the_first_to_all():
    service, job = yaml.safe_load_all(dry_run("kubernetes.sh"))
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 3 * 3  # all pods fail together, and each counts
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == list(TRAIN)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environment = {entry["name"]: entry for entry in container["env"]}
    address = environment["JAX_COORDINATOR_ADDRESS"]["value"]
    assert address == f"{job['metadata']['name']}-0.{service['metadata']['name']}:8476"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["JAX_NUM_PROCESSES"]["value"] == "3"
    assert "job-completion-index" in str(environment["JAX_PROCESS_ID"]["valueFrom"])
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"


BAD = {
    "no command": ("slurm.sh", ("--nodes", "2"), "after --"),
    "no nodes": ("slurm.sh", ("--", "true"), "--nodes=''"),
    "nodes that are no number": ("slurm.sh", ("--nodes", "two", "--", "true"), "--nodes='two'"),
    "no name": ("tpu_vm.sh", ("--zone", "z", "--", "true"), "give --name"),
    "no image": ("kubernetes.sh", ("--processes", "2", "--", "true"), "give --image"),
    "a name that is none": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--name", "My Job", "--", "true"),
        "--name='My Job'",
    ),
    "restarts that are no number": (
        "slurm.sh",
        ("--nodes", "2", "--restarts", "many", "--", "true"),
        "--restarts='many'",
    ),
    "unknown flag": ("slurm.sh", ("--nods", "2"), "unknown argument '--nods'"),
    "flag without its value": ("tpu_vm.sh", ("--zone",), "--zone needs a value"),
}


@pytest.mark.parametrize(("name", "args", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(name, args, words):
    result = run(name, *args)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
