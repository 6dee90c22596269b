"""The catalogue: names to methods, one line each, and `make_method` that reads it."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from lenext.attention.axes import (
    bias,
    distances,
    frequencies,
    position,
    similarity,
    temperature,
    visibility,
    weighting,
)
from lenext.attention.axes.axis import (
    MOST_TOKENS,
    Axis,
    Position,
    Similarity,
    Temperature,
    Visibility,
    Weighting,
)
from lenext.attention.axes.method import AXES, AnyMethod, HeadMethods, Method
from lenext.attention.grammar import (
    TRAINED,
    Heads,
    Part,
    Pattern,
    Sum,
    parse_layer,
    parse_layers,
    parse_sum,
    spell,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named combination of axes (softmax's where not given), and what readers are told of it.

    Attributes:
      source: where it was published; "Name (arXiv NNNN.NNNNN)" becomes a link; "" where nowhere.
      changes: what it does, in a line: a formula where there is one.
      causal: whether the published method is for causal models (True), for bidirectional ones
        (False), or both (None, also where nobody says). `attend` runs methods both ways, but those
        that an axis says are `causal_only`.
      theirs: the authors' own settings, where ours differ, in a few words.
      pattern: what it was published in, where that is a pattern over layers.
      unlimited: of what suits any weights: whether distances keep within those of training at every
        length, or turn its slowest pair no further, as it stands by default.
    """

    source: str = ""
    changes: str = ""
    causal: bool | None = None
    theirs: str = ""
    pattern: str = ""
    unlimited: bool = False
    position: Position = position.Rope()
    similarity: Similarity = similarity.Dot()
    temperature: Temperature = temperature.Constant()
    weighting: Weighting = weighting.Softmax()
    visibility: Visibility = visibility.Full()


SOFTMAX = Entry(
    "Vaswani et al. 2017 (arXiv 1706.03762), RoPE (arXiv 2104.09864)",
    "nothing: softmax of q·k/√H with RoPE",
)

