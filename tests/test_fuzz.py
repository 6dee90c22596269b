"""Half a minute of `make fuzz`, and the copies that once went wrong."""

import pytest

from tests.fuzz import TARGETS, attempt, fuzz, prepare

FOUND = [
    ("config.json of GAU-α", 3),  # an escape sequence in a message
    ("config.json of GAU-α", 96),  # a message of ten thousand characters
    ("config.json", 1_000_046),  # a head of 10^9 numbers, of which shapes are made
    ("index", 62),  # half of a surrogate pair in one
    ("index of pickles", 96),  # a name too long for a file
    ("pickle", 27),  # a memo of 2^31 places
    ("pickle", 56),  # NUL in a name
    ("tokenizer_config.json", 62),  # half of a surrogate pair, which the library takes for no text
    ("vocab.json", 20),  # an id near 2^31
    ("meta.json", 30024),  # another type of ids
    ("meta.json", 30437),  # NUL, which NumPy takes for one of bool
    ("an export's config.json", 5054),  # ten thousand characters, of which transformers complains
    ("meta.json", 40673),  # a name too long for a file
    ("seal", 54),  # an escape sequence in a warning
    ("seal", 96),  # a long one
    ("a run's config.json", 16),  # null
    ("a run's config.json", 2261),  # 2^31 heads
    ("a run's config.json", 18),  # a list in place of a section
    ("calibration.json", 2200),  # a number beyond float32
    ("cell", 10),  # other documents
    ("cell", 2025),  # NUL in a picture
    ("cell", 30234),  # positions that are an empty list
    ("cell", 31449),  # an infinite sum
    ("results.json", 30355),  # a margin of 10^308
    ("results.json", 30760),  # half of a surrogate pair in how it was trained
    ("results.json", 2210),  # a headline that no cell has
    ("results.json", 2),  # a key less
    ("outcome.json", 13),  # no JSON
    ("outcome.json", 0),  # no UTF-8
    ("outcome.json", 8),  # a training of no time
    ("outcome.json", 9),  # null
    ("an experiment's evaluation", 46),  # another type
    ("an experiment's evaluation", 78),  # another number of documents
    ("an experiment's evaluation", 347),  # a number whose sums overflow
    ("dilution.json", 21),  # a record less
    ("dilution.json", 2104),  # half of a surrogate pair, found once half is written
    ("dilution.json", 34),  # a key less
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    return prepare(dict.fromkeys(name for name, _ in FOUND), tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(("target", "seed"), FOUND)
def test_what_was_found_stays_mended(target, seed, wholes):
    attempt(TARGETS[target], wholes[target], seed)


def test_half_a_minute_of_strangers_files_ends_in_one_line_each():
    counts, trouble = fuzz(30, seed=1_000_000, rounds=30)  # on no machine other copies
    assert not trouble, "\n".join(trouble)
    for name, found in counts.items():
        assert found.total(), name
