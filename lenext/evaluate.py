"""Evaluates a run: python -m lenext.evaluate --config=configs/quickstart.py --workdir=DIR.

--calibrate                first measures, on training documents, the parts of methods that are
                           to be calibrated (entropy_matched), and keeps them in the workdir
"""

from absl import flags

from lenext import cli
from lenext.evaluation import evaluate

if __name__ == "__main__":
    calibrate = flags.DEFINE_bool("calibrate", False, "Calibrate first.")
    cli.run(
        str(__doc__),
        lambda config, workdir: evaluate(config, workdir, calibrate_first=calibrate.value),
        evaluates=True,
        told=lambda config: [config.eval.methods],
    )
