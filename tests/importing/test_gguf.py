"""GGUF files: what llama.cpp's converter changes is undone, and what is not read is named."""

import json
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from lenext.errors import UserError
from lenext.importing import export_checkpoint, import_checkpoint
from lenext.importing.gguf_file import open_gguf
from lenext.importing.recipes import read_recipe
from lenext.importing.source import open_source
from lenext.importing.tensors import open_tensors
from lenext.models import load_pretrained
from tests.importing.conftest import GOLDEN, golden_rows
from tests.importing.gguf_files import convert_golden, llama3_factors, sizes, write_file

gguf = pytest.importorskip("gguf", reason="GGUF files are read by the package gguf (extra gguf)")

# Those whose config.json a GGUF file can say: dynamic scaling, YaRN's other gains, and a scale of
# Gemma's logits none does.
SAID = [
    "llama", "llama_tied", "llama_biased", "llama_attention_bias", "llama_linear", "llama_llama3",
    "llama_yarn", "qwen2", "qwen3", "gemma3_linear",
]  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_the_same_model_as_of_a_folder(tmp_path, name):
    """Its sizes, its method and every tensor, to the bit."""
    path = convert_golden(name, tmp_path / "model.gguf")
    wanted, theirs = read_recipe(GOLDEN / name), open_tensors(GOLDEN / name)
    with open_source(path) as source:
        recipe = read_recipe(source.folder, said=source.said)
        assert recipe.model == wanted.model
        assert recipe.train_length == wanted.train_length
        assert source.tensors().keys() == theirs.keys()
        for tensor, x in source.tensors().items():
            assert x.shape == theirs[tensor].shape
            wanted = theirs[tensor].read()
            if name.startswith("gemma3") and tensor.endswith("norm.weight"):
                wanted = (wanted + 1) - 1  # as the converter rounds them
            np.testing.assert_array_equal(x.read(), wanted, tensor)


def test_logits_and_the_way_to_a_folder(tmp_path):
    """Which transformers gave; the folder that goes out is the one that was converted."""
    name = "llama_llama3"
    path = convert_golden(name, tmp_path / "model.gguf")
    import_checkpoint(path, tmp_path / "run")
    tokens, mask = golden_rows()
    logits = np.asarray(load_pretrained(tmp_path / "run")(tokens, mask=mask))
    expected = np.load(GOLDEN / name / "logits.npy")
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    ours, theirs = open_tensors(tmp_path / "back"), open_tensors(GOLDEN / name)
    assert ours.keys() == theirs.keys()
    for tensor, x in ours.items():
        np.testing.assert_array_equal(x.read(), theirs[tensor].read(), tensor)


@pytest.mark.parametrize(
    ("base", "size", "scaling"),
    [
        # Llama 3.1 and 3.2, as published.
        (5e5, 128, (8.0, 1.0, 4.0, 8192)), (5e5, 64, (32.0, 1.0, 4.0, 8192)),
        (1e4, 64, (4.0, 1.0, 8.0, 3000)),
        (1e4, 64, (4.0, 2.0, 4.0, 4096)),  # the same as low=1, high=2, L=2048
    ],
)  # fmt: skip
def test_scalings_of_llama_3_are_told_by_their_factors(tmp_path, base, size, scaling):
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    wanted = dict(zip(names, scaling, strict=True))
    values = [
        ("add_uint32", "llama.attention.key_length", size),
        ("add_uint32", "llama.attention.value_length", size),
        ("add_uint32", "llama.rope.dimension_count", size),
        ("add_float32", "llama.rope.freq_base", base),
    ]
    change = put(rope_freqs__weight=llama3_factors(wanted, base, size))
    with open_source(_written(tmp_path / "model.gguf", values, change)) as source:
        said = json.loads((source.folder / "config.json").read_text())["rope_scaling"]
    told = {key: wanted[key] / wanted["low_freq_factor"] for key in names[1:]}
    assert said == {"rope_type": "llama3", "factor": wanted["factor"]} | told


# Quantisations, value by value, in float64: from the block layouts of ggml-common.h.


def _half(block, at):
    return float(np.frombuffer(block[at : at + 2].tobytes(), "<f2")[0])


def _q4_0(b):
    nibbles = [x & 15 for x in b[2:]] + [x >> 4 for x in b[2:]]
    return [_half(b, 0) * (int(q) - 8) for q in nibbles]


