"""What a compiled program sends between devices, read off its HLO text."""

import math
import re
from collections import Counter
from typing import NamedTuple

BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
_WHILE = re.compile(r" while\(.*body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|branch_computations)=\{?%?([\w.-]+)")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


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

    A loop counts as often as XLA knows that it turns, and once where it does not.
    """
    lines = _lines_by_computation(text)
    times = _times(text, lines)
    found: Counter[tuple[str, int, int]] = Counter()
    for name, body in lines.items():
        for line in body:
            match = _OPERATION.search(line)
            if match is None or not times[name]:
                continue
            result, kind, started, operands = match.groups()
            sizes = [_bytes(result)] if not started else [_bytes(operands.split("), ")[0])]
            sizes.append(_bytes(result) // 2 if started else 0)
            found[kind, _group(line), max(sizes)] += times[name]
    return [Collective(*key, count) for key, count in sorted(found.items())]
