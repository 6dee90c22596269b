import json

import pytest

from lenext.config import base_config, plain
from lenext.errors import UserError
from lenext.workdirs.workdir import check_run, read_run_config, write_run_config
from tests.training.common import snapshot


def test_a_free_folder_will_do(config, tmp_path):
    check_run(tmp_path, config)
    check_run(tmp_path / "not" / "there", config)
    assert read_run_config(tmp_path / "not" / "there") is None
    assert snapshot(tmp_path) == {}


def test_what_is_written_is_read_back(config, tmp_path):
    workdir = tmp_path / "a" / "b"
    write_run_config(workdir, config)
    assert read_run_config(workdir) == plain(config)
    check_run(workdir, config)


def test_the_config_is_written_once(config, tmp_path):
    write_run_config(tmp_path, config)
    config.eval.methods = "nope"
    write_run_config(tmp_path, config)
    assert read_run_config(tmp_path)["eval"]["methods"] != "nope"


def test_another_config_is_refused_by_every_key_that_differs(config, tmp_path):
    write_run_config(tmp_path, config)
    config.seed = 7
    config.model.method = "infoscale"
    config.optimizer.learning_rate = 0.5
    config.evaluators.validation.tokens = 99
    with pytest.raises(UserError) as error:
        check_run(tmp_path, config)
    for part in [
        "holds a run of another config",
        "seed (7, was 0)",
        "model.method ('infoscale', was 'softmax')",
        "optimizer.learning_rate (0.5, was 0.002)",
        "evaluators.validation.tokens (99, was 128)",
    ]:
        assert part in str(error.value)
    assert "model.dtype" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "bos", "eos"),
    [("bytes", "auto", "auto"), ("a/vocab.txt", "auto", "auto"), ("a/b.json", "none", "customary")],
)
def test_texts_of_earlier_runs_start_and_end_as_they_did(config, tmp_path, tokenizer, bos, eos):
    """Of these keys they know nothing; where there is no choice they may go on."""
    config.data.tokenizer = tokenizer
    stored = plain(config)
    del stored["data"]["bos"], stored["data"]["eos"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    data = read_run_config(tmp_path)["data"]
    assert (data["bos"], data["eos"]) == (bos, eos)
    if bos == "auto":
        check_run(tmp_path, config)
    stored["data"]["eos"] = "</s>"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_run_config(tmp_path)["data"]["eos"] == "</s>"


def test_how_often_a_run_logs_and_keeps_may_change(config, tmp_path):
    write_run_config(tmp_path, config)
    config.training.update(log_every=7, eval_every=7, checkpoint_every=7, keep_latest=7)
    check_run(tmp_path, config)


def test_more_steps_are_anothers_workdir_to_take(config, tmp_path):
    write_run_config(tmp_path, config)
    config.training.steps += 8
    with pytest.raises(UserError) as error:
        check_run(tmp_path, config)
    assert str(error.value) == (
        f"workdir {tmp_path} holds a run of another config: training.steps (20, was 12); for more "
        f"steps take another workdir, and --config.training.branch_from={tmp_path}, which goes on "
        "from its last checkpoint"
    )


def test_a_key_more_is_named(config, tmp_path):
    stored = plain(config)
    stored["training"]["momentum"] = 0.9
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config: training\.momentum \(gone\);"):
        check_run(tmp_path, config)


def older(config):
    """What a run wrote before there was a certain key, a section, and a key of the evaluators'."""
    stored = plain(config)
    del stored["training"]["z_loss"], stored["optimizer"], stored["evaluators"]["validation"]
    return stored


def test_a_run_older_than_a_key_had_its_default(tmp_path):
    config = base_config()
    del config.evaluators["validation"]
    (tmp_path / "config.json").write_text(json.dumps(older(base_config())))
    check_run(tmp_path, config)
    assert read_run_config(tmp_path) == plain(config)
    assert json.loads((tmp_path / "config.json").read_text()) == older(base_config())


def test_a_newer_key_that_is_set_is_named(config, tmp_path):
    stored = older(config)
    stored["evaluators"] = plain(config)["evaluators"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config.training.z_loss = 0.5
    with pytest.raises(UserError) as error:
        check_run(tmp_path, config)
    # The fixture's warm-up is another than the default.
    assert "config: optimizer.warmup_steps (3, was 100), training.z_loss (0.5, was 0.0);" in str(
        error.value
    )


def test_an_evaluator_is_never_taken_to_have_been_there(config, tmp_path):
    stored = plain(config)
    del stored["evaluators"]["validation"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config: evaluators\.validation \(new\);"):
        check_run(tmp_path, config)


def test_the_evaluation_section_may_differ(config, tmp_path):
    write_run_config(tmp_path, config)
    config.eval.update(methods="nope", lengths="5", documents=1)
    check_run(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "should be JSON"), ("", "should be JSON"), ("[1]", "should be a JSON object")],
)
def test_a_broken_config_is_named(config, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        check_run(tmp_path, config)


def test_a_file_is_no_workdir(config, tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError, match="should be a folder"):
        check_run(path, config)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        write_run_config(path / "under", config)


def test_imports_are_kept_by_absolute_paths(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.imports = "mine.py,a.module"
    write_run_config(tmp_path / "run", config)
    assert read_run_config(tmp_path / "run")["imports"] == f"{tmp_path}/mine.py,a.module"
    config.imports = "elsewhere.py"
    check_run(tmp_path / "run", config)  # is no other run


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\0"])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: should be "):
        read_run_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        read_run_config(tmp_path)
