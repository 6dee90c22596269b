"""A set of one's own documents: what is in it, what is not, and its evaluation."""

import json
import shlex
import shutil

import numpy as np
import pytest

from lenext.data import Corpus, evaluation_crops
from lenext.evaluation.own_documents import length_table
from lenext.training import train
from lenext.workdirs.workdir import write_run_config
from tests.data.pdf_files import make_pdf
from tests.training.common import snapshot, tiny_config, tiny_decoder_config


def text(topic, lines):
    """Lines of 32 characters, with their ends, no two alike."""
    return "".join(f"{topic:9}of line {i:05} and more\n" for i in range(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A run that was trained on two documents of its own; not to be written to."""
    folder = tmp_path_factory.mktemp("own")
    for name, content in {
        "train/apples.txt": text("apples", 30),
        "train/pears.txt": text("pears", 40),
        "validation/plums.txt": text("plums", 20),
    }.items():
        (folder / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "texts" / name).write_text(content)
    config = tiny_decoder_config(data_dir)
    config.data.update(dataset="text_files", files=str(folder / "texts"))
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture
def files(tmp_path):
    """Writes files into tmp_path/in, and gives the flags that take them to tmp_path/out."""

    def files(**contents):
        for name, content in contents.items():
            path = tmp_path / "in" / name.replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [f"--files={tmp_path / 'in'}", f"--target={tmp_path / 'out'}"]

    return files


def made(tmp_path):
    """Texts by name of what was made, in its order."""
    lines = (tmp_path / "out" / "documents.jsonl").read_text().splitlines()
    return {record["name"]: record["text"] for record in map(json.loads, lines)}


def table(out):
    """The numbers of a table, by length."""
    rows = [line.replace(",", "").split() for line in out.splitlines()]
    start = rows.index(["length", "documents", "crops", "tokens"])
    numbers = rows[start + 1 : rows.index([], start)]
    return {int(row[0]): tuple(map(int, row[1:])) for row in numbers}


def test_a_set_by_hand(call, files, tmp_path):
    """By the tokeniser of bytes: a is 128 lines of 32, b 65, c's two 64 and 33, and d none."""
    a, b, c = text("a", 128), text("b", 65), (text("c", 64), text("cc", 33))
    lines = "".join(json.dumps({"body": x}) + "\n" for x in (c[0], "", f" {b}\r\n", c[1]))
    words = files(a__txt=a, b__md=b, c__jsonl=lines, d__txt=" \n", e__docx="x", f__txt=f"{a} ")
    outcome = call("documents", *words, "--field=body")
    assert (outcome.code, outcome.err) == (0, "")
    assert made(tmp_path) == {
        "a.txt": a, "b.md": b, "c.jsonl:000000001": c[0], "c.jsonl:000000004": c[1]
    }  # fmt: skip
    out = outcome.out
    assert "left out, empty: 2 (c.jsonl:000000002, d.txt)\n" in out
    assert "left out, the same text as another: 2 (c.jsonl:000000003, f.txt)\n" in out
    assert "skipped: 1 (e.docx)\n" in out
    # 4096, 2080, 2048 and 1056 bytes: crops are of 1025 and of 2049.
    assert table(out) == {1024: (4, 3 + 2 + 1 + 1, 7 * 1024), 2048: (2, 1 + 1, 2 * 2048)}
    assert f"made: {tmp_path / 'out' / 'documents.jsonl'}, 4 documents of 9,280 tokens\n" in out
    assert out.splitlines()[-1].split() == [
        "python", "-m", "lenext.evaluate", "--workdir=RUN", "--config.data.dataset=text_files",
        f"--config.data.files={tmp_path / 'out'}", "--config.eval.split=all",
        "--config.eval.documents=4", "--config.eval.lengths=1024,2048",
    ]  # fmt: skip


def test_lengths_that_are_asked_for(call, files):
    outcome = call("documents", *files(a__txt=text("a", 4)), "--lengths=200,63,127,128")
    assert table(outcome.out) == {
        63: (1, 2, 126), 127: (1, 1, 127), 128: (0, 0, 0), 200: (0, 0, 0)
    }  # fmt: skip
    assert outcome.out.rstrip().endswith("--config.eval.lengths=63,127")


def test_the_table_is_what_crops_are_cut():
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 300, 40)
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    names = [f"{i:02}" for i in range(40)]
    corpus = Corpus(np.zeros(offsets[-1], np.uint8), offsets, names, "0" * 12, "x", "all")
    for lookahead in (0, 1):
        for row in length_table(counts.tolist(), (17, 64, 250), lookahead=lookahead):
            crops = evaluation_crops(
                corpus, length=row[0], documents=40, tokens=10**9, lookahead=lookahead
            )
            found = len(set(crops.document.tolist())), len(crops.tokens)
            assert row == (row[0], *found, found[1] * row[0])


def test_a_masked_model_predicts_nothing_beyond_its_crops(call, files, tmp_path):
    """32 bytes are two crops of 16; of a decoder, whose crops are of 17, one."""
    config = tiny_config(tmp_path)
    config.data.update(dataset="text_files", files=str(tmp_path / "gone"))
    write_run_config(tmp_path / "run", config)
    outcome = call("documents", *files(a__txt=text("a", 1)), f"--workdir={tmp_path / 'run'}")
    assert table(outcome.out) == {16: (1, 2, 32), 32: (1, 1, 32)}
    alone = [f"--files={tmp_path / 'in'}", f"--target={tmp_path / 'other'}", "--lengths=16"]
    assert table(call("documents", *alone).out) == {16: (1, 1, 16)}


def test_by_another_tokenizer(call, files, tmp_path):
    """Of which "</s>" ends each document, and is counted: 3 words a line, and one more."""
    import tokenizers as library

    made = library.Tokenizer(library.models.WordLevel({"</s>": 0, "a": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    words = [*files(a__txt="a b c\n" * 7, b__txt="a\n" * 5), f"--tokenizer={tmp_path / 't.json'}"]
    outcome = call("documents", *words, "--lengths=5,21")
    assert outcome.code == 0
    assert table(outcome.out) == {5: (2, 3 + 1, 20), 21: (1, 1, 21)}
    assert "2 documents of 28 tokens" in outcome.out
    assert outcome.out.rstrip().endswith(f"--config.data.tokenizer={tmp_path / 't.json'}")


def test_what_training_saw_is_left_out_and_the_rest_is_evaluated(call, files, run, tmp_path):
    apples, pears = text("apples", 30), text("pears", 40)
    words = files(
        again__txt=apples.replace("\n", "\r\n") + "\n",
        wrapped__jsonl=json.dumps({"text": pears.replace("\n", " ")}),
        longer__txt=pears + text("figs", 10),
        half__txt=text("pears", 10) + text("dates", 11),
        little__md=apples[:32] + text("quinces", 200),
        plums__txt=text("plums", 20),
        new__txt=text("new", 3),
    )
    outcome = call("documents", *words, f"--workdir={run}")
    assert (outcome.code, outcome.err) == (0, "")
    assert [*made(tmp_path)] == ["half.txt", "little.md", "new.txt", "plums.txt"]
    seen = "left out, seen in training: 3 (again.txt, longer.txt, wrapped.jsonl:000000001)\n"
    assert seen in outcome.out
    told = "kept, though training saw lines of them: 2 (half.txt, 48%, little.md, < 1%)\n"
    assert told in outcome.out
    # 672, 6432, 96 and 640 bytes, by 17 and doublings and one; the run was trained at 16.
    assert table(outcome.out)[16] == (4, 39 + 378 + 5 + 37, 459 * 16)
    assert [*table(outcome.out)] == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]

    program, *words = shlex.split(outcome.out.splitlines()[-1])[2:]
    assert program == "lenext.evaluate"
    own = shutil.copytree(run, tmp_path / "run")
    words = [word.replace(f"={run}", f"={own}") for word in words]
    words = [word for word in words if not word.startswith("--config.eval.lengths")]
    small = ["--config.eval.lengths=16,80", "--config.eval.methods=softmax"]
    evaluated = call(program.removeprefix("lenext."), *words, *small)
    assert evaluated.code == 0, evaluated.err
    results = json.loads((own / "eval" / "results.json").read_text())
    data = results["provenance"]["data"]
    assert (data["documents"], data["tokens"], data["split"]) == (4, 7840, "all")
    assert {r["documents"] for r in results["records"]} == {4}


class TestWhatARunDoesNotKnow:
    @pytest.fixture
    def own(self, run, tmp_path):
        return shutil.copytree(run, tmp_path / "run")

    @pytest.fixture
    def said(self, call, files, own):
        """What is warned of, where a document that training saw would be kept or not."""

        def said(*, kept):
            words = files(apples__txt=text("apples", 30), new__txt=text("new", 30))
            outcome = call("documents", *words, f"--workdir={own}")
            assert outcome.code == 0, outcome.err
            assert ("seen in training: 1 (apples.txt)" not in outcome.out) == kept
            assert outcome.err.count("\n") == 1
            return outcome.err

        return said

    def change(self, own, **data):
        config = json.loads((own / "config.json").read_text())
        config["data"] |= data
        (own / "config.json").write_text(json.dumps(config))
        return config["data"]["files"]

    def test_an_imported_model(self, own, said):
        (own / "checkpoints" / "2").rename(own / "checkpoints" / "0")
        (own / "seals" / "2.json").rename(own / "seals" / "0.json")
        line = f"warning: workdir {own}: is imported, and what it was trained on is not known\n"
        assert said(kept=True) == line

    def test_one_that_went_on_from_an_imported_model(self, own, said):
        (own / "source").mkdir()
        line = f"warning: workdir {own}: went on from an imported model; only what it was trained "
        assert said(kept=False) == f"{line}on here is known\n"

    def test_data_that_is_gone(self, own, said, tmp_path):
        self.change(own, files=f"{tmp_path}/nowhere")
        line = f"warning: workdir {own}: what it was trained on is not there (text_files: no file "
        assert said(kept=True).startswith(line)

    def test_data_that_has_changed(self, own, said, tmp_path, run):
        shutil.copytree(run.parent / "texts", tmp_path / "texts")
        (tmp_path / "texts" / "train" / "more.txt").write_text("more")
        self.change(own, files=f"{tmp_path}/texts")
        line = f"warning: workdir {own}: its data, text_files, has changed since it was trained; "
        assert said(kept=False) == f"{line}only what is there now is known\n"

    def test_the_command_undoes_the_runs_own_field(self, call, files, own):
        self.change(own, field="body")
        outcome = call("documents", *files(new__txt=text("new", 30)), f"--workdir={own}")
        assert "--config.data.field=text" in shlex.split(outcome.out.splitlines()[-1])


class TestPages:
    def test_html_and_pdf_beside_text(self, call, files, tmp_path):
        pytest.importorskip("bs4", reason="beautifulsoup4 reads HTML")
        pytest.importorskip("pypdf", reason="pypdf reads PDF")
        page = "".join(f"<p>{line}</p>\n" for line in text("some page", 40).splitlines())
        words = files(
            a__html=page, b__txt=text("some page", 40), c__pdf=make_pdf([]),
            d__pdf=make_pdf(text("a-printed", 40).splitlines()),
        )  # fmt: skip
        outcome = call("documents", *words)
        assert (outcome.code, outcome.err) == (0, "")
        assert made(tmp_path)["a.html"] == text("some page", 40).rstrip().replace("\n", "\n\n")
        assert made(tmp_path)["d.pdf"].splitlines() == text("a-printed", 40).splitlines()
        assert "left out, the same text as another: 1 (b.txt)\n" in outcome.out
        assert "left out, PDF without text, as of scanned pages: 1 (c.pdf)\n" in outcome.out


class TestMistakes:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path):
        yield
        assert not [path for path in snapshot(tmp_path) if not path.startswith("in")]

    @pytest.mark.parametrize(
        ("name", "content", "words", "message"),
        [
            ("a.txt", "x" * 99, ["--files= , "], "--files=FOLDER,FILE,GLOB is missing"),
            ("a.txt", "x" * 99, ["--target="], "--target=DIR is missing"),
            ("a.txt", "x" * 99, ["--target={}/a,b"], "--target={}/a,b: should have no comma"),
            ("a.txt", "x" * 99, ["--files={}/b.txt"], "--files: no file or folder {}/b.txt"),
            ("a.txt", "x" * 99, ["--workdir={}/run"], "workdir {}/run: holds no run"),
            ("a.txt", "x" * 99, ["--tokenizer=x"], "unknown tokenizer 'x'; choose from: bytes"),
            ("a.txt", "x" * 99, ["--lengths=1,8"], "--lengths '1,8': should be whole"),
            ("a.txt", "x" * 99, ["more"], "argument 'more': should be a flag such as"),
            ("a.docx", "x" * 99, [], "--files: no .txt, .md, .jsonl, .jsonl.gz, .html, .htm"),
            ("a.txt", "x" * 99, [], "length 1024: no document is that long; the longest, a.txt, "
             "has 99 tokens, of which one is only predicted; give shorter --lengths"),
            ("a.txt", "x" * 99, ["--lengths=99"], "length 99: no document is that long"),
            ("a.txt", "", [], "--files={}/in: no document is left; left out, empty: 1 (a.txt)"),
            ("a.jsonl", '{"body": "x"}', [], "{}/in/a.jsonl, line 1: has no field 'text'"),
            ("a.jsonl", "{", [], "{}/in/a.jsonl, line 1: is no JSON: "),
            ("a.jsonl.gz", "x", [], "{}/in/a.jsonl.gz: broken gzip file: "),
        ],
    )  # fmt: skip
    def test_one_line(self, fails, files, tmp_path, name, content, words, message):
        given = files(**{name.replace(".", "__"): content})
        said = fails("documents", *given, *(word.format(tmp_path) for word in words))
        assert said.startswith(message.format(tmp_path))

    def test_a_broken_pdf_after_what_is_sound(self, fails, files, tmp_path):
        pytest.importorskip("pypdf", reason="pypdf reads PDF")
        words = files(a__txt="x" * 2000, b__pdf="%PDF-1.4")
        said = fails("documents", *words)
        assert said.startswith(f"{tmp_path}/in/b.pdf: is a broken PDF (")

    def test_all_of_it_was_seen(self, fails, files, run):
        said = fails("documents", *files(a__txt=text("pears", 40)), f"--workdir={run}")
        assert said.endswith("no document is left; left out, seen in training: 1 (a.txt)")


def test_nothing_is_written_over(fails, files, tmp_path):
    words = files(a__txt="x" * 2000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    said = fails("documents", *words)
    assert said == f"target {tmp_path / 'out'}: is there already; take another"
    assert snapshot(tmp_path) == before


def test_a_token_that_the_model_does_not_have(fails, files, tmp_path):
    """A padding behind the vocabulary that the run's model has, spelt in a text."""
    import tokenizers as library

    made = library.Tokenizer(library.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.add_tokens(["<pad>"])
    made.save(str(tmp_path / "t.json"))
    config = tiny_decoder_config(tmp_path)
    config.model.vocab_size = 2
    config.data.tokenizer = str(tmp_path / "t.json")
    write_run_config(tmp_path / "run", config)
    said = fails("documents", *files(a__txt="a a", b__txt="a <pad>"), f"--workdir={tmp_path}/run")
    assert said == "b.txt: the text holds '<pad>', which is token 2, and the model has 2 tokens"
    assert not (tmp_path / "out").exists()
