"""Whether samples are what their captions asked for, where a program can tell: captioned digits."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.captioned_digits import understand
from ..judges.prompt_judge import PromptJudge, figure_names
from .image_sets import ImageSet
from .samples import Samples, captions_in


class PromptExam:
    """Captions of captioned digits, and the judge of what is drawn for them.

    Args:
        flag: that asks for it, for messages.
        asked: what samples are drawn with, as `words_for` returns it.
        images: whose captions these are.
        cache_dir: as for `PromptJudge`.

    Raises:
        ValueError: nothing is asked for in captions, they are not those of captioned digits, or the pictures are not
            square or not in colour.
    """

    def __init__(
        self,
        flag: str,
        asked: Mapping[str, Sequence[Any]],
        images: ImageSet,
        cache_dir: str | os.PathLike | None = None,
    ):
        captions = captions_in(asked, f"{flag} prompt")
        height, width = images.size
        if images.channels != 3 or height != width:
            raise ValueError(
                f"{flag} prompt needs square pictures of 3 channels, got {height}x{width} of {images.channels}"
            )
        try:
            level, self.asked = understand(captions)
        except ValueError as problem:
            raise ValueError(
                f"{flag} prompt needs captions of captioned digits, which a program can check against the picture; "
                f"{images.name} ({images.split}) has others: {str(problem).partition(', got ')[2].removesuffix('.')}"
            ) from None
        self.images, self.judge = images, PromptJudge(level, cache_dir)
        self.names = figure_names(self.asked)

    def measure(self, samples: Samples) -> list[dict[str, Any]]:
        """The share of samples, drawn for these captions in turn, that follow them: entries of `PromptJudge.score`."""
        asked = {name: np.resize(ids, len(samples.images)) for name, ids in self.asked.items()}
        about = {"dataset": self.images.name, "split": self.images.split, "judge": self.judge.fingerprint}
        return [entry | about | samples.about for entry in self.judge.score(torch.from_numpy(samples.images), asked)]
