"""Protocols: what a model is asked at a length. Figures of two protocols do not compare."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from lenext.data import (
    RULER,
    TASKS,
    Corpus,
    Crops,
    Tokenizer,
    evaluation_crops,
    masked_crops,
    require_mask,
)
from lenext.data.prompts import Chat, Ids, Source, TooShort, make_prompt, spell_answers
from lenext.errors import UserError


@dataclasses.dataclass(frozen=True)
class CropSettings:
    """What is drawn from a corpus; what each means stands in `lenext.config`, section `eval`."""

    documents: int
    tokens: int
    seed: int
    mask_rate: float = 0.15
    masks: int = 8
    stride: int = 32
    needles: int = 1
    tasks: tuple[str, ...] = ()
    chat: Chat | None = None
    key: str = "config.eval.lengths"  # where the length was given, for messages


class Answers(NamedTuple):
    """Of rows that end on questions, what is to be right.

    Attributes:
      number: which answer each prediction is a part of, from 0; -1 for those that are of none.
      place: of each answer, where in the row its needle begins.
    """

    number: Int64[np.ndarray, "C P"]
    place: Int64[np.ndarray, "C answers"]


class Sequences(NamedTuple):
    """Rows of one length, ready for a model.

    Attributes:
      batch: tokens [C, n], targets and weights [C, P], and predicted [C, P] where tokens are
        masked.
      document: index in the corpus of the document that each row was cut from.
      ordered: prediction p is made from p + 1 tokens, so that loss by position has a meaning.
      answers: where the protocol is a task's.
      far: predictions that need the far context, see `lenext.evaluation.far`; None where that was
        not asked.
    """

    batch: dict[str, np.ndarray]
    document: Int64[np.ndarray, " C"]
    ordered: bool = False
    answers: Answers | None = None
    far: Bool[np.ndarray, "C P"] | None = None


class Prompts(NamedTuple):
    """Prompts of one length, for a model that goes on from them.

    Attributes:
      batch: tokens [C, n]; answers [C, K, A], of `sizes` [C, K] tokens, the right one first.
      document: which example each is; prompts of one number are of several tasks.
      length: of a row, in tokens: of the prompt and room for an answer.
      draw: tokens of that room.
      task: the name of each prompt's.
      place: where its first needle begins; -1 where that is not one.
      expected: what is to stand in each one's answer.
      tokenizer: gives text back.
    """

    batch: dict[str, np.ndarray]
    document: Int64[np.ndarray, " C"]
    length: int
    draw: int
    task: tuple[str, ...]
    place: Int64[np.ndarray, " C"]
    expected: tuple[tuple[str, ...], ...]
    tokenizer: Tokenizer


Prepare = Callable[[Corpus, Tokenizer, int, int, CropSettings], Sequences | Prompts]
"""(corpus, tokenizer, length, longest length of the sweep, settings) to sequences."""


def mlm15(
    corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, settings: CropSettings
) -> Sequences:
    """BERT's 15 % of all positions, corrupted as in training, in one pass."""
    del longest
    crops = _started(_crops(corpus, length, settings), tokenizer)
    batch = masked_crops(crops, seed=settings.seed, tokenizer=tokenizer, rate=settings.mask_rate)
    return Sequences(batch, crops.document)


def single_mask(
    corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, settings: CropSettings
) -> Sequences:
    """One masked token a pass, at `masks` random positions of each crop (arXiv 2501.08570).

    Nothing else is corrupted. Positions depend on (seed, document, start, length) only.
    """
    del longest
    mask_id = require_mask(tokenizer)
    crops = _started(_crops(corpus, length, settings), tokenizer)
    start = len(tokenizer.frame.start)  # which is no text, and not asked for
    count = min(settings.masks, length - start)
    places = [
        start
        + np.random.default_rng((settings.seed, document, first, length)).choice(
            length - start, count, replace=False
        )
        for document, first in zip(crops.document, crops.start, strict=True)
    ]
    place = np.concatenate(places)[:, None]
    tokens = np.repeat(crops.tokens.astype(np.int32), count, axis=0)
    targets = np.take_along_axis(tokens, place, axis=1)
    np.put_along_axis(tokens, place, mask_id, axis=1)
    batch = {
        "tokens": tokens,
        "predicted": place.astype(np.int32),
        "targets": targets,
        "weights": np.ones(targets.shape, np.float32),
    }
    return Sequences(batch, np.repeat(crops.document, count))


