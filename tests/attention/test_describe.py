"""The catalogue as tables, and methods explained in words, numbers and pictures."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lenext.attention import describe, make_method, method_names
from lenext.attention.axes.axis import Temperature, option
from lenext.attention.catalogue import CATALOGUE, Entry
from lenext.attention.describe import (
    allowed,
    bars,
    catalogue_table,
    distinct_heads,
    entropy,
    example_rows,
    explain,
    last_row_temperatures,
    markdown_table,
)

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def temperatures(name: str, head_dim: int = 128):
    n, factors = last_row_temperatures(make_method(name, train_length=64), LENGTHS, head_dim)
    assert len(distinct_heads(np.asarray(factors))) == 1
    return n, factors[0]


def even_rows(method, length, head_dim):
    return np.full((4, length), 1 / length)


def explained(name: str, **sizes) -> str:
    with jax.disable_jit():  # small and one by one: compiling takes longer
        return explain(name, **{"train_length": 4, "head_dim": 8} | sizes)


class TestTemperatures:
    def test_infoscale_at_the_published_size(self):
        n, factor = temperatures("infoscale")
        np.testing.assert_array_equal(n, LENGTHS)
        expected = [1, 1.077, 1.149, 1.215, 1.277, 1.336, 1.392]
        np.testing.assert_allclose(factor, expected, atol=5e-4)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("log_length", [1 + i / 6 for i in range(7)]),  # 64 = 2^6
            # By the place of the last row, from 0: floor(63 / 64) = 0, floor(127 / 64) = 1, ...
            ("mistral3", [1 + 0.1 * math.log(2**i) for i in range(7)]),
            ("llama4(floor=1024, beta=1)", [1, 1, 1, 1, 1 + math.log(2), 1 + math.log(3), 2.609]),
            # The token's part is 0 for a zero query.
            ("ssa", [1 + math.exp(-math.exp(2)) * math.log(n) for n in LENGTHS]),
            ("softmax", [1] * 7),
        ],
    )
    def test_laws_worked_by_hand(self, name, expected):
        np.testing.assert_allclose(temperatures(name, 8)[1], expected, atol=5e-4)

    def test_a_window_is_all_that_its_rows_see(self):
        n, factor = temperatures("windowed(window=100)+log_length", 8)
        np.testing.assert_array_equal(n, [64] + [100] * 6)
        np.testing.assert_allclose(factor, [1] + [math.log(100) / math.log(64)] * 6, atol=5e-4)


class TestExampleRow:
    def test_near_keys_are_the_same_at_every_length(self):
        method = make_method("softmax", train_length=8)
        short, long = (example_rows(method, length, 8)[0] for length in (8, 40))
        assert (short.shape, long.shape) == ((8,), (40,))
        np.testing.assert_allclose(long.sum(), 1, atol=1e-5)
        np.testing.assert_allclose(short, long[-8:] / long[-8:].sum(), rtol=1e-4)

    def test_of_normal_logits(self):
        # A row of n normal logits of variance 1 has an entropy of about ln n - 1/2.
        weights = example_rows(make_method("nope", train_length=8), 4096, 256)[0]
        assert entropy(weights) == pytest.approx(math.log(4096) - 0.5, abs=0.15)

    def test_entropy(self):
        assert entropy(np.full(8, 0.25)) == pytest.approx(math.log(8))  # over their sum, 2
        assert entropy(np.array([0.5, 0.25, 0.25, 0.0])) == pytest.approx(1.5 * math.log(2))
        assert entropy(np.array([0.0, 1.0])) == 0
        assert entropy(np.zeros(3)) == 0

    def test_bars(self):
        values = np.array([0, 1 / 16, 0.5, 9 / 16, 1])
        assert bars(values, 1.0, lines=2) == ["   ▁█", " ▁███"]
        assert bars(values, 2.0, lines=1) == [" ▁▂▃▄"]


def markdown_rows():
    return {line.split("`")[1]: line for line in markdown_table().splitlines()[2:]}


class TestTables:
    def test_every_entry_says_what_it_changes(self):
        assert [name for name, entry in CATALOGUE.items() if not entry.changes] == []

    def test_markdown(self):
        lines = markdown_table().splitlines()
        assert lines[1] == "|---|---|---|---|---|"
        assert len(lines) == 2 + len(method_names())
        rows = {line.split("`")[1]: line for line in lines[2:]}
        assert rows["pi"] == (
            "| `pi` | positions divided by s | – | any "
            "| [Position interpolation](https://arxiv.org/abs/2306.15595) |"
        )
        assert rows["rerope"] == (
            "| `rerope` | distances clamped to ±w | – | any | ReRoPE (Su 2023) |"
        )
        assert rows["relu2"].endswith(
            " | weights | – | [GAU](https://arxiv.org/abs/2202.10447), "
            "[ReLU attention](https://arxiv.org/abs/2309.08586) |"
        )
        assert "| Su 2021; [Qwen](https://arxiv.org/abs/2309.16609) |" in rows["log_length"]

    def test_terminal(self):
        lines = catalogue_table().splitlines()
        assert max(map(len, lines)) <= 100
        rows = {line.split()[0]: line.split() for line in lines if line[:1].strip()}
        assert set(method_names()) < set(rows)
        assert " | weights, gates | – | " in markdown_rows()["forgetting"]
        assert " | layers | L | " in markdown_rows()["llama4"]
        # axes, the formula's first words, needs, reach, causal, fused, the paper's first
        assert rows["lssar"][1] == "STW"
        assert rows["lssar"][-5:] == ["weights", "–", "yes", "TPU", "LSSAR"]
        assert rows["streaming_llm"][1] == "PV"
        assert rows["soft"][-5:] == ["weights", "–", "no", "TPU", "SOFT"]
        assert "  yes     no     ALiBi" in catalogue_table()


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_explained(name, monkeypatch):
    # Its weights are other files' to test, and what takes the time here.
    monkeypatch.setattr(describe, "example_rows", even_rows)
    text = explained(name)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line != line.rstrip()] == []
    for heading in ("position: ", "similarity: ", "temperature: ", "weighting: ", "visibility: "):
        assert sum(line.startswith(heading) for line in lines) == 1
    assert f"  {name}: " in text


def test_explanation_of_a_composition():
    text = explained("rerope(window=3)+infoscale")
    for line in (
        "rerope(window=3)+infoscale  (L = 4, H = 8)",
        "  rerope: distances clamped to ±w. ReRoPE (Su 2023); published for causal models",
        "  trained for it: no, weights trained under plain softmax take it as they are",
        "  fused: TPU, where our own kernel can compute it; no library's, because it rotates near "
        "and far",
        "position: ClampedRope",
        "    Distances clamped to +-window (default L): ReRoPE (Su 2023), and LM-Infinite's.",
        "    window=3               None or a whole number, at least 1; default 4",
        "    pairing='interleaved'  one of 'interleaved', 'halves'",
        "temperature: InfoScale",
        "    all_heads=False    True or False",
        "    length            4       8      16      32      64     128     256",
    ):
        assert line in text.splitlines(), line
    assert text.count("effective keys") == 4
    # 4 keys at L, a column each, and 16 a column at 16 L.
    assert "over 1 key at length 4 and 16 keys at 64" in " ".join(text.split())


def test_explanation_says_where_a_rotation_starts_from():
    lines = explained("llama3(scale=8)+rerope").splitlines()
    assert "    starts from Llama3, in place of plain RoPE" in lines
    assert "starts from" not in explained("llama3+rerope")


def test_explanation_says_what_is_learned_and_what_does_not_sum_to_one():
    text = explained("ssmax+sigmoid")
    assert "    learned: slope [4]" in text.splitlines()
    assert "trained for it: yes" in text
    assert "(temperature, weighting)" in text
    assert "sum of weights" in text
    assert "sum of weights" not in explained("softmax")
    assert explained("softmax").count("effective keys") == 2  # beside nothing but itself


def test_columns_of_a_length_that_they_do_not_divide(monkeypatch):
    monkeypatch.setattr(describe, "example_rows", even_rows)
    text = explained("nope", train_length=65)
    assert "over 2 keys at length 65 and 32 keys at 1,040" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_a_method_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Doubled(Temperature):
        """Twice what it was."""

        exponent: float = option(1.0, float, above=0.0, at_most=3.0)

        def __call__(self, rows, q, params):
            return 2.0**self.exponent * super().__call__(rows, q, params)

    CATALOGUE["doubled"] = Entry("this test", temperature=Doubled())
    text = explained("doubled(exponent=2)")
    assert "| `doubled` |  | – | L | this test |" in markdown_table()
    assert "  doubled: this test; published for causal and bidirectional models" in text
    assert "    Twice what it was." in text
    assert "    exponent=2  a number, at most 3, above 0; default 1.0" in text
    assert "    temperature" + "   4.000" * 7 in text


def test_every_head_that_differs_is_drawn():
    text = explained("alibi")
    for head in range(4):  # of slopes of their own
        assert text.count(f"alibi at length 4, head {head}: entropy") == 1
        assert text.count(f"alibi at length 64, head {head}: entropy") == 1
    assert "softmax at length 4: entropy" in text
    assert "seed 0, 4 heads)" in " ".join(text.split())
    assert "head 1" not in explained("rerope(window=3)+infoscale")


def test_heads_of_ones_own_and_no_publication(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class HalfHeads(Temperature):
        """One head of two gets twice the temperature."""

        def __call__(self, rows, q, params):
            factor = np.where(np.arange(rows.num_heads) % 2, 2.0, 1.0)[None, :, None, None]
            return factor * super().__call__(rows, q, params)

    monkeypatch.setitem(CATALOGUE, "half_heads", Entry(temperature=HalfHeads()))
    text = explained("half_heads")
    assert "    heads 0 and 2" + "   1.000" * 7 in text
    assert "    heads 1 and 3" + "   2.000" * 7 in text
    assert "half_heads at length 64, heads 1 and 3: entropy" in text
    assert "  half_heads: unpublished; for causal and bidirectional models" in text
    assert "| `half_heads` |  | – | L | unpublished |" in markdown_table()
    assert "unpublished" in catalogue_table()


def test_parts_that_change_nothing_are_told():
    said = "infoscale changes nothing in infoscale+log_length: log_length replaces its temperature"
    assert said in " ".join(explained("infoscale+log_length").split())
    assert "changes nothing" not in explained("rerope(window=3)+infoscale")


@pytest.mark.parametrize(
    ("name", "axis", "name_of_option", "words"),
    [
        ("rerope", "position", "window", "None or a whole number, at least 1"),
        ("p_rope", "position", "fraction", "a number, at least 0, at most 1"),
        ("longrope", "position", "factors", "None or a tuple of numbers, above 0"),
        ("infoscale", "temperature", "clamp", "True or False"),
        ("lssa", "weighting", "norm", "one of 'l1', 'none'"),
    ],
)
def test_what_an_option_may_be(name, axis, name_of_option, words):
    choice = make_method(name, train_length=8).axes()[axis]
    assert allowed(choice, name_of_option) == words


@pytest.mark.parametrize(
    ("name", "head_dim", "says"),
    [
        ("nonsense", 8, "unknown method 'nonsense'"),
        ("rerope(width=3)", 8, "has no option 'width'"),
        ("softmax", 7, "head_dim 7 is odd"),
        ("longrope(factors=(1.0, 2.0))", 8, "2 factors: should be 4"),
    ],
)
def test_what_cannot_be_explained(name, head_dim, says):
    with pytest.raises(ValueError, match=says):
        explained(name, head_dim=head_dim)
