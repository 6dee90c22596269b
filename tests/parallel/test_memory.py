"""Memory is told before work begins, and work that cannot fit is refused by its figures."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.models import load_pretrained
from lenext.models.generation import generate
from lenext.parallel import memory
from lenext.training import train
from tests.training.common import tiny_config, tiny_decoder_config


def test_bytes_of_a_tree_are_those_on_one_device():
    tree = {"a": np.zeros((3, 5), np.float32), "b": jax.ShapeDtypeStruct((7,), jnp.bfloat16)}
    assert memory.bytes_of(tree) == 3 * 5 * 4 + 7 * 2
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    whole = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    assert memory.bytes_of(whole) == 64


def test_a_program_wants_what_it_is_given_and_what_it_makes():
    def f(x):
        return jnp.sum(jnp.sin(x)[:, None] * x[None, :] @ x) + x

    compiled = jax.jit(f).lower(jnp.ones(1000)).compile()
    needs = memory.needs_of(compiled)
    assert needs.arguments == 4000
    assert needs.beside >= 4000
    assert needs.peak == needs.arguments + needs.beside
    given_back = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.ones(1000)).compile()
    assert memory.needs_of(given_back).beside < 4000  # its output takes the argument's place


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "an unknown amount"),
        (123_456, "123.5 kB"),
        (10**6, "1.0 MB"),
        (999 * 10**6, "999.0 MB"),
        (2550 * 10**9, "2,550.0 GB"),
    ],
)
def test_sizes_are_said(size, words):
    assert memory.said(size) == words


@pytest.mark.parametrize(
    ("given", "setting", "library", "said"),
    [
        ("", "always [madvise] never", ("glibc", "2.36"), "glibc.malloc.hugetlb=1"),
        ("glibc.x=2", "[madvise]", ("glibc", "2.35"), "glibc.x=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=2", "[madvise]", ("glibc", "2.36"), None),
        ("", "[always] madvise never", ("glibc", "2.36"), None),
        ("", "always madvise [never]", ("glibc", "2.36"), None),
        ("", None, ("glibc", "2.36"), None),
        ("", "[madvise]", ("glibc", "2.34"), None),
        ("", "[madvise]", ("", ""), None),
    ],
)
def test_huge_pages_are_advised_where_they_must_be_asked_for(
    given, setting, library, said, tmp_path, monkeypatch
):
    monkeypatch.setenv(memory.MALLOC, given)
    monkeypatch.setattr(memory, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: library)
    if setting is not None:
        memory.HUGE_PAGES.write_text(setting)
    assert memory.advice_on_pages() == ("" if said is None else f"export GLIBC_TUNABLES={said}")


def test_training_passes_the_advice_on(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lenext.training.loop.advice_on_pages", lambda: "export X=1")
    train(tiny_config(data_dir), tmp_path / "run")
    assert "faster on this machine: export X=1" in capsys.readouterr().out


class TestFree:
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "CGROUP", tmp_path)
        (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   3000 kB\nSwap: 1 kB\n")
        return tmp_path

    def test_is_what_the_system_has_left(self):
        assert memory.free_bytes() == 3000 * 1024

    def test_or_the_container_if_that_is_less(self, machine):
        (machine / "memory.current").write_text("900000\n")
        (machine / "memory.stat").write_text("anon 5\ninactive_file 30000\nactive_file 20000\n")
        (machine / "memory.max").write_text("1000000\n")
        assert memory.free_bytes() == 100_000 + 50_000
        (machine / "memory.max").write_text("max\n")
        assert memory.free_bytes() == 3000 * 1024

    def test_may_not_be_known(self, machine):
        (machine / "meminfo").unlink()
        assert memory.free_bytes() is None
        memory.check_fits(10**15, "x", "y")

    def test_is_shared_by_devices_that_are_one_cpu(self, monkeypatch):
        mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
        monkeypatch.setattr(Mesh, "local_devices", property(lambda self: [0, 1, 2, 3]))
        assert memory.free_bytes(mesh) == 3000 * 1024 // 4
        assert memory.free_bytes() == 3000 * 1024

    def test_is_what_a_device_says_of_itself(self, monkeypatch):
        class Device:
            platform = "gpu"

            def memory_stats(self):
                return {"bytes_limit": 100, "bytes_in_use": 30}

        monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
        assert memory.free_bytes() == 70


def test_a_run_says_what_a_step_wants_and_is_refused_where_that_is_not_free(
    tmp_path, data_dir, monkeypatch, capsys
):
    config = tiny_config(data_dir)
    config.training.update(steps=1, ema_decay=0.5)
    train(config, tmp_path / "fits")
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("memory: "))
    number = r"([\d.]+ .B)"
    found = re.fullmatch(
        f"memory: a step wants {number} on each device "
        f"\\(params {number}, optimizer {number}, ema {number}, gradients and activations "
        f"{number}\\), of {number} free", line,
    )  # fmt: skip
    assert found, line
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: 100_000)
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "does_not")
    said = str(error.value)
    assert said.startswith(f"a step wants {found[1]} on each device (params ")
    assert "and 100.0 kB are free: a smaller config.data.batch_size" in said
    assert not (tmp_path / "does_not").exists()


def test_a_sweep_says_what_its_longest_length_wants(tmp_path, data_dir, monkeypatch, capsys):
    config = tiny_decoder_config(data_dir)
    config.training.steps = 1
    config.eval.update(methods="windowed,sparsemax", lengths="48,16")
    train(config, tmp_path)
    capsys.readouterr()
    evaluate(config, tmp_path)
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("memory: "))
    assert re.match(r"memory: at most, sparsemax at 48 wants [\d.]+ .B beside [\d.]+ .B", line)
    assert (tmp_path / "eval" / "results.json").exists()
    before = (tmp_path / "eval" / "results.json").read_bytes()
    shutil.rmtree(tmp_path / "eval" / "cells")  # or nothing would be left to measure
    free = iter([10**9, *[20_000] * 9])  # the weights fit, the passes do not
    monkeypatch.setattr(memory, "free_bytes", lambda mesh=None: next(free))
    with pytest.raises(UserError, match=r"sparsemax at 48 wants .* free: a smaller config\.eval"):
        evaluate(config, tmp_path)
    assert (tmp_path / "eval" / "results.json").read_bytes() == before

    monkeypatch.setattr(memory, "free_bytes", lambda mesh: 1000)
    with pytest.raises(UserError, match=r"its parameters want .* and 1\.0 kB are free"):
        load_pretrained(tmp_path)


def test_keys_and_values_that_do_not_fit(tmp_path, data_dir, monkeypatch):
    config = tiny_decoder_config(data_dir)
    config.training.steps = 1
    train(config, tmp_path)
    model = load_pretrained(tmp_path)
    # 2 layers, keys and values of one head of 8, and positions, of 5 + 95 tokens.
    size = 2 * (2 * 100 * 8 * 4 + 100 * 4)
    prompt = np.zeros((1, 5), np.int32)
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: size)
    next(generate(model, prompt, 95))
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: size - 1)
    with pytest.raises(UserError, match=r"of 100 tokens want 13\.6 kB, and 13\.6 kB"):
        generate(model, prompt, 95)
