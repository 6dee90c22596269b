"""Methods in words, numbers and pictures: the catalogue as a table, and one method explained.

What is said of an axis is its class's docstring, and of a name its entry in the catalogue; whether
it wants weights trained for it and whether a kernel can compute it are rules (`unsuited_axes`,
`why_not_fused`).
"""

import functools
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from lenext.attention.axes import position, similarity
from lenext.attention.axes.axis import Axis
from lenext.attention.axes.gates import Gates, init_gates, make_gates
from lenext.attention.axes.method import AXES, Method, init_params, unsuited_axes
from lenext.attention.catalogue import CATALOGUE, SOFTMAX, Entry, make_method, overruled_parts
from lenext.attention.compute import kernels
from lenext.attention.compute.attend import attention_weights
from lenext.attention.compute.call import Call
from lenext.attention.compute.fused import why_not_fused
from lenext.attention.compute.places import Places, count, located, rows_at, visible
from lenext.attention.compute.tpu import TpuKernel
from lenext.attention.grammar import parse_layer

WIDTH = 100  # columns of the terminal
HEADS = 4  # N in examples, whose first head is shown
EXTENSIONS = (1, 2, 4, 8, 16, 32, 64)  # times L, of the temperatures
DILUTED = 16  # times L, of the row of weights drawn beside the one at L
COLUMNS, LINES = 64, 3  # of a drawn row, at most
SEED = 0  # of its q and k
TYPICAL = 64  # L and H in the table, where they make no difference

SYMBOLS = (
    "n: keys that a row sees; i: its place in its document; L: training length; H: key size of a "
    "head; s: extension factor, length / L by default; w: window, L by default."
)
LEGEND = f"""\
axes: which of Position, Similarity, Temperature, Weighting and Visibility it changes.
needs: weights trained for it, in place of plain softmax's; gates, which follow the layer's input; \
layers, of which some have another method (NAME explains).
reach: the length up to which, by default, trained weights meet no distance that is new to them.
causal: published for causal models (yes), bidirectional ones (no) or both; all run both ways but \
those for causal models only.
fused: whether a library's fused kernel can compute it (yes), or our own, which TPUs have (TPU).
{SYMBOLS}
One of them, or several joined by +, explained: python -m lenext.methods "rerope+infoscale"
"""

PAGE = """\
<!-- Made by `python -m lenext.methods --markdown > docs/methods.md`: change the catalogue or
     describe.py in lenext/attention, not this page. -->

# Methods

A method is one choice on each of five axes. A name in the catalogue stands for a choice on one axis
or several; on the others it is as plain `softmax`.

| axis | what it decides |
|---|---|
| position | how positions enter: rotations of queries and keys, a factor or a bias on the logits |
| similarity | how alike a query and a key are: their dot product, a cosine, a distance |
| temperature | a factor on the similarity, one for each row |
| weighting | how a row of logits becomes weights: softmax, sigmoid, sparsemax, … |
| visibility | which keys a row sees, beside causality, padding and documents |

## Method strings

In Python, in a config, and on the command line, a method is given as a string:

| string | what it means |
|---|---|
| `rerope` | the method of that name |
| `rerope(window=32)` | with an option; several are separated by commas |
| `rerope+infoscale` | both: one method that differs from softmax on two axes |
| `trained+infoscale` | what the weights at hand were trained with, with one axis replaced |
| <code>windowed(window=32)&#124;softmax</code> | a pattern: layers take them in turn |
| `alibi/nope`, `alibi*1/nope*3` | methods of heads, in equal shares or these, in their order |
| `softmax,rerope,yarn` | a list, where several methods are to be evaluated |

They bind in this order: options in brackets, then `+`, `*`, `/`, `|`, and then the comma. The
shell gives brackets, `*` and `|` a meaning of its own, so quote the string.

Each share of the heads is computed as if its heads were all there are: ALiBi's slopes count its
own, and learned parts belong to it. Shares must divide the heads, and over devices
`config.mesh.tensor` must divide each share. On weights that were trained so, `trained` stands for
each share's own. Methods of heads are not calibrated.

A part after `+` replaces every axis in which its entry differs from softmax, and leaves the others
alone. A part that changes nothing, because later parts replace all that it chose, is named in the
results. A rotation that replaces another keeps its base, its pairing of dimensions and how many of
them turn, and goes on from its frequencies where their scale is set: in `llama3(scale=8)+rerope`
distances are clamped, and pairs turn as Llama 3's. A dot product keeps the scale and the bound of
the one that it replaces. An unknown name or option is refused, with the names that there are.

## The catalogue

{catalogue}
n is the number of keys that a row sees (after causality, padding, windows and document borders), i
its place in its document, L the training length, H the key size of a head, s the extension factor
(default: length / L), w the window (default L). Evaluated on weights that were not trained for it,
a method is marked † in the tables, not hidden.

"Needs": weights, where it wants some that were trained with it; gates, where it follows the layer's
input, of which a model makes them; layers, where it was published in a pattern of several.
"Reaches": for what suits any weights, the length up to which, by default, these meet no distance
that is new to them: L, or any.

The terminal shows the same table (`python -m lenext.methods`) and explains one method or a
composition of several: its options, its temperature by length, a row of its weights drawn at L and
16 L, and whether a fused kernel can compute it:

    python -m lenext.methods
    python -m lenext.methods "rerope(window=32)+infoscale" --train_length=64 --head_dim=64

## Options

All rotations (RoPE) also have softmax's `base`, `pairing` and `rotary_dim` (how many dimensions of
a head turn, the first ones; None: all), and all dot products its `logit_scale` (None: 1/√H) and
`softcap` (c in c·tanh(logit / c); None: no bound). Where the default of another is None it follows
the training length, the length at hand, or another option, as the catalogue says.

| method | options with their defaults, and what they may be | its authors, where they differ |
|---|---|---|
{options}
"""

