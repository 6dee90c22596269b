"""What `tests.fuzz` reads: how each folder is made whole, and who reads it."""

import contextlib
import functools
import importlib.util
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from lenext.errors import UserError
from tests.mutations import pack

GOLDEN = Path(__file__).parent / "importing" / "golden"


class Target(NamedTuple):
    """What is read.

    Attributes:
      make: fills a folder with what a stranger would give.
      file: in it, which is mutated; a pattern, where its name is not the same for all times.
      read: reads the folder; it removes what it writes, unless it raises.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]


@functools.cache
def _golden(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
        (folder / "logits.npy").unlink()

    return make


def _sharded(folder: Path) -> None:
    """A golden checkpoint in two files and an index."""
    from safetensors.numpy import load_file, save_file

    _golden("llama")(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _sharded_pickle(folder: Path) -> None:
    """A golden pickle as the only file of an index."""
    from lenext.importing.torch_pickle import TorchFile

    _golden("gau_alpha")(folder)
    shard = "pytorch_model-00001-of-00001.bin"
    index = dict.fromkeys(TorchFile(folder / "pytorch_model.bin").tensors, shard)
    (folder / "pytorch_model.bin").rename(folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def _with_tokenizer(folder: Path) -> None:
    """A golden checkpoint with a tokeniser of few words, and what is said of it."""
    import tokenizers as library

    _golden("llama")(folder)
    words = ["<s>", "</s>", "<unk>", "the", "thing", "in"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(words[:3])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    content = {"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(content))


def _byte_level(folder: Path) -> None:
    """A golden GPT-2 with a tokeniser in two files."""
    _golden("gpt2")(folder)
    words = [*"thein", "th", "the", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))


def _gguf(folder: Path) -> None:
    """A golden Llama with a tokeniser of bytes and one merge."""
    import gguf

    from tests.importing.gguf_files import convert_golden, sizes

    rows = 37
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    words = [*map(chr, range(ord("a"), ord("a") + rows - 2)), "th", "</s>"]
    calls = [
        ("add_tokenizer_model", "gpt2"), ("add_tokenizer_pre", "llama-bpe"),
        ("add_token_list", words), ("add_token_types", [normal] * (rows - 1) + [control]),
        ("add_token_merges", ["t h"]), ("add_bos_token_id", rows - 1),
        ("add_eos_token_id", rows - 1), ("add_add_bos_token", True),
        ("add_chat_template", "{{ messages }}"),
    ]  # fmt: skip
    path = folder / "model.gguf"
    convert_golden("llama_llama3", path, calls=[*sizes("llama_llama3")[1], *calls])


class _NoCheckpoints:
    """Stands for `Checkpoints`, of which nothing is a stranger's: Orbax takes most of the time."""

    def __init__(self, workdir: Path, **how: Any):
        pass

    def __enter__(self) -> "_NoCheckpoints":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def save(self, step: int, *what: Any) -> None:
        pass


def _import(folder: Path, source: str = "") -> None:
    from lenext.config import to_config
    from lenext.data import open_tokenizer
    from lenext.importing import import_checkpoint
    from lenext.workdirs.workdir import read_run_config

    with mock.patch("lenext.importing.convert.Checkpoints", _NoCheckpoints):
        import_checkpoint(folder / source, folder / "out")
    try:
        config = to_config(read_run_config(folder / "out") or {})
        if config.data.tokenizer:
            open_tokenizer(config)
    except ValueError as error:  # what was taken should be there to be used
        raise RuntimeError(f"imported, and then: {error}") from None
    shutil.rmtree(folder / "out")


def _import_tokenizer(folder: Path) -> None:
    """Of an import, what concerns the tokeniser; the model takes most of the time."""
    from lenext.data import get_tokenizer
    from lenext.importing.recipes import read_recipe
    from lenext.importing.tokenizer import read_tokenizer

    found = read_tokenizer(folder, read_recipe(folder).model["vocab_size"])
    if found.name:
        (folder / "out").mkdir()
        (folder / "out" / found.name).write_bytes(found.content)
        tokenizer = get_tokenizer(str(folder / "out" / found.name), eos=found.eos)
        tokenizer.encode_batch(["the thing"])
        shutil.rmtree(folder / "out")


TEXTS = ["def main():\n    return 0\n", "Ünïcode, 12345 and <|endoftext|>", ""]


