"""An evaluation set of one's own documents: what is in it, what training saw, its lengths."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lenext.buckets import AnyPath
from lenext.config import Config
from lenext.data import Tokenizer, check_data, open_tokenizer
from lenext.data.datasets import ALL, open_texts
from lenext.data.documents import SUFFIXES, Document, read_documents
from lenext.data.overlap import Prints, prints_of, shares_in
from lenext.data.text_files import some
from lenext.data.text_paths import find_files
from lenext.errors import UserError, one_line
from lenext.files import check_free, making_folder
from lenext.models import FAMILIES, check_sizes
from lenext.workdirs.checkpoints import Checkpoints, newest_step
from lenext.workdirs.workdir import SOURCE

FILE = "documents.jsonl"
SEEN = 0.5
"""Share of a document in lines that training saw, from which on it is left out."""
TWICE, TRAINED_ON = "the same text as another", "seen in training"


class Kept(NamedTuple):
    """A document of the set.

    Attributes:
      name: as it was found.
      tokens: of it, with what surrounds it.
      prints: what it is known by.
      place: where its line in the file begins, and its bytes.
    """

    name: str
    tokens: int
    prints: Prints
    place: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to make, and for whom.

    Attributes:
      files: folders, files and globs, with commas.
      target: the folder to make.
      workdir: of the run; None where there is none.
      config: of the run, or the default one; its tokeniser is the one to count by.
      lengths: of the table; none for doublings.
      field: where a line of a .jsonl has its text.
      tokenizer_given: whether the tokeniser is not the run's own.
    """

    files: str
    target: Path
    workdir: AnyPath | None
    config: Config
    lengths: Sequence[int]
    field: str
    tokenizer_given: bool


def make_set(asked: Asked) -> None:
    """Writes DIR/documents.jsonl, and says what is in it, what is not, and how to evaluate it.

    Raises:
      UserError: files that cannot be read, DIR that is there already, no document that is left, or
        none as long as the shortest length.
    """
    check_sizes(asked.config.model)
    check_data(asked.config.data)
    check_free(asked.target, "target")
    tokenizer = open_tokenizer(asked.config, bos=asked.config.eval.bos)
    found = find_files(asked.files, SUFFIXES, "--files")
    left_out: dict[str, list[str]] = {}
    replaced: list[str] = []

    def documents() -> Iterator[Document]:
        for path in found.paths:
            for document in read_documents(found.root, path, asked.field):
                if document.replaced:
                    replaced.append(f"{document.replaced:,} in {document.name}")
                if document.text:
                    yield document
                else:
                    left_out.setdefault(document.reason, []).append(document.name)

    with making_folder(asked.target, "target") as beside:
        kept, twice = _write_all(beside / "all", documents(), tokenizer)
        partly: list[str] = []
        if twice:
            left_out[TWICE] = twice
        if asked.workdir is not None and kept:
            kept, trained_on, partly = _without_seen(kept, asked.workdir, asked.config)
            if trained_on:
                left_out[TRAINED_ON] = trained_on
        _copy(beside / "all", beside / FILE, kept)
        lines = [
            f"left out, {why}: {len(names)} ({some(names)})" for why, names in left_out.items()
        ]
        if found.skipped:
            lines.append(f"skipped: {len(found.skipped)} ({some(found.skipped)})")
        if not kept:
            raise UserError(f"--files={asked.files}: no document is left; {'; '.join(lines)}")
        causal = FAMILIES[asked.config.model.family].objective == "causal_lm"
        counts = [each.tokens for each in kept]
        table = length_table(counts, _lengths(asked, kept, causal), lookahead=int(causal))
    if partly:
        lines.append(f"kept, though training saw lines of them: {len(partly)} ({some(partly)})")
    if replaced:
        lines.append(f"characters that could not be read, replaced: {some(replaced)}")
    print("".join(f"{one_line(line)}\n" for line in lines), end="")
    print(f"\n{_as_text(table)}\n\ntokens: of crops side by side, as many as fit; ", end="")
    print(f"lenext.evaluate takes about config.eval.tokens of them ({asked.config.eval.tokens:,})")
    print(f"made: {asked.target / FILE}, {len(kept):,} documents of {sum(counts):,} tokens")
    print(f"\n    {evaluate_command(asked, [row[0] for row in table if row[1]], len(kept))}")


def _write_all(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer
) -> tuple[list[Kept], list[str]]:
    """Writes documents, a line each, and returns them, and the names of those that repeat one."""
    kept: list[Kept] = []
    twice: list[str] = []
    digests = set()
    frame = len(tokenizer.frame.start) + (tokenizer.frame.end is not None)
    with path.open("wb") as file:
        for document in documents:
            prints = prints_of([document.text])
            if prints.digest in digests:
                twice.append(document.name)
                continue
            digests.add(prints.digest)
            record = {"name": document.name, "text": document.text}
            place = file.tell(), file.write(json.dumps(record).encode() + b"\n")
            kept.append(Kept(document.name, frame + _count(document, tokenizer), prints, place))
    return kept, twice


