"""The benchmarks run, compare what they say they compare, and reckon rightly. No time is asserted."""

import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from running import write_pictures

import ddpm_hf
from ddpm_hf.evaluation.record import update_report

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cascade  # noqa: E402
import data_path  # noqa: E402
import gpu  # noqa: E402
import image_files  # noqa: E402
import inpainting  # noqa: E402
import kept_latents  # noqa: E402
import measuring  # noqa: E402
import overheads  # noqa: E402
import prompt_following  # noqa: E402
import sampling  # noqa: E402
import scaling  # noqa: E402
import systems  # noqa: E402
import time_to_quality  # noqa: E402


def test_sides_take_turns_after_one_call_that_does_not_count():
    calls = []
    sides = {"stock": lambda: calls.append("a"), "ours": lambda: calls.append("b")}
    seconds = measuring.interleaved(sides, repetitions=3, calls=2)
    assert "".join(calls) == "ab" + 3 * "aabb"
    assert [len(turns) for turns in seconds.values()] == [3, 3]


def test_ratio_is_the_median_of_pairs_and_not_the_ratio_of_medians():
    found = measuring.compare("x", stock=[1.0, 8.0, 9.0], ours=[1.0, 2.0, 1.0], goal=4)
    assert (found.ratio, found.low, found.high, found.pairs) == (4, 1, 9, 3)
    assert found.row()["goal"] == "4: met" and measuring.compare("x", [1.0], [1.0], 1.1).row()["goal"] == "1.1: missed"


def test_a_report_says_what_was_measured_on_what(tmp_path, capsys):
    options = measuring.make_parser("Words.\nMore.", "some").parse_args(["--size", "quick"])
    options.output = tmp_path / "a" / "some.json"
    facts = measuring.start(options)
    measuring.finish(options, [{"what": "x", "value": 1.5}, {"what": "longer", "value": None}], facts)
    printed = capsys.readouterr().out
    assert "first look, no result" in printed and facts["processor"] in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    report = json.loads(options.output.read_text())
    assert report["rows"][0] == {"what": "x", "value": 1.5} and report["settings"]["size"] == "quick"
    assert report["settings"]["output"] == "some.json" and str(tmp_path) not in options.output.read_text()
    assert report["machine"]["torch"] == torch.__version__ and report["machine"]["threads"] == torch.get_num_threads()


def test_overheads_compare_equal_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overheads, "TURNS", {"quick": 1})
    monkeypatch.setattr(overheads, "paired", partial(measuring.paired, calls=1))
    monkeypatch.setattr(overheads, "SHAPES", overheads.SHAPES[:1])
    overheads.main(["--size", "quick", "--output", str(tmp_path / "report.json")])
    names = [row["name"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]]
    for part in ("scheduler.step", "add_noise", "set_timesteps", "EMA", "AdamW"):
        assert any(part in name for name in names)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]) == len(names) + 2


def test_overheads_end_when_the_sides_differ():
    overheads.require_equal("x", torch.zeros(2), torch.full((2,), 1e-6))
    for wrong in (1e-4, math.nan):
        with pytest.raises(SystemExit, match="x: the two sides differ"):
            overheads.require_equal("x", torch.zeros(2), torch.full((2,), wrong))


def test_data_path_reads_the_same_images_on_both_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(data_path, "GOALS", {8: 1.0})
    monkeypatch.setattr(data_path, "AMOUNTS", {"quick": (64, 1)})
    data_path.main(["--size", "quick", "--output", str(tmp_path / "report.json")])
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    kinds = [f"{kind}, {workers} workers" for kind in ("PNG files", "parquet") for workers in (0, 2)]
    assert [row["what"] for row in rows] == [f"8x8, {kind}" for kind in kinds]


def test_kept_latents_are_those_of_all_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_latents, "AMOUNTS", {"quick": (1, 1)})
    small = "--base_channels 8 --channel_multipliers 1 --attention_resolutions 8 --text_width 64 --train_batch_size 2"
    monkeypatch.setattr(kept_latents, "NETWORK", (*kept_latents.NETWORK, *small.split()))
    kept_latents.main(["--size", "quick", "--output", str(tmp_path / "report.json")])
    step, encoding, reading = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert step["encoding in each step"] and step["kept"] and step["n"] == 1
    assert encoding["what"] == "encoding 800 pictures once" and "800 pictures" in reading["what"]


