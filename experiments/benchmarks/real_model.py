"""A real model here and in transformers: a forward pass with its loss, and drawing text.

    make smollm2
    python -m experiments.benchmarks.real_model

The model of --workdir goes out as a folder, and transformers opens that with PyTorch's attention
(`sdpa`). Both take the same tokens of Python's standard library. Before anything is timed, their
losses have to agree, and the tokens that they draw. Our pass is that of `lenext.evaluate` without
its look at attention rows; drawn is the likeliest token, one at a time, after a prompt of half the
shortest length. Writes real_model.md, .json and .png under --results.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, number
from experiments.benchmarks.training_step import ParityError
from lenext.config import Config, to_config
from lenext.data import open_tokenizer
from lenext.data.stdlib_source import stdlib_root
from lenext.errors import UserError
from lenext.importing import export_checkpoint
from lenext.models import take_apart, token_figures
from lenext.models.generation import Sampling, generate
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.workdir import read_run_config

TITLE = "A real model's forward pass and decoding"
OURS, THEIRS = "lenext", "transformers"
WORKDIR = Path("runs/smollm2")
LENGTHS = (2048, 8192)
QUICK = (128, 256)
DRAWN = 32
TOLERANCE = 1e-4  # of losses, in nats


class Peer(NamedTuple):
    """What is timed.

    Attributes:
      loss: of the tokens [n + 1], each predicted from those before it; the mean, in nats.
      draw: the likeliest tokens after a prompt [n], so many of them.
    """

    loss: Callable[[np.ndarray], float]
    draw: Callable[[np.ndarray, int], list[int]]


def text_tokens(config: Config, count: int) -> np.ndarray:
    """The first tokens of the standard library's longest modules, one after the other."""
    root = Path(stdlib_root())
    files = sorted(root.glob("*.py"), key=lambda file: (-file.stat().st_size, file.name))
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files[:8])
    ids = open_tokenizer(config).encode(text[: 16 * count])
    if len(ids) < count:
        raise UserError(f"the standard library's longest modules have {len(ids)} tokens of {count}")
    return np.asarray(ids[:count], np.int32)


def ours(workdir: Path, lengths: Sequence[int]) -> tuple[Peer, dict[int, measure.Compiled]]:
    """The run's model, its pass compiled for every length."""
    model: Any = load_run(workdir).model
    graphdef, params = nnx.split(model)

    def forward(params, batch):
        return token_figures(nnx.merge(graphdef, params), batch).loss

    def batch_of(tokens):
        row = jax.numpy.asarray(tokens)[None]
        ones = jax.numpy.ones((1, len(tokens) - 1), jax.numpy.float32)
        return {"tokens": row[:, :-1], "targets": row[:, 1:], "weights": ones}

    passes = {
        length: measure.compiled(forward, params, batch_of(np.zeros(length + 1, np.int32)))
        for length in lengths
    }
    apart = take_apart(model)

    def loss(tokens):
        return float(np.mean(passes[len(tokens) - 1].call(params, batch_of(tokens))))

    def draw(prompt, count):
        likeliest = Sampling(temperature=0.0)
        return [int(x[0]) for x in generate(apart, prompt[None], count, sampling=likeliest)]

    return Peer(loss, draw), passes