# fmt: off
CATALOGUE: dict[str, Entry] = {
    "softmax": SOFTMAX,
    # Temperature
    "softmax_plus": Entry("GAU-α (Su 2022)", "temperature ln n / ln 512, so below 1 in rows shorter than 512 tokens", causal=False, temperature=temperature.SoftmaxPlus()),
    "log_length": Entry("Su 2021; Qwen (arXiv 2309.16609)", "temperature max(1, ln n / ln L)", temperature=temperature.LogLength()),
    "infoscale": Entry("InfoScale (arXiv 2501.08570)", "temperature √((1 − n^(−2/H)) / (1 − L^(−2/H))), at least 1", theirs="in T5 and DNABERT-2 times the bias as well (`scales_bias`), H of all heads (`all_heads`)", temperature=temperature.InfoScale()),
    "entropy_matched": Entry("ours", "temperature that keeps each head's entropy at L, √(1 + slope · ln(n / L)), slopes measured per head (`--calibrate`); √((ln n − H₀) / (ln L − H₀)) with H₀ = ½ ln L before", temperature=temperature.EntropyMatched()),
    "ssmax": Entry("Scalable-Softmax (arXiv 2501.19399)", "temperature s_h ln n, s learned per head", causal=True, temperature=temperature.ScalableSoftmax()),
    "ssa": Entry("Selective Attention (arXiv 2411.12892)", "temperature 1 + e^(−e^β) ln n + tanh(w·q), β learned per layer, w per head", causal=True, theirs="a temperature on the values, too", temperature=temperature.Selective()),
    "llama4": Entry("Llama 4 (Meta 2025)", "temperature 1 + 0.1 ln(1 + ⌊(i + 1) / 8192⌋), for layers without rotation", causal=True, pattern="chunked|chunked|chunked|nope+llama4", temperature=temperature.FlooredLog()),
    "mistral3": Entry("Ministral 3 (Mistral AI 2025)", "temperature 1 + 0.1 ln(1 + ⌊i / L⌋)", causal=True, temperature=temperature.TrainedFlooredLog()),
    # Similarity
    "cosscale": Entry("CosScale (arXiv 2501.08570)", "similarity c·cos(q, k), c = 128", similarity=similarity.Cosine()),
    "infoscale_cosscale": Entry("InfoScale and CosScale (arXiv 2501.08570)", "`infoscale+cosscale`", similarity=similarity.Cosine(), temperature=temperature.InfoScale()),
    "soft": Entry("SOFT (arXiv 2110.11945)", "similarity −‖q − k‖² / 2√H", causal=False, similarity=similarity.Gaussian()),
    # Weighting
    "lssa": Entry("LSSA (arXiv 2501.13428)", "softplus of ln H · ln n · cos(q, k), over its sum", causal=True, similarity=similarity.UnitDot(), temperature=temperature.LengthScaled(), weighting=weighting.Activated()),
    "lssar": Entry("LSSAR (arXiv 2501.13428)", "LSSA's weights a, sharpened to relu(a n − 1)^15 over its sum", causal=True, similarity=similarity.UnitDot(), temperature=temperature.LengthScaled(), weighting=weighting.Reweighted()),
    "reweighted_softmax": Entry("LSSAR (arXiv 2501.13428)", "softmax's weights, sharpened as by `lssar`", causal=True, weighting=weighting.Reweighted(phi="exp")),
    "reweighted_sigmoid": Entry("LSSAR (arXiv 2501.13428)", "σ(logit) over its sum, sharpened as by `lssar`", causal=True, weighting=weighting.Reweighted(phi="sigmoid")),
    "sigmoid": Entry("Sigmoid attention (arXiv 2409.04431)", "σ(logit − ln L), not normalised; `bias='row'`: − ln n", weighting=weighting.Sigmoid()),
    "relu": Entry("ReLU attention (arXiv 2309.08586)", "relu(logit) / n, not normalised", causal=False, weighting=weighting.Relu()),
    "relu2": Entry("GAU (arXiv 2202.10447), ReLU attention (arXiv 2309.08586)", "relu(logit)² / n, not normalised; `gau=True`: relu(q·k / n)²", weighting=weighting.SquaredRelu()),
    "softmax1": Entry("Attention is off by one (Miller 2023)", "softmax with one added to the denominator", weighting=weighting.SoftmaxPlusOne()),
    "softmax_sink": Entry("gpt-oss (OpenAI 2025)", "softmax with e^s_h added to the denominator, s learned per head", causal=True, weighting=weighting.SoftmaxSink()),
    "sparsemax": Entry("Sparsemax (arXiv 1602.02068)", "the nearest point of the simplex: far keys get 0", weighting=weighting.Sparsemax()),
    "stick_breaking": Entry("Stick-breaking attention (arXiv 2410.17980)", "σ(logit) of what nearer keys have left of the row; a row does not see itself, no rotation", causal=True, position=position.NoPosition(), weighting=weighting.StickBreaking()),
    "entmax": Entry("α-entmax (arXiv 1905.05702)", "(relu((α−1) logit − τ))^(1/(α−1)), α = 1.5: between softmax and `sparsemax`", weighting=weighting.Entmax()),
    "asentmax": Entry("ASEntmax (arXiv 2506.16640)", "`entmax` of logits × (1 + β (ln(n + 1))^γ), β and γ from the layer's input, learned per head", causal=True, theirs="on heads `nope/alibi(slopes='harmonic')`", temperature=temperature.InputLog(), weighting=weighting.Entmax()),
    "adaptive": Entry("Adaptive temperature (arXiv 2410.01104)", "softmax, sharpened by a polynomial in the row's own entropy", weighting=weighting.AdaptiveSoftmax()),
    # Position
    "pi": Entry("Position interpolation (arXiv 2306.15595)", "positions divided by s", causal=True, unlimited=True, position=frequencies.Interpolated()),
    "ntk": Entry("NTK-aware RoPE (bloc97 2023), YaRN (arXiv 2309.00071)", "RoPE's base times s^(H/(H−2))", causal=True, unlimited=True, position=frequencies.NTK()),
    "yarn": Entry("YaRN (arXiv 2309.00071)", "slow pairs interpolated, fast ones kept, logits × (0.1 ln s + 1)²", causal=True, unlimited=True, position=frequencies.Yarn()),
    "dynamic_ntk": Entry("Dynamic NTK (emozilla 2023), YaRN (arXiv 2309.00071)", "`ntk` by the keys at hand: base times (s·S/L − (s−1))^(H/(H−2)), s = 1", causal=True, unlimited=True, position=frequencies.DynamicNTK()),
    "llama3": Entry("Llama 3 (arXiv 2407.21783)", "pairs that turn less than once in L interpolated, more than four times kept", causal=True, unlimited=True, position=frequencies.Llama3()),
    "longrope": Entry("LongRoPE (arXiv 2402.13753)", "each pair slowed by a factor of its own (`factors`; default s); logits × (1 + ln s / ln L) where `scale` is given", causal=True, unlimited=True, theirs="factors searched for each model", position=frequencies.LongRope()),
    "rerope": Entry("ReRoPE (Su 2023)", "distances clamped to ±w", causal=True, unlimited=True, theirs="w = L/8 (Su)", position=distances.ClampedRope()),
    "leaky_rerope": Entry("Leaky ReRoPE (Su 2023)", "distances beyond w = L/8 go on at 1/16, or slower where the longest would pass L", causal=True, unlimited=True, position=distances.LeakyRope()),
    "self_extend": Entry("Self-Extend (arXiv 2401.01325)", "positions beyond w = L/4 in groups, of as many as keep the longest distance within L", causal=True, unlimited=True, theirs="w = 1024 and g = 8 at L = 4096 (LongLM)", position=distances.SelfExtend()),
    "dual_chunk": Entry("Dual chunk attention (arXiv 2402.17463)", "places within chunks of 5L/8, the last L/8 distances as they are, all earlier keys at 3L/4", causal=True, unlimited=True, position=distances.DualChunk()),
    "rerope_log": Entry("ReRoPE (Su 2023)", "`rerope+log_length`", causal=True, unlimited=True, theirs="w = L/8 (Su)", position=distances.ClampedRope(), temperature=temperature.LogLength()),
    "alibi": Entry("ALiBi (arXiv 2108.12409)", "bias −m_h·distance, no rotation", causal=True, position=bias.Alibi()),
    "nope": Entry("NoPE (arXiv 2305.19466)", "no position at all", causal=True, position=position.NoPosition()),
    "p_rope": Entry("p-RoPE (arXiv 2410.06205)", "only the fastest 3/4 of RoPE's pairs turn", causal=True, position=position.PartialRope()),
    "t5_bias": Entry("T5 (arXiv 1910.10683)", "bias learned per head and bucket of distance, no rotation", causal=None, theirs="no 1/√H (`scaled=False`), one table for all layers", position=bias.BucketBias()),
    "kerple_log": Entry("KERPLE (arXiv 2205.09921)", "bias −p ln(1 + a·distance), p and a learned per head, no rotation", causal=True, position=bias.KerpleLog()),
    "fire": Entry("FIRE (arXiv 2310.04418)", "bias by a learned MLP of ψ(distance) / ψ(max(i, L)), no rotation", causal=True, position=bias.Fire()),
    "forgetting": Entry("Forgetting Transformer (arXiv 2503.02130)", "bias Σ ln f of the tokens after the key, f = σ(w·x + b) a forget gate of the layer's input, learned per head, no rotation", causal=True, position=bias.Forgetting()),
    "scale_invariant": Entry("Scale-invariant attention (arXiv 2505.17083)", "logits × a + 1 − a², a² = 1 + 2 ln(1 + distance / 10), on p-RoPE", causal=True, position=bias.ScaleInvariant()),
    # Visibility
    "windowed": Entry("Sliding window (arXiv 2004.05150)", "only keys nearer than w", unlimited=True, visibility=visibility.Window()),
    "chunked": Entry("Llama 4 (Meta 2025)", "only keys of the query's own chunk of L tokens", causal=True, unlimited=True, pattern="chunked|chunked|chunked|nope+llama4", visibility=visibility.Chunked()),
    "lm_infinite": Entry("LM-Infinite (arXiv 2308.16137)", "window and 4 sinks, distances clamped", causal=True, unlimited=True, theirs="10 to 100 sinks", position=distances.ClampedRope(), visibility=visibility.SinkWindow()),
    "streaming_llm": Entry("StreamingLLM (arXiv 2309.17453)", "window and 4 sinks, L keys in all, positions those inside the cache", causal=True, unlimited=True, position=distances.CacheRope(), visibility=visibility.CacheWindow()),
}
# fmt: on

