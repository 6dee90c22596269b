"""Which of another library's tensors is which of our parameters."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """One of their tensors, and which of our parameters it is.

    Attributes:
      theirs: its name.
      ours: paths of parameters, which it holds side by side along their last axis.
      transposed: it is turned (a map's outputs come first).
      heads: in how many groups they lie side by side: first what is of head 0 in each, and so on.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    heads: int = 1

    def part(self, whole: np.ndarray, number: int, widths: Sequence[int]) -> np.ndarray:
        """One of `ours` out of their tensor (not turned); `widths` are those of all of them."""
        lead, first = whole.shape[:-1], sum(widths[:number]) // self.heads
        grouped = whole.reshape(*lead, self.heads, -1)
        return grouped[..., first : first + widths[number] // self.heads].reshape(*lead, -1)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor (not turned) of all of `ours`."""
        lead = parts[0].shape[:-1]
        grouped = [x.reshape(*lead, self.heads, -1) for x in parts]
        return np.concatenate(grouped, axis=-1).reshape(*lead, -1)


class Recipe(NamedTuple):
    """How a folder's model is ours.

    Attributes:
      model: values of the section `model` of our config.
      train_length: L.
      rules: for every parameter.
      copies: tensors that repeat another, by name; they may be left out.
      made: patterns of tensors that the model makes by itself or has no use for.
      computed: numbers that one of them must have had, by name and shape.
      prefixes: that names may lack, or have beside.
      config: what config.json says.
      said: the file that does, for messages: it, or a GGUF file.
    """

    model: dict[str, Any]
    train_length: int
    rules: Sequence[Rule]
    copies: Mapping[str, str]
    made: Sequence[str] = ()
    computed: Mapping[str, Callable[[tuple[int, ...]], np.ndarray]] = MappingProxyType({})
    prefixes: Sequence[str] = ()
    config: Mapping[str, Any] = MappingProxyType({})
    said: Path = Path("config.json")

    def form(self, name: str) -> str | None:
        """The name of a parameter as the rules have it; None for a tensor that is none."""
        wanted = {rule.theirs for rule in self.rules} | set(self.copies)
        return next((form for form in self._forms(name) if form in wanted), None)

    def makes(self, name: str) -> bool:
        """Whether a tensor is one that the model makes by itself."""
        forms = self._forms(name)
        return any(fnmatch.fnmatchcase(form, pattern) for form in forms for pattern in self.made)

    def _forms(self, name: str) -> list[str]:
        return [name, *(prefix + name for prefix in self.prefixes)]


def linear(theirs: str, *ours: str, bias: bool, heads: int = 1) -> list[Rule]:
    """A linear map of PyTorch's: one of ours, or several side by side, see `Rule`."""
    kernels, biases = (tuple(f"{name}.{part}" for name in ours) for part in ("kernel", "bias"))
    rules = [Rule(f"{theirs}.weight", kernels, transposed=True, heads=heads)]
    return [*rules, Rule(f"{theirs}.bias", biases, heads=heads)] if bias else rules


def beside_layers(*, tied: bool) -> tuple[list[Rule], dict[str, str]]:
    """Rules of what Llama and its kin have beside their layers; and what a tied head repeats."""
    rules = [
        Rule("model.embed_tokens.weight", ("embedding.embedding",)),
        Rule("model.norm.weight", ("norm.scale",)),
    ]
    if tied:
        return rules, {"lm_head.weight": "model.embed_tokens.weight"}
    return rules + linear("lm_head", "head", bias=False), {}


def layer_norm(theirs: str, ours: str) -> list[Rule]:
    """A layer normalisation of PyTorch's."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}.scale",)),
        Rule(f"{theirs}.bias", (f"{ours}.bias",)),
    ]


def pattern(methods: Sequence[str]) -> str:
    """The shortest pattern that repeats to these; the last time it may be cut off."""
    depth = len(methods)
    period = next(
        p for p in range(1, depth + 1) if all(methods[i] == methods[i % p] for i in range(depth))
    )
    return "|".join(methods[:period])
