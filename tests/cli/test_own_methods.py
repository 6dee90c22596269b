"""A method in a user's file, from training on: the run remembers where it is, and what it was."""

import json
import shutil
import subprocess
import sys

import pytest

from lenext.attention.catalogue import CATALOGUE
from lenext.config.imports import join_imports, load
from lenext.errors import UserError
from tests.training.common import REPOSITORY, arguments, read_metrics, tiny_decoder_config

SOURCE = """
import dataclasses

import jax.numpy as jnp

from lenext import register
from lenext.attention import Entry, Temperature, option


@dataclasses.dataclass(frozen=True)
class HalfPower(Temperature):
    exponent: float = option(0.5, float, at_least=0.0)

    def __call__(self, rows, q, params):
        return jnp.maximum((rows.n / rows.train_length) ** self.exponent, 1.0)


register("half_power", Entry(changes="temperature (n / L)^a", temperature=HalfPower()))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_methods.py"
    path.write_text(SOURCE)
    return path


def settings(data_dir, **training):
    """A run of seconds with the user's method."""
    config = tiny_decoder_config(data_dir)
    config.model.method = "half_power(exponent=0.25)"
    config.training.update({"steps": 4, "eval_every": 4, "checkpoint_every": 2} | training)
    return config


def words_of(config, workdir, file=""):
    config.imports = str(file)
    return [*arguments(config, "decoder"), f"--workdir={workdir}"]


