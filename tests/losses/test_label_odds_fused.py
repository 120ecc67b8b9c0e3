"""The Triton kernels without a GPU: run in Triton's interpreter against float64, and compiled for one.

The interpreter is chosen by an environment variable before Triton is imported, so this file runs itself in a process of
its own, where the tests under ``interpreted`` are the ones that count.
"""

import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import GMLLoss, gml, label_odds_fused
from longtail.losses.label_odds_fused import tile_of, use_fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
triton = pytest.importorskip("triton")


def outcome(kernel, dtype, vectors, given, **options):
    """Value, counts and gradients of twice the loss."""
    queries, keys = (part.to(dtype).detach().clone().requires_grad_() for part in vectors)
    loss = GMLLoss(given["counts"], learn_temperature=True, kernel=kernel, **options)
    if dtype == torch.float64:
        loss = loss.double()
    rest = {name: value for name, value in given.items() if name not in ("labels", "offsets", "counts")}
    value = loss(queries, given["labels"], keys, given["offsets"], **rest)
    (2 * value).backward()
    return [value.detach(), loss.counted, loss.information, queries.grad, keys.grad, loss.log_temperature.grad]


def draw(lengths, dim, batch, ids=False, masked=False):
    """Unit vectors, and what else the loss is given: an empty class, a class of one key, one of count 0."""
    generator = torch.Generator().manual_seed(dim + batch)
    keys, classes = sum(lengths), len(lengths)
    key_labels = torch.arange(classes).repeat_interleave(torch.tensor(lengths))
    labels = torch.randint(0, classes, (batch,), generator=generator)
    given = {
        "labels": labels,
        "offsets": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        "counts": [*(max(1, n) for n in lengths[:-1]), 0],
    }
    if ids:
        given["query_ids"] = torch.where(torch.arange(batch) % 5 == 4, -1, 10 * labels + torch.arange(batch) % 3)
        turn = torch.arange(keys) % 4
        given["key_ids"] = torch.where(turn == 3, -1, 10 * key_labels + turn)
    if masked:
        given["key_mask"] = torch.rand(keys, generator=generator) < 0.7
    return [F.normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (batch, keys)], given


