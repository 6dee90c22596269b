"""The lm-evaluation-harness on a run: beside its own `hf` model, and beside plain NumPy."""

import functools
import json
from typing import Any

import numpy as np
import pytest

from lenext.errors import UserError
from lenext.models import load_pretrained
from tests.integrations.common import (
    BOS,
    CHAT,
    EOS,
    LENGTH,
    TEXT,
    VOCAB,
    log_likelihoods,
    under,
)

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402  # pyright: ignore[reportMissingImports]

from lenext.integrations import decoding, scoring  # noqa: E402
from lenext.integrations.lm_eval import LenextLM, filled_in, register  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture(scope="module")
def ours(workdir):
    """Reads as much at once as theirs."""
    return LenextLM(workdir, max_length=LENGTH)


@pytest.fixture(scope="module")
def drawing(workdir):
    """The same, by itself: to draw it takes its layers apart, and compiles what it scores anew."""
    return LenextLM(workdir, max_length=LENGTH)


@pytest.fixture(scope="module")
def theirs(folder):
    """The harness's own model of the same folder."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which the model hf wants, is not there")
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    kind: Any = HFLM
    return kind(str(folder), device="cpu", dtype="float32", batch_size=3)


def ask(model, kind, requests):
    return getattr(model, kind)(
        [Instance(kind, {}, args, i) for i, args in enumerate(requests)], disable_tqdm=True
    )


PAIRS = [
    ("Pass key A:", " 48213"),
    ("Pass key A: ", "48213"),  # whose space goes on
    ("Pass key Q: 712", "3"),  # of digits three are a word
    ("Pass key Q: 712", "4"),
    ("Pass key Q: 712", "4\nabcd"),
    ("", "Pass key"),
    ("", BOS + "abcd"),
    (BOS + "abcd", " efgh"),
    ("abcd<|eot_id|>", "efgh<|eot_id|>é"),
    (TEXT, " efgh"),
    (TEXT * 2, "abcd efgh"),
]


class TestBesideHf:
    def test_log_likelihoods(self, ours, theirs):
        tokens = [theirs.tok_decode([i]) for i in range(3, VOCAB)]
        tokens = [token for token in tokens if token and "\ufffd" not in token]
        pairs = [*PAIRS, *((context, x) for context in ("abcd", TEXT, "é") for x in tokens)]
        expected = ask(theirs, "loglikelihood", pairs)
        found = ask(ours, "loglikelihood", pairs)
        for pair, (value, greedy), (theirs_value, theirs_greedy) in zip(
            pairs, found, expected, strict=True
        ):
            assert value == pytest.approx(theirs_value, abs=1e-4), pair
            assert greedy == theirs_greedy, pair
        assert {greedy for _, greedy in found} == {True, False}

    def test_rolling_log_likelihoods(self, ours, theirs):
        texts = [(TEXT,), ("abcd",), (TEXT * 4 + "Pass",), (BOS + "Pass key",), ("",)]
        assert len(theirs.tok_encode(TEXT)) > LENGTH
        expected = ask(theirs, "loglikelihood_rolling", texts)
        np.testing.assert_allclose(
            ask(ours, "loglikelihood_rolling", texts), expected, atol=1e-4, rtol=1e-6
        )

    def test_texts_that_are_drawn(self, drawing, theirs):
        contexts = ["Pass key", "Pass key A: 48213\nabcd", "é", TEXT, BOS + "abcd"]
        (whole,) = ask(theirs, "generate_until", [("Pass key", {"until": [], "max_gen_toks": 12})])
        for how in (
            {"until": [], "max_gen_toks": 12},
            {"until": [whole[6:9]], "max_gen_toks": 12, "temperature": 0.0, "do_sample": False},
            {"until": whole[2:4], "max_new_tokens": 10},
        ):
            requests = [(context, how) for context in contexts]
            expected = [ask(theirs, "generate_until", [request])[0] for request in requests]
            assert ask(drawing, "generate_until", requests) == expected
            assert len(set(expected)) > 2

    def test_chats(self, workdir, theirs):
        ours = LenextLM(workdir)
        chat = [
            {"role": "system", "content": " be short "},
            {"role": "user", "content": "Pass key?"},
            {"role": "assistant", "content": "Answer: "},
        ]
        longer = [*chat, {"role": "user", "content": "again"}]
        assert ours.chat_template(True) == theirs.chat_template(True) == CHAT
        for messages in (chat, longer):
            for begins in (True, False):
                text = ours.apply_chat_template(messages, begins)
                assert text == theirs.apply_chat_template(messages, begins)
                assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert "be short" not in ours.apply_chat_template(longer)

    def test_a_prefix_of_one_s_own(self, workdir, folder, theirs):
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        kind: Any = HFLM
        other = kind(theirs.model, tokenizer=theirs.tokenizer, prefix_token_id=7)
        ours = LenextLM(workdir, prefix_token_id=7, max_length=LENGTH)
        pairs = [("", "abcd efgh"), ("abcd", " efgh")]
        for mine, yours in zip(
            ask(ours, "loglikelihood", pairs), ask(other, "loglikelihood", pairs), strict=True
        ):
            assert mine[0] == pytest.approx(yours[0], abs=1e-4)


class TestScoring:
    def test_methods_differ(self, workdir):
        values = {
            ask(LenextLM(workdir, method=method), "loglikelihood", [(TEXT, " efgh")])[0][0]
            for method in ("", "trained+infoscale", "rerope(window=4)", "windowed(window=8)")
        }
        assert len(values) == 4

    def test_one_reading_answers_all_that_is_asked_of_it(self, workdir, monkeypatch):
        ours, read = LenextLM(workdir), []
        figures = scoring._figures

        def noted(params, tokens, *rest, **static):
            read.append(tokens.shape)
            return figures(params, tokens, *rest, **static)

        monkeypatch.setattr(scoring, "_figures", noted)
        options = [("Pass key Q: 712", option) for option in "123456789"]
        found = ask(ours, "loglikelihood", options)
        assert read == [(1, 32)]
        assert len({value for value, _ in found}) == 9

    def test_batches_change_nothing(self, workdir, ours):
        other = LenextLM(workdir, max_length=LENGTH, batch_size="1")
        for mine, same in zip(
            ask(other, "loglikelihood", PAIRS), ask(ours, "loglikelihood", PAIRS), strict=True
        ):
            assert mine[0] == pytest.approx(same[0], abs=1e-5)

    @pytest.mark.parametrize(
        ("how", "rows"),
        [
            ({}, 4096 // 64),
            ({"batch_size": 3}, 3),
            ({"batch_size": "auto:2", "batch_tokens": "640"}, 10),
            ({"batch_tokens": 1}, 1),
            ({"max_batch_size": 2}, 2),
        ],
    )
    def test_sizes_of_batches(self, workdir, how, rows):
        assert LenextLM(workdir, **how)._rows_of(64) == rows

    def test_what_has_no_answer(self, ours, decoder):
        for pair in (("abcd", ""), ("key Q: 7", "1")):  # together "71", one token
            with pytest.raises(UserError, match=rf"^'{pair[1]}' after 'abcd|key Q: 7': has no tok"):
                ask(ours, "loglikelihood", [pair])
        with pytest.raises(
            UserError, match=r"continuation of \d+ tokens: should be at most max_le"
        ):
            ask(ours, "loglikelihood", [("abcd", TEXT * 3)])
        of_bytes = LenextLM(decoder)
        with pytest.raises(UserError, match="neither; model_args: prefix_token_id=10 takes a line"):
            ask(of_bytes, "loglikelihood_rolling", [("abcd",)])
        of_bytes = LenextLM(decoder, prefix_token_id=10)
        (whole,) = ask(of_bytes, "loglikelihood_rolling", [("für",)])
        expected = log_likelihoods(load_pretrained(decoder), [10, *"für".encode()])[0].sum()
        assert whole == pytest.approx(expected, abs=1e-4)


class TestDrawing:
    def test_draws_follow_the_seed_and_nothing_else(self, workdir, drawing):
        how = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 6, "until": []}
        requests = [("Pass key", how), ("Pass key", how), ("abcd efgh", how)]
        first = ask(drawing, "generate_until", requests)
        assert first[0] != first[1]
        other = LenextLM(workdir, max_length=LENGTH, batch_size=1)
        assert ask(other, "generate_until", requests) == first
        other._seed = 5
        assert ask(other, "generate_until", requests) != first

    def test_arguments_are_honoured(self, drawing):
        base = {"max_gen_toks": 6, "until": []}
        (greedy,) = ask(drawing, "generate_until", [("Pass key", base)])
        for how in ({"do_sample": True, "top_k": 1}, {"do_sample": True, "top_p": 1e-6},
                    {"do_sample": False, "temperature": 3.0, "top_p": 0.5}):  # fmt: skip
            assert ask(drawing, "generate_until", [("Pass key", base | how)]) == [greedy]
        (hot,) = ask(drawing, "generate_until", [("Pass key", base | {"temperature": 50.0})])
        assert hot != greedy

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {"temperature": 0.0}),
            ({"do_sample": True}, {"temperature": 1.0}),
            ({"temperature": 0.7, "top_k": 5}, {"temperature": 0.7, "top_k": 5}),
            ({"do_sample": False, "temperature": 0.7, "top_p": 0}, {"temperature": 0.0}),
            ({"do_sample": True, "temperature": 0.0}, {"temperature": 0.0}),
        ],
    )
    def test_arguments_are_read(self, workdir, given, expected):
        ours = LenextLM(workdir, max_gen_toks=9)
        prompt, sampling, until = ours._order("abcd", given)
        assert sampling == decoding.Sampling(**expected)
        assert (prompt.most, until) == (9, [EOS])

    def test_a_text_ends_at_its_token(self, drawing, monkeypatch):
        how = {"until": [], "max_gen_toks": 6}
        (whole,) = ask(drawing, "generate_until", [("Pass key", how)])
        ids = drawing.tok_encode(whole, add_special_tokens=False)
        monkeypatch.setattr(drawing.texts, "stops", (ids[2],))
        found = ask(drawing, "generate_until", [("Pass key", how)])
        assert found == [drawing.texts.decode(ids[:2])]

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"num_beams": 4}, "generation argument num_beams=4: is not supported"),
            ({"max_gen_toks": 48}, "max_gen_toks=48: should be below max_length=48"),
            ({"max_gen_toks": 0}, "max_gen_toks=0: should be a whole number from 1"),
            ({"temperature": -1.0, "do_sample": True}, r"temperature=-1\.0: should be at least 0"),
        ],
    )
    def test_what_cannot_be_drawn(self, drawing, how, message):
        with pytest.raises(UserError, match=message):
            ask(drawing, "generate_until", [("abcd", how)])

    def test_what_changes_nothing_is_taken(self, drawing):
        assert ask(drawing, "generate_until", [("abcd", {"num_beams": 1, "max_gen_toks": 6})])


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "model_args: workdir=DIR is missing"),
            ({"workdir": "nowhere"}, "workdir nowhere: holds no checkpoint; train there first"),
            ({"workdir": "W", "metod": "pi"}, "model_args has no 'metod': did you mean method"),
            ({"workdir": "W", "pretrained": "x"}, "model_args has no 'pretrained': choose from wo"),
            ({"workdir": "W", "method": "softmaxx"}, "unknown method 'softmaxx'; did you mean"),
            ({"workdir": "W", "weights": "best"}, "weights=best: should be one of params, ema"),
            ({"workdir": "W", "weights": "ema"}, "average"),
            ({"workdir": "W", "dtype": "float8"}, "dtype=float8: should be one of float32"),
            ({"workdir": "W", "max_length": 1}, "max_length=1: should be a whole number from 2 up"),
            ({"workdir": "W", "batch_size": "x"}, "batch_size=x: should be a whole number from 1"),
            ({"workdir": "W", "prefix_token_id": 403}, "prefix_token_id=403: .* from 0 to 402"),
            ({"workdir": "W", "tokenizer": "bytes"}, "tokenizer bytes: gives other ids than"),
        ],
    )
    def test_mistakes(self, workdir, arguments, message):
        given = {key: str(workdir) if x == "W" else x for key, x in arguments.items()}
        with pytest.raises(UserError, match=message):
            LenextLM.create_from_arg_obj(given)

    def test_a_masked_language_model_is_refused(self, encoder):
        with pytest.raises(UserError, match="holds a masked language model; the harness asks a de"):
            LenextLM(encoder)

    def test_what_the_method_lacks_is_told(self, workdir, capsys):
        LenextLM(workdir, method="lssar")
        assert capsys.readouterr().err == (
            "warning: lssar wants weights trained for it, which these were not "
            "(similarity, temperature, weighting)\n"
        )

    def test_another_type_to_compute_in(self, workdir, ours):
        half = LenextLM(workdir, dtype="bfloat16", param_dtype="bfloat16", max_length=LENGTH)
        assert half.get_model_info()["model_dtype"] == "bfloat16"
        ((value, _),), ((exact, _),) = (ask(m, "loglikelihood", PAIRS[:1]) for m in (half, ours))
        assert value != exact
        assert value == pytest.approx(exact, rel=0.05)

    def test_no_chat_template(self, decoder):
        with pytest.raises(UserError, match="has no chat template"):
            LenextLM(decoder).chat_template(True)

    def test_a_chat_template_of_another_name(self, workdir):
        ours = LenextLM(workdir)
        with pytest.raises(UserError, match="chat template 'tool': should be one of default"):
            ours.chat_template("tool")
        assert ours.chat_template(False) is None

    def test_the_command_line_is_filled_in(self):
        base = ["run", "--model", "lenext"]
        words = ["--tasks", "a", "--model_args", "workdir=b"]
        assert filled_in(["run", *words]) == [*base, "--batch_size", "auto", *words]
        assert filled_in(words) == [*base, "--batch_size", "auto", *words]
        assert filled_in(["run", "-b", "2", *words]) == [*base, "-b", "2", *words]
        assert filled_in(["run", "--config=c"]) == [*base, "--config=c"]
        assert filled_in(["run", "--model=lenext"])[-1] == "--model=lenext"
        assert filled_in(["ls", "tasks"]) == ["ls", "tasks"]
        with pytest.raises(UserError, match="--model hf: should be lenext"):
            filled_in(["run", "--model", "hf", *words])


# Whole evaluations


@pytest.fixture
def quiet(monkeypatch):
    """The harness as it is, but for what it asks of the machine and does to this process."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    # Its index of thousands of tasks takes ten seconds to make.
    init = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", True)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


