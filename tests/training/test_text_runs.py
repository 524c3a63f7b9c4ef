"""Runs of a model told captions: broken, resumed and on two processes, as for one without."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY, forget_accelerator
from safetensors.torch import load_file
from texts import write_encoder

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.conditions import prompt
from ddpm_hf.conditions.condition import tell
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.training.start import train as train_stages

CAPTIONS = ("a red apple", "ein grüner Käse", "🍎 りんご", "")
# All that is random in a step, and no network dropout, which differs by process.
RUN = (
    "--system glide --stage base --text_width 64 --text_layers 1 --text_warmup_steps 2 "
    "--max_train_steps 12 --learning_rate 1e-4 "
    "--dropout 0 --condition_dropout 0.5 --random_flip --num_train_timesteps 4 --checkpointing_steps 3"
).split()

FROZEN = (
    "--system glide --stage base --dropout 0 --condition_dropout 0.5 --num_train_timesteps 4 --text_encoder".split()
)


@pytest.fixture
def captioned(tmp_path) -> Path:
    """Noise with the captions beside it."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number % len(CAPTIONS)], encoding="utf-8")
    return folder


def final_state(folder: Path, step: int = 12) -> dict[str, torch.Tensor]:
    """Weights and their average after the last step."""
    files = [folder / f"checkpoint-{step}" / name for name in ("model.safetensors", "ema.safetensors")]
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.processes
def test_a_run_told_captions_is_the_same_when_it_is_killed_and_on_two_processes(
    command, on_two_processes, captioned, tmp_path, start
):
    flags = [*TINY, *RUN, "--train_data_dir", captioned]
    every = ["--stage", "base", "upsampler", "inpainting", "--upsampling", "2", "--beta_schedule", "squaredcos_cap_v2"]
    unbroken = command("train.py", *flags, *every, "--output_dir", tmp_path / "unbroken")
    assert unbroken.wait() == 0, unbroken.err
    expected = final_state(tmp_path / "unbroken")
    assert sum(name.startswith("ema text_encoder.") for name in expected) > 5

    killed = command("train.py", *flags, "--output_dir", tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint-3").exists():
        assert killed.poll() is None, killed.err
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed" / "checkpoint-12").exists()
    resumed = command("train.py", *flags, "--output_dir", tmp_path / "killed")
    assert resumed.wait() == 0 and "resuming from" in resumed.out, resumed.err
    found = final_state(tmp_path / "killed")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    on_two_processes("train.py", *flags, *every, "--train_batch_size", "2", "--output_dir", tmp_path / "two")
    for stage, tolerance in ((".", 1e-5), ("upsampler", 1e-4), ("inpainting", 1e-4)):
        expected, found = (final_state(tmp_path / name / stage) for name in ("unbroken", "two"))
        assert found.keys() == expected.keys()
        assert max((found[name] - expected[name]).abs().max().item() for name in expected) <= tolerance

    (captioned / "0.txt").write_text(CAPTIONS[1], encoding="utf-8")  # as many tokens as before
    with pytest.raises(
        ValueError, match=r"holds a run with other settings \(text_encoder: learned from captions whose"
    ):
        start(*RUN, "--train_data_dir", str(captioned), output_dir=tmp_path / "killed", data=False)


def told_in(plan) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Captions of the first batch, and what the network is told of them when the first one is hidden."""
    batch = next(plan.images.batches([range(8)]))
    hidden = [torch.arange(8) == 0] * len(plan.system.conditions)
    return ["", *batch["captions"][1:]], tell(plan.system.conditions, batch, hidden)


def test_a_frozen_encoder_is_saved_and_neither_trained_nor_averaged_nor_kept_in_checkpoints(
    train, start, captioned, tmp_path, capsys, monkeypatch
):
    encoder, out = write_encoder(tmp_path / "encoder", "bert"), tmp_path / "out"
    flags = [*FROZEN, encoder, "--train_data_dir", str(captioned), "--cache_dir", str(tmp_path / "cache")]
    trainer = train(*flags, output_dir=out, data=False)
    assert "prompt: BertModel, frozen, " in (told := capsys.readouterr().out)
    assert f"its states of 4 captions are kept in {tmp_path / 'cache' / 'ddpm_hf'}, 2.96e-05 GB" in told  # 4·77·48·2
    unet = trainer.plan.system.network.unet
    assert trainer.plan.facts.parameters == sum(weight.numel() for weight in unet.parameters())
    for file in ("model", "ema"):
        assert all(name.startswith("unet.") for name in load_file(out / "checkpoint-6" / f"{file}.safetensors"))
    given, saved = (load_file(Path(folder) / "model.safetensors") for folder in (encoder, out / "text_encoder"))
    assert given.keys() == saved.keys() and all(torch.equal(given[name], saved[name]) for name in given)
    assert (
        "is told captions by a text encoder that training left as it was (`encoder`)"
        in (out / "README.md").read_text()
    )

    # The network is told what the pipeline tells it: exactly, or to half precision if that is read from disk.
    pipeline = load_pipeline(str(out))
    captions, kept = told_in(trainer.plan)
    tokens = pipeline.conditions[0].of_words(captions, torch.device("cpu"))
    expected = pipeline.network.encode(tokens)["encoder_hidden_states"]
    assert expected[0].ne(expected[1]).any() and kept.keys() == {"encoder_hidden_states"}
    torch.testing.assert_close(kept["encoder_hidden_states"], expected, rtol=2**-11, atol=1e-6)
    monkeypatch.setattr(prompt, "KEPT_AT_MOST", 10)
    _, computed = told_in(trainer.plan)
    torch.testing.assert_close(computed["encoder_hidden_states"], expected, rtol=1e-5, atol=1e-6)
    start(*flags, "--dry_run", output_dir=out, data=False)
    assert (
        "are computed in each step, since on disk they would take 2.96e-05 GB, above 1e-08" in capsys.readouterr().out
    )

    stages = ["--stage", "upsampler", "inpainting", "--upsampling", "2", "--beta_schedule", "squaredcos_cap_v2"]
    anew = [*TINY, *flags, *stages, "--output_dir", str(out), "--dry_run", "--overwrite_output_dir"]
    forget_accelerator()
    train_stages(parse_training_arguments(anew))
    assert capsys.readouterr().out.count("prompt: BertModel, frozen, ") == 2

    assert start(*flags, output_dir=out, data=False) is None, "it is the same run"
    write_encoder(Path(encoder), "bert", seed=1)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(text_encoder: frozen, with the hash"):
        start(*flags, output_dir=out, data=False)
    # Fine-tuning can leave it as it is, too.
    sizes = TINY.index("--train_batch_size")  # what comes before contradicts --init_from
    again = [*TINY[sizes:], *FROZEN, "frozen", "--init_from", str(out), "--train_data_dir", str(captioned)]
    train(*again, output_dir=tmp_path / "tuned", tiny=False, data=False)
    tuned = load_file(tmp_path / "tuned" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(given[name], tuned[name]) for name in given)


@pytest.mark.processes
def test_two_processes_read_the_encoder_and_the_states_that_one_of_them_wrote(command, train, captioned, tmp_path):
    taught = "taught --text_width 64 --text_layers 1 --text_warmup_steps 2".split()
    flags = [*FROZEN, *taught, "--train_data_dir", str(captioned)]
    one = train(*flags, output_dir=tmp_path / "one", data=False, ending=False)
    both = ["--train_batch_size", "2", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "two"]
    two = command("train.py", *TINY, *flags, *both, processes=2)
    assert two.wait() == 0, two.err
    assert two.err.count("Encoding captions once: 0 of 4") <= 1  # the other one may have been faster
    assert len([*tmp_path.glob("cache/ddpm_hf/text-*/*.f16")]) == 1
    assert sorted(path.name for path in tmp_path.glob("*/taught-encoder")) == ["taught-encoder"] * 2
    expected = final_state(one.output.path, 6)
    found = final_state(tmp_path / "two", 6)
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) <= 1e-5


def test_an_encoder_that_does_not_fit_is_refused_before_anything_is_written(start, captioned, tmp_path):
    flags = [*FROZEN, write_encoder(tmp_path / "clip", "clip", positions=16), "--train_data_dir", str(captioned)]
    with pytest.raises(ValueError, match="--text_encoder .*clip cannot be used: .* at least 77 positions, got 16"):
        start(*flags, data=False)
    assert not (tmp_path / "out").exists()


def test_the_states_of_a_stream_are_computed_in_each_step(start, captioned, tmp_path, capsys):
    flags = [*FROZEN, write_encoder(tmp_path / "encoder", "bert"), "--train_data_dir", str(captioned), "--streaming"]
    start(*flags, "--dry_run", data=False)
    assert "its states are computed in each step\n" in capsys.readouterr().out
