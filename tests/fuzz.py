"""Reads mutated copies of what comes from strangers, for some minutes.

    python -m tests.fuzz [MINUTES] [--only=TARGET] [--seed=SEED]     # or make fuzz; default: 10

Each copy has to end in one line (a `UserError`) or be read, within a minute, without a gigabyte of
memory, and must leave nothing half-written. What goes wrong is printed with its target and seed:
the same two make the same copy again.
"""

import contextlib
import functools
import gzip
import importlib.util
import io
import json
import math
import pickletools
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import absl.logging

import tests

tests.share_checks_of_inner_functions()  # as in conftest.py: it may be imported before that

from lenext.errors import UserError  # noqa: E402 # whose types are checked like the others'

SECONDS = 60.0  # allowed for one copy
ROOM = 2**30  # bytes allowed beside what is there already
LINE = 2000  # characters allowed in a message
GOLDEN = Path(__file__).parent / "importing" / "golden"

WORDS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e-40, 1e308,
    float("nan"), float("inf"), "", "x", "0", "x" * 10_000, "\ud800", "\0", "\33[2J", "../../x",
    "/", "é", [], {}, [[]], [0], [None], {"": None}, [1e9] * 100, "NOTHING",
]  # fmt: skip
LENGTHS = (0, 1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)


class Target(NamedTuple):
    """What is read.

    Attributes:
      make: fills a folder with what a stranger would give.
      file: in it, which is mutated; a pattern, where its name is not the same for all times.
      read: reads the folder; it removes what it writes, unless it raises.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]


class Trouble(Exception):
    """What must not be."""


# How copies are made: from the seed, the file and nothing else.


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


# How they are read.


def attempt(target: Target, whole: Path, seed: int) -> str:
    """Reads one mutated copy.

    Args:
      target: what is read.
      whole: a folder that `target.make` has filled.
      seed: of the mutation.

    Returns:
      "read" or "refused".

    Raises:
      Trouble: anything else.
    """
    # What ends the process itself, as a library's abort does, leaves the folder, named by the seed.
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{seed}-") as name:
        folder = Path(name) / "in"
        shutil.copytree(whole, folder)
        path = next(folder.glob(target.file))
        path.write_bytes(mutate(target.file, path.read_bytes(), random.Random(seed)))
        before = _held(Path(name))
        start, out, err = time.monotonic(), io.StringIO(), io.StringIO()
        result, said = "read", ""
        try:
            with _bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                target.read(folder)
        except UserError as error:
            result, said = "refused", str(error)
            if not said.strip() or not said.isprintable() or len(said) > LINE:
                raise Trouble(f"not one line: {said!r}") from None
            if any(isinstance(x, MemoryError) for x in _causes(error)):
                raise Trouble(f"took more than {ROOM:,} bytes ({said})") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            last = traceback.format_exc(limit=-4)
            raise Trouble(f"{type(error).__name__}: {error}\n{last}") from None
        if time.monotonic() - start > SECONDS:
            raise Trouble(f"took more than {SECONDS:.0f} s")
        for line in (out.getvalue() + err.getvalue()).split("\n"):
            if not line.isprintable() or len(line) > LINE:
                raise Trouble(f"not printable: {line!r}")
        after = _held(Path(name))
        changed = sorted(x for x in {*before, *after} if before.get(x) != after.get(x))
        if changed and (result == "refused" or any("/." in x for x in changed)):
            raise Trouble(f"left behind: {', '.join(changed)} ({said})")
        return result


def _held(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder, and beside it."""
    return {str(x): x.read_bytes() if x.is_file() else None for x in folder.rglob("*")}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raises within what hangs or takes too much memory; a warning is an error, as in the tests."""

    def late(number: int, frame: object) -> None:
        raise Trouble(f"took more than {SECONDS:.0f} s")

    # Of data: address space alone a thread reserves by the 64 MB.
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + ROOM, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# What is read.


@functools.cache
def _golden(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
        (folder / "logits.npy").unlink()

    return make


def _sharded(folder: Path) -> None:
    """A golden checkpoint in two files and an index."""
    from safetensors.numpy import load_file, save_file

    _golden("llama")(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _sharded_pickle(folder: Path) -> None:
    """A golden pickle as the only file of an index."""
    from lenext.importing.torch_pickle import TorchFile

    _golden("gau_alpha")(folder)
    shard = "pytorch_model-00001-of-00001.bin"
    index = dict.fromkeys(TorchFile(folder / "pytorch_model.bin").tensors, shard)
    (folder / "pytorch_model.bin").rename(folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def _with_tokenizer(folder: Path) -> None:
    """A golden checkpoint with a tokeniser of few words, and what is said of it."""
    import tokenizers as library

    _golden("llama")(folder)
    words = ["<s>", "</s>", "<unk>", "the", "thing", "in"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(words[:3])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    content = {"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(content))


def _byte_level(folder: Path) -> None:
    """A golden GPT-2 with a tokeniser in two files."""
    _golden("gpt2")(folder)
    words = [*"thein", "th", "the", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))


def _gguf(folder: Path) -> None:
    """A golden Llama with a tokeniser of bytes and one merge."""
    import gguf

    from tests.importing.gguf_files import convert_golden, sizes

    rows = 37
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    words = [*map(chr, range(ord("a"), ord("a") + rows - 2)), "th", "</s>"]
    calls = [
        ("add_tokenizer_model", "gpt2"), ("add_tokenizer_pre", "llama-bpe"),
        ("add_token_list", words), ("add_token_types", [normal] * (rows - 1) + [control]),
        ("add_token_merges", ["t h"]), ("add_bos_token_id", rows - 1),
        ("add_eos_token_id", rows - 1), ("add_add_bos_token", True),
        ("add_chat_template", "{{ messages }}"),
    ]  # fmt: skip
    path = folder / "model.gguf"
    convert_golden("llama_llama3", path, calls=[*sizes("llama_llama3")[1], *calls])


class _NoCheckpoints:
    """Stands for `Checkpoints`, of which nothing is a stranger's: Orbax takes most of the time."""

    def __init__(self, workdir: Path, **how: Any):
        pass

    def __enter__(self) -> "_NoCheckpoints":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def save(self, step: int, *what: Any) -> None:
        pass


