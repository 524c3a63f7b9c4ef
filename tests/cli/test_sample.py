"""sample.py: the same images from every layout, after every interruption and in every format, and its pictures."""

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image
from running import Command, load_script

COUNT = 48
COMMON = ("--num_images", str(COUNT), "--num_inference_steps", "4", "--guidance_scale", "2")

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def sample():
    """Runs the script in this process."""
    main = load_script("sample.py").main
    return lambda *arguments: main([str(argument) for argument in arguments])


def images_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]).astype(int)


@pytest.fixture(scope="module")
def model(tiny_pipeline, tmp_path_factory):
    """A folder with a class-conditional pipeline of three classes, 8x8 RGB."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(num_classes=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(sample, model, tmp_path_factory):
    """The folder that one process fills in batches of 32."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    sample(model, *COMMON, "--batch_size", 32, "--output_dir", folder)
    return folder


@pytest.fixture
def reference(drawn):
    return images_in(drawn)


def test_the_images_do_not_depend_on_the_batch(sample, model, drawn, reference, tmp_path, capsys):
    names = sorted(path.name for path in drawn.iterdir() if not path.name.startswith("."))
    assert names == [*(f"{k:05d}.png" for k in range(COUNT)), "metadata.csv", "overview", "samples.json"]
    assert reference.shape == (COUNT, 8, 8, 3)
    far = np.abs(reference[:, None] - reference[None]).mean((2, 3, 4)) + 255 * np.eye(COUNT)
    assert far.min() > 3, "all images differ from each other"
    for size in (1, 7):
        sample(model, *COMMON, "--batch_size", size, "--output_dir", tmp_path / f"by {size}")
        assert np.abs(images_in(tmp_path / f"by {size}") - reference).max() <= 1
    lines = capsys.readouterr().out.splitlines()
    assert f"to draw: {COUNT} of {COUNT} images, 4 network calls each, 1 process(es) on cpu, 1 thread(s) each" in lines
    assert lines[-1] == f"picture: {tmp_path / 'by 7' / 'overview' / 'grid.png'}"
    few = ("--num_images", 2, *COMMON[2:], "--seed", 1)
    sample(model, *few, "--output_dir", tmp_path / "seed 1")
    assert np.abs(images_in(tmp_path / "seed 1")[:, None] - reference).mean((2, 3, 4)).min() > 3


def test_two_processes_draw_the_same_images_into_an_npz(command, model, reference, tmp_path):
    flags = ("--output_format", "npz", "--batch_size", 7, "--output_dir", tmp_path / "b")
    both = command("sample.py", model, *COMMON, *flags, processes=2)
    assert both.wait() == 0, both.err
    assert f"to draw: {COUNT} of {COUNT} images, 4 network calls each, 2 process(es) on cpu" in both.out
    assert "\r" not in both.err
    assert both.err.count(f"sampling: {COUNT} of {COUNT}, ") == 1 and "images/s" in both.err, (
        "of the main process alone"
    )
    with np.load(tmp_path / "b" / "samples.npz", allow_pickle=False) as arrays:
        assert np.abs(arrays["arr_0"].astype(int) - reference).max() <= 1
        assert arrays["arr_1"].tolist() == [k % 3 for k in range(COUNT)]


def wait_for_images(folder: Path, count: int, process: Command) -> None:
    while len(list(folder.glob("[0-9]*.png"))) < count:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)


def test_killed_in_the_middle_it_goes_on_to_the_same_images(command, sample, model, reference, tmp_path):
    """SIGKILL to two processes; one process with another batch size does the rest."""
    out = tmp_path / "out"
    arguments = (model, *COMMON, "--output_dir", out)
    both = command("sample.py", *arguments, "--batch_size", 1, processes=2)
    wait_for_images(out, 4, both)
    both.kill()
    with FileLock(out / ".lock", timeout=60):
        kept = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}
    assert 4 <= len(kept) < COUNT and not (out / "metadata.csv").exists()
    sample(*arguments, "--batch_size", 64)
    assert np.abs(images_in(out) - reference).max() <= 1
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "none is drawn twice"