@pytest.fixture
def trained(call, data_dir, file, tmp_path):
    """A run of a decoder that was trained with the user's method."""
    outcome = call("train", *words_of(settings(data_dir), tmp_path / "run", file))
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def fresh(program, *words):
    """A command in a process of its own, which knows nothing yet."""
    return subprocess.run(
        [sys.executable, "-m", program, *map(str, words)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_run_is_enough(trained, file):
    """Evaluated, generated from and loaded by its folder alone."""
    assert json.loads((trained / "config.json").read_text())["imports"] == str(file)
    done = fresh(
        "lenext.evaluate", f"--workdir={trained}", "--config.eval.lengths=32",
        "--config.eval.methods=trained,rerope+half_power",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rerope+half_power" in done.stdout
    done = fresh(
        "lenext.generate", f"--workdir={trained}", "--prompt=a", "--max_tokens=2",
        "--method=half_power",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    program = (
        "from lenext import load_pretrained; from lenext.models import model_methods; "
        f"print(type(model_methods(load_pretrained({str(trained)!r}))[0].temperature).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout == "HalfPower\n", done.stderr


def test_edited_it_is_told_and_not_gone_on_with(trained, file, call, data_dir):
    file.write_text(SOURCE.replace("1.0)", "2.0)"))
    outcome = call("evaluate", f"--workdir={trained}", "--config.eval.lengths=16")
    assert outcome.code == 0, outcome.err
    assert "warning: method half_power: its source has changed since" in outcome.err
    before = read_metrics(trained)
    shutil.rmtree(trained / "checkpoints" / "4")
    outcome = call("train", *words_of(settings(data_dir), trained, file))
    assert outcome.code == 2
    assert "method half_power: its source has changed since" in outcome.err
    assert outcome.err.count("\n") == 1
    assert read_metrics(trained) == before


def test_a_run_may_go_on_from_another_place(trained, file, call, data_dir, tmp_path):
    """Where the file is, is no part of what the run is."""
    moved = tmp_path / "elsewhere.py"
    file.rename(moved)
    outcome = call("evaluate", f"--workdir={trained}", "--config.eval.lengths=16")
    assert outcome.code == 2
    assert outcome.err == (
        f"error: config.imports: {file}: cannot be read (No such file or directory)\n"
    )
    outcome = call(
        "evaluate", f"--workdir={trained}", "--config.eval.lengths=16", f"--config.imports={moved}"
    )
    assert outcome.code == 0, outcome.err
    outcome = call("generate", f"--workdir={trained}", "--prompt=a", f"--imports={moved}",
                   "--max_tokens=1")  # fmt: skip
    assert outcome.code == 0, outcome.err


def test_a_branch_needs_no_second_word(trained, call, data_dir, tmp_path):
    config = settings(data_dir, steps=5, eval_every=5, checkpoint_every=5, branch_from=str(trained))
    config.model.method = "trained"
    outcome = call("train", *words_of(config, tmp_path / "branch"))
    assert outcome.code == 0, outcome.err
    stored = json.loads((tmp_path / "branch" / "config.json").read_text())
    assert stored["model"]["method"] == "half_power(exponent=0.25)"
    assert stored["imports"] == str(tmp_path / "my_methods.py")


def test_a_config_file_may_register(call, file, data_dir, tmp_path):
    config_file = tmp_path / "own_config.py"
    config_file.write_text(
        SOURCE
        + f"""
from tests.training.common import tiny_decoder_config


def get_config(arg=None):
    config = tiny_decoder_config({str(data_dir)!r})
    config.model.method = "half_power"
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    return config
"""
    )
    outcome = call("train", f"--config={config_file}", f"--workdir={tmp_path}/run")
    assert outcome.code == 0, outcome.err
    done = fresh("lenext.evaluate", f"--workdir={tmp_path}/run", "--config.eval.lengths=16")
    assert done.returncode == 0, done.stderr


def test_the_methods_page_knows_it(call, file):
    outcome = call("methods", f"--imports={file}", "half_power(exponent=0.25)")
    assert outcome.code == 0, outcome.err
    assert "exponent=0.25" in outcome.out
    assert "half_power" in call("methods", f"--imports={file}").out
    assert "half_power" not in fresh("lenext.methods").stdout


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import nothing_there",
            ", line 1: raised ModuleNotFoundError: No module named 'nothing_there'",
        ),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("1 / 0", ", line 1: raised ZeroDivisionError: division by zero"),
        (SOURCE.replace('"half_power"', '"rerope"'), "ValueError: name 'rerope': lenext has a"),
        (SOURCE.replace('"half_power"', '"half power"'), "ValueError: name 'half power': should"),
    ],
)
def test_files_that_fail_are_one_line(call, file, source, reason):
    file.write_text(source)
    outcome = call("methods", f"--imports={file}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: config.imports: {file}")
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_file_is_imported_again_when_it_has_changed(file):
    load(str(file))
    first = CATALOGUE["half_power"]
    load(f" {file} , {file}")
    assert CATALOGUE["half_power"] is first
    file.write_text(SOURCE.replace("0.5", "0.75"))
    load(str(file))
    assert CATALOGUE["half_power"].temperature.exponent == 0.75


def test_of_two_files_with_one_name_the_one_asked_for_last_counts(tmp_path):
    """As when two runs are loaded in one process, each with its own file."""
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    for file, exponent in zip(files, ("0.25", "0.75"), strict=True):
        file.write_text(SOURCE.replace("0.5", exponent))
    for number in (0, 1, 0):
        load(str(files[number]))
        assert CATALOGUE["half_power"].temperature.exponent == (0.25, 0.75)[number]


def test_a_file_may_import_what_stands_beside_it(tmp_path):
    (tmp_path / "beside_a_method.py").write_text("EXPONENT = 0.125")
    file = tmp_path / "mine.py"
    file.write_text("from beside_a_method import EXPONENT\n" + SOURCE.replace("0.5", "EXPONENT"))
    before = list(sys.path)
    load(str(file))
    assert CATALOGUE["half_power"].temperature.exponent == 0.125
    assert sys.path == before


def test_a_file_that_fails_registers_nothing(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE + "1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load(str(file))
    assert "half_power" not in CATALOGUE


def test_modules_are_imported_by_name(tmp_path, monkeypatch):
    (tmp_path / "methods_of_mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    load("methods_of_mine")
    assert "half_power" in CATALOGUE
    with pytest.raises(UserError, match=r"config\.imports: not\.there: raised ModuleNotFoundError"):
        load("not.there")


def test_lists_are_joined_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    joined = join_imports("a.py, mod", "", f"mod,{tmp_path}/a.py,b.py")
    assert joined == f"{tmp_path}/a.py,mod,{tmp_path}/b.py"


class TestEvaluateWithAFile:
    """What to evaluate is the file's; model and data are the run's."""

    def test_model_and_data_are_the_runs(self, trained, call):
        outcome = call(
            "evaluate", f"--workdir={trained}", "--config=configs/quickstart.py:smoke",
            "--config.eval.protocol=full_context", "--config.eval.lengths=16,32",
            "--config.eval.methods=trained,rerope", "--config.eval.documents=4",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        config = json.loads((trained / "eval" / "results.json").read_text())["provenance"]["config"]
        stored = json.loads((trained / "config.json").read_text())
        assert config["model"] == stored["model"]
        assert config["data"] == stored["data"]
        assert config["eval"]["methods"] == "trained,rerope"
        assert config["eval"]["documents"] == 4

    def test_what_the_command_line_says_stands_above_both(self, trained, call):
        outcome = call(
            "evaluate", f"--workdir={trained}", "--config=configs/decoder.py:tiny,smoke",
            "--config.eval.lengths=16", "--config.model.hidden_size=48",
        )  # fmt: skip
        assert outcome.code == 2
        assert "config.model.hidden_size (48, was 16): should be as" in outcome.err

    def test_there_must_be_a_run(self, call, tmp_path):
        outcome = call("evaluate", f"--workdir={tmp_path}", "--config=configs/quickstart.py:smoke")
        assert outcome.code == 2
        assert outcome.err == f"error: workdir {tmp_path}: holds no checkpoint; train there first\n"


def test_parts_that_change_nothing_are_told(trained, call):
    outcome = call(
        "evaluate", f"--workdir={trained}", "--config.eval.lengths=16",
        "--config.eval.methods=trained,infoscale+log_length",
    )  # fmt: skip
    said = "infoscale changes nothing in infoscale+log_length: log_length replaces its temperature"
    assert f"warning: {said}\n" in outcome.err
    assert f"{said}." in outcome.out
    assert f"{said}." in (trained / "eval" / "results.md").read_text()
