"""The family that CONTRIBUTING adds by a diff is one: applied to a copy, it works as others do."""

import os
import shutil
import subprocess
import sys

from tests.training.common import REPOSITORY

PROGRAM = """
import jax, numpy as np
from lenext.config import base_config
from lenext.data import ByteTokenizer
from lenext.evaluation import evaluate
from lenext.models import load_pretrained, named_parameters
from lenext.models.generation import generate
from lenext.training import train

config = base_config()
config.model.update(
    family="parallel", hidden_size=16, intermediate_size=24, key_size=8, num_layers=3, num_heads=2,
    num_kv_heads=1, method="windowed(window=8)|ssmax",
)
config.data.update(train_length=16, batch_size=4, data_dir=DATA)
config.optimizer.update(name="muon", frozen="layers.1.norm")
config.training.update(steps=3, eval_every=3, checkpoint_every=3, log_every=1)
config.training.best_metric = "eval/validation/loss"
config.evaluators.validation.update(type="full_context", length=16, documents=2, tokens=32)
config.eval.update(
    methods="trained,rerope", lengths="16,32", documents=2, tokens=64, protocol="full_context",
    bootstrap=20, probe_rows=2,
)
config.mesh.update(data=1, fsdp=2)
train(config, WORKDIR)
records = evaluate(config, WORKDIR)
assert {r["method"] for r in records} == {"trained", "rerope"}
model = load_pretrained(WORKDIR)
parameters = named_parameters(model)
assert "layers.2.self_attention.attention.learned.temperature.slope" not in parameters
assert "layers.1.self_attention.attention.learned.temperature.slope" in parameters
assert np.all(parameters["layers.1.norm.scale"] == 1) and np.any(parameters["norm.scale"] != 1)
tokens = np.asarray(ByteTokenizer().encode(b"def "), np.int32)[None]
first = next(generate(model, tokens, 2))
print(type(model).__name__, len(parameters), first.shape)
"""


def test_the_family_of_the_diff_is_one(tmp_path, data_dir):
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    diff = text.split("```diff\n")[1].split("```")[0]
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "lenext", copy / "lenext")
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=copy, check=True)
    where = f"DATA, WORKDIR = {str(data_dir)!r}, Path({str(tmp_path / 'run')!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{where}\n{PROGRAM}"],
        cwd=copy, capture_output=True, text=True,
        env={"PATH": "/usr/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
             "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
             "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 2 maps, 5 of attention and MLP's 3 are 7, 1 norm: 8 and a slope; see the names above.
    assert done.stdout.splitlines()[-1] == "ParallelDecoder 27 (1,)"
