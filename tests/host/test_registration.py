"""Registering adds the modules' classes to LAVIS's registries and to its overviews."""

import sys

import pytest

from gitllm_plugin.host.locate import register_modules

MODULE = """
from lavis.common.registry import registry
from lavis.models.base_model import BaseModel

@registry.register_model("registered_by_test")
class Model(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"small": "small.yaml"}
"""


@pytest.fixture
def module(host, tmp_path, monkeypatch):
    from lavis.common.registry import registry
    from lavis.models import model_zoo

    (tmp_path / "registered_by_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "registered_by_test"
    sys.modules.pop("registered_by_test")
    del registry.mapping["model_name_mapping"]["registered_by_test"]
    model_zoo.__init__()


def test_zoos_know_what_was_registered(module):
    from lavis.models import model_zoo  # as users hold it, before registering

    register_modules([module])
    register_modules([module])
    assert dict(model_zoo)["registered_by_test"] == ["small"]


def test_a_module_that_does_not_import_is_an_error(host):
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        register_modules(["no_such_module_anywhere"])
