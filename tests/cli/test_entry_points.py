import json
import shutil
import subprocess
import sys

import pytest

from lenext.__main__ import COMMANDS, main
from lenext.errors import TrainingError
from lenext.training import train
from tests.training.common import REPOSITORY, command, read_metrics


class TestInThisProcess:
    def test_train_then_evaluate_then_train_again(self, call, words, tmp_path):
        words = [*words, "--config.training.steps=2", "--config.eval.lengths=16"]
        outcome = call("train", *words)
        assert outcome.code == 0, outcome.err
        assert "trained to step 2" in outcome.out
        assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2]
        assert "loss" in outcome.err
        assert "tokens/s" in outcome.err

        outcome = call("evaluate", *words, "--config.eval.methods=rerope(window=4)+infoscale")
        assert outcome.code == 0, outcome.err
        results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
        assert {r["method"] for r in results["records"]} == {"rerope(window=4)+infoscale"}
        assert "rerope(window=4)+infoscale" in outcome.out

        outcome = call("train", *words)
        assert outcome.code == 0, outcome.err
        assert "is trained to its last step, 2" in outcome.out
        alone = call("train", f"--workdir={tmp_path / 'run'}")
        assert alone.code == 0, alone.err
        assert alone.out == outcome.out
        assert call("train").err == "error: --config=configs/NAME.py[:ARGUMENT] is missing\n"

    def test_by_the_name_of_the_command(self, monkeypatch, capsys):
        words = [sys.executable, "-m", "lenext", "methods", "pi"]
        told = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert told.stdout.startswith("pi")
        monkeypatch.setattr(sys, "argv", ["lenext", "--help"])
        main()
        listed = capsys.readouterr().out
        files = {path.stem for path in (REPOSITORY / "lenext").glob("[a-z]*.py")}
        assert set(COMMANDS) == files - {"buckets", "cli", "errors", "files", "interrupts"}
        assert all(f"  {name}  " in listed or f"  {name} " in listed for name in COMMANDS)
        monkeypatch.setattr(sys, "argv", ["lenext", "evalute"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        said = "error: 'evalute': did you mean evaluate? choose from train, evaluate, compare,"
        assert capsys.readouterr().err.startswith(said)

    def test_flags_override_the_config(self, call, words, monkeypatch):
        given = []
        monkeypatch.setattr("lenext.training.train", lambda *args: given.append(args))
        flags = ["--config.training.steps=1", "--config.seed", "5", "--config.model.use_bias=true"]
        assert call("train", *words, *flags, "--workdir=elsewhere").code == 0
        ((config, workdir),) = given
        assert (config.training.steps, config.seed, config.model.use_bias) == (1, 5, True)
        assert str(workdir) == "elsewhere"

    def test_a_run_that_fails_by_itself_exits_with_1(self, fails, words, monkeypatch):
        def fail(*_):
            raise TrainingError("loss nan at step 3:\n stopped")

        monkeypatch.setattr("lenext.training.train", fail)
        assert fails("train", *words, code=1) == "loss nan at step 3: stopped"

    def test_an_interrupted_run_says_how_to_go_on(self, call, words, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("lenext.training.loop.shard_batch", interrupt)
        outcome = call("train", *words)
        assert outcome.code == 130
        last = outcome.err.splitlines()[-1]
        assert last == "error: interrupted; the same command goes on from what is written"

    def test_a_bug_keeps_its_traceback(self, call, words, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError

        monkeypatch.setattr("lenext.training.loop.shard_batch", fail)
        with pytest.raises(ZeroDivisionError):
            call("train", *words)

    @pytest.mark.parametrize("program", ["train", "evaluate"])
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help(self, call, program, flag):
        outcome = call(program, flag)
        assert outcome.code == 0
        for name in ("--config=", "--config.KEY=VALUE", "--workdir=DIR", f"lenext.{program}"):
            assert name in outcome.out
        assert outcome.err == ""


class TestAsProcesses:
    """What only a process of its own shows: its exit code, and nothing said by libraries."""

    def test_a_mistake(self, config, tmp_path):
        call = command("train", config, tmp_path / "run")
        call["args"].append("--config.eval.typo=1")
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert "typo" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_a_workdir_without_a_checkpoint(self, config, tmp_path):
        call = command("evaluate", config, tmp_path / "run")
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        workdir = tmp_path / "run"
        assert (done.returncode, done.stdout, done.stderr) == (
            2, "", f"error: workdir {workdir}: holds no checkpoint; train there first\n"
        )  # fmt: skip

    def test_a_run_compiled_as_for_users(self, config, tmp_path):
        """XLA's optimisations, which these tests go without, change no more than roundings."""
        train(config, tmp_path / "quick")
        call = command("train", config, tmp_path / "run")
        for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
            del call["env"][name]
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ours, theirs = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "quick")
        assert len(ours) == len(theirs) == 12
        for record, expected in zip(ours, theirs, strict=True):
            assert record == pytest.approx(expected, rel=1e-4, abs=1e-5)


class TestEvaluationOfARunByItself:
    """Without --config it takes the run's own."""

    def test_takes_the_config_of_the_run(self, call, decoder, tmp_path):
        workdir = shutil.copytree(decoder, tmp_path / "run")
        outcome = call("evaluate", "--workdir", workdir, "--config.eval.lengths=16,24")
        assert outcome.code == 0, outcome.err
        content = json.loads((workdir / "eval" / "results.json").read_text())
        assert {r["length"] for r in content["records"]} == {16, 24}
        ours, trained = (content["provenance"][key] for key in ("config", "trained"))
        assert ours["model"] == trained["model"]
        assert ours["model"]["family"] == "decoder"
        assert ours["eval"]["lengths"] == "16,24"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--config.eval.length=16"], "config has no key "),
            (["--config.eval.stride=x"], "flag --config.eval.stride=x"),
            (["--config.eval.lengths=16,1"], "config.eval.lengths '16,1': should be whole numbers"),
            (["--config.eval.weights=ema"], "holds no average of the parameters"),
            (["--config.eval.weights=best"], "config.eval.weights='best': should be one of params"),
            (["--config.data.tokenizer=none.json"], "none.json"),
        ],
    )
    def test_mistakes(self, fails, decoder, words, message):
        assert message in fails("evaluate", f"--workdir={decoder}", *words)

    def test_no_run_to_take_it_of(self, fails, tmp_path):
        line = fails("evaluate", f"--workdir={tmp_path}")
        assert line == f"workdir {tmp_path}: holds no run; train there first"
