"""Packaging of gitllm_plugin; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Read without importing, since a build has none of the dependencies.
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "gitllm_plugin" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

# `configs/` and `projects/` stay at the top, as in LAVIS, and are installed inside the package.
MOVED_IN = {"gitllm_plugin.configs": "configs", "gitllm_plugin.projects": "projects"}

# What salesforce-lavis 1.0.2 imports itself. LAVIS is installed with --no-deps, because its metadata pins
# transformers<4.27, timm==0.4.12 and an OpenCV of 2022 (docs/install.md).
HOST = ["einops", "ftfy", "iopath", "pandas", "pyyaml", "regex"]

setup(
    name="gitllm-plugin",
    version=VERSION,
    description="GIT-LLM for Salesforce LAVIS: train, evaluate and use LLMs that see",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=[*find_packages(include=["gitllm_plugin", "gitllm_plugin.*"]), *MOVED_IN],
    package_dir=MOVED_IN,
    package_data={"gitllm_plugin": ["py.typed"], **{package: ["**/*.yaml"] for package in MOVED_IN}},
    # A bound is the oldest release that the tests were run with; what has none makes no difference.
    install_requires=[
        "matplotlib",
        "numpy",
        "omegaconf>=2.3",
        "peft>=0.18",
        "pillow",
        "rouge-score",
        "safetensors",
        "timm>=1.0.9",
        "torch>=2.13",
        "torchvision>=0.28",
        "tqdm",
        "transformers>=5.20",
        "webdataset>=0.2.111",
    ],
    extras_require={
        "host": HOST,
        "gpu": ["bitsandbytes", "liger-kernel"],
        "demo": ["gguf"],
        "dev": [
            "import-linter",
            "pyright",
            "pytest",
            "pytest-timeout",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["gitllm = gitllm_plugin.cli.main:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: BSD License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
