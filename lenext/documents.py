"""Makes an evaluation set of your own long documents.

    python -m lenext.documents --files=FOLDER,FILE,GLOB --target=DIR [--workdir=RUN]

Documents are files of text (.txt), Markdown (.md), HTML (.html, .htm) and PDF (.pdf), and lines of
.jsonl and .jsonl.gz; HTML and PDF take the extra `documents`. DIR/documents.jsonl holds those that
have a text, each once, and lenext.evaluate takes all of them with --config.eval.split=all. With
--workdir, none that the run was trained on is among them. A table says what each length has.

--files=FILES         folders (searched to the bottom), files and globs, with commas
--target=DIR          what to make
--workdir=RUN         the run to evaluate: its tokeniser, training length and training documents
--tokenizer=NAME      in place of the run's; bytes where there is no run
--lengths=1024,2048   of the table; default: doublings of the run's training length, or of 1024, up
                      to the longest document
--field=text          where a line of a .jsonl has its text
"""

from absl import flags

from lenext import cli
from lenext.buckets import as_path, on_disk
from lenext.config import base_config, read_lengths, to_config
from lenext.errors import UserError
from lenext.evaluation.own_documents import Asked, make_set
from lenext.workdirs.workdir import read_run_config

FIRST_LENGTH = 1024


def main() -> None:
    """Parses the flags, and makes the set.

    Raises:
      UserError: for flags that do not fit, or what `make_set` refuses.
    """
    files = flags.DEFINE_string("files", "", "Folders, files and globs, with commas.")
    target = flags.DEFINE_string("target", "", "Folder to make.")
    workdir_flag = flags.DEFINE_string("workdir", "", "Folder of the run.")
    tokenizer = flags.DEFINE_string("tokenizer", "", "In place of the run's.")
    lengths = flags.DEFINE_string("lengths", "", "Of the table.")
    field = flags.DEFINE_string("field", "text", "Where a line of a .jsonl has its text.")
    cli.parse_flags()
    cli.end_on_sigterm()
    if not files.value.strip(" ,"):
        raise UserError("--files=FOLDER,FILE,GLOB is missing")
    if not target.value:
        raise UserError("--target=DIR is missing")
    if "," in target.value:
        raise UserError(
            f"--target={target.value}: should have no comma, which parts names of files"
        )
    workdir, config = None, base_config()
    if workdir_flag.value:
        workdir = as_path(workdir_flag.value)
        stored = read_run_config(workdir)
        if stored is None:
            raise UserError(f"workdir {workdir}: holds no run")
        config = to_config(stored)
    else:
        config.model.family = "decoder"  # whose crops are a token longer
        config.data.train_length = FIRST_LENGTH
    config.data.tokenizer = tokenizer.value or config.data.tokenizer
    make_set(
        Asked(
            files=files.value,
            target=on_disk(target.value, "--target").expanduser(),
            workdir=workdir,
            config=config,
            lengths=read_lengths(lengths.value, "--lengths") if lengths.value else (),
            field=field.value,
            tokenizer_given=bool(tokenizer.value),
        )
    )


if __name__ == "__main__":
    cli.guard(str(__doc__), main, interrupted="interrupted; nothing was written")
