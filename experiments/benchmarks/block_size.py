"""Forward time of attention by block size, beside the definition: whence the defaults.

    python -m experiments.benchmarks.block_size

Softmax is summed up in tiles of that many queries and keys; `adaptive`, which wants complete rows,
goes in blocks of that many queries. Medians of interleaved runs; the last column says what "auto"
takes.
"""

import jax

from experiments.benchmarks import measure
from lenext.attention import attend, choose_implementation, make_method

# batch, length, heads, key size, value size
SHAPES = [
    (64, 64, 1, 64, 256),
    (16, 256, 1, 64, 256),
    (4, 1024, 1, 64, 256),
    (1, 4096, 1, 64, 256),
    (1, 1024, 4, 64, 64),
    (1, 4096, 4, 64, 64),
    (1, 16384, 4, 64, 64),
    (1, 4096, 8, 64, 64),
    (1, 2048, 32, 64, 64),
]
METHODS = ("softmax", "adaptive")
BLOCKS = (32, 64, 128, 256, 512, 1024)
NAIVE_ENTRIES = 2**25  # larger rows are left to the blocks
ROWS_LENGTH = 4096  # and longer complete rows to patience
RUNS = 5


def candidates(name: str, shape: tuple[int, ...]) -> dict[str, dict]:
    """Arguments of `attend` by the name to print."""
    batch, length, heads = shape[:3]
    found: dict[str, dict] = {}
    if batch * heads * length**2 <= NAIVE_ENTRIES:
        found["naive"] = {"implementation": "naive"}
    if name == "adaptive" and length > ROWS_LENGTH:
        return found
    for size in BLOCKS:
        if size <= length:
            found[str(size)] = {"implementation": "blockwise", "block_size": size}
    return found


def main() -> None:
    """Prints a Markdown table."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ms, median of {RUNS}\n")
    print("| method | shape [B, T, N, H], V | " + " | ".join(["naive", *map(str, BLOCKS)]), end="")
    print(" | auto |\n|---|---|" + "---:|" * (len(BLOCKS) + 1) + "---|")
    for name in METHODS:
        method = make_method(name, train_length=64)
        for shape in SHAPES:
            batch, length, heads, *sizes = shape
            q, k, v = (
                jax.random.normal(jax.random.key(i), (batch, length, heads, size))
                for i, size in enumerate((sizes[0], *sizes))
            )
            made = candidates(name, shape)
            if not made:
                continue

            def call(arguments: dict, q=q, k=k, v=v, method=method) -> None:
                attend(q, k, v, method, **arguments).block_until_ready()

            times = measure.interleaved(
                {key: lambda a=arguments, f=call: f(a) for key, arguments in made.items()}, RUNS
            )
            taken = measure.medians(times)
            cells = (
                f"{1e3 * taken[key]:.1f}" if key in taken else ""
                for key in ("naive", *map(str, BLOCKS))
            )
            auto = choose_implementation(q, k, v, method)
            words = f"{auto.implementation} {auto.block_size or ''}".strip()
            head = f"| {name} | {[*q.shape]}, {sizes[1]} | "
            print(head + " | ".join(cells) + f" | {words} |", flush=True)


if __name__ == "__main__":
    main()
