"""A script with the main sequence of LAVIS's own `train.py`, which knows nothing of the plugin."""

import argparse
import random

import lavis.tasks as tasks
import numpy as np
import torch
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.optims import LinearWarmupCosineLRScheduler  # noqa: F401
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.datasets.builders import *  # noqa: F403
from lavis.models import *  # noqa: F403
from lavis.processors import *  # noqa: F403
from lavis.runners import *  # noqa: F403
from lavis.tasks import *  # noqa: F403


def parse_args():
    parser = argparse.ArgumentParser(description="Training")
    parser.add_argument("--cfg-path", required=True)
    parser.add_argument("--options", nargs="+")
    return parser.parse_args()


def main():
    job_id = now()
    cfg = Config(parse_args())
    init_distributed_mode(cfg.run_cfg)
    seed = cfg.run_cfg.seed + get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    setup_logger()
    cfg.pretty_print()
    task = tasks.setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner_class = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
    runner_class(cfg=cfg, job_id=job_id, task=task, model=model, datasets=datasets).train()


if __name__ == "__main__":
    main()
