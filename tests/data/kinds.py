"""Small tokenisers of the kinds there are, told apart by how they take spaces and digits."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [f"\nPass key {c}: {n}\n" for c in "AQZ" for n in range(3, 10**5, 197)] + ["abcd efgh\n"] * 9


def _trained(pre_tokenizer, names):
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizer
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=names, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )  # fmt: skip
    return library


def gpt2():
    """Byte-level BPE: the space before a word is a part of it, and digits merge."""
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])


def prefixed():
    """The same with a space put before each text, as RoBERTa's and some others'."""
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<|endoftext|>"])


def llama2():
    """SentencePiece's: a ▁ before each text and for each space, no words, digits one by one."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    merges = [("▁", "P"), ("a", "s"), ("as", "s"), ("▁P", "ass"), ("▁", "k"), ("e", "y"),
              ("▁k", "ey"), ("▁", "a"), ("b", "c"), ("▁", "e"), ("f", "g"), ("▁", "▁")]  # fmt: skip
    letters = [*map(chr, range(33, 127)), "▁", "é"]
    vocabulary = {t: i for i, t in enumerate([*pieces, *letters, *(a + b for a, b in merges)])}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return library


def llama3():
    """Byte-level BPE that cuts digits off, three by three, and starts a text."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    library = _trained(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        names,
    )
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], 0)]),
        ]
    )
    return library


KINDS = {"gpt2": gpt2, "prefixed": prefixed, "llama2": llama2, "llama3": llama3}


@functools.cache
def content(kind):
    """The text of a tokenizer.json."""
    return KINDS[kind]().to_str()


def save(kind, folder):
    """Writes a tokenizer.json; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(content(kind))
    return path
