"""The runner: what is done once, what is done again, and what it says of mistakes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import matplotlib.image
import numpy as np
import pytest
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

from experiments import real_model
from experiments import run as runner
from experiments.sizes import SIZES, encoder, with_changes
from lenext.attention.catalogue import CATALOGUE
from lenext.config import plain, read_methods
from lenext.errors import UserError
from lenext.importing import import_checkpoint
from lenext.reporting.pictures import draw_metrics
from lenext.reporting.records import Row
from lenext.reporting.tables import metric_table, page, provenance_notes
from lenext.sweeps import runs as experiment_runs
from lenext.sweeps.experiment import Experiment, _pooled, baseline_of, collect
from lenext.sweeps.progress import ASSUMED, Rates
from lenext.sweeps.runs import Run, alone, over_seeds, train_run
from tests.training.common import REPOSITORY, Outcome, snapshot, tiny_config, tiny_decoder_config

OWN = """
import dataclasses

import jax.numpy as jnp

import lenext
from experiments.sizes import encoder, with_changes
from lenext.reporting.tables import metric_table, page, provenance_notes
from lenext.attention.axes.axis import Temperature, option
from lenext.attention.catalogue import Entry
from lenext.sweeps.experiment import Experiment
from lenext.sweeps.runs import over_seeds


@dataclasses.dataclass(frozen=True)
class PowerLength(Temperature):
    exponent: float = option(0.1, float, at_least=0.0)

    def __call__(self, rows, q, params):
        return jnp.maximum((rows.n / rows.train_length) ** self.exponent, 1.0)


lenext.register("power_length", Entry(temperature=PowerLength()))


def runs(size):
    config, seeds = encoder(size)
    config = with_changes(
        config, training__steps=2, training__eval_every=2, model__hidden_size=16,
        model__intermediate_size=32, model__key_size=8, data__train_length=16, data__batch_size=4,
        eval__lengths="16,48", eval__documents=4, eval__tokens=512, eval__bootstrap=100,
    )
    config.evaluators.validation.update(length=16, documents=4, tokens=128)
    return over_seeds("softmax", config, ("softmax", "rerope+power_length"), seeds)


def report(content):
    table = metric_table(content["records"], "loss")
    return {".md": page("Powers of the length", [("loss", table)], provenance_notes(content))}


EXPERIMENT = Experiment("powers", runs, "softmax", ("loss",), report)
"""
"""What a user may write who has a temperature to try."""

KEYS = {"config", "seeds", "tokens", "steps", "git", "results_version", "fingerprint", "versions"}


@pytest.fixture
def tiny(data_dir, monkeypatch):
    """Two trainings of two seeds each, of seconds, in place of all experiments."""

    def runs(size):
        assert size in SIZES
        config = tiny_config(data_dir)
        config.training.update(steps=4, eval_every=4, checkpoint_every=2)
        changed = with_changes(config, model__method="nope")
        return over_seeds("softmax", config, ("softmax", "rerope"), (0, 1)) + over_seeds(
            "nope", changed, {"no positions": "nope"}, (0, 1)
        )

    def report(content):
        records, title = content["records"], "of a test"
        table = metric_table(records, "accuracy")
        return {
            ".md": page(title, [("accuracy", table)], provenance_notes(content)),
            ".png": draw_metrics(records, {"accuracy": "accuracy", "loss": "loss"}, 16, title),
        }

    experiment = Experiment("tiny", runs, "softmax", ("accuracy", "loss"), report)
    monkeypatch.setattr(runner, "read", lambda name: experiment)
    return experiment


@pytest.fixture
def call(monkeypatch, capsys):
    """Returns a caller of the runner's `main`, as `python -m experiments.run` has it."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["experiments.run", *map(str, words)])
        capsys.readouterr()
        code, known = 0, set(runner.flags.FLAGS)
        with flagsaver.flagsaver():
            try:
                runner.cli.guard("usage", runner.main, interrupted="interrupted")
            except SystemExit as end:
                code = end.code
            for name in set(runner.flags.FLAGS) - known:
                delattr(runner.flags.FLAGS, name)  # they are defined at every call
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def places(tmp_path):
    return f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"


