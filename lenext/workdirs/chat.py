"""What an imported folder says of chats: its templates, and the special tokens that it names."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lenext.buckets import AnyPath
from lenext.errors import UserError
from lenext.files import read_object
from lenext.workdirs.workdir import SOURCE

SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
MARK = "\N{END OF TRANSMISSION BLOCK}"
"""Stands where a message ends, to be found again; no message holds it."""


def special_token(settings: Mapping[str, Any], key: str) -> str:
    """A special token's text, which may be an object's; "" where there is none."""
    value = settings.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    # Half a surrogate pair, which JSON can spell, is no text.
    return value.encode(errors="ignore").decode() if isinstance(value, str) else ""


def special_tokens(workdir: AnyPath) -> dict[str, str]:
    """Texts of `bos_token`, `eos_token` and so on, as far as files of a run's import name them.

    Raises:
      UserError: one of the files cannot be read.
    """
    declared = [read_object(workdir / SOURCE / name) for name in (SPECIAL, SETTINGS)]
    keys = dict.fromkeys(k for each in declared for k in each if k.endswith("_token"))
    found = {
        key: next(filter(None, (special_token(of, key) for of in declared)), "") for key in keys
    }
    return {key: token for key, token in found.items() if token}


class ChatTemplate:
    """The chat templates of an imported run: Jinja, run in a sandbox, as transformers runs them.

    Args:
      workdir: of a run. Of its files from an import, chat_template.jinja goes before
        chat_template.json, and that before tokenizer_config.json.
      special: texts of special tokens by their keys, which templates may name.
    """

    def __init__(self, workdir: AnyPath, special: dict[str, str]):
        self._workdir, self._special = workdir, special
        folder = workdir / SOURCE
        jinja, *others = TEMPLATES
        file = folder / jinja
        try:
            found: Any = file.read_text(encoding="utf-8") if file.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from None
        for name in (*others, SETTINGS):
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
                f"{SETTINGS} of an imported folder)"
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
        template = self.text(name)
        try:
            import jinja2  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise UserError(
                'chat templates take the package jinja2: python -m pip install "jinja2>=3.1,<4"'
            ) from None
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

    def around(self) -> tuple[str, str]:
        """What stands before what a user says, and between that and the answer.

        Raises:
          UserError: as `render`.
        """
        text = self.render([{"role": "user", "content": MARK}], begins_answer=True)
        before, mark, after = text.partition(MARK)
        if not mark:
            raise UserError("chat template 'default': leaves out what the user says")
        return before, after


def _environment() -> Any:
    """Jinja's sandbox with what templates expect of transformers."""
    import jinja2  # pyright: ignore[reportMissingImports]
    from jinja2.ext import Extension  # pyright: ignore[reportMissingImports]
    from jinja2.sandbox import (  # pyright: ignore[reportMissingImports]
        ImmutableSandboxedEnvironment,
    )

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
