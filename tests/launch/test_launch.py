"""Launch scripts: what they would run, and what they do when it ends this way or that.

Stand-ins for gcloud, sbatch, srun and the interpreter lie on PATH and record their words.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.training.common import REPOSITORY

SCRIPTS = ("gke.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh")


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


SLURM = {
    # Of the manuals of Slurm: what an option takes.
    "sbatch --job-name": r"\S+",
    "sbatch --requeue": "",
    "sbatch --open-mode": "append|truncate",
    # Without "B:" it goes to all steps and not to the shell, which is what srun's processes want.
    "sbatch --signal": r"(R:)?[A-Z1-9]\w*(@\d{1,5})?",
    "sbatch --output": r"[\w/.-]*(%[jxAa][\w/.-]*)*",
    "srun --kill-on-bad-exit": "[01]",
    "scontrol requeue": r'"\$SLURM_JOB_ID"',
}


def test_slurm_is_asked_for_what_its_manuals_have():
    text = (REPOSITORY / "launch" / "slurm.sbatch").read_text()
    asked = [f"sbatch {option}" for option in re.findall(r"^#SBATCH (.*)$", text, re.M)]
    (of_srun,) = re.findall(r"\(srun (--.*?) \"\$python\"", text)
    asked += [f"srun {option}" for option in of_srun.split()]
    asked += re.findall(r"scontrol .*?(?=;)", text)
    assert len(asked) == 7
    for call in asked:
        name, _, value = call.replace("requeue ", "requeue=").partition("=")
        assert re.fullmatch(SLURM[name], value), call


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


# What `gcloud compute tpus` takes, by its public reference (read in 2026).
ANYWHERE = {"--zone", "--project", "--quiet", "--format"}
FLAGS = {
    ("queued-resources", "create"): {
        "--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix",
        "--spot", "--async", "--reserved", "--guaranteed", "--valid-until-duration", "--metadata",
    },
    ("queued-resources", "describe"): set(),
    ("queued-resources", "delete"): {"--async", "--force"},
    ("tpu-vm", "describe"): set(),
    ("tpu-vm", "delete"): {"--async"},
    ("tpu-vm", "ssh"): {"--worker", "--command", "--ssh-flag", "--internal-ip", "--batch-size"},
    ("tpu-vm", "scp"): {"--worker", "--recurse", "--internal-ip", "--batch-size"},
}  # fmt: skip

CLOUD = r"""#!/usr/bin/env python3
import json, sys, time
path = {path!r}
with open(path) as file:
    cloud = json.load(file)
compute, tpus, kind, verb, *words = sys.argv[1:]
assert (compute, tpus) == ("compute", "tpus")
flags = [word for word in words if word.startswith("--")]
cloud["calls"].append([kind, verb, [w for w in words if not w.startswith("--")], flags])
command = next((flag for flag in flags if flag.startswith("--command=")), "")
said, code = "", 0

def preempted():
    cloud["node"], cloud["queue"] = "PREEMPTED", "SUSPENDED"

def next_of(name):
    return cloud[name].pop(0) if cloud[name] else "ok"

if kind == "queued-resources":
    if verb == "create":
        if cloud["queue"] or next_of("create") == "quota":
            print("ERROR: (gcloud) quota exceeded", file=sys.stderr)
            code = 1
        else:
            cloud["queue"], cloud["left"] = "WAITING_FOR_RESOURCES", cloud["waits"]
    elif not cloud["queue"]:
        code = 1
    elif verb == "delete":
        cloud["queue"] = cloud["node"] = None
    else:
        if cloud["queue"] == "WAITING_FOR_RESOURCES":
            cloud["left"] -= 1
            if cloud["left"] < 0:
                cloud["queue"] = cloud["becomes"]
                cloud["node"] = "READY" if cloud["becomes"] == "ACTIVE" else None
        said = cloud["queue"]
elif not cloud["node"]:
    code = 1
elif verb == "describe":
    said = cloud["type"] if "--format=value(acceleratorType)" in flags else cloud["node"]
elif verb == "delete":
    cloud["node"] = None
elif "cat lenext/exit_code" in command:
    said, code = (str(cloud["code"]), 0) if cloud["node"] == "READY" else ("", 1)
else:
    name = "scp" if verb == "scp" else "train" if "lenext.train" in command else "setup"
    outcome = next_of(name)
    if outcome == "hang":
        with open(path, "w") as file:
            json.dump(cloud, file)
        time.sleep(60)
    if outcome == "preempted":
        preempted()
    code = 0 if outcome == "ok" else 1
    cloud["code"] = outcome if isinstance(outcome, int) else 1
with open(path, "w") as file:
    json.dump(cloud, file)
