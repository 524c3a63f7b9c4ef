"""The ready-made configurations of Accelerate: read by its own loader, and started as far as a CPU can."""

import json
import os
import random
import shlex
import socket
import subprocess

import forked
import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from running import SCRIPTS, TINY
from torch import nn

from ddpm_hf import DDPMUNet2D
from ddpm_hf.models.unet import paper_config

CONFIGS = SCRIPTS / "accelerate"
KINDS = {
    "one_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def test_every_file_is_tested_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(KINDS)
    assert {path.name for path in CONFIGS.iterdir() if path.suffix != ".yaml"} == {"slurm.sh"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    file = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig) and config.distributed_type == KINDS[name]
    assert config.num_processes == (1 if name == "one_gpu" else 2)
    # What the script's own flags decide is neutral here, and the header tells what was run.
    assert config.mixed_precision == "no" and config.dynamo_config == {}
    text = file.read_text(encoding="utf-8")
    assert "# Run: " in text and "Not run: " in text


def test_fsdp_wraps_layers_that_the_network_has():
    settings = load_config_from_file(str(CONFIGS / "fsdp.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        state_dict_type=settings["fsdp_state_dict_type"],
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
    )
    unet = DDPMUNet2D(**paper_config(8, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1))
    plugin.set_auto_wrap_policy(unet)
    wrapped = {
        type(module).__name__
        for module in unet.modules()
        if plugin.auto_wrap_policy(module=module, recurse=False, nonwrapped_numel=1)
    }
    assert wrapped == {"ResnetBlock2D", "Attention"}
    inside = sum(p.numel() for m in unet.modules() if type(m).__name__ in wrapped for p in m.parameters())
    assert inside > 0.8 * sum(p.numel() for p in unet.parameters()) and isinstance(unet, nn.Module)


def test_deepspeed_settings_are_those_of_a_plugin():
    settings = load_config_from_file(str(CONFIGS / "deepspeed_zero2.yaml")).deepspeed_config
    fields = {"zero_stage", "gradient_clipping", "offload_optimizer_device", "offload_param_device", "zero3_init_flag"}
    assert set(settings) == fields <= set(DeepSpeedPlugin.__dataclass_fields__)
    assert settings["zero_stage"] == 2 and settings["gradient_clipping"] == 1.0


# one_gpu.yaml and multi_gpu.yaml start the runs of tests/training/test_interruption.py. DeepSpeed's launcher wants
# DeepSpeed, which no extra of this package installs.
@pytest.mark.processes
def test_fsdp_trains_on_a_cpu(command, tmp_path, monkeypatch):
    """In the environment that `accelerate launch` makes of the file."""
    words = ["--config_file", str(CONFIGS / "fsdp.yaml"), "train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.num_processes == 2
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    both = command("train.py", *TINY, "--output_dir", tmp_path / "out", processes=2)
    assert both.wait() == 0, both.err[-3000:]
    assert "2 process(es) on cpu" in both.out
    summary = json.loads((tmp_path / "out" / "training_summary.json").read_text())
    assert summary["status"] == "finished" and summary["global_batch_size"] == 8


SRUN = """#!/bin/bash
# Stands in for SLURM's: the command once for each machine, side by side.
while [[ "$1" == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & done
for job in $(jobs -p); do wait "$job" || exit 1; done
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames here[0-1]" ]] && printf 'localhost\\nelsewhere\\n'
"""
# In the place of train.py, whose imports take longer: who met whom, and what each was told.
MEET = """
import json, sys
import torch.distributed as dist
dist.init_process_group("gloo")
met = [None] * dist.get_world_size()
dist.all_gather_object(met, [dist.get_rank(), sys.argv[1:]])
if dist.get_rank() == 0:
    print(json.dumps(met))
dist.destroy_process_group()
"""


def job_id() -> str:
    """One that gives a free port: slurm.sh takes 20000 to 29999, below those that a system hands out by itself."""
    for number in random.sample(range(10_000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("localhost", 20_000 + number))
            except OSError:
                continue
        return str(number)
    raise AssertionError("100 ports in a row are taken")


@pytest.mark.processes
def test_slurm_script_starts_a_launcher_for_each_machine(tmp_path):
    """And with it multi_node.yaml: two launchers that find each other by address, port and rank."""
    accelerate = f'#!/bin/sh\nexec {forked.program()} -m accelerate.commands.accelerate_cli "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("accelerate", accelerate)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "accelerate").symlink_to(CONFIGS)
    (tmp_path / "scripts" / "train.py").write_text(MEET)
    variables = {"SLURM_JOB_NODELIST": "here[0-1]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    variables |= {"SLURM_JOB_ID": job_id(), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    variables |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON_EXEC": str(forked.program())}
    given = ["--output_dir", "with space/out"]
    words = ["bash", CONFIGS / "slurm.sh", *given]
    done = subprocess.run(words, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, given], [1, given]]


def test_slurm_script_is_bash_and_asks_for_what_its_header_says():
    file = CONFIGS / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(file)]).returncode == 0 and os.access(file, os.X_OK)
    lines = [line.split(maxsplit=1)[1] for line in file.read_text().splitlines() if line.startswith("#SBATCH ")]
    asked = dict(shlex.split(line)[0].removeprefix("--").split("=") for line in lines)
    assert asked["signal"] == "TERM@300" and asked["ntasks-per-node"] == "1"
