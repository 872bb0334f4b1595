"""Packaging of ditflow: two import names, `ditflow` and `ditflow_kernels`, from one repository."""

from pathlib import Path

from setuptools import find_packages, setup

# Each `>=` is a floor: the oldest version with which the tests were tried (floors.txt, docs/dependencies.md).
CORE = [
    "torch>=2.10",
    "triton>=3.6; sys_platform == 'linux'",
    "diffusers>=0.36",
    "transformers>=5.15",  # its T5 has the attention that we ask for
    "accelerate>=1.2",
    "huggingface_hub>=1.5",
    "safetensors>=0.8",
    "sentencepiece>=0.2.2",
    "protobuf>=4.25",
    "numpy>=2.1",
    "decord>=0.6; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    "av>=17",  # writes BT.709 as it is asked to
    "pillow>=11",
    "PyYAML>=6.0.2",
    "einops>=0.8",
    "rich>=13",
    "psutil>=6",
    "packaging>=23",
]

EXTRAS = {
    "xformers": ["xformers>=0.0.34"],
    "tensorrt": ["torch-tensorrt>=2.10"],
    "profile": ["nvtx>=0.2.11"],
    "quantize": ["bitsandbytes>=0.46", "gguf>=0.17.1"],
    "eval": ["opencv-python-headless>=4.10.0.84"],
    "bench": ["pytest-benchmark>=5"],
    "batch": ["ray>=2.60"],
    "app": ["gradio>=6.31", "fastapi>=0.165", "uvicorn>=0.54"],
}
EXTRAS["dev"] = [
    "pytest>=8",
    "pytest-xdist>=3.6.1",
    "hypothesis>=6.100",
    "ruff",
    "peft>=0.18",  # its merge of a LoRA is the rival in the tests of ours
    *(package for extra in ("bench", "quantize", "eval") for package in EXTRAS[extra]),
]

CLASSIFIERS = [
    "Development Status :: 3 - Alpha",
    "Environment :: Console",
    "Environment :: GPU :: NVIDIA CUDA",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "License :: OSI Approved :: Apache Software License",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Multimedia :: Video",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Processing",
]

# `kernels/` itself is not a package: transformers imports Hugging Face's package of that name.
PACKAGES = {
    "ditflow": "ditflow",
    "ditflow.configs": "configs",
    "ditflow_kernels": "kernels/ditflow_kernels",
}
SUBPACKAGES = {
    f"{name}.{found}": f"{folder}/{found.replace('.', '/')}"
    for name, folder in PACKAGES.items()
    for found in find_packages(folder)
}

setup(
    name="ditflow",
    version="0.1.0",
    description="Fast and lean motion transfer for video diffusion transformers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ditflow authors",
    license="Apache-2.0",
    keywords=["motion transfer", "video generation", "diffusion transformer", "CogVideoX", "DiTFlow"],
    classifiers=CLASSIFIERS,
    project_urls={"Paper": "https://arxiv.org/abs/2412.07776"},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    packages=[*PACKAGES, *SUBPACKAGES],
    package_dir=PACKAGES | SUBPACKAGES,
    package_data={
        "ditflow.configs": ["**/*.yaml"],
        "ditflow.app": ["*.css", "*.js"],
        "ditflow.comfyui.pack": ["*.toml", "**/*.json"],
        "ditflow.pages": ["*.html", "*.css", "*.js"],
        "ditflow.small": ["models/**/*"],
    },
    entry_points={"console_scripts": ["ditflow = ditflow.cli.main:main"]},
)
