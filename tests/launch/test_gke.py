"""launch/gke.sh: the JobSet that it makes, held against the models that a package has of it."""

import re

import pytest
import yaml

from tests.launch.test_launch import launch, stand_in  # noqa: F401 # a fixture
from tests.training.common import REPOSITORY

TPU = ("run", "--image=r/lenext:1", "--tpu=tpu-v5-lite-podslice", "--topology=4x4")
GPU = ("run", "--image=r/lenext:1", "--gpu=nvidia-l4", "--nodes=2")


def manifest(*words, args=("--config=a",)):
    done = launch("gke.sh", *words, "--dry-run", "--", *args)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def parts(found):
    """The job, its pod, and that one's container."""
    (of_slice,) = found["spec"]["replicatedJobs"]
    job = of_slice["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return of_slice, job, pod, container


ALL = {
    "tpu": (*TPU, "--slices=2", "--spot", "--queue=q", "--account=a", "--namespace=n"),
    "gpu": (*GPU, "--chips=1", "--spot"),
    "one": ("run", "--image=x", "--tpu=tpu-v6e-slice", "--topology=2x2x1"),
}


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
def test_fields_are_those_of_the_api(words):
    """What the API does not know is not there when a manifest comes back from its models."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = manifest(*words)
    back = models.JobsetV1alpha2JobSet.from_dict(found).to_dict()
    assert missing(found, back) == []


def missing(ours, theirs, at=""):
    """Places in ours that are not the same in theirs, which may have defaults besides."""
    if isinstance(ours, dict):
        return [
            place
            for key, value in ours.items()
            for place in (
                missing(value, theirs[key], f"{at}.{key}") if key in theirs else [f"{at}.{key}"]
            )
        ]
    if isinstance(ours, list):
        return [] if len(ours) != len(theirs) else [
            place
            for i, pair in enumerate(zip(ours, theirs, strict=True))
            for place in missing(*pair, f"{at}[{i}]")
        ]  # fmt: skip
    return [] if ours == theirs else [at]


def test_a_field_that_is_none_is_noticed():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = manifest(*TPU)
    parts(found)[1]["backOffLimit"] = 0
    back = models.JobsetV1alpha2JobSet.from_dict(found).to_dict()
    assert missing(found, back) == [".spec.replicatedJobs[0].template.spec.backOffLimit"]


def test_slices_of_tpus():
    found = manifest(*ALL["tpu"], args=("--config=a", '--workdir=gs://b/c "d\\e'))
    of_slice, job, pod, container = parts(found)
    assert of_slice["replicas"] == 2
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-m", "lenext.train", "--distributed"]
    assert container["args"] == ["--config=a", '--workdir=gs://b/c "d\\e']
    assert "env" not in container  # GKE sets what JAX looks for
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    assert found["metadata"]["namespace"] == "n"
    assert pod["serviceAccountName"] == "a"


def test_nodes_of_gpus():
    _, job, pod, container = parts(manifest(*GPU))
    assert (job["parallelism"], pod["nodeSelector"]) == (
        2, {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    )  # fmt: skip
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    env = {each["name"]: each.get("value") for each in container["env"]}
    # The first pod of the job "workers", under the service that the JobSet makes by its name.
    assert env == {
        "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": None,
    }


def test_what_is_started_again_and_what_is_not():
    found = manifest(*TPU, "--attempts=3")
    _, job, pod, _ = parts(found)
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 2
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (on,) = job["podFailurePolicy"]["rules"]
    assert (on["action"], on["onExitCodes"]["values"]) == ("FailJob", [1, 2])  # 75 is none of them
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy wants


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*TPU[1:],), "NAME: should be"),
        (("Run", *TPU[1:]), "NAME: should be"),
        (("r" * 41, *TPU[1:]), "NAME: should be"),
        ((TPU[0], *TPU[2:]), "--image=IMAGE is missing"),
        (("run", "--image=x"), "--tpu=ACCELERATOR or --gpu=ACCELERATOR is missing"),
        ((*TPU, "--gpu=nvidia-l4"), "--tpu and --gpu: should be one of them"),
        ((*TPU[:3], "--topology=16"), "--topology=16: should be chips by axis"),
        ((*TPU, "--chips=3"), "--chips=3: should divide the 16 chips"),
        ((*TPU, "--nodes=2"), "--nodes=2: follows from"),
        ((*GPU, "--slices=2"), "--topology and --slices: are of TPUs"),
        ((*TPU, "--slices=0"), "--slices=0: should be a number from 1"),
        ((*TPU, "--queue=a b"), "--queue=a b: should be a name"),
        ((*TPU, "--fast"), "option --fast: --help lists"),
    ],
)
def test_refusals(words, line):
    done = launch("gke.sh", *words, "--dry-run", "--", "--config=a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_it_goes_to_kubectl(stand_in, tmp_path):  # noqa: F811
    stand_in("kubectl", f"cat > {tmp_path / 'made'}")
    done = launch("gke.sh", *TPU, "--namespace=n", "--", "--config=a", **stand_in.path)
    assert done.returncode == 0
    assert stand_in.recorded() == ["kubectl create --filename=- --namespace=n"]
    assert yaml.safe_load((tmp_path / "made").read_text()) == manifest(*TPU, "--namespace=n")
    assert "cost money until it ends, or: kubectl delete jobset run --namespace=n" in done.stdout
    stand_in("kubectl", "cat > /dev/null; exit 4")
    assert launch("gke.sh", *TPU, "--", "--config=a", **stand_in.path).returncode == 4


def test_what_the_image_is_made_of_is_there():
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    assert all((REPOSITORY / word).exists() for word in copied)
    (version,) = re.findall(r"^FROM python:(3\.\d+)-slim$", "\n".join(lines), re.M)
    assert version in ("3.11", "3.12", "3.13")
    assert any("-r requirements.txt" in line for line in lines)
