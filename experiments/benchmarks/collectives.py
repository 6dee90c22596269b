"""What a compiled program sends between devices, read off its HLO text."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(rf" = (\(?.*?\)?) ({'|'.join(KINDS)})(-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT")
_CALLED = re.compile(r"(?:to_apply|calls|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_ALL = re.compile(r"num_partitions=(\d+)")


class Collective(NamedTuple):
    """One kind of exchange in a program.

    Attributes:
      kind: of `KINDS`.
      group: devices that take part together.
      bytes: of the larger of what goes in and what comes out, on a device, each time.
      times: how often it is run, loops included.
    """

    kind: str
    group: int
    bytes: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends, all times together, round a ring.

        (n - 1) / n of the whole; twice that for an all-reduce, which scatters and gathers; all of
        it for a permutation.
        """
        share = (self.group - 1) / self.group if self.group else 1.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * factor * self.bytes


def collectives(text: str) -> list[Collective]:
    """What the program of an HLO text exchanges, equal ones together.

    A loop counts as often as the text says that it turns, and once where it does not.
    """
    every = _ALL.search(text)
    devices = int(every[1]) if every else 1
    bodies, entry = computations(text)
    found: Counter[tuple[str, int, int]] = Counter()
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            match = _OPERATION.search(line)
            if match is None:
                continue
            result, kind, started = match.groups()
            group = _group(line, kind, devices)
            found[kind, group, _larger(kind, bool(started), _bytes(result), group)] += times
    return [Collective(*key, count) for key, count in sorted(found.items())]


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the program's own."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation is run, of those that are."""
    calls = {name: list(_calls(lines, bodies)) for name, lines in bodies.items()}
    waiting = Counter(called for name in calls for called, _ in calls[name])
    # Those that nothing calls, but for the program itself, are leftovers.
    times = Counter({entry: 1})
    ready = [name for name in bodies if not waiting[name]]
    while ready:
        name = ready.pop()
        for called, count in calls[name]:
            times[called] += times[name] * count
            waiting[called] -= 1
            if not waiting[called]:
                ready.append(called)
    return {name: count for name, count in times.items() if count}


def _calls(lines: list[str], bodies: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Computations that these lines run, and how often."""
    for line in lines:
        loop = _WHILE.search(line)
        if loop:
            condition, body = loop.groups()
            known = _KNOWN_TRIPS.search(line)
            trips = int(known[1]) if known else _trips(bodies[condition])
            yield condition, trips
            yield body, trips
        for match in _CALLED.finditer(line):
            for name in match[1].split(", "):
                if name.lstrip("%") in bodies:
                    yield name.lstrip("%"), 1


def loops(lines: list[str]) -> list[tuple[str, str]]:
    """Condition and body of each loop of a computation."""
    found = (_WHILE.search(line) for line in lines)
    return [(loop[1], loop[2]) for loop in found if loop]


def _trips(condition: list[str]) -> int:
    """Turns of a loop that counts up to a constant; 1 for another."""
    bound = next((match[1] for line in condition if (match := _BOUND.search(line))), None)
    for line in condition:
        match = re.search(rf"%?{re.escape(str(bound))} = .* constant\((\d+)\)", line)
        if match:
            return int(match[1])
    return 1


def _bytes(result: str) -> int:
    """Of all arrays in the text of a type."""
    sizes = (
        BITS[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _SHAPE.findall(result)
        if kind in BITS
    )
    return sum(sizes) // 8


def _group(line: str, kind: str, devices: int) -> int:
    if kind == "collective-permute":
        return 2
    if match := _LISTED.search(line):
        return len(match[1].split(","))
    if match := _IOTA.search(line):
        return int(match[2])
    if match := _NAMED.search(line):
        sizes = dict(part.split("=") for part in match[1].split(","))
        return math.prod(int(sizes[name]) for name in match[2].split(","))
    return devices


def _larger(kind: str, started: bool, result: int, group: int) -> int:
    """Bytes of the larger side, from those of the result.

    What is only started has both sides in its result, unless they are the same.
    """
    if kind == "all-reduce":
        return result
    if kind in ("all-to-all", "collective-permute"):
        return result // 2 if started else result
    if started:
        return result * group // (group + 1)
    return result * group if kind == "reduce-scatter" else result