def _import(folder: Path, source: str = "") -> None:
    from lenext.config import to_config
    from lenext.data import open_tokenizer
    from lenext.importing import import_checkpoint
    from lenext.workdirs.workdir import read_run_config

    with mock.patch("lenext.importing.convert.Checkpoints", _NoCheckpoints):
        import_checkpoint(folder / source, folder / "out")
    try:
        config = to_config(read_run_config(folder / "out") or {})
        if config.data.tokenizer:
            open_tokenizer(config)
    except ValueError as error:  # what was taken should be there to be used
        raise RuntimeError(f"imported, and then: {error}") from None
    shutil.rmtree(folder / "out")


def _import_tokenizer(folder: Path) -> None:
    """Of an import, what concerns the tokeniser; the model takes most of the time."""
    from lenext.data import get_tokenizer
    from lenext.importing.recipes import read_recipe
    from lenext.importing.tokenizer import read_tokenizer

    found = read_tokenizer(folder, read_recipe(folder).model["vocab_size"])
    if found.name:
        (folder / "out").mkdir()
        (folder / "out" / found.name).write_bytes(found.content)
        tokenizer = get_tokenizer(str(folder / "out" / found.name), eos=found.eos)
        tokenizer.encode_batch(["the thing"])
        shutil.rmtree(folder / "out")


TEXTS = ["def main():\n    return 0\n", "Ünïcode, 12345 and <|endoftext|>", ""]


