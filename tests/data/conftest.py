"""Corpora for the data tests: small made-up ones, and the real standard library, prepared once."""

import numpy as np
import pytest

from lenext.data import ByteTokenizer, Corpus, load_corpus


@pytest.fixture(scope="session")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="session")
def stdlib(data_dir, tokenizer):
    return {
        split: load_corpus("stdlib_source", split, tokenizer, data_dir)
        for split in ("train", "validation")
    }


@pytest.fixture(scope="session")
def numbered_corpus():
    """Returns a maker of corpora whose token i is i, so a row says where it was cut."""

    def make(*lengths):
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        names = [f"document{i:02}" for i in range(len(lengths))]
        tokens = np.arange(offsets[-1], dtype=np.int32)
        return Corpus(tokens, offsets, names, fingerprint="0" * 12, name="numbers", split="train")

    return make
