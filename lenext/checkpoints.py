"""Orbax checkpoints of a run: parameters, optimiser state, place in the data."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lenext.errors import UserError

State = dict[str, Any]

HANDLERS = {
    "params": ocp.StandardCheckpointHandler,
    "optimizer": ocp.StandardCheckpointHandler,
    "data": ocp.JsonCheckpointHandler,
}


class Checkpoints:
    """DIR/checkpoints: the newest few and the best by one metric; written in the background.

    Args:
      workdir: DIR.
      keep_latest: how many of the newest to keep.
      best_metric: name of the metric whose best checkpoint is kept too; a name that holds "loss"
        or "perplexity" is better when low. None where nothing will be saved.
    """

    def __init__(self, workdir: Path, *, keep_latest: int = 1, best_metric: str | None = None):
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
        self.manager = ocp.CheckpointManager(
            self.directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                create=best_metric is not None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                **best,
            ),
            item_handlers={name: handler() for name, handler in HANDLERS.items()},
        )

    def save(
        self, step: int, state: State, data: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Starts writing the checkpoint of `step`; `data` is JSON."""
        judged = {name: float(value) for name, value in metrics.items() if name == self.best_metric}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state["params"]),
                optimizer=ocp.args.StandardSave(state["optimizer"]),
                data=ocp.args.JsonSave(data),
            ),
            metrics=judged or None,
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """State and data of a step, in the shapes and on the devices of `like`."""
        self.check_parameters(step, like["params"])
        items = {name: ocp.args.StandardRestore(_abstract(like[name])) for name in like}
        out = self.manager.restore(
            step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore())
        )
        return {"params": out["params"], "optimizer": out["optimizer"]}, out["data"]

    def restore_params(self, step: int, like: Any) -> Any:
        """Parameters alone."""
        self.check_parameters(step, like)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(like)))
        return self.manager.restore(step, args=args)["params"]

    def vocab_size(self, step: int) -> int:
        """Rows of the token embedding of a step's parameters."""
        shapes = self.manager.item_metadata(step)["params"].tree
        name = "word_embedding" if "word_embedding" in shapes else "embedding"
        return int(shapes[name]["embedding"].shape[0])

    def check_parameters(self, step: int, params: Any) -> None:
        """Checks that a checkpoint's parameters are the model's.

        Raises:
          UserError: naming the first that differs.
        """
        stored = _shapes(self.manager.item_metadata(step)["params"].tree)
        wanted = _shapes(params)
        for name in dict.fromkeys([*wanted, *stored]):
            ours, theirs = wanted.get(name, "none"), stored.get(name, "none")
            if ours != theirs:
                raise UserError(
                    f"{self.directory / str(step)}: parameter {name} is {theirs} there and {ours} "
                    "in the config's model; give the config that it was trained with"
                )

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the directory."""
        self.manager.close()


def _shapes(tree: Any) -> dict[str, str]:
    """Parameter name to shape, such as {"layers.0.i_dense.kernel": "[32, 144]"}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join(str(getattr(part, "key", part)) for part in path): str(list(leaf.shape))
        for path, leaf in leaves
    }


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
