"""`python -m lenext.generate`: what it prints, and what it refuses."""

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lenext.data import ByteTokenizer
from lenext.models import generation, load_pretrained
from lenext.workdirs import pretrained
from tests.training.common import REPOSITORY, snapshot


def greedy(model, prompt, count):
    """The likeliest bytes one after another, from the full context each time."""
    ids = list(prompt.encode())
    for _ in range(count):
        ids.append(int(np.asarray(model(np.asarray([ids], np.int32)))[0, -1].argmax()))
    return ids


def test_prints_the_prompt_and_what_follows(call, decoder):
    before = snapshot(decoder)
    outcome = call(
        "generate", f"--workdir={decoder}", "--prompt=für ", "--max_tokens=9", "--temperature=0"
    )
    expected = ByteTokenizer().decode(np.asarray(greedy(load_pretrained(decoder), "für ", 9)))
    assert (outcome.code, outcome.err) == (0, "")
    # A broken character at the end is never shown.
    assert outcome.out == expected.rstrip("\ufffd") + "\n"
    assert snapshot(decoder) == before


def test_draws_follow_the_seed(call, decoder):
    words = [
        f"--workdir={decoder}",
        "--prompt=def ",
        "--max_tokens=20",
        "--top_k=50",
        "--top_p=0.9",
    ]
    texts = [call("generate", *words, f"--seed={seed}").out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_another_method_is_drawn_from_with_a_warning(call, decoder):
    words = [f"--workdir={decoder}", "--prompt=def ", "--max_tokens=3", "--temperature=0"]
    free = call("generate", *words, "--method=rerope(window=4)+infoscale")
    assert (free.code, free.err) == (0, "")
    trained = call("generate", *words, "--method=lssar")
    assert trained.code == 0
    assert trained.err == (
        "warning: lssar wants weights trained for it, which these were not "
        "(similarity, temperature, weighting)\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt=a"], "--workdir=DIR is missing"),
        (["--workdir=W"], "--prompt=TEXT is missing or empty"),
        (["--workdir=W", "--prompt="], "--prompt=TEXT is missing or empty"),
        (
            ["--workdir=W", "--prompt_file=nowhere"],
            "--prompt_file=nowhere: cannot be read (No such",
        ),
        (["--workdir=W", "--prompt_file=/dev/null"], "--prompt_file=/dev/null: is empty"),
        (["--workdir=W", "--prompt=a", "--prompt_file=b"], "--prompt and --prompt_file: should be"),
        (["--workdir=W", "--prompt=a", "--bos=<s>"], "config.data.bos='<s>': the tokenizer has no"),
        (["--workdir=nowhere", "--prompt=a"], "workdir nowhere: holds no checkpoint; train there"),
        (
            ["--workdir=W", "--prompt=a", "--method=softmaxx"],
            "unknown method 'softmaxx'; did you mean 'softmax",
        ),
        (["--workdir=W", "--prompt=a", "--max_tokens=0"], "max_tokens=0: should be at least 1"),
        (["--workdir=W", "--prompt=a", "--max_tokens=x"], "flag --max_tokens=x"),
        (["--workdir=W", "--prompt=a", "--temperature=-1"], "temperature=-1.0: should be at least"),
        (["--workdir=W", "--prompt=a", "--top_p=2"], "top_p=2.0: should be above 0 and at most 1"),
        (["--workdir=W", "--prompt=a", "--top_k=-2"], "top_k=-2: should be at least 0"),
        (["--workdir=W", "--prompt=a", "--seed=-1"], "seed=-1: should be from 0 to 2^32 - 1"),
        (["--workdir=W", "--prompt=a", f"--seed={2**32}"], "seed=4294967296: should be from 0 to"),
        (["--workdir=W", "--prompt=a", "--length=3"], "Unknown command line flag 'length'"),
        (["--workdir=W", "prompt"], "argument 'prompt': should be a flag such as --workdir=DIR"),
    ],
)
def test_mistakes(fails, decoder, words, message):
    words = [word.replace("=W", f"={decoder}") for word in words]
    assert fails("generate", *words).startswith(message)


