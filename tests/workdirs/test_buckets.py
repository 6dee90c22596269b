"""Workdirs in buckets, on servers of both kinds: the same run as on a disk, whatever happens."""

import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from lenext import buckets
from lenext.compare import compare
from lenext.evaluation import evaluate
from lenext.files import copy_folder
from lenext.training import train
from lenext.workdirs.checkpoints import Checkpoints
from lenext.workdirs.pretrained import load_run
from tests.training.common import command
from tests.training.runs import interruption
from tests.workdirs.servers import MISSING

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"takes {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("default"),  # what those packages warn of is not ours
]


@pytest.fixture
def workdir(server, request):
    """Of a run, in the bucket; nothing is there."""
    return server.path(request.node.name.replace("[", "-").rstrip("]"))


def largest(folder):
    files = buckets.checksums(folder)
    return folder / max(files, key=lambda name: files[name][0])


def assert_same(workdir, on_disk):
    assert (workdir / "metrics.jsonl").read_bytes() == (on_disk / "metrics.jsonl").read_bytes()
    ours, theirs = (load_run(folder) for folder in (workdir, on_disk))
    assert ours.step == theirs.step == 12
    tokens = [[1, 2, 3, 4]]
    np.testing.assert_array_equal(ours.model(np.array(tokens)), theirs.model(np.array(tokens)))


