"""Rows of the retrieval tasks, read back by plain means."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.config import base_config
from lenext.data import TASKS, ByteTokenizer, Corpus, causal_lm_batches, get_tokenizer
from lenext.data.tasks import RETRIEVAL
from lenext.errors import UserError
from lenext.training import validate
from tests.data import kinds

BYTES = ByteTokenizer()
LINE = re.compile(r"\nPass key ([A-Z]): (\d{5})")
THIRD = 256 // 3


def text_of(n):
    """Text with no capital, digit or colon of its own."""
    return np.frombuffer((b"abcd efgh\n" * (n // 10 + 1))[:n], np.uint8)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 200), st.booleans())
def test_a_pass_key_is_asked_for_that_stands_in_the_row(seed, needles, room, anywhere):
    n = needles * 19 + 18 + room
    depth = None if anywhere else (seed % 11) / 10
    row = TASKS["passkey"](text_of(n), np.random.default_rng(seed), BYTES, needles, depth)
    assert len(row.tokens) == n
    text = BYTES.decode(row.tokens)
    *hidden, (name, number) = LINE.findall(text)
    assert len(hidden) == needles
    assert len(dict(hidden)) == needles
    assert dict(hidden)[name] == number
    np.testing.assert_array_equal(np.flatnonzero(row.answer >= 0), np.arange(n - 5, n))
    assert set(row.answer) == {-1, 0}
    # The needle that is asked for is where it is said to be, and about as deep.
    assert text[row.place[0] :].startswith(f"\nPass key {name}: {number}\n")
    assert LINE.sub("", text).replace("\n", "").startswith("abcd efgh"[:room])
    if not anywhere:
        deeper = sum(match.start() < row.place[0] for match in LINE.finditer(text))
        assert row.place[0] == round(depth * room) + 19 * deeper


def copied(tokens, place):
    """What an induction head says: what followed on the longest earlier text that ends as this."""

    def shared(end):
        size = 0
        while size < end and tokens[end - 1 - size] == tokens[place - 1 - size]:
            size += 1
        return size

    return tokens[max(range(1, place), key=shared)]


@pytest.mark.parametrize("kind", ["bytes", *kinds.KINDS])
def test_a_copier_over_ids_retrieves_every_pass_key(tmp_path, kind):
    """Spaces before numbers, and merged digits, are in the question what they are in the needle."""
    tokenizer = get_tokenizer(kind if kind == "bytes" else str(kinds.save(kind, tmp_path)))
    filler = tokenizer.encode(bytes(text_of(900)))
    for seed in range(200):
        row = TASKS["passkey"](filler[:130], np.random.default_rng(seed), tokenizer, 2, None)
        asked = np.flatnonzero(row.answer >= 0)
        assert list(asked) == list(range(asked[0], 130))
        tokens = row.tokens.tolist()
        assert [copied(tokens, i) for i in asked] == tokens[asked[0] :]
        *hidden, (name, number) = LINE.findall(tokenizer.decode(row.tokens))
        assert dict(hidden)[name] == number
        assert tokenizer.decode(row.tokens[asked]).strip() == number
        count = len(tokenizer.frame.start)
        assert tuple(row.tokens[:count]) == tokenizer.frame.start
        needle = tokenizer.encode(f"\nPass key {name}: {number}\n")
        np.testing.assert_array_equal(row.tokens[row.place[0] :][: len(needle)], needle)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 60))
def test_recall_asks_for_every_pair_once(seed, needles, room):
    n = 4 * needles + room
    row = TASKS["associative_recall"](text_of(n), np.random.default_rng(seed), BYTES, needles, None)
    tokens, body = row.tokens, n - 2 * needles
    assert len(tokens) == n
    kinds = tokens // THIRD  # 0 keys, 1 values, 2 noise
    assert set(kinds[:body]) <= {0, 1, 2}
    stored = {tokens[i]: (tokens[i + 1], i) for i in np.flatnonzero(kinds[:body] == 0)}
    assert len(stored) == needles
    assert np.count_nonzero(kinds[:body] == 2) == room
    asked, answers = tokens[body::2], tokens[body + 1 :: 2]
    assert set(asked) == set(stored)
    numbers = row.answer[body + 1 :: 2]
    assert sorted(numbers) == list(range(needles))
    assert np.all(row.answer[:body] == -1)
    assert np.all(row.answer[body::2] == -1)
    for key, value, number in zip(asked, answers, numbers, strict=True):
        assert stored[key] == (value, row.place[number])


def test_recall_at_depths_0_and_1():
    for depth, place in ((0.0, 0), (1.0, 18)):
        row = TASKS["associative_recall"](text_of(22), np.random.default_rng(0), BYTES, 1, depth)
        np.testing.assert_array_equal(row.place, [place])


@pytest.mark.parametrize(("task", "length"), [("passkey", 19 + 18 - 1), ("associative_recall", 3)])
def test_a_row_that_is_just_long_enough_and_one_too_short(task, length):
    rng = np.random.default_rng(0)
    assert len(TASKS[task](text_of(length + 1), rng, BYTES, 1, None).tokens) == length + 1
    with pytest.raises(UserError, match=rf"length {length - 1}: should be at least {length} "):
        TASKS[task](text_of(length), rng, BYTES, 1, None)


@pytest.mark.parametrize(("task", "most"), [("passkey", 26), ("associative_recall", 85)])
def test_more_needles_than_names(task, most):
    with pytest.raises(UserError, match=f"{most + 1} needles: should be at most {most}"):
        TASKS[task](text_of(4000), np.random.default_rng(0), BYTES, most + 1, None)


def corpus():
    return Corpus(
        tokens=text_of(4000),
        offsets=np.arange(0, 4001, 500),
        names=[str(i) for i in range(8)],
        fingerprint="0" * 12,
        name="letters",
        split="train",
    )


def batches(task, **changes):
    settings = {"length": 99, "batch_size": 4, "seed": 3, "needles": 2} | changes
    return causal_lm_batches(corpus(), tokenizer=BYTES, task=task, **settings)


@pytest.mark.parametrize("task", RETRIEVAL)
def test_batches_weigh_answers_only_and_follow_from_the_seed(task):
    first, second = (next(iter(batches(task))) for _ in range(2))
    for name in ("tokens", "targets", "weights"):
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].shape == (4, 99)
    np.testing.assert_array_equal(first["tokens"][:, 1:], first["targets"][:, :-1])
    if task == "passkey":
        for tokens, targets, weights in zip(*(first[k] for k in ("tokens", "targets", "weights")),
                                            strict=True):  # fmt: skip
            *hidden, (name, number) = LINE.findall(BYTES.decode(np.append(tokens, targets[-1])))
            assert BYTES.decode(targets[weights > 0]) == number == dict(hidden)[name]
    else:
        np.testing.assert_array_equal(np.flatnonzero(first["weights"][0]), [96, 98])
    other = next(iter(batches(task, seed=4)))
    assert np.any(other["tokens"] != first["tokens"])


def test_shards_of_task_batches_are_the_global_batch():
    whole = next(iter(batches("passkey")))["tokens"]
    parts = [
        next(iter(batches("passkey", shard_index=i, shard_count=2)))["tokens"] for i in range(2)
    ]
    assert sorted(map(bytes, np.concatenate(parts))) == sorted(map(bytes, whole))


def test_a_length_too_short_for_a_task_fails_at_once():
    with pytest.raises(UserError, match="length 40: should be at least 55 for the task's needles"):
        batches("passkey", length=40)


def test_packing_and_tasks():
    with pytest.raises(ValueError, match="task 'passkey': should be empty with packing"):
        batches("passkey", packing=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "needle"}, "should be empty or one of passkey, associative_recall, copy, "),
        ({"task": "passkey"}, "should be empty for config.model.family='gau'"),
        ({"needles": 0}, r"config\.data\.needles=0: should be at least 1"),
    ],
)
def test_config_keys_of_tasks(changes, message):
    config = base_config()
    config.data.update(changes)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_config_names_all_tasks():
    for task in TASKS:
        config = base_config()
        config.model.family = "decoder"
        config.evaluators.validation.type = task
        config.data.task = task
        validate(config)
        config.data.packing = True
        with pytest.raises(UserError, match=r"config\.data\.packing=True: should be False"):
            validate(config)
