"""Several processes that run one program together."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from lenext.errors import UserError

HEARTBEAT = "LENEXT_HEARTBEAT_SECONDS"
"""A process that is silent for so long (30 unless this says otherwise) is lost; others stop."""

PEER_LOST = (jax.errors.JaxRuntimeError, TimeoutError)
"""What is raised where other processes do not come: by an exchange, by a checkpoint's barrier."""

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the other processes, before anything is computed.

    Where they are is read from `JAX_COORDINATOR_ADDRESS` (HOST:PORT of the first process),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; without these, from Slurm's environment or a TPU
    pod's, as `jax.distributed.initialize` does. Process 0 alone goes on writing to stdout.

    Raises:
      UserError: where nothing says where they are, or they do not come.
    """
    given = {name: os.environ.get(name, "") for name in NAMES}
    seconds = heartbeat()
    try:
        if any(given.values()):
            _join_given(given, seconds)
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=seconds)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--distributed: cannot join other processes ({reason}); give {', '.join(NAMES)}, or "
            "start it under Slurm or on a TPU pod"
        ) from None
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # as long as the process


def heartbeat() -> int:
    """Seconds of silence after which a process counts as lost.

    Raises:
      UserError: `HEARTBEAT` names none.
    """
    said = os.environ.get(HEARTBEAT, "30")
    if not said.isdecimal() or not int(said):
        raise UserError(f"{HEARTBEAT}={said!r}: should be a number of seconds")
    return int(said)


def _join_given(given: dict[str, str], seconds: int) -> None:
    address, *numbers = given.values()
    if ":" not in address or not all(number.isdecimal() for number in numbers):
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"{said}: should be HOST:PORT, how many there are, and which this is")
    count, number = map(int, numbers)
    if not 0 <= number < count:
        raise UserError(f"JAX_PROCESS_ID={number}: should be below JAX_NUM_PROCESSES={count}")
    jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=seconds)


def is_first() -> bool:
    """Whether this is process 0, which writes what is written once."""
    return jax.process_index() == 0


def is_peer_lost(error: BaseException | None) -> bool:
    """Whether that is how the loss of another process shows: it fails to come to an exchange."""
    if jax.process_count() == 1:
        return False
    # An exchange on CPUs may also fail as a ValueError, depending on what waits for it.
    return isinstance(error, PEER_LOST) or (isinstance(error, ValueError) and "Gloo" in str(error))


def wait_for_all(where: str) -> None:
    """Returns when all processes are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def in_all(flags: Sequence[bool]) -> list[bool]:
    """Which of these are true in every process, so that all go the same way."""
    if jax.process_count() == 1:
        return list(flags)
    return np.all(multihost_utils.process_allgather(np.array(flags, bool)), axis=0).tolist()


@contextlib.contextmanager
def first_goes_first(what: str) -> Iterator[None]:
    """Process 0 does it before the others, which then find what it has left on a shared disk."""
    if not is_first():
        wait_for_all(what)
    try:
        yield
    finally:
        if is_first():
            wait_for_all(what)
