import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from lenext.training.metrics import MetricsWriter
from tests.training.common import read_metrics


def write(workdir, steps, resume_step=0):
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step}, {"tokens_per_second": 7.0})
    writer.close()


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def board(workdir):
    """(step, name, value) of every TensorBoard event, file by file."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[12 + length + 4 :]
    return found


def test_one_record_a_line(tmp_path):
    write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'


def test_timings_go_to_tensorboard_only(tmp_path):
    write(tmp_path, [1, 2])
    assert board(tmp_path) == [
        (1, "loss", 1.0), (1, "tokens_per_second", 7.0),
        (2, "loss", 0.5), (2, "tokens_per_second", 7.0),
    ]  # fmt: skip
    assert all("tokens_per_second" not in record for record in read_metrics(tmp_path))


def test_a_record_is_there_before_the_next_is_made(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 1.0}, {})
    assert steps(tmp_path) == [1]
    writer.close()


@pytest.mark.parametrize(("resume_step", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [*range(1, 6)])])  # fmt: skip
def test_resuming_drops_what_is_taken_again(tmp_path, resume_step, kept):
    write(tmp_path, range(1, 6))
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
def test_text_gives_the_float32_back(tmp_path_factory, value):
    workdir = tmp_path_factory.getbasetemp()
    writer = MetricsWriter(workdir, 0)
    for scalar in (value, np.float32(value)):
        writer.write(1, {"loss": scalar}, {})
    writer.close()
    texts = (workdir / "metrics.jsonl").read_text().splitlines()
    assert texts[0] == texts[1]
    back = np.float32(json.loads(texts[0])["loss"])
    assert back.tobytes() == np.float32(value).tobytes()


def test_resuming_tells_tensorboard_to_purge(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [3], resume_step=2)
    # Readers drop what a file says of steps from its start event's on, in files before it.
    starts = [
        event_pb2.Event.FromString(data[12 : 12 + int.from_bytes(data[:8], "little")])
        for data in (p.read_bytes() for p in sorted((tmp_path / "tensorboard").iterdir()))
    ]
    assert RecordWriter is not None
    assert len(starts) >= 1
