"""What a user types, and what a wrong word gets."""

import dataclasses
import re

import pytest
import yaml

from ddpm_hf.cli.parser import RETIRED_FLAGS, one_line_errors, parse_training_arguments, training_parser
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler
from ddpm_hf.models.presets import PRESETS
from ddpm_hf.settings.config import ARGUMENT_GROUPS, NOT_PART_OF_THE_RESULT
from ddpm_hf.systems.plan import stages_of

ALL_FLAGS = {field.name for group in ARGUMENT_GROUPS for field in dataclasses.fields(group)}


def one_line_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments(list(arguments))
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("train.py: error: ")
    return output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning_rat", "1"], ["--learning_rat", "--learning_rate"]),
        (["photos"], ["photos", "--help"]),
        (["--learning_rate", "-1"], ["--learning_rate", "-1", "above 0"]),
        (["--caption_column", "text"], ["--caption_column", "--system glide"]),
        (["--system", "glide", "--class_conditional"], ["--class_conditional", "--system ddpm"]),
        (["--system", "glide", "--compile"], ["--compile", "--system ddpm"]),
        (["--system", "glide", "--text_width", "100"], ["--text_width", "100", "multiple of 32"]),
        (["--system", "glide", "--text_warmup_steps", "-1"], ["--text_warmup_steps", "-1", "at least 0"]),
        (["--text_warmup_steps", "9"], ["--text_warmup_steps", "--system glide"]),
        (["--stage", "base"], ["--stage", "--system glide"]),
        (["--system", "glide", "--init_from", "x", "--stage", "upsampler"], ["--init_from", "--stage base"]),
        (
            ["--system", "glide", "--init_from", "x", "--stage", "base", "inpainting"],
            ["--stage inpainting alone", "got base inpainting"],
        ),
        (
            ["--system", "stable-diffusion", "--init_from", "x", "--stage", "autoencoder"],
            ["--init_from is for --stage unet or --stage inpainting alone", "got autoencoder"],
        ),
        (
            ["--system", "stable-diffusion", "--init_caption_from_labels", ""],
            ["--init_caption_from_labels needs a template, or --train_data_dir"],
        ),
        (["--system", "glide", "--upsampling", "1"], ["--upsampling", "at least 2", "1"]),
        (["--system", "glide", "--condition_dropout", "0"], ["--condition_dropout", "above 0", "--system glide"]),
        (["--text_encoder", "train"], ["--text_encoder", "--system glide"]),
        (["--system", "glide", "--text_encoder", "x", "--text_width", "64"], ["--text_width", "--text_encoder x"]),
        (["--system", "glide", "--text_encoder", "frozen"], ["--text_encoder", "frozen", "folder or Hub name"]),
        (["--system", "glide", "--text_encoder", "x", "--init_from", "y"], ["--text_encoder", "frozen", "got x"]),
        (["--system", "imagen", "--text_encoder", "taught", "--text_rate", "1"], ["--text_rate", "taught"]),
        (["--system", "imagen", "--resolution", "256,64"], ["--resolution", "must rise", "256,64"]),
        (["--system", "imagen", "--resolution", "64,96"], ["--resolution", "multiple", "64,96"]),
        (["--system", "imagen", "--resolution", "64,256,1024"], ["--resolution", "two sides", "64,256,1024"]),
        (["--system", "imagen", "--resolution", "64,"], ["--resolution of stages must be two sides", "got 64,\n"]),
        (["--system", "glide", "--resolution", "4096,16384"], ["at most 8192 pixels", "4096 times --upsampling 4"]),
        (["--resolution", "64,256"], ["--resolution must be N or HxW for --system ddpm, got 64,256"]),
        (
            ["--system", "imagen", "--init_from", "x", "--stage", "inpainting"],
            ["--init_from is for --stage base alone, got inpainting"],
        ),
        (
            ["--system", "imagen", "--resolution", "64,256", "--upsampling", "2"],
            ["--upsampling 2 contradicts --resolution 64,256"],
        ),
        (["--thresholding", "--dynamic_thresholding_ratio", "2"], ["--dynamic_thresholding_ratio", "at most 1"]),
        (
            ["--system", "imagen", "--stage", "super-resolution", "--dynamic_thresholding_ratio", "0.9"],
            ["--dynamic_thresholding_ratio needs --thresholding"],
        ),
        (["--system", "stable-diffusion", "--thresholding"], ["--thresholding", "--system ddpm or glide or imagen"]),
        (["--learning_rate", "nan"], ["--learning_rate", "nan"]),
        (["--learning_rate", "fast"], ["--learning_rate", "fast"]),
        (["--max_train_steps", "0"], ["--max_train_steps", "0", "at least 1"]),
        (["--dropout", "1.5"], ["--dropout", "1.5", "at most 1"]),
        (["--ema_power", "1.5"], ["--ema_power", "1.5", "at most 1"]),
        (["--report_to", "paper"], ["--report_to", "'paper'", "tensorboard"]),
        (["--resolution", "0"], ["resolution", "0", "HxW"]),
        (["--channels", "2"], ["--channels", "2", "1 (grey), 3 (RGB) or 4 (RGBA)"]),
        (["--beta_schedule", "steep"], ["--beta_schedule", "'steep'", "linear"]),
        (["--random_flip", "perhaps"], ["--random_flip", "perhaps"]),
        (["--max_train_steps", "5", "--num_epochs", "2"], ["--max_train_steps 5", "--num_epochs 2"]),
        (["--dataset_name", "a", "--train_data_dir", "b"], ["--dataset_name a", "--train_data_dir b"]),
        (["--preset", "digits", "--init_from", "x"], ["--preset digits", "--init_from x"]),
        (["--config", "nowhere.yaml"], ["--config", "nowhere.yaml"]),
    ],
)
def test_a_wrong_word_gets_one_line_that_names_it(capsys, arguments, words):
    line = one_line_of(capsys, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("flag", RETIRED_FLAGS)
@pytest.mark.parametrize("form", ["{} 0", "{}=0"])
def test_flags_without_a_counterpart_say_what_to_use(capsys, flag, form):
    line = one_line_of(capsys, *form.format(flag).split())
    assert flag in line and RETIRED_FLAGS[flag] in line


def test_flags_of_the_example_of_diffusers_are_understood():
    """A command line written for diffusers' examples/unconditional_image_generation/train_unconditional.py."""
    config = parse_training_arguments(
        "--dataset_name huggan/flowers --dataset_config_name default --model_config_name_or_path google/ddpm-cat-256 "
        "--output_dir out --overwrite_output_dir --cache_dir cache --resolution 64 --center_crop --random_flip "
        "--train_batch_size 16 --eval_batch_size 8 --dataloader_num_workers 2 --num_epochs 100 --save_images_epochs "
        "10 --save_model_epochs 5 --gradient_accumulation_steps 2 --learning_rate 1e-4 --lr_scheduler cosine "
        "--lr_warmup_steps 500 --adam_beta1 0.95 --adam_beta2 0.999 --adam_weight_decay 1e-6 --adam_epsilon 1e-8 "
        "--use_ema --ema_inv_gamma 1.0 --ema_power 0.75 --ema_max_decay 0.9999 --logger tensorboard --logging_dir "
        "logs --mixed_precision fp16 --prediction_type sample --ddpm_num_steps 500 --ddpm_num_inference_steps 100 "
        "--ddpm_beta_schedule squaredcos_cap_v2 --checkpointing_steps 250 --checkpoints_total_limit 3 "
        "--resume_from_checkpoint latest".split()
    )
    assert config.run.preview_images == 8 and config.run.preview_inference_steps == 100
    assert config.run.report_to == "tensorboard" and config.optimization.ema_decay == 0.9999
    assert config.process.num_train_timesteps == 500 and config.process.beta_schedule == "squaredcos_cap_v2"
    assert config.data.random_flip is True and config.optimization.adam_beta1 == 0.95


def test_a_yaml_file_gives_flags_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.yaml"
    content = {"learning_rate": 0.5, "channel_multipliers": [1, 2], "use_ema": False, "seed": 3, "cache_dir": None}
    file.write_text(yaml.safe_dump(content))
    config = parse_training_arguments(["--config", str(file), "--seed", "4"])
    assert config.optimization.learning_rate == 0.5 and config.model.channel_multipliers == [1, 2]
    assert config.optimization.use_ema is False and config.optimization.seed == 4


def test_what_a_run_saves_can_be_read_back(tmp_path):
    first = parse_training_arguments(
        "--num_epochs 3 --random_flip --channel_multipliers 1 2 --beta_start 1e-5".split()
    )
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(first.flags()))
    assert parse_training_arguments([f"--config={file}"]).flags() == first.flags()


