"""Dry runs print what would be started and need no cluster; the shell code is clean."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

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
    assert {path.name for path in PODS.glob("*.sh")} == {*ARGUMENTS, "xla_flags.sh"}
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
    (call,) = (line for line in lines if "  srun" in line)
    words = shlex.split(call)
    assert words[0] == "srun"
    assert words[-len(TRAIN) - 2 :] == [*TRAIN, "||", "code=$?"]


def stand_in(folder, program, script):
    """Puts a program of that name and script on the PATH that is returned."""
    path = folder / program
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}


ENDS = (
    'cd "$(dirname "$0")" && echo "$@" >> calls\n'
    'code=$(head -1 codes) && sed -i 1d codes && exit "$code"\n'
)
"""Notes how it was called and ends with the next of the codes in a file."""


def batch_of(folder, codes, *arguments, **environment):
    """How SLURM's batch script ends where srun ends with these codes, one after another."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    stand_in(folder, "scontrol", 'echo "$@" >> "$(dirname "$0")/requeued"\n')
    path = stand_in(folder, "srun", ENDS)
    script = run("slurm.sh", "--dry-run", *ARGUMENTS["slurm.sh"], *arguments)
    assert script.returncode == 0, script.stderr
    return subprocess.run(
        ["/bin/bash", "-c", script.stdout],
        env={**path, "SLURM_JOB_ID": "7", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("codes", "calls", "code"),
    [([0], 1, 0), ([1, 137, 0], 3, 0), ([1, 1, 1, 1, 1], 3, 1), ([1, 2, 0], 2, 2), ([75], 1, 75)],
)
def test_a_command_that_fails_is_started_again_but_not_for_ever(codes, calls, code, tmp_path):
    result = batch_of(tmp_path, codes, "--restarts", "2", "--", *TRAIN)
    assert result.returncode == code
    made = (tmp_path / "calls").read_text().splitlines()
    assert len(made) == calls
    assert all("--resume" in call for call in made)
    assert not (tmp_path / "requeued").exists()


UNFINISHED = "--unfinished-code=75"


@pytest.mark.parametrize(
    ("code", "before", "requeued"),
    [(75, "", True), (75, "2", True), (75, "3", False), (0, "", False)],
)
def test_a_job_that_stopped_unfinished_is_queued_again_as_often_as_was_said(
    code, before, requeued, tmp_path
):
    counts = {"SLURM_RESTART_COUNT": before} if before else {}
    result = batch_of(tmp_path, [code], "--requeues", "3", "--", *TRAIN, UNFINISHED, **counts)
    assert result.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_slurm_gives_the_processes_their_cores_and_says_what_xla_is_told(tmp_path):
    result = batch_of(tmp_path, [0], "--cpus", "12", "--", *TRAIN)
    assert "--cpus-per-task=12" in (tmp_path / "calls").read_text()
    assert "--kill-on-bad-exit=1" in (tmp_path / "calls").read_text()
    assert result.stdout.startswith("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true")
    own = batch_of(tmp_path, [0], "--", *TRAIN, XLA_FLAGS="--own").stdout
    assert own.endswith("=true --own\n")  # the later one wins
    none = batch_of(tmp_path, [0], "--no-xla-flags", "--", *TRAIN)
    assert none.stdout == ""


def test_xla_knows_the_flags_for_gpus():
    """It ends a process that gives it others; those for TPUs only libtpu knows."""
    flags = next(line for line in dry_run("slurm.sh").splitlines() if "export XLA_FLAGS" in line)
    flags = shlex.split(flags)[1].removeprefix("XLA_FLAGS=").split()[0]
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flags}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


@pytest.fixture
def tpu(tmp_path):
    """The script, with a gcloud that runs the hosts' part here, in a folder of its own."""
    (tmp_path / "gam_jax").mkdir()
    hosts = (
        "for word; do case $word in --command=*)\n"
        'cd "$(dirname "$0")" && exec bash -c "${word#*=}" ;; esac; done\n'
    )
    path = stand_in(tmp_path, "gcloud", hosts)

    def start(*arguments):
        command = ["/bin/bash", str(PODS / "tpu_vm.sh"), "--name", "pod", "--zone", "z", *arguments]
        return subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)

    yield start
    start("--stop")


def said(tpu, words):
    """What --log shows, once it shows these words."""
    deadline = time.monotonic() + 20
    while words not in (shown := tpu("--log").stdout):
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    return shown


def test_what_runs_on_tpu_hosts_outlives_the_connection_until_it_is_stopped(tpu):
    waits = (
        "trap 'echo saved; exit 0' TERM; echo told $GAM_JAX_JOIN $LIBTPU_INIT_ARGS\n"
        "while :; do sleep 0.1; done"
    )
    command = ("--", "bash", "-c", waits)
    assert "started on" in tpu(*command).stdout
    said(tpu, "it runs")
    assert "told 1 --xla_tpu_" in said(tpu, "told 1")
    second = tpu(*command)
    assert second.returncode == 2
    assert "runs here already" in second.stderr
    tpu("--stop")
    assert "saved" in said(tpu, "it has ended")
    assert tpu("--stop").stdout == "nothing runs\n"
    assert tpu("--no-xla-flags", "--", "bash", "-c", "echo [$LIBTPU_INIT_ARGS]").returncode == 0
    assert "[]" in said(tpu, "it has ended")


