import importlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.attention import make_method, method_names
from lenext.config import (
    base_config,
    differences,
    list_methods,
    plain,
    read_arg,
    read_lengths,
    read_methods,
    smoke,
)
from lenext.errors import UserError
from lenext.training import validate
from tests.training.common import REPOSITORY

FILES = {path.stem for path in (REPOSITORY / "configs").glob("[a-z]*.py")}
CONFIGS = sorted(FILES - {"finetune", "drope"})  # those are made of another run's


def wide(config):
    config.model.hidden_size = 1024


def deep(config):
    config.model.num_layers = 48


def sharp(config):
    config.model.method = "infoscale"


SIZES = {"wide": wide, "deep": deep}


class TestReadArg:
    def test_takes_a_size(self):
        assert read_arg("deep", SIZES).model.num_layers == 48

    @pytest.mark.parametrize("arg", [None, ""])
    def test_or_the_default(self, arg):
        config = read_arg(arg, SIZES)
        assert (config.model.hidden_size, config.model.num_layers) == (1024, 3)

    @pytest.mark.parametrize("arg", ["deep,smoke", "smoke,deep"])
    def test_smoke_shrinks_any(self, arg):
        expected = base_config()
        deep(expected)
        assert plain(read_arg(arg, SIZES)) == plain(smoke(expected))

    def test_smoke_extends_as_many_times(self):
        def stretched(config):
            config.data.update(positions="pose", target_length=1000, pose_chunks=50)

        data = read_arg("smoke", {"": stretched}).data
        # 1000 / 64 = 15.625 times 32 tokens, of which each may be a chunk.
        assert (data.train_length, data.target_length, data.pose_chunks) == (32, 500, 32)
        validate(read_arg("smoke", {"": stretched}))

    @pytest.mark.parametrize("arg", ["tiny", "wide,deep", "wide,tiny", "Wide", "smokes"])
    def test_refuses_what_it_does_not_know(self, arg):
        with pytest.raises(UserError) as error:
            read_arg(arg, SIZES)
        assert str(error.value) == f"config argument {arg!r}: choose from wide|deep, smoke"

    def test_takes_a_word_of_each_choice_in_any_order(self):
        methods = {"plain": lambda config: None, "sharp": sharp}
        config = read_arg("sharp,deep", SIZES, methods)
        assert (config.model.num_layers, config.model.method) == (48, "infoscale")
        assert read_arg("", SIZES, methods).model.method == "softmax"
        with pytest.raises(UserError, match=r"choose from wide\|deep, plain\|sharp, smoke"):
            read_arg("sharp,plain", SIZES, methods)

    def test_gives_a_config_of_its_own_each_time(self):
        read_arg("wide", SIZES).evaluators.validation.length = 7
        assert read_arg("wide", SIZES).evaluators.validation.length == 64


@pytest.mark.parametrize("name", CONFIGS)
class TestConfigFiles:
    def test_are_valid_with_and_without_smoke(self, name):
        get_config = importlib.import_module(f"configs.{name}").get_config
        whole, small = get_config(), get_config("smoke")
        for config in (whole, small):
            validate(config)
            assert plain(config).keys() == plain(base_config()).keys()
            read_lengths(config.eval.lengths)
            for method in list_methods(config.eval.methods, ""):
                read_methods(method, config.data.train_length)
        assert small.training.steps < 100 < whole.training.steps
        assert small.model.method == whole.model.method
        assert small.model.dtype == whole.model.dtype

    def test_evaluate_at_the_training_length_first(self, name):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert read_lengths(config.eval.lengths)[0] == config.data.train_length

    def test_say_how_they_are_run(self, name):
        text = importlib.import_module(f"configs.{name}").__doc__
        for program in ("train", "evaluate"):
            assert f"python -m lenext.{program} --config=configs/{name}.py" in text

    def test_refuse_other_arguments(self, name):
        with pytest.raises(UserError, match="config argument 'nonsense'"):
            importlib.import_module(f"configs.{name}").get_config("nonsense")


