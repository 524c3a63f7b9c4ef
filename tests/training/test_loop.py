"""Algorithm 1 on real small runs: what a step computes, and that a broken run equals an unbroken one."""

import csv
import json
import math
import re
import shutil
import sys
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler
from ddpm_hf.outputs.checkpoint import list_checkpoints
from ddpm_hf.outputs.folder import OutputFolder


def rows_of(folder) -> list[dict[str, float]]:
    with (folder / "loss.csv").open() as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {
        **trainer.plan.system.network.unet.state_dict(),
        **{f"ema.{k}": v for k, v in trainer.ema.model.state_dict().items()},
    }


def assert_equal_weights(first, second) -> None:
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys() and first
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_leaves_a_pipeline_curves_and_pictures_that_others_can_read(train, tmp_path):
    flags = "--preview_steps 3 --checkpointing_steps 2 --checkpoints_total_limit 2"
    folder = train(*flags.split()).output.path
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    stock = diffusers.DDPMPipeline.from_pretrained(folder)
    assert stock.scheduler.config.timestep_spacing == "linspace"
    # Stock gets the averaged weights.
    ema = load_file(folder / "checkpoint-6" / "ema.safetensors")
    for name, value in stock.unet.state_dict().items():
        assert torch.equal(value, ema[f"unet.{name}"])
    for name in ("loss.png", "samples.png", "previews/step-0000003.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) >= 50 and np.asarray(picture).std() > 1
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"]
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["status"] == "finished" and summary["training_images"] == 24
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_says_so_and_writes_nothing_but_a_card_that_is_missing(train, start, capsys):
    """Which a run lacks that was killed between its last word and its card."""
    folder = train().output.path

    def state() -> dict:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*")}  # not the lock, which is taken anew

    before = state()
    assert start() is None
    assert f"this run has finished its 6 steps; the results are in {folder}" in capsys.readouterr().out
    assert state() == before and len(before) > 10

    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    assert start() is None
    assert (folder / "README.md").read_text() == card


def test_the_saved_config_reproduces_the_run(train, tmp_path):
    first = train("--random_flip", "--dropout", "0.2", ending=False)
    config = first.output / "training_config.yaml"
    assert yaml.safe_load(config.read_text())["dropout"] == 0.2
    second = train("--config", str(config), "--output_dir", str(tmp_path / "again"), ending=False)
    assert_equal_weights(first, second)


@pytest.mark.parametrize(
    "flags",
    [
        ["--dropout", "0.3", "--random_flip", "--gradient_accumulation_steps", "2"],
        ["--class_conditional", "--condition_dropout", "0.5", "--dataloader_num_workers", "2"],
        "--streaming --shuffle_buffer 7 --dataloader_num_workers 2 --holdout 0.2 --random_flip "
        "--class_conditional".split(),
        # T of 4, so that the sampler has its history and leaves the uniform law before the run ends.
        "--loss vlb --variance_type learned_range --timestep_sampling importance --train_batch_size 12 "
        "--num_train_timesteps 4 --beta_schedule squaredcos_cap_v2 --max_train_steps 12".split(),
    ],
    ids=["dropout, flips and accumulation", "classes and workers", "stream and workers", "importance sampling"],
)
def test_a_killed_run_goes_on_to_the_same_bits(train, start, tmp_path, flags):
    unbroken = train(*flags, "--dataloader_num_workers", "0", output_dir=tmp_path / "unbroken", ending=False)
    broken = start(*flags, "--checkpointing_steps", "2", output_dir=tmp_path / "broken")
    stop_after(broken, 3)
    assert [path.name for path in list_checkpoints(tmp_path / "broken")] == ["checkpoint-2"]
    shutil.copytree(tmp_path / "broken" / "checkpoint-2", tmp_path / "broken" / "checkpoint-4.partial")
    resumed = train(*flags, output_dir=tmp_path / "broken", ending=False)
    assert_equal_weights(unbroken, resumed)
    assert not list((tmp_path / "broken").glob("*.partial"))


def test_adam_in_8_bits_is_an_extra(start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # importing it raises ImportError
    with pytest.raises(ValueError, match="`use_8bit_adam` needs an extra: pip install bitsandbytes"):
        start("--use_8bit_adam")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_adam_in_8_bits_learns_nearly_the_same_and_goes_on_to_the_same_bits(train, start, tmp_path, capsys):
    wide = ["--base_channels", "32"]  # it keeps averages of fewer than 4,096 weights as they are
    plain = train(*wide, output_dir=tmp_path / "plain", ending=False)
    flags = [*wide, "--use_8bit_adam"]
    unbroken = train(*flags, output_dir=tmp_path / "unbroken", ending=False)
    assert "precision no, 8-bit AdamW" in capsys.readouterr().out
    kept = [state["state1"] for state in unbroken.optimizer.state.values() if state["state1"].numel() >= 4096]
    assert kept and all(average.dtype == torch.uint8 for average in kept)
    broken = start(*flags, "--checkpointing_steps", "2", output_dir=tmp_path / "broken")
    stop_after(broken, 3)
    assert_equal_weights(unbroken, train(*flags, output_dir=tmp_path / "broken", ending=False))
    initial = start(*wide, output_dir=tmp_path / "initial").plan.system.network.unet.state_dict()
    ours, theirs = (trainer.plan.system.network.unet.state_dict() for trainer in (unbroken, plain))
    moved = sum((theirs[name] - value).square().sum() for name, value in initial.items())
    apart = sum((theirs[name] - value).square().sum() for name, value in ours.items())
    assert 0 < apart < 0.05 * moved
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("unbroken", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) >= 6


class Killed(Exception):
    pass


def stop_after(trainer, step: int) -> None:
    """Train until an exception ends it right after an optimizer step, before anything of that step is written."""
    after_step = trainer._after_step

    def patched():
        if trainer.step == step:
            raise Killed
        after_step()

    trainer._after_step = patched
    with pytest.raises(Killed):
        trainer.train()


def test_a_run_goes_on_with_another_accumulation_and_takes_the_steps_of_the_whole_batch(train, start, tmp_path):
    """Micro-steps start at 0 again: counted on from before, they would end steps in their middle."""
    # Adam divides by the gradient's size, so rounding shows at the rate's scale; dropout differs by micro-step.
    flags = ["--learning_rate", "1e-4", "--dropout", "0"]
    whole = train(*flags, output_dir=tmp_path / "whole", ending=False)
    broken = start(*flags, "--checkpointing_steps", "1", output_dir=tmp_path / "broken")
    stop_after(broken, 2)
    parts = ["--train_batch_size", "1", "--gradient_accumulation_steps", "4"]
    resumed = train(*flags, *parts, output_dir=tmp_path / "broken", ending=False)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(value, weights_of(resumed)[name], atol=1e-5, rtol=0)
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("whole", "broken")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_gradient_checkpointing_changes_memory_and_not_the_weights(train, tmp_path):
    flags = ["--dropout", "0", "--learning_rate", "1e-4"]
    plain = train(*flags, output_dir=tmp_path / "plain", ending=False)
    saved = train(*flags, "--gradient_checkpointing", output_dir=tmp_path / "saved", ending=False)
    assert saved.plan.system.network.unet.is_gradient_checkpointing
    for name, value in weights_of(plain).items():
        torch.testing.assert_close(value, weights_of(saved)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", ["31x45", "7", "12x8"])
def test_any_size_trains_and_samples(train, size):
    flags = f"--resolution {size} --base_channels 4 --center_crop --max_train_steps 2"
    folder = train(*flags.split()).output.path
    pipeline = DDPMPipeline.from_pretrained(folder)
    height, width = (int(side) for side in (size.split("x") * 2)[:2])
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, height, width, 3)


class NothingReadBack(TorchDispatchMode):
    """Fails at an operation whose result decides what the host does next, so that it must wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.intersection(function.tags)
        if function is torch.ops.aten.index.Tensor:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, function
        return function(*args, **(kwargs or {}))


def take_steps(trainer, within) -> None:
    """Two steps of a run, then two within a context."""
    micro_steps, trainer._micro_steps = trainer._micro_steps(), lambda: iter(())
    trainer._finish = lambda: None
    trainer.train()
    for context in (nullcontext(), within):
        with context:
            for _ in range(2):
                trainer._micro_step(*next(micro_steps))
                trainer._after_step()


def test_a_step_between_reports_needs_no_number_from_the_device(start):
    trainer = start("--logging_steps", "6", "--class_conditional")
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingReadBack():
        float(torch.zeros(()))
    take_steps(trainer, NothingReadBack())
    assert trainer.step == 4


@pytest.mark.gpu
def test_a_step_between_reports_never_waits_for_the_gpu(start):
    @contextmanager
    def waiting_is_an_error():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    take_steps(start("--logging_steps", "6", "--class_conditional"), waiting_is_an_error())


class Recorded(TorchDispatchMode):
    """The operations that are run."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.add(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "is_fused"), [("no", True), ("bf16", False)])
def test_attention_is_fused_but_in_bf16_on_a_cpu(start, precision, is_fused):
    take_steps(start("--mixed_precision", precision), recorded := Recorded())
    assert (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default in recorded.operations) == is_fused


def test_learning_rate_follows_the_closed_form_whatever_the_accumulation(train):
    trainer = train("--gradient_accumulation_steps", "3", "--lr_scheduler", "cosine", ending=False)
    for row in rows_of(trainer.output.path):
        n = row["step"] - 1
        progress = (n - 2) / (6 - 2)
        factor = n / 2 if n < 2 else 0.5 * (1 + math.cos(math.pi * progress))
        assert row["learning_rate"] == pytest.approx(1e-3 * factor, rel=1e-5), n


def test_first_loss_is_that_of_a_network_that_says_zero(train):
    """The paper's initialisation predicts 0, so the loss of epsilon-prediction starts at E eps² = 1."""
    flags = "--train_batch_size 16 --max_train_steps 1 --prediction_type epsilon"
    trainer = train(*flags.split(), ending=False)
    values = 16 * 3 * 8 * 8
    assert rows_of(trainer.output.path)[0]["loss"] == pytest.approx(1.0, abs=4 * math.sqrt(2 / values))


def test_classes_reach_the_saved_pipeline(train):
    trainer = train("--class_conditional", "--preview_images", "4")
    pipeline = DDPMPipeline.from_pretrained(trainer.output.path)
    assert pipeline.id2label == {0: "cat", 1: "dog"} and pipeline.conditions[0].has_null
    image = pipeline(class_labels="dog", guidance_scale=2.0, num_inference_steps=2).images[0]
    assert image.size == (8, 8)
    with Image.open(trainer.output / "samples.png") as picture:
        assert picture.width > picture.height, "two rows of two, with their names on the left"


def test_without_condition_dropout_there_is_no_null_class(start):
    trainer = start("--class_conditional", "--condition_dropout", "0")
    trainer.save_pipeline()
    assert not DDPMPipeline.from_pretrained(trainer.output.path).conditions[0].has_null


def test_fine_tuning_starts_from_the_weights_architecture_and_process(train, start, tmp_path):
    flags = "--prediction_type v_prediction --num_train_timesteps 100"
    first = train(*flags.split(), output_dir=tmp_path / "a", ending=False)
    first.save_pipeline()
    flags = ["--resolution", "8", "--mixed_precision", "no", "--train_batch_size", "4"]
    tuned = start(*flags, "--init_from", str(first.output.path), output_dir=tmp_path / "b", tiny=False)
    for name, value in tuned.plan.system.network.unet.state_dict().items():
        assert torch.equal(value, first.ema.model.unet.state_dict()[name])
    assert tuned.plan.system.scheduler.config.prediction_type == "v_prediction"
    assert tuned.plan.system.scheduler.config.num_train_timesteps == 100


@pytest.mark.parametrize(
    ("flag", "embeddings", "flags", "words"),
    [
        ("--init_from", 3, [], "embeddings of 0 classes (--class_conditional is not given), got 3"),
        ("--init_from", 2, ["--class_conditional"], "--condition_dropout must be 0 for a network that has no"),
        ("--model_config_name_or_path", 3, [], "embeddings of 0 classes (--class_conditional is not given), got 3"),
        ("--model_config_name_or_path", 4, ["--class_conditional"], "embeddings of 2 classes, got 4"),
    ],
)
def test_a_network_for_other_classes_is_refused(start, tiny_pipeline, tmp_path, flag, embeddings, flags, words):
    unet = tiny_pipeline(num_classes=embeddings - 1).unet
    names = {0: "cat", 1: "dog"} if flags else None
    DDPMPipeline(unet, LinearDDPMScheduler(), id2label=names).save_pretrained(tmp_path / "model")
    place = tmp_path / "model" / ("." if flag == "--init_from" else "unet")
    with pytest.raises(ValueError, match=re.escape(words)):
        start(flag, str(place), "--resolution", "8", "--train_batch_size", "4", *flags, tiny=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("system", "other"), [("ddpm", "TextToImagePipeline"), ("glide", "DDPMPipeline")])
def test_a_model_of_another_system_is_refused(start, tiny_pipeline, tiny_text_pipeline, tmp_path, system, other):
    model = tiny_pipeline() if system == "glide" else tiny_text_pipeline()
    model.save_pretrained(tmp_path / "model")
    flags = ["--system", system, "--train_batch_size", "4"]
    flags += ["--init_caption_from_labels", "a {}"] if system == "glide" else []
    with pytest.raises(ValueError, match=f"--init_from must be a model of --system {system}, got a {other}"):
        start("--init_from", str(tmp_path / "model"), *flags, tiny=False)


def test_training_learns_and_fine_tuning_starts_at_the_loss_that_was_reached(train, tmp_path):
    learn = "--prediction_type epsilon --train_batch_size 16 --dropout 0 --ema_decay 0.9".split()
    first = train(*learn, *"--max_train_steps 60 --learning_rate 5e-3".split(), output_dir=tmp_path / "a")
    losses = [row["loss"] for row in rows_of(tmp_path / "a")]
    reached = np.mean(losses[-10:])
    assert reached < 0.5 < losses[0]
    start = "--train_batch_size 16 --holdout 0 --logging_steps 1 --max_train_steps 8 --preview_steps 0"
    flags = [
        *start.split(),
        "--mixed_precision",
        "no",
        "--learning_rate",
        "1e-6",
        "--init_from",
        str(first.output.path),
    ]
    train(*flags, output_dir=tmp_path / "b", tiny=False, ending=False)
    begun = np.mean([row["loss"] for row in rows_of(tmp_path / "b")])
    assert begun == pytest.approx(reached, rel=0.3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prediction_type", "sample"], ["--prediction_type sample", "--init_from", "epsilon"]),
        (["--resolution", "16"], ["--resolution 16", "--init_from", "8"]),
        (["--channels", "1"], ["--channels 1", "--init_from", "3"]),
        (["--class_conditional"], ["--init_from", "none", "cat, dog"]),
        (["--base_channels", "16"], ["--base_channels", "--init_from"]),
    ],
)
def test_flags_that_contradict_the_start_are_refused(start, tmp_path, flags, words):
    first = start("--prediction_type", "epsilon", output_dir=tmp_path / "a")
    first.save_pipeline()
    with pytest.raises(ValueError) as problem:
        start("--init_from", str(first.output.path), *flags, output_dir=tmp_path / "b", tiny=False)
    assert all(word in str(problem.value) for word in words), problem.value
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "digit"], ["digit", "ddpm-cifar10", "small-64"]),
        (["--preset", "small-32"], ["--base_channels 8", "--preset small-32", "64"]),
        (["--train_batch_size", "25"], ["--train_batch_size 25", "24"]),
        (["--prediction_type", "epsilon", "--rescale_betas_zero_snr"], ["--rescale_betas_zero_snr", "v_prediction"]),
        (["--loss_weighting", "p2", "--rescale_betas_zero_snr"], ["--rescale_betas_zero_snr", "--loss_weighting p2"]),
        (["--beta_schedule", "linear", "--num_train_timesteps", "15"], ["--num_train_timesteps 15", "--beta_end"]),
        (["--image_column", "picture"], ["image_column", "picture", "image (Image)"]),
        (["--init_from", "/nowhere"], ["/nowhere"]),
        (["--model_config_name_or_path", "/nowhere"], ["--model_config_name_or_path", "/nowhere"]),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(start, tmp_path, flags, words):
    if flags[0] in ("--init_from", "--model_config_name_or_path"):
        flags = [*flags, "--resolution", "8"]
    with pytest.raises(ValueError) as problem:
        start(*flags, tiny=flags[0] not in ("--init_from", "--model_config_name_or_path"))
    assert all(word in str(problem.value) for word in words), problem.value
    assert not (tmp_path / "out").exists()