def _tokenizer(folder: Path) -> None:
    """A byte-level BPE with merges, added tokens and a post-processor."""
    import tokenizers as library
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the")]
    words = ["<s>", "</s>", "[PAD]", *alphabet, *map("".join, merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = library.Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(words[:3])
    made.add_tokens([AddedToken("<|more|>", special=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.save(str(folder / "tokenizer.json"))


def _vocabulary(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123)), "##e", "die"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def _tokenize(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from lenext.data import get_tokenizer

        tokenizer = get_tokenizer(str(folder / name))
        for ids in tokenizer.encode_batch(TEXTS):
            tokenizer.decode(ids)

    return read


def _lines() -> bytes:
    lines = [json.dumps({"text": f"line {i} of a text", "id": i, "more": [i]}) for i in range(9)]
    return "\n".join([*lines, ""]).encode()


def _jsonl(folder: Path) -> None:
    (folder / "some.jsonl").write_bytes(_lines())


def _jsonl_gz(folder: Path) -> None:
    (folder / "some.jsonl.gz").write_bytes(pack(_lines()))


def _txt(folder: Path) -> None:
    (folder / "some.txt").write_bytes("Ünïcode\n".encode("utf-16") * 9)


def _read_texts(folder: Path) -> None:
    from lenext.data.text_files import look_at, read_parts
    from lenext.data.text_paths import find_files

    found = find_files(str(folder))
    for path in found.paths:
        look_at(found.root, path)
        for name, text in read_parts(found.root, path, "text"):
            assert name.startswith(path)
            text.decode(errors="replace")


def _html(folder: Path) -> None:
    page = (
        '<!doctype html><meta charset="iso-8859-1"><title>T</title><h1>Caf&eacute; &#8211;</h1>'
        "<p>some <b>words<br></b><!-- and --><ul><li>one<li>two</ul><pre>\n x\n</pre><![CDATA[y]]>"
        "<table><tr><td>a<td>b</table><script>no</script>\xfcber"
    )
    (folder / "some.html").write_bytes(page.encode("latin-1"))


def _pdf(folder: Path) -> None:
    from tests.data.pdf_files import make_pdf

    (folder / "some.pdf").write_bytes(make_pdf(["some text", "of lines"], ["another page"]))


def _read_documents(folder: Path) -> None:
    from lenext.data.documents import SUFFIXES, read_documents
    from lenext.data.text_paths import find_files

    found = find_files(str(folder), SUFFIXES)
    for path in found.paths:
        for document in read_documents(found.root, path, "text"):
            document.text.encode()
            assert document.text or document.reason


def _cache(folder: Path) -> Any:
    from lenext.data import get_tokenizer
    from lenext.data.token_cache import cached_tokens

    texts = [("a", b"some text"), ("b", "Ünïcode".encode())]
    return cached_tokens(folder, ["some"], lambda: texts, get_tokenizer("bytes"))


def _read_cache(folder: Path) -> None:
    """What is damaged is written anew, so it is always the same."""
    (folder / "new").mkdir()
    found, made = _cache(folder), _cache(folder / "new")
    shutil.rmtree(folder / "new")
    for one, other in ((found.tokens, made.tokens), (found.offsets, made.offsets)):
        assert one.dtype == other.dtype, "another type"
        assert (one == other).all(), "other numbers"
    assert found.names == made.names, "other names"


def _run(folder: Path) -> None:
    """A run as an import makes it, with metrics and a calibration."""
    from lenext.importing import import_checkpoint

    _with_tokenizer(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        import_checkpoint(folder, folder / "run")
    for path in (x for x in folder.iterdir() if x.is_file()):
        path.unlink()
    path = folder / "run" / "config.json"  # the same wherever the folder is
    path.write_text(path.read_text().replace(str(folder), ""))
    lines = [
        json.dumps({"step": i, "loss": 5.0 / i, "eval/validation/loss": 5.0}) for i in range(1, 7)
    ]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    entry = {
        "method": "entropy_matched",
        "step": 0,
        "weights": "params",
        "parts": [{"temperature": {"slopes": [[0.1] * 4] * 4}}] * 2,
    }
    (folder / "run" / "calibration.json").write_text(json.dumps({"calibrations": [entry]}))


class _Enough(BaseException):
    """What was to be read is."""


def _export(folder: Path) -> None:
    from lenext.importing import export_checkpoint

    export_checkpoint(folder / "run", folder / "out")
    shutil.rmtree(folder / "out")


def _load_run(folder: Path) -> None:
    """As training and evaluation begin, up to where they turn to the data."""
    from lenext.config import to_config
    from lenext.evaluation import evaluate_run
    from lenext.training import validate
    from lenext.workdirs.workdir import check_run, read_run_config

    run = folder / "run"
    config = to_config(read_run_config(run) or {})
    with contextlib.suppress(UserError):
        validate(config)
        check_run(run, config)
    with (
        mock.patch("lenext.evaluation.workdir_sweep.open_split", side_effect=_Enough),
        contextlib.suppress(_Enough),
    ):
        evaluate_run(config, run)


@functools.cache
def _loaded() -> Any:
    """The run that `_run` makes, which takes long to read."""
    from lenext.workdirs.pretrained import load_run

    with tempfile.TemporaryDirectory() as name:
        _run(Path(name))
        return load_run(Path(name) / "run")


def _load_calibrated(folder: Path) -> None:
    from lenext.workdirs.calibration import under_method

    run = _loaded()
    under_method(run, folder / "run", run.read_methods("entropy_matched"))


def _sealed(folder: Path) -> None:
    """Two checkpoints, as far as their seals are concerned."""
    from lenext.workdirs.seals import seal

    for step in (1, 2):
        checkpoint = folder / "checkpoints" / str(step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "some").write_text("some")
        (checkpoint / "other").write_text("other")
        seal(checkpoint, folder / "seals" / f"{step}.json")


def _newest(folder: Path) -> None:
    from lenext.workdirs.checkpoints import newest_step, weights_identity

    step = newest_step(folder)
    assert step is not None
    weights_identity(folder, step)


def _resume_metrics(folder: Path) -> None:
    from lenext.training.metrics import MetricsWriter

    # It keeps what is sound and drops the rest, as after a kill.
    MetricsWriter(folder / "run", resume_step=3).close()


def _evaluation(folder: Path) -> None:
    """Two evaluated workdirs, as far as a comparison reads them."""
    for name, shift in (("one", 0.0), ("two", 0.5)):
        cells = folder / name / "eval" / "cells"
        cells.mkdir(parents=True)
        kept = []
        for length in (32, 64):
            sums = {
                "metric": "loss", "positions": None, "predictions": 2 * length,
                "numerator": [90.0 + shift, 70.0], "denominator": [float(length)] * 2,
            }  # fmt: skip
            cell = {
                "length": length, "protocol": "full_context", "documents": [0, 1], "sequences": 2,
                "tokens": 2 * length, "seconds": 1.0, "compile_seconds": 1.0, "peak_bytes": 1,
                "flops": 1.0, "cache_bytes": None, "unsuited": [], "sums": [sums], "heads": [],
                "provenance": {},
            }  # fmt: skip
            content = {"key": {"sequences": "0", "probe_rows": 8}, "cell": cell}
            (cells / f"{length}-0.json").write_text(json.dumps(content))
            kept.append({"method": "softmax", "length": length, "cell": f"{length}-0.json"})
        settings = {"bootstrap": 20, "seed": 0, "margin": 0.05}
        trained = {"model": {"method": "softmax"}, "data": {"train_length": 32}}
        source = {"config": {"eval": settings}, "trained": trained}
        content = {"provenance": source, "headline": "loss", "cells": kept}
        (folder / name / "eval" / "results.json").write_text(json.dumps(content))


def _compare(folder: Path) -> None:
    """Beside the comparison, what another evaluation of the same workdir reads."""
    from lenext.compare import compare
    from lenext.evaluation.cells import Cells
    from lenext.evaluation.results import _tell_replaced

    _tell_replaced(folder / "one" / "eval" / "results.json", [])
    key = {"sequences": "0", "probe_rows": 8}
    with mock.patch.object(Cells, "name", return_value="32-0.json"):
        Cells(folder / "one" / "eval" / "cells").find(32, key)
    compare([folder / "one", folder / "two"], folder / "out")
    shutil.rmtree(folder / "out")


def _training() -> Any:
    """A run of an experiment."""
    from lenext.config import base_config
    from lenext.config.base import smoke
    from lenext.sweeps.runs import over_seeds

    return over_seeds("softmax", smoke(base_config()), ["softmax"], [0])[0]


def _experiment(folder: Path) -> None:
    """A run of an experiment, trained and evaluated, on another machine."""
    from lenext.config import plain

    _evaluation(folder)
    cells = [json.loads(x.read_text())["cell"] for x in sorted(folder.glob("one/eval/cells/*"))]
    shutil.rmtree(folder / "one")
    shutil.rmtree(folder / "two")
    run = _training()
    results, config = run.results(folder, "softmax"), plain(run.config)
    results.parent.mkdir(parents=True)
    source = {"git": "0", "versions": {"jax": "0"}}
    content = {"seconds": 1.0, "provenance": source | {"config": config}, "cells": cells}
    results.write_text(json.dumps(content))
    (run.workdir(folder) / "config.json").write_text(json.dumps(config))
    content = {"stopped": None, "seconds": 2.0, "provenance": source}
    run.outcome(folder).write_text(json.dumps(content))


def _collect(folder: Path) -> None:
    from lenext.sweeps.experiment import Experiment, collect
    from lenext.sweeps.progress import Rates

    run = _training()
    Rates.measured([folder]).seconds_left([run], [folder])
    experiment = Experiment("some", lambda size: [run], "softmax", ["loss"], lambda content: {})
    collect(experiment, [run], "smoke", [folder])


def _results(folder: Path) -> None:
    """The smallest results that claims are judged by."""
    from experiments.report import HERE

    content = json.loads((HERE / "results" / "dilution.json").read_text())
    lengths = sorted({record["length"] for record in content["records"]})
    content["records"] = [x for x in content["records"] if x["length"] in (lengths[0], lengths[-1])]
    (folder / "dilution.json").write_text(json.dumps(content))


def _report(folder: Path) -> None:
    from experiments import dilution
    from experiments.report import judge
    from experiments.run import remake

    with contextlib.suppress(UserError):
        judge(folder)
    with mock.patch("experiments.dilution.draw_metrics", return_value=b""):  # most of the time
        remake(dilution.EXPERIMENT, folder)
    for path in folder.glob("dilution.[mp]*"):
        path.unlink()


TARGETS = {
    "config.json": Target(_golden("llama_llama3"), "config.json", _import),
    "config.json of GPT-2": Target(_golden("gpt2"), "config.json", _import),
    "config.json of GAU-α": Target(_golden("gau_alpha"), "config.json", _import),
    "config.json of Qwen2": Target(_golden("qwen2_windows"), "config.json", _import),
    "generation_config.json": Target(_with_tokenizer, "generation_config.json", _import_tokenizer),
    "tokenizer_config.json": Target(_with_tokenizer, "tokenizer_config.json", _import_tokenizer),
    "tokenizer.json of an import": Target(_with_tokenizer, "tokenizer.json", _import_tokenizer),
    "vocab.json": Target(_byte_level, "vocab.json", _import_tokenizer),
    "merges.txt": Target(_byte_level, "merges.txt", _import_tokenizer),
    "safetensors": Target(_golden("llama_tied"), "model.safetensors", _import),
    "index": Target(_sharded, "model.safetensors.index.json", _import),
    "pickle": Target(_golden("gau_alpha"), "pytorch_model.bin", _import),
    "index of pickles": Target(_sharded_pickle, "pytorch_model.bin.index.json", _import),
    "GGUF": Target(_gguf, "model.gguf", functools.partial(_import, source="model.gguf")),
    "tokenizer.json": Target(_tokenizer, "tokenizer.json", _tokenize("tokenizer.json")),
    "vocab.txt": Target(_vocabulary, "vocab.txt", _tokenize("vocab.txt")),
    "txt": Target(_txt, "some.txt", _read_texts),
    "jsonl": Target(_jsonl, "some.jsonl", _read_texts),
    "jsonl.gz": Target(_jsonl_gz, "some.jsonl.gz", _read_texts),
    "some.jsonl as documents": Target(_jsonl, "some.jsonl", _read_documents),
    "html": Target(_html, "some.html", _read_documents),
    "pdf": Target(_pdf, "some.pdf", _read_documents),
    "meta.json": Target(_cache, "*/meta.json", _read_cache),
    "a run's config.json": Target(_run, "run/config.json", _load_run),
    "an export's config.json": Target(_run, "run/source/config.json", _export),
    "an export's tensors.json": Target(_run, "run/source/tensors.json", _export),
    "seal": Target(_sealed, "seals/2.json", _newest),
    "metrics.jsonl": Target(_run, "run/metrics.jsonl", _resume_metrics),
    "calibration.json": Target(_run, "run/calibration.json", _load_calibrated),
    "results.json": Target(_evaluation, "one/eval/results.json", _compare),
    "outcome.json": Target(_experiment, "*/outcome.json", _collect),
    "an experiment's config.json": Target(_experiment, "*/config.json", _collect),
    "an experiment's evaluation": Target(_experiment, "*/evaluations/*.json", _collect),
    "dilution.json": Target(_results, "dilution.json", _report),
    "cell": Target(_evaluation, "one/eval/cells/32-0.json", _compare),
}


for _name, _package in {"html": "bs4", "pdf": "pypdf"}.items():
    if importlib.util.find_spec(_package) is None:  # what the extra documents has
        del TARGETS[_name]
