"""The configuration that every experiment starts from, and what may be said about it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from lenext.attention import Method, make_method
from lenext.errors import UserError

Config: TypeAlias = Any
"""An `ml_collections.ConfigDict` with the keys of `base_config`; its values have no static type."""

TRAINED_FIRST = re.compile(r"trained\b(?!\()")
BRACKETS = {"(": 1, ")": -1}


def base_config() -> Config:
    """Every key there is, with its default. Configs set what they change; no key may be added."""
    config: Config = ConfigDict()
    config.seed = 0  # initial values, data order, masks, dropout

    config.model = ConfigDict()
    # "gau", an encoder for masked language modelling; "decoder", causal; or "encoder", of
    # transformer layers as RoFormer's.
    config.model.family = "gau"
    # A method, or several joined by | that repeat over the layers: "rerope(window=32)|softmax".
    config.model.method = "softmax"
    config.model.hidden_size = 128
    config.model.intermediate_size = 256
    config.model.key_size = 64  # of a head
    config.model.num_layers = 3
    config.model.num_heads = 4  # a GAU has one
    config.model.num_kv_heads = 0  # this and the next six: decoder only. 0 for as many as num_heads
    config.model.mlp = "gated"  # or "plain"
    config.model.norm = "rms"  # or "layer"
    config.model.qk_norm = False
    config.model.max_positions = 0  # learned embeddings of absolute positions, beside the method's
    config.model.attention_bias = ""  # "qkv" or "qkvo": biases there even without use_bias
    config.model.tied_head = True
    config.model.type_vocab_size = 2  # of encoders
    config.model.norm_epsilon = 0.0  # 0 for the family's own: 1e-6 for a decoder, else 1e-12
    config.model.remat = False  # less memory for more time in the backward pass
    config.model.dropout = 0.0
    config.model.use_bias = False
    config.model.vocab_size = 0  # 0 for the tokeniser's; more leaves ids unused
    config.model.dtype = "float32"  # of the computation; parameters and reductions are float32

    config.data = ConfigDict()
    # stdlib_source, stdlib_packages, text_files, or tfds:NAME.
    config.data.dataset = "stdlib_source"
    config.data.files = ""  # of text_files: folder, file or pattern; several with commas
    config.data.field = "text"  # where a jsonl line or a TFDS example has its text
    config.data.data_dir = ""  # where prepared datasets lie; "" for TFDS's own place
    config.data.tokenizer = "bytes"  # or the path of a tokenizer.json or a BERT vocab.txt
    config.data.packing = False  # several documents a row, so that short ones are used too
    config.data.train_length = 64  # L, tokens
    # Of the tokens trained on: plain, 0 to L - 1; or pose, with skips (arXiv 2309.10400).
    config.data.positions = "plain"
    # Of pose: positions are below it. Methods with a scale want it given, as target / L.
    config.data.target_length = 0
    config.data.pose_chunks = 2  # of pose: parts of a sequence, between which positions skip
    # Hidden in each training sequence, whose answers alone are trained on: passkey or
    # associative_recall (see lenext/data/tasks.py; decoder only). "" for the text as it is.
    config.data.task = ""
    config.data.needles = 1  # of the task, in a sequence
    config.data.batch_size = 64  # sequences a step, all devices and processes together
    config.data.mask_rate = 0.15

    config.optimizer = ConfigDict()
    # adamw; lion; or muon for the layers' matrices, with adamw for embeddings, head and vectors.
    config.optimizer.name = "adamw"
    # The peak. Muon's steps are scaled to be as long as AdamW's; Lion wants 3 to 10 times less.
    config.optimizer.learning_rate = 2e-3
    # After the warm-up: cosine or linear, to zero; or wsd, stable and then linear to zero.
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 200  # wsd: the last so many; 0 stays at the peak
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_mask = "matrices"  # or no_embeddings, matrices but those; or all
    # Parameters that stay as they start, with commas: "layers.*.attention.learned", a method's; or
    # all but those, "*,!layers.*.attention.learned".
    config.optimizer.frozen = ""
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    config.training.steps = 1000
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.checkpoint_every = 500
    config.training.keep_latest = 2
    config.training.best_metric = "eval/validation/accuracy"  # whose best checkpoint is kept
    config.training.accumulate = 1  # micro-batches that a batch is taken in, to save memory
    config.training.z_loss = 0.0  # factor of mean log_z^2, beside the loss
    # Of a moving average of the parameters, which evaluators see too (eval/NAME_ema/…); 0 for none.
    config.training.ema_decay = 0.0
    config.training.branch_from = ""  # another run's workdir, from whose checkpoint to start
    config.training.branch_step = 0  # of which step; 0 for the newest

    # Devices along each axis of the mesh that runs are spread over; see lenext/sharding.py. No part
    # of what a run is: it may go on with another mesh. 0, for one axis: all that the others leave.
    config.mesh = ConfigDict({"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1})

    # Evaluators run during training, by name; see lenext/evaluation/evaluators.py for the types.
    config.evaluators = ConfigDict()
    config.evaluators.validation = ConfigDict(
        {"type": "mlm15", "split": "validation", "length": 64, "documents": 64, "tokens": 32768}
    )

    config.eval = ConfigDict()  # what `python -m lenext.evaluate` sweeps
    config.eval.methods = "softmax"  # separated by commas; the first is the one compared with
    config.eval.lengths = "64,128,256,512,1024"
    # For a GAU mlm15 or single_mask; for a decoder full_context, sliding_window, passkey or
    # associative_recall.
    config.eval.protocol = "mlm15"
    config.eval.split = "validation"
    config.eval.weights = "params"  # or "ema", their moving average
    config.eval.documents = 64  # the longest documents of the split, at most
    config.eval.tokens = 65536  # a length, at least; each document gives at least one crop
    config.eval.masks = 8  # single_mask: positions a crop, each masked in a pass of its own
    config.eval.needles = 1  # passkey, associative_recall: in a sequence
    config.eval.stride = 32  # sliding_window: how many last tokens of a window are predicted
    config.eval.batch_tokens = 4096  # in one forward pass, at least one sequence
    # A bucket holds a longest length and those above it / this: they are padded to it and share its
    # compiled pass. At 1.0 each length stands alone.
    config.eval.bucket = 1.0
    config.eval.probe_rows = 32  # rows a sequence looked at for entropy and dilution
    config.eval.calibration_documents = 16  # --calibrate: the longest of those trained on
    config.eval.calibration_tokens = 16384  # a length, at least, as in eval.tokens
    config.eval.bootstrap = 2000  # resamples of the documents
    config.eval.seed = 0  # masks and bootstrap
    config.lock()
    config.evaluators.unlock()  # their names are the config's own
    return config


def smoke(config: Config) -> Config:
    """Shrinks a config to a run of seconds; what it leaves alone is the method and the data."""
    config.model.update(hidden_size=32, intermediate_size=64, key_size=16, num_layers=2)
    if config.data.target_length:  # as many times the training length as before
        config.data.target_length = -(-config.data.target_length * 32 // config.data.train_length)
    config.data.update(train_length=32, batch_size=8, pose_chunks=min(config.data.pose_chunks, 32))
    config.optimizer.warmup_steps = 5
    if config.optimizer.schedule == "wsd":
        config.optimizer.decay_steps = 5
    config.training.update(steps=20, log_every=5, eval_every=10, checkpoint_every=10)
    for evaluator in config.evaluators.values():
        evaluator.update(length=32, documents=8, tokens=1024)
    config.eval.update(lengths="32,128", documents=8, tokens=1024, probe_rows=8, bootstrap=200)
    config.eval.update(calibration_documents=4, calibration_tokens=1024)
    return config


def read_arg(arg: str | None, *choices: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Builds a config from a file's argument: words with commas, such as "tiny,lssar,smoke".

    Args:
      arg: what followed the colon on the command line.
      *choices: each maps words to functions that apply them to the config. One word at most is
        taken of each, its first where there is none; "smoke" shrinks the whole at the end.

    Raises:
      UserError: for a word that is in none, or a second one of the same.
    """
    words = [word for word in (arg or "").split(",") if word]
    taken = [[word for word in words if word in choice] for choice in choices]
    known = {word for choice in choices for word in choice} | {"smoke"}
    if not known.issuperset(words) or any(len(some) > 1 for some in taken):
        groups = ["|".join(word for word in choice if word) for choice in choices]
        raise UserError(
            f"config argument {arg!r}: choose from {', '.join(g for g in [*groups, 'smoke'] if g)}"
        )
    config = base_config()
    for choice, some in zip(choices, taken, strict=True):
        choice[some[0] if some else next(iter(choice))](config)
    return smoke(config) if "smoke" in words else config


