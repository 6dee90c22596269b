"""The methods there are, or one explained: python -m lenext.methods "rerope+infoscale"."""

import io
import sys

from absl import flags

from lenext import cli
from lenext.attention.describe import catalogue_table, explain, markdown_page
from lenext.config.imports import load
from lenext.errors import UserError

USAGE = f"""{__doc__}

  METHOD              name, or several joined by +, with options: "rerope(window=32)+infoscale";
                      without it, a table of all
  --imports=FILE      that registers methods of your own; or a module, several with commas
  --train_length=64   L, tokens, of the method explained
  --head_dim=64       H, dimensions a head, of the method explained
  --markdown          the page docs/methods.md"""


def main() -> None:
    """Parses the command line and prints.

    Raises:
      UserError: for a method or a flag that does not fit.
    """
    train_length = flags.DEFINE_integer("train_length", 64, "L.", lower_bound=2, upper_bound=2**16)
    head_dim = flags.DEFINE_integer("head_dim", 64, "H.", lower_bound=1, upper_bound=2**12)
    markdown = flags.DEFINE_boolean("markdown", False, "The page docs/methods.md.")
    imports = flags.DEFINE_string("imports", "", "That register methods.")
    names = cli.parse_flags(words=True)
    if len(names) > 1:
        raise UserError(f"argument {names[1]!r}: should be one method; quote several, joined by +")
    if names and markdown.value:
        raise UserError("--markdown: should stand alone, for it prints the page of all methods")
    for flag in (train_length, head_dim):
        if flag.present and not names:
            raise UserError(f"--{flag.name}: should come with a method to explain")

    load(imports.value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character
    if not names:
        sys.stdout.write(markdown_page() if markdown.value else catalogue_table())
        return
    try:
        text = explain(names[0], train_length=train_length.value, head_dim=head_dim.value)
    except ValueError as error:
        raise UserError(str(error)) from None
    sys.stdout.write(text)


if __name__ == "__main__":
    cli.guard(USAGE, main, interrupted="interrupted")