def test_stock_loader_transforms_as_torchvision_would(tmp_path):
    """ToTensor divides by 255, Normalize takes 0.5 off and doubles: the pixels of a store, through `normalize`."""
    import stock

    from ddpm_hf.data.sources import load_images
    from ddpm_hf.data.store import PixelStore
    from ddpm_hf.pixels import normalize

    folder = image_files.write_png_folder(tmp_path / "images", 6, 16)
    batch = next(iter(stock.make_loader(folder, 16, 6, random_flip=False)))["input"]
    store = PixelStore.build(load_images(train_data_dir=folder), (16, 16), cache_dir=tmp_path / "store")
    ours = normalize(store.batch(range(6))["images"])
    order = batch.flatten(1).sum(1).argsort(), ours.flatten(1).sum(1).argsort()
    assert torch.allclose(batch[order[0]], ours[order[1]], atol=1e-6)


@pytest.mark.processes
def test_the_benchmark_of_a_gpu_measures_both_sides(tmp_path, monkeypatch):
    memory = {}

    class Asking(gpu.Worker):
        def __exit__(self, *problem):
            memory[self.side.name] = self.memory()
            super().__exit__(*problem)

    monkeypatch.setattr(gpu, "Worker", Asking)
    monkeypatch.setattr(sys, "executable", str(forked.program()))  # its processes
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as it does itself, but undone after the test
    gpu.main(["--size", "quick", "--device", "cpu", "--output", str(tmp_path / "gpu.json")])
    training, *sampling = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert training["training"] == "small-32, batch 2, ours bf16, channels_last" and training["ours MFU"] == "unknown"
    assert all(training[f"{side} images/s"] > 0 and training[f"{side} peak GB"] > 0 for side in ("stock", "ours"))
    assert [row["sampling"].split(", ", 2)[2] for row in sampling] == [
        f"{precision}, {calls} calls" for precision in ("float32", "bf16") for calls in (2, 3)
    ]
    # What the real trainer holds: weights, gradients, Adam's two moments and the average at the least.
    ours = memory["ours"]
    assert ours["parameters"] == sum(parameter.numel() for parameter in scaling.make_network("small-32").parameters())
    assert ours["peak"] - ours["libraries"] > 5 * 4 * ours["parameters"]
    assert ours["forecast"] > 4 * 4 * ours["parameters"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", None),  # not the A10
    ],
)
def test_the_peak_of_a_gpu_is_found_by_the_name_that_cuda_gives(name, peak):
    assert gpu.peak_of(name) == peak


def test_collectives_follow_the_ring_within_a_machine_and_the_cards_between_machines():
    machine = scaling.Assumptions(latency=(0, 0), link_share=1, nvlink=100, network=10)
    assert scaling.collective_seconds(800, 3, 1, machine) == (0, "")
    assert scaling.collective_seconds(800, 3, 8, machine) == (800 * 7 / 8 / 100, "NVLink")
    seconds, binds = scaling.collective_seconds(800, 3, 16, machine)
    assert seconds == pytest.approx(7 + 100 / 2 / 10) and binds == "NVLink"
    assert scaling.collective_seconds(0, 3, 8, scaling.Assumptions(latency=(1, 2)))[0] == 3


