"""Tokenisers that a GGUF file's metadata holds, against ids and cuts worked by hand."""

import contextlib
import json

import numpy as np
import pytest
import tokenizers

from lenext.data import get_tokenizer
from lenext.errors import UserError
from lenext.importing import import_checkpoint
from lenext.importing.source import open_source
from lenext.importing.tokenizer import read_tokenizer
from tests.importing.gguf_files import convert_golden, sizes, write_file

pytest.importorskip("gguf", reason="GGUF files are read by the package gguf (extra gguf)")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
# Bytes 33–126, 161–172 and 174–255 are their own characters; the others follow 255, in order.
OWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in OWN]
CHARACTERS = {b: chr(b) for b in OWN} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}
BYTES = [CHARACTERS[b] for b in range(256)]


def byte_level(pre, *more, special=(), merges=("l l",)):
    """A vocabulary of the bytes, those of `more`, and control tokens."""
    tokens = [*BYTES, *more, *special]
    return tokens, [
        ("add_tokenizer_model", "gpt2"),
        ("add_tokenizer_pre", pre),
        ("add_token_list", tokens),
        ("add_token_types", [NORMAL] * (256 + len(more)) + [CONTROL] * len(special)),
        ("add_token_merges", list(merges)),
    ]


def write(path, tokens, calls, rows=None):
    """A llama of no layer to speak of, with this tokeniser."""
    tensors = {
        "token_embd.weight": np.zeros((rows or len(tokens), 16), np.float32),
        "output_norm.weight": np.zeros(16, np.float32),
    }
    own = [call for call in sizes("llama")[1] if call[0] != "add_block_count"]
    return write_file(path, "llama", [*own, ("add_block_count", 1), *calls], tensors)


@pytest.fixture
def opened(tmp_path):
    """Gives the tokeniser of a file, and the folder that stands for it."""
    with contextlib.ExitStack() as stack:

        def of(tokens, calls):
            path = write(tmp_path / "model.gguf", tokens, calls)
            folder = stack.enter_context(open_source(path)).folder
            return get_tokenizer(str(folder / "tokenizer.json"), eos="none"), folder

        yield of


TEXT = "I'LL pay 12345  dollars\n\n x"


@pytest.mark.parametrize(
    ("pre", "cuts"),
    [
        ("gpt-2", ["I", "'", "LL", " pay", " 12345", " ", " dollars", "\n\n", " x"]),
        ("smollm", ["I", "'", "LL", " pay", " ", *"12345", " ", " dollars", "\n\n", " x"]),
        ("llama-bpe", ["I", "'LL", " pay", " ", "123", "45", " ", " dollars", "\n\n", " x"]),
        ("qwen2", ["I", "'LL", " pay", " ", *"12345", " ", " dollars", "\n\n", " x"]),
    ],
)
def test_cuts_before_merges(opened, pre, cuts):
    found, _ = opened(*byte_level(pre, "ll", special=["<|end|>"]))
    pieces = found.library.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[start:end] for _, (start, end) in pieces] == cuts


def test_merges_of_bytes(opened):
    found, _ = opened(
        *byte_level("gpt-2", "ll", "Ġx", "Ã©", special=["<|end|>"], merges=["l l", "Ġ x", "Ã ©"])
    )
    text = "llé x<|end|>"  # the last of which is text like any other
    spelt = [ord(c) for c in "<|end|>"]
    np.testing.assert_array_equal(found.encode(text), [256, 258, 257, *spelt])
    assert found.decode(found.encode(text)) == text
    assert found.library.token_to_id("<|end|>") == 259


def test_words_that_are_tokens(opened):
    """Llama 3 takes them whole where no merge leads to them."""
    for pre, ids in (("gpt-2", [97, 98, 99]), ("llama-bpe", [256])):
        found, _ = opened(*byte_level(pre, "abc", "ll"))
        np.testing.assert_array_equal(found.encode("abc"), ids)


