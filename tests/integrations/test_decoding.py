"""Rows of all lengths that go on together."""

import numpy as np
import pytest

from lenext.integrations import decoding
from lenext.models import take_apart
from lenext.models.generation import generate
from tests.integrations.common import VOCAB, compiled, under


@pytest.mark.parametrize("method", ["", "windowed(window=8)"])
def test_rows_of_all_lengths_are_each_the_full_context_s(workdir, method):
    """Prompts of 1 token, of parts of each size, and beyond the window's cache."""
    model = under(workdir, method)
    logits = compiled(model)
    rng = np.random.default_rng(0)
    prompts = [
        decoding.Prompt(rng.integers(3, VOCAB, n).tolist(), most)
        for n, most in ((1, 3), (8, 4), (9, 2), (83, 4), (17, 4))
    ]
    found = decoding.continued(
        take_apart(model), prompts, ends=lambda i, ids: i == 4 and len(ids) == 2,
        rows_of=lambda places: 2, sampling=decoding.Sampling(temperature=0),
    )  # fmt: skip
    for i, drawn in found:
        ids = list(prompts[i].tokens)
        for _ in range(2 if i == 4 else prompts[i].most):
            # What stands behind a token is not seen by it.
            ids.append(int(logits([*ids, *[0] * (90 - len(ids))])[len(ids) - 1].argmax()))
        assert drawn == ids[len(prompts[i].tokens) :], i


def test_a_prompt_is_as_long_as_it_is_from_its_first_step_on(workdir, monkeypatch):
    """For a method that follows the length, as in the stream of one row."""
    model, lengths = under(workdir, "ntk"), []
    tokens = np.random.default_rng(0).integers(3, VOCAB, 59).tolist()
    advance = decoding._advance

    def noted(params, tokens, places, length, **how):
        lengths.append(length.tolist())
        return advance(params, tokens, places, length, **how)

    monkeypatch.setattr(decoding, "_advance", noted)
    found = decoding.continued(
        take_apart(model), [decoding.Prompt(tokens, 4)], ends=lambda i, ids: False,
        rows_of=lambda places: 1, sampling=decoding.Sampling(temperature=0),
    )  # fmt: skip
    ((_, drawn),) = found
    assert lengths == [[59], [59], [59], [60], [61], [62]]
    alone = generate(model, np.asarray([tokens]), 4, sampling=decoding.Sampling(temperature=0))
    assert drawn == [int(token[0]) for token in alone]
