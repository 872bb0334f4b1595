"""Packaging of ditflow: two import names, `ditflow` and `ditflow_kernels`, from one repository."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.10",
    "triton>=3.6; sys_platform == 'linux'",
    "diffusers>=0.36",
    "transformers>=4.57",
    "accelerate>=1.2",
    "safetensors>=0.4.5",
    "sentencepiece>=0.2",
    "protobuf>=4.25",
    "numpy>=1.26",
    "decord>=0.6; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    "av>=13",
    "pillow>=10.1",
    "PyYAML>=6",
    "einops>=0.8",
    "rich>=13",
    "psutil>=5.9",
]

EXTRAS = {
    "lora": ["peft>=0.17"],
    "xformers": ["xformers>=0.0.33"],
    "tensorrt": ["torch-tensorrt>=2.10"],
    "profile": ["nvtx>=0.2.10"],
    "quantize": ["bitsandbytes>=0.46", "gguf>=0.10"],
    "eval": ["opencv-python-headless>=4.9"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "peft>=0.17",
        "bitsandbytes>=0.46",
        "gguf>=0.10",
        "opencv-python-headless>=4.9",
        "ruff",
    ],
}

# `kernels/` itself is no package: Hugging Face ships one of that name, and transformers imports it.
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
    license="Apache-2.0",
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    packages=[*PACKAGES, *SUBPACKAGES],
    package_dir=PACKAGES | SUBPACKAGES,
    package_data={
        "ditflow.configs": ["**/*.yaml"],
        "ditflow.report": ["*.html", "*.css", "*.js"],
        "ditflow.small": ["models/**/*"],
    },
    entry_points={"console_scripts": ["ditflow = ditflow.cli.main:main"]},
)
