import codecs
import gzip
import hashlib
import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import get_tokenizer, load_corpus, summary, text_files
from lenext.data.text_files import TextFiles, break_before, cut_tenth, read_parts
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
    (folder / "validation/3.jsonl").write_bytes(b"\n")
    with pytest.raises(
        UserError, match=r"^text_files: all files for validation in .* are empty: v"
    ):
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


def fingerprint(folder, field="text"):
    return TextFiles(files=str(folder), field=field, data_dir=str(folder) + "-data").fingerprint


def by_hand(files, field=b"text"):
    """What it was before encodings and more names of splits were known."""
    whole = hashlib.sha256(field + b"\0")
    for name, content in files.items():
        whole.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return whole.hexdigest()[:12]


def test_fingerprint_sees_names_contents_borders_and_field(tmp_path):
    folders = [
        {"a.txt": b"1", "b.txt": b"2"},
        {"a.txt": b"1", "c.txt": b"2"},
        {"a.txt": b"1", "b.txt": b"3"},
        {"a.txt": b"12", "b.txt": b""},
        {"a.txt": b"1"},
        {"a.jsonl": codecs.BOM_UTF8 + b"{}", "b.txt": b"\xff \xc3"},
        {"train/a.txt": b"1", "train/test/b.txt": b"3", "validation/c.txt": b"2"},
    ]
    seen = set()
    for number, files in enumerate(folders):
        write(tmp_path / str(number), files)
        for field in ("text", "body"):
            seen.add(found := fingerprint(tmp_path / str(number), field))
            assert found == by_hand(files, field.encode())
            (tmp_path / str(number) / "notes.md").touch()
            assert fingerprint(tmp_path / str(number), field) == found
    assert len(seen) == 2 * len(folders)


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": codecs.BOM_UTF8 + b"1", "b.txt": b"2"},
        {"a.txt": "1".encode("utf-16"), "b.txt": b"2"},
        {"train/a.txt": b"1", "val/b.txt": b"2"},
        {"test/b.txt": b"2", "train/a.txt": b"1"},
        {"test/b.txt": b"2", "train/a.txt": b"1", "validation/c.txt": b"3"},
        {"train.jsonl": b'{"text": "1"}', "validation.jsonl": b'{"text": "2"}'},
    ],
)
def test_what_reads_otherwise_than_it_did_is_another_dataset(tmp_path, files):
    write(tmp_path / "texts", files)
    assert fingerprint(tmp_path / "texts") != by_hand(files)


