"""What a config may say: values read off it, and checks that end in one line."""

from collections.abc import Mapping
from typing import Any

from lenext.config.base import Config
from lenext.config.imports import load
from lenext.config.methods import read_methods
from lenext.config.plain import differences, plain
from lenext.errors import UserError


def read_lengths(text: str) -> list[int]:
    """Lengths from "64,256".

    Raises:
      UserError: for what is no whole number from 2 up.
    """
    words = [word.strip() for word in str(text).split(",") if word.strip()]
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


def validate(config: Config) -> None:
    """Checks values that would otherwise fail far from where they were given.

    What `config.imports` names is imported first, as methods may come from there.

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
    load(config.imports)
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
