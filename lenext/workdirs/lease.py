"""One writer a workdir, where a bucket is all that the runs have in common."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from lenext import interrupts
from lenext.buckets import AnyPath, filesystem
from lenext.errors import MISREAD, UserError
from lenext.files import write_atomically
from lenext.parallel.processes import heartbeat

FOLDER = ".lock"
PAUSE = 0.5
"""Seconds between two looks at another's lease."""


@contextlib.contextmanager
def lease(workdir: AnyPath) -> Iterator[None]:
    """Keeps other runs out of a workdir in a bucket for as long as this one writes there.

    Who holds it is told by the object DIR/.lock/NUMBER of the highest number. Each is created only
    if there is none of that name, which a bucket grants to one alone, and is written anew while its
    owner lives. Of one that has been silent for `heartbeat()` seconds the next number takes over;
    an owner that finds itself replaced, after a pause or a time without network, ends at once.

    Raises:
      UserError: another process is training there.
    """
    seconds, folder = heartbeat(), workdir / FOLDER
    owner = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}

    def content() -> bytes:
        return json.dumps(owner | {"time": time.time()}).encode()

    mine = None
    while mine is None:
        wanted = folder / f"{_free(workdir, seconds) + 1:06}"
        # Another may be faster; or this one was, and the answer got lost.
        with contextlib.suppress(FileExistsError):
            filesystem(workdir).pipe_file(str(wanted), content(), mode="create")
        if _holds(wanted, owner["id"]):
            mine = wanted
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(seconds / 3):
            with contextlib.suppress(Exception):  # no network for a while: later it will show
                if not _holds(mine, owner["id"]):
                    told = f"workdir {workdir}: another run goes on there, as this one was silent"
                    os.write(2, f"error: {told} for {seconds} seconds\n".encode())
                    interrupts.end(75)
                write_atomically(mine, content())

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        for number in _numbers(folder):
            if number < int(mine.name):  # of those before
                (folder / f"{number:06}").unlink(missing_ok=True)
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # silence says it as well
            mine.unlink(missing_ok=True)


def _numbers(folder: AnyPath) -> list[int]:
    found = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in found if name.isdecimal())


def _read(lease: AnyPath) -> dict[str, Any]:
    """What one says, by a single request: between two it may be written anew."""
    return json.loads(filesystem(lease).cat_file(str(lease)))


def _holds(mine: AnyPath, own: str) -> bool:
    """Whether the lease is still that which was taken, and the newest."""
    try:
        found = _read(mine)
    except FileNotFoundError:
        return False
    return found["id"] == own and max(_numbers(mine.parent)) == int(mine.name)


def _free(workdir: AnyPath, seconds: int) -> int:
    """The highest number of a lease, once its owner is silent; 0 where there is none.

    Raises:
      UserError: its owner lives.
    """
    seen: dict[str, Any] | None = None
    while True:
        number = max(_numbers(workdir / FOLDER), default=0)
        if not number:
            return 0
        try:
            found = _read(workdir / FOLDER / f"{number:06}")
            silent = time.time() - found["time"]
        except FileNotFoundError:  # it has just ended
            continue
        except MISREAD:
            return number
        if silent > seconds:
            return number
        if seen is None:
            print(f"workdir {workdir}: waiting whether the run before lives", flush=True)
        elif found != seen:
            raise UserError(
                f"workdir {workdir}: another process is training there (host {found.get('host')}, "
                f"process {found.get('process')}); wait for it, or take another workdir"
            )
        seen = found
        time.sleep(PAUSE)
