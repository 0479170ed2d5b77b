"""What the project is made of and needs; `sh launch/demo.sh` and `sh launch/test.sh` install it."""

from pathlib import Path

from setuptools import find_packages, setup

PYTHONS = ("3.11", "3.12", "3.13")
PACKAGES = ("classifiers", "configs", "imagen_ft", "input_pipeline", "launch")

REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8.6",
    # With ftfy, to clean captions: without them prompts would be others than IF's, in silence.
    "beautifulsoup4>=4.12,<5",
    "clu>=0.0.12",
    "crc32c>=2.7",
    "etils[epath]>=1.12",
    "filelock>=4.3,<5",
    "flax>=0.12.8,<0.14",
    "fsspec>=2024.6",
    "ftfy>=6.3,<7",
    "grain>=0.2.18,<0.4",
    "huggingface_hub>=1.0,<3",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.1",
    "opencv-python-headless>=4.10",
    "optax>=0.2.8,<0.4",
    "orbax-checkpoint>=0.12.8,<0.14",
    "packaging>=24",
    "pillow>=10",
    "protobuf>=4.25",
    "pyarrow>=17",
    "pyyaml>=6.0",
    "safetensors>=0.6",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10,<5",
    "tqdm>=4.66",
    "transformers>=5.23,<6",
]

# Compiles for TPUs without having one; there are wheels for no other system.
LIBTPU = 'libtpu>=0.0.42; sys_platform == "linux" and platform_machine == "x86_64"'

# Folders at gs://; Orbax asks the second what kind of bucket it is.
GCS = ["gcsfs>=2026.4", "google-cloud-storage>=3"]

EXTRAS = {
    "test": [
        LIBTPU,
        *GCS,
        "beartype>=0.22,<0.24",
        "diffusers>=0.42.1,<0.44",
        "import-linter>=2.5,<3",
        "ipykernel>=6.17",
        # The fields of a JobSet, as its makers publish them.
        "kubeflow-trainer-api>=2.3",
        "mypy>=2.4.1,<2.5",
        "nbclient>=0.10",
        "nbformat>=5.10",
        # Adapters in diffusers.
        "peft>=0.21,<0.22",
        "prdc>=0.2,<0.3",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.17.5,<0.18",
        # One release exactly: a newer one would bring its CUDA packages to machines that need none.
        "torch==2.13.0",
    ],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Hosts with GPUs find each other by asking Kubernetes.
    "gke": ["jax[k8s]"],
    "preflight": [LIBTPU],
    "gcs": GCS,
}

setup(
    name="imagen-ft",
    version="0.1.0",
    description="Train classifiers on images from fine-tuned diffusion models",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[f"Programming Language :: Python :: {version}" for version in PYTHONS],
    python_requires=">=3.11",
    packages=find_packages(include=[glob for name in PACKAGES for glob in (name, f"{name}.*")]),
    package_data={
        "configs": ["py.typed"],
        **{room: ["data/*", "py.typed"] for room in ("classifiers", "imagen_ft", "input_pipeline")},
        "launch": ["*.sh", "py.typed"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
