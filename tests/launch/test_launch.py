"""Launch scripts: what they would run, and what they do when it ends this way or that.

Stand-ins for gcloud, sbatch, srun and the interpreter lie on PATH and record their words.
"""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.training.common import REPOSITORY

SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_pod.sh")


def launch(script, *words, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.run(
        [REPOSITORY / "launch" / script, *map(str, words)],
        cwd=REPOSITORY, env=kept | {"PYTHON": "python"} | environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def stand_in(tmp_path):
    """Returns a maker of programs: lines of bash after one that records the program's words."""
    folder, record = tmp_path / "bin", tmp_path / "record"
    folder.mkdir()

    def make(name, body=""):
        path = folder / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {record}\n{body}\n')
        path.chmod(0o755)
        return path

    def recorded():
        return record.read_text().splitlines() if record.exists() else []

    make.path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    make.recorded = recorded
    return make


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_options(script):
    helped = launch(script, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"launch/{script} ")
    assert "--dry-run" in helped.stdout
    wrong = launch(script, "--fast", "--", "lenext.train")
    if script != "slurm.sbatch":  # whose options are sbatch's
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("error: option --fast: ")
    nothing = launch(script)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: ")
    assert nothing.stderr.count("\n") == 1


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [REPOSITORY / "launch" / script for script in SCRIPTS]
    done = subprocess.run(
        ["shellcheck", *scripts], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == ""


# local.sh


def test_local_dry_run():
    done = launch(
        "local.sh", 2, "--devices=3", "--dry-run", "--", "--workdir=a b", LENEXT_PORT="1234",
        XLA_FLAGS="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:1234 JAX_NUM_PROCESSES=2 "
        f"JAX_PROCESS_ID={number} XLA_FLAGS=\\ --xla_force_host_platform_device_count=3 "
        r"python -m lenext.train --distributed --workdir=a\ b"
        for number in range(2)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("0", "--"), "N: should be the number of processes, not '0'"),
        (("two", "--"), "N: should be the number of processes, not 'two'"),
        (("2", "--devices=x", "--"), "--devices=x: should be a number from 1"),
        (("2",), "should end with -- and the arguments of lenext.train"),
        (("2", "3", "--"), "argument 3: arguments of lenext.train come after --"),
    ],
)
def test_local_mistakes(words, message):
    done = launch("local.sh", *words)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_local_runs_all_and_gives_the_first_failure(stand_in):
    body = '[[ $JAX_PROCESS_ID != 1 ]] || { echo "error: lost" >&2; exit 3; }; echo out'
    python = stand_in("python", body)
    done = launch("local.sh", 3, "--", "--workdir=x", PYTHON=str(python))
    assert done.returncode == 3
    assert done.stdout == "out\n"
    assert done.stderr == "process 1 of 3 ended with code 3\nprocess 1: error: lost\n"
    assert stand_in.recorded() == ["python -m lenext.train --distributed --workdir=x"] * 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_local_tells_all_to_stop(stand_in, tmp_path, number, code):
    body = 'sleep 60 & trap "kill $!; exit 75" TERM; touch ready$JAX_PROCESS_ID; wait'
    python = stand_in("python", body)
    process = subprocess.Popen(
        [REPOSITORY / "launch" / "local.sh", "2", "--"],
        cwd=tmp_path, env=os.environ | {"PYTHON": str(python)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not all((tmp_path / f"ready{number}").exists() for number in range(2)):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "ended with code 75" in said


# slurm.sbatch


def test_slurm_dry_run_of_several_nodes():
    done = launch(
        "slurm.sbatch", "--dry-run", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-task=1", "--",
        "lenext.train", "--config=a", "--workdir=b c",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 launch/slurm.sbatch -- "
        r"lenext.train --config=a --workdir=b\ c",
        r"srun --kill-on-bad-exit=1 python -m lenext.train --config=a --workdir=b\ c --distributed",
    ]


def test_slurm_submits_itself(stand_in):
    stand_in("sbatch")
    words = ("--gpus=1", "--", "lenext.train", "--config=a")
    done = launch("slurm.sbatch", *words, **stand_in.path)
    assert done.returncode == 0, done.stderr
    assert stand_in.recorded() == ["sbatch --gpus=1 launch/slurm.sbatch -- lenext.train --config=a"]


@pytest.mark.parametrize(
    ("code", "environment", "module", "words"),
    [
        (0, {}, "lenext.train", ""),
        (3, {"SLURM_NTASKS": "8"}, "lenext.evaluate", " --distributed"),
        (75, {"SLURM_NTASKS": "8"}, "lenext.train", " --distributed"),
        (75, {"SLURM_ARRAY_TASK_ID": "7"}, "experiments.run", " --only=7"),
    ],
)
def test_a_slurm_job(stand_in, code, environment, module, words):
    stand_in("srun", f"exit {code}")
    stand_in("scontrol")
    environment = {"SLURM_JOB_ID": "12"} | environment | stand_in.path
    done = launch("slurm.sbatch", "--", module, "x", **environment)
    assert done.returncode == code, done.stderr
    again = ["scontrol requeue 12"] if code == 75 else []
    started = f"srun --kill-on-bad-exit=1 python -m {module} x{words}"
    assert stand_in.recorded() == [started, *again]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "1", "--", "x"), "argument 1: options of sbatch come as --NAME=VALUE"),
        (("--gpus=1",), "should end with -- MODULE ARGS"),
        (("--array=0-3", "--", "lenext.train"), "an array's tasks do one run each"),
    ],
)
def test_slurm_mistakes(words, message):
    done = launch("slurm.sbatch", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


# tpu_pod.sh

POD = ("pod", "--zone=z")
TRAINING = "cd lenext && { .venv/bin/python -m lenext.train --distributed --config=a; "


def verbs(lines):
    """What was done to the slice, in a word each."""
    found = []
    for line in lines:
        verb = line.split()[4]
        if verb == "ssh":
            verb = "train" if "lenext.train" in line else "code" if "exit_code" in line else "setup"
        found.append(verb)
    return found


def test_pod_dry_run():
    done = launch(
        "tpu_pod.sh", *POD, "--spot", "--type=v5p-128", "--project=p", "--bucket=b", "--delete",
        "--dry-run", "--", "--config=a", "--workdir=runs/b c",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    create, archive, copy, setup, train, delete = done.stdout.splitlines()
    where = "--zone=z --project=p"
    assert create == (
        "gcloud compute tpus tpu-vm create pod --accelerator-type=v5p-128 "
        f"--version=v2-alpha-tpuv5-lite --spot {where}"
    )
    assert archive.startswith("git archive --format=tar.gz --output=")
    assert archive.endswith(" HEAD")
    assert copy.endswith(f"lenext.tar.gz pod:lenext.tar.gz --worker=all {where}")
    plain = setup.replace("\\", "")
    assert "pip install --quiet -r requirements.txt && " in plain
    assert "(mountpoint -q runs || gcsfuse --implicit-dirs b runs)" in plain
    assert train.startswith("gcloud compute tpus tpu-vm ssh pod --worker=all --command=cd")
    assert r"--distributed\ --config=a\ --workdir=runs/b\\\ c\;" in train
    assert delete == f"gcloud compute tpus tpu-vm delete pod --quiet {where}"


def test_pod_runs_on_a_slice_that_is_there(stand_in):
    stand_in("gcloud", "[[ $4 != describe ]] || echo READY")
    done = launch("tpu_pod.sh", *POD, "--", "--config=a", **stand_in.path)
    assert done.returncode == 0, done.stderr
    lines = stand_in.recorded()
    assert verbs(lines) == ["describe", "scp", "setup", "train"]
    assert f"--command={TRAINING}" in lines[-1]
    assert all(line.endswith("--zone=z") or "describe" in line for line in lines)


def test_pod_starts_again_after_preemption(stand_in, tmp_path):
    """The first training loses its slice, the second is told to stop, the third ends well."""
    stand_in(
        "gcloud",
        f"""
count={tmp_path}/count
case "$4 $*" in
  describe*) case $(cat $count 2>/dev/null) in "") ;; 1) echo PREEMPTED ;; *) echo READY ;; esac ;;
  ssh*lenext.train*) echo $(($(cat $count 2>/dev/null || echo 0) + 1)) > $count
                     [[ $(cat $count) == 3 ]] ;;
  ssh*exit_code*) [[ $(cat $count) == 2 ]] && echo 75 ;;
esac
""",
    )
    done = launch("tpu_pod.sh", *POD, "--delete", "--", "--config=a", **stand_in.path)
    assert done.returncode == 0, done.stderr
    assert verbs(stand_in.recorded()) == [
        "describe", "create", "scp", "setup", "train", "code",
        "describe", "delete", "create", "scp", "setup", "train", "code",
        "describe", "scp", "setup", "train",
        "delete",
    ]  # fmt: skip
    assert done.stderr.splitlines() == [
        f"attempt {number} of 20: stopped or preempted; starting again" for number in (1, 2)
    ]


def test_pod_does_not_repeat_a_mistake(stand_in):
    stand_in(
        "gcloud",
        'case "$4 $*" in describe*) echo READY ;; ssh*lenext.train*) exit 1 ;; '
        "ssh*exit_code*) echo 2 ;; esac",
    )
    done = launch("tpu_pod.sh", *POD, "--", "--config=a", **stand_in.path)
    assert done.returncode == 2
    assert done.stderr == "error: training ended with code 2\n"
    assert verbs(stand_in.recorded())[:5] == ["describe", "scp", "setup", "train", "code"]


def test_pod_gives_up_after_its_attempts(stand_in):
    stand_in(
        "gcloud",
        'case "$4 $*" in describe*) echo READY ;; ssh*lenext.train*) exit 1 ;; '
        "ssh*exit_code*) echo 75 ;; esac",
    )
    done = launch("tpu_pod.sh", *POD, "--attempts=2", "--", "--config=a", **stand_in.path)
    assert done.returncode == 75
    assert verbs(stand_in.recorded()).count("train") == 2


def test_pod_is_deleted_on_request(stand_in):
    stand_in("gcloud")
    assert launch("tpu_pod.sh", *POD, "--delete", **stand_in.path).returncode == 0
    assert stand_in.recorded() == ["gcloud compute tpus tpu-vm delete pod --quiet --zone=z"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--zone=z", "--"), "NAME: should be given, the slice's"),
        (("pod", "--"), "--zone=ZONE: should be given, such as "),
        (("pod", "--zone=z"), "should end with -- and the arguments of lenext.train"),
        (("pod", "x", "--zone=z", "--"), "argument x: arguments of lenext.train come after --"),
        ((*POD, "--attempts=0", "--"), "--attempts=0: should be a number from 1"),
    ],
)
def test_pod_mistakes(words, message):
    done = launch("tpu_pod.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
