"""Plans for GPUs without one. Some tests only run if the GPU compiler is installed."""

import importlib.util

import jax
import pytest

from avs_jax import main
from avs_jax import plan as program
from avs_jax.runtime import gpus
from avs_jax.runtime.memory import StepBytes
from tests import small

HAS_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None


def test_memory_that_jax_takes_of_a_gpu(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert gpus.GPUS["rtx_3090"].available == 18 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    assert gpus.GPUS["rtx_3090"].available == 12 * 2**30


def test_an_unknown_gpu_is_an_error():
    with pytest.raises(ValueError, match="'gtx_970' is not known; there are rtx_3090, .*h200"):
        gpus.compile_only_devices("gtx_970")
    arguments = ["main", "--config=configs/s4_ama.py:demo", "--mode=plan", "--gpu=gtx_970"]
    with pytest.raises(SystemExit, match="gpu.*rtx_3090"):
        main.main(arguments)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--mode=plan", "--gpu=h100", "--devices=0"], "devices=0.*positive"),
        (["--gpu=h100", "--workdir=nowhere"], "--gpu belongs to --mode=plan, not to --mode=train"),
    ],
)
def test_flags_that_do_not_combine(flags, said):
    with pytest.raises(SystemExit, match=said):
        main.main(["main", "--config=configs/s4_ama.py:demo", *flags])


@pytest.mark.skipif(HAS_COMPILER, reason="the GPU compiler is here")
def test_without_the_compiler():
    with pytest.raises(ValueError, match=r"a100_40gb needs the GPU compiler.*\.\[cuda\]"):
        program.plan(small.tiny_config(), gpu="a100_40gb")


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the GPU compiler: pip install -e .[cuda]")
@pytest.mark.parametrize("name", gpus.GPUS)
def test_the_compiler_takes_every_kind(name):
    (device,) = gpus.compile_only_devices(name)
    assert device.platform == "gpu" and device.device_kind == gpus.GPUS[name].title
    sharded = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((256, 256), "bfloat16", sharding=sharded)
    compiled = jax.jit(lambda x: x @ x).lower(x).compile(compiler_options=gpus.COMPILATION)
    assert StepBytes.of(compiled).arguments == 2 * 256**2


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")  # off in main
@pytest.mark.skipif(not HAS_COMPILER, reason="needs the GPU compiler: pip install -e .[cuda]")
def test_the_plan_of_two_gpus(capsys):
    config = small.tiny_config()
    config.train.mesh.fsdp = 2
    program.plan(config, gpu="rtx_4090", memory="1MiB", num_gpus=2)
    printed = capsys.readouterr().out
    assert "2 device(s) of kind GeForce RTX 4090, mesh {'data': 1, 'fsdp': 2}" in printed
    assert "bytes per device" in printed and "not even 2 clip(s)" in printed
