import json

import matplotlib.image
import pytest

from experiments import entropy_matched
from tests.training.common import tiny_config


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(records, folder of results) of a run of seconds, with two of the sixteen methods."""
    folder = tmp_path_factory.mktemp("entropy_matched")
    config = tiny_config(tmp_path_factory.getbasetemp() / "tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_matched, "POSITIONS", ("rerope",))
        patch.setattr(entropy_matched, "TEMPERATURES", ("", "entropy_matched"))
        records = entropy_matched.run(config, folder / "run")
    entropy_matched.write(records, folder / "results", folder / "run", 16)
    return records, folder / "results"


def test_every_temperature_on_every_position():
    assert len(entropy_matched.methods()) == 16
    assert entropy_matched.methods()[:5] == [
        "softmax", "softmax+infoscale", "softmax+log_length", "softmax+entropy_matched", "rerope"
    ]  # fmt: skip


def test_is_calibrated_and_told_apart(found):
    records, results = found
    loss = {(r["method"], r["length"]): r["value"] for r in records if r["metric"] == "loss"}
    assert loss.keys() == {(m, n) for m in ("rerope", "rerope+entropy_matched") for n in (16, 48)}
    # A factor of 1 and a root of 1, compiled apart: the same to rounding.
    assert loss["rerope", 16] == pytest.approx(loss["rerope+entropy_matched", 16], rel=1e-5)
    content = json.loads((results / "entropy_matched.json").read_text())
    assert content["records"] == records
    (calibration,) = content["calibrations"]
    assert calibration["method"] == "rerope+entropy_matched"
    line = "rerope+entropy_matched: heads' entropies on the training documents off by at most"
    assert line in (results / "entropy_matched.md").read_text()
    assert matplotlib.image.imread(results / "entropy_matched.png").ndim == 3
