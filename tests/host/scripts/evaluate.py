"""A script with the main sequence of LAVIS's own `evaluate.py`, which knows nothing of the plugin."""

import argparse
import random

import lavis.tasks as tasks
import numpy as np
import torch
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.utils import now
from lavis.datasets.builders import *  # noqa: F403
from lavis.models import *  # noqa: F403
from lavis.processors import *  # noqa: F403
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import *  # noqa: F403


def parse_args():
    parser = argparse.ArgumentParser(description="Evaluation")
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
    runner = RunnerBase(cfg=cfg, job_id=job_id, task=task, model=model, datasets=datasets)
    runner.evaluate(skip_reload=True)


if __name__ == "__main__":
    main()