def test_workers_end_when_their_launcher_is_killed(command, model, tmp_path):
    """Left alone they would draw on for hours, and nobody else could have the folder."""
    out = tmp_path / "out"
    flags = ("--num_images", 100_000, "--num_inference_steps", 4, "--batch_size", 1, "--output_dir", out)
    launcher = command("sample.py", model, *flags, processes=2)
    wait_for_images(out, 4, launcher)
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    launcher.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_all_formats_and_the_pictures(sample, model, tmp_path):
    import datasets

    common = (model, "--num_images", 9, "--num_inference_steps", 5, "--class_labels", "class 2,0")
    sample(*common, "--output_dir", tmp_path / "png", "--denoising_strip", "--progressive")
    images, labels = images_in(tmp_path / "png"), [2, 0, 2, 0, 2, 0, 2, 0, 2]
    folder = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "png"), split="train")
    assert list(folder["label"]) == labels and list(folder["class_name"][:2]) == ["class 2", "class 0"]
    sample(*common, "--output_dir", tmp_path / "npz", "--output_format", "npz")
    with np.load(tmp_path / "npz" / "samples.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["arr_0"], images) and arrays["arr_1"].tolist() == labels
    sample(*common, "--output_dir", tmp_path / "set", "--output_format", "dataset")
    data = datasets.load_dataset(str(tmp_path / "set"), split="train")
    assert np.array_equal(np.stack([np.asarray(image) for image in data["image"]]), images)
    assert list(data["label"]) == labels and data.features["label"].names == ["class 0", "class 1", "class 2"]

    for name in ("denoising", "progressive"):
        strip = np.asarray(Image.open(tmp_path / "png" / "overview" / f"{name}.png"))
        last = strip[:, -66:]  # cells of 8x8 pixels enlarged to 64, with 2 between them
        for row in range(8):
            assert np.array_equal(last[2 + 66 * row : 66 * (row + 1) : 8, 0:64:8], images[row]), "it ends in the image"
        with Image.open(tmp_path / "png" / "overview" / f"{name}.webp") as moving:
            assert 2 <= moving.n_frames <= 5 and moving.info["loop"] == 0, "equal frames are one"
    assert strip.shape[1] == 2 + 66 * 5


def test_run_again_it_draws_nothing_and_may_add_pictures(sample, model, tmp_path, capsys):
    arguments = (model, "--num_images", 4, "--num_inference_steps", 2, "--output_format", "npz")
    sample(*arguments, "--output_dir", tmp_path / "out")
    before = (tmp_path / "out" / "samples.npz").stat().st_mtime_ns
    capsys.readouterr()
    sample(*arguments, "--output_dir", tmp_path / "out", "--progressive")
    assert "to draw: 0 of 4 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.npz").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "overview" / "progressive.webp").is_file()


def test_fast_is_twenty_steps_of_a_stochastic_solver(sample, model, tmp_path, capsys):
    from diffusers import DPMSolverMultistepScheduler

    from ddpm_hf import DDPMPipeline
    from ddpm_hf.evaluation.samples import read_samples
    from ddpm_hf.sampling.generation import generate

    for taken in (["--scheduler", "ddim"], ["--num_inference_steps", 9]):
        with pytest.raises(SystemExit):
            sample(model, "--fast", *taken, "--output_dir", tmp_path / "none")
        assert "--fast brings its own" in capsys.readouterr().err

    sample(model, "--fast", "--num_images", 5, "--output_dir", tmp_path / "fast", "--denoising_strip")
    assert "5 of 5 images, 20 network calls each" in capsys.readouterr().out
    pipeline = DDPMPipeline.from_pretrained(model)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="sde-dpmsolver++", timestep_spacing="trailing"
    )
    labels = [0, 1, 2, 0, 1]
    ((_, images),) = generate(pipeline, range(5), 0, 5, {"class_labels": labels}, num_inference_steps=20)
    assert np.abs(images.astype(int) - images_in(tmp_path / "fast")).max() <= 1
    assert (tmp_path / "fast" / "overview" / "denoising.webp").is_file()
    about = read_samples(tmp_path / "fast").about
    assert about["steps"] == 20 and about["sampler"] == "dpm-sde", "evaluate.py knows how they were drawn"


def test_no_class_needs_no_label(sample, tiny_pipeline, tmp_path):
    """Without guidance towards a class, and of an unconditional grey model."""
    tiny_pipeline(num_classes=3).save_pretrained(tmp_path / "classes")
    tiny_pipeline(channels=1).save_pretrained(tmp_path / "grey")
    steps = ("--num_images", 3, "--num_inference_steps", 2, "--output_format", "npz")
    sample(tmp_path / "classes", *steps, "--guidance_scale", 0, "--output_dir", tmp_path / "a")
    sample(tmp_path / "grey", *steps, "--scheduler", "heun", "--output_dir", tmp_path / "b")
    for folder, channels in (("a", 3), ("b", 1)):
        with np.load(tmp_path / folder / "samples.npz", allow_pickle=False) as arrays:
            assert arrays.files == ["arr_0"] and arrays["arr_0"].shape == (3, 8, 8, channels)