def assert_near(found, wanted, bound):
    for name, f, w in zip(("value", "counted", "bits", "queries", "keys", "temperature"), found, wanted, strict=True):
        if bool(w.isnan().all()):
            assert bool(f.isnan().all()), name
        else:
            scale = w.double().norm().clamp(min=1e-3 if name == "temperature" else 1e-9)
            assert float((f.double() - w.double()).norm() / scale) < bound, name


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of the fused way, lest it was the plain way that agreed with itself."""
    seen = []
    original = gml.fused_label_log_odds
    monkeypatch.setattr(gml, "fused_label_log_odds", lambda *given: seen.append(1) or original(*given))
    return seen


LENGTHS = [40, 0, 1, 50, 9]
CASES = [
    *product([None, "kept", "excluded"], [False, True], [0.005], [(5, 512)]),
    ("kept", True, 0.1, (5, 512)),
    ("kept", True, 0.005, (40, 4)),
    ("excluded", False, 0.02, (130, 6)),
    ("kept, summed", True, 0.1, (5, 512)),
]


@interpreted
@pytest.mark.parametrize(("ids", "masked", "temperature", "size"), CASES)
def test_agrees_with_float64(ids, masked, temperature, size, monkeypatch, calls):
    # Few programs: several tiles a split and several splits.
    dim, programs = size
    monkeypatch.setattr(label_odds_fused, "_PROGRAMS", programs)
    vectors, given = draw(LENGTHS, dim, 34, ids is not None, masked)
    options = {"temperature": temperature, "exclude_own_key": ids == "excluded"}
    options["class_pooling"] = "sum" if ids == "kept, summed" else "mean"
    wanted = outcome("plain", torch.float64, vectors, given, **options)
    assert 0 < wanted[1] < 34
    assert wanted[3].norm() > 1e-3
    assert_near(outcome("fused", torch.float32, vectors, given, **options), wanted, 2e-5)
    assert calls == [1]


@interpreted
def test_ids_may_be_a_column_of_a_table(calls):
    vectors, given = draw(LENGTHS, 5, 34, ids=True)
    wanted = outcome("fused", torch.float32, vectors, given, temperature=0.1)
    for name in ("query_ids", "key_ids"):
        given[name] = torch.stack([given[name], torch.full_like(given[name], 7)], 1)[:, 0]
        assert not given[name].is_contiguous()
    found = outcome("fused", torch.float32, vectors, given, temperature=0.1)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    assert calls == [1, 1]


@interpreted
def test_half_precision_adds_up_in_float32(calls):
    # float16 only: the interpreter multiplies the bits of bfloat16 as if they were integers.
    dtype = torch.float16
    vectors, given = draw(LENGTHS, 24, 40, ids=True)
    vectors = [part.to(dtype) for part in vectors]
    wanted = outcome("plain", torch.float64, vectors, given, temperature=0.05)
    found = outcome("fused", dtype, vectors, given, temperature=0.05)
    assert found[0].dtype == torch.float32
    assert found[3].dtype == found[4].dtype == dtype
    assert_near([*found[:3], *wanted[3:]], wanted, 1e-5)
    assert_near(found, wanted, 2e-3)
    assert calls == [1]


@interpreted
def test_what_arrives_may_be_too_small_for_half_precision(calls):
    # A millionth a sample is 10 steps of float16; its gradient by a key, 200 times that and more, is within its range.
    vectors, given = draw([30, 20, 10], 8, 16)
    vectors = [part.half() for part in vectors]
    found = []
    for kernel, dtype in (("fused", torch.float16), ("plain", torch.float64)):
        queries, keys = (part.to(dtype).requires_grad_() for part in vectors)
        loss = GMLLoss([30, 20, 10], 0.005, kernel=kernel)
        value = 1e-5 * loss(queries, given["labels"], keys, given["offsets"])
        found.append(torch.autograd.grad(value, keys)[0].double())
    assert found[1].abs().max() > 1e-4
    assert (found[0] - found[1]).norm() < 5e-3 * found[1].norm()
    assert calls == [1]


@interpreted
@pytest.mark.parametrize("cause", ["one class", "all masked"])
def test_nothing_to_compare_with(cause, calls):
    vectors, given = draw([40, 0] if cause == "one class" else [20, 20], 6, 5, ids=True)
    given |= {"counts": [1, 1], "labels": torch.zeros(5, dtype=torch.int64)}
    given["key_mask"] = torch.full((40,), cause == "one class")
    value, counted, _, *gradients = outcome("fused", torch.float32, vectors, given, temperature=0.02)
    assert value.item() == 0.0
    assert counted.item() == (5 if cause == "one class" else 0)
    assert not any(gradient.any() for gradient in gradients)
    assert calls == [1]


@interpreted
def test_same_input_gives_same_bits():
    vectors, given = draw(LENGTHS, 20, 40, ids=True)
    first, second = (outcome("fused", torch.float32, vectors, given, temperature=0.05) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_interpreted_tests_pass_in_a_process_of_their_own():
    if INTERPRETED:
        return
    command = [sys.executable, "-m", "pytest", "-m", "not check", __file__, "-W", "error::RuntimeWarning"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= len(CASES) + 5


@pytest.mark.parametrize(
    ("kernel", "device", "size", "dtype", "mask_shape", "expected"),
    [
        ("auto", "cuda", (8192, 8192, 128), torch.float32, None, True),
        ("auto", "cuda", (8192, 8191, 128), torch.float32, None, False),
        ("auto", "cuda", (8192, 8192, 129), torch.float32, None, False),
        ("plain", "cuda", (8192, 8192, 128), torch.float32, None, False),
        ("fused", "cuda", (4, 5, 1024), torch.bfloat16, (5,), True),
        ("fused", "cuda", (4, 5, 1025), torch.float32, None, False),
        ("fused", "cuda", (4, 5, 6), torch.float64, None, False),
        ("fused", "cuda", (4, 5, 6), torch.float32, (4, 5), False),
        ("fused", "cuda", (4, 0, 6), torch.float32, None, False),
        ("fused", "meta", (4, 5, 6), torch.float32, None, False),
    ],
)
def test_which_way_is_taken(kernel, device, size, dtype, mask_shape, expected, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    class Vectors:  # no GPU, so what is asked of tensors on one
        def __init__(self, *shape):
            self.shape, self.dtype, self.is_cuda = shape, dtype, device == "cuda"

        def __len__(self):
            return self.shape[0]

    batch, keys, dim = size
    mask = None if mask_shape is None else torch.ones(mask_shape, dtype=torch.bool)
    assert use_fused(kernel, Vectors(batch, dim), Vectors(keys, dim), mask) is expected


def resources(kernel, dim, dtype, precision, capability=90):
    """Compile a kernel for a GPU that need not be there; return registers, bytes spilled, shared bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tile = tile_of(dim, torch.float32 if dtype == "fp32" else torch.bfloat16, precision)
    constants = {
        "width": dim,
        "with_ids": True,
        "without_own": True,
        "precision": precision,
        "block_rows": tile.rows,
        "block_keys": tile.keys,
        "block_width": tile.width,
    }
    integers = ("start", "end", "query_ids", "key_ids")
    floats = ("bias", "scale", "rest", "target", "arriving", "found")
    pointers = {"queries": dtype, "keys": dtype} | dict.fromkeys(integers, "i64") | dict.fromkeys(floats, "fp32")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else f"*{pointers[n]}" if n in pointers else "i32" for n in names},
        constexprs={(i,): constants[n] for i, n in enumerate(names) if n in constants},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in pointers},
    )
    options = {"num_warps": label_odds_fused._WARPS, "num_stages": label_odds_fused.stages(tile)}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups())
    return registers, spilled, compiled.metadata.shared


@pytest.mark.check
def test_the_kernels_compile_for_a_gpu_and_fit_it():
    from longtail.losses.label_odds_kernels import forward_kernel, key_kernel, query_kernel

    kernels = (forward_kernel, query_kernel, key_kernel)
    ways = (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "tf32"))
    for kernel, dim, (dtype, precision) in product(kernels, (32, 128, 256, 512, 1024), ways):
        registers, spilled, shared = resources(kernel, dim, dtype, precision)
        line = (
            f"{kernel.__name__} D {dim} {dtype} {precision}: {registers} registers, {spilled} spilled, {shared} shared"
        )
        print(line)
        assert spilled <= 32, line
        assert shared <= (101_376 if dim <= 128 else 232_448), line  # a GeForce's, an H100's