# Options that every RoPE or dot product has, told once.
SHARED = (*position.OF_WEIGHTS, *similarity.OF_WEIGHTS)


def markdown_page() -> str:
    """docs/methods.md: the axes, how methods compose, the catalogue and its options."""
    options = []
    for name, entry in CATALOGUE.items():
        choices = [getattr(entry, axis) for axis in _changed(entry) or AXES]
        settings = {
            f"`{field.name}={getattr(choice, field.name)!r}` ({allowed(choice, field.name)})": None
            for choice in choices
            for field in choice.option_fields()
            if entry is SOFTMAX or field.name not in SHARED
        }
        if settings or entry.theirs:
            options.append(f"| `{name}` | {'; '.join(settings)} | {entry.theirs} |")
    return PAGE.format(catalogue=markdown_table(), options="\n".join(options))


def markdown_table() -> str:
    """The catalogue as a Markdown table."""
    lines = ["| name | what it changes | needs | reaches | paper |", "|---|---|---|---|---|"]
    for name, entry in CATALOGUE.items():
        cells = entry.changes, _needs(name), _reach(name), _linked(_published(entry))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def catalogue_table() -> str:
    """The catalogue as a table for a terminal of 100 columns, and what its columns mean."""
    heads = ("name", "axes", "what it changes", "needs", "reach", "causal", "fused", "paper")
    widths = (18, 4, 23, 7, 5, 6, 5, 18)
    rows: list[Sequence[str]] = [heads, ["─" * width for width in widths]]
    for name, entry in CATALOGUE.items():
        method = _one(name)
        axes = "".join(axis[0].upper() for axis in _changed(entry))
        causal = {True: "yes", False: "no", None: "both"}[entry.causal]
        causal = "only" if method.causal_only else causal
        fused, _ = _fused(method, TYPICAL)
        needs, reach, paper = _needs(name), _reach(name), _published(entry)
        rows.append((name, axes, entry.changes, needs, reach, causal, fused, paper))
    lines = [line for row in rows for line in _in_columns(row, widths)]
    legend = [line for text in LEGEND.splitlines() for line in _wrap(text, "", "  ")]
    return "\n".join([*lines, "", *legend]) + "\n"


