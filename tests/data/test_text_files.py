import gzip
import hashlib
import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import load_corpus, text_files
from lenext.data.text_files import (
    break_before,
    cut_tenth,
    files_fingerprint,
    find_files,
    read_parts,
)
from lenext.errors import UserError

SPLITS = ("train", "validation")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


@pytest.fixture
def load(tmp_path, tokenizer):
    """Returns a function from files to {split: {name: bytes}}."""

    def read(files, field="text"):
        found = {}
        for split in SPLITS:
            corpus = load_corpus(
                "text_files", split, tokenizer, tmp_path / "data", files=str(files), field=field
            )
            assert list(corpus.names) == sorted(corpus.names)
            found[split] = {
                name: corpus.document(i).astype("uint8").tobytes()
                for i, name in enumerate(corpus.names)
            }
        return found

    return read


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def lines(*texts, field="text"):
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts).encode()


def is_validation(name):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def test_bytes_are_preserved_and_documents_split_by_their_names(folder, load):
    files = {f"book{i}.txt": f"{i}: ".encode() + bytes(range(256)) for i in range(20)}
    files |= {"deep/er/windows.txt": b"\r\n\xff\xfe\x00", "empty.txt": b"", "notes.md": b"no"}
    write(folder, files)
    write(
        folder, {"some.jsonl": lines("caf\u00e9", "", "\U0001f600 two\n") + b'\n  \n{"text":"x"}'}
    )
    write(folder, {"more.jsonl.gz": lines(*(f"line {i}" for i in range(12)))})
    expected = {name: text for name, text in files.items() if text and name.endswith(".txt")}
    expected |= {
        "some.jsonl:000000001": "caf\u00e9".encode(),
        "some.jsonl:000000003": "\U0001f600 two\n".encode(),
        "some.jsonl:000000006": b"x",
    }
    expected |= {f"more.jsonl.gz:{i + 1:09}": f"line {i}".encode() for i in range(12)}
    found = load(folder)
    assert found["train"] | found["validation"] == expected
    assert set(found["validation"]) == set(filter(is_validation, expected))
    assert 1 <= len(found["validation"]) < len(expected) / 3


