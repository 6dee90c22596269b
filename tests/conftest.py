"""Settings for all tests. The environment comes first: JAX and others read it when imported."""

import collections
import functools
import gc
import importlib.metadata
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only, from TFDS and XLA in C++
# Most of the tests' time is XLA's, making code of which little is run twice: a tiny training takes
# 10 s to compile, and 2 s by these. Processes that tests start inherit them, and so compute the
# same to the bit. A file that needs what users get asks for `compiled_as_for_users`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jax").startswith("0.10."):  # others know no such flag, and abort
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# A run in the background ignores Ctrl-C, and so would all that the tests start, to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import absl.flags
import absl.logging
import hypothesis
import jax
import pytest

import tests

tests.share_checks_of_inner_functions()  # before lenext is imported

# A sum of arrays of different rank is more often a mistake than a wish.
jax.config.update("jax_numpy_rank_promotion", "raise")

absl.logging.set_verbosity(absl.logging.WARNING)
# Grain's worker processes read absl flags, which only app.run parses.
absl.flags.FLAGS.mark_as_parsed()

# The same examples every time, and no deadline: the first call of a jitted function compiles it.
hypothesis.settings.register_profile("lenext", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("lenext")


def pytest_addoption(parser):
    parser.addoption("--by-folder", action="store_true", help="print the seconds of each folder")


def pytest_terminal_summary(terminalreporter):
    """With --by-folder: seconds of all processes together, to hold against CONTRIBUTING's."""
    if not terminalreporter.config.option.by_folder:
        return
    seconds, tests = collections.Counter(), collections.Counter()
    for report in (report for some in terminalreporter.stats.values() for report in some):
        if isinstance(report, pytest.TestReport):
            place = report.nodeid.split("::")[0].split("/")[1:-1]
            folder = f"tests/{place[0]}" if place else "tests"
            seconds[folder] += report.duration
            tests[folder] += report.when == "setup"  # which each test has once
    terminalreporter.section("seconds by folder")
    for folder, total in seconds.most_common():
        terminalreporter.line(f"{total:7.0f} s {tests[folder]:6} tests  {folder}")


def pytest_collection_finish():
    # A twentieth of the time went into looking for garbage among modules, tests and programs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# They compile the same programs: a value with its gradients, and an output with its weights.
ONE_PROCESS = ("test_reference.py", "test_guarantees.py", "test_own_axes.py")


# A minute and more by themselves: first, or one process would be at the last of them while the
# other has nothing left.
LONGEST = (
    *ONE_PROCESS, "test_tpu.py", "test_run.py", "test_buckets.py", "test_calibrate.py",
    "test_meshes.py", "test_soak.py", "test_fuzz.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Sharing(LoadFileScheduling):
        """A file's tests in one process, and those of ONE_PROCESS in one."""

        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/attention" if file.endswith(ONE_PROCESS) else file

    config.option.loadscopereorder = False  # by how many tests a file has, not how long they take
    return Sharing(config, log)


@pytest.fixture(autouse=True, scope="session")
def compile_once(tmp_path_factory):
    """A short run is a second of work and four of compilation, mostly of what others compiled."""
    # A folder a process: two would see each other's half-written files.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class Compiled:
    """Stands for a jitted function: what it lowers is traced and compiled once."""

    def __init__(self, function, known, identity=()):
        self.function, self.known, self.identity = function, known, identity

    def lower(self, *args, **static):
        shapes = jax.tree.map(jax.typeof, args)
        key = *self.identity, jax.tree.structure(args), *jax.tree.leaves(shapes), *static.items()
        if key not in self.known:
            self.known[key] = self.function.lower(*args, **static).compile()
        self.compiled = self.known[key]
        return self

    def compile(self):
        return self.compiled


@pytest.fixture(autouse=True, scope="session")
def read_once():
    """Each run reads the whole standard library, for a fingerprint; this one's stays as it is."""
    from lenext.data import stdlib_source

    read, root = stdlib_source.source_fingerprint, stdlib_source.stdlib_root()
    cached = functools.cache(read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stdlib_source, "source_fingerprint", lambda r: (cached if r == root else read)(r)
        )
        yield


@pytest.fixture(autouse=True, scope="module")
def trace_once():
    """A file's runs of one config share their step, and its evaluations of one model their pass."""
    from lenext.evaluation import figures
    from lenext.training import loop

    validate, make, known, configs = loop.validate, loop.make_train_step, {}, []

    def noted(config):
        configs.append(config.to_json())
        return validate(config)

    def make_train_step(graphdef, *args, **kwargs):
        identity = graphdef, configs[-1], kwargs["mesh"]
        return Compiled(make(graphdef, *args, **kwargs), known, identity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", noted)
        patch.setattr(loop, "make_train_step", make_train_step)
        patch.setattr(figures, "_forward", Compiled(figures._forward, known))
        yield


@pytest.fixture(autouse=True)
def registered_for_a_test():
    """The methods that a test registers, as users' files do, are not there for the next one."""
    from lenext.attention.catalogue import CATALOGUE

    before = dict(CATALOGUE)
    yield
    if before != CATALOGUE:
        CATALOGUE.clear()
        CATALOGUE.update(before)


@pytest.fixture
def compiled_as_for_users():
    """XLA's optimisations, within a test that measures what it makes, or the last bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()  # or later tests would run what was compiled here, to other last bits


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where what TFDS prepares is kept: tests find what the first of them prepared."""
    return tmp_path_factory.getbasetemp() / "tfds"


@pytest.fixture
def config(data_dir):
    """Of a training of seconds."""
    # Not above: this file is imported before the types of lenext's arrays are to be checked.
    from tests.training.common import tiny_config

    return tiny_config(data_dir)
