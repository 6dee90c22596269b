"""Each mistake is one line on stderr, exit code 2, and leaves nothing behind."""

import shutil

import pytest

from tests.training.common import snapshot

QUICKSTART = "--config=configs/quickstart.py:smoke"


@pytest.fixture(params=["train", "evaluate"])
def program(request):
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_left(request, tmp_path):
    """Whatever a test here gets wrong, its workdir stays as it was: missing, if it was."""
    before = snapshot(tmp_path)
    yield
    workdir_before = {k: v for k, v in before.items() if k.startswith("run")}
    assert {k: v for k, v in snapshot(tmp_path).items() if k.startswith("run")} == workdir_before


class TestCommandLine:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--config.eval.typo=1"], "typo"),
            (["--config.modle.method=softmax"], "modle"),
            (["--config.model.methods=softmax"], "methods"),
            (["--config.training.steps=many"], "steps=many: should be a whole number"),
            (["--config.training.steps=1.5"], "steps=1.5: should be a whole number"),
            (["--config.training.steps=1e3"], "a whole number; did you mean 1000?"),
            (["--config.optimizer.learning_rate=fast"], "rate=fast: should be a number"),
            (["--config.model.use_bias=perhaps"], "use_bias=perhaps: should be true or false"),
            (["--config.training=5"], "config.training: is a section; override its keys, such as"),
            (["--config.data.needles[0]=1"], "needles[0]; did you mean --config.data.needles?"),
            (["--config.training.=5"], "config has no key training."),
            (["--config.steps=5"], "no key steps; did you mean --config.training.steps?"),
            (["--config.training.stesp=5"], "no key training.stesp; did you mean --config.tr"),
            (["--steps", "5"], "flag 'steps'; did you mean --config.training.steps?"),
            (["--lr=5"], "Unknown command line flag 'lr'"),
            (["--wrokdir=x"], "flag 'wrokdir'; did you mean --workdir?"),
            (["--flagfile=missing"], "Unable to open flagfile"),
            (["stray"], "argument 'stray': should be a flag such as --config.key=value"),
            (["softmax,rerope", "more"], "argument 'softmax,rerope': should be a flag"),
        ],
    )
    def test_what_is_not_known(self, program, fails, words, changes, message):
        assert message in fails(program, *words, *changes)

    def test_no_config(self, program, fails, tmp_path):
        workdir = tmp_path / "run"
        expected = {
            "train": f"workdir {workdir}: holds no run; begin one by --config=configs/NAME.py",
            "evaluate": f"workdir {workdir}: holds no run; train there first",
        }
        assert fails(program, f"--workdir={workdir}") == expected[program]

    @pytest.mark.parametrize("flags", [[], ["--workdir="]])
    def test_no_workdir(self, program, fails, flags):
        assert fails(program, QUICKSTART, *flags) == "--workdir=DIR is missing"

    def test_nothing_at_all(self, program, fails):
        assert "--config=" in fails(program)

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("configs/quickstart.py:nonsense", "config argument 'nonsense': choose from smoke"),
            ("configs/quickstart.py:smoke,nonsense", "'smoke,nonsense': choose from smoke"),
            ("configs/gau_alpha.py:tiny", "config argument 'tiny': choose from small"),
            ("configs/gau_alpha.py:small,base", "config argument 'small,base'"),
            ("configs/missing.py", "--config=configs/missing.py: there is no such file"),
            ("configs/quikstart.py", "no such file; did you mean configs/quickstart.py?"),
            ("configs", "--config=configs: there is no such file"),
            ("README.md", ": raised SyntaxError: "),
            (":smoke", "--config=configs/NAME.py[:ARGUMENT] is missing"),
        ],
    )
    def test_configs_that_are_none(self, program, fails, tmp_path, argument, message):
        assert message in fails(program, f"--config={argument}", f"--workdir={tmp_path / 'run'}")

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("def get_config(:", ", line 1: raised SyntaxError: invalid syntax"),
            ("import nowhere_at_all", ", line 1: raised ModuleNotFoundError: No module named"),
            ("\n\nimport sys\nsys.exit(3)", ", line 4: raised SystemExit: 3"),
            ("def get_config():\n  return {}['a']", ", line 2: raised KeyError: 'a'"),
            ("def get_config():\n  return 3", "should give a lenext.config.base_config(), with"),
            ("def get_config():\n  pass", "other values; it gave NoneType"),
            ("get_config = 3", "should define get_config"),
        ],
    )
    def test_configs_of_ones_own_that_fail(self, program, fails, tmp_path, source, message):
        (tmp_path / "mine.py").write_text(source)
        said = fails(program, f"--config={tmp_path}/mine.py", f"--workdir={tmp_path / 'run'}")
        assert f"{tmp_path}/mine.py" in said
        assert message in said


