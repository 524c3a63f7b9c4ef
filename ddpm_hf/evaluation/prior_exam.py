"""Whether a prior draws, for a caption, the embedding of a picture that the caption describes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..judges.clip import nearest_captions
from ..judges.prompt_judge import groups_of
from ..pipelines.prior import PriorPipeline
from ..sampling.samplers import sampler_name
from ..seeds import image_generators
from ..statistics.centroids import centroids, nearness, unit
from ..statistics.intervals import wilson_interval
from .extraction import on_all_processes
from .image_sets import ImageSet
from .quality import between, interval
from .samples import prepared

_AT_ONCE = 256  # pictures or captions
_FIGURES = ("prior_cosine", "prior_recall_at_1")


class PriorExam:
    """Pictures and their captions, for which a prior draws embeddings.

    Args:
        flag: that asks for it, for messages.
        images: the pictures, of which those with the same caption shall be many.
        count: of captions, the first; by default all.
        seed: of the draws: that of caption k is a function of (seed, k).
        sampler, num_inference_steps, guidance_scale: as in `draw_samples`.
        num_candidates: as in the call of `PriorPipeline`.

    Raises:
        ValueError: there are no captions.
    """

    def __init__(
        self,
        flag: str,
        images: ImageSet,
        count: int | None = None,
        *,
        seed: int = 0,
        sampler: str | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        num_candidates: int = 1,
    ):
        self.images, self.seed, self.sampler, self.steps = images, seed, sampler, num_inference_steps
        self.guidance_scale, self.candidates = guidance_scale, num_candidates
        captions = [str(word) for batch in images.batches(_AT_ONCE) for word in batch.get("captions", ())]
        if not any(captions):
            raise ValueError(f"{flag} prior needs captions, and {images.name} ({images.split}) has none")
        places = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self.kinds = np.array([places[caption] for caption in captions])
        self.captions, self.groups = captions[:count], groups_of(captions[:count])

    @property
    def names(self) -> list[str]:
        """Of the figures."""
        return [name + group for group in self.groups for name in _FIGURES]

    def measure(self, pipeline: PriorPipeline) -> list[dict[str, Any]]:
        """Draw an embedding for the caption of each picture, on all processes, and judge them: report entries.

        `prior_cosine`: to the mean embedding of the other pictures of that caption, or to the picture's own if there
        are no others. `prior_recall_at_1`: the share that no other caption's mean is nearer to.

        Each has a `ceiling`: what a picture's own embedding gets, if there are others of its caption; a `floor`: what
        the caption's own embedding gets, which a prior would get that copies it; and a `chance`: what is expected of
        embeddings of pictures chosen at random.
        """
        pipeline, steps = prepared(pipeline, self.sampler, self.steps, self.guidance_scale)
        batches, look = self.images.batches(_AT_ONCE), pipeline.codec.embeddings
        pictures = np.concatenate(on_all_processes(lambda batch: look(batch).cpu().numpy(), batches))
        drawn, texts = self._in_batches(partial(self._draw, pipeline)), self._in_batches(partial(self._read, pipeline))
        centres, targets = centroids(pictures, self.kinds)
        count = len(self.captions)
        targets, kinds = targets[:count], self.kinds[:count]
        found, floors, ceilings = (
            nearness(vectors, targets, centres, kinds) for vectors in (drawn, texts, pictures[:count])
        )
        nearest = np.bincount(nearest_captions(pictures, centres), minlength=len(centres)) / len(pictures)
        random = unit(targets) @ unit(pictures).mean(0), nearest[kinds]
        has_others = np.bincount(self.kinds)[kinds] > 1
        entries = []
        for group, members in self.groups.items():
            for number, name in enumerate(_FIGURES):
                entries.append(_entry(name + group, found[number][members]))
                marks = {"floor": floors[number][members], "chance": random[number][members]}
                if (members & has_others).any():
                    marks["ceiling"] = ceilings[number][members & has_others]
                entries[-1] |= {mark: float(values.mean()) for mark, values in marks.items()}
        sampler = sampler_name(type(pipeline.scheduler).__name__, pipeline.scheduler.config)
        about = {"captions": len(centres), "dataset": self.images.name, "split": self.images.split, "seed": self.seed}
        about |= {"sampler": sampler, "steps": steps, "guidance_scale": self.guidance_scale}
        about |= {"prior_candidates": self.candidates}
        return [entry | about for entry in entries]

    def _draw(self, pipeline: PriorPipeline, places: range) -> np.ndarray:
        words, generators = self.captions[places.start : places.stop], image_generators(self.seed, list(places))
        drawn = pipeline(
            words,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            num_candidates=self.candidates,
            generator=generators,
            output_type="np",
        )
        return drawn.image_embeds

    def _read(self, pipeline: PriorPipeline, places: range) -> np.ndarray:
        words = self.captions[places.start : places.stop]
        return pipeline.conditions[0].of_words(words, torch.device("cpu"))["proj_embedding"].numpy()

    def _in_batches(self, function: Callable[[range], np.ndarray]) -> np.ndarray:
        count = len(self.captions)
        parts = (range(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))
        return np.concatenate(on_all_processes(function, parts))


def _entry(name: str, values: np.ndarray) -> dict[str, Any]:
    count, mean = len(values), float(values.mean())
    if name.startswith("prior_recall"):
        ends = between(*wilson_interval(mean, count))
    else:
        ends = interval(mean, float(values.std(ddof=1) / count**0.5) if count > 1 else None)
    return {"name": name, "value": mean, **ends, "n": count}