def theirs(workdir: Path) -> Peer:
    """The run's model in transformers, through a folder that is gone when it is loaded."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        export_checkpoint(workdir, folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def loss(tokens):
        row = torch.tensor(tokens[None], dtype=torch.int64)
        with torch.inference_mode():
            # Their own loss is of labels moved by one within the row.
            logits = model(row[:, :-1], use_cache=False).logits[0]
            return float(torch.nn.functional.cross_entropy(logits, row[0, 1:]))

    def draw(prompt, count):
        row = torch.tensor(prompt[None], dtype=torch.int64)
        with torch.inference_mode():
            drawn = model.generate(
                row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=0,
                min_new_tokens=count, max_new_tokens=count,
            )  # fmt: skip
        return drawn[0, len(prompt) :].tolist()

    return Peer(loss, draw)


def check_parity(found: dict[str, Any], what: str) -> None:
    """Losses must agree to `TOLERANCE`, and tokens wholly.

    Raises:
      ParityError: they do not.
    """
    mine, other = found[OURS], found[THEIRS]
    if np.shape(mine) != np.shape(other) or not np.allclose(mine, other, rtol=0, atol=TOLERANCE):
        raise ParityError(f"{what}: {THEIRS} has {other}, and we {mine}")


def time_peers(
    peers: dict[str, Peer], what: str, call: Callable[[Peer], Any], tokens: int, runs: int
) -> list[Record]:
    """What a call takes of each, after what it gives is compared."""
    found = {name: call(peer) for name, peer in peers.items()}  # which warms them up
    if len(found) > 1:
        check_parity(found, what)
    calls = {name: (lambda peer=peer: call(peer)) for name, peer in peers.items()}
    times = measure.interleaved(calls, runs, warm_up=False)
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, THEIRS)
    return [
        {
            "what": what, "candidate": name, "seconds": seconds[name], "ratio": relative[name],
            "times": times[name], "rate": tokens / seconds[name],
        }
        for name in peers
    ]  # fmt: skip


def markdown(records: Sequence[Record], notes: Sequence[str]) -> list[str]:
    """One table, and what is to be known of it."""
    return [
        *measure.table(
            ["what", "candidate", "s", f"x {THEIRS}", "tokens / s"],
            [
                [
                    r["what"], r["candidate"], number(r["seconds"]), number(r["ratio"]),
                    number(r["rate"]),
                ]
                for r in records
            ],
            names=2,
        ),
        "",
        "- One sequence, float32; losses agree to 1e-4 nats, and all tokens drawn are the same.",
        "- Passes are timed with no call before each, but for one of all.",
        *(f"- {note}" for note in notes),
    ]  # fmt: skip


def run(workdir: Path, lengths: Sequence[int], drawn: int, runs: int, results: Path) -> None:
    """Measures, and writes real_model.md, .json and .png."""
    config = read_run_config(workdir)
    if config is None:
        raise UserError(f"{workdir}: holds no model; `make smollm2` fetches and imports one")
    tokens = text_tokens(to_config(config), max(lengths) + 1)
    about = measure.describe(
        {"lengths": list(lengths), "drawn": drawn, "model": config["model"]},
        [tokens], seeds=[], tokens=max(lengths), steps=runs,
    )  # fmt: skip
    mine, passes = ours(workdir, lengths)
    peers, missing = {OURS: mine}, why_no_transformers()
    if missing:
        notes = [missing]
    else:
        import transformers  # pyright: ignore[reportMissingImports]

        about["versions"][THEIRS] = transformers.__version__
        notes = [f"{THEIRS} {transformers.__version__}, PyTorch's own attention (`sdpa`)."]
        peers[THEIRS] = theirs(workdir)
    records: list[Record] = []
    for length in lengths:
        what = f"loss at {length:,}"
        print(f"{what} …", flush=True)
        part = tokens[: length + 1]
        records += time_peers(peers, what, lambda peer, part=part: peer.loss(part), length, runs)
        peak = measure.megabytes(passes[length].temp_bytes)
        notes.append(f"Beside weights and tokens, our pass at {length:,} holds {peak} MB.")
    prompt = tokens[: min(lengths) // 2]
    what = f"{drawn} tokens after {len(prompt):,}"
    print(f"{what} …", flush=True)
    records += time_peers(peers, what, lambda peer: peer.draw(prompt, drawn), drawn, runs)
    bars: dict[str, dict[str, float]] = {}
    for r in records:
        bars.setdefault(r["what"], {})[r["candidate"]] = r["seconds"]
    measure.write(
        results, "real_model", TITLE, markdown(records, notes), about, records,
        measure.draw_bars(bars, "seconds", TITLE),
    )  # fmt: skip


def why_no_transformers() -> str:
    """Why it is not compared with; "" where it is."""
    missing = measure.why_no_torch()
    if missing or importlib.util.find_spec(THEIRS):
        return missing
    return f"transformers not installed: {measure.INSTALL_TORCH} transformers"


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=5)
    parser.add_argument("--workdir", type=Path, default=WORKDIR, help="(default %(default)s)")
    words = ",".join(map(str, LENGTHS))
    parser.add_argument("--lengths", type=measure.counts, help=f"with commas (default {words})")
    given = parser.parse_args()
    lengths = given.lengths or (QUICK if given.quick else LENGTHS)
    run(given.workdir, lengths, DRAWN, given.runs, given.results)


if __name__ == "__main__":
    main()