class TestTraining:
    def test_what_stands_there(self, config, workdir, on_disk):
        train(config, workdir)
        assert_same(workdir, on_disk)
        names = [*buckets.checksums(workdir)]
        assert {name.split("/")[0] for name in names} == {
            "checkpoints", "config.json", "metrics.jsonl", "seals", "tensorboard"
        }  # fmt: skip
        for step in (9, 12):
            assert f"checkpoints/{step}/commit_success.txt" in names
        assert not [name for name in names if "tmp" in name]

    def test_goes_on(self, config, workdir, on_disk, capsys):
        with interruption(6, "save"):
            train(config, workdir)
        train(config, workdir)
        assert "resuming from step" in capsys.readouterr().out
        assert_same(workdir, on_disk)

    def test_a_damaged_checkpoint(self, config, workdir, on_disk, capsys):
        with interruption(8, "step"):
            train(config, workdir)
        file = largest(workdir / "checkpoints" / "6")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x10
        file.write_bytes(bytes(data))
        train(config, workdir)
        said = capsys.readouterr()
        assert f"{workdir / 'checkpoints'}: damaged, and not used: 6: " in said.err
        assert "has changed since it was written" in said.err
        assert f"resuming from step 3 of {workdir}" in said.out
        assert [path.name[:2] for path in (workdir / "damaged").iterdir()] == ["6-"]
        assert_same(workdir, on_disk)

    def test_a_checkpoint_without_its_last_object_is_none(self, config, workdir, on_disk, capsys):
        with interruption(8, "step"):
            train(config, workdir)
        (workdir / "checkpoints" / "6" / "commit_success.txt").unlink()
        (workdir / "seals" / "6.json").unlink(missing_ok=True)
        train(config, workdir)
        assert f"resuming from step 3 of {workdir}" in capsys.readouterr().out
        assert_same(workdir, on_disk)

    def test_killed_while_it_saves(self, config, server, workdir, on_disk):
        call = command("train", config, workdir)
        call["env"] |= {"LENEXT_HEARTBEAT_SECONDS": "2"}
        process = subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not (workdir / "checkpoints" / "6").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (workdir / "checkpoints" / "12").exists()
        assert [path.name for path in (workdir / ".lock").iterdir()] == ["000001"]
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert_same(workdir, on_disk)

    @pytest.mark.parametrize(("trouble", "seconds"), [("shut", 4), ("losing_answers", 1.5)])
    def test_the_bucket_is_in_trouble_for_some_seconds(
        self, config, server, workdir, on_disk, trouble, seconds
    ):
        with interruption(4, "step"):
            train(config, workdir)

        def away():
            with getattr(server.gate, trouble)():
                time.sleep(seconds)

        thread = threading.Thread(target=away)
        save, begun = Checkpoints.save, []

        def saving(*args):
            if not begun:
                begun.append(thread.start())
                time.sleep(0.1)
            return save(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", saving)
            train(config, workdir)
        thread.join()
        assert_same(workdir, on_disk)


class TestEvaluation:
    def test_as_on_a_disk_and_once(self, config, workdir, on_disk, capsys):
        copy_folder(on_disk, workdir)  # has no commit files
        ours, theirs = (evaluate(config, folder) for folder in (workdir, on_disk))

        def figures(records):
            return [
                {k: v for k, v in r.items() if "seconds" not in k and "_per_" not in k}
                for r in records
            ]

        assert figures(ours) == figures(theirs)
        capsys.readouterr()
        evaluate(config, workdir)
        assert "4 of 4 cells are in" in capsys.readouterr().out
        names = {name for name in buckets.checksums(workdir / "eval") if "/" not in name}
        assert names == {"heads.csv", "results.csv", "results.json", "results.md", "results.png"}

        compare([workdir, on_disk], workdir / "compare")
        written = workdir / "compare"
        assert {*buckets.checksums(written)} == {
            f"compare.{end}" for end in ("json", "csv", "md", "png")
        }
        rows = json.loads((written / "compare.json").read_text())["records"]
        assert {row["method"].partition(":")[0] for row in rows} == {workdir.name, on_disk.name}
        assert not any(row["difference"] for row in rows if row["method"].endswith(": softmax"))

    def test_a_run_comes_back_to_a_disk(self, config, workdir, on_disk, tmp_path):
        train(config, workdir)
        copy_folder(workdir, tmp_path / "back")
        assert_same(tmp_path / "back", on_disk)
        file = largest_on_disk(tmp_path / "back" / "checkpoints" / "12")
        file.write_bytes(file.read_bytes()[:-7])
        assert load_run(tmp_path / "back").step == 9


def largest_on_disk(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_prepared_data_are_read_from_where_they_were_put(
    config, server, data_dir, on_disk, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy_folder(data_dir, server.path("data"))
    from lenext.data import ByteTokenizer, load_corpus, token_cache

    def never(*args, **kwargs):
        raise AssertionError("is made anew")

    monkeypatch.setattr(token_cache, "_write", never)
    names = (config.data.dataset, "validation", ByteTokenizer())
    ours, theirs = (load_corpus(*names, place) for place in (server.url("data"), data_dir))
    assert ours.fingerprint == theirs.fingerprint
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert {
        path.name for path in (tmp_path / "lenext" / server.scheme / "bucket" / "data").iterdir()
    } == {"stdlib_source", "lenext_tokens"}


class TestRefusals:
    """One line, from the command."""

    def ended(self, config, url, **environ):
        call = command("train", config, url)
        call["env"] = {k: v for k, v in call["env"].items() if environ.get(k) != ""} | {
            k: v for k, v in environ.items() if v
        }
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
        return done.returncode, line

    def test_no_such_bucket(self, config, server):
        url = f"{server.scheme}://another/run"
        assert self.ended(config, url) == (2, f"error: {url}: there is no bucket another")

    @pytest.mark.parametrize("rest", ["", "bucket", "bucket/"])
    def test_no_folder(self, server, rest):
        with pytest.raises(ValueError, match=f"should be {server.scheme}://BUCKET/FOLDER"):
            buckets.as_path(f"{server.scheme}://{rest}")

    def test_no_credentials(self, config, server, tmp_path):
        if server.scheme == "gs":
            pytest.skip("the emulator asks for none")
        gone = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
        code, line = self.ended(
            config,
            server.url("closed"),
            **gone,
            HOME=str(tmp_path),
            AWS_EC2_METADATA_DISABLED="true",
        )
        assert code == 2
        assert "the bucket cannot be read (Unable to locate credentials)" in line

    def test_a_target_that_must_be_on_a_disk(self, server):
        with pytest.raises(ValueError, match=r"--target=.*: should be a folder on a disk"):
            buckets.on_disk(server.url("x"), "--target")

    def test_a_package_is_missing(self, config, server):
        program = (
            "import sys; sys.modules['gcsfs'] = sys.modules['s3fs'] = None\n"
            f"from lenext.buckets import as_path; as_path({server.url('x')!r})"
        )
        import sys

        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False,
            env=dict(os.environ),
        )  # fmt: skip
        wanted = {"gs": "gcsfs google-cloud-storage", "s3": "s3fs"}[server.scheme]
        assert done.stderr.splitlines()[-1].endswith(f"-c requirements.txt {wanted}")