DOCUMENTS = [
    {"question": "Pass key A:", "options": [" 48213", " 7"], "answer": 0, "text": TEXT},
    {"question": "abcd", "options": [" efgh", " abcd efgh"], "answer": 1, "text": "abcd efgh"},
    {"question": "Pass key Q: 712", "options": ["3", "4"], "answer": 0, "text": "Pass key Z"},
]
TASKS = {
    "tiny_choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks, on documents beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    for name, text in TASKS.items():
        head = {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")},
                               "cache_dir": str(folder / "cache")},
        }  # fmt: skip
        lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + text)
    return folder


def evaluate(model, tasks, names, **how):
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return lm_eval.simple_evaluate(
        model, tasks=list(names), bootstrap_iters=0, random_seed=None, numpy_random_seed=None,
        torch_random_seed=None,
        task_manager=TaskManager(include_path=str(tasks)), **how,
    )  # fmt: skip


METHOD = "self_extend(window=8,group=2)+infoscale"


def test_three_ways_from_python(quiet, tasks, workdir):
    by_text = evaluate("lenext", tasks, TASKS, model_args=f"workdir={workdir},method={METHOD}")
    by_dict = evaluate(
        "lenext", tasks, TASKS, model_args={"workdir": str(workdir), "method": METHOD}, batch_size=2
    )
    model = LenextLM(workdir, method=METHOD)
    by_model = evaluate(model, tasks, TASKS)
    for name, figures in by_text["results"].items():
        for metric, value in figures.items():
            for other in (by_dict, by_model):
                same = other["results"][name][metric]
                assert same == (pytest.approx(value) if isinstance(value, float) else value)
    assert by_text["config"]["lenext_method"] == METHOD
    # The definition, in NumPy: bits over bytes of all documents.
    plain = under(workdir, METHOD)
    texts = [document["text"] for document in DOCUMENTS]
    total = sum(
        log_likelihoods(plain, [model.prefix_token_id, *model.tok_encode(text)])[0].sum()
        for text in texts
    )
    bits = -total / np.log(2) / sum(len(text.encode()) for text in texts)
    found = by_text["results"]["tiny_texts"]["bits_per_byte,none"]
    assert found == pytest.approx(bits, rel=1e-5)
    trained = evaluate("lenext", tasks, ["tiny_texts"], model_args=f"workdir={workdir}")
    assert trained["results"]["tiny_texts"]["bits_per_byte,none"] != pytest.approx(found, rel=1e-3)


