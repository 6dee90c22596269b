"""Memory and speed of the input: from text files to packed batches, and how long a model waits.

    python -m experiments.benchmarks.input [MEGABYTES]

Writes that much made-up text (default 1000) to a temporary folder, half of it as lines of a .jsonl
and half as .txt files, one of them a fifth of all; prepares and tokenises it by bytes; and reads an
epoch of packed batches with no model. Then a stand-in for a model steps at a given pace, and what
is counted is the share of the loop that goes into `next(batches)`.

Anonymous memory (RssAnon) is what the process holds for good; the rest of its resident memory is
pages of files, which the system takes back when it wants to.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lenext.data import ByteTokenizer, Corpus, causal_lm_batches, load_corpus

LENGTH, BATCH_SIZE = 1024, 32  # of the epoch
SHAPES = [(64, 64), (1024, 8), (8192, 1)]  # length, batch size of the steps
STEP_SECONDS = (0.005, 0.02)
STEPS = 200


def resident() -> dict[str, float]:
    """MB of memory by kind, from Linux."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {
        field[0]: int(field[1]) / 1024 for field in fields if field[0].startswith(("Vm", "Rss"))
    }
    return {"resident": found["VmRSS:"], "anonymous": found["RssAnon:"]}


@contextlib.contextmanager
def measured(what: str, size: float, unit: str) -> Iterator[None]:
    """Prints the time and the peaks of memory of what is done inside."""
    peak = resident()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            now = resident()
            peak.update({kind: max(peak[kind], now[kind]) for kind in peak})

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    print(
        f"| {what} | {seconds:.1f} | {size / seconds / 1e6:.1f} M {unit}/s | "
        f"{peak['anonymous']:.0f} | {peak['resident']:.0f} |",
        flush=True,
    )


def write_text(folder: Path, size: int) -> None:
    """Writes `size` bytes of words."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(1, 10))) for _ in range(5000)]
    pool = " ".join(words[i] for i in rng.integers(5000, size=500_000))

    def text(length: int) -> str:
        start = rng.integers(len(pool) - 1)
        return (pool[start:] + pool * (length // len(pool) + 1))[:length]

    left = size // 2
    with (folder / "documents.jsonl").open("w") as file:
        while left > 0:
            left -= file.write(json.dumps({"text": text(int(rng.lognormal(7, 1.5)))}) + "\n")
    with (folder / "long.txt").open("w") as file:
        for _ in range(size // 5 // 2**20):
            file.write(text(2**20))
    left, number = size // 2 - size // 5, 0
    while left > 0:
        number += 1
        left -= (folder / f"book{number:05}.txt").write_text(text(int(rng.lognormal(12, 1))))


def epoch(corpus: Corpus) -> None:
    """Reads as many packed batches as hold the corpus's tokens."""
    batches = causal_lm_batches(
        corpus,
        length=LENGTH,
        batch_size=BATCH_SIZE,
        seed=0,
        tokenizer=ByteTokenizer(),
        packing=True,
    )
    left = len(corpus.tokens) - len(corpus.names)  # the first of a document is no target
    for batch in batches:
        left -= int(batch["weights"].sum())
        if left <= 0:
            return


def stall(
    corpus: Corpus, length: int, batch_size: int, packing: bool, seconds: float
) -> tuple[float, float]:
    """Steps of about `seconds`; returns a loop's seconds a step, and the share spent waiting."""
    x = jnp.ones((256, 256)) / 256

    @jax.jit
    def step(x, count, tokens):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ x, x) + 0 * tokens.sum()

    batches = iter(
        causal_lm_batches(
            corpus, length=length, batch_size=batch_size, seed=0, tokenizer=ByteTokenizer(),
            packing=packing,
        )
    )  # fmt: skip
    tokens = next(batches)["tokens"]
    step(x, 10, tokens).block_until_ready()
    time.sleep(0.5)  # what is made ahead is there
    start = time.perf_counter()
    step(x, 1000, tokens).block_until_ready()
    count = round(seconds / (time.perf_counter() - start) * 1000)

    waited = 0.0
    previous = x
    start = time.perf_counter()
    for _ in range(STEPS):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        current = step(x, count, batch["tokens"])
        previous.block_until_ready()  # as the training loop, which looks at the step before
        previous = current
    previous.block_until_ready()
    total = time.perf_counter() - start
    return total / STEPS, waited / total


def main() -> None:
    """Prints two Markdown tables."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, {megabytes} MB of text\n")
    print("| what | s | speed | anonymous, MB | resident, MB |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder, data_dir = Path(temporary, "text"), Path(temporary, "data")
        folder.mkdir()
        write_text(folder, megabytes * 10**6)
        corpora = {}
        for split in ("validation", "train"):  # the first one prepares both
            with measured(f"text to tokens, {split}", megabytes * 1e6, "bytes of both splits"):
                corpora[split] = load_corpus(
                    "text_files", split, ByteTokenizer(), data_dir, files=str(folder)
                )
        corpus = corpora["train"]
        with measured("the same, found on disk", len(corpus.tokens), "tokens"):
            load_corpus("text_files", "train", ByteTokenizer(), data_dir, files=str(folder))
        with measured(f"an epoch of rows of {LENGTH}", len(corpus.tokens), "tokens"):
            epoch(corpus)
        print("\n| length, batch size | rows | step alone, ms | loop, ms | waiting for data |")
        print("|---|---|---:|---:|---:|")
        for length, batch_size in SHAPES:
            for packing in (False, True):
                for seconds in STEP_SECONDS:
                    took, share = stall(corpus, length, batch_size, packing, seconds)
                    rows = "packed" if packing else "crops"
                    print(
                        f"| {length}, {batch_size} | {rows} | {1e3 * seconds:.0f} | "
                        f"{1e3 * took:.1f} | {share:.2%} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
