"""The README and docs/: their code runs, their catalogue is the code's, tables are the results'.

Commands are read, not run: their modules, flags, config keys and methods are those that there are.
"""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import run as experiments_run
from experiments.needles import BARE
from experiments.sizes import SIZES
from lenext.__main__ import COMMANDS
from lenext.attention import Choice, Entry, attend, make_method, register
from lenext.attention.axes.method import init_params
from lenext.attention.catalogue import CATALOGUE
from lenext.attention.describe import markdown_page, markdown_table
from lenext.attention.grammar import TRAINED, parse_layers, split_list
from lenext.config import ModelConfig, base_config, read_methods
from lenext.evaluation.results import Evaluated
from lenext.models import Decoder, take_apart
from lenext.reporting.records import Cell
from lenext.reporting.tables import select, to_csv, with_interval
from lenext.sweeps.experiment import collect, write
from lenext.training import train
from tests.cli.conftest import untrained_run
from tests.training.common import tiny_config, tiny_decoder_config

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
DOCS = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text()
    for path in sorted((REPOSITORY / "docs").glob("*.md"))
}
PAGES = {"README.md": README} | DOCS
BLOCKS = {
    (page, number): code
    for page, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
}
RUN = (
    "row_statistics(", "MultiHeadAttention(", "attention_maps(", "choose_implementation(",
    "register(", "EXPERIMENT =", "simple_evaluate(", "def gates(",
)  # fmt: skip
"""What tells the blocks apart that are run below."""

REGISTERED = "power_length"
"""The method that pages register."""


def block(marker):
    """The code with a marker, which is the same wherever it stands."""
    assert marker in RUN
    found = {code for code in BLOCKS.values() if marker in code}
    (code,) = found
    return code


def test_every_block_is_run():
    for where, code in BLOCKS.items():
        assert sum(marker in code for marker in RUN) == 1, where


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_page_of_methods_is_what_the_catalogue_gives():
    """`python -m lenext.methods --markdown > docs/methods.md` makes it anew."""
    page = DOCS["docs/methods.md"]
    assert page == markdown_page()
    section = page.split("\n## The catalogue\n\n")[1]
    assert section.startswith(markdown_table() + "\nn is the number of keys")