def _count(document: Document, tokenizer: Tokenizer) -> int:
    try:
        return len(tokenizer.encode(document.text))
    except UserError as error:  # a token that the model does not have
        raise UserError(f"{document.name}: {error}") from None


def _copy(source: Path, target: Path, kept: Iterable[Kept]) -> None:
    """Writes the lines of what is kept, in their order, and removes what they are copied from."""
    with source.open("rb") as lines, target.open("wb") as file:
        for each in kept:
            start, size = each.place
            lines.seek(start)
            file.write(lines.read(size))
    source.unlink()


def _without_seen(
    kept: Sequence[Kept], workdir: AnyPath, config: Config
) -> tuple[list[Kept], list[str], list[str]]:
    """Those that training did not see; names of those that it did; names of what it saw a part of.

    What a run cannot say of its training is told on stderr.
    """
    data = config.data
    step = newest_step(workdir)
    if step == 0:  # which no training writes
        _warn(f"workdir {workdir}: is imported, and what it was trained on is not known")
        return [*kept], [], []
    if (workdir / SOURCE).is_dir():
        _warn(f"workdir {workdir}: went on from an imported model; only what it was trained on "
                 "here is known")  # fmt: skip
    try:
        texts = open_texts(data.dataset, "train", data.data_dir or None, data.files, data.field)
    except UserError as error:
        _warn(f"workdir {workdir}: what it was trained on is not there ({error})")
        return [*kept], [], []
    if step is not None:
        checkpoints = Checkpoints(workdir)
        trained = checkpoints.restore_data(step).get("fingerprint", texts.fingerprint)
        checkpoints.close()
        if trained != texts.fingerprint:
            _warn(f"workdir {workdir}: its data, {data.dataset}, has changed since it was "
                     "trained; only what is there now is known")  # fmt: skip
    shares = shares_in([each.prints for each in kept], texts.read())
    left, seen, partly = [], [], []
    for each, share in zip(kept, shares, strict=True):
        if share >= SEEN:
            seen.append(each.name)
            continue
        left.append(each)
        if share:
            partly.append(f"{each.name}, {share:.0%}" if share >= 0.01 else f"{each.name}, < 1%")
    return left, seen, partly


def _warn(line: str) -> None:
    print(f"warning: {one_line(line)}", file=sys.stderr)


def _lengths(asked: Asked, kept: Sequence[Kept], causal: bool) -> list[int]:
    """The table's lengths, of which some document is as long as one.

    Raises:
      UserError: none is.
    """
    longest = max(kept, key=lambda each: each.tokens)
    most = longest.tokens - causal
    lengths = sorted(asked.lengths)
    if not lengths:
        lengths = [asked.config.data.train_length]
        while 2 * lengths[-1] <= most:
            lengths.append(2 * lengths[-1])
    if most < lengths[0]:
        raise UserError(
            f"length {lengths[0]}: no document is that long; the longest, {longest.name}, has "
            f"{longest.tokens} tokens{', of which one is only predicted' * causal}; give shorter "
            "--lengths"
        )
    return lengths


def length_table(
    counts: Sequence[int], lengths: Iterable[int], *, lookahead: int
) -> list[tuple[int, int, int, int]]:
    """What there is to evaluate at each length.

    Args:
      counts: tokens in each document.
      lengths: tokens that a model sees.
      lookahead: tokens of a crop beyond them, see `lenext.data.evaluation_crops`.

    Returns:
      Of each length: it, the documents that hold a crop, the crops that all of them hold without
      overlap, and their tokens, each crop's `length`.
    """
    rows = []
    for length in lengths:
        crops = [count // (length + lookahead) for count in counts]
        rows.append((length, sum(map(bool, crops)), sum(crops), sum(crops) * length))
    return rows


def _as_text(table: Iterable[Sequence[int]]) -> str:
    rows = [("length", "documents", "crops", "tokens")]
    rows += [(str(length), *(f"{number:,}" for number in row)) for length, *row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def evaluate_command(asked: Asked, lengths: Sequence[int], documents: int) -> str:
    """What to type to evaluate a run on all of the documents."""
    words = [
        f"--workdir={asked.workdir or 'RUN'}",
        "--config.data.dataset=text_files",
        f"--config.data.files={asked.target}",
        f"--config.eval.split={ALL}",
        f"--config.eval.documents={documents}",
        f"--config.eval.lengths={','.join(map(str, lengths))}",
    ]
    if asked.config.data.field != "text":
        words.append("--config.data.field=text")  # in place of the run's own
    if asked.tokenizer_given:
        words.append(f"--config.data.tokenizer={asked.config.data.tokenizer}")
    return shlex.join(["python", "-m", "lenext.evaluate", *words])