@pytest.mark.parametrize("content", ["- a\n- b\n", "{", "colour: red\n"])
def test_a_yaml_file_that_is_none_is_named(capsys, tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert str(file) in one_line_of(capsys, "--config", str(file))


def test_lists_of_flags_name_flags_that_exist():
    assert NOT_PART_OF_THE_RESULT <= ALL_FLAGS
    # What a preset sets is either a flag or one of the process's settings that have none.
    for preset in PRESETS.values():
        assert set(preset.training) <= ALL_FLAGS
        assert set(preset.process) - ALL_FLAGS <= {"clip_sample", "timestep_spacing"}
        assert set(preset.model) <= ALL_FLAGS


def test_help_shows_the_values_that_a_run_of_each_preset_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no entry is wrapped
    with pytest.raises(SystemExit):
        parse_training_arguments(["--help"])
    entries = re.split(r"^  --", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    found = {re.match(r"\w+", entry)[0]: re.search(r"\(default: ([^)]*)\)", entry) for entry in entries}
    shown = {flag: match[1] for flag, match in found.items() if match}
    assert "None" not in shown.values() and shown["thresholding"] == "True in imagen-64-256"
    assert not [entry for entry in entries if re.search(r"by default (\S+)\. \(default: \1\)", entry)]

    for name, preset in PRESETS.items():
        if preset.inpainting:
            assert re.search(rf"\b{preset.inpainting['max_train_steps']}( steps)? in {name}", " ".join(entries))
        config = parse_training_arguments(["--train_data_dir", "x", "--system", preset.system, "--preset", name])
        empty = [flag for flag, value in config.flags().items() if value is None]
        config = stages_of(config)[-1 if preset.autoencoder or preset.clip else 0].resolve(config, None)
        filled = {flag for flag in empty if config.flags()[flag] not in (None, [])}
        follow = {"loss"} if preset.process else set()  # from the variance
        follow |= {"channels"} if preset.clip else set()  # CLIP looks at colours
        assert len(filled) > 20 and filled - shown.keys() == follow
        typed = ["--system", preset.system]
        for flag in filled & shown.keys():
            in_preset = re.search(rf"(?:^|; )([^;]*) in [^;]*(?<![\w-]){name}(?![\w-])", shown[flag])
            typed += [f"--{flag}", *(in_preset[1] if in_preset else shown[flag]).split()]
        said = parse_training_arguments(typed).flags()
        for flag in filled & shown.keys():
            assert said[flag] == config.flags()[flag], f"--{flag} of {name}"


def test_errors_of_the_library_name_flags_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors(training_parser()):
        DiffusionLoss(LinearDDPMScheduler(), loss="hybrid")
    line = "train.py: error: --loss hybrid cannot be used with --variance_type fixed_small: "
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith(line) and said.endswith("and 'learned'\n") and said.count("\n") == 1
    with pytest.raises(SystemExit), one_line_errors(training_parser()):
        raise ValueError("`seed` is none of `hf auth login` and `weighting='p2'`.")
    assert capsys.readouterr().err == "train.py: error: --seed is none of `hf auth login` and `weighting='p2'`\n"
