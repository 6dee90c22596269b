"""Makes a folder of a run's newest checkpoint, for other libraries.

    python -m lenext.export_checkpoint --workdir=DIR --target=DIR

The form is that in which an imported run, or what it branched off, came. Of a decoder of ours it is
Llama's (Qwen2's with biases, Qwen3's with qk_norm, Mistral's where the heads do not share the
hidden size), if its method is "softmax(pairing='halves')". It is read back before it stands there.

--workdir=DIR         of the run
--target=DIR          what to make: config.json, safetensors, the tokeniser, and what came with it
--weights=params      or ema, their moving average
"""

from absl import flags

from lenext import cli
from lenext.buckets import as_path, on_disk
from lenext.errors import UserError
from lenext.importing import export_checkpoint


def main() -> None:
    """Parses the flags and exports.

    Raises:
      UserError: for flags that do not fit, or what `export_checkpoint` refuses.
    """
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.")
    target = flags.DEFINE_string("target", "", "Folder to make.")
    weights = flags.DEFINE_enum("weights", "params", ["params", "ema"], "Which.")
    cli.parse_flags()
    cli.end_on_sigterm()
    for flag in (workdir, target):
        if not flag.value:
            raise UserError(f"--{flag.name}=DIR is missing")
    export_checkpoint(
        as_path(workdir.value), on_disk(target.value, "--target"), weights=weights.value
    )
    print(f"exported: {target.value}")


if __name__ == "__main__":
    cli.guard(str(__doc__), main, interrupted="interrupted; nothing was written")