def test_a_text_model_is_tuned_with_its_own_tokens_and_another_dropout(start, tmp_path):
    captioned = ["--system", "glide", "--init_caption_from_labels"]
    small = "--text_width 64 --text_layers 1 --text_warmup_steps 2".split()
    first = start(*captioned, "a {}", *small, output_dir=tmp_path / "a")
    first.save_pipeline()
    flags = [*captioned, "one {}, never seen", "--init_from", str(tmp_path / "a")]
    flags += "--max_train_steps 1 --train_batch_size 4 --holdout 0".split()
    tuned = start(*flags, "--dropout", "0.3", output_dir=tmp_path / "b", tiny=False)
    assert tuned.plan.config.model.text_warmup_steps is None, "what it does not do"
    one, other = (trainer.plan.system for trainer in (first, tuned))
    vocabularies = [system.conditions[0].tokenizer.get_vocab() for system in (one, other)]
    assert vocabularies[0] == vocabularies[1] and other.network.unet.config.dropout == 0.3
    weights = [system.network.state_dict() for system in (one, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    for flag in ("--text_width", "--text_layers"):
        with pytest.raises(ValueError, match=f"{flag} contradicts --init_from, which fixes the architecture"):
            start(*flags, flag, "128" if flag == "--text_width" else "2", output_dir=tmp_path / "c", tiny=False)


@pytest.mark.parametrize("flags", [["--beta_start", "0.01"], []], ids=["both given", "the first by default"])
def test_few_timesteps_take_the_ends_that_are_given(start, flags):
    """At T = 10 the default ends are 0.01 and, which is refused, 2."""
    flags = [*flags, "--beta_end", "0.5", "--beta_schedule", "linear", "--num_train_timesteps", "10"]
    betas = start(*flags).plan.system.scheduler.betas.numpy()
    np.testing.assert_allclose(betas, np.linspace(0.01, 0.5, 10), rtol=1e-6)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(train, monkeypatch, capsys):
    from accelerate import Accelerator

    save = Accelerator.save_state

    def fail_at_two(self, folder, **arguments):
        if "checkpoint-2" in str(folder):
            raise OSError(28, "No space left on device")
        return save(self, folder, **arguments)

    monkeypatch.setattr(Accelerator, "save_state", fail_at_two)
    trainer = train("--checkpointing_steps", "2", "--checkpoints_total_limit", "9", ending=False)
    assert [path.name for path in list_checkpoints(trainer.output.path)] == ["checkpoint-4", "checkpoint-6"]
    assert "checkpoint at step 2 was not saved" in capsys.readouterr().out


def test_dry_run_writes_nothing(start, tmp_path, capsys):
    assert start("--dry_run") is None
    assert not (tmp_path / "out").exists()
    assert "24 images of 8x8" in capsys.readouterr().out


def test_compiled_blocks_learn_the_same(train, tmp_path, monkeypatch, capsys, fresh_compiler):
    """PyTorch's graph capture with its eager backend: what inductor would be given, without its minutes of C++."""
    compile_blocks, compiled = DDPMUNet2D.compile_repeated_blocks, []

    def with_eager_backend(unet):
        compiled.append(unet)
        compile_blocks(unet, backend="eager", fullgraph=True)

    monkeypatch.setattr(DDPMUNet2D, "compile_repeated_blocks", with_eager_backend)
    flags = "--channel_multipliers 1 --attention_resolutions 8 --max_train_steps 3".split()
    first = train(*flags, output_dir=tmp_path / "plain", ending=False)
    assert not compiled and "not compiled" in capsys.readouterr().out
    second = train(*flags, "--compile", output_dir=tmp_path / "compiled", ending=False)
    second.save_pipeline()
    assert compiled == [second.plan.system.network.unet] and "AdamW, compiled" in capsys.readouterr().out
    for name, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[name], value, atol=1e-5, rtol=1e-5)
    stock = diffusers.DDPMPipeline.from_pretrained(tmp_path / "compiled")
    assert not [name for name in stock.unet.state_dict() if "_orig_mod" in name]


def test_a_command_line_of_the_example_of_diffusers_runs(train, image_folder, tmp_path):
    """Every flag of train_unconditional.py but the network's (tests/hub) and those of RETIRED_FLAGS."""
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    network.save_config(tmp_path / "network")
    flags = (
        f"--dataset_name {image_folder} --dataset_config_name default --model_config_name_or_path {tmp_path}/network "
        f"--overwrite_output_dir --cache_dir {tmp_path}/cache --resolution 8 --center_crop --random_flip "
        "--train_batch_size 4 --eval_batch_size 4 --dataloader_num_workers 1 --num_epochs 1 --save_images_epochs 1 "
        "--save_model_epochs 1 --gradient_accumulation_steps 2 --learning_rate 1e-4 --lr_scheduler cosine "
        "--lr_warmup_steps 1 --adam_beta1 0.95 --adam_beta2 0.999 --adam_weight_decay 1e-6 --adam_epsilon 1e-8 "
        "--use_ema --ema_inv_gamma 1.0 --ema_power 0.75 --ema_max_decay 0.9999 --logger tensorboard "
        "--logging_dir logs --mixed_precision bf16 --prediction_type sample --ddpm_num_steps 100 "
        "--ddpm_num_inference_steps 5 --ddpm_beta_schedule squaredcos_cap_v2 --checkpointing_steps 2 "
        "--checkpoints_total_limit 1"
    )
    folder = train(*flags.split(), data=False, tiny=False).output.path
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == "sample" and pipeline.unet.config.norm_num_groups == 4
    assert list((folder / "logs").rglob("events*")), "tensorboard has its files"


def test_output_folder_of_another_kind_is_refused(start, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ValueError, match="notes.txt"):
        start()
    assert [path.name for path in OutputFolder(tmp_path / "out").path.iterdir()] == ["notes.txt"]


TOLD = "--system glide --init_caption_from_labels {} "


@pytest.mark.parametrize(
    "flags",
    [
        "--base_channels 1000000",
        f"--channel_multipliers 1 {10**25}",
        TOLD + "--base_channels 1000000",
        TOLD + "--text_width 640000",
    ],
)
def test_networks_that_no_machine_bears_are_refused_before_they_are_built(start, flags):
    with pytest.raises(ValueError, match=r"GB.*--base_channels, --channel_multipliers"):
        start(*flags.split())