def done(folder):
    """When what is kept of runs was written, by path."""
    kept = [*folder.glob("*/outcome.json"), *folder.glob("*/evaluations/*.json")]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in kept}


def test_trains_evaluates_and_writes_once(tiny, call, places, tmp_path):
    listed = call("tiny", "--dry-run", *places)
    assert listed.code == 0
    assert "  3  nope     seed 1" in listed.out
    assert listed.out.count("to be trained, about 1 min") == 4
    assert not (tmp_path / "results").exists()
    changed = call("tiny", "--dry-run", "--config.model.key_size=4", *places)
    keys = [{line.split()[4] for line in x.out.splitlines()[:-1]} for x in (listed, changed)]
    assert len(keys[0]) == len(keys[1]) == 4
    assert not keys[0] & keys[1]

    first = call("tiny", *places)
    assert first.code == 0, first.err
    assert "[3/4] nope, seed 0: to be trained; about 1 min to go\n" in first.out
    assert "evaluating rerope (2 of 2)" in first.out
    content = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert content.keys() >= KEYS
    assert (content["seeds"], content["steps"], content["tokens"]) == ([0, 1], 4, 4 * 4 * 16)
    assert content["config"] == plain(tiny.runs("cpu")[0].config)
    assert content["runs"][2]["changes"] == ["config.model.method ('nope', was 'softmax')"]
    assert len({run["key"] for run in content["runs"]}) == 4
    records = content["records"]
    assert [*dict.fromkeys(r["method"] for r in records)] == ["softmax", "rerope", "no positions"]
    assert {len(r["by_seed"]) for r in records} == {2}
    table = (tmp_path / "results" / "tiny.md").read_text()
    assert "| no positions | nope | " in table
    assert matplotlib.image.imread(tmp_path / "results" / "tiny.png").std() > 0.05

    before = done(tmp_path / "runs")
    assert len(before) == 4 + 6
    again = call("tiny", *places)
    assert again.code == 0
    assert "[4/4] nope, seed 1: done\n" in again.out
    assert done(tmp_path / "runs") == before
    assert json.loads((tmp_path / "results" / "tiny.json").read_text()) == content
    listed = call("tiny", "--dry-run", *places).out
    assert listed.count("  done\n") == 4
    assert listed.endswith("nothing is left to do; without --dry-run the tables are made anew\n")

    (tmp_path / "results" / "tiny.md").unlink()
    assert call("tiny", "--tables", *places).code == 0
    assert (tmp_path / "results" / "tiny.md").read_text() == table