def test_composed_characters(opened):
    """Qwen's are; others' stay as they are."""
    for pre, ids in (("gpt-2", [0x65, 0xCC, 0x81]), ("qwen2", [0xC3, 0xA9])):
        found, _ = opened(*byte_level(pre, "ll"))
        np.testing.assert_array_equal(found.encode("e\u0301"), ids)


@pytest.mark.parametrize(
    ("pre", "calls", "start"),
    [
        ("gpt-2", [], ()),
        ("llama-bpe", [], (257,)),
        ("llama-bpe", [("add_add_bos_token", False)], ()),
        ("qwen2", [("add_add_bos_token", True)], (257,)),
    ],
)
def test_where_texts_start(opened, pre, calls, start):
    tokens, own = byte_level(pre, "ll", special=["<s>", "</s>", "<|eot|>"])
    ids = [("add_bos_token_id", 257), ("add_eos_token_id", 258), ("add_eot_token_id", 259)]
    found, folder = opened(tokens, [*own, *ids, *calls])
    assert found.frame.start == start
    assert read_tokenizer(folder, 260).eos == "258,259"


def test_a_chat_template_comes_along(opened):
    tokens, own = byte_level("gpt-2", "ll", special=["</s>"])
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    calls = [("add_chat_template", template), ("add_eos_token_id", 257)]
    _, folder = opened(tokens, [*own, *calls])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == template
    assert settings["eos_token"] == "</s>"


