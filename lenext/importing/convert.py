"""Other libraries' checkpoints to workdirs, and back."""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lenext.buckets import AnyPath, in_bucket
from lenext.config import Config, base_config, check_positions, read_methods
from lenext.config.checks import check_least
from lenext.data import get_tokenizer, open_tokenizer
from lenext.data.frames import NONE
from lenext.errors import UserError, one_line
from lenext.files import check_free, copy_folder, making_folder, read_json, write_atomically
from lenext.importing.llama import write_llama_source
from lenext.importing.read_back import check_with_transformers
from lenext.importing.recipes import read_recipe
from lenext.importing.rules import Recipe, Rule
from lenext.importing.source import Source, open_source
from lenext.importing.tensors import DTYPES, Tensor, open_tensors
from lenext.importing.tokenizer import KEPT, read_tokenizer
from lenext.models import (
    FAMILIES,
    Model,
    Place,
    build_model,
    check_sizes,
    named_parameters,
    places_of,
)
from lenext.parallel.memory import bytes_of, check_fits, said
from lenext.workdirs.checkpoints import Checkpoints
from lenext.workdirs.pretrained import Pretrained, load_run
from lenext.workdirs.workdir import SOURCE, TOKENIZERS, read_run_config, write_run_config

FLOATS = ("float32", "float16", "bfloat16")
SHARD_BYTES = 4 * 2**30
WEIGHTS = "model.safetensors"


def import_checkpoint(
    source: Path,
    workdir: AnyPath,
    *,
    train_length: int = 0,
    layers: int = 0,
    param_dtype: str = "float32",
    tokenizer: str = "",
) -> Recipe:
    """Makes a workdir of a folder: its config, its parameters as step 0, and its tokeniser.

    Tensors are read one at a time. Nothing stands in the workdir's place until all of it is there.

    Args:
      source: a folder with config.json and weights, see `lenext.importing.recipes.KINDS`, or a
        GGUF file, see `lenext.importing.gguf_model.ARCHITECTURES`.
      workdir: to make.
      train_length: L, the length that the weights are taken to be trained at; 0 for what
        config.json says.
      layers: how many of its layers are taken, the first; 0 for all.
      param_dtype: in which weights are kept, see `lenext.config.ModelConfig`.
      tokenizer: a tokenizer.json or a vocabulary to take in place of what lies there; "none" for
        none.

    Returns:
      What the source was found to be.

    Raises:
      UserError: for a source that is none of these, asks for something that is not supported, or
        whose weights are not what its config says; for a workdir that is there already.
    """
    check_free(workdir, "workdir")
    with open_source(source, with_tokenizer=not tokenizer) as opened:
        return _import(source, opened, workdir, train_length, layers, param_dtype, tokenizer)


def _import(
    source: Path,
    opened: Source,
    workdir: AnyPath,
    train_length: int,
    layers: int,
    param_dtype: str,
    tokenizer_instead: str,
) -> Recipe:
    folder = opened.folder
    whole = read_recipe(folder, said=opened.said)
    recipe = read_recipe(folder, layers=layers, said=opened.said) if layers else whole
    tensors = {
        name: tensor
        for name, tensor in opened.tensors().items()
        if _is_known(recipe, name) or not _is_known(whole, name)  # not of a layer that is left out
    }
    config = make_config(recipe, train_length)
    config.model.param_dtype = param_dtype
    check_sizes(config.model)
    check_least(config.data, "data", 2, "train_length")
    check_positions(config.model, config.data.train_length, "--train_length")
    read_methods(config.model.method, config.data.train_length)
    held = _match_names(source, recipe, tensors)
    _check_counts(source, config.model, tensors)
    model = abstract_model(config)
    params, places = nnx.to_pure_dict(nnx.state(model)), places_of(model)
    size = bytes_of(params)
    check_fits(
        size, f"{source}: its parameters want {said(size)}", "--param_dtype=bfloat16 halves them, "
        "--layers takes the first few",
    )  # fmt: skip
    _check_tensors(recipe, held, tensors, _shapes(params, places))
    tokenizer = read_tokenizer(folder, config.model.vocab_size, instead=tokenizer_instead)
    config.data.eos = tokenizer.eos
    with making_folder(workdir, "workdir", SafetensorError) as beside:
        _keep_source(beside / SOURCE, folder, recipe, tensors)
        fingerprint = ""
        if tokenizer.name:
            config.data.tokenizer = str(workdir / tokenizer.name)
            for folder in (beside, beside / SOURCE):
                (folder / tokenizer.name).write_bytes(tokenizer.content)
            fingerprint = get_tokenizer(str(beside / tokenizer.name), eos=NONE).fingerprint
        write_run_config(beside, config)
        with Checkpoints(beside, best_metric=config.training.best_metric) as checkpoints:
            filled = _fill(params, places, recipe.rules, held)
            checkpoints.save(0, {"params": filled}, {"tokenizer": fingerprint}, {})
    return recipe


