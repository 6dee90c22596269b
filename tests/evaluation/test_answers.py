"""Answers of a decoder: against its forward pass, and as figures of a sweep."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.data import ByteTokenizer, Frame
from lenext.errors import UserError
from lenext.evaluation import answers, evaluate
from lenext.evaluation.answers import Answered, answer_metrics, make_asking, run_asking
from lenext.evaluation.protocols import Prompts
from lenext.training import train
from tests.models.test_decoder import SIZES, build
from tests.training.common import tiny_decoder_config

LENGTH, SIZE, DRAW, COUNT = 30, 21, 9, 3  # of a row, of its prompt, and of what is drawn


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, (COUNT, 4))
    sizes[0, 0] = 1
    return Prompts(
        batch={
            "tokens": rng.integers(0, SIZES.vocab_size, (COUNT, SIZE)).astype(np.int32),
            "answers": rng.integers(0, SIZES.vocab_size, (COUNT, 4, 5)).astype(np.int32),
            "sizes": sizes.astype(np.int32),
        },
        document=np.arange(COUNT),
        length=LENGTH,
        draw=DRAW,
        task=("vt",) * COUNT,
        place=np.full(COUNT, -1),
        expected=(("a",),) * COUNT,
        tokenizer=ByteTokenizer(),
    )


@pytest.mark.parametrize(
    "methods",
    ["softmax", "rerope(window=4)+infoscale", "yarn", "lm_infinite(window=6)|self_extend", "lssar"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_answers_are_the_forward_passes(methods, batch_size, monkeypatch):
    """Of the whole row, whose length is what a scale follows; prompts in parts and alone."""
    monkeypatch.setattr(answers, "PREFILL_TOKENS", 8)
    model, asked = build(methods), prompts()
    found, cost = run_asking(make_asking(model, asked, batch_size=batch_size))
    assert cost.peak_bytes > 0
    full = jax.jit(model.__call__)

    def logits_of(rows):
        """A row is filled up: what comes later a causal model does not see."""
        return np.asarray(full(jnp.asarray(np.pad(rows, [(0, 0), (0, LENGTH - rows.shape[1])]))))

    rows = asked.batch["tokens"]
    for place in range(SIZE, SIZE + DRAW):
        logits = logits_of(rows)[:, place - 1]
        two = np.sort(logits, axis=-1)[:, -2:]
        assert (two[:, 1] - two[:, 0] > 1e-4).all()  # no tie that rounding could turn
        rows = np.concatenate([rows, logits.argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(found.drawn, rows[:, SIZE:])
    for number in range(4):
        tokens, size = asked.batch["answers"][:, number], asked.batch["sizes"][:, number]
        logits = logits_of(np.concatenate([asked.batch["tokens"], tokens], axis=1))
        chances = np.asarray(jax.nn.log_softmax(logits.astype(np.float64), axis=-1))
        for row in range(COUNT):
            expected = sum(chances[row, SIZE - 1 + i, tokens[row, i]] for i in range(size[row]))
            np.testing.assert_allclose(found.likelihood[row, number], expected, rtol=1e-4)


def test_what_is_retrieved_and_preferred():
    text = ByteTokenizer(frame=Frame(stops=(0,)))
    drawn = [" 123, then 45.", " 12\x00 45 123!!", "nothing at all", " 123 and 45 ..."]
    asked = Prompts(
        batch={"tokens": np.zeros((4, 80), np.int32)},
        document=np.array([0, 1, 0, 1]),
        length=100,
        draw=14,
        task=("vt", "vt", "fwe", "fwe"),
        place=np.array([9, 75, -1, -1]),
        expected=(("123", "45"), ("123", "12"), ("a",), ("45", "67")),
        tokenizer=text,
    )
    rows = np.stack([np.pad(text.encode(x), (0, 15 - len(x))) for x in drawn])
    likelihood = np.log([[0.5, 0.1], [0.3, 0.4], [0.2, 0.2], [0.9, 0.0001]])
    found = {
        (m.name, m.positions): (m.numerator.tolist(), m.denominator.tolist())
        for m in answer_metrics(Answered(rows, likelihood), asked)
    }
    # The second text ends before its first number is found; "a" is in "nothing at all".
    assert found == {
        ("retrieved", None): ([2.0, 1.0], [2.0, 2.0]),
        ("preferred", None): ([1.0, 1.0], [2.0, 2.0]),  # as likely is not preferred
        ("retrieved:vt", None): ([1.0, 0.5], [1.0, 1.0]),
        ("preferred:vt", None): ([1.0, 0.0], [1.0, 1.0]),
        ("retrieved:fwe", None): ([1.0, 0.5], [1.0, 1.0]),
        ("preferred:fwe", None): ([0.0, 1.0], [1.0, 1.0]),
        ("retrieved_by_place", (0, 10)): ([1.0, 0.0], [1.0, 0.0]),
        ("retrieved_by_place", (70, 80)): ([0.0, 0.5], [0.0, 1.0]),
    }
    one = asked._replace(task=("vt",) * 4)
    names = [m.name for m in answer_metrics(Answered(rows, likelihood), one)]
    assert names == ["retrieved", "preferred", "retrieved_by_place", "retrieved_by_place"]


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory):
    config = tiny_decoder_config(tmp_path_factory.getbasetemp() / "tfds")
    workdir = tmp_path_factory.mktemp("answers") / "run"
    train(config, workdir)
    config.eval.update(
        protocol="ruler", tasks="niah_single_1,vt", lengths="700,800", documents=2,
        methods="softmax,rerope",
    )  # fmt: skip
    return config, workdir


def test_a_sweep_of_tasks(decoder_run, capsys, monkeypatch):
    config, workdir = decoder_run
    config = type(config)(config.to_dict())
    records = evaluate(config, workdir)
    metrics = [r["metric"] for r in records if (r["length"], r["method"]) == (700, "rerope")]
    assert metrics[:2] == ["retrieved", "preferred"]
    assert {"retrieved:vt", "preferred:niah_single_1", "retrieved_by_place"} <= set(metrics)
    retrieved = {r["length"]: r for r in records if r["metric"] == "retrieved"}
    assert {n: r["predictions"] for n, r in retrieved.items()} == {700: 4, 800: 4}
    assert retrieved[700]["sequences"] == 4
    assert retrieved[700]["tokens"] == 4 * 700
    said = capsys.readouterr().out
    assert "prompts a task (in all) a length: 2 (4), 2 (4); protocol ruler" in said
    folder = workdir / "eval"
    assert {"results.png", "by_depth.png"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "results.json").read_text())["effective_lengths"] == []

    # Cells are kept; another task asks anew.
    monkeypatch.setattr(answers, "_read", None)
    assert evaluate(config, workdir) == records
    config.eval.tasks = "vt"
    with pytest.raises(AttributeError):
        evaluate(config, workdir)


def test_what_cannot_be_asked(decoder_run, trained, tmp_path):
    config, workdir = decoder_run
    config = type(config)(config.to_dict())
    config.eval.lengths = "64"
    config.eval.tasks = "vt"
    with pytest.raises(UserError, match=r"length 64: should be at least \d+ for the task vt"):
        evaluate(config, workdir)
    config.eval.lengths = "700"
    with pytest.raises(UserError, match=r"--calibrate: with config\.eval\.protocol=ruler there"):
        evaluate(config, workdir, calibrate_first=True)
    config.eval.update(chat=True, protocol="full_context")
    with pytest.raises(UserError, match=r"config\.eval\.chat=True: should be False with config"):
        evaluate(config, workdir)
    config.evaluators.validation.type = "ruler"
    with pytest.raises(UserError, match=r"config\.evaluators\.validation\.type='ruler': should be"):
        train(config, tmp_path / "new")
