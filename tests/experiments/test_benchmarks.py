"""The benchmarks' arithmetic by hand, their peers against ours, and each at sizes of seconds."""

import ctypes
import json
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.benchmarks import (
    attention,
    attention_parts,
    cpu_options,
    depth,
    evaluation_cost,
    loss,
    measure,
    training_step,
)
from lenext.attention import attend, make_method
from lenext.models import kinds_of, named_parameters
from lenext.parallel.memory import MALLOC, TUNABLE
from lenext.training.optimizer import make_optimizer
from lenext.training.step import init_state, make_train_step
from tests.experiments.common import KEYS, MISSING
from tests.training.common import tiny_config, tiny_decoder_config


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: there is no peer")


def config_of(family, tmp_path):
    config = tiny_decoder_config(tmp_path) if family == "decoder" else tiny_config(tmp_path)
    config.model.num_kv_heads = 0
    return config


def read(results, name):
    """(records, the whole JSON, tables) of a benchmark; a table's rows are dicts of its cells."""
    content = json.loads((results / f"{name}.json").read_text())
    assert content.keys() >= KEYS
    assert matplotlib.image.imread(results / f"{name}.png").ndim == 3
    tables, headings = [], None
    for line in (results / f"{name}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            headings = None
        elif headings is None:
            headings = cells
            tables.append([])
        elif not set(line) <= set("|-:"):
            tables[-1].append(dict(zip(headings, cells, strict=True)))
    return content["records"], content, tables


def value(cell):
    return float(cell.replace(",", ""))


def check_ratios(rows, first, seconds, ratio, peer):
    """Three digits each: their quotient is off by a percent and a half at most."""
    peers = [value(row[seconds]) for row in rows if row[first] == peer]
    assert len(peers) == 1
    timed = [row for row in rows if row[ratio] not in ("–", "")]
    assert timed
    for row in timed:
        assert value(row[ratio]) == pytest.approx(value(row[seconds]) / peers[0], rel=0.015)


# --- attention.py


def test_plan():
    cases = list(attention.plan(["softmax", "lssar"], [4096, 8192, 16384, 65536], 5))
    found = {
        (case.direction, case.length): (len(case.ours), case.ours[-1], case.runs) for case in cases
    }
    assert found == {
        ("forward", 4096): (6, ("lssar", "naive"), 5),
        ("forward", 8192): (5, ("lssar", "naive"), 5),
        ("forward", 16384): (4, ("lssar", "blockwise"), 5),
        ("forward", 65536): (1, ("softmax", "auto"), 1),
        ("forward and backward", 4096): (6, ("lssar", "naive"), 5),
    }


def test_flops():
    # 4 heads, 6 entries of 64 products each above the diagonal and on it, twice (Q Kᵀ and P V), of
    # which a half is counted: a square of 8 by 8 has 32 there.
    assert attention.flops(8, attention.FORWARD) == 4 * 32 * 64 * 2 * 2
    assert attention.flops(8, attention.BACKWARD) == 3 * attention.flops(8, attention.FORWARD)


@pytest.mark.parametrize("peer", [attention.SDPA, attention.EAGER, attention.JAX_NN])
def test_peers_compute_softmax_attention(peer, request):
    arrays = attention.inputs(37)
    method = make_method("nope", train_length=8)
    wanted = attention.with_gradients(lambda q, k, v: attend(q, k, v, method, causal=True))(*arrays)
    if peer == attention.JAX_NN:
        forward = attention.jax_nn(*arrays[:3])
        found = attention.with_gradients(attention.jax_nn)(*arrays)
    else:
        request.getfixturevalue("torch")
        ours = lambda x: np.swapaxes(x.detach().numpy(), 1, 2)  # noqa: E731
        forward = ours(attention.torch_peers(attention.FORWARD, arrays)[peer]())
        found = jax.tree.map(ours, attention.torch_peers(attention.BACKWARD, arrays)[peer]())
    np.testing.assert_allclose(forward, wanted[0], atol=1e-5)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_attention_is_measured(torch, gemm, monkeypatch, tmp_path):
    monkeypatch.setattr(attention, "BACKWARD_LENGTH", 16)
    monkeypatch.setattr(attention, "REPEATED_LENGTH", 24)
    attention.run(["softmax"], [16, 32], 2, tmp_path)
    records, _, tables = read(tmp_path, "attention")
    peers = {r["length"]: r["seconds"] for r in records
             if (r["direction"], r["candidate"]) == ("forward", "torch SDPA")}  # fmt: skip
    for r in records:
        assert r["seconds"] == np.median(r["times"])
        assert len(r["times"]) == (2 if r["length"] == 16 else 1)
        if r["direction"] == "forward":
            assert r["ratio"] == r["seconds"] / peers[r["length"]]
    assert [len(table) for table in tables] == [6, 4, 6, 1]
    for table in tables[:3]:
        check_ratios(table, "attention", "ms", "x torch SDPA", "torch SDPA")
    # 2 · 4 · 64 · 16² FLOPs at 100 GFLOP/s.
    assert "Roofline: 0.00131 ms." in (tmp_path / "attention.md").read_text()


def test_attention_without_torch(no_torch, tmp_path):
    attention.run(["windowed(window=4)"], [16], 1, tmp_path)
    records, about, tables = read(tmp_path, "attention")
    assert "torch" not in about["versions"]
    notes = {row["attention"]: row[""] for row in tables[0]}
    assert notes["torch SDPA"] == notes["torch eager"] == MISSING
    assert all(r["ratio"] is None for r in records)
    assert all(row["x torch SDPA"] == "–" for row in tables[0])


def test_rows_too_large_are_left_out(gemm, monkeypatch):
    monkeypatch.setattr(attention, "COMPLETE_BYTES", attention.complete_bytes(16) - 1)
    records = attention.run_case(attention.Case(attention.FORWARD, 16, [("softmax", "auto")], 1))
    found = {r["candidate"]: (r["seconds"] is None, r["note"]) for r in records}
    assert found["jax.nn"] == (True, "its rows take more than 0 GB")
    assert found["softmax, auto"] == (False, "")


# --- attention_parts.py


def test_all_parts_together_are_attention():
    q, k, v, _ = attention.inputs(48)
    wanted = attend(q, k, v, make_method("nope", train_length=48), causal=True)
    first = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    found = attention_parts.loop(attention_parts.PARTS, 16, *first)
    np.testing.assert_allclose(found.swapaxes(0, 1), wanted[0], atol=1e-5)


def test_parts_are_measured(torch, gemm, tmp_path):
    attention_parts.run([64, 128], 2, tmp_path)
    records, _, tables = read(tmp_path, "attention_parts")
    assert [r["length"] for r in records] == [64] * 7 + [128] * 7
    for table in tables:
        check_ratios(table, "parts", "ms", "x torch SDPA", "torch SDPA")


# --- training_step.py


@pytest.mark.parametrize("family", ["gau", "decoder"])
def test_twins_train_alike(family, torch, tmp_path):
    from experiments.benchmarks.torch_models import make_step, twin

    config = config_of(family, tmp_path)
    # Enough of both that their lack would show in the weights.
    config.optimizer.update(weight_decay=5.0, clip_norm=0.05)
    batch = training_step.make_batch(config)
    model = training_step.make_model(config)
    params = named_parameters(model)
    vocab_size = training_step.ByteTokenizer().vocab_size
    trained = twin(config, vocab_size, params)
    step = make_step(trained, config.optimizer, batch, compiled=False)
    theirs = [step() for _ in range(4)]

    optimizer = make_optimizer(
        config.optimizer, optax.constant_schedule(config.optimizer.learning_rate), kinds_of(model)
    )
    train_step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=False)
    state, ours = init_state(model, optimizer), []
    for _ in range(4):
        state, metrics = train_step(state, batch, np.int32(1))
        ours.append(float(metrics["loss"]))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert ours[3] < ours[0] - 0.01
    after = named_parameters(nnx.merge(nnx.graphdef(model), state["params"]))
    wanted = twin(config, vocab_size, after).state_dict()
    for name, x in trained.state_dict().items():
        # A first gradient near Adam's epsilon decides a step's size by its last digits.
        np.testing.assert_allclose(x, wanted[name], atol=1e-4, err_msg=name)


