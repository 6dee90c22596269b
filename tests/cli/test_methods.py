"""python -m lenext.methods: the catalogue, and one method explained."""

import pytest

from lenext.attention import method_names


def test_the_catalogue(call):
    outcome = call("methods")
    assert (outcome.code, outcome.err) == (0, "")
    firsts = [line.split()[0] for line in outcome.out.splitlines() if line[:1].strip()]
    assert [name for name in firsts if name in method_names()] == method_names()


def test_one_method(call):
    outcome = call("methods", "infoscale", "--train_length=64", "--head_dim=128")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("infoscale  (L = 64, H = 128)\n")
    temperatures = "   1.000   1.077   1.149   1.215   1.277   1.336   1.392"
    assert f"    temperature{temperatures}\n" in outcome.out
    assert "fused: yes" in outcome.out


def test_the_page(call):
    outcome = call("methods", "--markdown")
    assert outcome.code == 0
    assert "\n| name | what it changes | needs | reaches | paper |\n" in outcome.out


def test_help(call):
    outcome = call("methods", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    for name in ("lenext.methods", "--train_length=64", "--head_dim=64", "--markdown"):
        assert name in outcome.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "unknown method 'nonsense'; choose from softmax"),
        (["rerope(width=3)"], "has no option 'width'; choose from"),
        (["rerope(window=0)"], "option window=0: should be at least 1"),
        (["rerope", "+", "infoscale"], "argument '+': should be one method"),
        (["softmax", "--head_dim=7"], "head_dim 7 is odd"),
        (["softmax", "--train_length=1"], "--train_length=1"),
        (["softmax", "--length=8"], "Unknown command line flag 'length'"),
        (["softmax", "--markdown"], "--markdown: should stand alone"),
        (["--head_dim=32"], "--head_dim: should come with a method to explain"),
    ],
)
def test_mistakes(fails, words, says):
    assert says in fails("methods", *words)
