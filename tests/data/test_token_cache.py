import dataclasses
import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lenext.data import ByteTokenizer, Corpus, Frame, get_tokenizer, token_cache
from lenext.data.token_cache import Names, Pages, cached_tokens, smallest_dtype
from lenext.errors import UserError
from tests.data import kinds

IDENTITY = ("made:up/config", "train", "1234")
TEXTS = [("a", b"one"), ("b", b""), ("c \u00e9", b"th"), ("c \u00e9", "r\u00e9e"), ("d", b"\xff")]
BYTES = [b"one", b"", "thr\u00e9e".encode(), b"\xff"]


@dataclasses.dataclass(frozen=True)
class Large(ByteTokenizer):
    """Bytes, of a vocabulary of another size, which ends documents."""

    vocab_size: int = 2**16 + 1
    frame: Frame = Frame((7,), 2**16)  # noqa: RUF009 # is frozen
    fingerprint: str = "large"


def no_texts():
    raise AssertionError("this should have been found on disk")


def documents(kept):
    corpus = Corpus(kept.tokens, kept.offsets, kept.names, "0", "made-up", "train")
    return [corpus.document(i).tolist() for i in range(len(corpus.names))]


def only_folder(root):
    (folder,) = root.iterdir()
    return folder


def test_writes_once_and_maps(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lenext")
    first = cached_tokens(tmp_path, IDENTITY, lambda: TEXTS, ByteTokenizer())
    again = cached_tokens(tmp_path, IDENTITY, no_texts, ByteTokenizer())
    folder = only_folder(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"tokenising made:up/config, train, 1234 into {folder}"
    ]
    for kept in (first, again):
        assert documents(kept) == [list(data) for data in BYTES]
        assert kept.names == ["a", "b", "c \u00e9", "d"]
        assert isinstance(kept.tokens, np.memmap)
        assert kept.tokens.dtype == np.uint16
        assert not kept.tokens.flags.writeable
    assert folder.name.startswith("made-up-config-")
    assert folder.stat().st_mode & 0o777 == 0o755  # others may read it


def test_a_frame_surrounds_each_document_once(tmp_path):
    kept = cached_tokens(tmp_path, IDENTITY, lambda: TEXTS, Large())
    assert documents(kept) == [[7, *data, 2**16] for data in BYTES]
    assert kept.tokens.dtype == np.int32


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [
        (2, "uint8"), (256, "uint8"), (257, "uint16"), (258, "uint16"), (2**16, "uint16"),
        (2**16 + 1, "int32"), (2**31, "int32"), (2**31 + 1, "uint32"),
    ],
)  # fmt: skip
def test_smallest_dtype(vocab_size, dtype):
    assert smallest_dtype(vocab_size) == np.dtype(dtype)