def explain(name: str, *, train_length: int, head_dim: int) -> str:
    """One method: each axis and its options, the temperature by length, a row of its weights drawn.

    Args:
      name: any string that `make_method` takes; methods of heads come one after the other.
      train_length: L, in tokens.
      head_dim: H, dimensions a head.

    Returns:
      Text for a terminal of 100 columns.

    Raises:
      ValueError: for a method that `make_method` refuses, or that does not go with `head_dim`.
    """
    heads = parse_layer(name)
    if len(heads.sums) > 1:
        pairs = zip(heads.sums, heads.shares, strict=True)
        shares = ", ".join(f"{own} has {share}" for own, share in pairs)
        each = [
            explain(str(own), train_length=train_length, head_dim=head_dim) for own in heads.sums
        ]
        return "\n".join([f"{name}: of {sum(heads.shares)} shares of the heads, {shares}\n", *each])
    method, parts = _one(name, train_length), [part.name for own in heads.sums for part in own]
    default = _one("+".join(parts), train_length)
    params = init_params(method, HEADS, head_dim)
    head = f"{name}  (L = {train_length}, H = {head_dim})"
    sections = ["\n".join([head, *_summary(name, parts, method, head_dim)])]
    for axis, choice in method.axes().items():
        lines = [f"{axis}: {type(choice).__name__}", *_paragraphs(type(choice))]
        lines += _options(choice, default.axes()[axis])
        before = getattr(choice, "trained", None)
        if before is not None:
            lines.append(f"    starts from {type(before).__name__}, in place of plain RoPE")
        if axis in params:
            shapes = (f"{part} {list(x.shape)}" for part, x in params[axis].items())
            lines.append(f"    learned: {', '.join(shapes)}")
        if axis in method.gated:
            lines.append("    follows the layer's input, by maps that are learned per head")
        sections.append("\n".join(lines))
    sections += [_temperature_section(method, head_dim), _weights_section(method, head_dim)]
    sections.append("\n".join(_wrap(SYMBOLS)))
    return "\n\n".join(sections) + "\n"


def last_row_temperatures(
    method: Method, lengths: Sequence[int], head_dim: int
) -> tuple[Float[Array, " R"], Float[Array, "heads R"]]:
    """n and the temperature at the last row of causal sequences of these lengths, in 4 heads.

    Learned parts stand at their initial values; the query and the layer's input are zero.
    """
    last = jnp.asarray([lengths], jnp.int32) - 1
    keys = jnp.arange(max(lengths), dtype=jnp.int32)[None, :]
    return _temperatures(Places(last, keys), method=method, head_dim=head_dim)


@functools.partial(jax.jit, static_argnames=("method", "head_dim"))
def _temperatures(places, *, method, head_dim):
    length = places.q_positions.shape[1]
    places = located(places)
    gates = _initial_gates(method, length)
    places = places._replace(q_gates=gates.queries)
    rows = rows_at(
        method, places, count(visible(method, places, causal=True)), causal=True,
        length=places.kv_positions.shape[1], num_heads=HEADS, head_dim=head_dim,
    )  # fmt: skip
    params = init_params(method, HEADS, head_dim).get("temperature", {})
    factor = method.temperature(rows, jnp.zeros((1, length, HEADS, head_dim), jnp.float32), params)
    factor = jnp.broadcast_to(factor, (1, HEADS, length, 1))
    return rows.n[0, 0, :, 0], factor[0, :, :, 0]


def example_rows(method: Method, length: int, head_dim: int) -> Float64[np.ndarray, "heads length"]:
    """Weights of a causal sequence's last row in 4 heads: normal q and k, a fixed seed.

    All heads have the same q and k, so that they differ as the method has it. The nearest keys are
    the same at every length, so the query meets them at the same distances.
    """
    rng = np.random.default_rng(SEED)
    q = rng.normal(size=(1, 1, HEADS, head_dim)).astype(np.float32)
    q = np.repeat(q[:, :, :1], HEADS, axis=2)
    from_the_nearest = rng.normal(size=(1, length, 1, head_dim)).astype(np.float32)
    gates = None
    if method.gated:
        gates = _initial_gates(method, length)
        gates = gates._replace(queries=jax.tree.map(lambda x: x[:, -1:], gates.queries))
    weights = attention_weights(q, from_the_nearest[:, ::-1], method, causal=True, gates=gates)
    return np.asarray(weights[0, :, 0], np.float64)


def _initial_gates(method: Method, length: int) -> Gates:
    """Gates of inputs that are zero, with all that makes them at its initial values."""
    x = jnp.zeros((1, length, 1), jnp.float32)
    return make_gates(method, init_gates(method, HEADS, 1), x, num_heads=HEADS)


def distinct_heads(values: Float[np.ndarray, "heads columns"]) -> list[list[int]]:
    """Heads in groups whose values look the same on a page."""
    groups: list[list[int]] = []
    for head, row in enumerate(values):
        same = (g for g in groups if np.allclose(values[g[0]], row, rtol=1e-4, atol=5e-4))
        group = next(same, None)
        if group is None:
            groups.append([head])
        else:
            group.append(head)
    return groups


def _named(heads: Sequence[int]) -> str:
    """Such as "heads 0 and 2"."""
    several = "s" if len(heads) > 1 else ""
    return f"head{several} {' and '.join(map(str, heads))}"


