"""Which predictions need what lies far back: those that a long context makes likelier.

The mean loss of a text hardly tells of its length, as most tokens follow from those just before
them. So the loss is told apart on those that do not, after the idea of LongPPL (arXiv 2410.23771):
tokens whose log-likelihood a context of up to the training length L raises by a margin over a short
one. They are found with the method that the weights were trained with, which is sound up to L, and
are then the same for every method.
"""

import io

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from lenext.buckets import AnyPath
from lenext.config import Config
from lenext.data import Frame
from lenext.errors import UserError
from lenext.evaluation.cells import digest, digest_of
from lenext.evaluation.figures import figures_of
from lenext.evaluation.protocols import Prompts, Sequences
from lenext.files import make_folder, write_atomically
from lenext.models import Model, model_methods
from lenext.parallel.processes import in_all, is_first
from lenext.workdirs.pretrained import Pretrained
from lenext.workdirs.versions import FIGURES_VERSION


def gains(
    model: Model,
    sequences: Sequences,
    long: int,
    short: int,
    frame: Frame,
    *,
    batch_tokens: int,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "C P"]:
    """How many nats a prediction's loss falls by, from a short context to a long one.

    Contexts are windows that start as a text does and overlap by half, so that a prediction sees
    from half of `long` (or of `short`) to all of it, or what there is before it.

    Args:
      model: causal, under the method that it was trained with.
      sequences: of a protocol that predicts each next token.
      long: tokens of a window, at most the training length.
      short: tokens of a window.
      frame: of the tokeniser.
      batch_tokens: in one forward pass.
      mesh: over which passes are split; None for one device.
    """
    losses = [
        _window_losses(model, sequences.batch, size, frame, batch_tokens, mesh)
        for size in (short, long)
    ]
    return losses[0] - losses[1]


def _window_losses(
    model: Model,
    batch: dict[str, np.ndarray],
    size: int,
    frame: Frame,
    batch_tokens: int,
    mesh: Mesh | None,
) -> Float[np.ndarray, "C P"]:
    total, length = batch["tokens"].shape
    size = min(size, length)
    starts = [*range(0, length - size, max(1, size // 2)), length - size]

    def windows(name: str) -> np.ndarray:
        cut = np.stack([batch[name][:, first : first + size] for first in starts], axis=1)
        return cut.reshape(-1, size)

    rows = {name: windows(name) for name in ("tokens", "targets", "weights")}
    rows["tokens"] = frame.started(rows["tokens"])
    graphdef, params = nnx.split(model)
    figures, _ = figures_of(
        graphdef, nnx.to_pure_dict(params), rows, batch_size=max(1, batch_tokens // size),
        probe_rows=0, mesh=mesh,
    )  # fmt: skip
    found = figures.loss.reshape(total, len(starts), size)
    losses, done = np.zeros((total, length), np.float32), 0
    for number, first in enumerate(starts):
        # Of each window what none before it had.
        losses[:, done : first + size] = found[:, number, done - first :]
        done = first + size
    return losses


def check_far(config: Config, train_length: int) -> None:
    """Checks what marks the predictions that need the far context.

    Raises:
      UserError: it has no meaning.
    """
    settings = config.eval
    if settings.protocol != "full_context":
        raise UserError(
            f"config.eval.far_margin={settings.far_margin}: should be 0 with config.eval.protocol="
            f"{settings.protocol}; it is for full_context"
        )
    if not 0 <= settings.near < train_length:
        raise UserError(
            f"config.eval.near={settings.near}: should be below {train_length}, the training length"
        )


def with_far(
    run: Pretrained,
    config: Config,
    frame: Frame,
    sequences: Sequences | Prompts,
    folder: AnyPath,
    mesh: Mesh,
) -> Sequences:
    """The sequences with those predictions marked that gain more than `eval.far_margin` nats.

    Args:
      run: the trained model.
      config: of the evaluation.
      frame: of the tokeniser.
      sequences: of the protocol full_context.
      folder: where gains are kept, so that they are measured once.
      mesh: of devices.
    """
    assert isinstance(sequences, Sequences)
    settings, long = config.eval, run.config.data.train_length
    short = settings.near or max(1, long // 8)
    length = sequences.batch["tokens"].shape[1]
    key = {
        "figures_version": FIGURES_VERSION,
        "weights": [run.step, run.weights, run.identity],
        "methods": [repr(method) for method in model_methods(run.model)],
        "types": [str(run.model.config.dtype), jax.default_backend()],
        "sequences": digest_of(sequences),
        "contexts": [short, long],
    }
    path = folder / f"gains-{length}-{digest(key)}.npy"
    found = _read(path, sequences.batch["targets"].shape)
    if not in_all([found is not None])[0] or found is None:
        if is_first():
            print(f"looking for what needs more than {short} tokens, at {length}", flush=True)
        found = gains(
            run.model, sequences, long, short, frame, batch_tokens=settings.batch_tokens,
            mesh=mesh if mesh.size > 1 else None,
        )  # fmt: skip
        if is_first():
            content = io.BytesIO()
            np.save(content, found, allow_pickle=False)
            make_folder(folder)
            write_atomically(path, content.getvalue())
    return sequences._replace(far=found > settings.far_margin)


def _read(path: AnyPath, shape: tuple[int, ...]) -> Float[np.ndarray, "C P"] | None:
    """The gains that a file keeps; None where there are none, or others."""
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
