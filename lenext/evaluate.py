"""Evaluates a run: python -m lenext.evaluate --config=configs/quickstart.py --workdir=DIR.

--name=NAME                writes the table to DIR/eval/NAME, beside that in DIR/eval; what was
                           measured is shared, in DIR/eval/cells
--calibrate                first measures, on training documents, the parts of methods that are
                           to be calibrated (entropy_matched), and keeps them in the workdir
"""

from absl import flags

from lenext import cli
from lenext.evaluation import evaluate

if __name__ == "__main__":
    calibrate = flags.DEFINE_bool("calibrate", False, "Calibrate first.")
    name = flags.DEFINE_string("name", None, "Keep the table apart.")
    cli.run(
        str(__doc__),
        lambda config, workdir: evaluate(
            config, workdir, calibrate_first=calibrate.value, name=name.value
        ),
        evaluates=True,
        told=lambda config: [config.eval.methods],
    )
