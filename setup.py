"""Installs avs_jax: `pip install .` (CPU), `.[cuda]` (NVIDIA), `.[test]` (development).

The recipes of configs/ go into the package, as avs_jax/configs, so that an installed `avs-jax`
finds them anywhere. tfds_builders is a package of its own: TFDS looks builders up by module name.
"""

from setuptools import find_packages, setup

setup(
    name="avs_jax",
    version="0.2.0.dev0",
    description="Audio-visual segmentation in JAX: VCT with audio-motion alignment on AVSBench",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["avs_jax", "avs_jax.*", "tfds_builders", "tfds_builders.*"]),
        "avs_jax.configs",
    ],
    package_dir={"avs_jax.configs": "configs"},
    entry_points={"console_scripts": ["avs-jax = avs_jax.cli:run"]},
    install_requires=[
        "jax>=0.10,<0.13",  # avs_jax/xla_flags.py avoids a bug of 0.11.2 and later on CPUs
        "flax>=0.12",
        "optax>=0.2.8",
        "flatbuffers",  # jax.export needs it and does not ask for it
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "numpy>=2.0",
        "ml_dtypes>=0.4",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets needs it and does not ask for it
        "einops>=0.8",
        "safetensors>=0.6",
        "ml_collections>=1.1",
        "absl-py>=2.1",
        "matplotlib>=3.8",
        "pillow>=10.1",
        "av>=14",
        "scikit-image>=0.24",
        "scipy>=1.13",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "app": ["gradio>=6.31"],  # avs-jax app
        "beam": ["apache-beam>=2.60"],  # datasets written by several processes; older protobuf
        "benchmark": ["torch", "torchvision", "transformers"],  # scripts/benchmark.py
        "faiss": ["faiss-cpu>=1.9"],  # approximate search (scripts/index.py --faiss)
        "text": ["tokenizers>=0.20"],  # RoBERTa's tokens (data/tokens.py)
        "test": ["tokenizers>=0.20", "pytest>=8", "pytest-xdist>=3", "ruff>=0.9"],
        # Hyphen: pip 23, which comes with Python 3.11 and 3.12, ignores extras with underscores.
        "test-slow": ["gradio>=6.31", "selenium>=4.20", "nbclient>=0.10", "nbformat", "ipykernel"],
    },
)