TEXT = "Gr\u00fc\u00dfe\r\nund \u2028 \U0001f600\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(folder, load, encoding):
    def encoded(text):
        return ("\ufeff" + text).encode(encoding)

    rows = [json.dumps({"text": f"{i} {TEXT}"}, ensure_ascii=False) for i in range(3)]
    write(folder, {"train/a.txt": encoded(TEXT), "train/b.txt": encoded("")})
    write(folder, {"train/c.TXT": encoded("a" + "\U0001f600" * 9000)})  # over the borders of blocks
    write(folder, {"train/e.jsonl.gz": encoded("\r\n".join(rows)), "validation/f.txt": b"x"})
    write(folder, {"train/d.JSONL": encoded("\n" + "\n\n".join(rows))})
    expected = {"train/a.txt": TEXT.encode(), "train/c.TXT": ("a" + "\U0001f600" * 9000).encode()}
    for i in range(3):
        expected[f"train/d.JSONL:{2 * i + 2:09}"] = f"{i} {TEXT}".encode()
        expected[f"train/e.jsonl.gz:{i + 1:09}"] = f"{i} {TEXT}".encode()
    assert load(folder)["train"] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("some text".encode("utf-16-le"), "9 of 18 bytes are NUL, as in UTF-16 without its byte-"),
        ("some text".encode("utf-16-be"), "9 of 18 bytes are NUL, as in UTF-16 without its byte-"),
        ("some text".encode("utf-16")[:-1], "begins as utf-16"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8a\x00", "begins as utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_neither_utf8_nor_marked_is_refused(folder, load, name, content, message):
    write(folder, {name: content, "b.txt": b"fine"})
    with pytest.raises(UserError) as error:
        load(folder)
    if name == "a.txt" or message.startswith("begins"):
        assert str(error.value).startswith(f"{folder}/{name}: {message}")
    else:
        assert str(error.value).startswith(f"{folder}/{name}, line 1: is no JSON: ")
    assert not list((folder.parent / "data").rglob("*array_record*"))


@pytest.mark.parametrize("held_out", ["val", "dev", "test", "eval"])
def test_held_out_documents_are_never_trained_on(folder, load, held_out):
    train = {f"train/{i}.txt": f"{i}".encode() for i in range(20)}
    held = {f"{held_out}/{i}.txt": f"held out {i}".encode() for i in range(20)}
    write(folder, train | held)
    assert load(folder) == {"train": train, "validation": held}


@pytest.mark.parametrize("which", ["tenth", "named", "single"])
def test_all_has_each_document_once_and_whole(folder, tokenizer, monkeypatch, which):
    monkeypatch.setattr(text_files, "PART_BYTES", 100)
    files = {f"{i}.txt": f"document {i}\n".encode() * (30 - i) for i in range(20)}
    if which == "named":
        names = ("validation/a.txt", "train/b.txt", "train/z.txt", "test/c.txt")
        files = {name: name.encode() * 40 for name in names}
    files = {"only.txt": b"some words\n" * 99} if which == "single" else files
    write(folder, files)
    data = folder.parent / "data"
    corpus = load_corpus("text_files", "all", tokenizer, data, files=str(folder))
    assert list(corpus.names) == sorted(files)
    for i, name in enumerate(corpus.names):
        assert corpus.document(i).astype("uint8").tobytes() == files[name]
    assert corpus.describe()["split"] == "all"


def test_test_is_a_split_of_its_own_beside_validation(folder, tokenizer):
    for split in ("train", "validation", "test"):
        write(folder, {f"wiki.{split}-{i}.jsonl": lines(f"{split} {i}") for i in range(2)})

    def names(split):
        data = folder.parent / "data"
        return list(load_corpus("text_files", split, tokenizer, data, files=str(folder)).names)

    for split in ("train", "validation", "test"):
        assert names(split) == [f"wiki.{split}-{i}.jsonl:000000001" for i in range(2)]
    with pytest.raises(
        UserError, match=r"^unknown split 'dev' of text_files; choose from: test, t"
    ):
        names("dev")
    for i in range(2):
        (folder / f"wiki.validation-{i}.jsonl").unlink()
    assert (
        names("validation") == names("test") == [f"wiki.test-{i}.jsonl:000000001" for i in (0, 1)]
    )


@pytest.fixture
def said(folder, tokenizer):
    """Returns a function from splits to the line that is printed of them."""

    def say(*splits, tokenizer=tokenizer):
        data = folder.parent / "data"
        corpora = [load_corpus("text_files", s, tokenizer, data, files=str(folder)) for s in splits]
        line = summary(corpora)
        assert "\n" not in line
        return line

    return say


def test_the_line_of_a_load(folder, said):
    write(
        folder, {"train/a.txt": b"abc", "train/b.txt": b"abcde", "val/c.jsonl": lines("caf\u00e9")}
    )
    train, validation = (
        "train 2 documents of 8 tokens, the longest 5 (train/b.txt)",
        ("validation 5 tokens, all of them from one document (val/c.jsonl:000000001)"),
    )
    assert said("train", "validation") == f"data: text_files; {train}; {validation}"
    assert said("validation") == f"data: text_files; {validation}"


def test_the_line_tells_what_is_not_as_expected(folder, said):
    write(folder, {"train/a.txt": "Gr\u00fc\u00dfe".encode("latin-1"), "test/c.txt": b"a\0bcdef"})
    write(folder, {"train/b.txt": b"ok\xe2\x82", "train/._b.txt": b"\0", "notes.md": b"#"})
    write(
        folder, {".git/x.txt": b"git", "test/e.txt": b"", "train/d.jsonl": b'{"text": "\\ud83d"}'}
    )
    write(folder, {"test/z.txt": b"ok\xe2\x82"})
    (folder / "train/gone.txt").symlink_to("nowhere.txt")
    notes = (
        "test stands for validation; skipped 5: .git/, notes.md, test/e.txt (empty), and 2 more; "
        "bytes that are no UTF-8, kept: 2 in test/z.txt, 2 in train/a.txt, 2 in train/b.txt; "
        'halves of characters, replaced by "?": 1 in train/d.jsonl; NUL bytes: 1 in test/c.txt; '
        "the same text twice: test/z.txt and train/b.txt"
    )
    assert said("train").endswith(f"; {notes}")
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("[UNK]\na\n")
    line = said("train", tokenizer=get_tokenizer(str(vocabulary)))
    assert line.endswith(f"; {notes.replace('kept', 'replaced')}")


def test_twins_of_two_splits_are_told_first(folder, said):
    write(folder, {"train/a.txt": b"one", "train/b.txt": b"one", "train/c.txt": b"two"})
    write(folder, {"val/d.txt": b"two", "train/e.txt": b"", "train/f.txt": b""})
    twins = "train/c.txt and val/d.txt, train/a.txt and train/b.txt"
    assert said("train").endswith(f"; the same text twice: {twins}")


def test_names_of_splits_without_a_train_are_told(folder, said):
    write(folder, {"a.txt": b"some", "no-such-test.txt": b"text", "dev/b.txt": b"x"})
    write(folder, {"validation.jsonl": lines("more", "and more")})
    assert said("train").endswith(
        "; dev/ is no split: no train goes with it; "
        "validation.jsonl is no split: no train goes with it"
    )


def test_other_datasets_take_no_files(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"^dataset 'stdlib_source' takes no files \('x'\): only"):
        load_corpus("stdlib_source", "train", tokenizer, tmp_path, files="x")