def test_a_file_of_the_users_own_runs_once(call, places, data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    path = tmp_path / "my-powers.py"
    path.write_text(OWN)
    first = call(path, "--size=smoke", *places)
    assert first.code == 0, first.err
    assert "evaluating rerope+power_length (2 of 2)" in first.out
    written = [tmp_path / "results" / f"powers.{end}" for end in ("json", "md", "runs.tar.xz")]
    assert first.out.endswith(f"results: {', '.join(map(str, written))}\n")
    content, table = (file.read_text() for file in written[:2])
    assert {r["method"] for r in json.loads(content)["records"]} == {
        "softmax",
        "rerope+power_length",
    }
    assert "| rerope+power_length | softmax | " in table

    before = done(tmp_path / "runs")
    assert len(before) == 1 + 2
    again = call(path, "--size=smoke", *places)
    assert again.code == 0, again.err
    assert "[1/1] softmax, seed 0: done\n" in again.out
    assert done(tmp_path / "runs") == before
    assert written[0].read_text() == content

    written[1].unlink()
    assert call(path, "--tables", *places).code == 0
    assert written[1].read_text() == table


def test_results_go_by_default_where_nothing_is_committed(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    for size in SIZES:
        outcome = call("mine.py", "--tables", f"--size={size}")
        assert "error: runs/results/powers.json: cannot be read" in outcome.err
        into = "runs/smoke" if size == "smoke" else "runs/results"
        outcome = call("passkey", "--tables", f"--size={size}")
        assert f"error: {into}/passkey.json: cannot be read" in outcome.err


NO_ROW = "powers: baseline 'lssa' is no row; rows are softmax, rerope+power_length"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.py: cannot be read (No such file or directory)"),
        ("\nx = nope\n", "mine.py, line 2: raised NameError: name 'nope' is not defined"),
        ("def f(:\n", "mine.py, line 1: raised SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import sys\nsys.exit(0)\n", "mine.py, line 2: raised SystemExit: 0"),
        (
            OWN.replace('"power_length"', '"rerope"'),
            "raised ValueError: name 'rerope': lenext has a method of that name",
        ),
        ("x = 1\n", "mine.py: should end on EXPERIMENT, which is to be a lenext.sweeps."),
        ("EXPERIMENT = 1\n", "mine.py: should end on EXPERIMENT"),
        (OWN.replace('"powers", runs, "softmax"', '"powers", runs, "lssa"'), NO_ROW),
        (OWN.replace("rerope+power", "rerop+power"), "method 'rerop'; did you mean 'rerope'"),
        (OWN.replace("encoder(size)", "encoder(size)[0], ()"), "powers: baseline 'softmax' is no"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_one_line(call, places, monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    outcome = call("mine.py", "--size=smoke", *places)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert not (tmp_path / "runs").exists()


def test_runs_of_several_machines_are_collected(tiny, call, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, numbers in ((here, (0, 3)), (there, (1, 2))):
        for number in numbers:
            assert call("tiny", f"--only={number}", f"--runs={folder}").code == 0
    assert len(done(here)) == 2 + 3
    before = snapshot(there)
    out = call("tiny", f"--runs={here}", f"--also={there}", f"--results={tmp_path / 'results'}")
    assert out.code == 0, out.err
    assert len(done(here)) == 2 + 3
    assert snapshot(there) == before
    whole = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert [run["seed"] for run in whole["runs"]] == [0, 1, 0, 1]


def test_a_training_of_another_machine_is_evaluated_here(tiny, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    run = tiny.runs("cpu")[2]
    with alone(run, there):
        train_run(run, there)
    before = snapshot(there)
    runner.complete(run, here, [here, there])
    assert run.outcome(here).read_text() == run.outcome(there).read_text()
    assert len(done(here)) == 2
    assert snapshot(there) == before


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Where the first test that wants a whole sweep makes it for all of them."""
    return tmp_path_factory.mktemp("swept")


class TestKept:
    """Runs in one file, taken where nothing else of them is."""

    @pytest.fixture
    def kept(self, tiny, call, swept, tmp_path):
        """The results of a whole sweep, of whose runs nothing else is left."""
        whole = swept / "results"
        if not whole.exists():
            assert call("tiny", f"--runs={swept / 'runs'}", f"--results={whole}").code == 0
        return shutil.copytree(whole, tmp_path / "results")

    def places(self, tmp_path, kept):
        return f"--runs={tmp_path / 'here'}", f"--results={tmp_path / 'anew'}", f"--from={kept}"

    def is_a_mistake(self, outcome, message):
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1

    def test_give_the_same_table_and_nothing_is_done(self, call, kept, monkeypatch, tmp_path):
        monkeypatch.setattr(experiment_runs, "train", None)
        monkeypatch.setattr(experiment_runs, "evaluate_run", None)
        done = call("tiny", *self.places(tmp_path, kept))
        assert done.code == 0, done.err
        assert "6 evaluations taken" in done.out
        assert "to be trained" not in done.out
        assert snapshot(tmp_path / "anew") == snapshot(kept)
        again = call("tiny", *self.places(tmp_path, kept))
        assert "0 evaluations taken" in again.out

    def test_a_new_row_alone_is_trained_for(self, tiny, call, kept, monkeypatch, tmp_path):
        def runs(size):
            found = tiny.runs(size)
            return [
                run
                if run.name == "nope"
                else dataclasses.replace(run, rows={**run.rows, "pi": "pi"})
                for run in found
            ]

        more = dataclasses.replace(tiny, runs=runs)
        monkeypatch.setattr(runner, "read", lambda name: more)
        evaluated = []
        evaluate = experiment_runs.evaluate_run
        monkeypatch.setattr(
            experiment_runs,
            "evaluate_run",
            lambda config, *a, **k: (
                evaluated.append(config.eval.methods) or evaluate(config, *a, **k)
            ),
        )
        done = call("tiny", *self.places(tmp_path, kept))
        assert done.code == 0, done.err
        assert evaluated == ["pi", "pi"]
        old, new = (
            json.loads((folder / "tiny.json").read_text())["records"]
            for folder in (kept, tmp_path / "anew")
        )
        same = [record for record in new if record["method"] != "pi"]
        marks = {"best": None, "worst": None}  # pi has a part in them
        assert [r | marks for r in same] == [r | marks for r in old]
        assert len(new) == len(old) * 4 // 3

    def test_of_a_sweep_that_failed(self, tiny, call, places, monkeypatch, tmp_path):
        train, trained = experiment_runs.train, []

        def once(config, workdir):
            trained.append(config.seed)
            if len(trained) == 2:
                raise UserError("no room")
            return train(config, workdir)

        monkeypatch.setattr(experiment_runs, "train", once)
        assert call("tiny", *places).code == 2
        done = call("tiny", *self.places(tmp_path, tmp_path / "results"))
        assert done.code == 0, done.err
        assert "2 evaluations taken" in done.out
        assert trained == [0, 1, 1, 0, 1]

    def test_of_a_sweep_that_was_told_to_stop_while_it_evaluates(
        self, tiny, call, places, monkeypatch, tmp_path
    ):
        def told(*args, **kwargs):
            signal.raise_signal(signal.SIGTERM)

        before = signal.getsignal(signal.SIGTERM)
        evaluate = experiment_runs.evaluate_run
        monkeypatch.setattr(experiment_runs, "evaluate_run", told)
        stopped = call("tiny", *places)
        assert stopped.code == 75
        assert stopped.err.endswith(
            "stopped by SIGTERM; the same command goes on from what is written\n"
        )
        assert signal.getsignal(signal.SIGTERM) is before
        assert (tmp_path / "results" / "tiny.runs.tar.xz").exists()
        monkeypatch.setattr(experiment_runs, "evaluate_run", evaluate)
        assert call("tiny", *places).code == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "should be a file that an experiment's runs were kept in"),
            (b"", "damaged"),
            (b"nothing", "damaged"),
        ],
    )
    def test_that_are_none_are_one_line(self, tiny, call, content, message, tmp_path):
        if content is not None:
            (tmp_path / "tiny.runs.tar.xz").write_bytes(content)
        self.is_a_mistake(call("tiny", *self.places(tmp_path, tmp_path)), message)

    @pytest.mark.parametrize("share", [0.3, 0.95])
    def test_that_are_cut_are_one_line(self, call, kept, share, tmp_path):
        path = kept / "tiny.runs.tar.xz"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        self.is_a_mistake(call("tiny", *self.places(tmp_path, kept)), "damaged")

    def test_reach_nowhere_else(self, tiny, call, tmp_path):
        with tarfile.open(tmp_path / "tiny.runs.tar.xz", "w:xz") as archive:
            archive.addfile(tarfile.TarInfo("../outside"), None)
        self.is_a_mistake(call("tiny", *self.places(tmp_path, tmp_path)), "damaged")
        assert not (tmp_path / "outside").exists()


def test_two_processes_do_not_train_the_same(tiny, tmp_path, capsys):
    run, order = tiny.runs("cpu")[0], []

    def second():
        with alone(run, tmp_path):
            order.append("second")

    with alone(run, tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for another process" not in capsys.readouterr().out:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=60)
    assert order == ["first", "second"]


def test_a_row_of_fewer_seeds_is_compared_on_those(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    config.eval.lengths = "16"

    def runs(size):
        del size
        return over_seeds("softmax", config, ("softmax",), (0, 1)) + over_seeds(
            "nope", with_changes(config, model__method="nope"), ("nope",), (1,)
        )

    experiment = Experiment("few", runs, "softmax", ("loss",), lambda content: {})
    for run in runs("cpu"):
        runner.complete(run, tmp_path, [tmp_path])
    records = collect(experiment, runs(""), "cpu", [tmp_path])["records"]
    softmax, nope = records
    assert len(softmax["by_seed"]) == 2
    assert nope["difference"] == pytest.approx(nope["by_seed"][0] - softmax["by_seed"][1], abs=1e-5)


def test_a_run_that_diverges_is_a_result(data_dir, tmp_path, capsys):
    config = tiny_decoder_config(data_dir)
    config.optimizer.update(name="lion", learning_rate=1e30, warmup_steps=0, clip_norm=1e30)
    (run,) = over_seeds("softmax", config, ("softmax",), (0,))
    runner.complete(run, tmp_path, [tmp_path])
    outcome = json.loads(run.outcome(tmp_path).read_text())
    assert "stopped; no checkpoint was written yet" in outcome["stopped"]
    assert outcome["stopped"] in capsys.readouterr().out
    before = done(tmp_path)
    runner.complete(run, tmp_path, [tmp_path])
    assert done(tmp_path) == before
    assert runner.state(run, [tmp_path]) == "diverged"
    # It has no row, and stands among the runs.
    other = over_seeds("nope", with_changes(tiny_decoder_config(data_dir), model__method="nope",
                       training__steps=2, eval__lengths="16"), ("nope",), (0,))  # fmt: skip
    runner.complete(other[0], tmp_path, [tmp_path])
    experiment = Experiment("x", lambda size: [run, *other], "nope", ("loss",), lambda content: {})
    content = collect(experiment, [run, *other], "cpu", [tmp_path])
    assert [r["method"] for r in content["records"]] == ["nope"]
    assert [r["stopped"] for r in content["runs"]] == [outcome["stopped"], None]


def test_nothing_is_compared_with_what_diverged():
    experiment = Experiment("x", lambda size: [], "softmax", ("loss",), lambda content: {})
    other = Row("lssa", "lssa", "lssa", {0: [], 1: []})
    with pytest.raises(UserError, match=r"^softmax: diverged with every seed"):
        _pooled([other], experiment)
    some = Row("softmax", "softmax", "softmax", {1: []})
    message = r"^softmax, seed 0: diverged, and lssa is to be compared with it"
    with pytest.raises(UserError, match=message):
        _pooled([other, some], experiment)


def test_keys_follow_config_and_versions(data_dir, monkeypatch):
    config = tiny_config(data_dir)

    def key(**changes):
        return Run("", with_changes(config, **changes), {}).key

    first, second = over_seeds("", config, (), (0, 1))
    assert first.key == key() != second.key
    assert key(eval__lengths="16") == key(mesh__fsdp=2) == key()
    assert key(optimizer__learning_rate=1e-3) != key()
    run = Run("", config, {})
    assert run.evaluation_key("softmax") != run.evaluation_key("rerope")

    figures = run.evaluation_key("softmax")
    monkeypatch.setattr(experiment_runs, "TRAINING_VERSION", 0)
    assert key() != first.key
    assert run.evaluation_key("softmax") == figures
    monkeypatch.setattr(experiment_runs, "FIGURES_VERSION", 0)
    assert run.evaluation_key("softmax") != figures


def test_keys_follow_the_source_of_registered_methods(data_dir, monkeypatch):
    config = with_changes(tiny_config(data_dir), model__method="mine|softmax")
    monkeypatch.setitem(CATALOGUE, "mine", CATALOGUE["yarn"])
    run = Run("", config, {})
    before = run.key, run.evaluation_key("softmax")
    monkeypatch.setitem(CATALOGUE, "mine", CATALOGUE["ntk"])
    again = Run("", config, {})
    assert (again.key, again.evaluation_key("softmax")) != before
    assert again.key != run.key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "should be given the name of one experiment: infoscale_table, "),
        (("table",), "experiment 'table': choose from infoscale_table, cosscale_sweep, "),
        (("paskey",), "experiment 'paskey': did you mean passkey? choose from infoscale_table, "),
        (("passkey", "--size=huge"), "--size=huge: choose from smoke, cpu, gpu, paper"),
        (("passkey", "--size=smoke", "--only=99"), "--only=99: should be from 0 to 3"),
        (("passkey", "--only=x"), "flag --only=x: "),
        (("passkey", "--also=nowhere"), "--also=nowhere: should be a folder with runs"),
        (("passkey", "--runs=README.md"), "--runs=README.md: should be a folder (File exists)"),
        (("passkey", "--tables", "--results=nowhere"), "nowhere/passkey.json: cannot be read"),
        (("passkey", "--fast"), "Unknown command line flag 'fast'"),
        (
            ("passkey", "--config.data.pack=True"),
            "config has no key data.pack; did you mean --config.data.packing?",
        ),
        (("passkey", "--config.training.steps=many"), "--config.training.steps=many"),
        (("passkey", "--config.training.steps=0"), "config.training.steps=0: should be at least 1"),
    ],
)
def test_mistakes_are_one_line(call, monkeypatch, words, message):
    monkeypatch.chdir(REPOSITORY)
    outcome = call(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_tables_of_a_json_that_is_none(call, tmp_path):
    (tmp_path / "passkey.json").write_text("{}")
    outcome = call("passkey", "--tables", f"--results={tmp_path}")
    assert outcome.code == 2
    assert "passkey.json: should be what this experiment wrote" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["passkey.json"]


IMPORTED = ("real_model", "needles")
"""What trains nothing: its model is fetched."""


def import_tiny(folder, seed=0):
    """A Llama whose ids are bytes, in place of a model that would be fetched."""
    source = folder / "llama"
    source.mkdir(parents=True)
    golden = REPOSITORY / "tests" / "importing" / "golden" / "llama_tied"
    config = json.loads((golden / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"vocab_size": 258}))
    tensors = load_file(golden / "model.safetensors")
    table = np.random.default_rng(seed).standard_normal((258, 16))
    tensors["model.embed_tokens.weight"] = table.astype(np.float32)
    save_file(tensors, source / "model.safetensors")
    import_checkpoint(source, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", runner.NAMES)
def test_every_experiment_runs_at_its_smallest(name, call, data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    # Of what earlier cases trained, as experiments share it.
    shared = data_dir.parent / "smoke_runs"
    words = [name, "--size=smoke", f"--runs={shared}", f"--results={tmp_path}"]
    if name in IMPORTED:
        monkeypatch.setattr(real_model, "WORKDIR", import_tiny(tmp_path / "tiny"))
        words.append("--config.data.tokenizer=bytes")
    outcome = call(*words)
    assert outcome.code == 0, outcome.err
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content.keys() >= KEYS
    assert content["records"]
    pictures = list(tmp_path.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert matplotlib.image.imread(picture).std() > 0.03, f"{picture.name} is blank"
    table = (tmp_path / f"{name}.md").read_bytes()
    for record in content["records"]:
        low, high = record["interval"] or [record["value"]] * 2
        assert low <= record["value"] <= high
        # Of places in a text, one document may have all the needles; a fetched model reads but one.
        assert record["interval"] or record["metric"] == "retrieved_by_place" or name in IMPORTED
    assert call(name, "--tables", f"--results={tmp_path}").code == 0
    assert (tmp_path / f"{name}.md").read_bytes() == table


def test_an_imported_model_is_evaluated_where_it_lies(monkeypatch, tmp_path, capsys):
    """Nothing is trained or copied, and what is kept goes by its weights."""
    keys = []
    for seed in (0, 1):
        workdir = import_tiny(tmp_path / str(seed), seed)
        monkeypatch.setattr(real_model, "WORKDIR", workdir)
        (run,) = real_model.runs("smoke")
        assert (run.steps, run.tokens, run.weights(tmp_path / "runs")) == (0, 0, workdir)
        keys.append(run.key)
        before = snapshot(workdir)
        runs = tmp_path / "runs"
        assert runner.state(run, [runs]) == "imported, 3 methods to evaluate"
        with alone(run, runs):
            outcome = train_run(run, runs)
        assert (outcome["stopped"], outcome["seconds"]) == (None, 0.0)
        assert snapshot(workdir) == before
        assert not (run.workdir(runs) / "checkpoints").exists()
        assert Rates.measured([runs]) == Rates(ASSUMED, ASSUMED)
    assert keys[0] != keys[1]


def test_a_model_that_was_not_fetched(call, monkeypatch, tmp_path):
    monkeypatch.setattr(real_model, "WORKDIR", tmp_path / "nowhere")
    outcome = call("real_model", "--dry-run")
    assert outcome.code == 2
    assert "nowhere: holds no model; `make smollm2` fetches and imports it" in outcome.err


def test_the_methods_of_a_model_that_is_fetched():
    own = read_methods("softmax(base=100000.0,pairing='halves')", 8192)
    for method in real_model.METHODS:
        read_methods(method, 8192, own)
    assert real_model.EXPERIMENT.baseline == real_model.METHODS[0]


@pytest.mark.parametrize("size", [size for size in SIZES if size != "smoke"])
@pytest.mark.parametrize("name", [name for name in runner.NAMES if name not in IMPORTED])
def test_larger_sizes_compare_equal_budgets(name, size):
    runs = runner.read(name).runs(size)
    if size != "paper":  # which has a text of the user's own
        runner.check(runner.read(name), runs)
    budgets = {
        (run.steps, run.tokens, run.config.optimizer.name, run.config.data.train_length)
        for run in runs
    }
    assert len(budgets) == 1
    main = [run for run in runs if run.seed]
    assert {run.seed for run in main} == {1, 2}
    labels = [label for run in runs if run.seed == 0 for label in run.rows]
    assert len(labels) == len(set(labels))
    assert {baseline_of(runner.read(name), label) for label in labels} <= set(labels)


def test_a_method_for_causal_models_is_refused_before_an_encoder_is_trained():
    runs = over_seeds("softmax", encoder("smoke").config, ["softmax", "dual_chunk"], [0])
    with pytest.raises(UserError, match=r"'dual_chunk': is for causal models only"):
        runner.check(runner.read("infoscale_table"), runs)


def test_killed_in_the_middle_it_redoes_nothing(data_dir, tmp_path):
    words = [sys.executable, "-m", "experiments.run", "associative_recall", "--size=smoke",
             f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"]  # fmt: skip
    how = {
        "cwd": REPOSITORY,
        "env": os.environ
        | {"TFDS_DATA_DIR": str(data_dir), "JAX_PLATFORMS": "cpu"}
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, **how)
        while len(done(tmp_path / "runs")) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = done(tmp_path / "runs")
    assert before, (tmp_path / "log").read_text()
    assert not (tmp_path / "results").exists()
    finished = subprocess.run(words, capture_output=True, text=True, check=False, **how)
    assert finished.returncode == 0, finished.stderr
    after = done(tmp_path / "runs")
    assert before.items() <= after.items()
    assert len(after) > len(before)
    assert (tmp_path / "results" / "associative_recall.md").exists()


def test_help_names_every_experiment_and_flag():
    for word in (*runner.NAMES, *SIZES, "--dry-run", "--only", "--also", "--from", "--tables",
                 "FILE.py", "runs/results"):  # fmt: skip
        assert word in runner.USAGE
