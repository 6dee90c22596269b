"""The README's code runs, its catalogue is the code's, and its tables are the results'."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, make_method
from lenext.attention.axes.method import init_params
from lenext.attention.catalogue import CATALOGUE
from lenext.attention.describe import markdown_table
from lenext.reporting.tables import select, with_interval
from lenext.training import train
from tests.training.common import tiny_config

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def clean_catalogue():
    before = dict(CATALOGUE)
    yield
    CATALOGUE.clear()
    CATALOGUE.update(before)


def test_table_is_what_the_catalogue_prints():
    section = README.split("\n## Methods\n\n")[1]
    assert section.startswith(markdown_table() + "\nn is the number of keys")


@pytest.mark.parametrize(
    ("name", "metric", "heading"),
    [
        ("infoscale_table", "accuracy", "accuracy of a GAU"),
        ("softplus_table", "loss", "loss in"),
        ("associative_recall", "retrieved", "retrieved |"),
    ],
)
def test_tables_hold_what_the_results_hold(name, metric, heading):
    """Each of their rows is a row of the committed JSON, at the lengths that it shows."""
    content = json.loads((REPOSITORY / f"experiments/results/{name}.json").read_text())
    records = select(content["records"], metric=metric, positions=None)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        rows.setdefault(record["method"], {})[str(record["length"])] = with_interval(record)
    table = README.split(f"\n| {heading}")[1].split("\n\n")[0].splitlines()
    lengths = [cell.strip() for cell in table[0].split("|") if cell.strip().isdigit()]
    assert len(lengths) >= 4
    assert len(table) >= 10
    for line in table[2:]:
        cells = [cell.strip() for cell in line.split("|")]
        shown = dict(zip(lengths, cells[-1 - len(lengths) : -1], strict=True))
        assert any(shown.items() <= row.items() for row in rows.values()), line


def test_surface_example():
    (code,) = [block for block in BLOCKS if "row_statistics" in block]
    names = {}
    exec(code, names)
    assert names["out"].shape == (1, 512, 4, 64)
    assert names["weights"].shape == (1, 4, 512, 512)
    assert names["entropy"].shape == (1, 4, 512)


def test_flax_example():
    (surface,) = [block for block in BLOCKS if "row_statistics" in block]
    (code,) = [block for block in BLOCKS if "MultiHeadAttention" in block]
    names = {}
    exec(surface + code, names)
    assert names["hidden"].shape == (1, 512, 64)


def test_maps_example(monkeypatch, tmp_path, tmp_path_factory):
    """On a run of two steps, whose model has two layers."""
    (code,) = [block for block in BLOCKS if "attention_maps" in block]
    config = tiny_config(tmp_path_factory.getbasetemp() / "tfds")
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    train(config, tmp_path / "runs" / "quickstart")
    (tmp_path / "README.md").write_text(README)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["maps"].shape == (2, 1, 1, 64, 512)
    np.testing.assert_allclose(names["maps"].sum(axis=-1), 1.0, rtol=1e-5)
    assert names["rows"].entropy.shape == (2, 1, 1, 512)


def test_own_method_example(clean_catalogue):
    (code,) = [block for block in BLOCKS if "register(" in block]
    names = {"__name__": "example"}
    exec(code, names)
    method = names["method"]
    assert method == make_method("rerope+power_length(exponent=0.2)", train_length=64)
    assert method.position == make_method("rerope", train_length=64).position
    assert init_params(method, 4, 16) == {}
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 128, 2, 16)) for i in range(3))
    # The law's factor at n = 128, folded into the query of the method without it.
    plain = make_method("rerope", train_length=64)
    expected = attend(q * (128 / 64) ** 0.2, k, v, plain)
    np.testing.assert_allclose(attend(q, k, v, method), expected, atol=1e-5)
    blocks = attend(q, k, v, method, implementation="blockwise", block_size=48)
    np.testing.assert_allclose(blocks, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"exponent=-1\.0: should be at least 0"):
        make_method("power_length(exponent=-1.0)", train_length=64)
    assert jnp.all(jnp.isfinite(blocks))