def test_the_readme_has_six_rows_of_it():
    section = README.split("\n## Methods\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert set(rows) <= set(markdown_table().splitlines())


def test_the_quickstart_s_table_is_the_same_everywhere():
    tables = re.findall(r"```\naccuracy .*?protocol mlm15\n```", README, flags=re.DOTALL)
    assert len(tables) == 1
    assert tables[0] in DOCS["docs/index.md"]


def test_the_real_model_s_table_holds_what_the_results_hold():
    content = json.loads((REPOSITORY / "experiments/results/real_model.json").read_text())
    records = select(content["records"], metric="loss", positions=None)
    figures = {(r["method"], r["length"]): f"{r['value']:.3f}" for r in records}
    texts = [
        re.findall(r"```\n(loss  .*?); protocol full_context\n```", page, flags=re.DOTALL)
        for page in (README, DOCS["docs/checkpoints.md"])
    ]

    def shown(table):
        head, *rows, documents = table.splitlines()
        lengths = list(map(int, head.split()[1:]))
        return documents, {
            (row.split()[0], n): value
            for row in rows
            for n, value in zip(lengths, row.split()[1:], strict=True)
        }

    (some,) = map(shown, texts[0])
    (whole,) = (table for table in map(shown, texts[1]) if table[0] == some[0])
    assert whole[1] == figures
    assert some[1].items() <= whole[1].items()
    assert len(some[1]) >= 7 * 3


@pytest.mark.parametrize(
    ("name", "metric", "heading"),
    [
        ("infoscale_table", "accuracy", "accuracy of a GAU"),
        ("softplus_table", "loss", "loss in"),
        ("associative_recall", "retrieved", "retrieved |"),
    ],
)
def test_tables_hold_what_the_results_hold(name, metric, heading):
    """Each of their rows is a row of the committed JSON, at the lengths that it shows."""
    content = json.loads((REPOSITORY / f"experiments/results/{name}.json").read_text())
    records = select(content["records"], metric=metric, positions=None)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        rows.setdefault(record["method"], {})[str(record["length"])] = with_interval(record)
    (table,) = (text.split(f"\n| {heading}")[1] for text in PAGES.values()
                if f"\n| {heading}" in text)  # fmt: skip
    table = table.split("\n\n")[0].splitlines()
    lengths = [cell.strip() for cell in table[0].split("|") if cell.strip().isdigit()]
    assert len(lengths) >= 4
    assert len(table) >= 10
    for line in table[2:]:
        cells = [cell.strip() for cell in line.split("|")]
        shown = dict(zip(lengths, cells[-1 - len(lengths) : -1], strict=True))
        assert any(shown.items() <= row.items() for row in rows.values()), line


def test_the_table_of_synthetic_tasks_holds_what_the_results_hold():
    content = json.loads((REPOSITORY / "experiments/results/synthetic.json").read_text())
    figures = {
        record["method"]: with_interval(record)
        for record in select(content["records"], metric="retrieved", positions=None, length=768)
    }
    table = DOCS["docs/results.md"].split("\n| right at 768 |")[1].split("\n\n")[0].splitlines()
    tasks = [cell.strip() for cell in table[0].split("|") if cell.strip()]
    assert len(tasks) == 6
    assert len(table) == 2 + 9
    for line in table[2:]:
        name, *shown = (cell.strip() for cell in line.split("|")[1:-1])
        method = name.split("`")[1]
        own = f"softmax → {method}" if name.startswith("…") else method
        assert shown == [figures[f"{task}: {own}"] for task in tasks], line


def test_the_table_of_temperatures_holds_what_the_results_hold():
    content = json.loads((REPOSITORY / "experiments/results/entropy_matched.json").read_text())
    figures = {
        (record["method"], record["length"]): f"{record['value']:.3f}"
        for record in select(content["records"], metric="accuracy", positions=None)
    }
    section = DOCS["docs/results.md"].split("\n## Holding the entropy\n")[1]
    head, *rows = section.split("```\n")[1].splitlines()
    assert len(rows) == 16
    for row in rows:
        name, *shown = row.split()
        lengths = map(int, head.split()[1:])
        assert shown == [figures[name, length] for length in lengths], row


def test_the_table_of_times_holds_what_the_benchmark_holds():
    path = REPOSITORY / "experiments/results/benchmarks/attention.json"
    content = json.loads(path.read_text())
    seconds = {
        (record["candidate"].removesuffix(", auto"), str(record["length"])): record["seconds"]
        for record in select(content["records"], direction="forward")
    }
    memory = {
        (record["method"], str(record["length"])): record["temp_bytes"]
        for record in select(content["memory"], direction="forward", implementation="auto")
    }
    candidates = {
        "PyTorch SDPA": "torch SDPA", "PyTorch, written out": "torch eager",
        "jax.nn.dot_product_attention": "jax.nn",
    }  # fmt: skip
    table = DOCS["docs/long_contexts.md"].split("\n| forward |")[1].split("\n\n")[0].splitlines()
    lengths = [cell.replace(" ", "") for cell in table[0].split("|")[:-2]]
    assert len(table) == 2 + 6
    for line in table[2:]:
        name, *cells, held = (cell.strip(" `") for cell in line.split("|")[1:-1])
        candidate = candidates.get(name, name)
        for length, cell in zip(lengths, cells, strict=True):
            if cell:
                number, unit = cell.split()
                value = seconds[candidate, length] * {"s": 1, "ms": 1000}[unit]
                decimals = len(number.partition(".")[2])
                assert f"{value:.{decimals}f}" == number, line
        if held:
            assert held == f"{memory[candidate, '65536'] / 2**20:.0f} MB", line


def test_the_columns_explained_are_those_of_results_csv():
    sums = {"positions": None, "predictions": 6, "numerator": [1.0, 2.0], "denominator": [3.0, 3.0]}
    cell = Cell(
        length=64, protocol="mlm15", documents=[0, 1], sequences=2, tokens=128, seconds=0.5,
        compile_seconds=0.5, peak_bytes=8, flops=8.0, cache_bytes=None, unsuited=[],
        sums=[{"metric": metric, **sums} for metric in ("accuracy", "entropy")],
    )  # fmt: skip
    provenance = {
        "trained": {"model": {"method": "softmax"}},
        "seeds": [0],
        "config": {"eval": {"bootstrap": 4, "seed": 0}},
    }
    found = Evaluated(provenance, {"softmax": [cell]}, [], "accuracy", [])
    columns = to_csv(found.records()).splitlines()[0].split(",")
    section = DOCS["docs/training.md"].split("\n### The columns of results.csv\n")[1]
    rows = section.split("\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    explained = [name for row in rows for name in re.findall("`([^`]*)`", row.split("|")[1])]
    assert sorted(explained) == sorted(columns)


def test_surface_example():
    code = block("row_statistics(")
    names = {}
    exec(code, names)
    assert names["out"].shape == (1, 512, 4, 64)
    assert names["weights"].shape == (1, 4, 512, 512)
    assert names["entropy"].shape == (1, 4, 512)


def test_flax_example():
    names = {}
    exec(block("row_statistics(") + block("MultiHeadAttention("), names)
    assert names["hidden"].shape == (1, 512, 64)


def test_maps_example(monkeypatch, tmp_path, data_dir):
    """On a run of two steps, whose model has two layers."""
    code = block("attention_maps(")
    config = tiny_config(data_dir)
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    train(config, tmp_path / "runs" / "quickstart")
    (tmp_path / "README.md").write_text(README)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["maps"].shape == (2, 1, 1, 64, 512)
    np.testing.assert_allclose(names["maps"].sum(axis=-1), 1.0, rtol=1e-5)
    assert names["rows"].entropy.shape == (2, 1, 1, 512)


def test_the_needles_table_holds_what_the_results_hold():
    content = json.loads((REPOSITORY / "experiments/results/needles.json").read_text())
    section = DOCS["docs/measures.md"].split("\n## Where they part\n")[1].split("\n## ")[0]
    head, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    assert head == "| at 8192 / 16384 | loss | drawn | preferred |"
    assert {row.split("`")[1] for row in rows} == set(BARE)

    def figure(metric, method):
        records = select(content["records"], metric=metric, positions=None)
        values = {r["length"]: r["value"] for r in records if r["method"] == method}
        return f"{values[8192]:.3f} / {values[16384]:.3f}"

    for row in rows:
        method = row.split("`")[1]
        figures = [figure(metric, method) for metric in ("loss", "retrieved", "preferred")]
        assert [cell.strip() for cell in row.split("|")[2:5]] == figures