def full_context(
    corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, settings: CropSettings
) -> Sequences:
    """Every token of a crop from all those before it: position t sees t tokens and no more."""
    del longest
    crops = _crops(corpus, length, settings, lookahead=1)
    return Sequences(_next_tokens(crops.tokens, tokenizer), crops.document, ordered=True)


def sliding_window(
    corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, settings: CropSettings
) -> Sequences:
    """The last `stride` tokens of each window, so that all have a context of about the length.

    Each is predicted from length - stride + 1 to length tokens. They are the same tokens at every
    length of the sweep: those at the end of crops of the longest.

    Raises:
      UserError: `stride` exceeds the length, or what of it is no start.
    """
    most = length - max(0, len(tokenizer.frame.start) - 1)
    if settings.stride > most:
        raise UserError(
            f"config.eval.stride={settings.stride}: should be at most each length, here {most}"
        )
    crops = _crops(corpus, longest, settings, lookahead=1)
    batch = _next_tokens(crops.tokens[:, longest - length :], tokenizer)
    batch["weights"][:, : length - settings.stride] = 0.0
    return Sequences(batch, crops.document)


def retrieval(
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    longest: int,
    settings: CropSettings,
    *,
    task: str,
) -> Sequences:
    """A task's questions at the end of each crop, `settings.needles` hidden in it.

    Over the C crops, the first answer's needle lies at depths 0, 1 / (C - 1), … 1, in an order that
    follows from the seed. All else depends on (seed, document, start, length) only.

    Raises:
      UserError: the length cannot hold the needles.
    """
    del longest
    crops = _crops(corpus, length, settings, lookahead=1)
    total = len(crops.document)
    depths = np.random.default_rng((settings.seed, length)).permutation(total) / max(1, total - 1)
    examples = [
        TASKS[task](
            text,
            np.random.default_rng((settings.seed, document, start, length)),
            tokenizer,
            settings.needles,
            float(depth),
        )
        for text, document, start, depth in zip(
            crops.tokens, crops.document, crops.start, depths, strict=True
        )
    ]
    number = np.stack([example.answer[1:] for example in examples])
    batch = _next_tokens(np.stack([example.tokens for example in examples]), tokenizer)
    batch["weights"] = (number >= 0).astype(np.float32)
    place = np.stack([example.place for example in examples])
    return Sequences(batch, crops.document, answers=Answers(number, place))


def ruler(
    corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, settings: CropSettings
) -> Prompts:
    """Tasks of RULER's kind, `settings.documents` prompts of each (see `lenext.data.ruler`).

    A prompt and room for twice its answer are `length` tokens. What is asked follows from (seed,
    task, number) only, and is the same at all lengths; needles of the prompts of a task lie at
    depths 0, 1 / (C - 1), … 1, in an order that follows from the seed.

    Raises:
      UserError: a task does not fit into the length, or the tokeniser cannot spell it.
    """
    del longest
    count = settings.documents
    asked = [(task, number) for task in settings.tasks for number in range(count)]
    puzzles = [
        RULER[task](np.random.default_rng((settings.seed, zlib.crc32(task.encode()), number)))
        for task, number in asked
    ]
    answers = [spell_answers(puzzle, tokenizer, settings.chat) for puzzle in puzzles]
    draw = max(2 * len(own[0]) for own in answers)
    source = Source(tokenizer, _text_of(corpus, tokenizer))
    depths = np.random.default_rng((settings.seed, length)).permutation(count) / max(1, count - 1)
    prompts = []
    for (task, number), puzzle in zip(asked, puzzles, strict=True):
        rng = np.random.default_rng((settings.seed, zlib.crc32(task.encode()), number, length))
        try:
            prompts.append(
                make_prompt(
                    puzzle, length - draw, source, rng, depth=float(depths[number]),
                    chat=settings.chat,
                )
            )  # fmt: skip
        except TooShort as error:
            raise UserError(
                f"length {length}: should be at least {length + error.missing} for the task {task} "
                f"of config.eval.tasks, {draw} tokens of it for the answer"
            ) from None
    widest = max(2, *(len(answer) for own in answers for answer in own))
    filled = [[np.pad(a, (0, widest - len(a))) for a in own] for own in answers]
    batch = {
        "tokens": np.stack([prompt.tokens for prompt in prompts]).astype(np.int32),
        "answers": np.array(filled, np.int32),
        "sizes": np.array([[len(a) for a in own] for own in answers], np.int32),
    }
    return Prompts(
        batch,
        document=np.array([number for _, number in asked], np.int64),
        length=length,
        draw=draw,
        task=tuple(task for task, _ in asked),
        place=np.array([prompt.place for prompt in prompts], np.int64),
        expected=tuple(puzzle.answers for puzzle in puzzles),
        tokenizer=tokenizer,
    )


