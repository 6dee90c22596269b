"""How a method looks, in every picture: colour, dash and marker follow from its string alone.

The colour and the marker say what a method is but for its temperature, the dash says its
temperature: "rerope+infoscale" has the colour of "rerope" and the dash of "infoscale". On nothing
else a temperature has a colour of its own beside its dash. Options shade the colour, from dark to
light as their number grows, and change the marker. What is not made of lenext's own names (a label
such as "pose+pi", a pattern over layers, a registered method) is looked up by a hash, undashed.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from matplotlib.colors import to_hex, to_rgb

from lenext.attention.axes.method import AXES
from lenext.attention.catalogue import BUILT_IN, CATALOGUE, SOFTMAX
from lenext.attention.grammar import TRAINED, Heads, Part, Pattern, parse_layers, spell

BLACK = "#000000"
# Okabe and Ito's, told apart by colour-blind readers too; yellow, faint on white, darkened, and
# two more. The first of them are the easiest to tell apart.
BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, VIOLET, OLIVE, BROWN = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#6A3D9A", "#8C8400",
    "#7A4A21",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")

SOLID = "-"
TEMPERATURES = {
    "infoscale": (ORANGE, (0, (5, 1.6))),
    "log_length": (GREEN, (0, (1.2, 1.2))),
    "entropy_matched": (BLUE, (0, (6, 1.4, 1.2, 1.4))),
    "ssmax": (VERMILION, (0, (2.6, 1.3))),
    "ssa": (PINK, (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2))),
    "softmax_plus": (SKY, (0, (8, 1.5))),
    "llama4": (BROWN, (0, (7, 1.2, 2.5, 1.2))),
    "mistral3": (OLIVE, (0, (1.2, 2.6))),
}
"""Names that change the temperature alone: their colour on nothing else, and their dash."""

REST = {
    "softmax": (BLACK, "o"),
    # Similarity and weighting
    "cosscale": (VIOLET, "o"), "soft": (BROWN, "^"),
    "lssa": (SKY, "s"), "lssar": (PINK, "o"),
    "reweighted_softmax": (ORANGE, "^"), "reweighted_sigmoid": (OLIVE, "^"),
    "sigmoid": (GREEN, "D"), "relu": (VERMILION, "^"), "relu2": (BROWN, "s"),
    "softmax1": (SKY, "v"), "sparsemax": (VIOLET, "D"), "adaptive": (GREEN, "^"),
    "softmax_sink": (SKY, "D"), "entmax": (VIOLET, "s"), "stick_breaking": (BROWN, "D"),
    "asentmax": (VIOLET, "v"),
    # Position
    "pi": (BROWN, "o"), "ntk": (PINK, "s"), "yarn": (VERMILION, "o"), "dynamic_ntk": (PINK, "D"),
    "llama3": (OLIVE, "o"), "longrope": (VERMILION, "D"),
    "rerope": (BLUE, "o"), "leaky_rerope": (BLUE, "s"), "self_extend": (VIOLET, "^"),
    "alibi": (ORANGE, "D"), "nope": (OLIVE, "D"), "p_rope": (GREEN, "v"), "kerple_log": (SKY, "^"),
    "fire": (VERMILION, "v"), "scale_invariant": (BLUE, "v"), "dual_chunk": (BLUE, "D"),
    "t5_bias": (ORANGE, "s"), "forgetting": (PINK, "^"),
    # Visibility
    "windowed": (GREEN, "s"), "lm_infinite": (SKY, "o"), "streaming_llm": (OLIVE, "s"),
    "chunked": (GREEN, "o"),
}  # fmt: skip
"""Names that change anything else: their colour and their marker."""

SAME_AS = {"rerope_log": ("rerope", "log_length"), "infoscale_cosscale": ("infoscale", "cosscale")}

KINDS = {
    "visibility": "windows",
    "position": "positions",
    "similarity": "weightings",
    "weighting": "weightings",
    "temperature": "temperatures",
}
"""What a method is that differs from softmax in an axis; the first that it differs in counts."""

UNKNOWN = "others"


class Style(NamedTuple):
    """How a curve is drawn.

    Attributes:
      colour: as a string of hexadecimal digits.
      dash: as Matplotlib's `linestyle`.
      marker: as Matplotlib's.
    """

    colour: str
    dash: Any
    marker: str

    def line(self) -> dict[str, Any]:
        """As keywords of `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.dash, "marker": self.marker}


def style_of(name: str) -> Style:
    """Of a method's string, or of any other name of a curve."""
    layers = _read(name)
    parts = _one_sum(layers) if layers is not None else None
    if parts is None or not {part.name for part in parts} <= BUILT_IN:
        # Spelt alike however it was typed.
        return _hashed(spell(layers) if layers is not None else name)
    temperature, rest = "", []
    for part in parts:
        for own in SAME_AS.get(part.name, (part.name,)):
            if own in TEMPERATURES:
                temperature = own
            elif own != "softmax":
                rest.append(own)
                if CATALOGUE[own].temperature != SOFTMAX.temperature:
                    temperature = ""  # replaced by one that has no name of its own
    colour, marker = REST["softmax"]
    dash = SOLID
    if len(rest) == 1:
        colour, marker = REST[rest[0]]
    elif rest:
        colour, _, marker = _hashed("+".join(rest))
    if temperature:
        own_colour, dash = TEMPERATURES[temperature]
        colour = colour if rest else own_colour
    options = [option for part in parts for option in part.options]
    if not options:
        return Style(colour, dash, marker)
    others = [m for m in MARKERS if m != marker]
    shade, number = _by_options(options)
    return Style(shaded(colour, shade), dash, others[number % len(others)])


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """By name, for curves of one panel: where two would be the same, the later is changed.

    Names that lenext knows go first, as they are to look the same in all pictures.
    """
    found: dict[str, Style] = {}
    wanted = list(dict.fromkeys(names))
    for name in sorted(wanted, key=lambda name: kind_of(name) == UNKNOWN):
        style = style_of(name)
        choices = [
            Style(colour, style.dash, marker)
            for colour in (style.colour, *COLOURS)
            for marker in (style.marker, *MARKERS)
        ]
        found[name] = next(x for x in choices if x not in found.values())
    return {name: found[name] for name in wanted}


def kind_of(name: str) -> str:
    """What kind a method is, of the values of `KINDS`, by the axes in which it is not softmax.

    One that differs in none counts as a temperature of 1; what is no method is of kind `UNKNOWN`.
    """
    layers = _read(name)
    if layers is None:
        return UNKNOWN
    changed: set[str] = set()
    for part in (part for heads in layers for each in heads.sums for part in each):
        if part.name not in CATALOGUE and part.name != TRAINED:
            return UNKNOWN
        entry, given = CATALOGUE.get(part.name, SOFTMAX), {key for key, _ in part.options}
        for axis in AXES:
            choice = getattr(entry, axis)
            options = {field.name for field in choice.option_fields()}
            if choice != getattr(SOFTMAX, axis) or options & given:
                changed.add(axis)
    return next((kind for axis, kind in KINDS.items() if axis in changed), "temperatures")


def shaded(colour: str, shade: float) -> str:
    """A colour mixed with black (a shade down to -1) or with white (up to 1)."""
    end = 0.0 if shade < 0 else 1.0
    red, green, blue = (x + abs(shade) * (end - x) for x in to_rgb(colour))
    return to_hex((red, green, blue))


def _read(name: str) -> Pattern[Heads] | None:
    """The method of a string; None of what is no such string."""
    try:
        return parse_layers(name)
    except ValueError:
        return None


def _one_sum(layers: Pattern[Heads]) -> tuple[Part, ...] | None:
    """The parts of a method that is the same in all layers and heads."""
    return layers[0].sums[0] if len(layers) == 1 and len(layers[0].sums) == 1 else None


def _digest(text: str) -> int:
    """The same in every process, as Python's own hash is not."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _hashed(text: str) -> Style:
    """One of a colour and a marker, and undashed: a dash would tell of a temperature."""
    number = _digest(text)
    marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
    return Style(COLOURS[number % len(COLOURS)], SOLID, marker)


def _by_options(options: list[tuple[str, Any]]) -> tuple[float, int]:
    """A shade and a number that a marker follows from: by the first number given, else by all.

    From 1 or less to 2048 or more the shade goes from dark to light; half of a doubling is another
    marker.
    """
    numbers = [x for _, x in options if isinstance(x, int | float) and not isinstance(x, bool)]
    if numbers:
        doublings = min(math.log2(max(abs(numbers[0]), 1)), 11)
        share, number = doublings / 11, round(2 * doublings)
    else:
        number = _digest(str(options))
        share = number % 7 / 6
    return 1.1 * share - 0.6, number
