"""Trains a model: python -m lenext.train --config=configs/quickstart.py --workdir=DIR."""

from lenext import cli
from lenext.training import train

if __name__ == "__main__":
    cli.run(str(__doc__), train, told=lambda config: [config.model.method])
