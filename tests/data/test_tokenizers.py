import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import ByteTokenizer, get_tokenizer
from lenext.errors import UserError


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