def test_distributed_data_parallel_reduces_a_float32_for_each_weight():
    import torch.distributed as dist

    from ddpm_hf.models.unet import paper_config

    unet = ddpm_hf.DDPMUNet2D(**paper_config(8, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        reduced, buckets = scaling.reduced_bytes(unet)
    finally:
        dist.destroy_process_group()
    assert reduced == 4 * sum(parameter.numel() for parameter in unet.parameters()) and buckets >= 1


def test_a_counted_step_grows_with_the_batch():
    unet = ddpm_hf.DDPMUNet2D.from_paper(16, base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1)
    two, four = (scaling.step_cost(unet, batch, scaling.Assumptions()) for batch in (2, 4))
    assert two.operations == four.operations and four.flops == 2 * two.flops
    assert two.seconds < four.seconds < 2 * two.seconds  # the weights are read once for the whole batch


def test_time_to_quality_compares_each_seed_with_itself():
    def row(arm, share, seed, seconds, frechet):
        return {"arm": arm, "share": share, "seed": seed, "seconds": seconds, "frechet": frechet, "bits_per_dim": 1.0}

    rows = [
        *(row("ours", share, seed, 100 * share, 40 + 10 * seed) for seed in (0, 1) for share in (0.125, 0.5, 1.0)),
        # Trained in another order, as every second seed is.
        *(row("stock, defaults", 1.0, seed, 100, 45 + 10 * seed) for seed in (1, 0)),
        *(row("stock, best flags", 1.0, seed, 100, 45) for seed in (1, 0)),
    ]
    lines = time_to_quality.verdicts(rows)
    distances = [line for line in lines if line["what"].startswith("frechet")]
    assert [line["seeds at least as good"] for line in distances] == ["2 of 2", "2 of 2", "1 of 2", "1 of 2"]
    assert [line["goal"] for line in distances] == ["met", "met", "missed", "missed"]
    assert [line["time needed"] for line in distances] == ["0.125", "1", "0.5", "1"]
    assert time_to_quality.median_and_range([1.0, 20_000, 3.0]) == "3 [1..20,000]"


def test_prompt_following_trains_each_time_anew_and_judges_what_is_not_judged(tmp_path, monkeypatch, capsys):
    """Without a training: the commands, and what is made of the figures that they leave."""
    commands = []

    def command(script, *arguments):
        words = [str(word) for word in arguments]
        commands.append([script.name, *words])
        if script.name == "train.py":
            folder = Path(words[words.index("--output_dir") + 1]) / ("autoencoder" if "autoencoder" in words else "")
            folder.mkdir(parents=True, exist_ok=True)
            seconds = 0.2 * int(words[words.index("--max_train_steps") + 1])
            (folder / "training_summary.json").write_text(json.dumps({"training_seconds": seconds}))
            return
        scale, count = (float(words[words.index(flag) + 1]) for flag in ("--guidance_scale", "--num_images"))
        share = {1.0: 0.25, 3.0: 0.96}[scale]
        ends = {"interval_low": share - 0.02, "interval_high": share + 0.02, "ceiling": 0.99, "chance": 0.004}
        entries = [
            {"name": f"prompt_accuracy_{group}", "value": share, "n": 50, **ends} for group in ("seen", "unseen")
        ]
        entries.append({"name": "frechet_distance", "value": 20 * scale, "n": count, "floor": 9.0})
        entries[-1] |= {"standard_error": 1.0, "interval_low": 18 * scale, "interval_high": 22 * scale}
        update_report(Path(words[0]) / "evaluation.json", "w", [e | {"guidance_scale": scale} for e in entries])

    monkeypatch.setattr(prompt_following, "command", command)
    asked = ["--size", "quick", "--minutes", "30", "8", "--images", "100", "--output", str(tmp_path / "p.json")]
    asked += ["--models", "pixels", "latents"]
    prompt_following.main([*asked, "--base_channels", "16"])
    trained = [line for line in commands if line[0] == "train.py"]
    # 100 steps took 20 seconds.
    steps = ["100", "2400", "9000"]
    assert [line[line.index("--max_train_steps") + 1] for line in trained] == [*steps, "200", *steps]
    once = trained.pop(3)
    assert once[-1] == str(tmp_path / "prompt_following" / "autoencoder-0")
    assert all(line[-4:] == ["--resolution", "32", "--base_channels", "16"] for line in trained)
    assert all(line[line.index("--vae") + 1] == f"{once[-1]}/autoencoder" for line in trained[3:])
    report = json.loads((tmp_path / "p.json").read_text())
    drawn = [(8, 3, 0.96), (30, 1, 0.25), (30, 3, 0.96)]
    assert [(row["model"], row["minutes"], row["guidance"], row["unseen"]["value"]) for row in report["rows"]] == [
        (model, *row) for model in ("pixels", "latents") for row in drawn
    ]
    printed = capsys.readouterr().out
    assert re.search(r"\| pixels +\| 8.0 +\| 2,400 ", printed)
    assert re.search(r"\| latents \| 8.0 \+ 0.7 +\| 2,400 ", printed)
    assert "| 96.0 [94.0..98.0], n = 50 | 99.0, 0.40" in printed and "| 60.0 ± 1.0 | 9.0" in printed
    assert "goal: 95 % of unseen combinations after at most 8 minutes: met, 96.0 % after 8.0" in printed
    assert (tmp_path / "p.png").stat().st_size > 10_000
    commands.clear()
    prompt_following.main(asked)
    assert {line[0] for line in commands} == {"train.py"}, "which finds its runs finished"


def test_the_stages_of_a_system_share_its_minutes(tmp_path, monkeypatch, capsys):
    """Without a training: the commands, and the table of what was measured."""
    speeds, commands = {"clip": 10.0, "prior": 4.0, ".": 2.0, "autoencoder": 8.0}, []  # steps a second

    def command(*arguments):
        words = [str(word) for word in arguments]
        commands.append(words)
        for place in {"clip", "prior", "autoencoder"} & {*words} or {"."}:
            folder = Path(words[words.index("--output_dir") + 1]) / place
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "training_summary.json").write_text(
                json.dumps({"training_seconds": int(words[words.index("--max_train_steps") + 1]) / speeds[place]})
            )
        if "pilot" in str(folder):
            (folder.parent / "training_summary.json").write_text(json.dumps({"training_seconds": 50 / speeds["."]}))

    def measure(system, folder, count):
        share = {"value": 0.9, "interval_low": 0.8, "interval_high": 0.95, "ceiling": 0.98, "n": count}
        row = {
            "seen": share,
            "unseen": share,
            "frechet": {"value": 20.0, "floor": 9.0},
            "side": 16,
            "parameters": 10**6,
        }
        row |= {"gflop_a_picture": 3.0, "seconds_a_picture": 0.05, "training_seconds": [60.0]}
        return row, np.zeros((8, 16 * (1 + (system == "dalle2")), 16 * (1 + (system == "dalle2")), 3), np.uint8)

    monkeypatch.setattr(systems, "command", command)
    monkeypatch.setattr(systems, "measure", measure)
    asked = ["--size", "quick", "--minutes", "3", "--systems", "glide", "dalle2", "--output", str(tmp_path / "s.json")]
    systems.main(asked)
    pilot, clip, prior, decoder = commands[-4:]
    assert pilot[pilot.index("--stage") + 1 :][:3] == ["clip", "prior", "decoder"] and "50" in pilot
    steps = [int(words[words.index("--max_train_steps") + 1]) for words in (clip, prior, decoder)]
    assert abs(steps[0] / 10 + steps[1] / 4 + steps[2] / 2 - 180) < 1, "three minutes"
    usual = [preset.training["max_train_steps"] for _, _, preset in systems.SYSTEMS["dalle2"][1]]
    assert max(np.divide(steps, usual)) < 1.01 * min(np.divide(steps, usual))
    assert commands[1][commands[1].index("--max_train_steps") + 1] == "360"  # of GLIDE's only stage
    printed = capsys.readouterr().out
    assert "| glide " in printed and "| 90.0 [80.0..95.0], n = 200 |" in printed and "| 20.0 (9.0) " in printed
    assert [row["system"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]] == ["glide", "dalle2"]
    assert (tmp_path / "s.png").stat().st_size > 5000 and (tmp_path / "s_pictures.png").exists()


def test_stock_recipe_sees_the_pixels_that_training_sees():
    import numpy as np
    import stock_recipe

    from ddpm_hf.pixels import normalize

    for channels in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, channels), dtype=np.uint8)
        seen = torch.stack([item["input"] for item in (stock_recipe.PerEpochTransforms(images)[i] for i in (0, 1))])
        assert torch.allclose(seen, normalize(torch.from_numpy(images).permute(0, 3, 1, 2)), atol=1e-6)


