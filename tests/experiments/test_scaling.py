"""What programs exchange, counted by hand; the rest of the benchmark at sizes of seconds."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import measure, scaling
from experiments.benchmarks.collectives import Collective, collectives

PROGRAM = """
HloModule jit_f, entry_computation_layout={()->f32[]}, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%known (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %gathered = bf16[8,100]{1,0} all-gather(%q), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%turns (p: (s32[], f32[4])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %constant.7), direction=LT
}

%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %scattered = f32[10]{0} reduce-scatter(%q), replica_groups=[4,2]<=[8], to_apply=%add
}

%never (p: f32[]) -> f32[] {
  %lost = f32[1000]{0} all-reduce(%q), replica_groups={}, to_apply=%add
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w = (s32[], f32[4]) while(%t), condition=%turns, body=%inner
}

ENTRY %main (p: f32[]) -> f32[] {
  %a = f32[4] while(%t), condition=%turns, body=%known, config={"known_trip_count":{"n":"5"}}
  %b = (s32[], f32[4]) while(%t), condition=%turns, body=%outer
  %pair = (f32[10]{0}, bf16[20]{0}) all-reduce(%q, %r), replica_groups={}, to_apply=%add
  %named = f32[6]{0} all-reduce(%q), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %sent = f32[25]{0} collective-permute(%q), source_target_pairs={{0,1},{1,0}}
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%q), replica_groups=[2,4]<=[8]
  %done = f32[8,8]{1,0} all-gather-done(%start)
  ROOT %exchanged = s8[64]{0} all-to-all(%q), replica_groups=[1,8]<=[8]
}
"""


def test_exchanges_of_a_program():
    assert set(collectives(PROGRAM)) == {
        Collective("all-gather", 4, 1600, 5),
        Collective("all-gather", 4, 256, 1),  # of 2 x 8 in and 8 x 8 out
        Collective("reduce-scatter", 2, 80, 9),  # what goes in is twice what comes out
        Collective("all-reduce", 8, 80, 1),
        Collective("all-reduce", 4, 24, 1),
        Collective("collective-permute", 2, 100, 1),
        Collective("all-to-all", 8, 64, 1),
    }


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 3 * 750),
        ("reduce-scatter", 3 * 750),
        ("all-to-all", 3 * 750),
        ("all-reduce", 3 * 1500),
        ("collective-permute", 3 * 1000),
    ],
)
def test_bytes_round_a_ring(kind, sent):
    """Of 1000 bytes, over four devices, three times."""
    assert Collective(kind, 4, 1000, 3).sent == sent


def test_flops_of_gpt2_small():
    """6 N for each token, and 6 x layers x width x length for causal attention."""
    flops = scaling.step_flops(scaling.gpt2_small(), 124_000_000, 1024)
    assert flops == pytest.approx(1024 * (6 * 124e6 + 6 * 12 * 768 * 1024))


def test_efficiencies_by_hand():
    rates = scaling.Rates(flops=100.0, memory=1.0, links=20.0, axis=10.0)
    record = {"flops": 200.0, "exchanges": [{"sent": 30.0}, {"sent": 20.0}]}
    assert scaling.seconds_at(record, rates, best=True) == 2.5
    assert scaling.seconds_at(record, rates, best=False) == 7.0


WORKER = """
import json, sys
from experiments.benchmarks import scaling
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(scaling.CHILDREN[name](*arguments)), flush=True)
"""


@pytest.fixture
def one_for_two_devices(monkeypatch):
    """One process of two devices for all that wants them; what wants one device has its own."""
    start = scaling.in_a_process
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], env=os.environ | {"XLA_FLAGS": flags}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert worker.stdin
    assert worker.stdout

    def in_a_process(name, devices, *arguments):
        if devices == 1:
            return start(name, devices, *arguments)
        assert devices == 2
        print(json.dumps([name, *arguments]), file=worker.stdin, flush=True)
        return json.loads(worker.stdout.readline())

    monkeypatch.setattr(scaling, "in_a_process", in_a_process)
    yield
    worker.communicate()
    assert worker.returncode == 0


@pytest.mark.usefixtures("one_for_two_devices")
def test_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "gemm_rates", lambda: {"jax": 100.0})
    monkeypatch.setattr(scaling, "why_no_libtpu", lambda: "libtpu not installed: so says the test")
    scaling.run(quick=True, runs=2, results=tmp_path)
    text = (tmp_path / "scaling.md").read_text()
    assert "Left out: libtpu not installed: so says the test." in text
    records = json.loads((tmp_path / "scaling.json").read_text())["records"]
    simulated = {
        (r["layout"], r["devices"]): sum(found["sent"] for found in r["exchanges"])
        for r in records
        if r["kind"] == "simulation"
    }
    assert simulated.pop(("data", 1)) == 0
    assert {layout for layout, _ in simulated} == {"data", "fsdp", "sequence", "tensor"}
    assert all(simulated.values())
    (ring,) = [r for r in records if r["kind"] == "ring"]
    # Keys and values of the other device, once.
    assert ring["gather"]["sent"] == pytest.approx(ring["length"] * 4 * 64 * 4, rel=0.01)
    assert (tmp_path / "scaling.png").stat().st_size > 1000
