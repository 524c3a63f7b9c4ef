"""Drawing from Python, without a command line; the command line is in tests/cli/test_sample.py."""

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.sampling.drawing import Drawing
from ddpm_hf.sampling.generation import generate


def test_drawing_can_be_ended_after_any_batch_and_goes_on(tiny_pipeline, tmp_path):
    drawing = Drawing(
        pipeline=tiny_pipeline(num_classes=2), steps=2, seed=3, batch_size=2, asked={"class_labels": [1, 0]}
    )
    folder, missing = drawing.open_folder(tmp_path / "out", 5, pipeline="mine")
    assert missing == [0, 1, 2, 3, 4] and drawing.calls == 2
    assert not drawing.draw_images(folder, missing, go_on=lambda: False)
    folder.close()
    folder, missing = drawing.open_folder(tmp_path / "out", 5, pipeline="mine")
    assert missing == [2, 3, 4] and drawing.draw_images(folder, missing)
    folder.finish()
    # In one call of another size, and by the pipeline alone.
    labels = [1, 0, 1, 0, 1]
    ((_, images),) = generate(drawing.pipeline, range(5), 3, 5, {"class_labels": labels}, num_inference_steps=2)
    drawn = np.stack([np.asarray(Image.open(file)) for file in folder.files])
    assert np.abs(drawn.astype(int) - images).max() <= 1


def test_a_sampler_that_cannot_take_the_steps_is_refused_before_anything_is_drawn(tiny_pipeline):
    with pytest.raises(ValueError, match="`num_inference_steps` must be between 1 and 1000, got 1001"):
        Drawing(pipeline=tiny_pipeline(), steps=1001)
