"""A run's tokeniser in the ways of evaluation harnesses."""

from collections.abc import Sequence

import numpy as np

from lenext.buckets import AnyPath
from lenext.data import Tokenizer, VocabularyTokenizer
from lenext.workdirs.chat import special_tokens


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

    def __init__(self, tokenizer: Tokenizer, workdir: AnyPath, *, prefix: int | None = None):
        self._tokenizer = tokenizer
        self._library = None
        if isinstance(tokenizer, VocabularyTokenizer):
            self._library = tokenizer.library
            self._library.encode_special_tokens = False
        self.special = special_tokens(workdir)
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