BUILT_IN = frozenset(CATALOGUE)
"""The names that lenext brings; others were registered from outside."""


def method_names() -> list[str]:
    """Every name that `make_method` knows."""
    return list(CATALOGUE)


def register(name: str, entry: Entry) -> None:
    """Adds a name, from then on as good as lenext's own.

    A second time, as when a file is read again, the new entry takes the place of the first.

    Args:
      name: a Python identifier.
      entry: what it stands for.

    Raises:
      ValueError: for a name that is none, or is lenext's own; for what is no `Entry`.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name {name!r}: should be a word of letters, digits and underscores")
    if name in BUILT_IN or name == TRAINED:
        raise ValueError(f"name {name!r}: lenext has a method of that name; take another")
    if not isinstance(entry, Entry):
        raise ValueError(f"method {name!r}: should be an Entry, and is {type(entry).__name__}")
    CATALOGUE[name] = entry


def method_options(name: str) -> dict[str, Any]:
    """The options that a method (any string `make_method` takes) has, with their defaults.

    Raises:
      ValueError: for a name the catalogue lacks.
    """
    return _options(_compose(parse_sum(name)))


def make_method(
    name: str, *, train_length: int, trained: AnyMethod | None = None, **options: Any
) -> AnyMethod:
    """A method by name, such as "rerope", "rerope+infoscale" or "rerope(window=32)+log_length".

    Several joined by / are methods of shares of the heads, in the order of the heads and in equal
    shares or as "alibi*1/nope*3" says.

    A part after + replaces every axis in which its entry differs from softmax. A rotation that
    replaces another keeps its base, its pairing of dimensions and how many of them turn, and goes
    on from its frequencies and gain where their scale is set: "llama3(scale=8)+rerope" clamps
    distances, and its pairs turn as Llama 3's. A dot product that replaces another keeps its scale and
    its bound.

    Args:
      name: catalogue names joined by +, each with options of its own in brackets if need be; one
        may be "trained", for the method `trained`.
      train_length: L, the length in tokens that the weights were (or will be) trained at.
      trained: what the weights at hand were trained with. RoPE's base, its pairing of dimensions,
        how many of them turn and a scale that is set are of the weights as L is, so other rotations
        take them where the name does not say, and scales count from there; and so are a dot
        product's scale and bound.
      **options: options of the chosen axes, given to every axis that has them (`method_options`
        lists them); or an axis name with the catalogue name to take that axis from, such as
        temperature="infoscale". position="none" turns rotation off and leaves gain and bias.

    Returns:
      The method: frozen, hashable, equal for equal arguments.

    Raises:
      ValueError: for an unknown name, an unknown option or a value out of range, naming the
        choices; for train_length < 2 or from 2^31 up.
    """
    return _of_layer(parse_layer(name), name, train_length, trained, options)


def make_pattern(
    text: str, *, train_length: int, trained: Sequence[AnyMethod] = ()
) -> Pattern[AnyMethod]:
    """The methods of a pattern over layers, "a|b".

    Args:
      text: methods joined by |, each as in `make_method`.
      train_length: L.
      trained: of every layer, what its weights were trained with, see `make_method`; where it is
        given, there is one method a layer.

    Raises:
      ValueError: as `make_method` does.
    """
    layers = parse_layers(text)
    if not trained:
        return Pattern(_of_layer(heads, str(heads), train_length) for heads in layers)
    return Pattern(
        _of_layer(heads, str(heads), train_length, was)
        for heads, was in zip(layers.over(len(trained)), trained, strict=True)
    )


def _of_layer(
    heads: Heads,
    name: str,
    train_length: int,
    trained: AnyMethod | None = None,
    options: dict[str, Any] | None = None,
) -> AnyMethod:
    """A layer's method, or those of its heads."""
    spread = isinstance(trained, HeadMethods) and len(heads.sums) == 1
    if isinstance(trained, HeadMethods):
        heads, before = _beside(heads, trained.shares, name), trained.methods
    else:
        before = (trained,) * len(heads.sums)
    if len(heads.sums) == 1:
        return _make(heads.sums[0], name, train_length, before[0], options)
    if options:
        raise ValueError(f"method {name!r}: options should stand in its parts' brackets")
    methods = tuple(
        _make(each, str(each), train_length, was)
        for each, was in zip(heads.sums, before, strict=True)
    )
    asked = {part.name for each in heads.sums for part in each}
    if spread and len(set(methods)) == 1 and TRAINED not in asked:
        return methods[0]  # one for all heads, of whose shares it takes nothing
    return HeadMethods(methods, _reduced(heads.shares), name)