def test_prompts_of_a_file_and_of_standard_input(call, fails, decoder, tmp_path, monkeypatch):
    words = ["generate", f"--workdir={decoder}", "--max_tokens=2", "--top_k=1"]
    prompt = b"def \n\xff" * 9
    (tmp_path / "prompt").write_bytes(prompt)
    of_file = call(*words, f"--prompt_file={tmp_path / 'prompt'}")
    assert (of_file.code, of_file.err) == (0, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt)))
    assert call(*words, "--prompt=-") == of_file
    assert of_file.out.startswith(prompt.decode(errors="replace"))
    assert fails(*words, "--prompt=-") == "--prompt=-: standard input is empty"  # all is read


@pytest.mark.parametrize(
    ("flags", "start", "end"),
    [
        ([], [7, 200], "bc"),
        (["--bos=none"], [], "bc"),
        (["--bos=auto"], [], "bc"),  # bytes have no start of their own
        (["--bos=9", "--ignore_eos"], [9], "bcde"),
    ],
)
def test_a_text_starts_as_the_run_says_and_ends_at_any_end(
    call, decoder, tmp_path, monkeypatch, flags, start, end
):
    """Against tokens that are drawn by heart."""
    prompts = []

    def drawn(model, prompt, max_tokens, *, sampling, seed):
        prompts.append(prompt[0].tolist())
        yield from np.array([[98], [99], [256], [100], [257], [101]][:max_tokens])

    monkeypatch.setattr(generation, "generate", drawn)
    workdir = shutil.copytree(decoder, tmp_path / "run")
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["data"] |= {"bos": "7,200", "eos": "257,256"}
    path.write_text(json.dumps(config))
    outcome = call("generate", f"--workdir={workdir}", "--prompt=a", "--max_tokens=6", *flags)
    assert (outcome.code, outcome.out) == (0, f"a{end}\n")
    assert prompts == [[*start, ord("a")]]


def test_a_masked_language_model_has_no_next_token(fails, trained):
    line = fails("generate", f"--workdir={trained}", "--prompt=a")
    assert line == (
        f"workdir {trained}: holds a masked language model; text is drawn from a decoder "
        "(config.model.family=decoder)"
    )


def test_a_config_that_is_not_this_runs(fails, decoder, tmp_path):
    workdir = shutil.copytree(decoder, tmp_path / "run")
    path = workdir / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"hidden_size": 16', '"hidden_size": 24'))
    line = fails("generate", f"--workdir={workdir}", "--prompt=a")
    assert "embedding.embedding is [258, 16] there and [258, 24] in the config's model" in line
    path.write_text(text.replace('"hidden_size"', '"hiden_size"'))
    line = fails("generate", f"--workdir={workdir}", "--prompt=a")
    assert line.startswith("the run's config.json: ")
    assert "hiden_size" in line
    path.write_text("{")
    assert "should be JSON" in fails("generate", f"--workdir={workdir}", "--prompt=a")


def test_help_lists_the_flags(call):
    outcome = call("generate", "--help")
    assert outcome.code == 0
    for flag in (
        "workdir",
        "prompt",
        "prompt_file",
        "bos",
        "max_tokens",
        "method",
        "temperature",
        "top_k",
        "top_p",
        "seed",
    ):
        assert f"--{flag}=" in outcome.out


def test_a_prompt_that_is_no_text_is_bytes(call, decoder):
    """The shell's bytes arrive as lone surrogates."""
    outcome = call("generate", f"--workdir={decoder}", "--prompt=a\udcff", "--max_tokens=2")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("a\ufffd")


def test_a_reader_that_goes_away_is_no_error(decoder):
    words = [sys.executable, "-m", "lenext.generate", f"--workdir={decoder}", "--prompt=abc",
             "--max_tokens=200"]  # fmt: skip
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"abc"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_space_before_a_word_is_kept(monkeypatch, call, decoder):
    """A decoder of pieces that drops the first one's space, as SentencePiece's do."""

    class Pieces(ByteTokenizer):
        def decode(self, ids):
            return "".join(f" {i}" for i in ids).removeprefix(" ")

    monkeypatch.setattr(pretrained, "get_tokenizer", lambda name, **_: Pieces())
    outcome = call("generate", f"--workdir={decoder}", "--prompt=a", "--max_tokens=2")
    assert re.fullmatch(r"a \d+ \d+\n", outcome.out)
