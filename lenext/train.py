"""Trains a model: python -m lenext.train --config=configs/quickstart.py --workdir=DIR.

The same command, or --workdir=DIR alone, goes on with a run that was stopped, as its config.json
has it.
"""

from lenext import cli
from lenext.training import train

if __name__ == "__main__":
    cli.run(str(__doc__), train, told=lambda config: [config.model.method])