def test_stock_trainer_takes_the_step_of_the_example(tmp_path):
    """Two steps of a warm-up over two, and the average that diffusers' formula gives after them."""
    import stock
    from diffusers import DDPMPipeline, UNet2DModel

    from ddpm_hf.models.unet import paper_config

    torch.manual_seed(0)
    unet = UNet2DModel(**paper_config(8, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1))
    before = [parameter.detach().clone() for parameter in unet.parameters()]
    trainer = stock.StockTrainer(unet, learning_rate=1e-2, warmup_steps=2, train_steps=10)
    for _ in range(2):
        trainer.step(torch.zeros(2, 3, 8, 8))
    after = [parameter.detach().clone() for parameter in unet.parameters()]
    # The first step has rate 0, the second half the rate, and Adam moves no weight by much more than its rate.
    largest = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    assert 0.25e-2 < largest < 0.75e-2
    trainer.save(tmp_path)
    averaged = DDPMPipeline.from_pretrained(tmp_path).unet
    # diffusers' EMA copies the weights in its first update and takes the share 1 - 2^-0.75 of the old in its second.
    kept = 1 - 2**-0.75
    for saved, old, new in zip(averaged.parameters(), before, after, strict=True):
        assert torch.allclose(saved, kept * old + (1 - kept) * new, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(after, unet.parameters(), strict=True))


