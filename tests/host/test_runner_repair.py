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