def test_interpolation_has_the_images_at_its_sides(sample, model, tmp_path, capsys):
    sample(model, "--num_images", 2, "--num_inference_steps", 2, "--output_dir", tmp_path / "two")
    pair = [tmp_path / "two" / f"0000{k}.png" for k in range(2)]
    arguments = (model, "--interpolate", *pair, "--class_labels", "class 1", "--num_inference_steps", 6)
    sample(*arguments, "--interpolation_depths", 0, 600, "--output_dir", tmp_path / "between")
    picture = tmp_path / "between" / "overview" / "interpolation.png"
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {picture}"
    grid = np.asarray(Image.open(picture))
    assert grid.shape[0] == 2 + 2 * 66
    cells = grid[:, grid.shape[1] - 13 * 66 :].reshape(len(grid), 13, 66, 3)[:, :, 0:64:8]
    rows = cells[2:66:8], cells[68:132:8]
    first, second = (np.asarray(Image.open(file)).astype(int) for file in pair)
    for row in rows:
        assert np.array_equal(row[:, 0], first) and np.array_equal(row[:, -1], second)
    for k in range(11):
        blend = (1 - k / 10) * first + k / 10 * second
        assert np.abs(rows[0][:, 1 + k] - blend).max() <= 1
    assert np.abs(rows[1][:, 1] - first).mean() > 1, "the reconstruction is no copy"
    with pytest.raises(SystemExit):
        sample(*arguments, "--output_dir", tmp_path / "between")
    assert "already has interpolation.png" in capsys.readouterr().err


