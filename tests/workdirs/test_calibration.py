"""A calibration is of the weights and methods it was measured on; how it is: test_calibrate.py."""

import json

import pytest

from lenext.config import read_methods
from lenext.errors import UserError
from lenext.models import build_model
from lenext.workdirs.calibration import FILE, under_method
from lenext.workdirs.pretrained import Pretrained

METHOD = "rerope+entropy_matched"
GOOD = {
    "method": METHOD,
    "step": 2,
    "weights": "params",
    "identity": "these",
    "sources": {},
    "parts": [{}, {}],
}


@pytest.fixture
def run(config):
    methods = read_methods("softmax", config.data.train_length)
    return Pretrained(build_model(config.model, methods, 258, 0), config, 2, "params", "", "these")


def found(run, folder, entry):
    text = entry if isinstance(entry, str) else json.dumps({"calibrations": [entry]})
    (folder / FILE).write_text(text)
    return under_method(run, folder, run.read_methods(METHOD))[1]


def test_what_fits_is_taken(run, tmp_path):
    earlier = {key: value for key, value in GOOD.items() if key not in ("identity", "sources")}
    for entry in (GOOD, earlier):
        assert found(run, tmp_path, entry) is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "on params of step 3, and these are params of step 2; calibrate again"),
        ({"identity": "others"}, "on other weights of step 2, which was trained anew since"),
        ({"sources": {"mine": []}}, "the source of rerope.entropy_matched has changed since"),
        ({"parts": [{"temperature": 3}, {}]}, "has other parts than rerope"),
        ({"parts": 3}, "has other parts than rerope"),
        ({"method": 3}, "should be as lenext.evaluate --calibrate writes it"),
    ],
)
def test_what_does_not_is_refused(run, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        found(run, tmp_path, GOOD | change)


@pytest.mark.parametrize("text", ["", "[]", '{"calibrations": 3}', "[" * 100_000, "\0"])
def test_what_is_no_calibration(run, tmp_path, text):
    with pytest.raises(UserError, match=r"should be as lenext.evaluate --calibrate writes it"):
        found(run, tmp_path, text)