def _tokenizer(folder: Path) -> None:
    """A byte-level BPE with merges, added tokens and a post-processor."""
    import tokenizers as library
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the")]
    words = ["<s>", "</s>", "[PAD]", *alphabet, *map("".join, merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = library.Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(words[:3])
    made.add_tokens([AddedToken("<|more|>", special=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.save(str(folder / "tokenizer.json"))


def _vocabulary(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123)), "##e", "die"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def _tokenize(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from lenext.data import get_tokenizer

        tokenizer = get_tokenizer(str(folder / name))
        for ids in tokenizer.encode_batch(TEXTS):
            tokenizer.decode(ids)

    return read


def _lines() -> bytes:
    lines = [json.dumps({"text": f"line {i} of a text", "id": i, "more": [i]}) for i in range(9)]
    return "\n".join([*lines, ""]).encode()


def _jsonl(folder: Path) -> None:
    (folder / "some.jsonl").write_bytes(_lines())


def _jsonl_gz(folder: Path) -> None:
    (folder / "some.jsonl.gz").write_bytes(pack(_lines()))


def _txt(folder: Path) -> None:
    (folder / "some.txt").write_bytes("Ünïcode\n".encode("utf-16") * 9)


def _read_texts(folder: Path) -> None:
    from lenext.data.text_files import look_at, read_parts
    from lenext.data.text_paths import find_files

    found = find_files(str(folder))
    for path in found.paths:
        look_at(found.root, path)
        for name, text in read_parts(found.root, path, "text"):
            assert name.startswith(path)
            text.decode(errors="replace")


def _html(folder: Path) -> None:
    page = (
        '<!doctype html><meta charset="iso-8859-1"><title>T</title><h1>Caf&eacute; &#8211;</h1>'
        "<p>some <b>words<br></b><!-- and --><ul><li>one<li>two</ul><pre>\n x\n</pre><![CDATA[y]]>"
        "<table><tr><td>a<td>b</table><script>no</script>\xfcber"
    )
    (folder / "some.html").write_bytes(page.encode("latin-1"))


def _pdf(folder: Path) -> None:
    from tests.data.pdf_files import make_pdf

    (folder / "some.pdf").write_bytes(make_pdf(["some text", "of lines"], ["another page"]))


def _read_documents(folder: Path) -> None:
    from lenext.data.documents import SUFFIXES, read_documents
    from lenext.data.text_paths import find_files

    found = find_files(str(folder), SUFFIXES)
    for path in found.paths:
        for document in read_documents(found.root, path, "text"):
            document.text.encode()
            assert document.text or document.reason


def _cache(folder: Path) -> Any:
    from lenext.data import get_tokenizer
    from lenext.data.token_cache import cached_tokens

    texts = [("a", b"some text"), ("b", "Ünïcode".encode())]
    return cached_tokens(folder, ["some"], lambda: texts, get_tokenizer("bytes"))


def _read_cache(folder: Path) -> None:
    """What is damaged is written anew, so it is always the same."""
    (folder / "new").mkdir()
    found, made = _cache(folder), _cache(folder / "new")
    shutil.rmtree(folder / "new")
    for one, other in ((found.tokens, made.tokens), (found.offsets, made.offsets)):
        assert one.dtype == other.dtype, "another type"
        assert (one == other).all(), "other numbers"
    assert found.names == made.names, "other names"


def _run(folder: Path) -> None:
    """A run as an import makes it, with metrics and a calibration."""
    from lenext.importing import import_checkpoint

    _with_tokenizer(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        import_checkpoint(folder, folder / "run")
    for path in (x for x in folder.iterdir() if x.is_file()):
        path.unlink()
    path = folder / "run" / "config.json"  # the same wherever the folder is
    path.write_text(path.read_text().replace(str(folder), ""))
    lines = [
        json.dumps({"step": i, "loss": 5.0 / i, "eval/validation/loss": 5.0}) for i in range(1, 7)
    ]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    entry = {
        "method": "entropy_matched",
        "step": 0,
        "weights": "params",
        "parts": [{"temperature": {"slopes": [[0.1] * 4] * 4}}] * 2,
    }
    (folder / "run" / "calibration.json").write_text(json.dumps({"calibrations": [entry]}))


class _Enough(BaseException):
    """What was to be read is."""


def _export(folder: Path) -> None:
    from lenext.importing import export_checkpoint

    export_checkpoint(folder / "run", folder / "out")
    shutil.rmtree(folder / "out")


def _load_run(folder: Path) -> None:
    """As training and evaluation begin, up to where they turn to the data."""
    from lenext.config import to_config
    from lenext.evaluation import evaluate_run
    from lenext.training import validate
    from lenext.workdirs.workdir import check_run, read_run_config

    run = folder / "run"
    config = to_config(read_run_config(run) or {})
    with contextlib.suppress(UserError):
        validate(config)
        check_run(run, config)
    with (
        mock.patch("lenext.evaluation.workdir_sweep.open_split", side_effect=_Enough),
        contextlib.suppress(_Enough),
    ):
        evaluate_run(config, run)


@functools.cache
def _loaded() -> Any:
    """The run that `_run` makes, which takes long to read."""
    from lenext.workdirs.pretrained import load_run

    with tempfile.TemporaryDirectory() as name:
        _run(Path(name))
        return load_run(Path(name) / "run")


def _load_calibrated(folder: Path) -> None:
    from lenext.workdirs.calibration import under_method

    run = _loaded()
    under_method(run, folder / "run", run.read_methods("entropy_matched"))


def _sealed(folder: Path) -> None:
    """Two checkpoints, as far as their seals are concerned."""
    from lenext.workdirs.seals import seal

    for step in (1, 2):
        checkpoint = folder / "checkpoints" / str(step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "some").write_text("some")
        (checkpoint / "other").write_text("other")
        seal(checkpoint, folder / "seals" / f"{step}.json")


def _newest(folder: Path) -> None:
    from lenext.workdirs.checkpoints import newest_step, weights_identity

    step = newest_step(folder)
    assert step is not None
    weights_identity(folder, step)


def _resume_metrics(folder: Path) -> None:
    from lenext.training.metrics import MetricsWriter

    # It keeps what is sound and drops the rest, as after a kill.
    MetricsWriter(folder / "run", resume_step=3).close()


def _evaluation(folder: Path) -> None:
    """Two evaluated workdirs, as far as a comparison reads them."""
    for name, shift in (("one", 0.0), ("two", 0.5)):
        cells = folder / name / "eval" / "cells"
        cells.mkdir(parents=True)
        kept = []
        for length in (32, 64):
            sums = {
                "metric": "loss", "positions": None, "predictions": 2 * length,
                "numerator": [90.0 + shift, 70.0], "denominator": [float(length)] * 2,
            }  # fmt: skip
            cell = {
                "length": length, "protocol": "full_context", "documents": [0, 1], "sequences": 2,
                "tokens": 2 * length, "seconds": 1.0, "compile_seconds": 1.0, "peak_bytes": 1,
                "flops": 1.0, "cache_bytes": None, "unsuited": [], "sums": [sums], "heads": [],
                "provenance": {},
            }  # fmt: skip
            content = {"key": {"sequences": "0", "probe_rows": 8}, "cell": cell}
            (cells / f"{length}-0.json").write_text(json.dumps(content))
            kept.append({"method": "softmax", "length": length, "cell": f"{length}-0.json"})
        settings = {"bootstrap": 20, "seed": 0, "margin": 0.05}
        trained = {"model": {"method": "softmax"}, "data": {"train_length": 32}}
        source = {"config": {"eval": settings}, "trained": trained}
        content = {"provenance": source, "headline": "loss", "cells": kept}
        (folder / name / "eval" / "results.json").write_text(json.dumps(content))


def _compare(folder: Path) -> None:
    """Beside the comparison, what another evaluation of the same workdir reads."""
    from lenext.compare import compare
    from lenext.evaluation.cells import Cells
    from lenext.evaluation.results import _tell_replaced

    _tell_replaced(folder / "one" / "eval" / "results.json", [])
    key = {"sequences": "0", "probe_rows": 8}
    with mock.patch.object(Cells, "name", return_value="32-0.json"):
        Cells(folder / "one" / "eval" / "cells").find(32, key)
    compare([folder / "one", folder / "two"], folder / "out")
    shutil.rmtree(folder / "out")


def _training() -> Any:
    """A run of an experiment."""
    from lenext.config import base_config
    from lenext.config.base import smoke
    from lenext.sweeps.runs import over_seeds

    return over_seeds("softmax", smoke(base_config()), ["softmax"], [0])[0]


def _experiment(folder: Path) -> None:
    """A run of an experiment, trained and evaluated, on another machine."""
    from lenext.config import plain

    _evaluation(folder)
    cells = [json.loads(x.read_text())["cell"] for x in sorted(folder.glob("one/eval/cells/*"))]
    shutil.rmtree(folder / "one")
    shutil.rmtree(folder / "two")
    run = _training()
    results, config = run.results(folder, "softmax"), plain(run.config)
    results.parent.mkdir(parents=True)
    source = {"git": "0", "versions": {"jax": "0"}}
    content = {"seconds": 1.0, "provenance": source | {"config": config}, "cells": cells}
    results.write_text(json.dumps(content))
    (run.workdir(folder) / "config.json").write_text(json.dumps(config))
    content = {"stopped": None, "seconds": 2.0, "provenance": source}
    run.outcome(folder).write_text(json.dumps(content))


def _collect(folder: Path) -> None:
    from lenext.sweeps.experiment import Experiment, collect
    from lenext.sweeps.progress import Rates

    run = _training()
    Rates.measured([folder]).seconds_left([run], [folder])
    experiment = Experiment("some", lambda size: [run], "softmax", ["loss"], lambda content: {})
    collect(experiment, [run], "smoke", [folder])


def _results(folder: Path) -> None:
    """The smallest results that claims are judged by."""
    from experiments.report import HERE

    content = json.loads((HERE / "results" / "dilution.json").read_text())
    lengths = sorted({record["length"] for record in content["records"]})
    content["records"] = [x for x in content["records"] if x["length"] in (lengths[0], lengths[-1])]
    (folder / "dilution.json").write_text(json.dumps(content))


def _report(folder: Path) -> None:
    from experiments import dilution
    from experiments.report import judge
    from experiments.run import remake

    with contextlib.suppress(UserError):
        judge(folder)
    with mock.patch("experiments.dilution.draw_metrics", return_value=b""):  # most of the time
        remake(dilution.EXPERIMENT, folder)
    for path in folder.glob("dilution.[mp]*"):
        path.unlink()


TARGETS = {
    "config.json": Target(_golden("llama_llama3"), "config.json", _import),
    "config.json of GPT-2": Target(_golden("gpt2"), "config.json", _import),
    "config.json of GAU-α": Target(_golden("gau_alpha"), "config.json", _import),
    "config.json of Qwen2": Target(_golden("qwen2_windows"), "config.json", _import),
    "generation_config.json": Target(_with_tokenizer, "generation_config.json", _import_tokenizer),
    "tokenizer_config.json": Target(_with_tokenizer, "tokenizer_config.json", _import_tokenizer),
    "tokenizer.json of an import": Target(_with_tokenizer, "tokenizer.json", _import_tokenizer),
    "vocab.json": Target(_byte_level, "vocab.json", _import_tokenizer),
    "merges.txt": Target(_byte_level, "merges.txt", _import_tokenizer),
    "safetensors": Target(_golden("llama_tied"), "model.safetensors", _import),
    "index": Target(_sharded, "model.safetensors.index.json", _import),
    "pickle": Target(_golden("gau_alpha"), "pytorch_model.bin", _import),
    "index of pickles": Target(_sharded_pickle, "pytorch_model.bin.index.json", _import),
    "GGUF": Target(_gguf, "model.gguf", functools.partial(_import, source="model.gguf")),
    "tokenizer.json": Target(_tokenizer, "tokenizer.json", _tokenize("tokenizer.json")),
    "vocab.txt": Target(_vocabulary, "vocab.txt", _tokenize("vocab.txt")),
    "txt": Target(_txt, "some.txt", _read_texts),
    "jsonl": Target(_jsonl, "some.jsonl", _read_texts),
    "jsonl.gz": Target(_jsonl_gz, "some.jsonl.gz", _read_texts),
    "some.jsonl as documents": Target(_jsonl, "some.jsonl", _read_documents),
    "html": Target(_html, "some.html", _read_documents),
    "pdf": Target(_pdf, "some.pdf", _read_documents),
    "meta.json": Target(_cache, "*/meta.json", _read_cache),
    "a run's config.json": Target(_run, "run/config.json", _load_run),
    "an export's config.json": Target(_run, "run/source/config.json", _export),
    "an export's tensors.json": Target(_run, "run/source/tensors.json", _export),
    "seal": Target(_sealed, "seals/2.json", _newest),
    "metrics.jsonl": Target(_run, "run/metrics.jsonl", _resume_metrics),
    "calibration.json": Target(_run, "run/calibration.json", _load_calibrated),
    "results.json": Target(_evaluation, "one/eval/results.json", _compare),
    "outcome.json": Target(_experiment, "*/outcome.json", _collect),
    "an experiment's config.json": Target(_experiment, "*/config.json", _collect),
    "an experiment's evaluation": Target(_experiment, "*/evaluations/*.json", _collect),
    "dilution.json": Target(_results, "dilution.json", _report),
    "cell": Target(_evaluation, "one/eval/cells/32-0.json", _compare),
}


for _name, _package in {"html": "bs4", "pdf": "pypdf"}.items():
    if importlib.util.find_spec(_package) is None:  # what the extra documents has
        del TARGETS[_name]


def prepare(names: Iterable[str], place: Path) -> dict[str, Path]:
    """Fills a folder a target with what it reads, which is checked to be read."""
    wholes: dict[Callable[[Path], None], Path] = {}
    for target in (TARGETS[name] for name in names):
        if target.make not in wholes:
            wholes[target.make] = place / str(len(wholes))
            wholes[target.make].mkdir()
            target.make(wholes[target.make])
        shutil.copytree(wholes[target.make], place / "copy")
        target.read(place / "copy")
        shutil.rmtree(place / "copy")
    return {name: wholes[TARGETS[name].make] for name in names}


def fuzz(
    seconds: float,
    seed: int,
    only: str = "",
    tell: Callable[[str], None] = lambda line: None,
    *,
    rounds: float = math.inf,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Goes around the targets for so long or so often, and to the end of a round.

    Returns:
      By target, how many copies were "read", "refused" and "trouble"; and what that was.
    """
    names = [only] if only else [*TARGETS]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    trouble = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        wholes = prepare(names, Path(place))
        first, end = seed, time.monotonic() + seconds
        while time.monotonic() < end and seed - first < rounds:
            for name in names:
                try:
                    result = attempt(TARGETS[name], wholes[name], seed)
                except Trouble as error:
                    result = "trouble"
                    trouble.append(f"{name}, seed {seed}: {error}")
                    tell(trouble[-1])
                counts[name][result] += 1
            seed += 1
    return counts, trouble


def main() -> None:
    """Parses the words and goes on until the time is over."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # as the commands do
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
    counts, trouble = fuzz(
        60 * float(words[0] if words else 10),
        int(options.get("seed", 0)),
        options.get("only", ""),
        lambda line: print(line, flush=True),
    )
    for name, found in counts.items():
        print(f"{name}: {', '.join(f'{count} {how}' for how, count in found.items())}")
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
