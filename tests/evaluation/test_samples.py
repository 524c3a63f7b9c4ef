"""Images to judge: the same ones however they are drawn, and read back as they were written."""

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ddpm_hf.evaluation.samples import draw_samples, read_samples
from ddpm_hf.sampling.drawing import Drawing
from ddpm_hf.sampling.sample_folder import SampleFolder
from ddpm_hf.seeds import image_generators


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_drawn_images_do_not_depend_on_the_batch(tiny_pipeline, batch_size):
    pipeline = tiny_pipeline(num_train_timesteps=50)
    found = draw_samples(pipeline, 16, seed=3, batch_size=batch_size, num_inference_steps=4)
    alone = pipeline(generator=image_generators(3, [11]), num_inference_steps=4, output_type="np").images[0]
    assert np.abs(found.images[11].transpose(1, 2, 0) - np.rint(alone * 255)).max() <= 1
    assert found.images.shape == (16, 3, 8, 8) and found.images.dtype == np.uint8
    assert found.about == {"seed": 3, "sampler": "ddpm", "steps": 4, "network_calls": 4}


@pytest.mark.processes
def test_two_processes_draw_the_same_images(tiny_pipeline, tmp_path, on_two_processes):
    pipeline = tiny_pipeline(num_classes=3, num_train_timesteps=50)
    pipeline.save_pretrained(tmp_path / "model")
    alone = draw_samples(pipeline, 40, seed=5, batch_size=40, num_inference_steps=4).images
    (tmp_path / "draw.py").write_text(
        f"""
import numpy as np
from accelerate import Accelerator
from ddpm_hf.evaluation.samples import draw_samples
from ddpm_hf.pipelines.loading import load_pipeline

accelerator = Accelerator()
assert accelerator.num_processes == 2
pipeline = load_pipeline({str(tmp_path / "model")!r})
samples = draw_samples(pipeline, 40, seed=5, batch_size=7, num_inference_steps=4)
np.save({str(tmp_path)!r} + f"/images-{{accelerator.process_index}}.npy", samples.images)
"""
    )
    on_two_processes(str(tmp_path / "draw.py"))
    for process in (0, 1):
        images = np.load(tmp_path / f"images-{process}.npy")
        assert images.shape == alone.shape == (40, 3, 8, 8)
        assert np.abs(images.astype(int) - alone.astype(int)).max() <= 1