def _text_of(corpus: Corpus, tokenizer: Tokenizer) -> Callable[[np.random.Generator, int], Ids]:
    """Running text of the corpus from any place on, its documents end to end and round again."""
    around = {*tokenizer.frame.start, *tokenizer.frame.stops, tokenizer.frame.end} - {None}

    def text(rng: np.random.Generator, n: int) -> Ids:
        at, found, missing = int(rng.integers(len(corpus.tokens))), [], n
        while missing > 0:
            some = corpus.tokens[at : at + missing]
            found.append(some[~np.isin(some, [*around])])
            missing -= len(found[-1])
            at = (at + len(some)) % len(corpus.tokens)
        return np.concatenate([np.zeros(0, np.int64), *found])

    return text


def _crops(corpus: Corpus, length: int, settings: CropSettings, *, lookahead: int = 0) -> Crops:
    return evaluation_crops(
        corpus, length=length, documents=settings.documents, tokens=settings.tokens,
        lookahead=lookahead, advice=f"give a shorter {settings.key}",
    )  # fmt: skip


def _started(crops: Crops, tokenizer: Tokenizer) -> Crops:
    return dataclasses.replace(crops, tokens=tokenizer.frame.started(crops.tokens))


def _next_tokens(tokens: np.ndarray, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    tokens = tokenizer.frame.started(tokens)
    inputs, targets = tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32)
    weights = np.ones(targets.shape, np.float32)
    weights[:, : max(0, len(tokenizer.frame.start) - 1)] = 0.0  # the start is not predicted
    return {"tokens": inputs, "targets": targets, "weights": weights}


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
      objective: of the models that it is for.
      prepare: how it asks.
      headline: the metric that stands for it in tables and pictures.
    """

    objective: str
    prepare: Prepare
    headline: str


PROTOCOLS: dict[str, Protocol] = {
    "mlm15": Protocol("masked_lm", mlm15, "accuracy"),
    "single_mask": Protocol("masked_lm", single_mask, "accuracy"),
    "full_context": Protocol("causal_lm", full_context, "loss"),
    "sliding_window": Protocol("causal_lm", sliding_window, "loss"),
    "ruler": Protocol("causal_lm", ruler, "retrieved"),
} | {
    task: Protocol("causal_lm", functools.partial(retrieval, task=task), "retrieved")
    for task in TASKS
}

GENERATING = ("ruler",)
"""Those that make `Prompts`."""


def read_tasks(text: str) -> tuple[str, ...]:
    """Names of RULER's tasks from "niah_single_1,vt"; "all" for all of them.

    Raises:
      UserError: for a name that is none, or for none at all.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if names == ("all",):
        return tuple(RULER)
    if not names or not set(names) <= set(RULER):
        raise UserError(
            f"config.eval.tasks={text!r}: should be all, or of {', '.join(RULER)}, with commas"
        )
    return names


def get_protocol(name: str, objective: str, key: str, *, prompts: bool = False) -> Protocol:
    """The protocol called `name`, if it suits models of `objective`; `key` is where it was named.

    Args:
      name: of a protocol.
      objective: of the model.
      key: of the config, for messages.
      prompts: it may be one that makes `Prompts`, for which a model has to generate.

    Raises:
      UserError: there is none of that name, or it is for other models.
    """
    choices = [
        known
        for known, protocol in PROTOCOLS.items()
        if protocol.objective == objective and (prompts or known not in GENERATING)
    ]
    if name not in choices:
        what = "masked language model" if objective == "masked_lm" else "causal language model"
        raise UserError(f"{key}={name!r}: should be one of {', '.join(choices)} for a {what}")
    return PROTOCOLS[name]
