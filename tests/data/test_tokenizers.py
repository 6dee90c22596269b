import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import (
    ByteTokenizer,
    Frame,
    Tokenizer,
    causal_lm_batches,
    get_tokenizer,
    load_corpus,
    masked_lm_batches,
)
from lenext.errors import UserError
from tests.data import kinds


@given(st.binary())
def test_bytes_are_their_own_ids(data):
    ids = ByteTokenizer().encode(data)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(data)


@given(st.text())
def test_text_survives_the_round_trip(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids_follow_the_bytes_and_decode_to_nothing():
    tokenizer = ByteTokenizer()
    assert {tokenizer.mask_id, tokenizer.pad_id} == {256, 257}
    assert tokenizer.vocab_size == 258
    ids = np.array([97, tokenizer.mask_id, 98, tokenizer.pad_id])
    assert tokenizer.decode(ids) == "ab"


def test_a_crop_through_a_character_decodes():
    assert ByteTokenizer().decode(ByteTokenizer().encode("é")[:1]) == "\ufffd"


def test_get_tokenizer():
    assert get_tokenizer("bytes") == ByteTokenizer()
    with pytest.raises(
        UserError, match=r"^unknown tokenizer 'words'; choose from: bytes, the path"
    ):
        get_tokenizer("words")


VOCABULARY = (
    "[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    "我", "爱", "the", "cat", "##s", ",", "[", "]", "mask", "cafe", "北",
)  # fmt: skip


@pytest.fixture
def bert(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return get_tokenizer(str(path))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The cats,", [8, 9, 10, 11]),  # lower case; pieces of words
        ("我爱北京", [6, 7, 16, 2]),  # each character by itself; the last is unknown
        ("the我cat", [8, 6, 9]),
        ("Café", [15]),  # accents are stripped
        ("[MASK]", [12, 14, 13]),  # text, not the mask
        ("", []),
        (b"cat\xff\n\tcats", [9, 9, 10]),  # U+FFFD is cleaned away
        ("我爱".encode(), [6, 7]),
    ],
)
def test_bert_vocabulary(bert, text, ids):
    assert bert.encode(text).tolist() == ids


def test_bert_vocabulary_special_ids(bert):
    assert isinstance(bert, Tokenizer)
    assert (bert.vocab_size, bert.pad_id, bert.mask_id, bert.frame) == (17, 0, 5, Frame())
    assert bert.regular_ids.tolist() == list(range(6, 17))
    assert not bert.byte_level
    assert bert.decode(np.array([0, 8, 9, 10, 5, 6, 0])) == "the cats 我"
    texts = ["the", b"cat", "", "我爱"]
    assert [ids.tolist() for ids in bert.encode_batch(texts)] == [[8], [9], [], [6, 7]]


def test_bert_vocabulary_of_another_system(tmp_path, bert):
    path = tmp_path / "windows.txt"
    # Also a token that str.splitlines would cut at.
    path.write_bytes("\r\n".join([*VOCABULARY[:16], "a\u2028b"]).encode())
    tokenizer = get_tokenizer(str(path))
    assert tokenizer.vocab_size == 17
    assert tokenizer.encode("the cat").tolist() == [8, 9]
    assert tokenizer.fingerprint != bert.fingerprint


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, bert):
    mark = "\ufeff".encode()
    path = tmp_path / "marked.txt"
    path.write_bytes(mark + "\n".join(VOCABULARY).encode())
    marked = get_tokenizer(str(path))
    assert marked.pad_id == bert.pad_id == 0
    assert marked.regular_ids.tolist() == bert.regular_ids.tolist()
    path = tmp_path / "marked.json"
    path.write_bytes(mark + json.dumps(word_level()).encode())
    assert get_tokenizer(str(path)).encode("one two").tolist() == [1, 5]


