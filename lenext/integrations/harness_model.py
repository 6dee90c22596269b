"""A run as a model of EleutherAI's lm-evaluation-harness; `lenext.integrations.lm_eval` names it.

Needs the package lm_eval (0.4.13 and later), and neither torch nor transformers.
"""

import difflib
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm

from lenext import cli
from lenext.buckets import AnyPath, as_path
from lenext.config import check_positions, to_config
from lenext.errors import UserError
from lenext.integrations.decoding import Prompt, continued
from lenext.integrations.model_args import split_arguments, whole_number
from lenext.integrations.scoring import Question, scored
from lenext.integrations.texts import Texts
from lenext.models import take_apart
from lenext.models.build import DTYPES
from lenext.models.generation import Sampling
from lenext.workdirs.calibration import under_name
from lenext.workdirs.chat import ChatTemplate
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.workdir import read_run_config

NEUTRAL = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "min_p": 0, "use_cache": True, "early_stopping": False,
}  # fmt: skip
"""Arguments of generation that are not known here, and the values at which they do nothing."""
DEFAULT_DEVICE = "cuda:0"
"""What the harness's command line says where nobody says anything."""


class LenextLM(TemplateLM):
    """A run's decoder, under the method that it was trained with or another one.

    Tokens and windows are those of the harness's own `hf` model, given the same folder and
    `max_length`: the start that the tokeniser puts before a text is there and, in rolling
    log-likelihoods, predicted too; a first token is conditioned on `bos_token`, or `eos_token`
    where there is none (`prefix_token_id` takes another one). Unlike there:

    - `max_length` is none by default, as what is measured here is often what lies beyond the length
      of training; positions that are learned are a limit always.
    - `do_sample` without a temperature draws at 1, and `top_k` is off unless it is given.
    - What the model cannot do with an argument it says by an error.

    Args:
      workdir: of the run.
      method: in place of the trained one; a name in it may be "trained".
      weights: "params", or "ema" for their moving average.
      tokenizer: in place of the run's, see `lenext.data.get_tokenizer`.
      bos: what texts start with, in place of the run's `config.data.bos`: "auto", as the tokeniser
        says, "none", or tokens or their ids with commas.
      prefix_token_id: what a first token is conditioned on.
      imports: files that register methods, in place of the run's own.
      dtype: to compute in, and
      param_dtype: to hold weights in, in place of the run's.
      max_length: tokens that the model reads at once; what is longer is cut on the left.
      max_gen_toks: tokens to draw where a task does not say.
      batch_size: texts in a pass; "auto" for as many as have `batch_tokens`.
      batch_tokens: tokens in a pass, at least one text; default: the run's
        `config.eval.batch_tokens`.
      max_batch_size: of "auto".
      seed: of the draws.

    Raises:
      UserError: for an argument that is unknown or off, a workdir that holds no decoder, or a
        tokeniser with neither a start nor an end.
    """

    _stacked = True

    def __init__(
        self,
        workdir: Any = "",
        *,
        method: str = "",
        weights: str = "params",
        tokenizer: Any = "",
        bos: Any = "",
        prefix_token_id: Any = None,
        imports: str | None = None,
        dtype: str = "",
        param_dtype: str = "",
        max_length: Any = None,
        max_gen_toks: Any = 256,
        batch_size: Any = "auto",
        batch_tokens: Any = None,
        max_batch_size: Any = None,
        seed: Any = 0,
        **unknown: Any,
    ):
        super().__init__()
        _check_known(unknown)
        if workdir in ("", None):
            raise UserError("model_args: workdir=DIR is missing")
        self._max_gen_toks = whole_number("max_gen_toks", max_gen_toks, 1)
        self._seed = whole_number("seed", seed, 0, 2**32 - 1)
        if weights not in ("params", "ema"):
            raise UserError(f"weights={weights}: should be one of params, ema")
        folder = as_path(str(workdir))
        run = load_run(
            folder,
            weights=weights,
            imports=imports,
            model_config=_with_dtype(folder, dtype),
            param_dtype=_dtype("param_dtype", param_dtype) or None,
        )
        if run.model.objective != "causal_lm":
            raise UserError(
                f"workdir {folder}: holds a masked language model; the harness asks a decoder "
                "(config.model.family=decoder)"
            )
        self._model: Any = run.model
        if method:
            self._model, told = under_name(run, folder, str(method))
            for line in told:
                cli.warn(line)
        limit = run.config.model.max_positions or None
        if max_length is not None:
            limit = whole_number("max_length", max_length, 2)
            check_positions(run.config.model, limit, f"max_length={limit}")
        self._max_length, self._positions = limit, run.config.model.max_positions or None
        found = run.open_tokenizer(str(tokenizer or ""), bos=str(bos or ""))
        if prefix_token_id is not None:
            prefix_token_id = whole_number(
                "prefix_token_id", prefix_token_id, 0, run.model.config.vocab_size - 1
            )
        self.texts = Texts(found, folder, prefix=prefix_token_id)
        self._chats = ChatTemplate(folder, self.texts.special)
        self._chat_name = "default"
        automatic = str(batch_size).partition(":")[0] == "auto"
        self._rows = None if automatic else whole_number("batch_size", batch_size, 1)
        tokens = run.config.eval.batch_tokens if batch_tokens is None else batch_tokens
        self._tokens = whole_number("batch_tokens", tokens, 1)
        self._most_rows = max_batch_size and whole_number("max_batch_size", max_batch_size, 1)
        self._info = {
            "lenext_workdir": str(folder), "lenext_method": method or run.config.model.method,
            "lenext_step": run.step, "lenext_weights": run.weights, "model_sha": run.identity,
            "model_dtype": run.model.config.dtype,
            "model_num_parameters": sum(x.size for x in jax.tree.leaves(nnx.state(run.model))),
        }  # fmt: skip

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "LenextLM":
        """As the harness's own, but for commas in brackets: "workdir=DIR,method=a(b=1,c=2)"."""
        return cls.create_from_arg_obj(split_arguments(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "LenextLM":
        """Of model_args, and of what the harness's command line has flags for, which they overrule.

        Its flag --device has no say here: JAX does, and one line tells if they differ.
        """
        also = {k: x for k, x in (additional_config or {}).items() if x is not None}
        device = str(also.pop("device", DEFAULT_DEVICE))
        kind = device.partition(":")[0].replace("cuda", "gpu")
        if device != DEFAULT_DEVICE and kind != jax.default_backend():
            cli.warn(
                f"--device={device}: JAX computes on {jax.default_backend()}; the environment's "
                "JAX_PLATFORMS says on what"
            )
        # Of the harness, for data sets; a workdir holds no code to trust.
        given = {k: x for k, x in arg_dict.items() if k != "trust_remote_code"}
        return cls(**(also | given))

    # What the harness asks of a model

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a document; None where documents end without one."""
        return self.texts.end

    @property
    def prefix_token_id(self) -> int:
        """What a first token is conditioned on.

        Raises:
          UserError: the tokeniser has neither a start nor an end.
        """
        if self.texts.prefix is None:
            raise UserError(
                "a text's first token is conditioned on a start or an end, and the run's tokenizer "
                "has neither; model_args: prefix_token_id=10 takes a line break of bytes"
            )
        return self.texts.prefix

    @property
    def max_length(self) -> int | None:
        """Tokens that the model reads at once; None for any number."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens to draw where a task does not say."""
        return self._max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenisers, starts and chat templates apart in the harness's cache of requests."""
        templates = self._chats.identity
        return f"lenext-{self.texts.fingerprint}{f'-{templates}' if templates else ''}"

    def get_model_info(self) -> dict[str, Any]:
        """What goes into the harness's results beside model_args."""
        return dict(self._info)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` takes from now on; None for False.

        Raises:
          UserError: the run has none, or none of that name.
        """
        if chat_template is False or chat_template is None:
            return None
        name = "default" if chat_template is True else chat_template
        text = self._chats.text(name)
        self._chat_name = name
        return text

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as text, that ends where an answer begins, or in the last message.

        Where a template refuses a chat with a system's message, one without it is tried, as `hf`
        does.
        """
        how = {"name": self._chat_name, "begins_answer": add_generation_prompt}
        try:
            return self._chats.render(chat_history, **how)
        except UserError as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history) or not rest:
                raise
            text = self._chats.render(rest, **how)
            cli.warn(f"{error}; the system's message is left out")
            return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text, see `lenext.integrations.texts.Texts`."""
        del kwargs
        return self.texts.encode(string, add_special_tokens)

    def _rows_of(self, tokens: int) -> int:
        if self._rows is not None:
            return self._rows
        rows = max(1, self._tokens // tokens)
        return min(rows, self._most_rows) if self._most_rows else rows

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is_greedy) of continuations, of (key of the cache, ids, ids)."""
        del kwargs
        answers: list[Any] = [None] * len(requests)
        questions = []
        for key, context, goes_on in requests:
            if not goes_on:
                before, after = (repr(str(text)[-40:]) for text in key)
                raise UserError(
                    f"{after} after {before}: has no token of its own, so that nothing is to score"
                )
            questions.append(self._question(context, goes_on))
        with self._bar("loglikelihood", len(requests), disable_tqdm) as bar:
            for i, answer in self._scored(questions):
                answers[i] = tuple(answer)
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
                bar.update()
        return answers

    def _question(self, context: Sequence[int], goes_on: Sequence[int]) -> Question:
        limit = self._max_length
        if limit is not None and len(goes_on) > limit:
            raise UserError(
                f"a continuation of {len(goes_on)} tokens: should be at most max_length={limit}"
            )
        tokens = (*context, *goes_on)[:-1]
        if limit is not None and len(tokens) > limit:
            self._tell_cut(len(tokens), limit)
            tokens = tokens[-limit:]
        return Question(tokens, tuple(goes_on))

    _told = False

    def _tell_cut(self, length: int, limit: int) -> None:
        """One line, for the first text that is cut."""
        if not self._told:
            cli.warn(
                f"max_length={self._max_length}: a text of {length} tokens is read from its last "
                f"{limit} on, and so are others that are too long"
            )
        self._told = True

    def _scored(self, questions: Sequence[Question]) -> Any:
        return scored(self._model, questions, rows_of=self._rows_of, longest=self._positions)

    def _bar(self, what: str, total: int, disable: bool) -> Any:
        return tqdm(total=total, desc=f"Running {what} requests", disable=disable)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts in nats, in windows of `max_length` that do not overlap.

        All of a text is one window where there is no `max_length`.
        """
        questions: list[Question] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            tokens = self.tok_encode(text)
            windows = utils.get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id,
                max_seq_len=self._max_length or max(1, len(tokens)), context_len=1,
            )  # fmt: skip
            for window in windows:
                questions.append(self._question(*utils.make_disjoint_window(window)))
                owners.append(i)
        totals, left = [0.0] * len(requests), Counter(owners)
        found: dict[int, list[tuple[int, float]]] = {}
        with self._bar("loglikelihood_rolling", len(questions), disable_tqdm) as bar:
            for number, answer in self._scored(questions):
                i = owners[number]
                found.setdefault(i, []).append((number, answer.log_likelihood))
                left[i] -= 1
                if not left[i]:
                    totals[i] = sum(value for _, value in sorted(found.pop(i)))
                    self.cache_hook.add_partial(
                        "loglikelihood_rolling", requests[i].args, totals[i]
                    )
                bar.update()
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows contexts: to an end, max_gen_toks, or a stop string, which is left out."""
        orders = [self._order(*request.args) for request in requests]
        if self._stacked:  # weights stand in memory once: what is scored later goes by these, too
            self._model, self._stacked = take_apart(self._model, free=True), False
        texts = [""] * len(requests)
        with self._bar("generate_until", len(requests), disable_tqdm) as bar:
            for sampling in dict.fromkeys(order[1] for order in orders):
                numbers = [i for i, order in enumerate(orders) if order[1] == sampling]
                ends = [_End(self.texts, orders[i][2]) for i in numbers]
                drawn = continued(
                    self._model, [orders[i][0] for i in numbers],
                    ends=lambda i, ids, ends=ends: ends[i](ids),
                    rows_of=self._rows_of, sampling=sampling, seed=self._seed, names=numbers,
                )  # fmt: skip
                for i, ids in drawn:
                    text = ends[i].text(ids)
                    texts[numbers[i]] = text
                    args = requests[numbers[i]].args
                    self.cache_hook.add_partial("generate_until", args, text)
                    bar.update()
        return texts

    def _order(self, context: str, given: Mapping[str, Any]) -> tuple[Prompt, Sampling, list[str]]:
        """What to go on from, how to draw, and the stop strings.

        Raises:
          UserError: for an argument of generation that is not known, or leaves no room.
        """
        how: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self._max_gen_toks))
        until = handle_stop_sequences(how.pop("until", None), eos=self.texts.end_text or None)
        most = whole_number("max_gen_toks", how.pop("max_gen_toks"), 1)
        draws, warmth = how.pop("do_sample"), how.pop("temperature", None)
        warmth = 1.0 if draws and given.get("temperature") is None else float(warmth or 0)
        only = {key: how.pop(key, None) for key in ("top_k", "top_p")}
        # Greedy is one program, whatever else a task says.
        named = {key: value for key, value in only.items() if value is not None and warmth}
        sampling = Sampling(temperature=warmth, **named)
        for key, value in how.items():
            if value is not None and NEUTRAL.get(key, object()) != value:
                raise UserError(
                    f"generation argument {key}={value}: is not supported; do_sample, temperature, "
                    "top_k, top_p, until and max_gen_toks are"
                )
        tokens = self.tok_encode(context)
        tokens = tokens or [self.prefix_token_id]
        if self._max_length is not None:
            room = self._max_length - most
            if room < 1:
                raise UserError(
                    f"max_gen_toks={most}: should be below max_length={self._max_length}"
                )
            if len(tokens) > room:
                self._tell_cut(len(tokens), room)
                tokens = tokens[-room:]
        return Prompt(tokens, most), sampling, until


class _End:
    """Where a text that is drawn ends: at a token of its tokeniser's, or a stop string."""

    def __init__(self, texts: Texts, until: Sequence[str]):
        self._texts, self._until = texts, [stop for stop in until if stop]
        # A token of text holds a byte of it, or more.
        self._reach = 2 + max((len(stop.encode()) for stop in self._until), default=0)

    def __call__(self, drawn: Sequence[int]) -> bool:
        if drawn[-1] in self._texts.stops:
            return True
        tail = self._texts.decode(drawn[-self._reach :]) if self._until else ""
        return any(stop in tail for stop in self._until)

    def text(self, drawn: Sequence[int]) -> str:
        """What was drawn, without what ended it."""
        ended = drawn[:-1] if drawn[-1] in self._texts.stops else drawn
        return postprocess_generated_text(self._texts.decode(ended), self._until, None)


def _check_known(unknown: Mapping[str, Any]) -> None:
    if unknown:
        name = next(iter(unknown))
        known = [
            key
            for key, of in inspect.signature(LenextLM.__init__).parameters.items()
            if of.kind is not inspect.Parameter.VAR_KEYWORD and key != "self"
        ]
        near = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"model_args has no {name!r}: {meant}choose from {', '.join(known)}")


def _dtype(key: str, value: str) -> str:
    if value and value not in DTYPES:
        raise UserError(f"{key}={value}: should be one of {', '.join(DTYPES)}")
    return value


def _with_dtype(folder: AnyPath, dtype: str) -> Any:
    """The section `model` of a run's config with another type to compute in; None for its own."""
    if not _dtype("dtype", dtype):
        return None
    stored = read_run_config(folder)
    if stored is None:
        return None  # which is an error of whoever loads the run
    model = to_config(stored).model
    model.dtype = dtype
    return model