class TestBaseConfig:
    def test_a_misspelt_key_is_no_new_one(self):
        config = base_config()
        with pytest.raises(AttributeError, match="depth"):
            config.model.depth = 3
        with pytest.raises(KeyError, match="step"):
            config.training.update(step=5000)

    def test_a_value_keeps_its_type(self):
        with pytest.raises(TypeError):
            base_config().training.steps = "many"

    def test_evaluators_can_be_added(self):
        config = base_config()
        config.evaluators.long = config.evaluators.validation.copy_and_resolve_references()
        config.evaluators.long.length = 512
        assert config.evaluators.validation.length == 64


class TestReadMethods:
    @pytest.mark.parametrize("name", method_names())
    def test_every_name(self, name):
        assert read_methods(name, 16) == (make_method(name, train_length=16),)

    def test_patterns(self):
        assert read_methods("rerope(window=8)+infoscale | softmax", 16) == (
            make_method("rerope(window=8)+infoscale", train_length=16),
            make_method("softmax", train_length=16),
        )

    @pytest.mark.parametrize("text", ["", " "])
    def test_none(self, text):
        with pytest.raises(UserError, match="should name at least one method"):
            read_methods(text, 16)

    @pytest.mark.parametrize(
        "text",
        ["nope2", "rerope(window=0)", "rerope(8)", "rerope(", "softmax-rerope", "1", "a b", "|"],
    )
    def test_mistakes_are_the_users(self, text):
        with pytest.raises(UserError):
            read_methods(text, 16)


class TestReadLengths:
    @pytest.mark.parametrize(
        ("text", "lengths"), [("64", [64]), ("64, 256,2", [64, 256, 2]), ("8,8,16,8", [8, 16])]
    )
    def test_whole_numbers(self, text, lengths):
        assert read_lengths(text) == lengths

    @pytest.mark.parametrize("text", ["", ",", "1", "0", "-4", "64,1", "6.4", "1e3", "x", "²"])
    def test_nothing_else(self, text):
        with pytest.raises(UserError, match="should be whole numbers of 2 and more"):
            read_lengths(text)


class TestDifferences:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
        max_leaves=8,
    )

    @given(st.dictionaries(st.text("abc", min_size=1), values, max_size=3))
    def test_none_to_itself(self, tree):
        assert differences(tree, json.loads(json.dumps(tree))) == []

    def test_every_key_by_its_path(self):
        ours = {"a": 1, "b": {"c": "x", "d": {"e": 2.5}, "new": 1}, "f": {"g": 1}}
        theirs = {"a": 1, "b": {"c": "y", "d": {"e": 2}, "old": 1}, "f": 3}
        assert differences(ours, theirs) == [
            "b.c ('x', was 'y')",
            "b.d.e (2.5, was 2)",
            "b.new (new)",
            "b.old (gone)",
            "f ({'g': 1}, was 3)",
        ]


def test_plain_survives_json():
    config = plain(base_config())
    assert json.loads(json.dumps(config)) == config


class TestSmoke:
    def test_leaves_the_method_and_the_data_alone(self):
        config = base_config()
        config.model.update(method="lssar", dtype="bfloat16", dropout=0.3)
        config.data.mask_rate = 0.3
        config.eval.methods = "lssar,infoscale"
        small = smoke(config.copy_and_resolve_references())
        assert small.model.method == "lssar"
        assert small.model.dtype == "bfloat16"
        assert small.data.mask_rate == 0.3
        assert small.eval.methods == "lssar,infoscale"
        assert small.optimizer.learning_rate == config.optimizer.learning_rate

    def test_trains_and_evaluates_at_one_length(self):
        config = smoke(base_config())
        lengths = {evaluator.length for evaluator in config.evaluators.values()}
        assert lengths == {config.data.train_length}
        assert read_lengths(config.eval.lengths)[0] == config.data.train_length