def test_own_gates_example():
    """In a model: what it learns has a gradient, and decoding gives what the whole text gives."""
    names = {"__name__": "example"}
    exec(block("def gates("), names)
    register("input_sharpness", Entry(temperature=names["InputSharpness"]()))
    config = ModelConfig(
        vocab_size=13, hidden_size=8, intermediate_size=12, num_heads=2, key_size=4, num_layers=2
    )
    model = Decoder(config, read_methods("input_sharpness", 8), rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 20), 0, 13)

    def loss(model):
        return jnp.sum(model(tokens)[:, -1] ** 2)

    (gradient,) = (
        x[...]
        for path, x in nnx.to_flat_state(nnx.grad(loss)(model))
        if "temperature_gates" in path
    )
    assert np.all(np.any(gradient, axis=1))  # of each layer, of what it takes of its input
    whole = model(tokens)[:, -1]
    apart = take_apart(model)
    stepped, _ = apart.step(tokens, jnp.int32(0), apart.empty_caches(1, 20))
    np.testing.assert_allclose(stepped, whole, atol=1e-5)


def test_own_method_example():
    code = block("register(")
    names = {"__name__": "example"}
    exec(code, names)
    method = names["method"]
    assert method == make_method("rerope+power_length(exponent=0.2)", train_length=64)
    assert method.position == make_method("rerope", train_length=64).position
    assert init_params(method, 4, 16) == {}
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 128, 2, 16)) for i in range(3))
    # The law's factor at n = 128, folded into the query of the method without it.
    plain = make_method("rerope", train_length=64)
    expected = attend(q * (128 / 64) ** 0.2, k, v, plain)
    np.testing.assert_allclose(attend(q, k, v, method), expected, atol=1e-5)
    blocks = attend(q, k, v, method, implementation="blockwise", block_size=48)
    np.testing.assert_allclose(blocks, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"exponent=-1\.0: should be at least 0"):
        make_method("power_length(exponent=-1.0)", train_length=64)
    assert jnp.all(jnp.isfinite(blocks))


