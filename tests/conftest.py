"""Small real pipelines and a clean environment for every test."""

import os
import subprocess
import sys

# Before anything of Hugging Face is imported: no test may reach for a network, and none may touch the user's caches.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    """Decoded pixels go to a folder of this test session."""
    import datasets

    cache = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))


@pytest.fixture
def tiny_pipeline():
    """Makes a small untrained pipeline; its output layers are random, so that the network matters."""

    def make(
        resolution=8, channels=3, num_classes=None, learned_variance=False, id2label=None, **process
    ) -> DDPMPipeline:
        torch.manual_seed(0)
        unet = DDPMUNet2D(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels * (2 if learned_variance else 1),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=None if num_classes is None else num_classes + 1,
            dropout=0.1,
        ).eval()
        process = {"timestep_spacing": "linspace", **process}
        if learned_variance:
            process.setdefault("variance_type", "learned_range")
        if num_classes is not None and id2label is None:
            id2label = {number: f"class {number}" for number in range(num_classes)}
        pipeline = DDPMPipeline(unet, LinearDDPMScheduler(**process), id2label=id2label)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps the first configuration of a process; every test has its own."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (AcceleratorState, PartialState, GradientState)
    for state in states:
        state._reset_state()
    yield
    for state in states:
        state._reset_state()


@pytest.fixture
def fresh_compiler():
    """PyTorch counts the compiled forms of a function for the whole process; a test that compiles has its own."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield
    torch._dynamo.reset()


@pytest.fixture
def on_two_processes():
    """Runs a script on two processes of this machine's CPU and gives what it printed."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launcher += "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    launcher += ["--main_process_port", "0"]

    def run(*command: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run