def make_config(recipe: Recipe, train_length: int = 0) -> Config:
    """The config of a run that had ended at the imported weights."""
    config = base_config()
    config.model.update(recipe.model)
    length = train_length or recipe.train_length
    config.data.update(train_length=length, tokenizer="")
    causal = FAMILIES[config.model.family].objective == "causal_lm"
    protocol = "full_context" if causal else "mlm15"
    config.evaluators.validation.update(type=protocol, length=length)
    if causal:
        config.training.best_metric = "eval/validation/loss"
    longest = config.model.max_positions or 4 * length
    lengths = [n for n in (length, 2 * length, 4 * length) if n <= longest]
    config.eval.update(methods="trained", protocol=protocol, lengths=",".join(map(str, lengths)))
    return config


def abstract_model(config: Config) -> Model:
    """The model of an imported run's config, of shapes alone."""
    methods = read_methods(config.model.method, config.data.train_length)
    return nnx.eval_shape(lambda: build_model(config.model, methods, config.model.vocab_size, 0))


def _is_known(recipe: Recipe, name: str) -> bool:
    return recipe.form(name) is not None or recipe.makes(name)


def _match_names(
    source: Path, recipe: Recipe, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[str, Tensor]]:
    """Their names and tensors by the recipe's names: as they are, or with a prefix or without.

    Raises:
      UserError: for a tensor that is missing, there twice, or not known.
    """
    held: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        form = recipe.form(name)
        called = tensor.name or name
        if form in held:
            raise UserError(f"{tensor.file}: tensors {held[form][0]} and {called} are the same one")
        if form is not None:
            held[form] = called, tensor
        elif not recipe.makes(name):
            raise UserError(
                f"{tensor.file}: tensor {called} is not known in a model of {recipe.said}"
            )
    for rule in recipe.rules:
        if rule.theirs not in held:
            raise UserError(f"{source}: tensor {rule.theirs} is missing, by {recipe.said.name}")
    return held


def _check_counts(source: Path, model: Config, tensors: Mapping[str, Tensor]) -> None:
    """Checks sizes of a model by the numbers that there are, before shapes are made of them.

    Raises:
      UserError: one is more than all of them.
    """
    there = sum(math.prod(tensor.shape) for tensor in tensors.values())
    for key in ("vocab_size", "hidden_size", "intermediate_size", "key_size", "max_positions"):
        if model[key] > there:
            raise UserError(
                f"{source}: {key} is {model[key]} by config.json, and its tensors hold {there} "
                "numbers in all"
            )