def test_an_interrupted_sampling_goes_on_with_the_same_images(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr(sampling, "BATCH", 2)
    asked = []

    def draw(generators):
        asked.append(len(generators))
        return np.stack([torch.rand(4, 4, 1, generator=generator).numpy() for generator in generators])

    whole = sampling.draw_images(draw, 5, tmp_path / "whole")
    assert asked == [2, 2, 1] and whole.shape == (5, 1, 4, 4) and whole.dtype == np.uint8

    def dies_in_the_second_batch(generators):
        if len(asked) > 3:
            raise KeyboardInterrupt
        return draw(generators)

    with pytest.raises(KeyboardInterrupt):
        sampling.draw_images(dies_in_the_second_batch, 5, tmp_path / "parts")
    assert np.array_equal(sampling.draw_images(draw, 5, tmp_path / "parts"), whole)
    assert asked == [2, 2, 1, 2, 2, 1]


def test_an_error_in_a_hole_is_of_its_pixels_alone():
    holes = np.zeros((2, 1, 2, 2), dtype=bool)
    holes[0, 0, 0, 0] = holes[1] = True
    real = np.arange(24).reshape(2, 3, 2, 2)
    drawn = real + np.array([[3, 9], [9, 9]])
    expected = [3, np.sqrt((9 + 3 * 81) / 4)]
    np.testing.assert_allclose(inpainting.error_in(holes, drawn, real), expected)


def test_a_cascade_that_cannot_be_swept_is_refused_in_one_line(tiny_cascade, tmp_path, capsys):
    """No upsampler, no such level, no captioned digits."""
    (tmp_path / "photos").mkdir()
    images = str(write_pictures(tmp_path / "photos", 4))
    recorded = {"dataset": images, "holdout": {"split": None, "seed": 0, "threshold": 2**63}}
    settings = {"train_data_dir": images, "init_caption_from_labels": "a {}", "recorded": recorded}
    tiny_cascade(imagen=True).save_pretrained(tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / "upsampler"):
        (folder / "training_config.yaml").write_text(yaml.safe_dump(settings))
    for place, flags, words in (
        ("out/upsampler", [], "must have super-resolution in it"),
        ("out", ["--aug_level", "1000"], "--aug_level must be from 0 to 999, got 1000"),
        ("out", [], "needs captions of captioned digits"),
    ):
        with pytest.raises(SystemExit) as end:
            cascade.main([str(tmp_path / place), *flags])
        *_, error = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and "error: " in error and words in error


def test_saturated_is_what_lies_at_an_end_of_the_range():
    drawn = np.array([[[0, 255, 128], [1, 254, 255]]], dtype=np.uint8)
    assert cascade.saturation(drawn) == 0.5