def _reduced(shares: Sequence[int]) -> tuple[int, ...]:
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def _beside(heads: Heads, shares: Sequence[int], name: str) -> Heads:
    """A layer's method, or those of its heads, in other shares: one for all heads becomes several.

    Raises:
      ValueError: it has other shares already.
    """
    if len(heads.sums) == 1:
        return Heads(heads.sums * len(shares), tuple(shares))
    if _reduced(heads.shares) != _reduced(shares):
        said = "/".join(f"…*{share}" for share in shares)
        raise ValueError(
            f"method {name!r}: the weights were trained with methods of heads; should be one for "
            f"all of them, or {said}"
        )
    return heads


def spell_trained(text: str, was: str) -> str:
    """A pattern in which "trained" stands for another, spelt out: "trained+x" gives "a+x|b+x".

    Args:
      text: the pattern.
      was: what it stands for, "a|b".

    Raises:
      ValueError: for options of "trained" that no axis of the other has.
    """
    layers, methods = parse_layers(text), parse_layers(was)
    if not any(part.name == TRAINED for heads in layers for each in heads.sums for part in each):
        return text

    def spelt(each: Sum, stood: Sum) -> Sum:
        parts: list[Part] = []
        for part in each:
            named = part.name == TRAINED
            parts += _with_options(stood, dict(part.options)) if named else [part]
        return Sum(parts)

    whole = []
    for layer in range(math.lcm(len(layers), len(methods))):
        heads, stood = layers.of_layer(layer), methods.of_layer(layer)
        if len(stood.sums) > 1:
            heads, by_share = _beside(heads, stood.shares, text), stood.sums
        else:
            by_share = stood.sums * len(heads.sums)
        sums = tuple(spelt(*each) for each in zip(heads.sums, by_share, strict=True))
        whole.append(Heads(sums, heads.shares))
    return spell(whole)