def test_choice_example(capsys):
    names = {}
    exec(block("choose_implementation("), names)
    said = capsys.readouterr().out
    assert said.startswith("Choice(")
    choice = names["choose_implementation"](
        names["x"], names["x"], names["x"], make_method("lssar", train_length=1024), causal=True
    )
    assert isinstance(choice, Choice)
    assert str(choice) == said.rstrip("\n")


def test_table_example(data_dir, tmp_path):
    """An experiment of one's own, as the runner takes it, shrunk to a run of seconds."""
    code = block("EXPERIMENT =")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    (tmp_path / "rerope_windows.py").write_text(code)
    config = tiny_config(data_dir)
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    config.eval.lengths = "16"
    experiment = experiments_run.read(str(tmp_path / "rerope_windows.py"))
    runs = experiment.runs("smoke")
    runs[0].config.update(config)
    experiments_run.check(experiment, runs)
    experiments_run.complete(runs[0], tmp_path / "runs", [tmp_path / "runs"])
    content = collect(experiment, runs, "smoke", [tmp_path / "runs"])
    paths = write(experiment, content, tmp_path / "results")
    assert [path.name for path in paths] == [
        f"rerope_windows.{end}" for end in ("json", "md", "png")
    ]
    table = paths[1].read_text()
    assert "| rerope(window=8)+log_length | softmax | " in table
    assert "## loss in nats" in table
    for size in SIZES[1:]:
        assert len(experiment.runs(size)) == 3


def test_harness_example(monkeypatch, tmp_path, data_dir):
    """On a small decoder of bytes; what the harness would do with its models is left out."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from lm_eval.api.registry import get_model

    untrained_run(tiny_decoder_config(data_dir), tmp_path / "runs" / "smollm2")
    models = []

    def evaluate(model, tasks, limit, model_args=""):
        if isinstance(model, str):
            model = get_model(model).create_from_arg_string(model_args)
        models.append(model)

    monkeypatch.setattr(lm_eval, "simple_evaluate", evaluate)
    monkeypatch.chdir(tmp_path)
    exec(block("simple_evaluate("), {})
    first, second = models
    assert first.max_length == second.max_length == 8192
    assert first.get_model_info() == second.get_model_info()
    assert first.get_model_info()["lenext_method"] == "self_extend(window=512,group=4)"


# Commands


def commands(text):
    """Those that a page's indented and fenced lines hold; # ends one."""
    fenced = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL).replace("\\\n", " ")
    for line in fenced.splitlines():
        if re.match(r"    (make|lenext|\S*python|launch/\w+\.\w+) ", line):
            yield shlex.split(line, comments=True)
    for line in re.findall(r"`((?:python -m|make|lenext) [^`]*)`", fenced):
        yield shlex.split(line)


def test_there_are_commands():
    found = {page: len(list(commands(text))) for page, text in PAGES.items()}
    assert found["README.md"] > 6
    assert sum(found.values()) > 80


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_there_is(page):
    for words in commands(PAGES[page]):
        try:
            check_line(words)
        except (AssertionError, AttributeError, KeyError, ValueError) as error:
            raise AssertionError(f"{' '.join(words)}: {error!r}") from error


