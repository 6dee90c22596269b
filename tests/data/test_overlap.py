"""Which documents stand in others."""

import pytest

from lenext.data.overlap import LINE, prints_of, shares_in

PROSE = "".join(f"This is sentence number {i} of a document.\n" for i in range(20))


@pytest.mark.parametrize(
    "other",
    [
        PROSE.rstrip("\n"),
        PROSE.replace("\n", "\r\n") + "\n\n",
        f"\n {PROSE.replace(' ', '  ')}",
        PROSE.replace("\n", " "),
        PROSE.replace(" ", "\u00a0"),
        PROSE.replace("f", "\uff46"),  # as wide as a Chinese character
        PROSE.encode(),
    ],
)
def test_the_same_text_otherwise_spelt(other):
    assert prints_of([other]).digest == prints_of([PROSE]).digest
    assert shares_in([prints_of([PROSE])], [("a", other)]) == [1.0]


def test_another_text_is_another():
    for other in (PROSE[:-3], PROSE + "a", PROSE.upper(), PROSE.replace("19", "20"), ""):
        assert prints_of([other]).digest != prints_of([PROSE]).digest


def test_parts_are_one_text():
    lines = PROSE.splitlines(keepends=True)
    others = [("a", "something else\n"), *(("b", line) for line in lines), ("c", "more")]
    assert shares_in([prints_of([PROSE])], others) == [1.0]
    assert prints_of(lines) == prints_of([PROSE])


def test_shares_by_hand():
    seen, new = "a" * 30 + "\n", "b" * 50 + "\n"
    short = "c" * (LINE - 1) + "\n"
    documents = [
        prints_of([text]) for text in (seen + new, seen + seen + new, new, short + seen, "")
    ]
    others = [("x", seen + short + "d" * 99), ("y", b"\xff\n" + b"a" * 31)]
    shares = shares_in(documents, others)
    assert shares == [30 / 80, 60 / 110, 0.0, 30 / (30 + LINE - 1), 0.0]


def test_a_part_of_another_document_is_seen_by_its_lines():
    assert shares_in([prints_of([PROSE[: len(PROSE) // 2]])], [("a", PROSE)])[0] > 0.9
    assert shares_in([prints_of([PROSE])], [("a", PROSE[: len(PROSE) * 9 // 10])])[0] > 0.8
