"""Distributed start on CPU: who this process is, and two processes that meet."""

import socket

import pytest
from omegaconf import OmegaConf

from gitllm_plugin.errors import ConfigError, LostProcessError
from gitllm_plugin.host.distributed import first_slurm_node, init_distributed_mode

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")

TWO_RANKS = """
import gitllm_plugin.host.locate as locate
locate.prepare()
# As a script of LAVIS's imports it.
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import SmoothedValue
from lavis.runners import RunnerBase
from omegaconf import OmegaConf
from pathlib import Path
from types import SimpleNamespace
from gitllm_plugin.host.launch import _shared_job_id
import lavis.common.utils

args = OmegaConf.create({"device": "cpu", "dist_url": "env://"})
init_distributed_mode(args)
value = SmoothedValue()
value.update(10.0 * (get_rank() + 1), n=get_rank() + 1)  # 10 once, 20 twice
value.synchronize_between_processes()
lavis.common.utils.now = lambda: f"clock of rank {get_rank()}"
config = SimpleNamespace(run_cfg=OmegaConf.create({"output_dir": str(Path.cwd())}))
runner = RunnerBase(cfg=config, job_id=f"2026112910{get_rank()}", task=None, model=None, datasets={})
found = (args.rank, args.world_size, args.gpu, args.dist_backend, args.distributed,
         value.count, value.global_avg, _shared_job_id(), runner.output_dir.name)
# In one piece: both ranks write to one pipe.
print(" ".join(map(str, found)) + "\\n", end="", flush=True, force=True)
"""


@pytest.fixture
def environment(monkeypatch):
    for name in (*TORCHRUN, *SLURM, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return lambda **names: [monkeypatch.setenv(name, value) for name, value in names.items()]


def test_one_process(host, environment, capsys):
    args = OmegaConf.create({"device": "cpu", "world_size": 8, "distributed": True})
    init_distributed_mode(args)
    assert (args.distributed, args.rank, args.world_size, args.gpu) == (False, 0, 1, 0)
    assert capsys.readouterr().out == ""


def test_a_shell_in_a_slurm_allocation_is_one_process(host, environment):
    environment(SLURM_PROCID="0", SLURM_NTASKS="1")
    args = OmegaConf.create({})
    init_distributed_mode(args)
    assert args.distributed is False


def test_half_of_torchruns_environment(host, environment):
    environment(RANK="0", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="LOCAL_RANK is not. Start the run with torchrun"):
        init_distributed_mode(OmegaConf.create({}))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu1", "gpu1"), ("gpu[03-05,9],cpu1", "gpu03"), ("a-b-1,c", "a-b-1"), ("n[7,9-12]", "n7")],
)
def test_first_node_of_a_slurm_list(nodes, first):
    assert first_slurm_node(nodes) == first


def test_two_ranks_on_gloo_meet_and_sum(run_python, tmp_path):
    (tmp_path / "script.py").write_text(TWO_RANKS)
    finished = run_python(
        args=[
            "-W",
            "ignore",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "script.py",
        ],
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    lines = sorted(line for line in finished.stdout.splitlines() if "gloo True" in line)
    average = (10 + 2 * 20) / 3
    assert lines == [f"{rank} 2 {rank} gloo True 3 {average} clock of rank 0 20261129100" for rank in (0, 1)]


def test_a_rank_that_never_starts_is_told(host, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    args = OmegaConf.create({"device": "cpu", "step_timeout_minutes": 0.001})
    with pytest.raises(LostProcessError, match=r"rank 0 of 2 has not met the others .* \(run.step_timeout_minutes\)"):
        init_distributed_mode(args)


HANGS = """
import os, sys, time
import torch.distributed as dist
if os.environ["RANK"] == "1":
    dist.init_process_group("gloo", init_method="env://")
    time.sleep(300)
import gitllm_plugin.host.locate as locate
locate.prepare()
from omegaconf import OmegaConf
from gitllm_plugin.errors import exit_status
from gitllm_plugin.host.distributed import init_distributed_mode

args = OmegaConf.create({"device": "cpu", "dist_url": "env://", "step_timeout_minutes": 0.001})
status = exit_status(lambda: init_distributed_mode(args) or 0)
sys.stderr.flush()
os._exit(status)
"""


@pytest.mark.slow
def test_a_rank_that_hangs_before_training_is_told(run_python, tmp_path):
    (tmp_path / "script.py").write_text(HANGS)
    launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py")
    finished = run_python(args=list(launcher), cwd=tmp_path)
    assert finished.returncode != 0
    assert "error: rank 0 of 2 has not met the others at the start" in finished.stderr
