"""Mutated copies of files, for `tests.fuzz`: made of the seed, the file and nothing else."""

import gzip
import io
import json
import pickletools
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e-40, 1e308,
    float("nan"), float("inf"), "", "x", "0", "x" * 10_000, "\ud800", "\0", "\33[2J", "../../x",
    "/", "é", [], {}, [[]], [0], [None], {"": None}, [1e9] * 100, "NOTHING",
]  # fmt: skip
LENGTHS = (0, 1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)


def mutate(name: str, content: bytes, rng: random.Random) -> bytes:
    """One to three changes, most of them in what a file of that name is made of, some of its bytes.

    What is made of it: values and keys of JSON, also in a safetensors file's header and in what a
    .gz holds; opcodes of the pickle in a zip archive.
    """
    for _ in range(rng.choice((1, 1, 2, 3))):
        inner = INNER.get(Path(name).suffix, mutate_bytes)
        change = inner if rng.random() < 0.75 else mutate_bytes
        try:
            content = change(content, rng)
        except Exception:  # an earlier change has left nothing of that kind
            content = mutate_bytes(content, rng)
    return content


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Another value or key somewhere, or one less or more."""
    lines = content.split(b"\n") if content.count(b"\n{") else [content]  # .jsonl
    number = rng.randrange(len(lines))
    tree = json.loads(lines[number])
    holder, key = rng.choice([*_places(tree)])
    choice = rng.random()
    if choice < 0.6:
        holder[key] = rng.choice(WORDS)
    elif choice < 0.75:
        del holder[key]
    elif choice < 0.85:
        other, other_key = rng.choice([*_places(tree)])
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(holder, dict):
        holder[rng.choice((f"{key}x", "x", key.upper(), "\33[2J", "\ud800"))] = holder.pop(key)
    else:
        holder.insert(key, rng.choice(WORDS))
    lines[number] = json.dumps(tree).encode()
    return b"\n".join(lines)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list) and len(value) < 1000:
            yield from _places(value)


def mutate_header(content: bytes, rng: random.Random) -> bytes:
    """A change in the JSON that a safetensors file begins with, whose length stays right."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate_json(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


def mutate_gzip(content: bytes, rng: random.Random) -> bytes:
    """A change in the lines that are compressed."""
    inner = gzip.decompress(content)
    return pack((mutate_json if rng.random() < 0.5 else mutate_bytes)(inner, rng))


def pack(content: bytes) -> bytes:
    """As .gz, but stored: how zlib compresses differs from one machine to another."""
    return gzip.compress(content, 0, mtime=0)


def mutate_archive(content: bytes, rng: random.Random) -> bytes:
    """A change in a member of a zip archive, most often its pickle, whose checksum stays right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    pickles = [info for info in members if info.filename.endswith("data.pkl")]
    chosen = rng.choice(pickles if pickles and rng.random() < 0.9 else [*members])
    of_pickle = chosen in pickles and rng.random() < 0.7
    members[chosen] = (mutate_pickle if of_pickle else mutate_bytes)(members[chosen], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for info, data in members.items():
            archive.writestr(zipfile.ZipInfo(info.filename), data)
    return made.getvalue()


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """An opcode less, twice, elsewhere, or one that means something large."""
    places = [place for _, _, place in pickletools.genops(content)]
    first = rng.randrange(len(places) - 1)
    start, end = places[first], places[first + 1]
    choice = rng.randrange(5)
    if choice == 0:
        return content[:start] + content[end:]
    if choice == 1:
        return content[:end] + content[start:]
    if choice == 2:
        place = rng.choice(places)
        return content[:place] + content[start:end] + content[place:]
    length = rng.choice(LENGTHS)
    four, eight = (length % 2**32).to_bytes(4, "little"), length.to_bytes(8, "little")
    opcodes = (
        b"r" + four, b"j" + four, b"X" + four, b"B" + four, b"J" + four, b"\x8b" + four,
        b"\x8e" + eight, b"\x8d" + eight, b"\x96" + eight, b"\x95" + eight,
        b"p%d\n" % length, b"g%d\n" % length, b"I%d\n" % length, b"\x8a\x08" + eight,
        b"N", b"(", b"t", b")", b"]", b"}", b"a", b"s", b"R", b"b", b"Q", b"0", b"2", b"\x81",
        b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
    )  # fmt: skip
    return content[:start] + rng.choice(opcodes) + content[end if choice == 3 else start :]


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes cut off, changed, put in, left out, or a length in their place."""
    data = bytearray(content)
    at = rng.randrange(len(data) + 1)
    # The first bytes and the last ones say lengths and kinds.
    at = rng.choice((at, min(at, at % 16), max(0, len(data) - at % 64)))
    choice = rng.randrange(6)
    if choice == 0:
        return bytes(data[:at])
    if choice == 1:
        data[at : at + 1] = bytes([rng.randrange(256)])
    elif choice == 2:
        data[at:at] = rng.randbytes(rng.choice((1, 8, 300)))
    elif choice == 3:
        del data[at : at + rng.choice((1, 8, 300))]
    elif choice == 4:
        number = rng.choice((*LENGTHS, len(data)))
        data[at : at + 8] = number.to_bytes(8, "little")
    else:
        other = rng.randrange(len(data) + 1)
        data[at:at] = data[other : other + rng.choice((1, 20, 500))]
    return bytes(data)


def mutate_front(content: bytes, rng: random.Random) -> bytes:
    """A change before the numbers, which are at the end of a GGUF file, and most of it."""
    end = min(len(content), 4096)
    return mutate_bytes(content[:end], rng) + content[end:]


INNER = {
    ".json": mutate_json,
    ".jsonl": mutate_json,
    ".gz": mutate_gzip,
    ".safetensors": mutate_header,
    ".bin": mutate_archive,
    ".gguf": mutate_front,
}