def entropy(weights: np.ndarray) -> float:
    """-sum w ln w of weights over their sum, in nats; 0 where all are 0."""
    some = weights[weights > 0]
    shares = some / max(some.sum(), 1e-300)
    return float(-np.sum(shares * np.log(shares)))


def bars(values: np.ndarray, top: float, lines: int = LINES) -> list[str]:
    """A bar chart of `lines` lines, top first: a character a value, full at `top`, blank at 0."""
    eighths = np.ceil(np.asarray(values) / top * 8 * lines - 1e-9).astype(int)
    levels = (np.clip(eighths - 8 * line, 0, 8) for line in reversed(range(lines)))
    return ["".join(" ▁▂▃▄▅▆▇█"[level] for level in row).rstrip() for row in levels]


def allowed(choice: Axis, option: str) -> str:
    """What an option may be, in words."""
    (field,) = (field for field in choice.option_fields() if field.name == option)
    rule = field.metadata["option"]
    if rule["choices"]:
        return "one of " + ", ".join(map(repr, rule["choices"]))
    kinds = {bool: "True or False", int: "a whole number", float: "a number"}
    kinds[tuple] = "a tuple of numbers"
    bounds = (f"{word} {bound:g}" for word, bound in rule["bounds"].items() if bound is not None)
    text = ", ".join([kinds[rule["kind"]], *bounds])
    return f"None or {text}" if field.default is None else text


def _one(name: str, train_length: int = TYPICAL) -> Method:
    """A method for all heads."""
    method = make_method(name, train_length=train_length)
    assert isinstance(method, Method)
    return method


def _unsuited(method: Method) -> list[str]:
    """The axes in which the method wants other weights than plain softmax's."""
    return unsuited_axes(method, make_method("softmax", train_length=method.train_length))


def _needs(name: str) -> str:
    """What a name wants of who uses it, in a few words."""
    method = _one(name)
    needs = {
        "weights": bool(_unsuited(method)),
        "gates": bool(method.gated),
        "layers": bool(CATALOGUE[name].pattern),
    }
    return ", ".join(need for need, wanted in needs.items() if wanted) or "–"


def _reach(name: str) -> str:
    if _unsuited(_one(name)):
        return "–"
    return "any" if CATALOGUE[name].unlimited else "L"


def _changed(entry: Entry) -> list[str]:
    return [axis for axis in AXES if getattr(entry, axis) != getattr(SOFTMAX, axis)]


def _published(entry: Entry) -> str:
    return entry.source or "unpublished"


def _wrap(text: str, first: str = "", later: str = "", width: int = WIDTH) -> list[str]:
    """Text without Markdown's marks, in lines that keep "arXiv NNNN.NNNNN" together."""
    text = text.replace("`", "").replace("arXiv ", "arXiv\xa0")
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later)
    return [line.replace("\xa0", " ") for line in lines]


def _linked(source: str) -> str:
    """The source with each "Name (arXiv NNNN.NNNNN)" as a Markdown link."""
    named = r"([^\s,;()][^,;()]*) \(arXiv (\d{4}\.\d{5})\)"
    return re.sub(named, r"[\1](https://arxiv.org/abs/\2)", source)


