"""What test runs share, and what each says at its end."""

import signal
import sys

import pytest

# Processes inherit an ignored Ctrl-C, as of tests in the background of a script: those that are sent it would not end.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """Name the families that the contract tests were run over."""
    families = sys.modules.get("gitllm_plugin.modeling.families")
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    tested = {report.nodeid.rpartition("[")[2] for report in reports if "test_families_contract" in report.nodeid}
    if families is None or not tested:
        return
    names = sorted(name for name in families.FAMILIES if any(part.startswith(name) for part in tested))
    terminalreporter.write_line(f"families tested: {', '.join(names)}")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def cpu_precision(request):
    """What ``auto`` chooses on a CPU, here and in child processes: tests whose outcome depends on it run both ways.

    Of the module's scope, so that fixtures that train a model for several tests can ask for it.
    """
    from tests.small_run import ENVIRONMENT

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITLLM_CPU_PRECISION", request.param)
        # A copy of the environment from when it was imported.
        patch.setitem(ENVIRONMENT, "GITLLM_CPU_PRECISION", request.param)
        yield request.param