def test_other_networks_have_no_twin(torch, tmp_path):
    config = config_of("decoder", tmp_path)
    config.model.qk_norm = True
    with pytest.raises(RuntimeError, match=r"Unexpected key.*q_norm"):
        training_step.torch_stepper(config, training_step.make_batch(config), compiled=False)


def test_what_is_not_the_same_is_not_timed():
    training_step.check_parity([5.0, 4, 3, 2.0], [5.00005, 9, 9, 2.00005], "a")
    for theirs in ([5.0002, 4, 3, 2.0], [5.0, 4, 3, 2.0002], [5.0, 4, 3, float("nan")]):
        with pytest.raises(training_step.ParityError, match=r"a: loss .* should agree to 0\.0001"):
            training_step.check_parity([5.0, 4, 3, 2.0], theirs, "a")


def test_training_is_measured_where_nothing_compiles(torch, gemm, monkeypatch, tmp_path):
    def refuse(model):
        del model

        def call(**data):
            raise RuntimeError("no C++ compiler\nand a page of advice")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.delenv(MALLOC, raising=False)
    models = {name: config_of(name, tmp_path) for name in ("gau", "decoder")}
    training_step.run(models, 3, tmp_path / "results")
    records, about, tables = read(tmp_path / "results", "training_step")
    assert about["tokens"] == 4 * 16
    for model, table in zip(models, tables, strict=True):
        ours, eager, compiled = [r for r in records if r["model"] == model]
        assert ours["ratio"] == ours["seconds"] / eager["seconds"]
        assert ours["seconds"] == np.median(ours["times"])
        assert (compiled["seconds"], compiled["ratio"]) == (None, None)
        assert [row[""] for row in table] == ["", "", "does not compile: no C++ compiler"]
        check_ratios(table, "step", "ms", "x torch eager", "torch eager")
        for row, r in zip(table[:2], (ours, eager), strict=True):
            assert value(row["tokens/s"]) == pytest.approx(64 / r["seconds"], rel=0.01)
            assert value(row["after 3 steps"]) == pytest.approx(r["losses"][3], abs=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_training_is_measured_in_small_pages_too(no_torch, gemm, monkeypatch, tmp_path):
    libc, in_small = ctypes.CDLL(None), []
    make = training_step.our_stepper

    def noted(*given):
        stepper = make(*given)

        def step():
            in_small.append(libc.prctl(42, 0, 0, 0, 0))  # PR_GET_THP_DISABLE
            return stepper.step()

        return stepper._replace(step=step)

    monkeypatch.setattr(training_step, "our_stepper", noted)
    monkeypatch.setenv(MALLOC, f"{TUNABLE}=1")
    training_step.run({"gau": config_of("gau", tmp_path)}, 3, tmp_path / "results")
    records, about, (table,) = read(tmp_path / "results", "training_step")
    ours, small = records[0], records[-1]
    assert small["candidate"] == table[-1]["step"] == "lenext, pages of 4 kB"
    assert in_small[:4] == [0] * 4  # whose losses are compared
    assert sorted(in_small[4:]) == [0] * 6 + [1] * 6  # a round each, and a call before it
    assert ours["losses"] == small["losses"]
    assert len(small["times"]) == 3
    assert about["hardware"][MALLOC] == f"{TUNABLE}=1"
    text = (tmp_path / "results" / "training_step.md").read_text()
    assert f"; {MALLOC}={TUNABLE}=1;" in text


def test_training_without_torch(no_torch, monkeypatch, tmp_path):
    monkeypatch.delenv(MALLOC, raising=False)
    training_step.run({"gau": config_of("gau", tmp_path)}, 1, tmp_path / "results")
    _, _, (table,) = read(tmp_path / "results", "training_step")
    assert [row[""] for row in table] == ["", MISSING, MISSING]


def test_matrix_flops(tmp_path):
    # Two layers of 16 to 2 · 32 + 8 and of 32 to 16; 6 FLOPs for each of 4 · 16 tokens.
    config = config_of("gau", tmp_path)
    assert training_step.matrix_flops(config) == 2 * (16 * 72 + 32 * 16) * 6 * 64


# --- evaluation_cost.py


def test_exponent():
    assert evaluation_cost.exponent([(x, 3 * x**1.5) for x in (2, 4, 16)]) == pytest.approx(1.5)
    # ln y = 0, 1, 1 at ln x = 0, 1, 2: the slope that misses least is 1/2.
    points = [(1, 1), (np.e, np.e), (np.e**2, np.e)]
    assert evaluation_cost.exponent(points) == pytest.approx(0.5)
    assert evaluation_cost.exponent([(4, 1)]) is None


def test_evaluation_is_measured(gemm, tmp_path):
    models = {name: config_of(name, tmp_path) for name in ("gau", "decoder")}
    evaluation_cost.run(models, ["softmax", "lssar"], [16, 32], 2, tmp_path / "results")
    records, about, tables = read(tmp_path / "results", "evaluation_cost")
    for r in records:
        (peer,) = [
            p["seconds"] for p in records
            if (p["model"], p["length"], p["method"]) == (r["model"], r["length"], "softmax")
        ]  # fmt: skip
        assert r["ratio"] == r["seconds"] / peer
        assert r["seconds"] == np.median(r["times"])
    for table in tables[:2]:
        assert len(table) == 4
        for length in ("16", "32"):
            rows = [row for row in table if row["length"] == length]
            check_ratios(rows, "method", "s", "x softmax", "softmax")
    for slope, row in zip(about["exponents"], tables[2], strict=True):
        first, second = (
            r["seconds"] for r in records
            if (r["model"], r["method"]) == (slope["model"], slope["method"])
        )  # fmt: skip
        assert slope["seconds"] == pytest.approx(np.log2(second / first))
        assert row["time"] == measure.number(slope["seconds"])


# --- loss.py


def test_chunks_are_those_that_cut():
    assert loss.chunks(256, 4096) == {"all at once": 256}
    assert loss.chunks(8192, 4096) == {"all at once": 8192, "chunks of 2048": 2048, "auto": 512}


def test_peers_compute_the_same_loss(torch):
    given = loss.arrays(700, 33)
    hidden, matrix, targets = map(jnp.asarray, given)

    def without_z(hidden, matrix):
        logits = hidden @ matrix.T
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
        return -jnp.mean(chosen)

    wanted, slopes = jax.value_and_grad(without_z, argnums=(0, 1))(hidden, matrix)
    found, theirs = loss.torch_loss(*given)()
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-5)
    for x, y in zip(theirs, slopes, strict=True):
        np.testing.assert_allclose(x.numpy(), y, atol=1e-6)
    z = jnp.mean(jax.nn.logsumexp(hidden @ matrix.T, axis=-1) ** 2)
    for chunk in (700, 128):
        np.testing.assert_allclose(loss.loss(chunk, hidden, matrix, targets), wanted + 1e-4 * z,
                                   rtol=1e-5)  # fmt: skip