def test_only_the_white_part_of_a_mask_is_drawn(sample, model, tmp_path, capsys):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 2:6] = 255
    for name, array in (("photo", pixels), ("mask", mask), ("other", 255 - mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    flags = (model, "--num_images", 3, "--num_inference_steps", 4, "--output_dir", tmp_path / "out")
    given = ("--image", tmp_path / "photo.png", "--mask")
    sample(*flags, *given, tmp_path / "mask.png")
    images = images_in(tmp_path / "out")
    np.testing.assert_array_equal(images[:, mask == 0], np.broadcast_to(pixels[mask == 0], (3, 48, 3)))
    assert (np.abs(images[:, None] - images[None]).max((2, 3, 4)) > 10).sum() == 6, "each has a middle of its own"
    for others, words in (((*given, tmp_path / "other.png"), "mask_image was "), ((), "image was ")):
        with pytest.raises(SystemExit):
            sample(*flags, *others)
        assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def text_model(tiny_text_pipeline, tmp_path_factory):
    """A folder with a pipeline that is told captions, 8x8 RGB."""
    folder = tmp_path_factory.mktemp("text model")
    tiny_text_pipeline().save_pretrained(folder)
    return folder


def test_prompts_from_a_file_reach_images_table_record_and_pictures(sample, text_model, tmp_path):
    from ddpm_hf.pipelines.loading import load_pipeline
    from ddpm_hf.sampling.generation import generate
    from ddpm_hf.sampling.samplers import make_fast_sampler

    prompts = ["a red apple", "🍎 красное яблоко", "käse, grün"]
    # As Windows writes it: a mark at the start, two characters at the end of a line, and an empty last line.
    (tmp_path / "prompts.txt").write_bytes("\r\n".join([prompts[0], "", *prompts[1:], ""]).encode("utf-8-sig"))
    pictures = ("--denoising_strip", "--progressive")
    out = tmp_path / "out"
    sample(text_model, "--prompts", tmp_path / "prompts.txt", "--fast", *pictures, "--output_dir", out)
    pipeline = load_pipeline(str(text_model))
    pipeline.scheduler, steps = make_fast_sampler(pipeline.scheduler)
    call = {"num_inference_steps": steps, "guidance_scale": 3.0}
    ((_, expected),) = generate(pipeline, range(3), 0, 3, {"prompt": prompts}, **call)
    assert np.abs(images_in(out) - expected).max() <= 1, "as many as there are prompts, guided"
    with open(out / "metadata.csv", encoding="utf-8", newline="") as table:
        assert [row["prompt"] for row in csv.DictReader(table)] == prompts
    settings = json.loads((out / "samples.json").read_text(encoding="utf-8"))["settings"]
    assert settings["prompt"] == prompts and settings["guidance_scale"] == 3
    assert {file.name for file in (out / "overview").iterdir()} == {"grid.png"} | {
        f"{name}.{kind}" for name in ("denoising", "progressive") for kind in ("png", "webp")
    }
    grid = np.asarray(Image.open(out / "overview" / "grid.png"))
    first = grid[2 : 2 + 160, 2 : 2 + 160]
    assert np.array_equal(first[::20, ::20], images_in(out)[0]), "enlarged twentyfold"
    assert (grid[2 + 160 :, 2 : 2 + 160] < 128).any(), "words under the picture"


def test_one_prompt_for_all_images_and_what_guidance_leads_away_from(sample, text_model, tmp_path, capsys):
    import datasets

    common = (text_model, "--prompt", "a red apple", "--num_images", 2, "--num_inference_steps", 2)
    sample(*common, "--output_dir", tmp_path / "a", "--output_format", "dataset")
    data = datasets.load_dataset(str(tmp_path / "a"), split="train")
    assert list(data["prompt"]) == ["a red apple"] * 2
    away = (*common, "--negative_prompt", "käse", "--output_dir", tmp_path / "b")
    sample(*away, "--scheduler", "dpm")
    assert np.abs(images_in(tmp_path / "b") - np.stack([np.asarray(image) for image in data["image"]])).max() > 1
    with pytest.raises(SystemExit):
        sample(*away[:-4], "--scheduler", "dpm", "--output_dir", tmp_path / "b")
    assert "negative_prompt was ['käse'], is None" in capsys.readouterr().err
    finer = ("--guidance_interval", 0.5, 1, "--guidance_rescale", 0.7)
    sample(*common, *finer, "--output_dir", tmp_path / "d", "--progressive")
    settings = json.loads((tmp_path / "d" / "samples.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["guidance_interval"], settings["guidance_rescale"]) == ([0.5, 1.0], 0.7)
    assert np.abs(images_in(tmp_path / "d") - np.stack([np.asarray(image) for image in data["image"]])).max() > 1
    with pytest.raises(SystemExit):
        sample(*common, "--output_dir", tmp_path / "d")
    assert "guidance_interval was [0.5, 1.0], is None; guidance_rescale was 0.7" in capsys.readouterr().err
    sample(text_model, "--guidance_scale", 0, *common[3:], "--output_dir", tmp_path / "c")
    assert images_in(tmp_path / "c").shape == (2, 8, 8, 3), "without a prompt"


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("classes", ["--prompt", "a dog"], ["--prompt must be left out for a model that is not told captions"]),
        ("classes", ["--prompts", "GOOD"], ["--prompts must be left out"]),
        (
            "classes",
            ["--negative_prompt", "a dog"],
            ["--negative_prompt must be left out for a model that is not told captions"],
        ),
        (
            "text",
            ["--prompt", "a", "--class_labels", "3"],
            ["--class_labels must be left out", "told prompt"],
        ),
        ("text", ["--prompt", "a", "--prompts", "GOOD"], ["--prompt and --prompts", "leave one out"]),
        ("text", ["--prompts", "EMPTY"], ["--prompts", "empty.txt must have a prompt on each line, but is empty"]),
        ("text", ["--prompts", "LATIN"], ["--prompts", "latin.txt cannot be read as UTF-8"]),
        ("text", ["--prompts", "/nowhere.txt"], ["--prompts /nowhere.txt cannot be read"]),
        ("text", [], ["--prompt must be given for this model: a caption"]),
        ("text", ["--prompt", "a", "--negative_prompt", "b", "--guidance_scale", "1"], ["--negative_prompt must be"]),
    ],
)
def test_prompts_that_do_not_suit_are_one_line(sample, model, text_model, tmp_path, capsys, kind, arguments, words):
    files = {"GOOD": b"a\nb", "EMPTY": b" \n\n", "LATIN": "grün".encode("latin-1")}
    for name, content in files.items():
        (tmp_path / f"{name.lower()}.txt").write_bytes(content)
    given = [tmp_path / f"{name.lower()}.txt" if name in files else name for name in arguments]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        sample({"text": text_model, "classes": model}[kind], *given, "--output_dir", tmp_path / "out")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("sample.py: error: ")
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def places(sample, model, tmp_path_factory):
    """What bad input names: files, the model's own folder, and one with images that are drawn."""
    folder = tmp_path_factory.mktemp("places")
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name, pixels in (("small", colours[:4, :4]), ("grey", colours[..., 0]), ("fits", colours)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    done = (model, "--num_images", 2, "--num_inference_steps", 1, "--class_labels", "1", "--seed", 5)
    sample(*done, "--output_dir", folder / "done")
    files = {name: folder / f"{name.lower()}.png" for name in ("SMALL", "GREY", "FITS", "TEXT")}
    return {**files, "MODEL": model, "DONE": folder / "done", "EMPTY": folder / "empty", "NEW": folder / "new"}


def written_in(places: dict[str, Path]) -> dict[Path, int]:
    """Every file that is there -> when it was written."""
    there = [place for place in places.values() if place.exists()]
    return {file: file.stat().st_mtime_ns for place in there for file in (place, *place.rglob("*"))}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_images", "0"], ["--num_images must be at least 1, got 0"]),
        (["--class_labels", "3"], ["--class_labels must be from 0 to 2", "got 3"]),
        (["--class_labels", "2,,1"], ["class_labels", "0 to 2"]),
        (["--batch_size", "-1"], ["--batch_size must be at least 1, got -1"]),
        (["--output_format", "tiff"], ["tiff", "npz"]),
        (["--guidance_scale", "2", "--class_labels", "wolf"], ["wolf", "class 2"]),
        (["--guidance_scale", "2", "--guidance_interval", "0.5"], ["--guidance_interval must be LOW and HIGH", "0.5"]),
        (["--guidance_rescale", "0.5"], ["--guidance_rescale must be left out with --guidance_scale 1, which does"]),
        (["--scheduler", "dpmm"], ["dpmm", "unipc"]),
        (["--num_inference_steps", "1001"], ["--num_inference_steps must be between 1 and 1000, got 1001"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--device", "quantum"], ["--device quantum"]),
        (["--output_dir", "SMALL"], ["small.png must be a folder"]),
        (["--output_dir", "MODEL"], ["must be new, empty or a folder of sample.py", "model_index.json"]),
        (["--output_dir", "DONE"], ["seed was 5, is 0", "class_labels was [1], is [0, 1, 2]"]),
        (["--output_dir", "DONE", "--class_labels", "1", "--seed", "5", "--num_images", "1"], ["num_images was 2"]),
        (["--image", "FITS"], ["--image needs --mask_image"]),
        (["--image", "FITS", "--mask", "SMALL"], ["--mask_image must be", "8x8", "got 4x4"]),
        (["--image", "TEXT", "--mask", "FITS"], ["cannot read", "text.png: not an image"]),
        (["--image", "FITS", "--mask", "FITS", "--scheduler", "euler"], ["--scheduler must be one that keeps"]),
        (["--interpolation_depths", "5"], ["--interpolation_depths needs --interpolate"]),
        (["--interpolate", "SMALL"], ["must be two image files, got 1"]),
        (["--interpolate", "SMALL", "SMALL", "--num_images", "3", "--progressive"], ["--num_images, --progressive"]),
        (["--interpolate", "SMALL", "SMALL", "--aug_level", "0"], ["only one picture; leave out --aug_level"]),
        (["--interpolate", "SMALL", "SMALL"], ["one class", "--class_labels"]),
        (["--class_labels", "1", "--interpolate", "SMALL", "SMALL"], ["(3, 4, 4)", "(3, 8, 8)"]),
        (
            ["--class_labels", "1", "--interpolate", "GREY", "GREY"],
            ["must have the model's 3 channels, got 1"],
        ),
        (["--class_labels", "1", "--interpolate", "TEXT", "GREY"], ["cannot read", "text.png: not an image"]),
        (
            ["--class_labels", "1", "--interpolate", "/nowhere.png", "GREY"],
            ["--interpolate: cannot read /nowhere.png"],
        ),
        (["--class_labels", "1", "--interpolate", "FITS", "FITS", "--interpolation_depths", "1001"], ["1001", "1000"]),
        (
            ["--class_labels", "1", "--interpolate", "FITS", "FITS", "--scheduler", "pndm"],
            ["ddpm, ddim or dpm", "got 'pndm'"],
        ),
    ],
)
def test_bad_input_is_one_line_and_status_two(sample, model, places, capsys, arguments, words):
    if "DONE" in arguments:
        arguments = [*arguments, "--num_inference_steps", "1"]
    capsys.readouterr()
    before = written_in(places)
    with pytest.raises(SystemExit) as stop:
        sample(model, "--output_dir", places["NEW"], *(places.get(argument, argument) for argument in arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("sample.py: error: ")
    assert all(word in error for word in words), error
    assert written_in(places) == before


def test_five_channels_are_no_picture(sample, tiny_pipeline, tmp_path, capsys):
    tiny_pipeline(channels=5).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        sample(tmp_path / "model", "--num_inference_steps", 1, "--output_dir", tmp_path / "out")
    assert "must have at most 4 channels, got 5" in capsys.readouterr().err and not (tmp_path / "out").exists()
