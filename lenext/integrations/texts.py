"""A run's tokeniser in the ways of evaluation harnesses: texts with their start, and chats."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lenext.data import Tokenizer, VocabularyTokenizer
from lenext.errors import UserError
from lenext.importing.tokenizer import SETTINGS, SPECIAL, read_object, special_token
from lenext.workdirs.workdir import SOURCE

MARK = "\N{END OF TRANSMISSION BLOCK}"
"""Stands where a message ends, to be found again; no message holds it."""


class Texts:
    """Texts to ids and back, as the harness's `hf` model has them of the same tokeniser.

    - A text starts with what the run's texts start with (`config.data.bos`; of an imported run what
      the tokeniser's post-processor puts there), unless it spells the prefix's token itself.
    - What spells a special token is read as that token, as chat templates want it.
    - Unlike there, no end is put after a text, whatever the post-processor does.

    Args:
      tokenizer: of the run, nobody else's.
      workdir: of the run; its files from an import name special tokens.
      prefix: the id that a first token is conditioned on, in place of the one below.

    Attributes:
      start: ids that a text starts with.
      stops: ids at any of which a text that is drawn has ended.
      end: the id that ends a document, or None.
      prefix: the one given, or else that of `bos_token`, the last of the start, `eos_token`, or the
        end: the first that there is; None where there is none.
      special: text of `bos_token`, `eos_token` and so on, as far as files name them.
    """

    def __init__(self, tokenizer: Tokenizer, workdir: Path, *, prefix: int | None = None):
        self._tokenizer = tokenizer
        self._library = None
        if isinstance(tokenizer, VocabularyTokenizer):
            self._library = tokenizer.library
            self._library.encode_special_tokens = False
        declared = [read_object(workdir / SOURCE / name) for name in (SPECIAL, SETTINGS)]
        keys = dict.fromkeys(k for each in declared for k in each if k.endswith("_token"))
        found = {
            key: next(filter(None, (special_token(of, key) for of in declared)), "") for key in keys
        }
        self.special = {key: token for key, token in found.items() if token}
        frame = tokenizer.frame
        self.start, self.end, self.stops = frame.start, frame.end, frame.stops
        ends = (self._declared("eos_token"), self.end)
        known = (prefix, self._declared("bos_token"), *self.start[-1:], *ends)
        self.prefix = next((i for i in known if i is not None), None)
        self._prefix_text = self._spelt(self.prefix)

    def _declared(self, key: str) -> int | None:
        token = self.special.get(key)
        return self._library.token_to_id(token) if self._library and token else None

    def _spelt(self, i: int | None) -> str:
        return (self._library.id_to_token(i) or "") if self._library and i is not None else ""

    @property
    def end_text(self) -> str:
        """What spells the end; "" where nothing does."""
        return self._spelt(self.end)

    @property
    def fingerprint(self) -> str:
        """Of what determines the ids of a text."""
        start = "-".join(map(str, self.start))
        return f"{self._tokenizer.fingerprint}{f'-{start}' if start else ''}"

    def encode(self, text: str, start: bool | None = None) -> list[int]:
        """The ids of a text.

        Args:
          text: any.
          start: whether it gets its start; None: unless it begins with the prefix's token.

        Raises:
          UserError: it has an id that the model does not.
        """
        ids = self._tokenizer.encode(text).tolist()
        if start is None:
            start = not (self._prefix_text and text.startswith(self._prefix_text))
        return [*self.start, *ids] if start else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special ones left out."""
        return self._tokenizer.decode(np.asarray(ids, np.int64))


class ChatTemplate:
    """The chat templates of an imported run: Jinja, run in a sandbox, as transformers runs them.

    Args:
      workdir: of a run. Of its files from an import, chat_template.jinja goes before
        chat_template.json, and that before tokenizer_config.json.
      special: texts of special tokens by their keys, which templates may name.
    """

    def __init__(self, workdir: Path, special: dict[str, str]):
        self._workdir, self._special = workdir, special
        folder = workdir / SOURCE
        file = folder / "chat_template.jinja"
        try:
            found: Any = file.read_text(encoding="utf-8") if file.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from None
        for name in ("chat_template.json", SETTINGS):
            found = read_object(folder / name).get("chat_template") if found is None else found
        if isinstance(found, str):
            found = {"default": found}
        elif isinstance(found, list):
            found = {str(x.get("name")): x.get("template") for x in found if isinstance(x, dict)}
        self._templates = {
            name: text for name, text in (found or {}).items() if isinstance(text, str)
        }

    @property
    def identity(self) -> str:
        """Tells the templates from others; "" where there are none."""
        content = json.dumps(self._templates, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:12] if self._templates else ""

    def text(self, name: str = "default") -> str:
        """A template by its name.

        Raises:
          UserError: there is none, or none of that name.
        """
        if not self._templates:
            raise UserError(
                f"workdir {self._workdir}: has no chat template (chat_template.jinja or "
                f"{SETTINGS} of an imported folder); leave --apply_chat_template out"
            )
        if name not in self._templates:
            raise UserError(
                f"chat template {name!r}: should be one of {', '.join(sorted(self._templates))}"
            )
        return self._templates[name]

    def render(
        self, messages: Sequence[dict[str, Any]], *, name: str = "default", begins_answer: bool
    ) -> str:
        """A chat as text.

        Args:
          messages: each with a role and its content.
          name: of the template.
          begins_answer: it ends where an answer begins; else in the last message, which goes on.

        Raises:
          UserError: as `text`, or the template refuses the messages.
        """
        import jinja2

        template = self.text(name)
        chat = [dict(message) for message in messages]
        if not begins_answer:
            chat[-1]["content"] = f"{chat[-1]['content']}{MARK} "
        try:
            compiled = _environment().from_string(template)
            text = compiled.render(
                messages=chat, add_generation_prompt=begins_answer, tools=None, documents=None,
                **self._special,
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise UserError(f"chat template {name!r}: {error}") from None
        if begins_answer:
            return text
        before, mark, after = text.rpartition(MARK)
        if not mark:
            raise UserError(f"chat template {name!r}: leaves the last message's end out")
        return before if after.startswith(" ") else before.rstrip()  # it trims messages


def _environment() -> Any:
    """Jinja's sandbox with what templates expect of transformers."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}, which marks answers for training: here its body, as it is."""

        tags: set[str] = {"generation"}  # noqa: RUF012 # as Jinja wants it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
