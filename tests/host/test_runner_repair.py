"""`RunnerBase(...)`, as LAVIS's `evaluate.py` writes it, gives the configured runner of a plugin."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def runner_named(host, monkeypatch):
    """Builds `RunnerBase` for a configuration that names a runner; `plugin_runner` is one of a plugin."""
    from lavis.common.registry import registry
    from lavis.runners import RunnerBase, RunnerIter

    def keep(self, cfg, **kwargs):
        self.given = kwargs

    for cls in (RunnerBase, RunnerIter):
        monkeypatch.setattr(cls, "__init__", keep)
    plugin_runner = type("PluginRunner", (RunnerBase,), {})
    monkeypatch.setitem(registry.mapping["runner_name_mapping"], "plugin_runner", plugin_runner)
    return lambda run: RunnerBase(cfg=SimpleNamespace(run_cfg=run), job_id="1")


def test_a_plugins_runner_is_built_with_what_was_given(runner_named):
    runner = runner_named({"runner": "plugin_runner"})
    assert type(runner).__name__ == "PluginRunner"
    assert runner.given == {"job_id": "1"}


@pytest.mark.parametrize("run", [{}, {"runner": "runner_base"}, {"runner": "runner_iter"}, {"runner": "unknown"}])
def test_lavis_keeps_its_own_way_with_its_own_runners(runner_named, run):
    assert type(runner_named(run)).__name__ == "RunnerBase"


RELOAD = """
import importlib, warnings
warnings.simplefilter("ignore")
from gitllm_plugin.host.locate import prepare
prepare()
from lavis.common.config import Config
from lavis.runners import runner_base, runner_iter
from gitllm_plugin.host import config_repair, repairs

def places():
    names = [(runner_base.RunnerBase, n) for n in ("__new__", "model", "create_loaders")]
    names += [(runner_iter.RunnerIter, "_load_checkpoint"), (runner_base, "PrefetchLoader"), (runner_base, "dist")]
    names += [(Config, "build_model_config"), (Config, "build_dataset_config")]
    return [vars(owner)[name] for owner, name in names]

before = places()
importlib.reload(repairs).repair_runners_and_builders()
again = importlib.reload(config_repair)
again.honour_model_type_option(), again.honour_dataset_type_option()
print([a is b for a, b in zip(before, places())])
from lavis.common import config
importlib.reload(config)
own = config.Config.build_dataset_config
again.honour_dataset_type_option()
print(config.Config.build_dataset_config is not own)
"""


def test_repairs_are_done_once_and_anew_when_lavis_is_loaded_anew(run_python):
    finished = run_python(RELOAD)
    assert finished.stdout == f"{[True] * 8}\nTrue\n", finished.stderr