def split_list(text: str, separator: str = ",") -> list[str]:
    """Splits at separators outside brackets: "a(x=1,y=2),b" gives ["a(x=1,y=2)", "b"]."""
    parts, depth = [""], 0
    for character in text:
        depth += BRACKETS.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def read_methods(
    text: str, train_length: int, trained: Sequence[Method] = ()
) -> tuple[Method, ...]:
    """The methods of a pattern over layers, "a|b".

    Args:
      text: the pattern.
      train_length: L.
      trained: of every layer, what its weights were trained with, see `make_method`; where it is
        given, there is one method a layer.

    Raises:
      UserError: for an unknown method or option.
    """
    names = split_list(text, "|")
    if not names:
        raise UserError(f"method {text!r}: should name at least one method")
    try:
        if not trained:
            return tuple(make_method(name, train_length=train_length) for name in names)
        return tuple(
            make_method(names[i % len(names)], train_length=train_length, trained=was)
            for i, was in enumerate(trained)
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def spell_trained(text: str, was: str) -> str:
    """A pattern in which "trained" stands for another, spelt out: "trained+x" gives "a+x|b+x".

    Args:
      text: the pattern.
      was: what it stands for, "a|b".
    """
    names, methods = split_list(text, "|"), split_list(was, "|")
    if not any(TRAINED_FIRST.match(name) for name in names):
        return text
    spelt = [
        TRAINED_FIRST.sub(lambda _, i=i: methods[i % len(methods)], names[i % len(names)])
        for i in range(math.lcm(len(names), len(methods)))
    ]
    return "|".join(spelt)


def read_lengths(text: str) -> list[int]:
    """Lengths from "64,256".

    Raises:
      UserError: for what is no whole number from 2 up.
    """
    words = split_list(str(text))
    if not words or not all(word.isdecimal() and int(word) >= 2 for word in words):
        raise UserError(f"config.eval.lengths {text!r}: should be whole numbers of 2 and more")
    return list(dict.fromkeys(int(word) for word in words))


def read_vocab_size(config: Config, tokenizer_size: int) -> int:
    """The model's vocabulary: `config.model.vocab_size`, or the tokeniser's.

    Raises:
      UserError: the tokeniser has ids that the model lacks.
    """
    size = config.model.vocab_size or tokenizer_size
    if size < tokenizer_size:
        raise UserError(
            f"config.model.vocab_size={size}: should be at least {tokenizer_size}, the vocabulary "
            f"of the tokenizer {config.data.tokenizer}"
        )
    return size


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Keys in which two plain configs differ, as "data.batch_size (64, was 32)"."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return [] if ours == theirs else [f"{path} ({ours!r}, was {theirs!r})"]
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        name = f"{path}.{key}" if path else str(key)
        if key not in ours or key not in theirs:
            found.append(f"{name} ({'new' if key in ours else 'gone'})")
        else:
            found += differences(ours[key], theirs[key], name)
    return found


def to_config(stored: Mapping[str, Any]) -> Config:
    """A config from a run's plain one.

    Raises:
      UserError: for a key that there is no more.
    """
    config = base_config()
    config.evaluators = ConfigDict()
    try:
        config.update(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the run's config.json: {' '.join(str(error).split())}") from None
    return config


def check_model(ours: Config, theirs: Config, where: str) -> None:
    """Checks that two sections `model` describe the same weights, by more than their shapes.

    The method may differ, and what changes no weight: compute type, dropout, rematerialisation. A
    vocabulary is compared by its size, not by what the config says.

    Args:
      ours: the one given.
      theirs: of the run.
      where: the run's workdir.

    Raises:
      UserError: naming the keys that differ.
    """
    free = ("method", "dtype", "dropout", "remat", "vocab_size")
    given, stored = (
        {key: value for key, value in plain(config).items() if key not in free}
        for config in (ours, theirs)
    )
    found = differences(given, stored, "config.model")
    if found:
        raise UserError(f"{', '.join(found)}: should be as {where} was trained")


def check_positions(model: Config, length: int, key: str) -> None:
    """Checks that a model has learned as many positions as it is to see.

    Args:
      model: section of the config.
      length: tokens.
      key: what asks for so many.

    Raises:
      UserError: it has fewer.
    """
    if 0 < model.max_positions < length:
        raise UserError(
            f"{key}: {length} tokens; should be at most config.model.max_positions="
            f"{model.max_positions}, as positions that are learned do not go on"
        )


def plain(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json())


def validate(config: Config) -> None:
    """Checks values that would otherwise fail far from where they were given.

    Raises:
      UserError: naming the first key that is off.
    """
    at_least_one = [
        "model.hidden_size", "model.intermediate_size", "model.key_size", "model.num_layers",
        "model.num_heads", "model.type_vocab_size", "data.batch_size", "training.steps",
        "training.log_every", "training.eval_every", "training.checkpoint_every",
        "training.keep_latest", "training.accumulate", "eval.documents", "eval.tokens",
        "eval.batch_tokens",
        "eval.probe_rows", "eval.bootstrap", "eval.masks", "eval.stride",
        "eval.needles", "data.needles",
        "eval.calibration_documents", "eval.calibration_tokens",
    ]  # fmt: skip
    flat = dict(_flatten(plain(config)))
    for key in at_least_one:
        if flat[key] < 1:
            raise UserError(f"config.{key}={flat[key]}: should be at least 1")
    if flat["data.train_length"] < 2:
        raise UserError(
            f"config.data.train_length={flat['data.train_length']}: should be at least 2"
        )
    choices = {
        "model.family": ("gau", "decoder", "encoder"),
        "model.mlp": ("gated", "plain"),
        "model.norm": ("rms", "layer"),
        "model.attention_bias": ("", "qkv", "qkvo"),
        "model.dtype": ("float32", "bfloat16"),
        "data.positions": ("plain", "pose"),
        "data.task": ("", "passkey", "associative_recall"),
        "eval.weights": ("params", "ema"),
        "optimizer.name": ("adamw", "lion", "muon"),
        "optimizer.schedule": ("cosine", "linear", "wsd"),
        "optimizer.decay_mask": ("matrices", "no_embeddings", "all"),
    }
    for key, allowed in choices.items():
        if flat[key] not in allowed:
            choice = ", ".join(allowed).removeprefix(", ")
            empty = "empty or " if "" in allowed else ""
            raise UserError(f"config.{key}={flat[key]!r}: should be {empty}one of {choice}")
    for key in ("model.dropout", "optimizer.b1", "optimizer.b2", "training.ema_decay"):
        if not 0 <= flat[key] < 1:
            raise UserError(f"config.{key}={flat[key]}: should be from 0 to below 1")
    for key in ("optimizer.learning_rate", "optimizer.clip_norm"):
        if not flat[key] > 0:
            raise UserError(f"config.{key}={flat[key]}: should be above 0")
    if not flat["eval.bucket"] >= 1:
        raise UserError(f"config.eval.bucket={flat['eval.bucket']}: should be at least 1")
    at_least_zero = [
        "optimizer.warmup_steps", "optimizer.decay_steps", "optimizer.weight_decay",
        "training.z_loss", "training.branch_step", "model.max_positions", "model.norm_epsilon",
    ]  # fmt: skip
    for key in at_least_zero:
        if not flat[key] >= 0:
            raise UserError(f"config.{key}={flat[key]}: should be at least 0")
    _validate_positions(config.data)
    _validate_task(config)
    _validate_training(config)
    if flat["model.key_size"] % 2:
        raise UserError(
            f"config.model.key_size={flat['model.key_size']}: should be even, for rotary pairs"
        )
    if flat["model.vocab_size"] < 0:
        raise UserError(f"config.model.vocab_size={flat['model.vocab_size']}: should be at least 0")
    heads, kv_heads = flat["model.num_heads"], flat["model.num_kv_heads"]
    if kv_heads < 0 or (kv_heads and heads % kv_heads):
        raise UserError(
            f"config.model.num_kv_heads={kv_heads}: should divide model.num_heads={heads}, or be 0"
        )
    for key in ("seed", "eval.seed"):
        if not 0 <= flat[key] < 2**32:
            raise UserError(f"config.{key}={flat[key]}: should be from 0 to 2^32 - 1")
    longest = max(flat["data.train_length"], flat["data.target_length"])
    check_positions(config.model, longest, "config.data.train_length or target_length")
    read_methods(flat["model.method"], flat["data.train_length"])


def _validate_positions(data: Config) -> None:
    """What keys of the section `data` say of the positions trained on."""
    length = data.train_length
    if not 2 <= data.pose_chunks <= length:
        raise UserError(
            f"config.data.pose_chunks={data.pose_chunks}: should be from 2 to train_length={length}"
        )
    if data.positions == "plain":
        if data.target_length:
            raise UserError(
                f"config.data.target_length={data.target_length}: should be 0 where positions are "
                "plain; say config.data.positions=pose"
            )
        return
    if not length < data.target_length < 2**31:
        raise UserError(
            f"config.data.target_length={data.target_length}: with positions=pose should be above "
            f"train_length={length}, and below 2^31"
        )
    if data.packing:
        raise UserError(
            "config.data.packing=True: should be False with positions=pose, which skip within one "
            "document"
        )


def _validate_task(config: Config) -> None:
    """What keys say of a task to train on."""
    task = config.data.task
    if not task:
        return
    if config.model.family != "decoder":
        raise UserError(
            f"config.data.task={task!r}: should be empty for config.model.family="
            f"{config.model.family!r}; tasks are for causal models, such as the decoder"
        )
    if config.data.packing:
        raise UserError(
            f"config.data.packing=True: should be False with config.data.task={task!r}, which is "
            "hidden in one text"
        )


def _validate_training(config: Config) -> None:
    """What keys of the sections `optimizer`, `training` and `evaluators` say of each other."""
    optimizer, training = config.optimizer, config.training
    if (
        optimizer.schedule == "wsd"
        and optimizer.warmup_steps + optimizer.decay_steps > training.steps
    ):
        raise UserError(
            f"config.optimizer.decay_steps={optimizer.decay_steps}: with warmup_steps="
            f"{optimizer.warmup_steps} should be at most training.steps={training.steps}"
        )
    if training.branch_step and not training.branch_from:
        raise UserError(
            f"config.training.branch_step={training.branch_step}: should be 0 without branch_from"
        )
    for name in config.evaluators if training.ema_decay else ():
        if f"{name}_ema" in config.evaluators:
            raise UserError(
                f"config.evaluators.{name}_ema: should have another name, as {name}'s figures on "
                "averaged parameters take this one"
            )


def _flatten(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    items = []
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        items += _flatten(value, name) if isinstance(value, Mapping) else [(name, value)]
    return items
