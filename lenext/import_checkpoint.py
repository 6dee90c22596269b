"""Makes a workdir of another library's checkpoint.

    python -m lenext.import_checkpoint --source=DIR|FILE.gguf --workdir=DIR

--source is a folder with config.json and weights (model.safetensors, pytorch_model.bin, or the
shards of either): of Hugging Face's Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3, Phi-3, GPT-NeoX,
GPT-2 or RoFormer, or of GAU-α in PyTorch; or a GGUF file of llama.cpp, of the architectures llama,
qwen2, qwen3 or gemma3, quantised or not, which takes the package gguf. Its tokeniser comes along,
and what it says of the start and the end of a text (data.bos, data.eos). The workdir is as any
run's: lenext.evaluate and lenext.generate take it, and lenext.train goes on from it by
configs/finetune.py.

  --source=DIR          the folder, or the file
  --workdir=DIR         what to make
  --tokenizer=FILE      a tokenizer.json or vocab.txt in place of its own; none for no tokeniser
  --train_length=0      tokens that the weights count as trained at; 0 for what config.json says
  --layers=0            how many layers to take, the first; 0 for all
  --param_dtype=float32 or bfloat16: in which weights are kept
"""

from pathlib import Path

from absl import flags

from lenext import cli
from lenext.buckets import as_path
from lenext.config import to_config
from lenext.data import open_tokenizer
from lenext.errors import UserError
from lenext.importing import import_checkpoint
from lenext.importing.convert import abstract_model
from lenext.models import parameter_table
from lenext.models.build import DTYPES
from lenext.workdirs.workdir import read_run_config


def main() -> None:
    """Parses the flags, imports, and says what was found.

    Raises:
      UserError: for flags that do not fit, or what `import_checkpoint` refuses.
    """
    source = flags.DEFINE_string("source", "", "Folder or GGUF file of the checkpoint.")
    workdir_flag = flags.DEFINE_string("workdir", "", "Folder to make.")
    train_length = flags.DEFINE_integer("train_length", 0, "Trained at; 0 for what it says.")
    layers = flags.DEFINE_integer("layers", 0, "How many, the first; 0 for all.", lower_bound=0)
    tokenizer = flags.DEFINE_string("tokenizer", "", "In place of its own.")
    param_dtype = flags.DEFINE_enum("param_dtype", "float32", DTYPES, "In which weights are kept.")
    cli.parse_flags()
    cli.end_on_sigterm()
    for flag in (source, workdir_flag):
        if not flag.value:
            raise UserError(f"--{flag.name}=DIR is missing")
    if train_length.value < 0 or train_length.value == 1:
        raise UserError(f"--train_length={train_length.value}: should be at least 2, or 0")
    workdir = as_path(workdir_flag.value)
    recipe = import_checkpoint(
        Path(source.value),
        workdir,
        train_length=train_length.value,
        layers=layers.value,
        param_dtype=param_dtype.value,
        tokenizer=tokenizer.value,
    )
    stored = read_run_config(workdir)
    assert stored is not None  # it was written just now
    data = stored["data"]
    print(parameter_table(abstract_model(to_config(stored))))
    print(f"method: {recipe.model['method']}, trained at {data['train_length']} tokens")
    print(f"tokenizer: {data['tokenizer'] or 'none; the model takes token ids'}")
    if data["tokenizer"]:
        frame = open_tokenizer(to_config(stored)).frame
        said = [", ".join(map(str, ids)) or "none" for ids in (frame.start, frame.stops)]
        print(f"texts start with: {said[0]} (data.bos), and end with: {said[1]} (data.eos)")
    print(f"imported: {workdir}")


if __name__ == "__main__":
    cli.guard(str(__doc__), main, interrupted="interrupted")
