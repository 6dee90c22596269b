"""Tasks of RULER's kind, solved by plain means from the text that a prompt gives back."""

import re
from collections import Counter

import numpy as np
import pytest

from lenext.config import base_config
from lenext.data import RULER, ByteTokenizer, Corpus, get_tokenizer, share_found
from lenext.data.prompts import Chat, Source, make_prompt, spell_answers
from lenext.data.ruler import WRONG
from lenext.data.words import compound_words
from lenext.errors import UserError
from lenext.evaluation.protocols import CropSettings, read_tasks, ruler
from lenext.training import validate
from tests.data import kinds

BYTES = ByteTokenizer()
KINDS = ["bytes", *kinds.KINDS]
LENGTH = 6000
TEXT = b"".join(b"def f%d(x):\n    return x + %d\n\n" % (i, i) for i in range(400))


def tokenizer_of(kind, folder):
    return get_tokenizer(kind if kind == "bytes" else str(kinds.save(kind, folder)))


def corpus_of(tokenizer):
    tokens = tokenizer.encode(TEXT)
    return Corpus(
        tokens=tokens,
        offsets=np.array([0, len(tokens) // 2, len(tokens)]),
        names=["a", "b"],
        fingerprint="0" * 12,
        name="code",
        split="validation",
    )


def prompts_of(tokenizer, length=LENGTH, tasks=tuple(RULER), documents=4, **changes):
    settings = CropSettings(documents=documents, tokens=1, seed=0, tasks=tasks, **changes)
    return ruler(corpus_of(tokenizer), tokenizer, length, length, settings)


def solve(prompt):
    """The answers that a careful reader gives."""
    body, question = prompt.rsplit("\nQuestion:", 1)
    body = body.split("\nThe text:\n")[-1].split("\nThe list:\n")[-1]
    if "code" in question.split("?")[0]:
        asked = re.search(r"what (?:is|are) the codes? of ([^?]*)\?", question)[1]
        things = re.split(", | and ", asked)
        return [c for x in things for c in re.findall(rf"code of {x} is ([\w-]+)\.", body)]
    if "variables" in question:
        assigned = re.findall(r"VAR ([A-Z]+) = (\w+)", body)
        known = [re.search(r"value (\d+)", question)[1]]
        for name, value in assigned:
            if value in known:
                known.append(name)
        return known[1:]
    count = int(re.search(r"which (\d+) words", question)[1])
    words = Counter(line.strip() for line in body.splitlines() if re.fullmatch(r"[\w-]+", line))
    return [word for word, _ in words.most_common(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_careful_reader_scores_one_in_every_task(kind, tmp_path):
    tokenizer = tokenizer_of(kind, tmp_path)
    prompts = prompts_of(tokenizer)
    assert prompts.batch["tokens"].shape == (4 * len(RULER), LENGTH - prompts.draw)
    start = tokenizer.frame.start
    for row, expected, candidates, sizes, task in zip(
        prompts.batch["tokens"], prompts.expected, prompts.batch["answers"],
        prompts.batch["sizes"], prompts.task, strict=True,
    ):  # fmt: skip
        assert tuple(row[: len(start)]) == start
        answers = solve(tokenizer.decode(row))
        drawn = tokenizer.encode(f" {', '.join(answers)}")
        assert share_found(tokenizer, drawn, expected) == 1, task
        assert sorted(answers) == sorted(expected), task
        # The right answer alone says what the reader says, in the order of the question.
        texts = [tokenizer.decode(c[:n]) for c, n in zip(candidates, sizes, strict=True)]
        said = [re.findall(r"[\w-]+", re.sub(r"\band\b", " ", text)) for text in texts]
        assert said[0] == list(expected), task
        assert len({tuple(words) for words in said}) == WRONG + 1, task
        assert all(len(words) == len(expected) for words in said)
        # What is drawn at the most is room enough.
        assert max(sizes) <= prompts.draw


@pytest.mark.parametrize("task", RULER)
def test_who_does_not_see_the_text_can_only_guess(task):
    """Neither by an answer's length, nor by its order, nor by how often its letters are used."""
    puzzles = [RULER[task](np.random.default_rng(seed)) for seed in range(400)]
    tricks = {
        "shortest": lambda text: (len(text), text[::-1]),
        "longest": lambda text: (-len(text), text[::-1]),
        "first": lambda text: text,
        "last": lambda text: [-ord(c) for c in text],
        "letters": lambda text: (len(set(text)), text[::-1]),
    }
    for name, trick in tricks.items():
        guessed = [min([p.right, *p.wrong], key=trick) == p.right for p in puzzles]
        # Four standard deviations from one in eight, of 400 guesses.
        assert abs(np.mean(guessed) - 1 / (WRONG + 1)) < 4 * (7 / 64 / 400) ** 0.5, name
    for puzzle in puzzles[:50]:
        assert not set(puzzle.answers) & set(re.findall(r"[\w-]+", puzzle.question + puzzle.lead))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "vt", "cwe"])
def test_a_prompt_is_read_as_its_text_is(kind, task, tmp_path):
    """But for the one line that the haystack's beginning cuts."""
    tokenizer = tokenizer_of(kind, tmp_path)
    row = prompts_of(tokenizer, 4000, (task,), 1).batch["tokens"][0]
    again = tokenizer.encode(tokenizer.decode(row))
    number = {"niah_single_1": 300, "niah_multikey_2": 300, "vt": 600, "cwe": 700}[task]
    np.testing.assert_array_equal(row[number:], again[len(again) - len(row) + number :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_3"])
def test_needles_lie_at_all_depths_where_they_are_said_to(kind, task, tmp_path):
    tokenizer = tokenizer_of(kind, tmp_path)
    found = prompts_of(tokenizer, 4000, (task,), 9)
    for row, place, expected in zip(
        found.batch["tokens"], found.place, found.expected, strict=True
    ):
        needle = tokenizer.decode(row[place:][:150]).strip()
        assert re.match(rf"The code of [\w-]+ is {expected[0]}\.", needle)
    place = np.sort(found.place)
    gaps = np.diff(place)
    line = 150  # tokens of a line of the haystack, or of other needles
    assert np.all(np.abs(gaps - gaps.mean()) < 2 * line)
    assert place[0] < 150
    assert place[-1] > 4000 - found.draw - 700


def test_what_is_asked_is_the_same_at_all_lengths_and_follows_from_the_seed():
    shorter, longer = (prompts_of(BYTES, n) for n in (LENGTH, LENGTH + 500))
    assert shorter.expected == longer.expected
    np.testing.assert_array_equal(shorter.batch["answers"], longer.batch["answers"])
    again = prompts_of(BYTES)
    np.testing.assert_array_equal(shorter.batch["tokens"], again.batch["tokens"])
    # A depth is one of a single needle.
    one = {task for task, place in zip(shorter.task, shorter.place, strict=True) if place >= 0}
    assert one == {task for task in RULER if "single" in task or "multikey" in task}
    alone = prompts_of(BYTES, tasks=("vt",))
    assert alone.expected == tuple(
        e for e, t in zip(shorter.expected, shorter.task, strict=True) if t == "vt"
    )


@pytest.mark.parametrize("task", RULER)
def test_a_length_that_just_holds_a_task_and_one_too_short(task):
    with pytest.raises(UserError, match=rf"at least (\d+) for the task {task} of") as refused:
        prompts_of(BYTES, 200, (task,), 1)
    least = int(re.search(r"at least (\d+)", str(refused.value))[1])
    assert prompts_of(BYTES, least, (task,), 1).batch["tokens"].shape[0] == 1
    with pytest.raises(UserError, match=f"length {least - 1}: should be at least {least} "):
        prompts_of(BYTES, least - 1, (task,), 1)


def test_common_words_occur_ten_times_as_often():
    found = prompts_of(BYTES, 20_000, ("cwe",), 1)
    body = BYTES.decode(found.batch["tokens"][0]).split("\nThe list:\n")[1]
    counts = Counter(line for line in body.splitlines() if re.fullmatch(r"[a-z]+-[a-z]+", line))
    assert {counts[word] for word in found.expected[0]} == {30}
    assert {n for word, n in counts.items() if word not in found.expected[0]} == {3}
    # As many as fit: what is left is less than another word takes.
    assert len(body.split("\n\n")[0]) > 20_000 - found.draw - 700


def test_frequent_words_follow_zipf():
    found = prompts_of(BYTES, 20_000, ("fwe",), 1)
    body = BYTES.decode(found.batch["tokens"][0]).split("\nQuestion:")[0]
    counts = Counter(x for x in body.splitlines() if re.fullmatch(r"[a-z]{6}|\.\.\.", x))
    ordered = [n for _, n in counts.most_common()]
    assert counts.most_common()[0][0] == "..."
    total = ordered[0] * np.pi**2 / 6
    expected = [total / (k**2 * np.pi**2 / 6) for k in range(1, len(ordered) + 1)]
    np.testing.assert_allclose(ordered, expected, atol=1.01)


def test_a_chat_model_is_asked_in_its_template():
    chat = Chat((1, 2, 3), (4, 5))
    puzzle = RULER["vt"](np.random.default_rng(0))
    source = Source(BYTES, lambda rng, n: np.zeros(n, int))
    row = make_prompt(puzzle, 3000, source, np.random.default_rng(0), depth=0, chat=chat).tokens
    assert len(row) == 3000
    assert tuple(row[:3]) == (1, 2, 3)
    lead = puzzle.lead.strip().encode()
    assert row[-len(lead) :].tobytes()[::8] == lead
    assert tuple(row[-len(lead) - 2 : -len(lead)]) == (4, 5)
    np.testing.assert_array_equal(spell_answers(puzzle, BYTES, chat)[0], BYTES.encode(puzzle.right))


def test_a_tokenizer_that_lacks_digits(tmp_path):
    import tokenizers  # a vocabulary of letters alone

    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    with pytest.raises(UserError, match=r"the tokenizer reads '\d+', an answer, as ''"):
        prompts_of(get_tokenizer(str(path)), tasks=("niah_single_1",))


def test_there_are_words_enough():
    words = compound_words(np.random.default_rng(0), 40_000)
    assert len(set(words)) == 40_000
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+){1,2}", word) for word in words)


def test_names_of_tasks():
    assert read_tasks(" vt, niah_single_1,vt") == ("vt", "niah_single_1")
    assert read_tasks("all") == tuple(RULER)
    for text in ("", "vt,needle", "all,vt"):
        with pytest.raises(UserError, match=r"config\.eval\.tasks=.*: should be all, or of niah_"):
            read_tasks(text)
    config = base_config()
    config.eval.tasks = "needle"
    with pytest.raises(UserError, match=r"config\.eval\.tasks"):
        validate(config)