def _check_tensors(
    recipe: Recipe,
    held: Mapping[str, tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Checks that tensors are what config.json, or a GGUF file's metadata, makes of them.

    Raises:
      UserError: for one of another shape or type; for one that differs from what it repeats, or
        from what the model makes by itself.
    """
    for rule in recipe.rules:
        name, tensor = held[rule.theirs]
        should = _their_shape(rule, shapes)
        if tensor.shape != should:
            raise UserError(
                f"{tensor.file}: tensor {name} is {list(tensor.shape)}, and {list(should)} by "
                f"{recipe.said.name}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.file}: tensor {name} is {tensor.dtype}; should be one of "
                f"{', '.join(FLOATS)}"
            )
    for copy, of in recipe.copies.items():
        if copy in held:
            (name, one), (other_name, other) = held[copy], held[of]
            if one.shape != other.shape or not np.array_equal(one.read(), other.read()):
                raise UserError(
                    f"{one.file}: tensor {name} differs from {other_name}, which it repeats by "
                    f"{recipe.said.name}"
                )
    for name, tensor in tensors.items():
        if recipe.form(name) is None and tensor.dtype not in DTYPES.values():
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}, which is not known")
    for name, computed in recipe.computed.items():
        if name in tensors:
            there, should = tensors[name].read().astype(np.float64), computed(tensors[name].shape)
            # Narrow types round to 0.004.
            if there.shape != should.shape or np.max(np.abs(there - should), initial=0) > 0.005:
                raise UserError(
                    f"{tensors[name].file}: tensor {name} holds other numbers than the model "
                    "computes in its place"
                )


def _shapes(params: Any, places: Mapping[str, Place]) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters by public names, such as "layers.0.mlp.up_proj.kernel"."""
    arrays: Any = traverse_util.flatten_dict(params)
    return {name: place.shape(arrays[place.path]) for name, place in places.items()}


def _their_shape(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = shapes[rule.ours[0]]
    whole = (*first[:-1], sum(shapes[name][-1] for name in rule.ours))
    return whole[::-1] if rule.transposed else whole


def _fill(
    params: Any,
    places: Mapping[str, Place],
    rules: Sequence[Rule],
    held: Mapping[str, tuple[str, Tensor]],
) -> Any:
    """The parameters, in the types of `params`, read tensor by tensor."""
    shapes: Any = traverse_util.flatten_dict(params)
    parts = {name: (rule, i) for rule in rules for i, name in enumerate(rule.ours)}
    whole = _shapes(params, places)
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, place in places.items():
        names.setdefault(place.path, []).append(name)

    def stored(path: tuple[Any, ...]) -> jax.Array:
        array = np.empty(shapes[path].shape, shapes[path].dtype)
        for name in names[path]:
            rule, i = parts[name]
            tensor = held[rule.theirs][1].read()
            tensor = tensor.T if rule.transposed else tensor
            widths = [whole[ours][-1] for ours in rule.ours]
            array[places[name].index] = rule.part(tensor, i, widths)
        return jax.device_put(array)

    # One array after the other: none but this may be held twice.
    return traverse_util.unflatten_dict({path: stored(path) for path in shapes})


def _keep_source(folder: Path, source: Path, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Keeps what the way back needs: config.json, `KEPT`, and tensors that are no parameters.

    folder/tensors.json holds the type of each tensor, by its name.
    """
    folder.mkdir()
    if read_json(source / "config.json") == recipe.config:
        shutil.copyfile(source / "config.json", folder / "config.json")
    else:
        (folder / "config.json").write_text(json.dumps(dict(recipe.config), indent=2) + "\n")
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    write_atomically(folder / "tensors.json", json.dumps(types, indent=0) + "\n")
    made = {name: x.read() for name, x in tensors.items() if recipe.form(name) is None}
    if made:
        save_file(made, folder / WEIGHTS)


def export_checkpoint(workdir: AnyPath, target: Path, *, weights: str = "params") -> None:
    """Makes a folder of a workdir's newest checkpoint: as it was imported, or of Llama's kind.

    Args:
      workdir: that was imported, or whose run branched off one that was, or of a decoder.
      target: to make: config.json, weights in safetensors with the names and types that they had,
        the tokeniser, and what else came along of texts and chats. It is read back before it
        stands there: by this package, and by transformers where that is installed.
      weights: "params", or "ema" for their moving average.

    Raises:
      UserError: for a model or a method that the folder's config.json cannot say, or that cannot
        be read back; for a target that is there already.
    """
    check_free(target, "target")
    if read_run_config(workdir) is None:
        raise UserError(f"workdir {workdir}: holds no run")
    run = load_run(workdir, weights=weights, param_dtype="float32")  # which training may have moved
    with tempfile.TemporaryDirectory() as own:
        imported = (workdir / SOURCE).is_dir()
        folder = Path(workdir / SOURCE) if imported and not in_bucket(workdir) else Path(own)
        if imported and in_bucket(workdir):
            copy_folder(workdir / SOURCE, folder)
        if not imported:
            write_llama_source(folder, run.config, run.model.config.vocab_size, workdir)
            types = {rule.theirs: "float32" for rule in read_recipe(folder).rules}
            (folder / "tensors.json").write_text(json.dumps(types))
            name = run.config.data.tokenizer
            if name.endswith((".json", ".txt")):  # is it what the run was trained with?
                run.check_tokenizer(open_tokenizer(run.config), name)
        _export(run, workdir, target, folder, imported=imported)


def _export(
    run: Pretrained, workdir: AnyPath, target: Path, folder: Path, *, imported: bool
) -> None:
    """Makes the target, in the form that `folder` says."""
    recipe = read_recipe(folder)
    theirs = read_methods(recipe.model["method"], run.config.data.train_length)
    ours = read_methods(run.config.model.method, run.config.data.train_length)
    depth = run.config.model.num_layers
    if theirs.over(depth) != ours.over(depth):
        raise UserError(
            f"workdir {workdir}: its method, {run.config.model.method}, has no place in a "
            f"config.json that says {recipe.model['method']}"
        )
    params = named_parameters(run.model)
    types = _read_types(folder / "tensors.json", recipe)
    with making_folder(target, "target", SafetensorError) as beside:
        shutil.copyfile(folder / "config.json", beside / "config.json")
        for name in (*TOKENIZERS, *KEPT):
            if (folder / name).exists():
                shutil.copyfile(folder / name, beside / name)
        made = open_tensors(folder) if (folder / WEIGHTS).exists() else {}
        _write_shards(beside, types, _their_tensors(recipe, types, params, made))
        _read_back(beside, target, imported=imported)


def _read_back(folder: Path, target: Path, *, imported: bool) -> None:
    """Checks that what was written is a folder that can be imported, and that transformers reads.

    What transformers refuses of a config.json that came from elsewhere is told, no more: it goes
    back as it came.

    Raises:
      UserError: it cannot be read.
    """
    recipe, tensors = read_recipe(folder), open_tensors(folder)
    held = _match_names(folder, recipe, tensors)
    model = abstract_model(make_config(recipe))
    shapes = _shapes(nnx.to_pure_dict(nnx.state(model)), places_of(model))
    _check_tensors(recipe, held, tensors, shapes)
    for name in TOKENIZERS:
        if not (folder / name).exists():
            continue
        least, there = get_tokenizer(str(folder / name), eos=NONE).text_size, recipe.model
        if least > there["vocab_size"]:
            raise UserError(
                f"target {target}: the tokeniser has {least} ids, and the model "
                f"{there['vocab_size']}"
            )
    problem = check_with_transformers(folder, recipe, {n: x.shape for n, x in tensors.items()})
    if problem and not imported:
        raise UserError(f"target {target}: transformers could not read it ({problem})")
    if problem:
        said = f"transformers does not read it ({problem}), as what was imported"
        print(one_line(f"warning: target {target}: {said}"), file=sys.stderr)


def _read_types(path: Path, recipe: Recipe) -> dict[str, str]:
    types = read_json(path)
    known = isinstance(types, dict) and all(
        _is_known(recipe, name) and x in DTYPES.values() for name, x in types.items()
    )
    if not known or not {rule.theirs for rule in recipe.rules} <= set(map(recipe.form, types)):
        raise UserError(f"{path}: should hold the type of each tensor that was imported")
    return types


def _their_tensors(
    recipe: Recipe,
    types: Mapping[str, str],
    params: Mapping[str, np.ndarray],
    made: Mapping[str, Tensor],
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, in the types that they had."""
    rules = {rule.theirs: rule for rule in recipe.rules}
    for name, dtype in types.items():
        form = recipe.form(name)
        if form is None:
            yield name, made[name].read()
            continue
        rule = rules[recipe.copies.get(form, form)]
        array = rule.join([params[path] for path in rule.ours])
        array = array.T if rule.transposed else array
        yield name, np.ascontiguousarray(array).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def _write_shards(
    folder: Path, types: Mapping[str, str], tensors: Iterator[tuple[str, np.ndarray]]
) -> None:
    """One file, or several of a few GB each with an index."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}

    def write() -> None:
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    total = 0
    for name, array in tensors:
        if held and sum(x.nbytes for x in held.values()) + array.nbytes > SHARD_BYTES:
            write()
        held[name] = array
        total += array.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / WEIGHTS)
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{i}.part").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": {n: weight_map[n] for n in types}}
    write_atomically(folder / f"{WEIGHTS}.index.json", json.dumps(index, indent=2) + "\n")