def word_level(**changes):
    """A file of the library's, by hand."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        },
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
        },
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True, **special},
            {"id": 3, "content": "<|endoftext|>", "special": True, **special},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "BertProcessing", "sep": ["<|endoftext|>", 3], "cls": ["<|endoftext|>", 3]
        },
        "decoder": None,
        "model": {
            "type": "WordLevel", "vocab": {"<unk>": 0, "one": 1, "two": 5}, "unk_token": "<unk>"
        },
    } | changes  # fmt: skip


def save(tmp_path, **changes):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(word_level(**changes)))
    return str(path)


def test_json_file(tmp_path):
    tokenizer = get_tokenizer(save(tmp_path))
    assert isinstance(tokenizer, Tokenizer)
    # Neither cut to 2 nor filled up to 8, and nothing is put around it but by who asks for that.
    assert tokenizer.encode("one two two three one").tolist() == [1, 5, 5, 0, 1]
    # What spells a special token is text.
    assert tokenizer.encode("one <|endoftext|>").tolist() == [1, 0]
    assert tokenizer.encode(b"one \xff two").tolist() == [1, 0, 5]
    assert tokenizer.vocab_size == 6  # with holes
    assert (tokenizer.frame, tokenizer.pad_id, tokenizer.mask_id) == (Frame((3,), 3, (3,)), 3, None)
    assert tokenizer.regular_ids.tolist() == [1, 5]
    assert tokenizer.decode(np.array([1, 3, 5])) == "one two"


def test_names_of_special_tokens(tmp_path):
    names = ["<unk>", "<pad>", "<mask>", "<|endoftext|>", "</s>", "[EOS]"]
    vocabulary = {name: i for i, name in enumerate(reversed(names))}
    model = {"type": "WordLevel", "vocab": vocabulary | {"word": 6}, "unk_token": "<unk>"}
    tokenizer = get_tokenizer(save(tmp_path, model=model, added_tokens=[], post_processor=None))
    assert tokenizer.frame.end == vocabulary["</s>"] == 1
    assert tokenizer.mask_id == vocabulary["<mask>"] == 3
    assert tokenizer.pad_id == vocabulary["<pad>"] == 4
    assert tokenizer.regular_ids.tolist() == [6]
    bare = {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1}, "unk_token": "<unk>"}
    tokenizer = get_tokenizer(save(tmp_path, model=bare, added_tokens=[], post_processor=None))
    assert (tokenizer.frame, tokenizer.pad_id, tokenizer.mask_id) == (Frame(), 0, None)


def test_fingerprints(tmp_path):
    path = save(tmp_path)
    fingerprints = [get_tokenizer(name).fingerprint for name in ("bytes", path, path)]
    save(tmp_path, pre_tokenizer={"type": "Whitespace"})
    fingerprints.append(get_tokenizer(path).fingerprint)
    assert fingerprints[1] == fingerprints[2]
    assert len(set(fingerprints)) == 3
    assert all(len(fingerprint) == 12 for fingerprint in fingerprints)


def test_a_tokenizer_can_be_sent_to_another_process(tmp_path, bert):
    for tokenizer in (ByteTokenizer(), bert, get_tokenizer(save(tmp_path))):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode("one cat").tolist() == tokenizer.encode("one cat").tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "cannot read tokenizer {}: No such file or directory"),
        ("vocab.txt", None, "cannot read tokenizer {}: No such file or directory"),
        (
            "tokenizer.json",
            b"{",
            "tokenizer {}: should be a file that Hugging Face's token",
        ),
        (
            "tokenizer.json",
            b"{}",
            "tokenizer {}: should be a file that Hugging Face's token",
        ),
        ("tokenizer.json", b"\xff", "tokenizer {}: should be a file that Hugging Face's tokenizer"),
        (
            "vocab.txt",
            b"one\ntwo\n",
            "tokenizer {}: should be a BERT vocabulary, one token a li",
        ),
        ("vocab.txt", b"[UNK]\n[PAD]", "tokenizer {}: should be a BERT vocabulary, one token a li"),
        ("vocab.txt", b"\xff", "tokenizer {}: should be a BERT vocabulary, one token a line: 'utf"),
    ],
)
def test_files_that_do_not_load(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        get_tokenizer(str(path))
    assert str(error.value).startswith(message.replace("{}", str(path)))
    assert "\n" not in str(error.value)


def test_a_corpus_of_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n{"text": "two"}\n')
    tokenizer = get_tokenizer(save(tmp_path))
    found = []
    for split in ("train", "validation"):
        corpus = load_corpus(
            "text_files", split, tokenizer, tmp_path / "data", files=str(tmp_path / "a.jsonl")
        )
        assert corpus.tokens.dtype == np.uint8
        found.append(corpus.tokens.tolist())
    assert sorted(found) == [[3, 1, 5, 3], [3, 5, 3]]  # each in what its post-processor puts around
    options = {"length": 2, "batch_size": 1, "seed": 0, "tokenizer": tokenizer, "packing": True}
    batch = next(iter(causal_lm_batches(corpus, **options)))
    assert batch["targets"][0, -1] in (3, tokenizer.pad_id)
    with pytest.raises(UserError, match=r"^masked language modelling needs a mask token, and the"):
        masked_lm_batches(corpus, **options)


def test_starts_and_ends_by_name_and_by_number(tmp_path, capsys):
    path = str(kinds.save("llama2", tmp_path))
    said = {
        ("auto", "none"): Frame((1,)),
        ("none", "none"): Frame(),
        ("<s>, 5", "</s>,<s>,7"): Frame((1, 5), 2, (2, 1, 7)),
        ("none", "customary"): Frame((), 2, (2,)),
    }
    for (bos, eos), frame in said.items():
        tokenizer = get_tokenizer(path, bos=bos, eos=eos)
        assert tokenizer.frame == frame
        assert not {*frame.start, *frame.stops} & {*tokenizer.regular_ids.tolist()}
    assert capsys.readouterr().err == ""
    assert get_tokenizer(path).frame == Frame((1,), 2, (2,))
    assert capsys.readouterr().err == (
        f"warning: tokenizer {path}: does not say what ends a document; '</s>' does, by its name "
        "(config.data.eos)\n"
    )
    with pytest.raises(UserError, match=r"^config\.data\.bos='<S>': the tokenizer has no token"):
        get_tokenizer(path, bos="<S>")
    with pytest.raises(UserError, match=r"^config\.data\.eos='2,': the tokenizer has no token ''"):
        get_tokenizer(path, eos="2,")
    ours = get_tokenizer("bytes", bos="9", eos="300")
    assert (ours.frame, ours.vocab_size) == (Frame((9,), 300, (300,)), 301)