def overruled_parts(text: str) -> list[str]:
    """What parts of sums change nothing, as those after them replace all that they change.

    Args:
      text: a pattern over layers.

    Returns:
      A sentence a part, such as "infoscale changes nothing in infoscale+log_length: …".
    """
    sums = dict.fromkeys(each for heads in parse_layers(text) for each in heads.sums)
    return [said for each in sums for said in _overruled(each)]


def _overruled(parts: Sum) -> list[str]:
    found = []
    for number, part in enumerate(parts):
        if part.name == TRAINED:
            continue
        changed = _own(_entry(part.name))
        replaced = {}
        for other in parts[number + 1 :]:
            own = {} if other.name == TRAINED else _own(_entry(other.name))
            replaced |= {axis: other.name for axis in own if axis in changed}
        # What is of the weights is kept by the rotation, or the dot product, that replaces it.
        was = _compose(Sum([part]))["position"]
        kept = isinstance(was, position.Rope) and (
            was.scaled() is not None or dict(part.options).keys() & {*position.OF_WEIGHTS}
        )
        kept = kept or dict(part.options).keys() & {*similarity.OF_WEIGHTS}
        if changed and replaced.keys() == changed.keys() and not kept:
            by, axes = (" and ".join(dict.fromkeys(x)) for x in (replaced.values(), replaced))
            end = "" if " and " in by else "s"
            found.append(f"{part} changes nothing in {parts}: {by} replace{end} its {axes}")
    return found


