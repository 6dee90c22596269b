"""The command `lenext`: lenext COMMAND ARGUMENTS is python -m lenext.COMMAND ARGUMENTS."""

import difflib
import os
import runpy
import sys

COMMANDS = {
    "train": "trains a model",
    "evaluate": "sweeps methods and lengths over a run's weights",
    "compare": "lays evaluations of several runs side by side",
    "generate": "samples from a decoder",
    "documents": "makes an evaluation set of your own long documents",
    "methods": "lists the methods, or explains one",
    "import_checkpoint": "makes a run of another library's checkpoint",
    "export_checkpoint": "makes another library's checkpoint of a run",
}


def main() -> None:
    """Runs the command that the first argument names; `lenext COMMAND --help` explains it."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
        print("\n".join([f"{__doc__}\n", *listed]))
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        print(f"error: {name!r}: {meant}choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    if os.getcwd() not in sys.path and "" not in sys.path:  # as python -m has it
        sys.path.insert(0, os.getcwd())
    sys.argv = [f"lenext {name}", *arguments]
    runpy.run_module(f"lenext.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
