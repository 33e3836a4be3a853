"""One server of a tiny model for the tests that need no other."""

import pytest

from tests.tiny_folder import write_tiny_folder

pytest.importorskip("openai", reason="the client of these tests; pip install openai")


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny-model")


@pytest.fixture(scope="package")
def pipeline(folder):
    from gitllm_plugin import Pipeline

    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="package")
def served(folder):
    from tests.serving.kit import Served

    served = Served(folder, "--files", str(folder.parent))
    yield served
    assert served.close() in (0, 130)
