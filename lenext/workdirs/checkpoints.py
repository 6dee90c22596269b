"""Orbax checkpoints of a run: parameters, their average, optimiser state, place in the data."""

import contextlib
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint import options as ocp_options

from lenext.buckets import AnyPath, resolved
from lenext.errors import MISREAD, TrainingError, UserError, one_line
from lenext.files import move_folder, renames_folders, write_atomically
from lenext.models.stack import Place
from lenext.parallel.processes import is_first, is_peer_lost
from lenext.workdirs.seals import damage, identity, seal

State = dict[str, Any]
"""What a step takes and gives: {"params": pure dict of arrays, "optimizer": Optax's state}, and
"ema", averaged parameters, in runs that keep them."""

SEALS = "seals"
"""Folder beside "checkpoints", see `lenext.workdirs.seals`."""

COMMIT = "commit_success.txt"
"""Written last into a checkpoint and each of its items, where folders are not renamed."""

MANY_LAYERS = 1024
"""More than anybody has trained."""

HANDLERS = {
    "params": ocp.StandardCheckpointHandler,
    "optimizer": ocp.StandardCheckpointHandler,
    "ema": ocp.StandardCheckpointHandler,  # in runs that keep an average
    "data": ocp.JsonCheckpointHandler,
}


class _Manager(ocp.CheckpointManager):
    """Orbax', which does not ask JAX's service whether all are to stop.

    It would ask by a step's number, and `lenext.training.preemption` asks by one of its own: the
    service, which has all stop one after the highest, would set what the run never comes to.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """DIR/checkpoints: the newest few and the best by one metric; written in the background.

    All processes of a run make one, and call its methods together.

    Args:
      workdir: DIR.
      keep_latest: how many of the newest to keep.
      best_metric: name of the metric whose best checkpoint is kept too; a name that holds "loss"
        or "perplexity" is better when low. None where nothing will be saved.
    """

    def __init__(self, workdir: AnyPath, *, keep_latest: int = 1, best_metric: str | None = None):
        policies: list[Any] = [checkpoint_managers.LatestN(keep_latest)]
        best: dict[str, Any] = {}
        if best_metric:
            low_is_better = "loss" in best_metric or "perplexity" in best_metric

            def figure(metrics: dict[str, float]) -> float:
                return metrics[best_metric]

            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=figure,
                    reverse=low_is_better,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
            # The policy decides; without a best_fn Orbax would not write the metrics, and a
            # resumed run would drop the best checkpoint of the one before.
            best = {"best_fn": figure, "best_mode": "min" if low_is_better else "max"}
        self.directory = workdir / "checkpoints"
        self.best_metric = best_metric
        self._underway: int | None = None  # the step that is being written
        commits = not renames_folders(self.directory)
        mode = ocp_options.AtomicityMode.COMMIT_FILE if commits else ocp_options.AtomicityMode.AUTO
        options = ocp.CheckpointManagerOptions(
            create=best_metric is not None,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            atomicity_options=ocp_options.AtomicityOptions(mode=mode),
            **best,
        )
        with self._reading():
            if commits and is_first():
                _commit_sealed(workdir)
            self.manager = _Manager(
                resolved(self.directory),
                options=options,
                item_handlers={name: handler() for name, handler in HANDLERS.items()},
            )

    def save(
        self, step: int, state: State, data: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Starts writing the checkpoint of `step`, once that before is written; `data` is JSON.

        Raises:
          TrainingError: one of the two cannot be written.
        """
        self.wait()
        judged = {name: float(value) for name, value in metrics.items() if name == self.best_metric}
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        with self._writing(step):
            self.manager.save(
                step,
                args=ocp.args.Composite(**items, data=ocp.args.JsonSave(data)),
                metrics=judged or None,
            )
        self._underway = step

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(self.manager.all_steps())

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """State and data of a step, in the shapes and on the devices of `like`.

        Raises:
          UserError: naming the first part of `like` that the checkpoint has otherwise or not.
        """
        if self._is_apart(step):
            raise UserError(
                f"{self.directory / str(step)}: written by lenext 0.1, each layer by itself; "
                "training goes on with that version only, other commands read it"
            )
        self.check_parameters(step, like["params"])
        if "ema" in like:
            self.check_average(step)
        self.check_optimizer(step, like["optimizer"])
        items = {name: ocp.args.StandardRestore(_abstract(like[name])) for name in like}
        with self._reading(step):
            out = self.manager.restore(
                step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore())
            )
        return {name: out[name] for name in like}, out["data"]

    def restore_params(
        self, step: int, like: Any, item: str = "params", places: Mapping[str, Place] | None = None
    ) -> Any:
        """Parameters alone: those of the step ("params"), or their average ("ema").

        With `places`, from `lenext.models.places_of`, those of lenext 0.1 are read too, which had
        each layer by itself.

        Raises:
          UserError: naming the first that differs from `like`, or for an average that the run did
            not keep.
        """
        if item not in ("params", "ema"):
            raise ValueError(f"item {item!r}: should be params or ema")
        stacked = like
        like = _unstacked(like, places) if places and self._is_apart(step) else like
        self.check_parameters(step, like)
        if item == "ema":
            self.check_average(step)
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(_abstract(like))})
        with self._reading(step):
            found = self.manager.restore(step, args=args)[item]
        return _stacked(found, stacked, places) if places and like is not stacked else found

    def _is_apart(self, step: int) -> bool:
        """Whether layers stand by themselves, by number, as lenext 0.1 had them."""
        layers = self._tree(step).get("layers", {})
        return all(str(name).isdecimal() for name in layers) and len(layers) > 0

    def restore_data(self, step: int) -> dict[str, Any]:
        """What `save` was given as `data`.

        Raises:
          UserError: it cannot be read.
        """
        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        with self._reading(step):
            return dict(self.manager.restore(step, args=args)["data"] or {})

    def has_optimizer(self, step: int) -> bool:
        """Whether a step has optimiser state, which imported weights have not."""
        with self._reading(step):
            return self.manager.item_metadata(step).get("optimizer") is not None

    def rows(self, step: int, name: str) -> int:
        """Of a parameter of a step, by its path in the state, such as "embedding.embedding".

        Raises:
          UserError: the step has no such parameter.
        """
        tree = self._tree(step)
        with self._reading(step):
            found: Any = traverse_util.flatten_dict(tree, sep=".").get(name)
            if found is None:
                raise UserError(f"{self.directory / str(step)}: has no parameter {name}")
            return int(found.shape[0])

    def check_depth(self, step: int, layers: int) -> None:
        """Checks that a step holds so many layers; of few, `check_parameters` says more.

        Raises:
          UserError: it holds others.
        """
        with self._reading(step):
            tree = self._tree(step).get("layers", {})
            there = len(tree) if self._is_apart(step) else _rows_of_first(tree)
        if layers != there and layers > MANY_LAYERS:  # a model of them takes hours to describe
            raise UserError(
                f"{self.directory / str(step)}: has {there} layers, and by the run's config.json "
                f"{layers}"
            )

    def check_parameters(self, step: int, params: Any) -> None:
        """Checks that a checkpoint's parameters are the model's.

        Raises:
          UserError: naming the first that differs.
        """
        difference = self._difference(step, "params", params)
        if difference:
            name, ours, theirs = difference
            raise UserError(
                f"{self.directory / str(step)}: parameter {name} is {theirs} there and {ours} "
                "in the config's model; give the config that it was trained with"
            )

    def check_optimizer(self, step: int, optimizer_state: Any) -> None:
        """Checks that a checkpoint's optimiser state is of the same kind.

        Raises:
          UserError: naming the first part that differs.
        """
        difference = self._difference(step, "optimizer", optimizer_state)
        if difference:
            name, ours, theirs = difference
            raise UserError(
                f"{self.directory / str(step)}: written by another optimizer, whose state has "
                f"{name} as {theirs} and the config's as {ours}; give the config.optimizer.name "
                "that it was trained with"
            )

    def check_average(self, step: int) -> None:
        """Checks that a checkpoint holds averaged parameters.

        Raises:
          UserError: where it does not.
        """
        with self._reading(step):
            kept = self.manager.item_metadata(step).get("ema")
        if kept is None:
            raise UserError(
                f"{self.directory / str(step)}: holds no average of the parameters; "
                "config.training.ema_decay of its run was 0"
            )

    def _difference(self, step: int, item: str, tree: Any) -> tuple[str, str, str] | None:
        """The first leaf that differs: name, shape in `tree`, shape in the checkpoint."""
        with self._reading(step):
            stored, wanted = _shapes(self._tree(step, item)), _shapes(tree)
        for name in dict.fromkeys([*wanted, *stored]):
            ours, theirs = wanted.get(name, "none"), stored.get(name, "none")
            if ours != theirs:
                return name, ours, theirs
        return None

    def _tree(self, step: int, item: str = "params") -> Any:
        """Shapes and types of an item, as the checkpoint says them."""
        with self._reading(step):
            return self.manager.item_metadata(step)[item].tree

    @contextlib.contextmanager
    def _reading(self, step: int | None = None) -> Iterator[None]:
        """Makes one line of what Orbax raises of a checkpoint without a seal, which may be damaged.

        Raises:
          UserError: it cannot be read.
        """
        try:
            yield
        except (OSError, *MISREAD) as error:
            if isinstance(error, UserError) or is_peer_lost(error):
                raise
            reason = str(error).strip().split("\n")[0]
            path = self.directory if step is None else self.directory / str(step)
            raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None

    def wait(self) -> None:
        """Returns when everything saved is on disk, and sealed.

        Raises:
          TrainingError: it cannot be written.
        """
        if self._underway is None:
            return
        with self._writing(self._underway):
            self.manager.wait_until_finished()
            if is_first():
                self._seal_new()
        self._underway = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Closes; but where a process is lost, the others do not wait for it."""
        if not is_peer_lost(error):
            self.close()

    def close(self) -> None:
        """Waits and lets go of the directory."""
        try:
            self.wait()
        finally:
            self.manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of whatever kind Orbax and TensorStore make of a full disk
            self._underway = None
            if is_peer_lost(error):
                raise
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            kept = max((other for other in self.steps() if other != step), default=None)
            rest = f"the last good one is of step {kept}" if kept else "there is none before it"
            raise TrainingError(
                f"{self.directory / str(step)}: the checkpoint cannot be written ({reason[0]}); "
                f"{rest}"
            ) from error

    def _seal_new(self) -> None:
        """Seals what has no seal yet, and removes those of checkpoints that are gone."""
        steps = self.steps()
        for path in (self.directory.parent / SEALS).glob("*.json"):
            if path.stem not in map(str, steps):
                path.unlink()
        for step in steps:
            path = _seal_of(self.directory.parent, step)
            if not path.exists():
                seal(self.directory / str(step), path)


def newest_step(workdir: AnyPath, *, set_aside: bool = False) -> int | None:
    """Step of the newest checkpoint in DIR that is as it was written, None where there is none.

    Warns of newer ones that are damaged. No process of several waits for another.

    Args:
      workdir: DIR.
      set_aside: move those to DIR/damaged, so that their steps can be written again.

    Raises:
      UserError: all of them are damaged.
    """
    directory = workdir / "checkpoints"
    steps = _whole_steps(workdir)
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        found = damage(directory / str(step), _seal_of(workdir, step))
        if found is None:
            break
        damaged[step] = found
    said = "; ".join(f"{step}: {found}" for step, found in damaged.items())
    if damaged and len(damaged) == len(steps):
        raise UserError(f"{directory}: every checkpoint is damaged ({said})")
    if damaged:
        told = one_line(f"warning: {directory}: damaged, and not used: {said}")
        print(told, file=sys.stderr)
    for step in damaged if set_aside else ():
        target = workdir / "damaged" / f"{step}-{uuid.uuid4().hex[:8]}"
        move_folder(directory / str(step), target)
        _seal_of(workdir, step).unlink()
    return max((step for step in steps if step not in damaged), default=None)


def _whole_steps(workdir: AnyPath) -> list[int]:
    """Steps whose checkpoints have been written to their end.

    Where folders are not renamed that is told by `COMMIT`, or by the seal of one that was copied
    there from where they are.
    """
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        return []
    if renames_folders(directory):
        return ocp.utils.checkpoint_steps(directory)
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]
    return [
        step
        for step in steps
        if (directory / str(step) / COMMIT).exists() or _seal_of(workdir, step).exists()
    ]


def _commit_sealed(workdir: AnyPath) -> None:
    """Gives checkpoints that were copied from where folders are renamed what Orbax looks for."""
    for step in _whole_steps(workdir):
        folder = workdir / "checkpoints" / str(step)
        if not (folder / COMMIT).exists():
            for item in (*(path for path in folder.iterdir() if path.is_dir()), folder):
                write_atomically(item / COMMIT, "copied, and sealed where it was written\n")


def weights_identity(workdir: AnyPath, step: int) -> str:
    """What tells the checkpoint of a step from every other."""
    return identity(workdir / "checkpoints" / str(step), _seal_of(workdir, step))


def _seal_of(workdir: AnyPath, step: int) -> AnyPath:
    return workdir / SEALS / f"{step}.json"


def _rows_of_first(tree: Any) -> int:
    leaves = [leaf.shape for leaf in jax.tree.leaves(tree) if leaf.shape]
    return leaves[0][0] if leaves else 0


def _shapes(tree: Any) -> dict[str, str]:
    """Leaf's name to shape, such as {"layers.0.i_dense.kernel": "[32, 144]"}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): str(list(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unstacked(tree: Any, places: Mapping[str, Place]) -> Any:
    """Shapes of a tree of parameters with each layer by itself."""
    arrays: Any = traverse_util.flatten_dict(tree)

    def one(place: Place) -> jax.ShapeDtypeStruct:
        x = arrays[place.path]
        return jax.ShapeDtypeStruct(place.shape(x), x.dtype)

    flat = {_split(name): one(place) for name, place in places.items()}
    return traverse_util.unflatten_dict(flat)


def _stacked(tree: Any, like: Any, places: Mapping[str, Place]) -> Any:
    """Arrays of a tree of `_unstacked`, stacked as in `like`."""
    alone: Any = traverse_util.flatten_dict(tree)
    wanted: Any = traverse_util.flatten_dict(like)
    arrays = {path: np.empty(x.shape, x.dtype) for path, x in wanted.items()}
    for name, (path, index) in places.items():
        arrays[path][index] = alone.pop(_split(name))
    return traverse_util.unflatten_dict(
        {path: jax.device_put(x, wanted[path].sharding) for path, x in arrays.items()}
    )


def _split(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