def _in_columns(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """A table's row as lines: cells wrapped to their columns' widths."""
    wrapped = [_wrap(cell, width=width) for cell, width in zip(cells, widths, strict=True)]
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        line = "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
        yield line.rstrip()


def _summary(name: str, parts: Sequence[str], method: Method, head_dim: int) -> list[str]:
    """Each part's line of the catalogue, and what the rules say of the whole."""
    directions = {True: "causal", False: "bidirectional", None: "causal and bidirectional"}
    said = []
    for part in parts:
        entry = CATALOGUE[part]
        changes = f"{entry.changes}. " if entry.changes else ""
        meant = "published for" if entry.source else "for"
        said.append(
            f"{part}: {changes}{_published(entry)}; {meant} {directions[entry.causal]} models"
            + (" only" if _one(part).causal_only else "")
            + (f", in {entry.pattern}" if entry.pattern else "")
        )
        said += [f"{part}, its authors: {entry.theirs}"] if entry.theirs else []
    unsuited = ", ".join(_unsuited(method))
    said.append(
        f"trained for it: yes, weights trained under plain softmax do not suit it ({unsuited})"
        if unsuited
        else "trained for it: no, weights trained under plain softmax take it as they are"
    )
    fused, why = _fused(method, head_dim)
    said.append(f"fused: {fused}, {why}")
    said += overruled_parts(name)
    return [line for text in said for line in _wrap(text, "  ", "    ")]


def _fused(method: Method, head_dim: int) -> tuple[str, str]:
    """Where kernels compute a method ("yes", "TPU", "no"), and half a sentence why."""
    reason = why_not_fused(method, HEADS, head_dim)
    if reason is None:
        return "yes", "a library's kernel can compute it"
    shape = (1, TpuKernel.forward[0], HEADS, head_dim)
    call = Call(method, shape, shape, shape, "bfloat16", True, True, False, shape[1])
    if kernels.why_not(call, TpuKernel) is None:
        return "TPU", f"where our own kernel can compute it; no library's, because {reason}"
    return "no", f"because {reason}"


def _paragraphs(axis: type[Axis]) -> list[str]:
    """The class's docstring, wrapped and indented."""
    texts = (" ".join(text.split()) for text in (inspect.getdoc(axis) or "").split("\n\n"))
    return [line for text in texts for line in _wrap(text, "    ", "    ")]


def _options(choice: Axis, default: Axis) -> list[str]:
    """A line an option: its value, what it may be, and the default where that is another."""
    names = [field.name for field in choice.option_fields()]
    settings = [f"{name}={getattr(choice, name)!r}" for name in names]
    width = max(map(len, settings), default=0)
    lines = []
    for name, setting in zip(names, settings, strict=True):
        usual = getattr(default, name)
        other = "" if getattr(choice, name) == usual else f"; default {usual!r}"
        lines.append(f"    {setting.ljust(width)}  {allowed(choice, name)}{other}")
    return lines


def _temperature_section(method: Method, head_dim: int) -> str:
    lengths = [extension * method.train_length for extension in EXTENSIONS]
    seen, factors = (np.asarray(x) for x in last_row_temperatures(method, lengths, head_dim))
    rows = {"length": [f"{x}" for x in lengths], "n": [f"{x:.0f}" for x in seen]}
    if rows["n"] == rows["length"]:  # no window
        del rows["n"]
    groups = distinct_heads(factors)
    for heads in groups:
        name = "temperature" if len(groups) == 1 else _named(heads)
        rows[name] = [f"{x:.3f}" for x in factors[heads[0]]]
    width = 2 + max(6, *(len(cell) for cells in rows.values() for cell in cells))
    where = f"head 0 of {HEADS}" if len(groups) == 1 else f"{HEADS} heads"
    title = f"Temperature of a causal sequence's last row ({where}, learned parts at start)"
    names = max(11, *map(len, rows))
    lines = (
        f"    {head:<{names}}" + "".join(x.rjust(width) for x in cells)
        for head, cells in rows.items()
    )
    return "\n".join([title, *lines])


def _weights_section(method: Method, head_dim: int) -> str:
    """The same query's weights at L and 16 L, the method's under plain softmax's."""
    short, long = method.train_length, DILUTED * method.train_length
    softmax = _one("softmax", short)
    shown = [softmax] if method == softmax else [softmax, method]
    near = -(-short // COLUMNS)  # keys a column at L
    pictures = []
    several = False
    for length, keys in ((short, near), (long, near * DILUTED)):
        for one in shown:
            rows = example_rows(one, length, head_dim)
            groups = distinct_heads(rows)
            several |= len(groups) > 1
            for heads in groups:
                weights = rows[heads[0]]
                columns = np.pad(weights, (-length % keys, 0)).reshape(-1, keys).sum(axis=1)
                nats, total = entropy(weights), weights.sum()
                caption = f"{one.name} at length {length:,}"
                caption += f", {_named(heads)}" if len(groups) > 1 else ""
                caption += f": entropy {nats:.2f} nats, {math.exp(nats):,.1f} effective keys"
                if abs(total - 1) > 1e-3:
                    caption += f", sum of weights {total:.3g}"
                pictures.append((caption, columns))
    top = max(float(columns.max()) for _, columns in pictures) or 1.0
    title = (
        f"Weights of a causal sequence's last row (normal q and k, seed {SEED}, "
        f"{f'{HEADS} heads' if several else f'head 0 of {HEADS}'}). Near keys are on the right; a "
        f"column is the sum over {near:,} "
        f"{'key' if near == 1 else 'keys'} at length {short:,} and {near * DILUTED:,} keys at "
        f"{long:,}; the full height of {LINES} lines is {top:.3g} everywhere."
    )
    lines = _wrap(title)
    for caption, columns in pictures:
        drawn = [line for line in bars(columns, top) if line]
        lines += ["", *_wrap(caption, "    ", "      "), *("    " + line for line in drawn)]
    return "\n".join(lines)