def sentencepiece(kind, pieces, *calls):
    """`pieces` are (token, score), behind <unk>, <s>, </s> and the 256 bytes."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *(token for token, _ in pieces)]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    return tokens, [
        ("add_tokenizer_model", kind),
        ("add_token_list", tokens),
        ("add_token_types", types),
        ("add_token_scores", [0.0] * 259 + [score for _, score in pieces]),
        ("add_bos_token_id", 1),
        ("add_eos_token_id", 2),
        ("add_unk_token_id", 0),
        *calls,
    ]


BEST_FIRST = [
    ("▁", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("<", -9.0), ("s", -9.0), (">", -9.0),
    ("bc", -1.0), ("ab", -2.0), ("▁a", -3.0), ("abc", -4.0), ("<s", -5.0),
]  # fmt: skip


def test_sentencepieces_joined_best_first(opened):
    """▁abc is joined to ▁ a bc, as bc is best, and then to ▁a bc, as ▁a is better than abc."""
    found, _ = opened(*sentencepiece("llama", BEST_FIRST))
    place = {token: 259 + i for i, (token, _) in enumerate(BEST_FIRST)}

    def ids(*pieces):
        return [place[piece] if isinstance(piece, str) else 3 + piece for piece in pieces]

    for text, wanted in (
        ("abc", ids("▁a", "bc")),
        ("abc abc", ids("▁a", "bc", "▁a", "bc")),
        ("b  b", ids("▁", "b", "▁", "▁", "b")),
        ("é", ids("▁", 0xC3, 0xA9)),  # no piece of its own: its bytes
        ("<s>", ids("▁", "<s", ">")),  # text like any other
    ):
        np.testing.assert_array_equal(found.encode(text), wanted, text)
        assert found.decode(found.encode(text)) == text
    assert found.frame.start == (1,)  # llama.cpp's default for this kind


def test_sentencepieces_without_a_space_before(opened):
    """abc is joined to a bc and then to abc, as nothing better holds its a."""
    call = ("add_add_space_prefix", False)
    found, _ = opened(*sentencepiece("llama", BEST_FIRST, call))
    np.testing.assert_array_equal(found.encode("abc a"), [259 + 10, 259 + 9])
    assert found.decode(found.encode("abc a")) == "abc a"


def test_sentencepieces_of_the_largest_sum(opened):
    """▁a + b sums to −2, ▁ + ab to −1.9; then ▁a alone is better than ▁ + a."""
    pieces = [("▁", -1.5), ("a", -2.0), ("b", -1.0), ("▁a", -1.0), ("ab", -0.4)]
    found, _ = opened(*sentencepiece("t5", pieces))
    np.testing.assert_array_equal(found.encode("ab"), [259, 263])
    np.testing.assert_array_equal(found.encode("a  ab"), [262, 259, 263])  # spaces are joined
    assert found.decode(found.encode("ab a")) == "ab a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("add_tokenizer_pre", "tekken")], "tokenizer.ggml.pre='tekken' is not supported, only"),
        ([("add_tokenizer_model", "bert")], "tokenizer.ggml.model='bert' is not supported, only"),
        ([("add_token_types", [1, 2])], "token_type has 2 values, and there are 258 tokens"),
        ([("add_token_merges", ["ll"])], "tokenizer.ggml.merges: 'll': should be two parts"),
        ([("add_token_merges", ["l zz"])], "its tokeniser does not fit together (Error"),
        ([("add_token_list", [*BYTES, "ll", "ll"])], "tokenizer.ggml.tokens has 'll' twice"),
        ([("add_token_list", [*BYTES, "ll"])], "has 257 tokens, and the embedding 258 rows"),
        ([("add_array", "tokenizer.ggml.tokens", [1, 2])], "tokens: should be a list of text"),
        ([("add_uint32", "tokenizer.ggml.tokens", 2)], "tokens: should be a list of text"),
        ([("add_eos_token_id", 258)], "eos_token_id=258: should be below 258, the rows of the"),
        (
            [("add_string", "tokenizer.ggml.eos_token_id", "x")],
            "eos_token_id='x': should be a whol",
        ),
        ([("add_uint32", "tokenizer.ggml.add_bos_token", 1)], "add_bos_token=1: should be true or"),
        ([("add_uint32", "tokenizer.chat_template", 1)], "tokenizer.chat_template: should be text"),
    ],
)
def test_what_is_refused(tmp_path, changes, message):
    tokens, calls = byte_level("gpt-2", "ll", special=["</s>"])
    keys = {"add_token_list": "tokenizer.ggml.tokens"}
    taken = {name for call in changes for name in call[:2] if isinstance(name, str)}
    calls = [c for c in calls if c[0] not in taken and keys.get(c[0]) not in taken]
    path = write(tmp_path / "model.gguf", tokens, [*calls, *changes])
    with pytest.raises(UserError) as refused, open_source(path):
        pass
    said = str(refused.value)
    assert message in said
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


def test_another_tokeniser(tmp_path):
    """In place of one that is not known, and of a folder's; the file's own ends stay."""
    calls = [("add_tokenizer_model", "gpt2"), ("add_tokenizer_pre", "tekken"),
             ("add_token_list", [f"w{i}" for i in range(37)]), ("add_eos_token_id", 5)]  # fmt: skip
    path = convert_golden("qwen3", tmp_path / "m.gguf", calls=[*sizes("qwen3")[1], *calls])
    with pytest.raises(UserError, match="--tokenizer=FILE takes another one, and --tokenizer=none"):
        import_checkpoint(path, tmp_path / "run")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0, "y": 36}, "x"))
    words.save(str(tmp_path / "words.json"))
    import_checkpoint(path, tmp_path / "run", tokenizer=str(tmp_path / "words.json"))
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (
        tmp_path / "words.json"
    ).read_text()
    run = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run["data"]["eos"] == "5"
    with open_source(path, with_tokenizer=False) as source:
        assert read_tokenizer(source.folder, 37, instead="none").name == ""
        for name in ("words.model", "words"):
            with pytest.raises(UserError, match=f"--tokenizer={name}: should be a tokenizer.json"):
                read_tokenizer(source.folder, 37, instead=name)
        with pytest.raises(UserError, match=r"cannot read tokenizer nowhere\.json"):
            read_tokenizer(source.folder, 37, instead="nowhere.json")