def check_line(words):
    words = words[: words.index(">")] if ">" in words else words
    first, *rest = words
    if first == "lenext":
        assert rest[0] in (*COMMANDS, "…")
        first, rest = "python", ["-m", f"lenext.{rest[0]}", *rest[1:]]
    if first == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        assert re.search(rf"^{rest[0]}:", makefile, flags=re.MULTILINE)
    elif first.endswith("/python") or first == "python":
        assert rest[0] == "-m"
        if rest[1].split(".")[0] in ("lenext", "experiments") and rest[1][-1] not in "…X":
            check_command(rest[1], rest[2:])
    elif "/" in first:
        assert (REPOSITORY / first).exists()
        of_python = rest[rest.index("--") + 1 :]
        module = of_python.pop(0) if not of_python[0].startswith("--") else "lenext.train"
        check_command(module, of_python)
        help_text = (REPOSITORY / first).read_text()
        for word in rest[: rest.index("--")]:
            if word.startswith("--") and "slurm" not in first:  # whose flags are Slurm's
                assert word.split("=")[0] in help_text


def check_command(module, words):
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text() + (REPOSITORY / "lenext/cli.py").read_text()
    source += experiments_run.USAGE if module == "experiments.run" else ""
    config = base_config()
    for word in words:
        flag, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if module == "lenext.methods" and word not in ("NAME", "…"):
                check_methods(word)
            elif module == "experiments.run" and not word.endswith(".py"):
                assert word in experiments_run.NAMES
        elif flag == "config":
            path, _, arg = value.partition(":")
            assert (REPOSITORY / path).exists()
            if path not in ("configs/finetune.py", "configs/drope.py"):  # which read a run
                module_of = path.removesuffix(".py").replace("/", ".")
                config = importlib.import_module(module_of).get_config(arg or None)
        elif flag.startswith("config."):
            *sections, key = flag.split(".")[1:]
            section = config
            for name in sections:
                section = section[name]
            assert key in section
            if value != "…":
                assert isinstance(section[key], str) or value == str(type(section[key])(value))
            if key in ("method", "methods"):
                check_methods(value)
        else:
            assert re.search(rf"\b{flag.replace('-', '[-_]')}\b", source), flag
            if flag == "method":
                check_methods(value)


def check_methods(text):
    for methods in split_list(text):
        for heads in parse_layers(methods):
            for parts in heads.sums:
                assert {part.name for part in parts} <= {*CATALOGUE, TRAINED, REGISTERED}
                if not {part.name for part in parts} & {TRAINED, REGISTERED}:
                    make_method(str(parts), train_length=64)


@pytest.mark.parametrize("page", [page for page in DOCS if "lenext.train " in DOCS[page]])
def test_pages_that_train_say_how_to_see_it_in_seconds(page):
    assert re.search(r"[:,]smoke", DOCS[page])


# Links


def slug(heading):
    """The anchor that GitHub, and the site, give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere():
    pages = PAGES | {
        name: (REPOSITORY / name).read_text() for name in ("CONTRIBUTING.md", "CHANGELOG.md")
    }
    found = 0
    for page, text in pages.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert target.exists(), (page, link)
            assert target.resolve().is_relative_to(REPOSITORY), (page, link)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
                assert anchor in map(slug, headings), (page, link)
            found += 1
    assert found > 60


def test_every_page_is_linked_and_on_the_site():
    navigation = (REPOSITORY / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("theme:")[0]
    for page in DOCS:
        name = page.removeprefix("docs/")
        assert f": {name}\n" in navigation
        assert name == "index.md" or f"]({page}" in README
        assert name == "index.md" or f"]({name}" in DOCS["docs/index.md"]


def test_the_reference_names_what_there_is():
    names = re.findall(r"^::: (\S+)$", DOCS["docs/reference.md"], flags=re.MULTILINE)
    assert len(names) > 30
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert (getattr(importlib.import_module(module), attribute).__doc__ or "").strip(), name
