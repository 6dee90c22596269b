"""Servers of buckets on this machine, and a way to them that can be closed."""

import atexit
import contextlib
import functools
import importlib.util
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lenext.buckets import as_path, filesystem

PACKAGES = ("gcsfs", "google.cloud.storage", "s3fs", "gcp_storage_emulator", "moto", "flask_cors")
"""What the tests take that `make test` does not install: two servers, and what asks them."""
BUCKET = "bucket"
COMMANDS = {
    "gs": ["-m", "tests.workdirs.gcs_server"],
    "s3": ["-m", "moto.server", "-H", "127.0.0.1", "-p"],
}


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it would be in
        return False


MISSING = [name for name in PACKAGES if not _is_there(name)]


class Gate:
    """A port that leads to another's.

    While it is shut, whoever comes is refused, and who is in it is thrown out; while it loses
    answers, what is asked is done, and nobody is told.
    """

    def __init__(self, to: int):
        self._to, self._open, self._mute = to, threading.Event(), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open.set()
        threading.Thread(target=self._listen, daemon=True).start()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    @contextlib.contextmanager
    def losing_answers(self) -> Iterator[None]:
        self._mute = True
        try:
            yield
        finally:
            self._mute = False

    def _listen(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            if self._open.is_set():
                threading.Thread(target=self._lead, args=(caller,), daemon=True).start()
            else:
                caller.close()

    def _lead(self, caller: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(caller)
            try:
                server = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            except ConnectionRefusedError:  # it is closed
                return
            other = {caller: server, server: caller}
            while other and self._open.is_set():
                ready, _, _ = select.select([*other], [], [], 0.2)
                for one in ready:
                    try:
                        data = one.recv(1 << 16)
                        if one is server and self._mute:
                            return
                        if data:
                            other[one].sendall(data)
                        else:  # what is on the way to it still comes
                            other.pop(one).shutdown(socket.SHUT_WR)
                    except OSError:
                        return


class Server:
    """A server with one empty bucket.

    Attributes:
      scheme: "gs" or "s3".
      gate: to it.
      environ: what leads programs to it.
    """

    def __init__(self, scheme: str, folder: Path):
        self.scheme = scheme
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._log = (folder / f"{scheme}.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, *COMMANDS[scheme], str(port)], stdout=self._log, stderr=self._log
        )
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert self._process.poll() is None, Path(self._log.name).read_text()
            time.sleep(0.05)
        self.gate = Gate(port)
        self.environ = self._environ(f"http://127.0.0.1:{self.gate.port}")

    def _environ(self, url: str) -> dict[str, str]:
        if self.scheme == "gs":
            return {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
            }
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def path(self, name: str) -> Any:
        """Of a folder in the bucket, for a process that `environ` leads to it."""
        return as_path(self.url(name))

    def url(self, name: str) -> str:
        return f"{self.scheme}://{BUCKET}/{name}"

    def make_bucket(self) -> None:
        filesystem(f"{self.scheme}://").mkdir(BUCKET)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(Path(self._log.name).parent)


@functools.cache
def serving(scheme: str) -> Server:
    """A server that this process, and what it starts, are led to, for as long as it lives.

    What has been led to one, such as TensorStore, goes on to ask there.
    """
    server = Server(scheme, Path(tempfile.mkdtemp()))
    atexit.register(server.close)
    os.environ |= server.environ
    server.make_bucket()
    return server
