"""Evaluates a run: python -m lenext.evaluate --config=configs/quickstart.py --workdir=DIR."""

from lenext import cli
from lenext.evaluation import evaluate

if __name__ == "__main__":
    cli.run(str(__doc__), evaluate, of_a_run=True)