@pytest.mark.parametrize(
    ("codes", "calls"), [([0], 1), ([1, 137, 0], 3), ([1] * 5, 3), ([1, 2], 2)]
)
def test_each_tpu_host_starts_again_what_fails_but_not_for_ever(codes, calls, tpu, tmp_path):
    (tmp_path / "gam_jax" / "codes").write_text("".join(f"{code}\n" for code in codes))
    stand_in(tmp_path / "gam_jax", "job", ENDS)
    tpu("--restarts", "2", "--", "./job", "--resume")
    shown = said(tpu, "it has ended")
    assert f"ended with {codes[calls - 1]} after {calls - 1} restarts" in shown
    assert (tmp_path / "gam_jax" / "calls").read_text() == calls * "--resume\n"


def test_tpu_hosts_all_run_the_command_and_look_for_each_other():
    words = f"printf '%s\\0' {dry_run('tpu_vm.sh')}"  # bash reads what bash has quoted
    words = subprocess.run(["/bin/bash", "-c", words], capture_output=True, text=True).stdout
    words = words.split("\0")
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"pod", "--zone=us-west4-a", "--worker=all", "--project=mine"} <= set(words)
    assert "--restarts" in run("tpu_vm.sh", "--help").stdout


def same_twice(device, count):
    """What a container asks for of a device."""
    return {name: {device: count} for name in ("limits", "requests")}


def test_kubernetes_numbers_the_pods_and_names_the_first_to_all():
    service, job = yaml.safe_load_all(dry_run("kubernetes.sh"))
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 3 * 3  # all pods fail together, and each counts
    bad, stopped, evicted = spec["podFailurePolicy"]["rules"]
    assert (bad["action"], bad["onExitCodes"]["values"]) == ("FailJob", [2])
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [75])
    assert (evicted["action"], evicted["onPodConditions"]) == (
        "Ignore",
        [{"type": "DisruptionTarget"}],
    )
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == list(TRAIN)
    assert container["resources"] == same_twice("nvidia.com/gpu", 8)
    environment = {entry["name"]: entry for entry in container["env"]}
    address = environment["JAX_COORDINATOR_ADDRESS"]["value"]
    assert address == f"{job['metadata']['name']}-0.{service['metadata']['name']}:8476"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["JAX_NUM_PROCESSES"]["value"] == "3"
    assert "job-completion-index" in str(environment["JAX_PROCESS_ID"]["valueFrom"])
    assert environment["XLA_FLAGS"]["value"].startswith("--xla_gpu_")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == "runs"
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"runs": "/runs", "shm": "/dev/shm"}


def test_kubernetes_asks_for_the_tpus_of_a_slice_whose_hosts_find_each_other():
    slice_ = ("--tpus", "4", "--tpu-type", "tpu-v5-lite-podslice", "--topology", "4x8")
    arguments = ("--image", "gam:1", "--processes", "8", *slice_, "--dry-run", "--", *TRAIN)
    _, job = yaml.safe_load_all(run("kubernetes.sh", *arguments).stdout)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == same_twice("google.com/tpu", 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment.pop("LIBTPU_INIT_ARGS").startswith("--xla_tpu_")
    assert environment == {"GAM_JAX_JOIN": "1"}
    assert [volume["name"] for volume in pod["volumes"]] == ["shm"]


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
    "requeues without the code that asks for them": (
        "slurm.sh",
        ("--nodes", "2", "--requeues", "3", "--", "true"),
        "give the command --unfinished-code=75",
    ),
    "a negative number of requeues": (
        "slurm.sh",
        ("--nodes", "2", "--requeues", "-1", "--", "true"),
        "--requeues='-1'",
    ),
    "GPUs and TPUs": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--gpus", "1", "--tpus", "4", "--", "true"),
        "not both",
    ),
    "TPUs of no type": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--tpus", "4", "--topology", "4x4", "--", "true"),
        "--tpu-type=''",
    ),
    "a topology that is none": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--tpus", "4", "--tpu-type", "t", "--topology", "16"),
        "--topology='16'",
    ),
    "a topology without TPUs": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--topology", "4x4", "--", "true"),
        "need --tpus",
    ),
    "memory that is no size": (
        "kubernetes.sh",
        ("--image", "i", "--processes", "2", "--shm", "lots", "--", "true"),
        "--shm='lots'",
    ),
    "a command to stop with": (
        "tpu_vm.sh",
        ("--name", "n", "--zone", "z", "--stop", "--", "true"),
        "--stop takes no command",
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
