"""Questions about tokens, beside plain NumPy."""

import numpy as np
import pytest

from lenext.integrations import scoring
from tests.integrations.common import VOCAB, log_likelihoods, under


def test_shapes_are_few():
    """All lengths up to 4096 by 16 sizes; batches are full, or of powers of two."""
    sizes = {scoring.rounded(n, 32) for n in range(1, 4097)}
    assert len(sizes) == 15
    assert all(n <= scoring.rounded(n, 32) <= max(32, 3 * n // 2) for n in range(1, 4097))
    assert list(scoring.batches(11, 4)) == [4, 4, 4]
    assert list(scoring.batches(10, 4)) == [4, 4, 2]
    assert list(scoring.batches(3, 16)) == [4]
    assert list(scoring.batches(0, 16)) == []


@pytest.mark.parametrize("method", ["rerope(window=4)+infoscale", "ntk"])
def test_answers_are_those_of_each_text_by_itself(workdir, method):
    """Of methods that follow the length, beyond that of training, whatever else is in the batch."""
    model, rng = under(workdir, method), np.random.default_rng(0)
    texts = [tuple(rng.integers(3, VOCAB, n).tolist()) for n in (57, 61, 20)]
    questions = [scoring.Question(t[:-1], t[-n:]) for t, n in zip(texts, (1, 60, 3), strict=True)]
    likeliest = texts[0][:-1], (int(under_logits(model, texts[0][:-1]).argmax()),)
    questions.append(scoring.Question(*likeliest))
    read = []
    found = dict(
        scoring.scored(model, questions, rows_of=lambda size: read.append(size) or 4, longest=62)
    )
    assert read == [62, 62, 32]  # by two widths of what is asked
    for i, text in enumerate(texts):
        logs, right = log_likelihoods(model, text)
        asked = len(questions[i].targets)
        assert found[i].log_likelihood == pytest.approx(logs[-asked:].sum(), rel=1e-5)
        assert found[i].is_greedy == right[-asked:].all()
    assert found[3].is_greedy
    assert found[3].log_likelihood > found[0].log_likelihood


def under_logits(model, tokens):
    return np.asarray(model(np.asarray([tokens], np.int32)))[0, -1]
