"""Descriptions of GPUs, to compile and plan a run on a machine without one.

The compiler of `pip install -e .[cuda]` works without a driver. It cannot know what it would
measure on the device: the fastest kernel variants, and the workspace of cuDNN's convolutions.
"""

import dataclasses
import os

import jax
from jax.experimental import topologies

from avs_jax.spec import InputError

# Without the device, autotuning cannot check which Triton tiles fit, and some of the assumed ones
# do not. cuBLAS needs none.
COMPILATION = {"xla_gpu_enable_triton_gemm": False}
JAX_SHARE = 0.75  # of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the compiler needs to know. Source: NVIDIA's data sheets and CUDA programming guide."""

    title: str  # NVIDIA's name
    capability: tuple[int, int]  # major and minor compute capability
    processors: int  # streaming multiprocessors
    lanes: int  # float32 units per processor
    threads: int  # maximum per processor
    shared: int  # bytes of shared memory per processor; a block may use 1 KiB less
    l2: int  # bytes of the second-level cache
    memory: int  # bytes
    bandwidth: float  # of the memory, bytes per second
    clock: float  # GHz
    tensor: float  # FLOPs per second of dense bfloat16 products with float32 sums

    def peak(self, dtype: str) -> float:
        """FLOPs per second of products of this dtype, as XLA names it.

        float32 factors are rounded to TF32, at half of bfloat16's speed; "f32!" are not.
        """
        if dtype in ("bf16", "f16"):
            return self.tensor
        if dtype == "f32":
            return self.tensor / 2
        return 2e9 * self.processors * self.lanes * self.clock

    @property
    def available(self) -> int:
        """Bytes that JAX takes for arrays."""
        share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", JAX_SHARE)
        return int(float(share) * self.memory)

    def target(self) -> str:
        """XLA's GpuTargetConfigProto, as text."""
        major, minor = self.capability
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.title}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.processors}
              fpus_per_core: {self.lanes}
              clock_rate_ghz: {self.clock}
              device_memory_size: {self.memory}
              memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.l2}
              shared_memory_per_core: {self.shared}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared - 1024}
              threads_per_core_limit: {self.threads}
              threads_per_block_limit: 1024
              threads_per_warp: 32
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
            }}
        """


def _gpu(title, capability, processors, lanes, threads, shared_kib, l2_mib, memory_mib, *speeds):
    """`speeds`: memory in GB/s, clock in GHz, bfloat16 products in TFLOP/s."""
    shared, l2, memory = shared_kib << 10, l2_mib << 20, memory_mib << 20
    bandwidth, clock, tensor = speeds
    sizes = (processors, lanes, threads, shared, l2, memory)
    return Gpu(title, capability, *sizes, bandwidth * 1e9, clock, tensor * 1e12)


GPUS = {
    "rtx_3090": _gpu("GeForce RTX 3090", (8, 6), 82, 128, 1536, 100, 6, 24576, 936, 1.695, 71),
    "rtx_4090": _gpu("GeForce RTX 4090", (8, 9), 128, 128, 1536, 100, 72, 24564, 1008, 2.52, 165),
    "a6000": _gpu("RTX A6000", (8, 6), 84, 128, 1536, 100, 6, 48677, 768, 1.8, 155),
    "a100_40gb": _gpu("A100 SXM 40 GB", (8, 0), 108, 64, 2048, 164, 40, 40370, 1555, 1.41, 312),
    "a100_80gb": _gpu("A100 SXM 80 GB", (8, 0), 108, 64, 2048, 164, 40, 81158, 2039, 1.41, 312),
    "h100": _gpu("H100 SXM 80 GB", (9, 0), 132, 128, 2048, 228, 50, 81007, 3352, 1.98, 989),
    "h200": _gpu("H200 SXM 141 GB", (9, 0), 132, 128, 2048, 228, 50, 144384, 4800, 1.98, 989),
}


def compile_only_devices(name: str, count: int = 1) -> list[jax.Device]:
    """`count` GPUs of kind `name` on one host, to compile for; nothing runs on them.

    Call it before JAX looks for devices: it keeps JAX from claiming those of this machine.
    """
    if name not in GPUS:
        raise InputError(f"GPU {name!r} is not known; there are {', '.join(GPUS)}")
    jax.config.update("jax_platforms", "cpu")
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=GPUS[name].target(), topology=f"1x1x{count}"
        )
    except NotImplementedError as error:
        raise InputError(
            f"compiling for {name} needs the GPU compiler, not a GPU: pip install -e .[cuda]"
        ) from error
    return list(found.devices)