class TestTraining:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                "model.method=sotfmax",
                "unknown method 'sotfmax'; did you mean 'softmax'? choose from softmax, ",
            ),
            ("model.method=softmax|sotfmax", "unknown method 'sotfmax'"),
            ("model.method=dual_chunk", "method 'dual_chunk': is for causal models only"),
            ("model.method=rerope(depth=3)", "method 'rerope' has no option 'depth'; choose from"),
            ("model.method=rerope(window=wide)", "method 'rerope(window=wide)': should be a name"),
            ("model.method=rerope(window=0)", "window=0: should be at least 1"),
            ("model.method=rerope(window=4", "should be a name"),
            ("model.method=softmax++rerope", "method 'softmax++rerope': should be a name"),
            ("model.method=", "should name at least one method"),
            ("model.method=rerope(rotary_dim=640)", "rotary_dim=640: should be at most head_dim, "),
            ("model.method=longrope(factors=(1,))", "1 factors: should be "),
            ("model.family=mamba", "config.model.family='mamba': should be one of gau"),
            ("model.dtype=float16", "config.model.dtype='float16': should be one of float32, bfl"),
            ("model.num_layers=0", "config.model.num_layers=0: should be at least 1"),
            ("model.dropout=1.0", "config.model.dropout=1.0: should be from 0 to below 1"),
            ("model.norm_epsilon=1e-40", "config.model.norm_epsilon=1e-40: should be 0, for the"),
            ("model.key_size=7", "config.model.key_size=7: should be even"),
            ("data.dataset=wikipedia", "unknown dataset 'wikipedia'; choose from: stdlib_source"),
            ("data.tokenizer=words", "'words'"),
            ("data.train_length=1", "config.data.train_length=1: should be at least 2"),
            (
                "data.train_length=99999999",
                "training length 99999999: no document in",
            ),
            ("data.mask_rate=0", "masking rate must be above 0"),
            ("data.batch_size=0", "config.data.batch_size=0: should be at least 1"),
            ("optimizer.name=sgd", "config.optimizer.name='sgd': should be one of adamw"),
            ("optimizer.learning_rate=0", "config.optimizer.learning_rate=0.0: should be above 0"),
            (
                "optimizer.learning_rate=nan",
                "learning_rate=nan: should be above 0",
            ),
            ("optimizer.warmup_steps=-1", "config.optimizer.warmup_steps=-1: should be at least 0"),
            ("optimizer.clip_norm=0", "config.optimizer.clip_norm=0.0: should be above 0"),
            ("optimizer.b2=1", "config.optimizer.b2=1.0: should be from 0 to below 1"),
            ("training.steps=2147483648", "training.steps=2147483648: should be below 2^31"),
            ("training.steps=0", "config.training.steps=0: should be at least 1"),
            ("training.best_metric=f1", "config.training.best_metric='f1': should be one of eval/"),
            ("evaluators.validation.type=bleu", "config.evaluators.validation.type='bleu'"),
            ("evaluators.validation.length=99999999", "evaluation length 99999999: no document"),
            ("seed=-1", "config.seed=-1: should be from 0 to 2^32 - 1"),
        ],
    )
    def test_values(self, fails, words, change, message):
        assert message in fails("train", *words, f"--config.{change}")

    def test_the_longest_document_is_named(self, fails, words):
        error = fails("train", *words, "--config.data.train_length=99999999")
        assert "is that long; the longest, " in error
        assert error.endswith(" tokens")

    def test_workdir_that_is_a_file(self, fails, words, tmp_path):
        (tmp_path / "file").write_text("mine")
        error = fails("train", *words, f"--workdir={tmp_path / 'file'}")
        assert error == f"workdir {tmp_path / 'file'}: should be a folder"
        assert (tmp_path / "file").read_text() == "mine"

    # A superuser may write anywhere but here, so this stands for all that cannot be written.
    @pytest.mark.parametrize("place", ["file/under", "/proc/run"])
    def test_workdir_that_cannot_be_written(self, fails, words, tmp_path, place):
        (tmp_path / "file").touch()
        error = fails("train", *words, f"--workdir={tmp_path / place}")
        assert error.startswith(f"workdir {tmp_path / place}: cannot be written (")

    def test_data_dir_that_cannot_be_written(self, fails, words, tmp_path):
        (tmp_path / "file").touch()
        error = fails("train", *words, f"--config.data.data_dir={tmp_path / 'file'}")
        assert "give a writable data_dir" in error

    def test_workdir_of_another_run(self, fails, words, trained):
        before = snapshot(trained)
        error = fails("train", *words, f"--workdir={trained}")
        assert "another config: training.steps (12, was 2); for more steps take" in error
        assert snapshot(trained) == before


