"""What a preview shows."""

from dataclasses import replace

from running import TINY, forget_accelerator

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.conditions.class_labels import ClassLabels
from ddpm_hf.conditions.condition import Condition
from ddpm_hf.systems.plan import make_plan
from ddpm_hf.training.device import make_accelerator


class Brightness(Condition):
    name = "brightness"

    def usual(self):
        return [0.1, 0.5]


def test_every_image_of_a_preview_has_a_word_of_every_condition(tmp_path):
    forget_accelerator()
    config = parse_training_arguments([*TINY, "--preview_images", "4", "--output_dir", str(tmp_path / "out")])
    plan = make_plan(config, make_accelerator(config))
    classes = ClassLabels(count=3)  # whose rows have two images each, six in all
    for conditions in ([Brightness(), classes], [classes, Brightness()]):
        told = replace(plan, system=replace(plan.system, conditions=conditions))
        count, asked, names, columns = told.preview_layout(told.shown)
        assert (count, names, columns) == (6, ["0", "1", "2"], 2)
        assert asked == {"class_labels": [0, 0, 1, 1, 2, 2], "brightness": [0.1, 0.5] * 3}
