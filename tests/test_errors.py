import pytest

from lenext.data.tokenizer_files import library_errors
from lenext.errors import LONGEST, UserError, one_line
from lenext.reporting.records import Cell, read_cell


def test_a_message_is_one_line_that_can_be_printed():
    assert one_line("two\nlines,  é\t\0 \33[2J \ud800") == r"two lines, é \x00 \x1b[2J \ud800"
    assert str(UserError("a\n b")) == "a b"
    line = str(UserError(f"begin {'x' * 10_000} end"))
    assert len(line) < LONGEST
    assert line.startswith("begin xx")
    assert line.endswith("xx end")


class PanicException(BaseException):  # PyO3's, which no module has
    pass


def test_a_panic_of_the_library_is_a_line(capfd):
    with pytest.raises(UserError, match=r"^some\.json: boom$"), library_errors("some.json"):
        raise PanicException("boom\nbacktrace")
    with pytest.raises(KeyboardInterrupt), library_errors("some.json"):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == ""


SUMS = {
    "metric": "loss", "positions": None, "predictions": 4, "numerator": [1.0, 2],
    "denominator": [2.0, 2.0],
}  # fmt: skip
CELL = {
    "length": 4, "protocol": "full_context", "documents": [0, 1], "sequences": 2, "tokens": 8,
    "seconds": 1.0, "compile_seconds": 0, "peak_bytes": 1, "flops": 1.0, "cache_bytes": None,
    "unsuited": [], "sums": [SUMS],
}  # fmt: skip


def test_a_cell_is_of_the_types_that_it_says():
    assert read_cell(CELL) == Cell(**CELL)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        CELL | {"more": 1},
        {key: value for key, value in CELL.items() if key != "tokens"},
        CELL | {"length": True},
        CELL | {"documents": [0, "1"]},
        CELL | {"documents": [0]},
        CELL | {"sums": [SUMS | {"numerator": [1.0]}]},
        CELL | {"sums": [SUMS | {"numerator": [1.0, 1e308]}]},
        CELL | {"sums": [SUMS | {"positions": [1]}]},
        CELL | {"sums": [{"metric": "loss"}]},
    ],
)
def test_what_is_no_cell_is_refused(content):
    with pytest.raises(ValueError, match="should"):
        read_cell(content)
