"""The cost of a step without data: operations, bytes, the largest batch."""

import functools

import jax
import jax.numpy as jnp
import pytest

from avs_jax import plan as program
from avs_jax.data.trunk_features import write_facts
from avs_jax.models import build_model
from avs_jax.models.sam2.model import SAM2
from avs_jax.runtime import sharding
from avs_jax.runtime.memory import GIB, StepBytes, count_flops, parse_bytes
from avs_jax.runtime.optim import flatten
from configs import s4_sam2, sam2_host
from tests import small


@pytest.mark.parametrize(
    "text, count",
    [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1.5MiB", 3 * 2**19), ("7", 7), ("7B", 7)],
)
def test_amounts_of_memory(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "24 giga", "-1GiB", "0GB", "1e3GB"])
def test_invalid_amounts_of_memory(text):
    with pytest.raises(ValueError, match=f"'{text}' is not an amount.*GiB"):
        parse_bytes(text)


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr)


def test_operations_of_products_and_convolutions():
    assert flops(jnp.matmul, (5, 3, 4), (4, 6)) == 5 * 3 * 6 * (2 * 4)
    outer = flops(lambda a, b: jnp.einsum("nqc,nkc->nqk", a, b), (2, 3, 4), (2, 5, 4))
    assert outer == 2 * 3 * 5 * (2 * 4)

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert flops(convolve, (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * 8 * 8 * 5 * (2 * 3 * 3 * 3)

    def gradient(x, kernel):  # for the kernel: as much again as the convolution itself
        return jax.grad(lambda k: jnp.square(convolve(x, k)).sum())(kernel)

    assert flops(gradient, (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * 2 * 8 * 8 * 5 * (2 * 3 * 3 * 3)


def test_operations_inside_other_operations():
    def repeated(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(repeated, (4, 4)) == 7 * 2 * 4**3
    assert flops(either, (4, 4)) == 2 * 2 * 4**3
    assert flops(jax.checkpoint(jax.jit(repeated)), (4, 4)) == 7 * 2 * 4**3


@pytest.mark.parametrize(
    "cost, limit, expected, most",
    [
        (lambda n: 100 + 10 * n, 1000, 88, 4),  # a line is followed at once
        (lambda n: 100 + 10 * n, 125, 0, 2),  # not even one unit
        (lambda n: 100 + 10 * n, 140, 4, 3),
        (lambda n: 100 + 10 * n + n**2 // 8, 1000, 52, 8),
        (lambda n: 100 + 10 * n + 400 * (n > 40), 1000, 48, 8),  # a jump
        (lambda n: 100 + 10 * max(n, 9), 1000, 88, 14),  # no line through the first two
    ],
)
def test_the_largest_batch(cost, limit, expected, most):
    measured = []

    def measure(n):
        measured.append(n)
        return cost(n)

    size = program.largest_batch(measure, 4, limit)
    assert size == expected
    assert all(n % 4 == 0 for n in measured) and len(measured) == len(set(measured)) <= most


@pytest.mark.slow
def test_the_plan_of_a_configuration(capsys):
    config = small.tiny_config()  # it is compiled six times
    mesh = sharding.make_mesh(config)
    step = program.trace_step(config, mesh)
    used = StepBytes.of(step.traced.lower().compile())
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state))
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in step.batch.values()) // mesh.size
    assert 0 <= used.arguments - state - batch < 0.01 * state  # every device holds the whole state
    assert used.shared <= used.output < 1.01 * state and used.temporaries > 0

    program.plan(config, f"{1.01 * used.total}B")
    printed = capsys.readouterr().out
    assert str(used) in printed  # what a run reports, which compiles with all passes
    assert "8 device(s) of kind cpu, mesh {'data': 8, 'fsdp': 1}" in printed
    assert "largest batch within 0.0" in printed and ": 8 rows, 1 per device" in printed
    sizes = {path: leaf.size for path, leaf in flatten(step.state.params).items()}
    ama = sum(size for path, size in sizes.items() if path.startswith("ama/"))
    assert f"{ama:,}" in printed and f"{sum(sizes.values()):,}" in printed


def encoder_flops(config, step):
    """FLOPs of SAM2's image encoder on a batch, once forward."""
    model = build_model(config.model.sam2, SAM2)
    images = jnp.zeros((config.train.batch_size, *step.batch["images"].shape[2:]))
    params = step.state.params["sam2"]
    run = functools.partial(model.apply, method="encode_images")
    return count_flops(jax.make_jaxpr(run)({"params": params}, images).jaxpr)


@pytest.mark.slow
def test_a_frozen_image_encoder_and_a_cached_one(tmp_path, capsys):
    """Host sam2: frozen, the encoder runs forward alone; with its maps cached, not at all."""
    configs = {name: s4_sam2.get_config("tiny") for name in ("trained", "frozen", "cached")}
    for name in ("frozen", "cached"):
        configs[name].optim.frozen = (r"sam2/(trunk|neck|conv_s\d)/.*", *sam2_host.UNUSED)
        configs[name].data.augment.update(min_sizes=(64,), crop=False, color=False, flip=0.0)
    shapes = {"trunk_fine": (16, 16, 4), "trunk_middle": (8, 8, 8), "trunk_coarse": (4, 4, 32)}
    write_facts(tmp_path, "k", 64, shapes)
    configs["cached"].data.trunk_features = str(tmp_path)
    found = {}
    for name, config in configs.items():
        config.train.batch_size = 8
        step = program.trace_step(config, sharding.make_mesh(config))
        found[name] = count_flops(step.traced.jaxpr.jaxpr)
    forward = encoder_flops(config, step)
    assert found["frozen"] - found["cached"] == forward
    assert found["trained"] - found["frozen"] > 1.5 * forward  # backward: for inputs and weights

    used = StepBytes.of(step.traced.lower().compile())
    program.plan(config, f"{1.01 * used.total}B")
    printed = capsys.readouterr().out
    assert "8 row(s), float32, each of" in printed and "trunk_fine (1, 16, 16, 4)" in printed
    assert str(used) in printed and "this fits into" in printed
    assert "largest batch within" in printed


def test_dtypes_of_parts():
    config = s4_sam2.get_config("tiny").model
    assert program.compute_dtypes(config) == "float32"  # SAM2's; the host has none of its own
    config.sam2.dtype = "bfloat16"
    assert program.compute_dtypes(config) == "bfloat16"
    config.dtype = "float32"
    assert program.compute_dtypes(config) == "bfloat16 and float32"


def test_a_batch_that_does_not_fit_the_mesh():
    config = small.small_config()
    config.train.batch_size = 12
    with pytest.raises(ValueError, match="batch_size=12 is not divisible by 8 device"):
        program.plan(config)
