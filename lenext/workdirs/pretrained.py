"""Models from workdirs."""

import sys
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from lenext.attention import AnyMethod
from lenext.attention.grammar import names
from lenext.buckets import AnyPath, as_path
from lenext.config import Config, check_model, read_methods, to_config
from lenext.config.imports import load
from lenext.data import Tokenizer, get_tokenizer
from lenext.errors import UserError
from lenext.models.build import FAMILIES, Model, build_model
from lenext.models.stack import places_of
from lenext.models.swap import model_methods
from lenext.parallel.memory import bytes_of, check_fits, said
from lenext.parallel.meshes import shapes_on, splits_of
from lenext.workdirs.checkpoints import Checkpoints, newest_step, weights_identity
from lenext.workdirs.versions import changed_sources, outside_sources
from lenext.workdirs.workdir import read_run_config


class Pretrained(NamedTuple):
    """A trained model and where it comes from.

    Attributes:
      model: under the methods that it was trained with.
      config: of the run.
      step: of the checkpoint.
      weights: "params", or "ema" for their moving average.
      tokenizer: fingerprint of the one that it was trained with; "" where that is not known.
      identity: what tells the checkpoint from every other.
    """

    model: Model
    config: Config
    step: int
    weights: str
    tokenizer: str
    identity: str

    def read_methods(self, text: str) -> tuple[AnyMethod, ...]:
        """The method of each layer by a pattern, "a|b", in which a name may be "trained".

        Raises:
          UserError: for an unknown method or option, or one that does not fit its heads.
        """
        return read_methods(
            text, self.config.data.train_length, model_methods(self.model),
            head_dim=self.config.model.key_size,
            num_heads=self.model.layers.attention.num_heads,
            causal=self.model.objective == "causal_lm",
        )  # fmt: skip

    def sources_of(self, name: str) -> dict[str, list[str]]:
        """The sources from outside lenext of a method, in which a name may be "trained"."""
        trained = [self.config.model.method] if "trained" in names(name) else []
        return outside_sources([name, *trained])

    def check_tokenizer(self, tokenizer: Tokenizer, name: str) -> None:
        """Checks that ids mean what they meant in training.

        Raises:
          UserError: the tokeniser called `name` gives other ids than the run's.
        """
        if self.tokenizer not in ("", tokenizer.fingerprint):
            raise UserError(
                f"tokenizer {name}: gives other ids than {self.config.data.tokenizer} did when the "
                f"weights were trained: fingerprint {tokenizer.fingerprint}, was {self.tokenizer}"
            )

    def open_tokenizer(self, name: str = "", *, bos: str = "") -> Tokenizer:
        """The run's tokeniser, for the ids that its model has.

        Args:
          name: of one to take in its place, see `lenext.data.get_tokenizer`.
          bos: what texts start with, in place of what the run's config says.

        Raises:
          UserError: there is none; it gives other ids than in training, or more than the model has.
        """
        data, size = self.config.data, self.model.config.vocab_size
        name = name or data.tokenizer
        tokenizer = get_tokenizer(name, bos=bos or data.bos, eos=data.eos)
        self.check_tokenizer(tokenizer, name)
        if tokenizer.text_size > size:
            raise UserError(
                f"tokenizer {name}: has {tokenizer.text_size} ids, and the model {size}"
            )
        return tokenizer.within(size)


def load_run(
    workdir: AnyPath,
    *,
    weights: str = "params",
    model_config: Config | None = None,
    vocab_size: int | None = None,
    param_dtype: str | None = None,
    mesh: Mesh | None = None,
    imports: str | None = None,
) -> Pretrained:
    """The newest checkpoint of a workdir.

    Args:
      workdir: of a run.
      weights: "params", or "ema" for their moving average.
      model_config: sizes to take in place of the run's own (section `model`), which must be the
        same but may say other types.
      vocab_size: that the model must have; default: what it has.
      param_dtype: in place of the one in these sizes.
      mesh: over which the parameters are split, see `lenext.parallel.meshes`; default: one device.
      imports: in place of the run's own `config.imports`.

    Raises:
      UserError: for a workdir without a checkpoint, a checkpoint of another shape, or a run that
        kept no average.
    """
    stored = read_run_config(workdir)
    step = newest_step(workdir)
    if stored is None or step is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint; train there first")
    checkpoints = Checkpoints(workdir)
    config = to_config(stored)
    load(config.imports if imports is None else imports)
    sizes = config.model if model_config is None else model_config
    check_model(sizes, config.model, str(workdir))
    checkpoints.check_depth(step, sizes.num_layers)
    methods = read_methods(config.model.method, config.data.train_length)
    if vocab_size is None:
        vocab_size = checkpoints.rows(step, FAMILIES[sizes.family].token_embedding)
    model = nnx.eval_shape(
        lambda: build_model(sizes, methods, vocab_size, seed=0, param_dtype=param_dtype)
    )
    graphdef, abstract = nnx.split(model)
    like = nnx.to_pure_dict(abstract)
    if mesh is not None:
        like = shapes_on(like, mesh, splits_of(model))
    size = bytes_of(like)
    check_fits(
        size, f"workdir {workdir}: its parameters want {said(size)}",
        "config.model.param_dtype=bfloat16 halves them in an evaluation, and config.mesh.fsdp "
        "splits them over its devices", mesh,
    )  # fmt: skip
    identity = weights_identity(workdir, step)  # before: a training may remove it at any time
    params = checkpoints.restore_params(step, like, weights, places_of(model))
    data = checkpoints.restore_data(step)
    checkpoints.close()
    for name in changed_sources([config.model.method], data.get("methods", {})):
        print(
            f"warning: method {name}: its source has changed since {workdir} was trained with it",
            file=sys.stderr,
        )
    model, tokenizer = nnx.merge(graphdef, params), data.get("tokenizer", "")
    return Pretrained(model, config, step, weights, tokenizer, identity)


def load_pretrained(workdir: str | AnyPath) -> Model:
    """The model of a workdir's newest checkpoint, under the methods that it was trained with.

    Args:
      workdir: of a run.

    Returns:
      A model: `model(tokens)` gives float32 logits [B, T, V] for int tokens [B, T];
      `lenext.models.with_method(model, method)` gives the same weights under another method.

    Raises:
      UserError: for a workdir without a checkpoint, or a checkpoint that its config does not fit.
    """
    return load_run(as_path(workdir)).model
