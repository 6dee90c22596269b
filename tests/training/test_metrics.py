import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from lenext.errors import UserError
from lenext.training.metrics import MetricsWriter
from tests.training.common import read_metrics


def write(workdir, steps, resume_step=0):
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step}, {"tokens_per_second": 7.0})
    writer.close()


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def events(workdir):
    """TensorBoard's events: each between its length, 12 bytes with a checksum, and 4 of another."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            end = 12 + int.from_bytes(data[:8], "little")
            found.append(event_pb2.Event.FromString(data[12:end]))
            data = data[end + 4 :]
    return found


def test_one_record_a_line(tmp_path):
    write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'


def test_timings_go_to_tensorboard_only(tmp_path):
    write(tmp_path, [1, 2])
    shown = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert shown == [
        (1, "loss", 1.0), (1, "tokens_per_second", 7.0),
        (2, "loss", 0.5), (2, "tokens_per_second", 7.0),
    ]  # fmt: skip
    assert all("tokens_per_second" not in record for record in read_metrics(tmp_path))


def test_a_record_is_there_before_the_next_is_made(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 1.0}, {})
    assert steps(tmp_path) == [1]
    writer.close()


@pytest.mark.parametrize(
    ("resume_step", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])]
)
def test_resuming_drops_what_is_taken_again(tmp_path, resume_step, kept):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [], resume_step)
    assert steps(tmp_path) == kept


def test_no_step_stands_twice(tmp_path):
    write(tmp_path, range(1, 6))
    write(tmp_path, range(4, 8), resume_step=3)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "{", '{"step": 3, "loss": 0.3'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, [3], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_an_empty_file_is_no_trouble(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    write(tmp_path, [1])
    assert steps(tmp_path) == [1]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_text_gives_the_float32_back(value):
    with tempfile.TemporaryDirectory() as folder:
        writer = MetricsWriter(Path(folder), 0)
        writer.write(1, {"loss": value}, {})
        writer.close()
        text = (Path(folder) / "metrics.jsonl").read_text()
    back = np.float32(json.loads(text)["loss"])
    assert back.tobytes() == np.float32(value).tobytes()
    # Nine digits tell any float32: 0.1, not 0.10000000149011612.
    number = text.partition('"loss": ')[2].partition("}")[0]
    assert len(re.sub(r"e.*|[-.]", "", number).strip("0")) <= 9


def test_a_resumed_run_purges_later_steps_from_tensorboard(tmp_path):
    write(tmp_path, [3], resume_step=2)
    # TensorBoard drops what earlier files say of steps from a session's start on.
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [3]


def test_a_fresh_run_purges_nothing(tmp_path):
    write(tmp_path, [1])
    assert not any(event.HasField("session_log") for event in events(tmp_path))


@pytest.mark.parametrize("line", ["", "3", "{}", '{"step": "x"}', '{"step": null}', "[" * 9**6])
def test_what_no_run_wrote(tmp_path, line):
    text = '{"step": 1}\n' + line + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: should be a record of metrics"):
        MetricsWriter(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == text
