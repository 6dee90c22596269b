"""One writer a workdir in a bucket."""

import json
import subprocess
import sys
import threading
import time

import pytest

from lenext.errors import UserError
from lenext.workdirs.workdir import sole_writer
from tests.training.common import REPOSITORY
from tests.workdirs.servers import MISSING

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"takes {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("default"),
]

HOLDS = """
import sys, time
from lenext.buckets import as_path
from lenext.workdirs.lease import lease
with lease(as_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def workdir(server, request, monkeypatch):
    monkeypatch.setenv("LENEXT_HEARTBEAT_SECONDS", "2")
    return server.path(request.node.name.replace("[", "-").rstrip("]"))


def numbers(workdir):
    folder = workdir / ".lock"
    return sorted(int(path.name) for path in folder.iterdir()) if folder.exists() else []


def write(workdir, number, age=0.0):
    """The lease of an owner that says no more."""
    content = {"host": "afar", "process": 7, "id": "x", "time": time.time() - age}
    (workdir / ".lock" / f"{number:06}").write_bytes(json.dumps(content).encode())


def test_another_is_refused_and_then_let_in(workdir):
    with sole_writer(workdir):
        with pytest.raises(
            UserError, match=r"another process is training there \(host .*, process"
        ):
            sole_writer(workdir).__enter__()
        assert numbers(workdir) == [1]
    assert numbers(workdir) == []
    with sole_writer(workdir):
        pass


def test_one_that_has_been_silent_is_taken_over_at_once(workdir, capsys):
    write(workdir, 3, age=3)
    with sole_writer(workdir):
        assert numbers(workdir) == [4]
    assert "waiting" not in capsys.readouterr().out


def test_one_that_was_killed_just_now_is_waited_for(workdir, capsys):
    write(workdir, 1)
    begun = time.monotonic()
    with sole_writer(workdir):
        assert time.monotonic() - begun > 1
        assert numbers(workdir) == [2]
    assert "waiting whether the run before lives" in capsys.readouterr().out


def test_of_many_one_holds_it(workdir):
    held, refused, all_there = [], [], threading.Barrier(6)

    def take():
        all_there.wait()
        try:
            with sole_writer(workdir):
                held.append(numbers(workdir))
                deadline = time.monotonic() + 60
                while len(refused) < 5 and time.monotonic() < deadline:
                    time.sleep(0.1)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (held, len(refused)) == ([[1]], 5)


def test_an_owner_that_was_replaced_ends(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workdir)], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    write(workdir, 2)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "another run goes on there, as this one was silent for 2 seconds" in line
    assert numbers(workdir) == [1, 2]
