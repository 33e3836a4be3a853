"""The demonstration: GIT-LLM learns to describe pictures and to answer questions about them, on a CPU.

Data (easy-VQA), language model (SmolLM2-135M-Instruct) and image encoder (EfficientNet-Lite0) come from
ordinary packages of the Python package index, so that no model hub is needed. Run it from the root of the
checkout::

    python -m examples.easyvqa.demo
"""
