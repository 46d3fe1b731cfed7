"""The kernels of a GPU program, from its text alone.

tests/golden/gpu_step.hlo is `toy_step` compiled for an H100 (without its tables of source lines).
"""

import jax
import jax.numpy as jnp
import pytest

from avs_jax.runtime import kernels as kernels_module
from avs_jax.runtime.gpus import GPUS
from avs_jax.runtime.hlo import Program, Shape
from avs_jax.runtime.kernels import describe_kernels, find_kernels
from avs_jax.runtime.memory import count_flops
from tests.conftest import GOLDEN

ROWS, WIDTH, HIDDEN, STEPS, PICKED = 64, 128, 512, 6, 32
SHAPES = (
    ((WIDTH, HIDDEN), "bfloat16"),
    ((HIDDEN, WIDTH), "bfloat16"),
    ((3, 3, 4, 8), "float32"),
    ((ROWS, WIDTH), "bfloat16"),
    ((PICKED,), "int32"),
    ((4, 16, 16, 4), "float32"),
)


def toy_step(w1, w2, kernel, x, index, image):
    """Gradients of a convolution, a scanned MLP, a gather, a softmax, a top_k and a sort."""

    def loss(w1, w2, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        c = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        c = c.reshape(ROWS, -1).astype(jnp.bfloat16)[:, :WIDTH]

        def body(h, _):
            h = jax.nn.gelu(h @ w1) @ w2
            m = h.astype(jnp.float32)
            m = (m - m.mean(-1, keepdims=True)) * jax.lax.rsqrt(m.var(-1, keepdims=True) + 1e-5)
            return h + m.astype(h.dtype), None

        h, _ = jax.lax.scan(body, x + c, None, length=STEPS)
        g = h[index]
        p = jax.nn.softmax((g @ g.T).astype(jnp.float32), -1)
        t = jnp.transpose(h.reshape(8, 8, WIDTH), (2, 0, 1)).astype(jnp.float32)
        products = (p.astype(h.dtype) @ g).astype(jnp.float32).sum()
        ranked = jax.lax.top_k(p, 3)[0].sum() + jnp.sort(p[0]).sum()
        return products + (jnp.sin(t) ** 2).sum() + ranked

    return jax.grad(loss, argnums=(0, 1, 2))(w1, w2, kernel)


@pytest.fixture(scope="module")
def program():
    return Program.parse((GOLDEN / "gpu_step.hlo").read_text())


@pytest.fixture(scope="module")
def kernels(program):
    return find_kernels(program)


def test_shapes_and_their_bytes(program):
    entry = program.computations[program.entry]
    assert entry["cudnn-conv.1"].shapes == (Shape("f32", (4, 16, 16, 8)), Shape("u8", (0,)))
    assert entry["cudnn-conv.1"].bytes == 4 * 4 * 16 * 16 * 8
    assert entry["cudnn-conv.1"].operands == ("img.1", "wrapped_transpose")
    assert entry["while.2"].trips == STEPS
    assert Shape("bf16", (3,)).bytes == 6 and Shape("pred", ()).bytes == 1
    assert Shape("f8e4m3fn", (8,)).bytes == 8 and Shape("s4", (8,)).bytes == 4


def test_flops_are_those_of_the_traced_function(kernels):
    """But for one forward product, whose result no gradient needs."""
    structs = [jax.ShapeDtypeStruct(*shape) for shape in SHAPES]
    traced = count_flops(jax.make_jaxpr(toy_step)(*structs).jaxpr)
    assert sum(k.times * k.flops for k in kernels) == traced - 2 * PICKED * PICKED * WIDTH
    convolutions = [k for k in kernels if k.kind == "convolutions"]
    assert {k.flops for k in convolutions} == {2 * (4 * 16 * 16 * 8) * (3 * 3 * 4)}
    assert len(convolutions) == 2 and {k.dtype for k in convolutions} == {"f32"}
    inside = [k for k in kernels if k.kind == "matrix products" and k.runs == STEPS]
    assert [k.flops for k in inside] == [2 * ROWS * WIDTH * HIDDEN] * 6
    assert {k.dtype for k in inside} == {"bf16"}


def test_bytes_of_whole_arrays_slices_and_updates(kernels):
    found = {k.name: k for k in kernels}
    gather = found["loop_gather_fusion"]  # the picked rows, read and written, and the index
    assert gather.bytes == 2 * (PICKED * WIDTH * 2) + PICKED * 4 and gather.kind == "gathers"
    # One of STEPS slices of a float32 stack and a bfloat16 array in, float32 out, a counter.
    sliced = found["loop_multiply_fusion.1"]
    assert sliced.bytes == ROWS * WIDTH * (4 + 2 + 4) + 4 and sliced.runs == STEPS
    (update,) = [k for k in kernels if k.name == "input_scatter_fusion"]
    assert update.kind == "scatters"
    # Two summands, the index, and the rows of the sum, read and written.
    assert update.bytes == 2 * (PICKED * WIDTH * 2) + PICKED * 4 + 2 * (PICKED * WIDTH * 2)
    product = found["custom-call.9"]  # its workspace does not count
    assert product.bytes == 2 * (ROWS * WIDTH + WIDTH * HIDDEN + ROWS * HIDDEN)
    assert found["wrapped_transpose"].kind == "transposes"
    assert found["wrapped_transpose"].bytes == 2 * 4 * (3 * 3 * 4 * 8)
    assert found["wrapped_convert"].kind == "converts"
    assert {"sorts", "reductions", "copies", "elementwise"} <= {k.kind for k in kernels}


def test_a_fusion_that_runs_beside_others_moves_what_it_slices():
    text = """HloModule jit_step

%sliced (stack: bf16[9,8,64], place: s32[]) -> bf16[1,8,64] {
  %stack = bf16[9,8,64]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,8,64]{2,1,0} dynamic-slice(%stack, %place, %zero, %zero), dynamic_slice_sizes={1,8,64}
}

ENTRY %main (stack.1: bf16[9,8,64], place.1: s32[]) -> bf16[1,8,64] {
  %stack.1 = bf16[9,8,64]{2,1,0} parameter(0)
  %place.1 = s32[] parameter(1)
  %start = ((bf16[9,8,64]{2,1,0}, s32[]), bf16[1,8,64]{2,1,0}, u32[]) fusion-start(%stack.1, %place.1), kind=kLoop, calls=%sliced
  ROOT %done = bf16[1,8,64]{2,1,0} fusion-done(%start)
}
"""  # noqa: E501
    (kernel,) = find_kernels(Program.parse(text))
    assert kernel.bytes == 2 * (8 * 64 * 2) + 4  # a slice in and out, and its place
    assert (kernel.kind, kernel.runs) == ("copies", 1)


def test_the_time_of_a_kernel(kernels):
    gpu, found = GPUS["h100"], {k.name: k for k in kernels}
    product = found["custom-call.9"]
    assert product.roofline(gpu) == pytest.approx(
        max(product.bytes / 3352e9, product.flops / 989e12)
    )
    assert product.seconds(gpu) == pytest.approx(STEPS * 3e-6)  # it is too small for the GPU
    assert gpu.peak("f32") == gpu.peak("bf16") / 2
    assert gpu.peak("f32!") == pytest.approx(66.9e12, rel=1e-3)


def test_the_table_sums_up_and_names_what_only_moves(kernels, monkeypatch):
    gpu = GPUS["h100"]
    monkeypatch.setattr(kernels_module, "NOTABLE_SHARE", 0.0005)  # the toy's parts are of one size
    lines = describe_kernels(kernels, gpu).splitlines()
    rows = {line[:20].strip(): line[20:].split() for line in lines if line[20:28].strip().isdigit()}
    whole = [value.replace(",", "") for value in rows.pop("all")]
    for column in range(2):
        summed = sum(int(row[column].replace(",", "")) for row in rows.values())
        assert summed == int(whole[column])
    assert int(whole[0]) == len(kernels)
    start = next(i for i, line in enumerate(lines) if line.startswith("transposes, converts"))
    listed = [line for line in lines[start:] if line.startswith("   ")]
    assert any(line.endswith("gathers, 1 run(s): jit(f)/jvp()/gather") for line in listed)
    movers = ("transposes", "converts", "gathers", "scatters")
    share = 0.0005 * sum(k.times * k.bytes for k in kernels)
    assert len(listed) == sum(k.kind in movers and k.times * k.bytes > share for k in kernels)
    total = sum(k.seconds(gpu) for k in kernels)
    assert f"estimated time of a step on one H100 SXM 80 GB: {total:.3f} s, not measured" in lines