def test_errors_are_bootstrapped_in_this_process(monkeypatch):
    """A fork beside JAX's threads warns, which is an error here."""
    from lm_eval.api.metrics import (  # pyright: ignore[reportMissingImports]
        perplexity,
        stderr_for_metric,
    )

    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    register()
    of = stderr_for_metric(perplexity, 200)
    assert of is not None
    assert of([-1.0, -2.0, -3.0]) > 0


def test_chats_of_a_task(quiet, tasks, workdir, monkeypatch):
    seen = []
    model = LenextLM(workdir)
    encode = model.texts.encode
    monkeypatch.setattr(
        model.texts, "encode", lambda text, start=None: seen.append(text) or encode(text, start)
    )
    evaluate(model, tasks, ["tiny_answers"], apply_chat_template=True)
    assert seen[0] == f"{BOS}<user>Pass key A:<|eot_id|><assistant>"


def test_the_command(quiet, call, tasks, workdir, tmp_path):
    outcome = call(
        "integrations.lm_eval", "run", "--tasks", "tiny_choices,tiny_answers",
        "--include_path", tasks, "--output_path", tmp_path, "--model_args",
        f"workdir={workdir},method={METHOD}", "max_length=64",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "|tiny_choices|" in outcome.out
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "lenext"
    assert results["config"]["model_args"] == {
        "workdir": str(workdir), "method": METHOD, "max_length": 64
    }  # fmt: skip
    assert results["config"]["lenext_method"] == METHOD
    assert results["config"]["batch_size"] == "auto"
    by_hand = evaluate(LenextLM(workdir, method=METHOD), tasks, ["tiny_choices", "tiny_answers"])
    for name, metric in (("tiny_choices", "acc,none"), ("tiny_answers", "exact_match,none")):
        assert results["results"][name][metric] == by_hand["results"][name][metric]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("workdir=W,metod=pi", "model_args has no 'metod': did you mean method? choose from"),
        ("method=pi", "model_args: workdir=DIR is missing"),
        ("workdir=W,method=rerope(windw=4)", "method 'rerope' has no option 'windw'"),
    ],
)
def test_mistakes_of_the_command_are_one_line(quiet, fails, tasks, workdir, arguments, message):
    words = ["run", "--tasks", "tiny_choices", "--include_path", tasks, "--model_args"]
    line = fails("integrations.lm_eval", *words, arguments.replace("W", str(workdir)))
    assert line.startswith(message)


def test_a_task_that_the_harness_does_not_know(quiet, fails, workdir):
    words = ["run", "--tasks", "no_such_task", "--model_args", f"workdir={workdir}"]
    assert fails("integrations.lm_eval", *words) == "Tasks not found: no_such_task"