def _q4_1(b):
    nibbles = [x & 15 for x in b[4:]] + [x >> 4 for x in b[4:]]
    return [_half(b, 0) * int(q) + _half(b, 2) for q in nibbles]


def _fives(high, low):
    bits = int.from_bytes(high.tobytes(), "little")
    nibbles = [int(x) & 15 for x in low] + [int(x) >> 4 for x in low]
    return [q + 16 * (bits >> i & 1) for i, q in enumerate(nibbles)]


def _q5_0(b):
    return [_half(b, 0) * (q - 16) for q in _fives(b[2:6], b[6:])]


def _q5_1(b):
    return [_half(b, 0) * q + _half(b, 2) for q in _fives(b[4:8], b[8:])]


def _q8_0(b):
    return [_half(b, 0) * float(x) for x in b[2:].view(np.int8)]


def _q2_k(b):
    scales, quants, d, least = b[:16], b[16:80], _half(b, 80), _half(b, 82)
    values = []
    for i in range(256):
        half, rest = divmod(i, 128)
        shift, place = divmod(rest, 32)
        q = int(quants[32 * half + place]) >> 2 * shift & 3
        scale = int(scales[i // 16])
        values.append(d * (scale & 15) * q - least * (scale >> 4))
    return values


def _q3_k(b):
    masks, quants, packed, d = b[:32], b[32:96], [int(x) for x in b[96:108]], _half(b, 108)
    values = []
    for i in range(256):
        half, rest = divmod(i, 128)
        shift, place = divmod(rest, 32)
        q = int(quants[32 * half + place]) >> 2 * shift & 3
        if not int(masks[place]) >> (4 * half + shift) & 1:
            q -= 4
        j = i // 16
        low = packed[j % 8] >> (4 if j >= 8 else 0) & 15
        high = packed[8 + j % 4] >> 2 * (j // 4) & 3
        values.append(d * (low + 16 * high - 32) * q)
    return values


def _scale_and_least(packed, j):
    """get_scale_min_k4."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (
        packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
        packed[j + 4] >> 4 | packed[j] >> 6 << 4,
    )


def _q4_k(b):
    d, least, packed, quants = _half(b, 0), _half(b, 2), [int(x) for x in b[4:16]], b[16:]
    values = []
    for i in range(256):
        j, place = divmod(i, 32)
        q = int(quants[32 * (j // 2) + place]) >> 4 * (j % 2) & 15
        scale, m = _scale_and_least(packed, j)
        values.append(d * scale * q - least * m)
    return values


def _q5_k(b):
    d, least, packed = _half(b, 0), _half(b, 2), [int(x) for x in b[4:16]]
    high, quants = b[16:48], b[48:]
    values = []
    for i in range(256):
        j, place = divmod(i, 32)
        q = int(quants[32 * (j // 2) + place]) >> 4 * (j % 2) & 15
        q += 16 * (int(high[place]) >> j & 1)
        scale, m = _scale_and_least(packed, j)
        values.append(d * scale * q - least * m)
    return values


def _q6_k(b):
    low, high, scales, d = b[:128], b[128:192], b[192:208].view(np.int8), _half(b, 208)
    values = []
    for i in range(256):
        half, rest = divmod(i, 128)
        part, place = divmod(rest, 32)
        q = int(low[64 * half + 32 * (part % 2) + place]) >> 4 * (part // 2) & 15
        q |= (int(high[32 * half + place]) >> 2 * part & 3) << 4
        values.append(d * int(scales[i // 16]) * (q - 32))
    return values


# A block's values, its bytes, and where in it halves lie that are to be finite.
BLOCKS = {
    "Q4_0": (_q4_0, 18, (0,)), "Q4_1": (_q4_1, 20, (0, 2)), "Q5_0": (_q5_0, 22, (0,)),
    "Q5_1": (_q5_1, 24, (0, 2)), "Q8_0": (_q8_0, 34, (0,)), "Q2_K": (_q2_k, 84, (80, 82)),
    "Q3_K": (_q3_k, 110, (108,)), "Q4_K": (_q4_k, 144, (0, 2)), "Q5_K": (_q5_k, 176, (0, 2)),
    "Q6_K": (_q6_k, 210, (208,)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
def test_quantised_numbers(tmp_path, kind):
    """Of blocks with any bits, two a row, three rows."""
    values, size, halves = BLOCKS[kind]
    rng = np.random.default_rng(list(BLOCKS).index(kind))
    blocks = rng.integers(0, 256, (3, 2, size), np.uint8)
    for at in halves:
        scales = rng.standard_normal((3, 2, 1)).astype("<f2")
        blocks[..., at : at + 2] = scales.view(np.uint8)
    path = tmp_path / "one.gguf"
    write_file(path, "llama", [], {"x": (blocks.reshape(3, 2 * size), kind)})
    found = open_gguf(path).tensors["x"]
    expected = np.array([[values(b) for b in row] for row in blocks], np.float64).reshape(3, -1)
    assert (found.shape, found.dtype) == (expected.shape, "float32")
    there = found.read()
    assert there.dtype == np.float32
    np.testing.assert_allclose(there, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected)))


def test_numbers_that_are_stored_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    half, brain = x.astype(np.float16), x.astype(ml_dtypes.bfloat16)
    tensors = {"f": x, "h": half, "b": (brain.view(np.uint8), "BF16")}
    found = open_gguf(write_file(tmp_path / "x.gguf", "llama", [], tensors)).tensors
    assert {name: t.dtype for name, t in found.items()} == {
        "f": "float32", "h": "float16", "b": "bfloat16",
    }  # fmt: skip
    for name, wanted in (("f", x), ("h", half), ("b", brain)):
        assert found[name].read().dtype == wanted.dtype
        np.testing.assert_array_equal(found[name].read(), wanted)


def test_types_stay_on_the_way_back(tmp_path):
    """Halves go out as halves."""

    def change(tensors):
        tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].astype(np.float16)

    path = convert_golden("qwen3", tmp_path / "model.gguf", change=change)
    with open_source(path) as source:
        assert source.tensors()["model.layers.0.mlp.up_proj.weight"].dtype == "float16"
        assert source.tensors()["model.layers.1.mlp.up_proj.weight"].dtype == "float32"


ZEROS = np.zeros((5, 16), np.float32)


def put(**tensors):
    """What alters a file's tensors: by names with __ for dots; None takes one out."""

    def change(there):
        for name, x in tensors.items():
            if x is None:
                del there[name.replace("__", ".")]
            else:
                there[name.replace("__", ".")] = x

    return change


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        ([], put(blk__0__ffn_up__weight=ZEROS),
         r"tensor blk.0.ffn_up.weight is [5, 16], and [24, 16] by model.gguf"),
        ([], put(blk__0__attn_q__weight=ZEROS), "tensor blk.0.attn_q.weight is [5, 16]"),
        ([], put(token_embd__weight=None), "tensor token_embd.weight is missing"),
        ([], put(blk__1__ffn_up__weight=None), "up_proj.weight is missing, by model.gguf"),
        ([], put(blk__0__attn_sinks__weight=ZEROS), "tensor blk.0.attn_sinks.weight is not known"),
        ([], put(v__blk__0__x=ZEROS), "the model has a vision part"),
        ([], put(x=np.zeros(3, np.int32)), "tensor x is I32, which is not read; should be F32"),
        ([], put(x=(np.zeros((2, 66), np.uint8), "IQ2_XXS")), "tensor x is IQ2_XXS, which is not"),
        ([], put(rope_freqs__weight=np.ones(7, np.float32)), "rope_freqs.weight is [7], and [2]"),
        ([], put(rope_freqs__weight=np.array([3, 1], np.float32)), "other factors than Llama 3's"),
        ([("add_string", "llama.block_count", "two")], None, "llama.block_count='two': should be"),
        ([("add_uint32", "llama.block_count", 10**9)], None, "block_count=1000000000: the file"),
        ([("add_string", "llama.rope.freq_base", "1e4")], None, "rope.freq_base='1e4': should"),
        ([("add_uint32", "llama.vocab_size", 40)], None, "vocab_size=40: tensor token_embd.weight"),
        ([("add_uint32", "llama.expert_count", 8)], None, "the model has a mixture of experts"),
        ([("add_uint32", "llama.attention.kv_lora_rank", 8)], None, "multi-head latent attention"),
        ([("add_float32", "llama.logit_scale", 0.5)], None, "llama.logit_scale=0.5 is not known"),
        ([("add_bool", "llama.attention.causal", False)], None, "causal=False is not supported"),
        ([("add_uint32", "llama.attention.value_length", 8)], None, "should be attention.key_"),
        ([("add_array", "llama.attention.head_count_kv", [2, 4])], None, "differs between layers"),
        ([("add_string", "llama.rope.scaling.type", "longrope")], None, "type='longrope' is not"),
        ([("add_uint32", "llama.rope.dimension_count", 2)], None, "partial_rotary_factor=0.5"),
        ([("add_uint16", "split.count", 3)], None, "is one of 3 files of a split model; join them"),
        ([("add_string", "general.alignment", "32")], None, "general.alignment='32': should be a"),
        ([("add_string", "general.type", "adapter")], None, "general.type='adapter': should be a"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, values, change, message):
    path = tmp_path / "model.gguf"
    with pytest.raises(UserError) as refused:
        import_checkpoint(_written(path, values, change), tmp_path / "run")
    said = str(refused.value)
    assert message in said
    assert str(path) in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def _written(path, values, change):
    """A golden llama's file, in which later values take the place of earlier ones."""
    taken = {call[1] for call in values}
    names = {
        "add_block_count": "llama.block_count", "add_rope_freq_base": "llama.rope.freq_base",
        "add_key_length": "llama.attention.key_length",
        "add_value_length": "llama.attention.value_length",
        "add_head_count_kv": "llama.attention.head_count_kv",
        "add_rope_dimension_count": "llama.rope.dimension_count",
    }  # fmt: skip
    calls = [call for call in sizes("llama")[1] if names.get(call[0]) not in taken]
    return convert_golden("llama", path, calls=[*calls, *values], change=change)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("clip", "is the vision part of a model"),
        ("t5", "the model has an encoder beside its decoder (as t5)"),
        ("deepseek2", "the model has multi-head latent attention (as deepseek2)"),
        ("mamba", "general.architecture='mamba': should be one of gemma3, llama, qwen2, qwen3"),
    ],
)
def test_architectures_that_are_not_known(tmp_path, architecture, message):
    path = write_file(tmp_path / "x.gguf", architecture, [], {"x": ZEROS})
    with pytest.raises(UserError, match="^" + str(path)) as refused:
        import_checkpoint(path, tmp_path / "run")
    assert message in str(refused.value)


MINIMAL = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


def text(x):
    return struct.pack("<Q", len(x)) + x


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "and is empty"),
        (b"PK\x03\x04" + bytes(40), "does not start with GGUF"),
        (b"GGUF\x03", "version takes 4 bytes, and 1 are left"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of GGUF's version 1; should be 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), f"says that it has {2**60} tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), f"says that it has {2**63} values"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**61),
         f"says that it has {2**61} numbers in k"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**61),
         f"says that it has {2**61} strings in k"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 2**61),
         "k is an array of a type that is not known, 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + struct.pack("<IQ", 8, 2**61),
         f"k takes {2**61} bytes, and 0 are left"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + struct.pack("<I", 77) + bytes(9),
         "k is of a type that is not known, 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"\xff") + bytes(9), "be text in UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)),
         "has k twice"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<I", 99) + bytes(40),
         "tensor x has 99 dimensions"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 0, 0, 0),
         "tensor x is [0], and holds nothing"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 8, 0, 2**60)
         + bytes(64), f"tensor x ends at byte {96 + 2**60}"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 8, 0, 4)
         + bytes(99), "tensor x is at 4: should be at a multiple of 32"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 8, 99, 0)
         + bytes(99), "tensor x is of type 99, which is not read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 33, 8, 0)
         + bytes(99), "tensor x has rows of 33: should be of a multiple of 32, as it is Q8_0"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
         + 2 * (text(b"x") + struct.pack("<IQIQ", 1, 8, 0, 0)) + bytes(99), "has tensor x twice"),
    ],
)  # fmt: skip
def test_files_that_are_broken(tmp_path, content, message):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_gguf(path)
    said = str(refused.value)
    assert message in said
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


def test_a_file_that_is_cut_anywhere(tmp_path):
    whole = convert_golden("llama_tied", tmp_path / "model.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(1, len(whole) - 32, 977):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"^[^\n]*cut\.gguf: [^\n]*$"):
            open_gguf(path)


def test_other_than_a_file(tmp_path):
    with pytest.raises(UserError, match=r"no\.gguf: cannot be read \(No such file"):
        import_checkpoint(tmp_path / "no.gguf", tmp_path / "run")


def test_the_package_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(MINIMAL)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"x\.gguf: reading it takes the package gguf: python -m"):
        open_gguf(tmp_path / "x.gguf")
