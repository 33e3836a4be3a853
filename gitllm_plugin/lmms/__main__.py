"""``python -m gitllm_plugin.lmms ...``: the command ``lmms_eval``, also beside a CPU-only torch.

There torchvision, which lmms-eval imports first of all, does not load until it is repaired.
"""

import runpy

from gitllm_plugin.common import torchvision_repair

if __name__ == "__main__":
    torchvision_repair.announce = torchvision_repair.note
    torchvision_repair.repair_torchvision()
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
