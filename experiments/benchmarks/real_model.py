"""A real model here and in transformers: a forward pass with its loss, and drawing text.

    make smollm2
    python -m experiments.benchmarks.real_model

The model of --workdir goes out as a folder, and transformers opens that with PyTorch's attention
(`sdpa`). Both take the same tokens of Python's standard library. Before anything is timed, their
losses have to agree, and the tokens that they draw. Our pass is that of `lenext.evaluate` without
its look at attention rows. Drawn is the likeliest token, one at a time, from the cache that a
prompt left: transformers keeps one that grows, or one of a fixed size ("static"), whose step it may
compile. The time is that from the first drawn token to the last. Writes real_model.md, .json and
.png under --results.
"""

import functools
import importlib.util
import tempfile
import time
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
STATIC, COMPILED = f"{THEIRS}, static cache", f"{THEIRS}, static cache, compiled"
LENGTHS = (2048, 8192)
PROMPTS = (512, 8192)
QUICK = (128, 256)
DRAWN = 65
TOLERANCE = 1e-4  # of losses, in nats


class Drawn(NamedTuple):
    """Tokens, and the seconds from the first of them to the last."""

    tokens: list[int]
    seconds: float


class Peer(NamedTuple):
    """What is timed.

    Attributes:
      loss: of the tokens [n + 1], each predicted from those before it; the mean, in nats.
      draw: by name, ways to the likeliest tokens after a prompt [n], so many of them.
    """

    loss: Callable[[np.ndarray], float]
    draw: dict[str, Callable[[np.ndarray, int], Drawn]]


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
        clock = _Clock()
        for token in generate(apart, prompt[None], count, sampling=Sampling(temperature=0.0)):
            clock.put(token)
        return clock.drawn()

    return Peer(loss, {OURS: draw}), passes


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

    def drawing(**how):
        def draw(prompt, count):
            row, clock = torch.tensor(prompt[None], dtype=torch.int64), _Clock(skip=1)
            with torch.inference_mode():
                model.generate(
                    row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=0,
                    min_new_tokens=count, max_new_tokens=count, streamer=clock, **how,
                )  # fmt: skip
            return clock.drawn()

        return draw

    everywhere: Any = transformers.CompileConfig()
    everywhere._compile_all_devices = True  # it compiles for accelerators alone otherwise
    static = {"cache_implementation": "static"}
    ways = {
        THEIRS: drawing(),
        STATIC: drawing(**static, disable_compile=True),
        COMPILED: drawing(**static, compile_config=everywhere),
    }
    return Peer(loss, ways)


class _Clock:
    """Takes tokens as they are drawn, as a streamer of transformers, which is given the prompt too.

    Args:
      skip: how many times it is given something before the first drawn token.
    """

    def __init__(self, skip: int = 0):
        self.skip, self.tokens, self.times = skip, [], []

    def put(self, value: Any) -> None:
        """The next token of the one row."""
        if self.skip:
            self.skip -= 1
            return
        self.tokens.append(int(value[0]))
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing follows."""

    def drawn(self) -> Drawn:
        """All of them."""
        return Drawn(self.tokens, self.times[-1] - self.times[0])


def check_parity(found: dict[str, Any], what: str) -> None:
    """Losses must agree to `TOLERANCE`, and tokens wholly.

    Raises:
      ParityError: they do not.
    """
    mine, other = found[OURS], found[THEIRS]
    if np.shape(mine) != np.shape(other) or not np.allclose(mine, other, rtol=0, atol=TOLERANCE):
        raise ParityError(f"{what}: {THEIRS} has {other}, and we {mine}")


def time_losses(peers: dict[str, Peer], tokens: np.ndarray, runs: int) -> list[Record]:
    """What a pass takes of each, after its loss is compared."""
    what = f"loss at {len(tokens) - 1:,}"
    found = {name: peer.loss(tokens) for name, peer in peers.items()}  # which warms them up
    if len(found) > 1:
        check_parity(found, what)
    calls = {name: functools.partial(peer.loss, tokens) for name, peer in peers.items()}
    times = measure.interleaved(calls, runs, warm_up=False)
    return _records(what, times, len(tokens) - 1)


def time_drawing(
    peers: dict[str, Peer], prompt: np.ndarray, count: int, runs: int
) -> tuple[list[Record], list[str]]:
    """What drawing takes in each way, after the tokens are compared; and why some cannot."""
    what, notes = f"{count - 1} tokens after {len(prompt):,}", []
    ways = {name: draw for peer in peers.values() for name, draw in peer.draw.items()}
    drawn: dict[str, list[int]] = {}
    for name, draw in ways.items():
        try:
            drawn[name] = draw(prompt, count).tokens
        except Exception as error:
            if name != COMPILED:
                raise
            # Its backend wants a C++ compiler, and says so in errors of many kinds.
            why = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            notes.append(f"{name}: does not compile: {why}.")
    for name, tokens in drawn.items():
        check_parity({OURS: drawn[OURS], THEIRS: tokens}, f"{what}, {name}")
    times: dict[str, list[float]] = {name: [] for name in drawn}
    for name in measure.in_turn(drawn, runs):
        times[name].append(ways[name](prompt, count).seconds)
    return _records(what, times, count - 1), notes


def _records(what: str, times: dict[str, list[float]], tokens: int) -> list[Record]:
    """A record a candidate."""
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, THEIRS)
    return [
        {
            "what": what, "candidate": name, "seconds": seconds[name], "ratio": relative[name],
            "times": times[name], "rate": tokens / seconds[name],
        }
        for name in times
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
        "- Before a pass there is no call that is not timed, but for one of each at the start.",
        *(f"- {note}" for note in notes),
    ]  # fmt: skip


def run(
    workdir: Path, lengths: Sequence[int], prompts: Sequence[int], runs: int, results: Path,
    drawn: int = DRAWN,
) -> None:  # fmt: skip
    """Measures, and writes real_model.md, .json and .png."""
    config = read_run_config(workdir)
    if config is None:
        raise UserError(f"{workdir}: holds no model; `make smollm2` fetches and imports one")
    tokens = text_tokens(to_config(config), max(*lengths, *prompts) + 1)
    about = measure.describe(
        {"lengths": list(lengths), "prompts": list(prompts), "drawn": drawn,
         "model": config["model"]},
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
        print(f"loss at {length:,} …", flush=True)
        records += time_losses(peers, tokens[: length + 1], runs)
        peak = measure.megabytes(passes[length].temp_bytes)
        notes.append(f"Beside weights and tokens, our pass at {length:,} holds {peak} MB.")
    for length in prompts:
        print(f"drawing after {length:,} …", flush=True)
        found, why = time_drawing(peers, tokens[:length], drawn, runs)
        records, notes = records + found, list(dict.fromkeys(notes + why))
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
    lengths, prompts = (QUICK, QUICK[:1]) if given.quick else (LENGTHS, PROMPTS)
    run(given.workdir, given.lengths or lengths, prompts, given.runs, given.results)


if __name__ == "__main__":
    main()
