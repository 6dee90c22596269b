"""The benchmark of kernels for GPUs: what it reads, by hand; what it compiles wants a compiler."""

import importlib.util
import json
import re

import pytest

from experiments.benchmarks import gpu_kernels
from lenext.errors import UserError
from tests.training.common import REPOSITORY

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'lenext_dq' for 'sm_90a'
ptxas info    : Function properties for lenext_dq
    176 bytes stack frame, 276 bytes spill stores, 292 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 176 bytes cumulative stack size
ptxas info    : Compiling entry function 'mha_forward' for 'sm_90a'
ptxas info    : Function properties for mha_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""
PROGRAM = """\
.visible .entry lenext_dq(
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16
}
.visible .entry mha_forward(
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
}
"""


def test_what_is_read():
    dq, forward = gpu_kernels.read(REPORT, PROGRAM)
    assert dq == {
        "kernel": "lenext_dq", "registers": 255, "spilled": 568, "hgmma": 2, "hmma": 0,
    }  # fmt: skip
    assert forward == {
        "kernel": "mha_forward", "registers": 40, "spilled": 0, "hgmma": 0, "hmma": 1,
    }  # fmt: skip
    lines = gpu_kernels.lines_of([{"name": "lssa"} | dq, {"name": gpu_kernels.PEER} | forward])
    assert "never run" in gpu_kernels.TITLE
    assert "| `lssa` | `lenext_dq` | 255 | 568 | 2 | 0 |" in lines
    assert "| JAX's, in Pallas | `mha_forward` | 40 | 0 | 0 | 1 |" in lines


def test_without_a_compiler_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="jax-cuda13-plugin not installed"):
        gpu_kernels.run(tmp_path, quick=True)


def test_the_page_quotes_what_was_counted():
    results = REPOSITORY / "experiments" / "results" / "benchmarks" / "gpu_kernels.json"
    ours = [r for r in json.loads(results.read_text())["records"] if r["name"] != gpu_kernels.PEER]
    page = (REPOSITORY / "docs" / "long_contexts.md").read_text()
    (most,) = re.findall(r"at most (\d+) bytes a thread", page)
    assert int(most) == max(record["spilled"] for record in ours)
    assert all(record["hgmma"] and not record["hmma"] for record in ours)
