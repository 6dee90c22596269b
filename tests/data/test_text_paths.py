import pytest

from lenext.data.text_paths import find_files, split_by_name
from lenext.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_files(folder):
    touch(folder, "b.txt", "a.jsonl", "a.jsonl.gz", "x/a.txt", "y/c.txt")
    everything = ["a.jsonl.gz", "a.jsonl", "b.txt", "x/a.txt", "y/c.txt"]  # : follows, after .
    assert find_files(str(folder)) == (folder, everything, [])
    assert find_files(f"{folder}/x,{folder}/y/c.txt") == (folder, ["x/a.txt", "y/c.txt"], [])
    assert find_files(f"{folder}/**/*.txt") == (folder, ["b.txt", "x/a.txt", "y/c.txt"], [])
    assert find_files(f"{folder}/b.txt, {folder}/b.*") == (folder, ["b.txt"], [])
    assert find_files(f"{folder}/x") == (folder / "x", ["a.txt"], [])
    assert find_files(f"{folder}/**") == (folder, everything, [])
    assert find_files(f"{folder}/*") == (folder, everything[:3], ["x/", "y/"])


def test_suffixes_in_any_case(folder):
    names = ["A.JSONL", "B.Jsonl.GZ", "C.TXT"]
    touch(folder, *names, "D.MD", "E.JSON")
    assert find_files(str(folder)) == (folder, names, ["D.MD", "E.JSON"])
    assert find_files(f"{folder}/C.TXT").paths == ["C.TXT"]


def test_hidden_files_are_taken_where_they_are_named(folder):
    touch(folder, "a.txt", "._a.txt", ".ipynb_checkpoints/a.txt", "x/.git/b.txt", "x/.c.txt")
    assert find_files(str(folder)) == (
        folder, ["a.txt"], ["._a.txt", ".ipynb_checkpoints/", "x/.c.txt", "x/.git/"]
    )  # fmt: skip
    assert find_files(f"{folder}/**/*.txt").paths == ["a.txt"]
    assert find_files(f"{folder}/x/.c.txt").paths == [".c.txt"]
    assert find_files(f"{folder}/x/.git").paths == ["b.txt"]
    assert find_files(f"{folder}/.*.txt").paths == ["._a.txt"]


def test_links_to_folders_are_followed_once(folder, tmp_path):
    touch(tmp_path, "elsewhere/a.txt", "elsewhere/deep/b.txt", "texts/here/c.txt")
    (folder / "books").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "here")
    (folder / "here/back").symlink_to(folder)
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "elsewhere")
    (folder / "itself").symlink_to("itself")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    assert find_files(str(folder)) == (
        folder,
        ["books/a.txt", "books/deep/b.txt", "here/c.txt"],
        [
            "again/ (a link to what is here)",
            "books/deep/back/ (a link to a folder that it lies in)",
            "gone.txt (no file)",
            "here/back/ (a link to a folder that it lies in)",
            "itself",
        ],
    )
    assert find_files(f"{folder}/**/*.txt").paths == [
        "books/a.txt",
        "books/deep/b.txt",
        "here/c.txt",
    ]
    assert find_files(f"{folder}/**/deep/*").paths == ["books/deep/b.txt"]
    assert find_files(f"{folder}/**/**/b*/**/[ab].txt").paths == ["books/a.txt", "books/deep/b.txt"]


@pytest.mark.parametrize(
    "names",
    [
        {"train/1.txt": "train", "val/2.txt": "validation"},
        {"Training/1.txt": "train", "DEV/2.txt": "validation", "Test/3.txt": "test"},
        {"a/train/1.txt": "train", "b/eval/test/2.txt": "test"},
        {"dev/train/1.txt": "train", "dev/validation/2.txt": "validation"},
        {"train/test/1.txt": "train", "valid/train.txt": "validation"},
        {"train.jsonl": "train", "validation.jsonl": "validation"},
        {"train-00000.jsonl": "train", "train-00001.jsonl": "train", "dev.jsonl": "validation"},
        {
            "c4-train.00000-of-01024.jsonl.gz": "train",
            "c4-validation.0-of-8.JSONL.GZ": "validation",
        },
        {"wiki.train.txt": "train", "wiki.valid.txt": "validation", "wiki.test.txt": "test"},
        {"train1.txt": "train", "x/test_2.txt": "test"},
        {"train/any.txt": "train", "dev.jsonl": "validation"},
        {"train.txt": "train", "test.txt": "test", "new-test.txt": "test"},
        # no splits:
        {"train/1.txt": None, "more/2.txt": None},
        {"val/1.txt": None, "test/2.txt": None},
        {"test.txt": None, "a.txt": None},
        {"the-train.txt": None, "blood-test.txt": None},
        {"training-log.txt": None, "testing-it.txt": None, "latest.txt": None, "trains.txt": None},
        {"contest/1.txt": None, "train/2.txt": None},
    ],
)
def test_names_that_say_a_split(names):
    assert split_by_name(names) == (None if None in names.values() else names)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["more/1.txt", "train/2.txt", "val/3.txt"],
            "text_files: more/1.txt lies in no split, beside train/ (train), val/ (validation); n",
        ),
        (
            ["b.txt", "test.jsonl", "train.jsonl"],
            "text_files: b.txt lies in no split, beside test.",
        ),
        (
            ["dev/1.txt", "train/2.txt", "val/3.txt"],
            "text_files: dev/ and val/ are both called validation; name the one that is meant, and",
        ),
        (
            ["eval/1.txt", "test/2.txt", "train/3.txt"],
            "text_files: eval/ and test/ are both called",
        ),
    ],
)
def test_names_that_leave_a_doubt(paths, message):
    with pytest.raises(UserError) as error:
        split_by_name(paths)
    assert str(error.value).startswith(message)