print(said)
sys.exit(code)
"""
"""A stand-in for gcloud: one request and one kind of slice, whose fates are lists in a file."""


@pytest.fixture
def cloud(stand_in, tmp_path):
    """Returns a runner of tpu_pod.sh against a stand-in cloud; checks all calls against FLAGS."""
    path = tmp_path / "cloud.json"
    stand_in("gcloud").write_text(CLOUD.replace("{path!r}", repr(str(path))))
    nothing = {
        "queue": None, "node": None, "type": "v5litepod-16", "waits": 0, "becomes": "ACTIVE",
        "create": [], "scp": [], "setup": [], "train": [], "code": 0, "calls": [],
    }  # fmt: skip

    def run(*words, **fate):
        path.write_text(json.dumps(nothing | fate))
        done = launch("tpu_pod.sh", *POD, *words, LENEXT_POLL_SECONDS="0.01", **stand_in.path)
        left = json.loads(path.read_text())
        for kind, verb, names, flags in left["calls"]:
            assert {flag.split("=")[0] for flag in flags} <= FLAGS[kind, verb] | ANYWHERE
            assert "--zone=z" in flags
            assert len(names) == (2 if verb == "scp" else 1)
        return done, left

    run.path = path
    return run


def done_to(left):
    """What was done, in a word each, without looking."""
    words = []
    for _, verb, _, flags in left["calls"]:
        text = " ".join(flags)
        if verb == "ssh":
            verb = (
                "train" if "lenext.train" in text else "code" if "cat lenext" in text else "setup"
            )
        if verb not in ("describe", "code"):
            words.append({"create": "queue", "scp": "copy"}.get(verb, verb))
    return words


BEHIND = "what may still be there costs money: launch/tpu_pod.sh pod --zone=z --slices=1 --delete"
WHOLE = ["copy", "setup", "train"]


def test_pod_dry_run():
    done = launch(
        "tpu_pod.sh", *POD, "--spot", "--type=v5p-128", "--project=p", "--delete",
        "--dry-run", "--", "--config=a", "--workdir=gs://b/c d",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    create, archive, copy, setup, train, delete = done.stdout.splitlines()
    where = "--zone=z --project=p"
    assert create == (
        "gcloud compute tpus queued-resources create pod-queue --accelerator-type=v5p-128 "
        f"--runtime-version=v2-alpha-tpuv5 --node-id=pod --spot {where}"
    )
    assert archive.startswith("git archive --format=tar.gz --output=")
    assert archive.endswith(" HEAD")
    assert copy.endswith(f"lenext.tar.gz pod:lenext.tar.gz --worker=all {where}")
    plain = setup.replace("\\", "")
    assert "pip install --quiet -r requirements.txt && " in plain
    assert 'pip install --quiet -c requirements.txt "jax[tpu]" gcsfs google-cloud-storage' in plain
    assert train.startswith("gcloud compute tpus tpu-vm ssh pod --worker=all --command=cd")
    assert r"--distributed\ --config=a\ --workdir=gs://b/c\\\ d\;" in train
    assert (
        delete == f"gcloud compute tpus queued-resources delete pod-queue --force --quiet {where}"
    )


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_pod_images_go_with_types(kind, image):
    words = (*POD, f"--type={kind}", "--dry-run", "--")
    assert f"--runtime-version={image} " in launch("tpu_pod.sh", *words).stdout
    words = (*POD, f"--type={kind}", "--image=own", "--dry-run", "--")
    assert "--runtime-version=own " in launch("tpu_pod.sh", *words).stdout


def test_pod_of_several_slices():
    done = launch("tpu_pod.sh", *POD, "--slices=2", "--dry-run", "--", "--config=a")
    create, _, *rest = done.stdout.splitlines()
    assert "--node-count=2 --node-prefix=pod " in create
    assert "--node-id" not in create
    names = [line.split()[5 if " ssh " in line else 6].split(":")[0] for line in rest]
    assert names == ["pod-0", "pod-1"] * 3


def test_pod_runs_on_a_slice_that_is_there(cloud):
    done, left = cloud("--", "--config=a", node="READY")
    assert done.returncode == 0, done.stderr
    assert done_to(left) == WHOLE
    assert any(flag.startswith(f"--command={TRAINING}") for flag in left["calls"][-1][3])
    assert done.stderr == f"{BEHIND}\n"


def test_pod_waits_in_the_queue(cloud):
    done, left = cloud("--delete", "--", waits=3)
    assert done.returncode == 0, done.stderr
    assert done_to(left) == ["queue", *WHOLE, "delete"]
    assert (
        done.stderr.splitlines()
        == [f"pod-queue: {state}" for state in ("REQUESTED", "WAITING_FOR_RESOURCES", "ACTIVE")][:2]
    )  # once it is active, the slice is ready
    assert left["queue"] is None
    assert left["node"] is None


def test_pod_joins_a_request_that_is_queued_already(cloud):
    done, left = cloud("--", queue="WAITING_FOR_RESOURCES", left=2)
    assert done.returncode == 0, done.stderr
    assert done_to(left) == WHOLE


def test_pod_does_not_wait_for_ever(cloud):
    done, left = cloud("--wait=1s", "--", waits=10**6)
    assert done.returncode == 1
    assert done_to(left) == ["queue"]
    *_, error, behind = done.stderr.splitlines()
    assert error.startswith("error: pod-queue: still ")  # REQUESTED, or WAITING_FOR_RESOURCES
    assert error.endswith(" after 1s")
    assert behind == BEHIND


def test_pod_that_cannot_be_had(cloud):
    done, left = cloud("--", becomes="FAILED")
    assert done.returncode == 1
    assert "error: pod-queue: FAILED; gcloud compute tpus queued-resources describe" in done.stderr
    assert done_to(left) == ["queue"]


def test_pod_beyond_the_quota(cloud):
    done, left = cloud("--", create=["quota"])
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ERROR: (gcloud) quota exceeded", "error: no slice was queued for", BEHIND,
    ]  # fmt: skip
    assert done_to(left) == ["queue"]


@pytest.mark.parametrize("during", ["scp", "setup", "train"])
def test_pod_goes_on_after_preemption(cloud, during):
    """While code is shipped, and while it trains: a suspended request makes room for another."""
    done, left = cloud("--delete", "--", waits=1, **{during: ["preempted"]})
    assert done.returncode == 0, done.stderr
    before = {"scp": WHOLE[:1], "setup": WHOLE[:2], "train": WHOLE}[during]
    assert done_to(left) == ["queue", *before, "delete", "queue", *WHOLE, "delete"]
    assert "attempt 1 of 20: stopped or preempted; starting again" in done.stderr


def test_pod_goes_on_after_a_checkpoint(cloud):
    """Code 75 says that training was told to stop: the slice is still there."""
    done, left = cloud("--", node="READY", train=[75])
    assert done.returncode == 0, done.stderr
    assert done_to(left) == WHOLE * 2


def test_pod_tries_again_where_one_worker_cannot_be_reached(cloud):
    done, left = cloud("--", node="READY", scp=["failed"])
    assert done.returncode == 1  # the slice is ready, and what went wrong would go wrong again
    assert done_to(left) == ["copy"]
    assert "error: training ended with code" in done.stderr


def test_pod_does_not_repeat_a_mistake(cloud):
    done, left = cloud("--", node="READY", train=[2])
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: training ended with code 2", BEHIND]
    assert done_to(left) == WHOLE


def test_pod_gives_up_after_its_attempts(cloud):
    done, left = cloud("--attempts=2", "--", node="READY", train=[75, 75, 75])
    assert done.returncode == 75
    assert done_to(left) == WHOLE * 2


def test_pod_of_another_type_is_left_alone(cloud):
    done, left = cloud("--type=v5p-128", "--", node="READY", type="projects/p/v5litepod-8")
    assert done.returncode == 2
    assert done.stderr == (
        "error: pod: is a v5litepod-8, not a v5p-128: another NAME, or --delete it\n"
    )
    assert done_to(left) == []


@pytest.mark.parametrize(("queue", "calls"), [("ACTIVE", 1), (None, 1)])
def test_pod_is_deleted_on_request(cloud, queue, calls):
    """With its request, or by itself; nothing is left of either."""
    done, left = cloud("--delete", queue=queue, node="READY")
    assert done.returncode == 0, done.stderr
    assert done_to(left) == ["delete"] * calls
    assert left["queue"] is None
    assert left["node"] is None


def test_pod_interrupted_says_what_is_left(cloud, stand_in):
    """Ctrl-C reaches gcloud, too: the script says what costs money from then on."""
    fate = {
        "queue": "ACTIVE", "node": "READY", "type": "x", "waits": 0, "becomes": "ACTIVE",
        "create": [], "scp": [], "setup": [], "train": ["hang"], "code": 0, "calls": [],
    }  # fmt: skip
    cloud.path.write_text(json.dumps(fate))
    process = subprocess.Popen(
        [REPOSITORY / "launch" / "tpu_pod.sh", *POD, "--"], cwd=REPOSITORY, text=True,
        env=os.environ | stand_in.path, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    while "train" not in done_to(json.loads(cloud.path.read_text() or '{"calls": []}')):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert BEHIND in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--zone=z", "--"), "NAME: should be given, the slice's"),
        (("pod", "--"), "--zone=ZONE: should be given, such as "),
        (("pod", "--zone=z"), "should end with -- and the arguments of lenext.train"),
        (("pod", "x", "--zone=z", "--"), "argument x: arguments of lenext.train come after --"),
        ((*POD, "--attempts=0", "--"), "--attempts=0: should be a number from 1"),
        ((*POD, "--slices=0", "--"), "--slices=0: should be a number from 1"),
        ((*POD, "--wait=soon", "--"), "--wait=soon: should be a time, as 90m or 6h"),
        ((*POD, "--type=v9-8", "--"), "--image=VERSION: should be given, none is known for"),
    ],
)
def test_pod_mistakes(words, message):
    done = launch("tpu_pod.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