def test_loss_is_measured(no_torch, monkeypatch, tmp_path):
    monkeypatch.setattr(loss, "CHUNKS", (256,))
    loss.run([(600, 8)], [(600, 16)], 2, tmp_path)
    records, _, (rows,) = read(tmp_path, "loss")
    assert [(r["tokens"], r["candidate"], len(r["times"])) for r in records] == [
        (8, "all at once", 2), (8, "chunks of 256", 2), (8, "torch", 0),
        (16, "all at once", 0), (16, "chunks of 256", 0), (16, "torch", 0),
    ]  # fmt: skip
    assert [row["ms"] == "–" for row in rows] == [False, False, True, True, True, True]
    assert rows[2][""] == MISSING
    gradients = 4 * 512 * (600 + 8)
    assert all(r["held_bytes"] >= gradients for r in records if r["chunk"])


# --- depth.py


def test_options_of_a_cpu_are_measured(gemm, monkeypatch, tmp_path):
    """Beside what is done; an option that changes the operations is told from one that does not."""
    fast = "fast minima and maxima"
    some = {name: cpu_options.OPTIONS[name] for name in (cpu_options.AS_IT_IS, "XNNPACK", fast)}
    monkeypatch.setattr(cpu_options, "OPTIONS", some)
    config = tiny_decoder_config(tmp_path)
    monkeypatch.setattr(training_step, "configs", lambda quick: {"tiny decoder": config})
    cpu_options.run(tmp_path, 1, quick=True)
    records, _, (options, products) = read(tmp_path, "cpu_options")
    assert [row["options"] for row in options] == list(some)
    assert [row["products"] for row in products] == list(cpu_options.PRODUCTS)
    found = {(r["what"], r["option"]): r for r in records}
    assert len(found) == len(records) == 4 * 3 + 2 * 3
    for what in (cpu_options.FORWARD, cpu_options.STEP):
        plain = found[what, cpu_options.AS_IT_IS]
        assert (plain["ratio"], plain["same"]) == (1, True)
        assert found[what, "XNNPACK"]["same"]
        assert not found[what, fast]["same"]
        for option in some:
            record = found[what, option]
            assert record["ratio"] == pytest.approx(record["seconds"] / plain["seconds"])


