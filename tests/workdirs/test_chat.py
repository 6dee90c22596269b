"""Chat templates of imported folders: what stands around a question, in text and in ids."""

import json

import pytest

from lenext.data import ByteTokenizer, get_tokenizer
from lenext.errors import UserError
from lenext.evaluation.workdir_sweep import _chat_of
from lenext.workdirs.chat import ChatTemplate, special_tokens
from lenext.workdirs.workdir import SOURCE
from tests.data import kinds

pytest.importorskip("jinja2", reason="jinja2 is not installed")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def folder(tmp_path, template):
    source = tmp_path / SOURCE
    source.mkdir()
    settings = {"bos_token": {"content": "<|begin_of_text|>"}, "chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_what_stands_around_a_question(tmp_path):
    workdir = folder(tmp_path, TEMPLATE)
    special = special_tokens(workdir)
    assert special == {"bos_token": "<|begin_of_text|>"}
    before, after = ChatTemplate(workdir, special).around()
    assert before == "<|begin_of_text|>user: "
    assert after == "<|eot_id|>assistant:"

    tokenizer = get_tokenizer(str(kinds.save("llama3", tmp_path)))
    ids = tokenizer.library.token_to_id
    chat = _chat_of(workdir, tokenizer)
    assert chat.before == (ids("<|begin_of_text|>"), *tokenizer.encode("user: "))
    assert chat.after == (ids("<|eot_id|>"), *tokenizer.encode("assistant:"))
    # Afterwards text is text again.
    assert ids("<|eot_id|>") not in tokenizer.encode("<|eot_id|>")
    with pytest.raises(UserError, match=r"config\.eval\.chat=True: bytes have no tokens"):
        _chat_of(workdir, ByteTokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ bos_token }}", "leaves out what the user says"),
        ("{{ raise_exception('no') }}", "chat template 'default': no"),
        ("{% if %}", "chat template 'default': "),
    ],
)
def test_templates_that_cannot_ask(template, message, tmp_path):
    workdir = folder(tmp_path, template)
    with pytest.raises(UserError, match=message):
        ChatTemplate(workdir, {"bos_token": ""}).around()