def test_samplers_and_classes(tiny_pipeline):
    pipeline = tiny_pipeline(num_classes=3, num_train_timesteps=50)
    saved_with = pipeline.scheduler
    heun = draw_samples(pipeline, 4, sampler="heun", num_inference_steps=5, guidance_scale=2.0)
    assert heun.about == {"seed": 0, "sampler": "heun", "steps": 5, "network_calls": 18, "guidance_scale": 2.0}
    # At t = 40, 30, 30, 20, 20, 10, 10, 0, 0 of 50: those of 20 and 30 are doubled.
    finer = {"guidance_interval": [0.3, 0.7], "guidance_rescale": 0.5}
    some = draw_samples(pipeline, 4, sampler="heun", num_inference_steps=5, guidance_scale=2.0, **finer)
    assert some.about == heun.about | finer | {"network_calls": 9 + 4}
    assert np.abs(some.images.astype(int) - heun.images).max() > 1
    assert pipeline.scheduler is saved_with
    # Classes in turn: image 4 is of class 1.
    images = draw_samples(pipeline, 6, num_inference_steps=3).images
    of_class = pipeline(generator=image_generators(0, [4]), class_labels=1, num_inference_steps=3, output_type="np")
    assert np.abs(images[4].transpose(1, 2, 0) - np.rint(of_class.images[0] * 255)).max() <= 1
    with pytest.raises(ValueError, match="51"):
        draw_samples(pipeline, 2, num_inference_steps=51)
    with pytest.raises(ValueError, match="`guidance_scale` must be 1 .* got 2"):
        draw_samples(tiny_pipeline(), 2, guidance_scale=2.0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_read_as_they_were_written(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, channels)).astype(np.uint8)
    folder = tmp_path / "samples"
    (folder / "overview").mkdir(parents=True)
    for k, image in enumerate(images):
        Image.fromarray(image[..., 0] if channels == 1 else image).save(folder / f"{k:05d}.png")
    Image.new("RGB", (100, 100)).save(folder / "overview" / "grid.png")
    np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=np.arange(5))
    rows = Dataset.from_dict(
        {"image": [str(path) for path in sorted(folder.glob("*.png"))]}, features=Features({"image": ImageFeature()})
    )
    rows.save_to_disk(tmp_path / "table")
    for place in ("samples", "samples.npz", "table"):
        found = read_samples(tmp_path / place)
        np.testing.assert_array_equal(found.images, images.transpose(0, 3, 1, 2))
        assert found.about == {"samples": place}
        assert len(read_samples(tmp_path / place, most=3).images) == 3


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (None, {}),
        (3, {"guidance_scale": 1.0}),
        (3, {"guidance_scale": 3.0, "guidance_interval": [0.0, 0.5], "guidance_rescale": 0.7}),
    ],
)
def test_guidance_is_known_of_samples_that_were_told_something(tiny_pipeline, tmp_path, classes, told):
    pipeline = tiny_pipeline(num_classes=classes, num_train_timesteps=10)
    asked = {condition.name: condition.usual() for condition in pipeline.conditions}
    finer = {name: told[name] for name in told if name != "guidance_scale"}
    drawing = Drawing(
        pipeline=pipeline, steps=2, asked=asked, guidance_scale=told.get("guidance_scale", 1.0), finer_guidance=finer
    )
    drawing.draw_images(*drawing.open_folder(tmp_path / "made", 2))
    about = {"samples": "made", "seed": 0, "sampler": "ddpm", "steps": 2}
    assert read_samples(tmp_path / "made").about == about | told


@pytest.mark.parametrize("output_format", ["png", "npz", "dataset"])
def test_what_the_sampling_script_leaves_is_read_with_its_record(tmp_path, output_format):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)
    folder = SampleFolder(
        path=tmp_path / "made", output_format=output_format, num_images=5, table={"label": [0, 1, 0, 1, 0]}
    )
    thresholding = {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
    scheduler = {"class": "DPMSolverMultistepScheduler", "beta_start": 1e-4, "thresholding": True, **thresholding}
    settings = {
        "noise_level": 0,
        "seed": 3,
        "num_inference_steps": 9,
        "guidance_scale": 2.0,
        "class_labels": [0, 1],
        "weights": "a",
    }
    folder.open({**settings, "scheduler": scheduler})
    folder.write([0, 1, 4], images[[0, 1, 4]])
    with pytest.raises(ValueError, match="incomplete, 3 of 5; run sample.py again"):
        read_samples(tmp_path / "made")
    folder.write([2, 3], images[[2, 3]])
    folder.finish()
    folder.close()
    found = read_samples(tmp_path / "made")
    np.testing.assert_array_equal(found.images, images.transpose(0, 3, 1, 2))
    about = {"samples": "made", "seed": 3, "sampler": "dpm", "steps": 9, "guidance_scale": 2.0, "noise_level": 0}
    assert found.about == about | thresholding
    assert len(read_samples(tmp_path / "made", most=2).images) == 2


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "must have arr_0, .*, got images"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "must have arr_0, .*, got float64 of shape"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"got uint8 of shape \(2, 3, 8, 8\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"shape \(0, 4, 4, 3\)"),
        ({"arr_0": np.array([{}], dtype=object)}, "cannot read samples"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_samples(tmp_path / "a.npz")


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="must be a folder or an .npz"):
        read_samples(tmp_path / "nowhere")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot read samples"):
        read_samples(tmp_path / "broken.npz")
    folder = tmp_path / "differing"
    folder.mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "a.png")
    Image.new("RGB", (4, 5), (1, 2, 3)).save(folder / "b.png")
    with pytest.raises(ValueError, match="same size and channels: .*a.png is 4x4 with 3 channels, .*b.png is 4x5"):
        read_samples(folder)
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read samples: .*a.png: not an image"):
        read_samples(folder)