def test_another_dataset_split_content_or_tokenizer_is_another_folder(tmp_path):
    variants = [
        (IDENTITY, ByteTokenizer()),
        (("other", *IDENTITY[1:]), ByteTokenizer()),
        (("made:up/config", "validation", "1234"), ByteTokenizer()),
        (("made:up/config", "train", "1235"), ByteTokenizer()),
        (IDENTITY, Large()),
    ]
    for i, (identity, tokenizer) in enumerate(variants):
        kept = cached_tokens(tmp_path, identity, lambda i=i: [("x", str(i))], tokenizer)
        assert kept.tokens[len(tokenizer.frame.start)] == ord(str(i))
    assert len(list(tmp_path.iterdir())) == len(variants)


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("size", [700, 9001])
def test_a_document_in_parts_has_the_ids_of_the_whole(tmp_path, kind, size):
    """Wherever it is cut: in a word, a number, a run of spaces, between a space and a word."""
    tokenizer = get_tokenizer(str(kinds.save(kind, tmp_path)), bos="none", eos="none")
    rng = np.random.default_rng(size)
    words = ["Pass", "key", "é", "abcd\n", "\n\n", "  ", "   x", "48213", "7", "fgh", "k" * 50]
    text = " ".join(rng.choice(words, 9000))
    cuts = [0, *np.cumsum(rng.integers(size // 2, size, 99))]
    parts = [text[a:b] for a, b in itertools.pairwise([*cuts, len(text)]) if a < len(text)]
    assert len(parts) > 4
    whole = [("a", "b"), *(("x", part.encode()) for part in parts), ("y", "b")]
    kept = cached_tokens(tmp_path / "kept", IDENTITY, lambda: whole, tokenizer)
    one = tokenizer.library.encode("b", add_special_tokens=False).ids
    assert documents(kept) == [
        one, tokenizer.library.encode(text, add_special_tokens=False).ids, one
    ]  # fmt: skip
    naive = np.concatenate(tokenizer.encode_batch(parts)).tolist()
    assert size > 700 or documents(kept)[1] != naive


def test_documents_that_were_cut_are_written_anew(tmp_path, monkeypatch):
    """Without another key, and only where there are any."""
    tokenizer = get_tokenizer(str(kinds.save("llama2", tmp_path)))
    identity, folder = ("text_files", "train"), tmp_path / "kept"
    cut = [("x", "Pass k"), ("x", "ey"), ("y", "ab")]
    monkeypatch.setattr(token_cache, "JOINED", {})
    monkeypatch.setattr(token_cache, "_encoded", token_cache._encode)
    before = documents(cached_tokens(folder, identity, lambda: cut, tokenizer))
    monkeypatch.undo()
    name = only_folder(folder)
    after = documents(cached_tokens(folder, identity, lambda: cut, tokenizer))
    assert after[0] == [1, *tokenizer.encode("Pass key"), 2]
    assert (len(after), after[1]) == (2, before[1])
    assert before[0] != after[0]
    assert only_folder(folder) == name
    cached_tokens(folder, identity, no_texts, tokenizer)

    monkeypatch.setattr(token_cache, "JOINED", {})
    asked, whole = [], [("x", "Pass key"), ("y", "ab")]
    cached_tokens(folder, ("text_files", "whole"), lambda: whole, tokenizer)
    monkeypatch.undo()
    for _ in range(2):
        cached_tokens(folder, ("text_files", "whole"), lambda: asked.append(1) or whole, tokenizer)
    assert asked == [1]  # read once to see that it was not cut, and not tokenised


def test_a_frame_that_goes_without_saying_changes_no_key(tmp_path):
    """Of what was kept before there was a choice."""
    path = str(kinds.save("llama2", tmp_path))
    for words in ({"bos": "none", "eos": "customary"}, {"bos": "none", "eos": "2,1"}):
        tokenizer = get_tokenizer(path, **words)
        assert tokenizer.document_identity == [tokenizer.fingerprint]
    assert get_tokenizer("bytes").document_identity == [ByteTokenizer().fingerprint]
    own = get_tokenizer(path).fingerprint
    assert get_tokenizer(path).document_identity == [own, [1], 2]
    assert get_tokenizer(path, bos="none", eos="none").document_identity == [own, [], None]
    assert get_tokenizer(path, bos="none", eos="1").document_identity == [own, [], 1]


def test_many_documents_in_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("lenext.data.token_cache.BATCH_BYTES", 100)
    monkeypatch.setattr("lenext.data.token_cache.BATCH_TEXTS", 7)
    # Parts of a document fall into different batches.
    texts = [(f"name{i // 3}", bytes([i % 256] * (i % 40))) for i in range(500)]
    kept = cached_tokens(tmp_path, IDENTITY, lambda: iter(texts), ByteTokenizer())
    expected = {}
    for name, data in texts:
        expected[name] = expected.get(name, []) + list(data)
    assert list(kept.names) == list(expected)
    assert documents(kept) == list(expected.values())


def damage_truncate(folder):
    with (folder / "tokens").open("r+b") as file:
        file.truncate(6)


def damage_remove(folder):
    (folder / "offsets").unlink()


def damage_meta(folder):
    (folder / "meta.json").write_text('{"dtype": "uint')


def damage_meta_gone(folder):
    (folder / "meta.json").unlink()


def damage_meta_type(folder):
    (folder / "meta.json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_remove, damage_meta, damage_meta_gone, damage_meta_type],
)
def test_a_damaged_folder_is_written_anew(tmp_path, damage):
    cached_tokens(tmp_path, IDENTITY, lambda: TEXTS, ByteTokenizer())
    damage(only_folder(tmp_path))
    kept = cached_tokens(tmp_path, IDENTITY, lambda: TEXTS, ByteTokenizer())
    assert documents(kept) == [list(data) for data in BYTES]
    cached_tokens(tmp_path, IDENTITY, no_texts, ByteTokenizer())
    assert list(tmp_path.iterdir()) == [only_folder(tmp_path)]


def test_an_error_leaves_nothing(tmp_path):
    def texts():
        yield "a", b"some"
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match=r"^line 2 is broken$"):
        cached_tokens(tmp_path, IDENTITY, texts, ByteTokenizer())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"^there is no text in made:up/config, train, 1234$"):
        cached_tokens(tmp_path, IDENTITY, lambda: [], ByteTokenizer())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write tokens to .*; give a writable data_dir or"):
        cached_tokens(tmp_path / "file", IDENTITY, lambda: TEXTS, ByteTokenizer())


WRITER = """
import os, signal, sys, time
from pathlib import Path
from lenext.data import ByteTokenizer
from lenext.data.token_cache import cached_tokens

folder, mode = Path(sys.argv[1]), sys.argv[2]

def texts():
    for i in range(200):
        yield f"{i:03}", bytes([i]) * 1000
        if mode == "killed" and i == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
    if mode == "together":  # neither ends before both have begun
        while len([p for p in folder.iterdir()]) < 2:
            time.sleep(0.01)

kept = cached_tokens(folder, ("x", "train"), texts, ByteTokenizer())
print(len(kept.tokens), len(kept.names))
"""


def start(folder, mode):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), mode],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_agree(tmp_path):
    processes = [start(tmp_path, "together") for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert results == [("200000 200\n", "")] * 2
    assert not only_folder(tmp_path).name.startswith(".")


def test_what_a_killed_process_wrote_is_not_believed(tmp_path):
    process = start(tmp_path, "killed")
    process.communicate(timeout=60)
    assert process.returncode < 0
    assert only_folder(tmp_path).name.startswith(".")
    texts = [(f"{i:03}", bytes([i])) for i in range(3)]
    kept = cached_tokens(tmp_path, ("x", "train"), lambda: texts, ByteTokenizer())
    assert kept.tokens.tolist() == [0, 1, 2]


def test_names():
    text = np.frombuffer("aéb".encode(), np.uint8)
    names = Names(text, np.array([0, 1, 3, 3, 4]))
    assert list(names) == ["a", "é", "", "b"]
    assert names[-1] == "b"
    assert names[1:3] == ["é", ""]
    assert names == ["a", "é", "", "b"]
    assert names != ["a", "é", "", "c"]
    assert names != ["a"]
    assert len(names) == 4
    with pytest.raises(IndexError):
        names[4]


def test_a_million_names_take_no_objects(tmp_path):
    names = cached_tokens(
        tmp_path, IDENTITY, lambda: ((f"{i:05}", b"") for i in range(20_000)), ByteTokenizer()
    ).names
    assert (len(names), names[0], names[19_999]) == (20_000, "00000", "19999")
    sizes = json.loads((only_folder(tmp_path) / "meta.json").read_text())["bytes"]
    assert sizes == {
        "names": 5 * 20_000, "name_offsets": 8 * 20_001, "offsets": 8 * 20_001, "tokens": 0
    }  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads Linux's /proc")
def test_pages_that_were_read_do_not_stay_resident(tmp_path, monkeypatch):
    monkeypatch.setattr(Pages, "KEPT", 2**22)
    path = tmp_path / "tokens"
    np.arange(2**23).astype(np.uint16).tofile(path)  # 16 MiB
    tokens = np.memmap(path, np.uint16, mode="r")
    pages = Pages(tokens)
    most = 0
    for start in range(0, len(tokens), 2**14):
        part = tokens[start : start + 2**14]
        pages.touch(part)
        assert part[-1] == (start + 2**14 - 1) % 2**16
        if start % 2**18 == 0:
            maps = Path("/proc/self/smaps").read_text().split(str(path))[1]
            most = max(most, int(maps.split("Rss:")[1].split()[0]))
    assert 0 < most < 2**13  # KiB
