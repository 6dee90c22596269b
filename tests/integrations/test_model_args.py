"""Arguments that are text; and the command where the harness is missing."""

import sys

import pytest

from lenext.errors import UserError
from lenext.integrations.model_args import split_arguments, whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workdir=a,method=b(c=1,d=2)+e", {"workdir": "a", "method": "b(c=1,d=2)+e"}),
        ("method=b(c='x,)y',d=2)|e,workdir=a", {"workdir": "a", "method": "b(c='x,)y',d=2)|e"}),
        ("imports='a.py,b.py',workdir=it's", {"workdir": "it's", "imports": "a.py,b.py"}),
        (" workdir=a , max_length=007,", {"workdir": "a", "max_length": "007"}),
        ("workdir=a=b", {"workdir": "a=b"}),
        ("", {}),
    ],
)
def test_commas_in_brackets_and_quotes_are_the_value_s(text, expected):
    assert split_arguments(text) == expected


@pytest.mark.parametrize("text", ["workdir", "workdir=a,4)", "=a", "workdir=a,workdir=b"])
def test_what_is_no_argument(text):
    with pytest.raises(UserError, match=r"^model_args '"):
        split_arguments(text)


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("x", "from 2 up"),
        (1, "from 2 up"),
        (True, "from 2 up"),
        (2.5, "from 2 up"),
        (9, "from 2 to 8"),
    ],
)
def test_whole_numbers(value, right):
    with pytest.raises(UserError, match=rf"^size={value}: should be a whole number {right}$"):
        whole_number("size", value, 2, 8 if "to" in right else None)
    assert whole_number("size", "8", 2, 8) == whole_number("size", 8, 2) == 8


def test_without_the_harness(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    line = fails("integrations.lm_eval", "run", "--tasks", "a")
    assert line.startswith("this takes the package lm_eval")
    assert 'pip install "lm_eval>=0.4.13,<0.5"' in line
    monkeypatch.delitem(sys.modules, "lenext.integrations.lm_eval", raising=False)
    with pytest.raises(ImportError, match="this takes the package lm_eval"):
        import lenext.integrations.lm_eval  # noqa: F401
