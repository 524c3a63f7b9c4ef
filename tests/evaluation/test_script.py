"""scripts/evaluate.py as a user types it, on a small real run."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image
from running import load_script

from ddpm_hf import DDPMPipeline


@pytest.fixture
def folder(trained_run, tmp_path):
    """A copy of the run to measure."""
    return shutil.copytree(trained_run, tmp_path / "model")


@pytest.fixture(scope="module")
def evaluate():
    """Runs the script in this process."""
    return load_script("evaluate.py").main


def metrics_in(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


def nearly(metric: dict, relative: float = 1e-5) -> dict:
    floats = {name: pytest.approx(value, rel=relative) for name, value in metric.items() if isinstance(value, float)}
    return metric | floats


def test_nll_of_the_held_out_rows(folder, evaluate, capsys):
    evaluate([str(folder), "--metrics", "nll", "--per_image", "--batch_size", "32"])
    (exact,) = metrics_in(folder)
    assert {name: exact[name] for name in ("name", "n", "seed", "split", "sampler", "steps", "terms_per_image")} == {
        **{"name": "bits_per_dim", "n": 10, "seed": 0, "split": "held_out", "sampler": "ddpm", "steps": 40},
        "terms_per_image": 40,
    }
    assert (exact["clip"], exact["cdf"], exact["floor"]) == (True, "erf", None)
    assert exact["rate"] + exact["distortion"] == pytest.approx(exact["value"])
    assert exact["standard_error"] > 0 and exact["prior"] > 0
    assert exact["interval_high"] - exact["value"] == pytest.approx(1.96 * exact["standard_error"])
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == f"report: {folder / 'evaluation.json'}" and last[-2].startswith("bits_per_dim")
    with (folder / "evaluation" / "nll_per_image.csv").open() as lines:
        images = list(csv.DictReader(lines))
    assert len({row["row"] for row in images}) == 10
    assert sum(float(row["bits_per_dim"]) for row in images) / 10 == pytest.approx(exact["value"])
    assert len((folder / "evaluation" / "nll_terms.csv").read_text().splitlines()) == 41
    for picture in ("nll_terms.png", "nll_rate_distortion.png"):
        assert Image.open(folder / "evaluation" / picture).size[0] > 300

    # Pictures stay as long as their figures do.
    pictures = folder / "evaluation" / "nll_terms.png", folder / "evaluation" / "closest_pixels.png"
    shutil.copy(*pictures)
    # An estimate joins the report, and the same measurement replaces itself.
    evaluate([str(folder), "--nll_timesteps", "20", "--seed", "1"])
    evaluate([str(folder), "--batch_size", "7"])
    estimate, again = metrics_in(folder)
    assert estimate["terms_per_image"] == 20
    assert abs(estimate["value"] - exact["value"]) < 4 * estimate["standard_error"]
    assert again == nearly(exact)
    assert all(picture.is_file() for picture in pictures)
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.unet.conv_out.bias.data += 1
    pipeline.save_pretrained(folder)
    evaluate([str(folder), "--nll_timesteps", "3"])
    assert [picture.is_file() for picture in pictures] == [True, False] and len(metrics_in(folder)) == 1


def test_the_choices_of_the_bound_are_recorded(folder, evaluate):
    arguments = ["--max_images", "3", "--no_nll_clip", "--nll_cdf", "tanh", "--split", "train"]
    evaluate([str(folder), *arguments])
    (metric,) = metrics_in(folder)
    assert (metric["clip"], metric["cdf"], metric["n"], metric["split"]) == (False, "tanh", 3, "train")


def test_samples_are_judged_and_join_the_report(folder, evaluate, capsys):
    evaluate([str(folder), "--nll_timesteps", "2"])
    # The run held 10 images out, too few to be halved for precision and recall.
    common = ["--num_images", "12", "--extractor", "digits", "--resamples", "0"]
    evaluate(
        [str(folder), "--metrics", *"frechet kid prdc is memorization".split(), *common, "--scheduler", "ddim"]
        + ["--num_inference_steps", "3"]
    )
    found = {metric["name"]: metric for metric in metrics_in(folder)}
    names = "bits_per_dim frechet_distance kernel_distance precision recall density coverage class_score "
    names += "copied_share_pixels duplicate_share_pixels copied_share_features duplicate_share_features"
    assert sorted(found) == sorted(names.split())
    for name, metric in found.items():
        if name == "bits_per_dim":
            continue
        about = {key: metric[key] for key in ("n", "seed", "sampler", "steps", "network_calls", "guidance_scale")}
        assert about == {
            **{"n": 12, "seed": 0, "sampler": "ddim", "steps": 3, "network_calls": 3, "guidance_scale": 1.0}
        }
        assert metric["floor"] is not None
        assert metric["extractor"].startswith("digits-") if not name.endswith("pixels") else "extractor" not in metric
    assert found["frechet_distance"]["floor_n"] == 12 and found["frechet_distance"]["reference_n"] == 10
    output = capsys.readouterr().out
    assert "warning: 10 images are no more than the 64 features" in output and "FID" not in output
    assert Image.open(folder / "evaluation" / "samples.png").size == (3 * 66 + 2, 4 * 66 + 2)
    assert {path.name for path in (folder / "evaluation").glob("closest*")} == {
        f"closest_{space}{kind}.png" for space in ("pixels", "features") for kind in ("", "_distances")
    }


def test_samples_made_before_get_the_same_scores(folder, evaluate, tmp_path):
    common = ["--metrics", "frechet", "kid", "--extractor", "digits", "--resamples", "0"]
    evaluate([str(folder), *common, "--num_images", "8", "--num_inference_steps", "2"])
    made = tmp_path / "made"
    labels = ["--class_labels", "cat,dog", "--num_images", "8", "--num_inference_steps", "2"]
    load_script("sample.py").main([str(folder), "--output_dir", str(made), *labels])
    evaluate([str(made), *common, "--run", str(folder), "--output_dir", str(tmp_path / "report")])
    drawn, read = metrics_in(folder), metrics_in(tmp_path / "report")
    for one, other in zip(drawn, read, strict=True):
        assert (one["n"], one["name"], one["dataset"]) == (other["n"], other["name"], other["dataset"])
        assert other["value"] == pytest.approx(one["value"], rel=1e-2)  # the seed is the same; pixels within 1
        assert other["floor"] == pytest.approx(one["floor"], rel=1e-6)
        assert (other["samples"], other["seed"], other["sampler"]) == ("made", 0, "ddpm")
        assert other["steps"] == one["steps"] == 2


def test_contenders_side_by_side(folder, evaluate, capsys, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    arguments = ["--metrics", "frechet", "kid", "--extractor", "digits", "--resamples", "3", "--num_images", "8"]
    contenders = ["ddpm:4", "heun:2", f"{other}@ddim:3"]
    evaluate([str(folder), *arguments, "--compare", *contenders])
    with (folder / "evaluation" / "comparison.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["contender"] for row in rows[::2]] == contenders
    assert [row["network_calls"] for row in rows[::2]] == ["4", "3", "3"]
    assert Image.open(folder / "evaluation" / "comparison.png").size[0] > 900
    assert Image.open(folder / "evaluation" / "comparison_samples.png").size[1] == 3 * 66 + 2  # a row for each
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("contender"))) :]
    assert [line.split()[0] for line in table[1:5]] == [*contenders, "floor"]
    # Of the same weights all three; they stand side by side in the report too.
    assert [(m["sampler"], m["steps"]) for m in metrics_in(folder)[::2]] == [("ddpm", 4), ("heun", 2), ("ddim", 3)]
    assert not any("weights" in metric or "contender" in metric for metric in metrics_in(folder))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], ["/nowhere"]),
        (["FOLDER", "--metrics", "kid"], ["--extractor", "inception"]),
        (["FOLDER", "--metrics", "kid", "--num_images", "1"], ["--num_images", "1"]),
        (["FOLDER", "--metrics", "kid", "--resamples", "1"], ["--resamples", "1"]),
        (
            ["FOLDER", "--guidance_scale", "2", "--guidance_rescale", "2"],
            ["--guidance_rescale", "between 0 and 1", "2"],
        ),
        (["FOLDER", "--scheduler", "dpmm"], ["--scheduler", "dpm-sde", "dpmm"]),
        (["FOLDER", "--metrics", "kid", "--extractor", "vgg"], ["--extractor", "digits", "vgg"]),
        (["FOLDER", "--metrics", "kid", "--extractor", "digits", "--num_inference_steps", "41"], ["41", "40"]),
        (["FOLDER", "--metrics", "prdc", "--extractor", "digits"], ["12 images", "prdc", "--resamples 0", "got 10"]),
        (["FOLDER", "--metrics", "memorization", "--split", "train"], ["memorization", "train"]),
        (["FOLDER", "--compare", "ddpm:4"], ["--compare", "nll"]),
        (["FOLDER", "--metrics", "kid", "--extractor", "digits", "--compare", "/nowhere"], ["/nowhere"]),
        (["FOLDER", "--metrics", "kid", "--extractor", "digits", "--compare", "FOLDER@ddpm"], ["SAMPLER:STEPS"]),
        (["FOLDER", "--metrics", "kid", "--extractor", "digits", "--compare", "ddim:4", "ddim:41"], ["41", "40"]),
        (["SAMPLES", "--run", "FOLDER"], ["nll", "pipeline"]),
        (["SAMPLES", "--run", "SAMPLES"], ["--run", "model_index.json"]),
        (
            ["SAMPLES", "--metrics", "kid", "--guidance_scale", "3", "--scheduler", "ddim"],
            ["holds samples, which are drawn already; leave out", "--guidance_scale", "--scheduler"],
        ),
        (["SAMPLES", "--run", "FOLDER", "--metrics", "kid", "--extractor", "digits"], ["(1, 8, 8)", "(3, 8, 8)"]),
        (["SAMPLES", "--metrics", "kid", "--extractor", "digits"], ["--dataset_name", "--run"]),
        (["FOLDER", "--nll_timesteps", "41"], ["--nll_timesteps", "41", "1 and 40"]),
        (["FOLDER", "--nll_timesteps", "0"], ["--nll_timesteps", "0"]),
        (["FOLDER", "--max_images", "-1"], ["--max_images", "-1"]),
        (["FOLDER", "--metrics", "fid3"], ["--metrics", "fid3", "nll"]),
        (["FOLDER", "--train_data_dir", "/nowhere"], ["/nowhere"]),
        (["FOLDER", "--train_data_dir", "UNLABELLED"], ["label"]),
        (["STRANGE_CLASSES"], ["'cat'", "wolf"]),
        (["WITHOUT_RUN"], ["--dataset_name"]),
        (["OLD_REPORT"], ["got 0", "--output_dir"]),
        (["NO_VARIANCE"], ["variance_type", "6 output channels", "got 3"]),
    ],
)
def test_bad_input_is_one_line_and_status_two(folder, tmp_path, evaluate, capsys, arguments, words):
    (tmp_path / "unlabelled").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "unlabelled" / "a.png")
    (tmp_path / "samples").mkdir()
    for k in range(3):
        Image.new("L", (8, 8), k).save(tmp_path / "samples" / f"{k}.png")
    places = {"FOLDER": folder, "UNLABELLED": tmp_path / "unlabelled", "SAMPLES": tmp_path / "samples"}
    for name in ("STRANGE_CLASSES", "WITHOUT_RUN", "OLD_REPORT", "NO_VARIANCE"):
        if name in arguments:
            places[name] = shutil.copytree(folder, tmp_path / name)
    if "STRANGE_CLASSES" in places:
        file = places["STRANGE_CLASSES"] / "model_index.json"
        file.write_text(file.read_text().replace('"cat"', '"wolf"'))
    if "WITHOUT_RUN" in places:
        (places["WITHOUT_RUN"] / "training_config.yaml").unlink()
    if "OLD_REPORT" in places:
        (places["OLD_REPORT"] / "evaluation.json").write_text('{"schema": 0}')
    if "NO_VARIANCE" in places:
        file = places["NO_VARIANCE"] / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": "learned_range"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        given = [str(places.get(argument, argument)).replace("FOLDER", str(folder)) for argument in arguments]
        evaluate(given)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("evaluate.py: error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.processes
def test_two_processes_measure_what_one_does(folder, evaluate, tmp_path, on_two_processes):
    flags = "--per_image --metrics nll frechet kid is memorization --extractor digits --resamples 3".split()
    flags += "--num_images 9 --num_inference_steps 3".split()
    evaluate([str(folder), *flags, "--batch_size", "64"])
    one = metrics_in(folder)
    # Features from scratch, but not the classifier: another machine's would have another name.
    cache, own = Path(datasets.config.HF_DATASETS_CACHE), tmp_path / "cache"
    shutil.copytree(cache / "ddpm_hf", own / "ddpm_hf", ignore=shutil.ignore_patterns("features-*"))
    places = ["--output_dir", tmp_path / "two", "--cache_dir", own]
    output = on_two_processes("evaluate.py", folder, *flags, "--batch_size", "4", *places)
    assert output.count("report:") == 1
    # Samples may differ by 1 of 255, which small sets feel.
    for first, second in zip(one, metrics_in(tmp_path / "two"), strict=True):
        assert second == nearly(first, 1e-5 if first["name"] == "bits_per_dim" else 2e-2)
    first, second = (
        (place / "evaluation" / "nll_per_image.csv").read_text().split() for place in (folder, tmp_path / "two")
    )
    for a, b in zip(first[1:], second[1:], strict=True):
        assert a.split(",")[0] == b.split(",")[0]
        assert float(a.split(",")[1]) == pytest.approx(float(b.split(",")[1]), rel=1e-5)