def test_folders_called_train_and_validation_are_the_splits(folder, load):
    write(
        folder, {"a/train/1.txt": b"1", "a/train/x/2.txt": b"2", "validation/3.jsonl": lines("3")}
    )
    expected = {
        "train": {"a/train/1.txt": b"1", "a/train/x/2.txt": b"2"},
        "validation": {"validation/3.jsonl:000000001": b"3"},
    }
    assert load(folder) == expected
    assert load(f"{folder}/a/train, {folder}/validation/*.jsonl") == expected
    write(folder, {"test/4.txt": b"4"})
    with pytest.raises(UserError, match=r"^text_files: test/4\.txt lies neither in train/ nor in"):
        load(folder)
    (folder / "test/4.txt").unlink()
    (folder / "validation/3.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"^text_files: all files in validation/ of .* are empty$"):
        load(folder)


@pytest.mark.parametrize("count", range(2, 6))
@pytest.mark.parametrize("side", SPLITS)
def test_few_documents_fill_both_splits(folder, load, count, side):
    # Names that would all fall into one split.
    names = (f"{i}.txt" for i in itertools.count())
    chosen = (name for name in names if is_validation(name) == (side == "validation"))
    files = {name: name.encode() for name in itertools.islice(chosen, count)}
    write(folder, files)
    found = load(folder)
    assert found["train"] | found["validation"] == files
    assert min(len(documents) for documents in found.values()) == 1


@pytest.mark.parametrize(
    ("text", "train"),
    [
        (b"a" * 85 + b"\n" + b"b c" * 5, 86),  # the line end in the 5 bytes before 90 of 101
        (b"a" * 80 + b"\n" + b"b" * 5 + b" " + b"c" * 13, 87),  # none there, but a space
        (b"a" * 100, 90),
        ("\u20ac".encode() * 33, 87),  # 89 is inside a character
    ],
)
def test_the_last_tenth_of_a_single_document(folder, load, text, train):
    write(folder, {"only.txt": text})
    assert load(folder) == {
        "train": {"only.txt": text[:train]},
        "validation": {"only.txt": text[train:]},
    }


@given(st.binary(min_size=2, max_size=300), st.integers(1, 50))
def test_a_cut_document_is_all_there(text, part):
    parts = [("x", text[i : i + part]) for i in range(0, len(text), part)]
    halves = [
        b"".join(piece for _, piece in cut_tenth(parts, len(text), split)) for split in SPLITS
    ]
    assert b"".join(halves) == text
    assert halves[0]
    assert len(text) // 10 <= len(halves[1]) <= 0.15 * len(text) + 2


@given(st.lists(st.sampled_from(["a", " ", "\n", "\u00e9", "\U0001f600"]), max_size=80))
def test_parts_of_a_file(monkeypatch_part, letters):
    text = "".join(letters).encode()
    parts = list(text_files._text_parts(io.BytesIO(text)))
    assert b"".join(parts) == text
    assert all(0 < len(part) <= monkeypatch_part for part in parts)
    for part in parts:
        part.decode()  # no character is cut in two


@pytest.fixture(scope="module")
def monkeypatch_part():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PART_BYTES", 10)
        yield 10


def test_break_before_by_hand():
    assert break_before(b"one two\nthree four", 12) == 8
    assert break_before(b"one two three", 10) == 8
    assert break_before(b"onetwothree", 5) == 5
    assert break_before("a\u20acb".encode(), 3) == 1
    assert break_before("a\u20acb".encode(), 4) == 4


def test_long_documents_in_small_parts_and_shards(folder, load, monkeypatch):
    monkeypatch.setattr(text_files, "PART_BYTES", 100)
    monkeypatch.setattr(text_files, "SHARD_BYTES", 2000)
    files = {f"{i}.txt": b"some words\n" * i for i in range(1, 100, 7)}
    write(folder, files)
    texts = {f"z.jsonl:{i:09}": b"word " * 60 for i in range(1, 9)}
    write(folder, {"z.jsonl": lines(*["word " * 60] * 8)})
    found = load(folder)
    assert found["train"] | found["validation"] == files | texts
    shards = list((folder.parent / "data").rglob("*train.array_record*"))
    assert len(shards) > 3


def test_find_files(folder):
    write(folder, dict.fromkeys(["b.txt", "a.jsonl", "a.jsonl.gz", "x/a.txt", "y/c.txt"], b"{}"))
    everything = ["a.jsonl.gz", "a.jsonl", "b.txt", "x/a.txt", "y/c.txt"]  # : follows, after .
    assert find_files(str(folder)) == (folder, everything)
    assert find_files(f"{folder}/x,{folder}/y/c.txt") == (folder, ["x/a.txt", "y/c.txt"])
    assert find_files(f"{folder}/**/*.txt") == (folder, ["b.txt", "x/a.txt", "y/c.txt"])
    assert find_files(f"{folder}/b.txt, {folder}/b.*") == (folder, ["b.txt"])
    assert find_files(f"{folder}/x") == (folder / "x", ["a.txt"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("", "dataset text_files needs to know its files: a folder, a file or a glob, several sep"),
        (" , ", "dataset text_files needs to know its files: a folder, a file or a glob, several"),
        ("{}/nope", "text_files: no file or folder {}/nope"),
        ("{}/*.txt", "text_files: no .txt, .jsonl, .jsonl.gz file in {}/*.txt"),
        ("{}", "text_files: no .txt, .jsonl, .jsonl.gz file in {}"),
        ("{}/notes.md", "text_files: no .txt, .jsonl, .jsonl.gz file in {}/notes.md"),
    ],
)
def test_files_that_are_not_there(folder, load, files, message):
    write(folder, {"notes.md": b"no text"})
    with pytest.raises(UserError) as error:
        load(files.format(folder))
    assert str(error.value).startswith(message.format(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "text_files: no text in a.txt of {}"),
        ("a.txt", b"x", "text_files: a single byte is too little for two splits in a.txt of {}"),
        ("a.jsonl", lines("a") + b"{'text'", "{}/a.jsonl, line 2: is no JSON: Expecting property"),
        ("a.jsonl", lines("a") + b"\xff", "{}/a.jsonl, line 2: is no JSON: 'utf-8' codec"),
        ("a.jsonl", b"[" * 100_000, "{}/a.jsonl, line 1: is no JSON: "),
        ("a.jsonl", b'\n["a"]', "{}/a.jsonl, line 2: should be a JSON object, not list"),
        ("a.jsonl", lines("a", field="b"), "{}/a.jsonl, line 1: has no field 'text'; it has: 'id'"),
        ("a.jsonl", b"{}", "{}/a.jsonl, line 1: has no field 'text'; it has: none"),
        ("a.jsonl", lines("a", None), "{}/a.jsonl, line 2: field 'text' should be a string, not N"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_they_should_be(folder, load, name, content, message):
    write(folder, {name: content})
    with pytest.raises(UserError) as error:
        load(folder)
    text = str(error.value)
    assert text.startswith(message.replace("{}", str(folder)))
    assert "\n" not in text
    assert not list((folder.parent / "data").rglob("*array_record*"))


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip"])
def test_a_broken_gzip_file(folder, load, damage):
    whole = bytearray(gzip.compress(lines(*map(str, range(1000)))))
    if damage == "changed":
        whole[len(whole) // 2] ^= 255
    write(folder, {"fine.txt": b"fine"})
    path = folder / "a.jsonl.gz"
    path.write_bytes({"cut": whole[:-20], "changed": whole, "no gzip": b"text"}[damage])
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value).startswith(f"{path}: broken gzip file: ")


def test_field(folder, load):
    write(folder, {"a.jsonl": lines("one", "two", field="body")})
    found = load(folder, field="body")
    assert set((found["train"] | found["validation"]).values()) == {b"one", b"two"}


def test_half_a_surrogate_pair_is_a_question_mark(folder):
    write(folder, {"a.jsonl": b'{"text": "a\\ud83db"}'})
    assert list(read_parts(folder, "a.jsonl", "text")) == [("a.jsonl:000000001", b"a?b")]


def test_changed_files_are_another_dataset(folder, load):
    write(folder, {"a.txt": b"one", "b.txt": b"two"})
    load(folder)
    write(folder, {"a.txt": b"six"})
    found = load(folder)
    assert found["train"] | found["validation"] == {"a.txt": b"six", "b.txt": b"two"}


def test_fingerprint_sees_names_contents_borders_and_field(tmp_path):
    folders = [
        {"a.txt": b"1", "b.txt": b"2"},
        {"a.txt": b"1", "c.txt": b"2"},
        {"a.txt": b"1", "b.txt": b"3"},
        {"a.txt": b"12", "b.txt": b""},
        {"a.txt": b"1"},
    ]
    seen = set()
    for number, files in enumerate(folders):
        write(tmp_path / str(number), files)
        for field in ("text", "body"):
            root, paths = find_files(str(tmp_path / str(number)))
            seen.add(files_fingerprint(root, paths, field))
            (tmp_path / str(number) / "notes.md").touch()
            assert find_files(str(tmp_path / str(number))) == (root, paths)
    assert len(seen) == 2 * len(folders)


def test_other_datasets_take_no_files(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"^dataset 'stdlib_source' takes no files \('x'\): only"):
        load_corpus("stdlib_source", "train", tokenizer, tmp_path, files="x")