class TestEvaluation:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                "methods=softmax,sotfmax",
                "unknown method 'sotfmax'; did you mean 'softmax'? choose from softmax, ",
            ),
            (
                "methods=pi,dual_chunk+infoscale",
                "'dual_chunk+infoscale': is for causal models only",
            ),
            ("methods=rerope(depth=3)", "method 'rerope' has no option 'depth'; choose from"),
            (
                "methods=rerope(window=",
                "should be a name, names joined by +, or name(",
            ),
            ("methods=rope+", "should be a name"),
            ("methods=rerope(rotary_dim=640)", "rotary_dim=640: should be at most head_dim, "),
            ("methods=,", "config.eval.methods: should name at least one method"),
            ("lengths=1", "config.eval.lengths '1': should be whole numbers of 2 and more"),
            ("lengths=64,-2", "config.eval.lengths '64,-2': should be whole numbers of 2 and more"),
            (
                "lengths=64;128",
                "config.eval.lengths '64;128': should be whole numbers of 2 and more",
            ),
            ("lengths=sixty-four", "config.eval.lengths 'sixty-four': should be whole numbers"),
            (
                "lengths=16,99999999",
                "evaluation length 99999999: no document in split",
            ),
            ("split=exam", "unknown split 'exam' of stdlib_source; choose from: train, validation"),
            ("documents=0", "config.eval.documents=0: should be at least 1"),
            ("seed=-1", "config.eval.seed=-1: should be from 0 to 2^32 - 1"),
        ],
    )
    def test_values(self, fails, words, trained, change, message):
        before = snapshot(trained)
        error = fails("evaluate", *words, f"--workdir={trained}", f"--config.eval.{change}")
        assert message in error
        assert snapshot(trained) == before

    def test_sizes_that_are_not_the_runs_are_named(self, fails, words, trained):
        before = snapshot(trained)
        error = fails("evaluate", *words, f"--workdir={trained}", "--config.model.key_size=6")
        assert error == f"config.model.key_size (6, was 8): should be as {trained} was trained"
        assert snapshot(trained) == before

    @pytest.mark.parametrize("place", ["run", "file", "empty", "/proc/run"])
    def test_workdir_without_a_checkpoint(self, fails, words, tmp_path, place):
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        workdir = tmp_path / place
        error = fails("evaluate", *words, f"--workdir={workdir}")
        assert error == f"workdir {workdir}: holds no checkpoint; train there first"
        assert not list((tmp_path / "empty").iterdir())

    def test_workdir_whose_config_is_broken(self, fails, words, trained, tmp_path):
        workdir = shutil.copytree(trained, tmp_path / "broken")
        (workdir / "config.json").write_text('{"data": ')
        assert "config.json: should be JSON" in fails("evaluate", *words, f"--workdir={workdir}")

    def test_results_that_cannot_be_written(self, fails, words, trained, tmp_path):
        workdir = shutil.copytree(trained, tmp_path / "copy")
        (workdir / "eval").touch()
        error = fails("evaluate", *words, f"--workdir={workdir}")
        assert error.startswith(f"{workdir / 'eval'}: cannot be written (")
