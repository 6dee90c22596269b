"""What the benchmarks share: timing in turn, where figures come from, numbers and tables."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import measure
from lenext.parallel.memory import MALLOC
from tests.experiments.common import KEYS, MISSING


class Clock:
    """Stands still but for what `work` adds."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def work(self, name, *seconds):
        left = iter(seconds)

        def call():
            self.log.append(name)
            self.now += next(left)

        return call


def test_rounds_go_over_all_in_turn(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"a": clock.work("a", 9, 1, 8, 2, 7, 6), "b": clock.work("b", 8, 3, 7, 3, 6, 4)}
    times = measure.interleaved(calls, 3)
    assert times == {"a": [1, 2, 6], "b": [3, 3, 4]}  # a call before each is not among them
    assert clock.log[::2] == clock.log[1::2]
    rounds = [clock.log[i : i + 4 : 2] for i in range(0, 12, 4)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    assert rounds != [rounds[0]] * 3  # nothing always follows the same
    seconds = measure.medians(times)
    assert seconds == {"a": 2, "b": 3}
    assert measure.ratios(seconds, "b") == {"a": pytest.approx(2 / 3), "b": 1}
    assert measure.ratios(seconds, "c") == {"a": None, "b": None}


def test_a_single_run_may_stand_alone(monkeypatch):
    clock = Clock(monkeypatch)
    assert measure.interleaved({"a": clock.work("a", 5)}, 1, warm_up=False) == {"a": [5]}


def test_rate_of_products(monkeypatch):
    ticks = iter([0.0, 0.5, 1.0, 1.25, 2.0, 3.0])  # calls of 0.5, 0.25 and 1 second
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(measure, "why_no_torch", lambda: MISSING)
    assert measure.gemm_rates(size=10, runs=3) == {"jax": pytest.approx(2 * 1000 / 0.25 / 1e9)}


def test_compiled():
    x = jnp.arange(6.0).reshape(2, 3)
    done = measure.compiled(lambda x: x @ x.T, x)
    np.testing.assert_array_equal(done.call(x), [[5, 14], [14, 50]])
    assert done.peak_bytes == done.temp_bytes + 4 * 6 + 4 * 4
    donating = measure.compiled(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    given = jnp.copy(x)
    donating.call(given)
    assert given.is_deleted()


def test_fingerprint_is_of_values_types_and_shapes():
    x = np.arange(4, dtype=np.int32)
    others = [x, x[::-1], x.astype(np.int64), x.reshape(2, 2), x.view(np.float32), [x, x]]
    assert len({measure.fingerprint(other) for other in others}) == len(others)
    assert measure.fingerprint({"x": x}) == measure.fingerprint([jnp.asarray(x)])


@pytest.mark.parametrize(
    ("x", "text"),
    [(None, "–"), (0.012345, "0.0123"), (1.0, "1"), (99.44, "99.4"), (64321.4, "64,321")],
)
def test_numbers(x, text):
    assert measure.number(x) == text


def test_table():
    assert measure.table(["a", "b", "c"], [["x", "y", "1"]], names=2) == [
        "| a | b | c |", "|---|---|---:|", "| x | y | 1 |"
    ]  # fmt: skip


def test_counts_are_whole_and_positive():
    assert measure.counts("64,256") == [64, 256]
    for text in ("64,0", "", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="should be a whole number"):
            measure.counts(text)


def test_header_says_whence(no_torch, monkeypatch):
    monkeypatch.delenv(MALLOC, raising=False)
    about = measure.describe({"x": 1}, [np.ones(2)], seeds=[3], tokens=5, steps=7)
    assert about.keys() >= KEYS
    assert (about["seeds"], about["tokens"], about["steps"]) == ([3], 5, 7)
    text = "\n".join(measure.header(about))
    for part in (
        f"jax {jax.__version__}",
        about["git"],
        "100 in jax, 50 in torch",
        "7 interleaved",
    ):
        assert part in text
