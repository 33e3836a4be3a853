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

# llama.cpp's interface grows; this release is the one that the tests were run with.
LLAMA_CPP = ["gguf", "onnx", "onnxruntime", "onnxscript", "xllamacpp==2026.10.11549"]

setup(
    name="gitllm-plugin",
    version=VERSION,
    description="GIT-LLM for Salesforce LAVIS: train, evaluate and use LLMs that see",
    keywords=["vision-language model", "GIT", "LLM", "LAVIS", "LoRA", "M3IT", "image captioning", "VQA"],
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["gitllm_plugin", "gitllm_plugin.*"]), *MOVED_IN],
    package_dir=MOVED_IN,
    package_data={"gitllm_plugin": ["py.typed"], **{package: ["**/*.yaml"] for package in MOVED_IN}},
    # A bound is the oldest release that the tests were run with; what has none makes no difference.
    install_requires=[
        "filelock",
        "matplotlib",
        "numpy",
        "omegaconf>=2.3",
        "orjson",
        "peft>=0.18",
        "pillow",
        "pybase64",
        "pydantic>=2.12",
        "regex",
        "rich",
        "rouge-score",
        "safetensors",
        "shtab",
        "simplejpeg",
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
        "things": ["gguf", "resvg_py", "scikit-image"],
        "llama-cpp": LLAMA_CPP,
        "remote": ["aiohttp", "gcsfs", "s3fs"],
        "video": ["av"],
        "bench": ["scikit-image"],
        "eval": ["pycocoevalcap"],
        "lmms-eval": ["lmms-eval>=0.7.3"],
        "web": ["gradio>=6"],
        "serve": ["fastapi", "uvicorn"],
        "datasets": ["datasets>=3.4"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=1.0"],
        "tracking": ["tensorboard", "wandb"],
        "dev": [
            *LLAMA_CPP,
            "aiohttp",
            "av",
            "build",
            "fastapi",
            "import-linter",
            "openai",
            "playwright",
            "pyarrow",
            "pyright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "resvg_py",
            "ruff",
            "scikit-image",
            "tensorboard",
            "uvicorn",
        ],
    },
    entry_points={
        "console_scripts": ["gitllm = gitllm_plugin.cli.main:main"],
        "lmms_eval.models": ["git_llm = gitllm_plugin.lmms:manifest"],
        "vllm.general_plugins": ["git_llm = gitllm_plugin.vllm.plugin:register"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