def test_products_otherwise_are_the_same_products():
    q, k = (jax.random.normal(jax.random.key(i), (1, 8, 4, 16)) for i in range(2))
    weights = jax.random.uniform(jax.random.key(2), (1, 4, 8, 8))
    outcomes = []
    for logits, out, tokens_first, dtype in cpu_options.PRODUCTS.values():
        x, y = (a if tokens_first else a.swapaxes(1, 2) for a in (q, k))
        made = jnp.einsum(out, weights.astype(dtype), y.astype(dtype))
        outcomes.append(
            (jnp.einsum(logits, x.astype(dtype), y.astype(dtype)),
             made if tokens_first else made.swapaxes(1, 2))
        )  # fmt: skip
    for others in outcomes[1:]:
        for a, b in zip(others, outcomes[0], strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.15, rtol=0.02)


def test_depth_is_measured(gemm, monkeypatch, tmp_path):
    monkeypatch.setattr(depth, "FAMILIES", ("gau",))
    depth.run([1, 2], 1, tmp_path)
    records, _, (rows,) = read(tmp_path, "depth")
    kinds = [(r["model"], r["remat"], r["layers"]) for r in records]
    assert kinds == [("gau", remat, n) for remat in (False, True) for n in (1, 2)]
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert (first["ratio"], second["ratio"]) == (
            1, second["compile_seconds"] / first["compile_seconds"],
        )  # fmt: skip
    assert [value(row["layers"]) for row in rows] == [1, 2] * 2
