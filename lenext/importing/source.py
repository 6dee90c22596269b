"""What a model is imported from: a folder, or one GGUF file that stands for one."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lenext.importing.gguf_file import SUFFIX, open_gguf
from lenext.importing.gguf_model import unpack_gguf
from lenext.importing.tensors import Tensor, open_tensors


class Source(NamedTuple):
    """A folder, and what does not lie in it.

    Attributes:
      folder: holds config.json and the tokeniser's files.
      tensors: gives the weights, by name.
      said: the file that says what the model is, where it is not the folder's config.json.
    """

    folder: Path
    tensors: Callable[[], dict[str, Tensor]]
    said: Path | None = None


@contextlib.contextmanager
def open_source(source: Path, *, with_tokenizer: bool = True) -> Iterator[Source]:
    """Gives a folder as it is; of a GGUF file one that lasts as long as it is open.

    Args:
      source: either.
      with_tokenizer: whether a GGUF file's tokeniser is wanted.

    Raises:
      UserError: it is no whole GGUF file of a kind that is known.
    """
    if source.suffix.lower() != SUFFIX or source.is_dir():
        yield Source(source, lambda: open_tensors(source))
        return
    gguf = open_gguf(source)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tensors = unpack_gguf(gguf, folder, with_tokenizer=with_tokenizer)
        yield Source(folder, lambda: tensors, source)
