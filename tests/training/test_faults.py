"""What goes wrong around a run: one clear line, nothing overwritten, and the run goes on after."""

import builtins
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lenext.errors import UserError
from lenext.models import load_pretrained
from lenext.training import train
from lenext.workdirs.workdir import sole_writer
from tests.training.common import command, read_metrics, snapshot
from tests.training.processes import Processes
from tests.training.runs import assert_same_run, interruption, saved_steps


@pytest.fixture
def halved(config, tmp_path):
    """The workdir of a run that stopped at step 8, with checkpoints of steps 3 and 6."""
    with interruption(8, "step"):
        train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [3, 6]
    return tmp_path / "run"


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


DAMAGES = {
    "cut": (cut, "bytes and was written with"),
    "flipped": (flip, "has changed since it was written"),
    "gone": (Path.unlink, "is missing"),
}


class TestDamagedCheckpoints:
    @pytest.mark.parametrize("kind", DAMAGES)
    def test_the_one_before_is_used(self, config, halved, undisturbed, capsys, kind):
        change, words = DAMAGES[kind]
        change(largest_file(halved / "checkpoints" / "6"))
        train(config, halved)
        said = capsys.readouterr()
        (warning,) = [line for line in said.err.splitlines() if line.startswith("warning:")]
        assert f"{halved / 'checkpoints'}: damaged, and not used: 6: " in warning
        assert words in warning
        assert f"resuming from step 3 of {halved}" in said.out
        assert_same_run(halved, undisturbed)
        # Not lost, either: it may be all that somebody has.
        assert [path.name[:2] for path in (halved / "damaged").iterdir()] == ["6-"]

    def test_every_file_counts_and_readers_touch_none(self, halved, capsys):
        folder = halved / "checkpoints" / "6"
        files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
        assert len(files) > 5
        for file in files:
            whole = file.read_bytes()
            flip(file)
            before = snapshot(halved)
            load_pretrained(halved)
            assert f"not used: 6: {file.relative_to(folder)} has changed" in capsys.readouterr().err
            assert snapshot(halved) == before
            file.write_bytes(whole)
        load_pretrained(halved)
        assert capsys.readouterr().err == ""

    def test_all_of_them(self, config, halved):
        for step in saved_steps(halved):
            flip(largest_file(halved / "checkpoints" / str(step)))
        before = snapshot(halved)
        with pytest.raises(UserError, match=r"every checkpoint is damaged \(6: .*; 3: "):
            train(config, halved)
        assert snapshot(halved) == before


class _Never(pickle.Unpickler):
    def __init__(self, *args, **kwargs):
        raise AssertionError("something was unpickled")


def test_a_strangers_checkpoint_is_data(halved, monkeypatch):
    """Nothing that could run what it holds is as much as called."""

    def never(*args, **kwargs):
        raise AssertionError("something was executed")

    train_modules = set(sys.modules)
    load_pretrained(halved)
    assert set(sys.modules) == train_modules  # it imports nothing, either
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(pickle, "Unpickler", _Never)
    monkeypatch.setattr(builtins, "eval", never)
    monkeypatch.setattr(builtins, "__import__", _known(builtins.__import__))
    load_pretrained(halved)


def _known(load):
    """An import that finds what there is already, and nothing new."""

    def known(name, *args, **kwargs):
        assert name in sys.modules or (args and args[-1]), f"{name} was imported"
        return load(name, *args, **kwargs)

    return known


class TestOfOneWorkdir:
    def test_two_runs(self, config, halved):
        before = snapshot(halved)
        with sole_writer(halved), pytest.raises(UserError, match="another process is training"):
            train(config, halved)
        # The lock itself is an empty file that stays.
        assert {n: x for n, x in snapshot(halved).items() if n != ".lock"} == {
            n: x for n, x in before.items() if n != ".lock"
        }

    def test_that_cannot_be_written(self, config, tmp_path):
        if os.geteuid() == 0:
            folder = Path("/proc/sys/lenext")  # where even root makes no folders
        else:
            folder = tmp_path / "closed" / "run"
            folder.parent.mkdir(mode=0o500)
        done = subprocess.run(
            **command("train", config, folder), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: workdir {folder}: cannot be written (")

    def test_on_a_full_disk(self, config, undisturbed, tmp_path):
        """No file may be longer than 16 kB, which is less than a checkpoint's."""
        call = command("train", config, tmp_path / "run")
        call["args"] = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *call["args"]]
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "rror" in line]
        assert line.startswith(f"error: {tmp_path / 'run' / 'checkpoints' / '3'}: the checkpoint")
        assert "cannot be written (" in line
        assert "Traceback" not in done.stderr
        train(config, tmp_path / "run")
        assert_same_run(tmp_path / "run", undisturbed)


def test_several_processes_stop_together_and_go_on(config, tmp_path):
    """By SIGTERM, by the loss of either, and to the end: as one process that was left alone."""
    config.training.update(steps=200, eval_every=100, checkpoint_every=25)
    config.data.batch_size = 4
    train(config, tmp_path / "whole")
    workdir = tmp_path / "run"

    processes = Processes(config, workdir)
    processes.wait_for(20)
    processes.signal(signal.SIGTERM)
    code, _, err = processes.end()
    assert code == 75, err
    assert "stopped by SIGTERM at step" in err

    # And while it still gets ready to go on.
    processes = Processes(config, workdir)
    processes.wait_to_say("data: ")
    processes.signal(signal.SIGTERM)
    code, _, err = processes.end()
    assert code == 75, err
    assert "stopped by SIGTERM at step" in err

    for number in (1, 0):
        lines = len(read_metrics(workdir))
        processes = Processes(config, workdir)
        processes.wait_for(lines + 40)
        processes.kill(number)
        code, _, err = processes.end()
        assert code == 137, err
        assert f"process {number} of 2 ended with code 137" in err
        if number == 1:  # the other says so, and does not wait for ever
            assert "error: another process was lost (" in err
            assert "Traceback" not in err

    processes = Processes(config, workdir)
    code, out, err = processes.end()
    assert code == 0, err
    assert "resuming from step" in out
    ours, theirs = read_metrics(workdir), read_metrics(tmp_path / "whole")
    assert len(ours) == len(theirs) == 200
    for record, expected in zip(ours, theirs, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], abs=1e-4)