def _make(
    parts: Sum,
    name: str,
    train_length: int,
    trained: Method | None = None,
    options: dict[str, Any] | None = None,
) -> Method:
    whole = isinstance(train_length, numbers.Integral) and not isinstance(train_length, bool)
    if not whole or not 2 <= train_length < MOST_TOKENS:
        raise ValueError(
            f"train_length={train_length!r}: should be a whole number, at least 2 and below 2^31"
        )
    options = dict(options or {})
    axes = _compose(parts, trained)
    for axis in AXES:
        choice = options.pop(axis, None)
        if axis == "position" and choice == "none":
            if isinstance(axes[axis], position.Rope):
                axes[axis] = dataclasses.replace(axes[axis], rotary=False)
        elif isinstance(choice, Axis):
            axes[axis] = choice
        elif choice is not None:
            axes[axis] = getattr(_entry(choice), axis)
    axes = _apply(axes, options, name, also=AXES)
    resolved: dict[str, Any] = {
        axis: choice.resolve(int(train_length)) for axis, choice in axes.items()
    }
    return Method(**resolved, train_length=int(train_length), name=name)


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(str(name), CATALOGUE, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown method {name!r}; {meant}choose from {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _own(chosen: Entry | Method) -> dict[str, Any]:
    """The choices of a part that replace those before it: all in which it differs from softmax."""
    choices = {axis: getattr(chosen, axis) for axis in AXES}
    return {axis: x for axis, x in choices.items() if x != getattr(SOFTMAX, axis)}


def _compose(parts: Sum, trained: Method | None = None) -> dict[str, Any]:
    """One choice an axis: each part replaces the axes in which it differs from softmax."""
    axes: dict[str, Any] = {}
    for name, options in parts:
        if name == TRAINED and trained is None:
            raise ValueError(
                f"method {TRAINED!r}: there are no trained weights here; name a method"
            )
        chosen = trained if name == TRAINED and trained is not None else _entry(name)
        own = _own(chosen) if axes else {axis: getattr(chosen, axis) for axis in AXES}
        if chosen is not trained:
            for axis, choice in own.items():
                before = [axes.get(axis), None if trained is None else getattr(trained, axis)]
                own[axis] = _as_trained(choice, before)
        axes |= _apply(own, dict(options), name)
    return axes


def _as_trained(choice: Axis, before: Sequence[Axis | None]) -> Axis:
    """The choice with what is of the weights in the first of its kind that it replaces.

    Of a rotation that is its base, pairing, dimensions and scale; of a dot product its scale and
    its bound.
    """
    if isinstance(choice, position.Rope):
        was = next((x for x in before if isinstance(x, position.Rope)), None)
        if was is not None:
            same = _options_of(was, position.OF_WEIGHTS)
            return dataclasses.replace(choice, **same, trained=was.scaled())
    if isinstance(choice, similarity.Dot):
        was = next((x for x in before if isinstance(x, similarity.Dot)), None)
        if was is not None:
            return dataclasses.replace(choice, **_options_of(was, similarity.OF_WEIGHTS))
    return choice


def _options_of(choice: Axis, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(choice, name) for name in names}


def _with_options(parts: Sum, options: dict[str, Any]) -> Sum:
    """The sum with options of the whole given to the parts whose axes have them."""
    if not options:
        return parts
    axes = _apply(_compose(parts), options, TRAINED)
    owner = {}
    for number, part in enumerate(parts):
        owner |= dict.fromkeys(_own(_entry(part.name)) if number else AXES, number)
    given = [dict(part.options) for part in parts]
    for axis, choice in axes.items():
        names = {field.name for field in choice.option_fields()}
        given[owner[axis]] |= {key: x for key, x in options.items() if key in names}
    return Sum(
        Part(part.name, tuple(each.items())) for part, each in zip(parts, given, strict=True)
    )


def _options(axes: dict[str, Axis]) -> dict[str, Any]:
    return {f.name: getattr(c, f.name) for c in axes.values() for f in c.option_fields()}


def _apply(
    axes: dict[str, Any], options: dict[str, Any], name: str, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Sets options on every axis that has them; `also` are names to offer where none has."""
    known = _options(axes)
    for unknown in options.keys() - known.keys():
        choices = ", ".join([*known, *also]) or "none"
        raise ValueError(f"method {name!r} has no option {unknown!r}; choose from {choices}")

    def updated(choice: Axis) -> Axis:
        names = {field.name for field in choice.option_fields()} & options.keys()
        return dataclasses.replace(choice, **{key: options[key] for key in names})

    try:
        return {axis: updated(choice) for axis, choice in axes.items()}
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from None
