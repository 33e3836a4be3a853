"""What every test run says at its end."""

import sys


def pytest_terminal_summary(terminalreporter):
    """Name the families that the contract tests were run over."""
    families = sys.modules.get("gitllm_plugin.modeling.families")
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    tested = {report.nodeid.rpartition("[")[2] for report in reports if "test_families_contract" in report.nodeid}
    if families is None or not tested:
        return
    names = sorted(name for name in families.FAMILIES if any(part.startswith(name) for part in tested))
    terminalreporter.write_line(f"families tested: {', '.join(names)}")
