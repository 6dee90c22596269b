import pytest
import tensorflow_datasets as tfds

from lenext.data import load_corpus
from lenext.data.datasets import choose_split
from lenext.data.prepare import _quiet_tfds
from lenext.errors import UserError


class MadeUpTexts(tfds.core.GeneratorBasedBuilder):
    """Registers itself with TFDS as made_up_texts, with splits of its config's name."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012, TFDS's own way
        tfds.core.BuilderConfig(name=name)
        for name in ("train-validation-test", "train-test", "train", "other")
    ]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "title": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split) for split in self.builder_config.name.split("-")
        }

    def _generate_examples(self, split):
        for i in range(25):
            text = "" if i == 3 else f"{split} {i}"
            yield i, {"text": text, "title": f"T{i}", "label": 0}


def texts(corpus):
    return [corpus.document(i).astype("uint8").tobytes().decode() for i in range(len(corpus.names))]


@pytest.fixture
def load(tmp_path, tokenizer):
    def read(dataset, split, **options):
        return load_corpus(dataset, split, tokenizer, tmp_path, **options)

    return read


def everything(split, places=range(25)):
    return {f"{split} {i}" for i in places if i != 3}


def test_own_splits_in_their_order(load, tmp_path):
    corpus = load("tfds:made_up_texts/train-validation-test", "validation")
    assert set(texts(corpus)) == everything("validation")
    with _quiet_tfds():
        builder = tfds.builder("made_up_texts/train-validation-test", data_dir=tmp_path)
    stored = [example["text"].decode() for example in builder.as_data_source(split="validation")]
    assert texts(corpus) == [text for text in stored if text]
    assert corpus.names == [f"validation:{i:09}" for i, text in enumerate(stored) if text]
    assert corpus.describe()["dataset"] == "tfds:made_up_texts/train-validation-test"
    test = load("tfds:made_up_texts/train-validation-test", "test")
    assert set(texts(test)) == everything("test")


def test_test_stands_for_validation(load):
    assert set(texts(load("tfds:made_up_texts/train-test", "validation"))) == everything("test")
    assert set(texts(load("tfds:made_up_texts/train-test", "train"))) == everything("train")


def test_the_last_tenth_of_train_stands_for_both(load):
    train, validation = (
        load("tfds:made_up_texts/train", split) for split in ("train", "validation")
    )
    assert validation.names == ["train:000000023", "train:000000024"]
    assert set(texts(train)) | set(texts(validation)) == everything("train")
    assert not set(texts(train)) & set(texts(validation))
    assert train.fingerprint == validation.fingerprint


@pytest.mark.parametrize(
    ("split", "splits", "expected"),
    [
        ("train", ["train", "validation"], ("train", "all")),
        ("train", ["train", "test"], ("train", "all")),
        ("train", ["train"], ("train", "first")),
        ("train", ["train", "extra"], ("train", "first")),
        ("validation", ["train", "validation", "test"], ("validation", "all")),
        ("validation", ["train", "test"], ("test", "all")),
        ("validation", ["train", "extra"], ("train", "last")),
        ("extra", ["train", "extra"], ("extra", "all")),
        ("validation", [], ("validation", "all")),
    ],
)
def test_choose_split(split, splits, expected):
    assert choose_split("x", split, splits) == expected


def test_all_is_a_split_of_text_files_alone():
    splits = ["test", "train", "validation"]
    assert choose_split("text_files", "all", splits) == ("train+validation+test", "all")
    with pytest.raises(UserError, match=r"^unknown split 'all' of x; choose from: test, train, v"):
        choose_split("x", "all", splits)


def test_field(load):
    corpus = load("tfds:made_up_texts/train-test", "train", field="title")
    assert set(texts(corpus)) == {f"T{i}" for i in range(25)}
    other = load("tfds:made_up_texts/train-test", "train")
    assert set(texts(other)) == everything("train")
    assert corpus.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("dataset", "split", "options", "message"),
    [
        (
            "tfds:made_up_texts/train",
            "train",
            {"field": "label"},
            "dataset 'tfds:made_up_texts/train' has no text feature 'label'; it has: text, title "
            "(of all features: text, title, label)",
        ),
        (
            "tfds:made_up_texts/other",
            "train",
            {},
            "unknown split 'train' of tfds:made_up_texts/other; choose from: other",
        ),
        (
            "tfds:no_such_texts",
            "train",
            {},
            "unknown dataset 'tfds:no_such_texts': Tensor",
        ),
        ("tfds:made_up_texts/nope", "train", {}, "cannot open dataset 'tfds:made_up_texts/nope': "),
        ("tfds:a b", "train", {}, "cannot open dataset 'tfds:a b': "),
        ("tfds:", "train", {}, "cannot open dataset 'tfds:': "),
        ("tfds:text_files", "train", {}, "unknown dataset 'tfds:text_files'; say 'text_files'"),
        ("tfds:lm1b", "train", {"files": "x"}, "dataset 'tfds:lm1b' takes no files ('x'): only te"),
    ],
)
def test_mistakes(load, dataset, split, options, message):
    with pytest.raises(UserError) as error:
        load(dataset, split, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_builder_that_fails(load, monkeypatch):
    def fail(self, dl_manager):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(MadeUpTexts, "_split_generators", fail)
    with pytest.raises(UserError) as error:
        load("tfds:made_up_texts/train", "train")
    assert str(error.value) == (
        "cannot prepare dataset 'tfds:made_up_texts/train': RuntimeError: no such"
    )


def test_tfds_mocks(load):
    with tfds.testing.mock_data(num_examples=7):
        corpus = load("tfds:lm1b", "train")
        assert len(corpus.names) == 7
        assert corpus.lengths.min() >= 10  # TFDS's mocks make up 10 to 19 letters
        assert corpus.lengths.max() < 20
        assert len(load("tfds:imdb_reviews/plain_text", "validation").names) == 7
        with pytest.raises(
            UserError, match=r"^dataset 'tfds:mnist' has no text feature 'text'; it"
        ):
            load("tfds:mnist", "train")
    with tfds.testing.mock_data(num_examples=9):
        assert len(load("tfds:lm1b", "train").names) == 9


def test_a_dataset_prepared_in_a_format_without_random_access(load, tmp_path):
    load("tfds:made_up_texts/train-test", "train")
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError) as error:
        load("tfds:made_up_texts/train-test", "train")
    assert str(error.value) == (
        "dataset 'tfds:made_up_texts/train-test' is prepared as tfrecord in "
        f"{info.parent}, which has no random access; prepare it as array_record "
        "(--file_format=array_record), or in another data_dir"
    )


def test_a_dataset_of_empty_texts(load, monkeypatch):
    def empty(self, split):
        yield 0, {"text": "", "title": "", "label": 0}

    monkeypatch.setattr(MadeUpTexts, "_generate_examples", empty)
    with pytest.raises(UserError, match=r"^there is no text in tfds:made_up_texts/train-test, tra"):
        load("tfds:made_up_texts/train-test", "train")
    with pytest.raises(UserError, match=r": 1 documents in train are too few for a split"):
        load("tfds:made_up_texts/train", "train")
