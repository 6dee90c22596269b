"""Method strings: what they may look like, and the only place where they are read.

From what binds tightest: options in brackets, sums by +, shares of the heads by *, methods of
heads by /, methods of layers by |, lists by commas.

    list    = layers {"," layers}
    layers  = heads {"|" heads}                one after the other, again and again over the depth
    heads   = sum ["*" WHOLE] {"/" sum ["*" WHOLE]}
    sum     = part {"+" part}                  a part replaces axes of those before it
    part    = NAME ["(" [NAME "=" literal {"," NAME "=" literal}] ")"]
    literal = a number, string, True, False, None, or a tuple of these

What names stand for is `lenext.attention.catalogue`'s business.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

TRAINED = "trained"
"""The name of whatever method the weights at hand were trained with."""

FORM = "a name, names joined by +, or name(option=value)"
MOST_HEADS = 2**16  # what a share stays below
CONSTANTS = {"True": True, "False": False, "None": None}
TOKEN = re.compile(
    r"""\s*(?: (?P<name>[^\W\d]\w*)
             | (?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
             | (?P<string>'[^'\\]*'|"[^"\\]*")
             | (?P<sign>[-+*/|,()=]) )""",
    re.VERBOSE,
)


class Pattern(tuple[T, ...], Generic[T]):
    """What repeats over the layers of a model: layer i takes item i, round and round."""

    @classmethod
    def of(cls, items: T | Sequence[T]) -> "Pattern[T]":
        """A pattern of several items in a list or tuple, or of a single one."""
        several: Any = items if isinstance(items, list | tuple) else (items,)
        return cls(several)

    def of_layer(self, layer: int) -> T:
        """The item of a layer."""
        return self[layer % len(self)]

    def over(self, depth: int) -> "Pattern[T]":
        """One item a layer."""
        return Pattern(self.of_layer(layer) for layer in range(depth))


class Part(NamedTuple):
    """A name and its options, as pairs of name and value."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = ",".join(f"{name}={value!r}" for name, value in self.options)
        return f"{self.name}({options})" if options else self.name


class Sum(tuple[Part, ...]):
    """Parts joined by +: a method of one kind for all heads."""

    def __str__(self) -> str:
        return "+".join(map(str, self))


class Heads(NamedTuple):
    """The methods of one layer, each with its share of the heads; one where all are alike."""

    sums: tuple[Sum, ...]
    shares: tuple[int, ...]

    def __str__(self) -> str:
        alike = set(self.shares) == {1}
        pairs = zip(self.sums, self.shares, strict=True)
        return "/".join(str(each) if alike else f"{each}*{share}" for each, share in pairs)


def parse_layers(text: str) -> Pattern[Heads]:
    """A pattern of methods over the layers, "a|b+c".

    Raises:
      ValueError: for what is not of that form.
    """
    reader = _Reader(text)
    layers = reader.layers()
    reader.end()
    return layers


def parse_layer(text: str) -> Heads:
    """The method of all layers, or those of their heads, such as "a(x=1)+b" or "a/b".

    Raises:
      ValueError: for what is not of that form.
    """
    layers = parse_layers(text)
    if len(layers) > 1:
        raise ValueError(f"method {text!r}: should be one method, not a pattern over layers by |")
    return layers[0]


def parse_sum(text: str) -> Sum:
    """One method for all layers and heads, such as "a(x=1)+b".

    Raises:
      ValueError: for what is not of that form.
    """
    first, *others = parse_layer(text).sums
    if others:
        raise ValueError(f"method {text!r}: should be one method, not several of heads by /")
    return first


def split_list(text: str) -> list[str]:
    """The members of a list, as they were written: "a(x=1,y=2), b|c" gives two.

    A comma too many does no harm; an empty text gives none.

    Raises:
      ValueError: for what is not of that form.
    """
    reader, members = _Reader(text), []
    while not reader.at_end():
        if not reader.accept(","):
            start = reader.place
            reader.layers()
            members.append(text[start : reader.previous_end].strip())
            if not reader.at_end():
                reader.expect(",")
    return members


def names(text: str) -> set[str]:
    """The names of methods in a list."""
    found = set()
    for member in split_list(text):
        for heads in parse_layers(member):
            found |= {part.name for each in heads.sums for part in each}
    return found


def spell(layers: Sequence[Heads]) -> str:
    """A pattern as a string; reading it gives the pattern."""
    return "|".join(map(str, layers))


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            raise ValueError
        kind = str(match.lastgroup)
        yield _Token(kind, match[kind], match.start(kind), match.end())
        place = match.end()
    yield _Token("end", "", len(text), len(text))


class _Reader:
    """Recursive descent over a string's tokens, one method a rule of the grammar."""

    def __init__(self, text: str):
        if not isinstance(text, str):
            raise ValueError(f"method {text!r}: should be a string")
        self.text, self.at = text, 0
        try:
            self.tokens = list(_tokens(text))
        except ValueError:
            raise self.mistake() from None

    @property
    def place(self) -> int:
        """Where the next token starts."""
        return self.tokens[self.at].start

    @property
    def previous_end(self) -> int:
        """Where the token before it ended."""
        return self.tokens[self.at - 1].end

    def mistake(self) -> ValueError:
        return ValueError(f"method {self.text!r}: should be {FORM}")

    def at_end(self) -> bool:
        return self.tokens[self.at].kind == "end"

    def end(self) -> None:
        if not self.at_end():
            raise self.mistake()

    def take(self, kind: str) -> str:
        token = self.tokens[self.at]
        if token.kind != kind:
            raise self.mistake()
        self.at += 1
        return token.text

    def accept(self, sign: str) -> bool:
        token = self.tokens[self.at]
        found = token.kind == "sign" and token.text == sign
        self.at += found
        return found

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            raise self.mistake()

    def layers(self) -> Pattern[Heads]:
        found = [self.heads()]
        while self.accept("|"):
            found.append(self.heads())
        return Pattern(found)

    def heads(self) -> Heads:
        sums, shares = [], []
        while True:
            sums.append(self.sum())
            shares.append(self.share() if self.accept("*") else 1)
            if not self.accept("/"):
                return Heads(tuple(sums), tuple(shares))

    def share(self) -> int:
        word = self.take("number")
        if not word.isdecimal() or not 0 < int(word) < MOST_HEADS:
            raise self.mistake()
        return int(word)

    def sum(self) -> Sum:
        found = [self.part()]
        while self.accept("+"):
            found.append(self.part())
        return Sum(found)

    def part(self) -> Part:
        name, options = self.take("name"), {}
        if self.accept("("):
            while not self.accept(")"):
                key = self.take("name")
                self.expect("=")
                if key in options:
                    raise ValueError(f"method {self.text!r}: gives the option {key} twice")
                options[key] = self.literal()
                if not self.accept(","):
                    self.expect(")")
                    break
        return Part(name, tuple(options.items()))

    def literal(self) -> Any:
        if self.accept("("):
            values = []
            while not self.accept(")"):
                values.append(self.literal())
                if not self.accept(","):
                    self.expect(")")
                    return values[0] if len(values) == 1 else tuple(values)
            return tuple(values)
        token = self.tokens[self.at]
        if token.kind == "name" and token.text in CONSTANTS:
            return CONSTANTS[self.take("name")]
        if token.kind not in ("number", "string"):
            raise self.mistake()
        try:
            return ast.literal_eval(self.take(token.kind))
        except (SyntaxError, ValueError):  # 08, 1__0
            raise self.mistake() from None
