"""Protocols: what a model is asked at a length. Figures of two protocols do not compare."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lenext.data import (
    TASKS,
    Corpus,
    Crops,
    Tokenizer,
    evaluation_crops,
    masked_crops,
    require_mask,
)
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
    """

    batch: dict[str, np.ndarray]
    document: Int64[np.ndarray, " C"]
    ordered: bool = False
    answers: Answers | None = None


Prepare = Callable[[Corpus, Tokenizer, int, int, CropSettings], Sequences]
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


PROTOCOLS = {
    "mlm15": Protocol("masked_lm", mlm15, "accuracy"),
    "single_mask": Protocol("masked_lm", single_mask, "accuracy"),
    "full_context": Protocol("causal_lm", full_context, "loss"),
    "sliding_window": Protocol("causal_lm", sliding_window, "loss"),
} | {
    task: Protocol("causal_lm", functools.partial(retrieval, task=task), "retrieved")
    for task in TASKS
}


def get_protocol(name: str, objective: str, key: str) -> Protocol:
    """The protocol called `name`, if it suits models of `objective`; `key` is where it was named.

    Raises:
      UserError: there is none of that name, or it is for other models.
    """
    choices = [known for known, protocol in PROTOCOLS.items() if protocol.objective == objective]
    if name not in choices:
        what = "masked language model" if objective == "masked_lm" else "causal language model"
        raise UserError(f"{key}={name!r}: should be one of {', '.join(choices)} for a {what}")
    return PROTOCOLS[name]
