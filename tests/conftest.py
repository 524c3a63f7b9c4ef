"""Small real pipelines and a clean environment for every test.

Fixtures import what they need themselves: the process that hands out the tests loads this file too, and the workers
would wait for its seconds of imports.
"""

import gc
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import forked

# Before anything of Hugging Face is imported: no test may reach for a network, and none may touch the user's caches.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest


def pytest_configure(config):
    """One server of processes: workers come from it, and the commands that they run."""
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="forks")
    os.environ["FORK_SERVER"] = folder.name
    forked.write_program(forked.program())
    server = Path(__file__).with_name("fork_server.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, server, folder.name], **pipes)
    with process.stdout as said:
        said.readline()  # it listens
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(process.wait)
    config.add_cleanup(process.stdin.close)


def pytest_collection_modifyitems(items):
    """Files that start processes come first: they take longest, and two workers should end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are CPUs: a test that waits for a launcher, a kill or a server leaves its own idle."""
    return os.cpu_count() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Importing everything takes a worker as long as 20 tests: they are forked."""
    for spec in specs:
        spec.python = shlex.quote(str(forked.program()))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """In one line what was skipped and why, for those who look at nothing but the end."""
    reports = terminalreporter.stats.get("skipped", [])
    if reports:
        reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{len(reports)} tests were skipped: {told}")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session", autouse=True)
def own_datasets_cache(tmp_path_factory):
    """Decoded pixels, those of the fixtures too, go to a folder of this test session, the same for all its workers."""
    import datasets

    session = tmp_path_factory.getbasetemp()
    cache = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "datasets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        yield


@pytest.fixture(scope="session", autouse=True)
def lasting_imports():
    """Accelerate collects garbage at the end of a run: without this, among all that was ever imported."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers  # noqa: F401

    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_captioned_digits():
    """800 pictures to train on, for no test learns from them; data/test_captioned_digits.py looks at all 20,000."""
    from ddpm_hf.data.captioned_digits import HANDWRITING

    every = HANDWRITING["train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HANDWRITING, "train", every[:100])
        yield every


@pytest.fixture(scope="session", autouse=True)
def one_forecast_for_equal_networks():
    """Counting a pass takes a third of what a tiny run takes, and is the same for the next run of that network."""
    from ddpm_hf.systems import forecast

    known, count = {}, forecast.count_pass

    def remember(network, *arguments):
        key = repr((network, [weight.requires_grad for weight in network.parameters()], arguments))
        if key not in known:
            known[key] = count(network, *arguments)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "count_pass", remember)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_template_of_cards():
    """Compiling it takes longer than filling it in, and every run that ends writes a card."""
    import jinja2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", cache(jinja2.Template))
        yield


@pytest.fixture(scope="session")
def tiny_pipeline():
    """Makes a small untrained pipeline; its output layers are random, so that the network matters."""
    import torch

    from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler

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


def tiny_text_unet(
    resolution: int, text_width: int, low_side: int | None = None, imagen: bool = False, told: str = "text"
):
    """A random network told captions, or an embedding, with attention at half the resolution; its outputs matter."""
    import torch

    from ddpm_hf.models.text_unet import new_text_unet

    unet = new_text_unet(
        low_side,
        imagen,
        efficient=imagen,
        resolution=resolution,
        channels=3,
        base_channels=16,
        channel_multipliers=(1, 2),
        attention_resolutions=(resolution // 2,),
        blocks_per_level=1,
        dropout=0.1,
        text_width=text_width,
        told=told,
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return unet.eval()


@pytest.fixture(scope="session")
def tiny_text_pipeline():
    """Makes a small untrained pipeline told captions, 8x8 RGB; its network and text encoder are random."""
    import torch

    from ddpm_hf import LinearDDPMScheduler
    from ddpm_hf.models.text import load_text_encoder, small_text_encoder, train_tokenizer
    from ddpm_hf.pipelines.text_to_image import TextToImagePipeline

    def make(
        captions=("a red apple", "ein grüner Käse", "красное яблоко", "🍎 りんご"), encoder=None, **process
    ) -> TextToImagePipeline:
        torch.manual_seed(0)
        tokenizer = train_tokenizer(captions)
        if encoder is None:
            encoder = small_text_encoder(len(tokenizer), 64, 1)
        else:  # a folder
            tokenizer, encoder = load_text_encoder(encoder)
        unet = tiny_text_unet(8, encoder.config.hidden_size)
        scheduler = LinearDDPMScheduler(**{"timestep_spacing": "linspace", **process})
        pipeline = TextToImagePipeline(tokenizer, encoder, unet, scheduler, None, None, None)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="session")
def tiny_latent_pipeline(tiny_text_pipeline):
    """Makes a small untrained pipeline told captions, 16x16 RGB by way of latents of 8x8; all of it is random."""
    import torch

    from ddpm_hf import LinearDDPMScheduler
    from ddpm_hf.models.autoencoder import new_autoencoder
    from ddpm_hf.models.latent_unet import new_latent_unet
    from ddpm_hf.pipelines.latent_text_to_image import LatentTextToImagePipeline
    from ddpm_hf.systems.stable_diffusion import read_as_stock_does

    def make(encoder=None, **process) -> LatentTextToImagePipeline:
        text = tiny_text_pipeline(encoder=encoder)
        read_as_stock_does(text.tokenizer, text.text_encoder, 77)
        small = {"base_channels": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1}
        torch.manual_seed(0)
        vae = new_autoencoder((16, 16), channels=3, latent_channels=4, **small)
        torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.1)
        unet = new_latent_unet(
            (8, 8),
            channels=4,
            attention_resolutions=(4,),
            dropout=0.1,
            text_width=text.text_encoder.config.hidden_size,
            **small,
        )
        torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
        settings = {"timestep_spacing": "linspace", "clip_sample": False, "steps_offset": 1}
        scheduler = LinearDDPMScheduler(**settings | process)
        pipeline = LatentTextToImagePipeline(vae, text.text_encoder, text.tokenizer, unet.eval(), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="session")
def tiny_cascade(tiny_text_pipeline):
    """Makes a `tiny_text_pipeline` with an untrained upsampler to 16x16, of GLIDE or of Imagen."""
    from diffusers import DDPMScheduler

    from ddpm_hf import LinearDDPMScheduler
    from ddpm_hf.pipelines.upsampling import UpsamplingPipeline

    def make(imagen=False, **process):
        base = tiny_text_pipeline(**process)
        unet = tiny_text_unet(16, 64, low_side=8, imagen=imagen)
        scheduler = LinearDDPMScheduler(**{"timestep_spacing": "linspace", **process})
        noising = DDPMScheduler() if imagen else DDPMScheduler(beta_start=0.0, beta_end=0.0)
        parts = (base.tokenizer, base.text_encoder, unet, scheduler, noising)
        base.upsampler = UpsamplingPipeline(*parts, None, None, None)
        return base

    return make


@pytest.fixture(scope="session")
def tiny_unclip_pipeline():
    """Makes a small untrained DALL·E 2, 8x8 RGB, with the prior of priors.py, and if it is enlarged an upsampler to
    16x16; all of it is random."""
    import torch
    from diffusers import DDPMScheduler
    from priors import make_prior

    from ddpm_hf import LinearDDPMScheduler
    from ddpm_hf.models.movq import identity_movq
    from ddpm_hf.models.text import small_text_encoder, train_tokenizer
    from ddpm_hf.pipelines.unclip import UnclipPipeline
    from ddpm_hf.pipelines.upsampling import UpsamplingPipeline

    def make(enlarged=False, **process) -> UnclipPipeline:
        parts = {f"prior_{name}": part for name, part in make_prior().components.items()}
        torch.manual_seed(0)
        unet = tiny_text_unet(8, 32, told="image")
        scheduler = LinearDDPMScheduler(**{"timestep_spacing": "linspace", **process})
        pipeline = UnclipPipeline(unet, scheduler, identity_movq(), **parts)
        if enlarged:
            tokenizer = train_tokenizer([])
            text = tokenizer, small_text_encoder(len(tokenizer), 64, 1).eval()
            unet, noising = tiny_text_unet(16, 64, low_side=8), DDPMScheduler(beta_start=0.0, beta_end=0.0)
            pipeline.upsampler = UpsamplingPipeline(*text, unet, scheduler, noising, None, None, None)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps the first configuration of a process; every test has its own."""
    from running import forget_accelerator

    forget_accelerator()
    yield
    forget_accelerator()


@pytest.fixture
def fresh_compiler():
    """PyTorch counts the compiled forms of a function for the whole process; a test that compiles has its own."""
    import torch

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield
    torch._dynamo.reset()


@pytest.fixture
def command(tmp_path_factory):
    """`command(*arguments)` is a `Command` in a folder of its own, whose processes end with the test at the latest."""
    from running import Command

    started = []

    def start(*arguments, **options) -> Command:
        started.append(Command(tmp_path_factory.mktemp("command"), *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def on_two_processes(command):
    """Runs a script to a good end on two processes of this machine's CPU and gives what it printed."""

    def run(*arguments) -> str:
        both = command(*arguments, processes=2)
        assert both.wait() == 0, both.err[-3000:]
        return both.out

    return run
