"""Causal language models at three sizes, with softmax, LSSA or LSSAR attention (arXiv 2501.13428).

    python -m lenext.train --config=configs/decoder.py:tiny,lssar --workdir=runs/tiny_lssar
    python -m lenext.evaluate --config=configs/decoder.py:tiny,lssar --workdir=runs/tiny_lssar

tiny: 4 layers of 160 on bytes of Python's standard library, trained at 128. On two cores a step
  takes a fifth of a second in huge pages (docs/devices.md), whichever of them. Expect a loss of
  1.09, 1.09 and 1.12 at 128, and 2.81, 3.54 and 1.41 at 2048 (one seed).
small: 6 layers of 384 at 512, on bytes too; for a GPU. Not trained here.
gpt2_small: the paper's model, 12 layers of 768 with RoPE at 1024, for 10 billion tokens of a text
  of your own: --config.data.files=FOLDER and --config.data.tokenizer=FOLDER/tokenizer.json (GPT-2's
  or another). For several GPUs or a TPU pod; not trained here. The paper's validation losses at
  1K/2K/4K/8K: softmax 3.19/4.17/5.45/6.28, LSSA 3.19/4.13/5.30/5.94, LSSAR 3.19/3.19/3.23/3.32.
"""

from lenext.config import Config, read_arg


def _decoder(config: Config) -> None:
    """What all sizes share."""
    config.model.family = "decoder"
    config.evaluators.validation.type = "full_context"
    config.training.best_metric = "eval/validation/loss"
    config.eval.protocol = "full_context"


def tiny(config: Config) -> None:
    """What two cores train in some minutes."""
    _decoder(config)
    config.model.update(
        hidden_size=160, intermediate_size=432, key_size=32, num_heads=5, num_layers=4
    )
    config.data.update(train_length=128, batch_size=32)
    config.training.update(steps=1000, log_every=50, eval_every=500, checkpoint_every=500)
    config.evaluators.validation.length = 128
    config.eval.update(lengths="128,256,512,1024,2048", documents=24, tokens=49152)


def small(config: Config) -> None:
    """Ten times the parameters of the tiny one, at four times its length."""
    _decoder(config)
    config.model.update(
        hidden_size=384, intermediate_size=1024, key_size=64, num_heads=6, num_layers=6, dropout=0.1
    )
    config.data.update(train_length=512, batch_size=64)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=500, weight_decay=0.1)
    config.training.update(steps=5000, log_every=100, eval_every=500, checkpoint_every=500)
    config.evaluators.validation.length = 512
    config.eval.update(lengths="512,1024,2048,4096,8192", documents=24, tokens=98304)


def gpt2_small(config: Config) -> None:
    """The softplus paper's setting: GPT-2 small with RoPE in place of learned positions."""
    _decoder(config)
    config.model.update(
        hidden_size=768, intermediate_size=3072, key_size=64, num_heads=12, num_layers=12,
        mlp="plain", vocab_size=50304, dtype="bfloat16",
    )  # fmt: skip
    config.data.update(
        dataset="text_files", tokenizer="tokenizer.json", packing=True, train_length=1024,
        batch_size=480,
    )  # fmt: skip
    config.optimizer.update(learning_rate=6e-4, warmup_steps=700, weight_decay=0.1, b2=0.95)
    config.training.update(steps=20345, log_every=100, eval_every=1000, checkpoint_every=1000)
    config.evaluators.validation.update(length=1024, tokens=262144)
    config.eval.update(lengths="1024,2048,4096,8192", documents=64, tokens=524288)


def softmax(config: Config) -> None:
    """Softmax, and training-free changes to it."""
    config.model.method = "softmax"
    config.eval.methods = "softmax,infoscale,log_length,yarn,rerope,rerope+log_length,lm_infinite"


def lssa(config: Config) -> None:
    """LSSA, and its weights under LSSAR."""
    config.model.method = "lssa"
    config.eval.methods = "lssa,lssar"


def lssar(config: Config) -> None:
    """LSSAR with p = 15."""
    config.model.method = "lssar"
    config.eval.methods = "lssar"


def get_config(arg: str | None = None) -> Config:
    """Argument: a size ("tiny" where none is given), a method ("softmax"), "smoke" for seconds."""
    sizes = {"tiny": tiny, "small": small, "gpt2_small": gpt2_small}
    return read_arg(arg, sizes, {"softmax": softmax, "lssa": lssa, "lssar": lssar})
