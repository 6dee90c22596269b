"""The configuration that every experiment starts from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from lenext.config.model import ModelConfig
from lenext.errors import UserError

Config: TypeAlias = Any
"""An `ml_collections.ConfigDict` with the keys of `base_config`; its values have no static type."""


def base_config() -> Config:
    """Every key there is, with its default. Configs set what they change; no key may be added."""
    config: Config = ConfigDict()
    config.seed = 0  # initial values, data order, masks, dropout
    # Python files or modules that register methods, with commas. Kept with a run, which needs them.
    config.imports = ""

    # Sizes and types are ModelConfig's to explain. Family: "gau", an encoder for masked language
    # modelling; "decoder", causal; or "encoder", of transformer layers as RoFormer's. Method: one,
    # or several joined by | that repeat over the layers, "rerope(window=32)|softmax".
    config.model = ConfigDict(
        {"family": "gau", "method": "softmax"} | dataclasses.asdict(ModelConfig())
    )

    config.data = ConfigDict()
    # stdlib_source, stdlib_packages, text_files, or tfds:NAME.
    config.data.dataset = "stdlib_source"
    config.data.files = ""  # of text_files: folder, file or pattern; several with commas
    config.data.field = "text"  # where a jsonl line or a TFDS example has its text
    config.data.data_dir = ""  # where prepared datasets lie; "" for TFDS's own place
    config.data.tokenizer = "bytes"  # or the path of a tokenizer.json or a BERT vocab.txt
    # What documents, crops and prompts start with: auto, as the tokeniser's own post-processor has
    # it; none; or tokens or their ids, with commas.
    config.data.bos = "auto"
    # What a document ends with, the first of several; drawn text ends at any of them. auto: as an
    # imported checkpoint or the tokeniser says, or else by customary names, which is told; none.
    config.data.eos = "auto"
    config.data.packing = False  # several documents a row, so that short ones are used too
    config.data.train_length = 64  # L, tokens
    # Of the tokens trained on: plain, 0 to L - 1; pose, with skips (arXiv 2309.10400); or random,
    # drawn and sorted (arXiv 2305.16843).
    config.data.positions = "plain"
    # Of pose and random: positions are below it. Methods with a scale want it given, as target / L.
    config.data.target_length = 0
    config.data.pose_chunks = 2  # of pose: parts of a sequence, between which positions skip
    # Hidden in each training sequence, whose answers alone are trained on: passkey or
    # associative_recall; or in its place, copy, reverse, sort, flip_flop, n_back or mqmtar (see
    # lenext/data/tasks.py and synthetic.py; decoder only). "" for the text as it is.
    config.data.task = ""
    config.data.needles = 1  # of the task, in a sequence
    config.data.batch_size = 64  # sequences a step, all devices and processes together
    config.data.mask_rate = 0.15

    config.optimizer = ConfigDict()
    # adamw; lion; or muon for the layers' matrices, with adamw for embeddings, head and vectors.
    config.optimizer.name = "adamw"
    # The peak. Muon's steps are scaled to be as long as AdamW's; Lion wants 3 to 10 times less.
    config.optimizer.learning_rate = 2e-3
    # After the warm-up: cosine or linear, to zero; or wsd, stable and then linear to zero.
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 200  # wsd: the last so many; 0 stays at the peak
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_mask = "matrices"  # or no_embeddings, matrices but those; or all
    # Parameters that stay as they start, with commas: "layers.*.attention.learned", a method's; or
    # all but those, "*,!layers.*.attention.learned".
    config.optimizer.frozen = ""
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0  # of all gradients together; inf clips none

    config.training = ConfigDict()
    config.training.steps = 1000
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.checkpoint_every = 500
    config.training.keep_latest = 2
    config.training.best_metric = "eval/validation/accuracy"  # whose best checkpoint is kept
    config.training.accumulate = 1  # micro-batches that a batch is taken in, to save memory
    config.training.z_loss = 0.0  # factor of mean log_z^2, beside the loss
    # Factor of what heads' entropies are off a share of ln n, learned per head (arXiv 2501.03489).
    config.training.entropy_regulariser = 0.0
    # Of a moving average of the parameters, which evaluators see too (eval/NAME_ema/…); 0 for none.
    config.training.ema_decay = 0.0
    config.training.branch_from = ""  # another run's workdir, from whose checkpoint to start
    config.training.branch_step = 0  # of which step; 0 for the newest

    # Devices along each axis of the mesh that runs are spread over, see lenext/parallel/meshes.py.
    # No part of what a run is: it may go on with another mesh. 0, for one axis: all that the others
    # leave.
    config.mesh = ConfigDict({"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1})

    # Evaluators run during training, by name; see lenext/evaluation/evaluators.py for the types.
    config.evaluators = ConfigDict()
    config.evaluators.validation = ConfigDict(
        {"type": "mlm15", "split": "validation", "length": 64, "documents": 64, "tokens": 32768}
    )

    config.eval = ConfigDict()  # what `python -m lenext.evaluate` sweeps
    config.eval.methods = "softmax"  # separated by commas; the first is the one compared with
    config.eval.lengths = "64,128,256,512,1024"
    # For a GAU mlm15 or single_mask; for a decoder full_context, sliding_window, passkey,
    # associative_recall, the other tasks of data.task, or ruler.
    config.eval.protocol = "mlm15"
    config.eval.split = "validation"  # or "all", of text_files: each document that is there
    config.eval.bos = ""  # in place of data.bos, if given
    config.eval.weights = "params"  # or "ema", their moving average
    config.eval.documents = 64  # the longest documents of the split, at most
    config.eval.tokens = 65536  # a length, at least; each document gives at least one crop
    config.eval.masks = 8  # single_mask: positions a crop, each masked in a pass of its own
    config.eval.needles = 1  # passkey, associative_recall: in a sequence
    # ruler: what is asked, with commas, see lenext/data/ruler.py; documents is prompts a task.
    config.eval.tasks = "niah_single_1,niah_multikey_2,vt"
    config.eval.chat = False  # ruler: in the chat template of an imported model
    config.eval.stride = 32  # sliding_window: how many last tokens of a window are predicted
    # full_context: nats by which a context of up to the training length L has to make a token
    # likelier than one of up to `near` tokens (0: L / 8) for its loss to be told apart; 0: none is.
    config.eval.far_margin = 0.0
    config.eval.near = 0
    config.eval.batch_tokens = 4096  # in one forward pass, at least one sequence
    # A bucket holds a longest length and those above it / this: they are padded to it and share its
    # compiled pass. At 1.0 each length stands alone.
    config.eval.bucket = 1.0
    config.eval.probe_rows = 32  # rows a sequence looked at for entropy and dilution
    config.eval.calibration_documents = 16  # --calibrate: the longest of those trained on
    config.eval.calibration_tokens = 16384  # a length, at least, as in eval.tokens
    config.eval.bootstrap = 2000  # resamples of the documents
    # Share of its loss at the training length by which a method's loss may exceed it, at a length
    # that still counts as an effective one.
    config.eval.margin = 0.05
    config.eval.seed = 0  # masks and bootstrap
    config.lock()
    config.evaluators.unlock()  # their names are the config's own
    return config


def smoke(config: Config) -> Config:
    """Shrinks a config to a run of seconds; what it leaves alone is the method and the data."""
    config.model.update(hidden_size=32, intermediate_size=64, key_size=16, num_layers=2)
    if config.data.target_length:  # as many times the training length as before
        config.data.target_length = -(-config.data.target_length * 32 // config.data.train_length)
    config.data.update(train_length=32, batch_size=8, pose_chunks=min(config.data.pose_chunks, 32))
    config.optimizer.warmup_steps = 5
    if config.optimizer.schedule == "wsd":
        config.optimizer.decay_steps = 5
    config.training.update(steps=20, log_every=5, eval_every=10, checkpoint_every=10)
    for evaluator in config.evaluators.values():
        evaluator.update(length=32, documents=8, tokens=1024)
    config.eval.update(lengths="32,128", documents=8, tokens=1024, probe_rows=8, bootstrap=200)
    config.eval.update(calibration_documents=4, calibration_tokens=1024)
    return config


def read_arg(arg: str | None, *choices: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Builds a config from a file's argument: words with commas, such as "tiny,lssar,smoke".

    Args:
      arg: what followed the colon on the command line.
      *choices: each maps words to functions that apply them to the config. One word at most is
        taken of each, its first where there is none; "smoke" shrinks the whole at the end.

    Raises:
      UserError: for a word that is in none, or a second one of the same.
    """
    words = [word for word in (arg or "").split(",") if word]
    taken = [[word for word in words if word in choice] for choice in choices]
    known = {word for choice in choices for word in choice} | {"smoke"}
    if not known.issuperset(words) or any(len(some) > 1 for some in taken):
        groups = ["|".join(word for word in choice if word) for choice in choices]
        raise UserError(
            f"config argument {arg!r}: choose from {', '.join(g for g in [*groups, 'smoke'] if g)}"
        )
    config = base_config()
    for choice, some in zip(choices, taken, strict=True):
        choice[some[0] if some else next(iter(choice))](config)
    return smoke(config) if "smoke" in words else config
