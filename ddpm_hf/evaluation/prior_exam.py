"""Whether a prior draws, for a caption, the embedding of a picture that the caption describes."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..data.captioned_digits import never_shown, understand
from ..pipelines.prior import PriorPipeline
from ..seeds import image_generators
from ..statistics.centroids import centroids, nearness, unit
from ..statistics.intervals import wilson_interval
from .extraction import on_all_processes
from .image_sets import ImageSet
from .quality import between, interval

_FIGURES = ("prior_cosine", "prior_recall_at_1")


class PriorExam:
    """Pictures and their captions, for which a prior draws embeddings.

    Args:
        images: the pictures.
        batch_size: of them, and of embeddings that are drawn together.

    Raises:
        ValueError: they have no captions.
    """

    def __init__(self, images: ImageSet, batch_size: int = 256):
        self.images, self.batch_size = images, batch_size
        self.captions = [str(word) for batch in images.batches(256) for word in batch.get("captions", ())]
        if not any(self.captions):
            raise ValueError(f"the metric prior needs captions, and {images.name} ({images.split}) has none")
        places = {caption: number for number, caption in enumerate(dict.fromkeys(self.captions))}
        self.kinds = np.array([places[caption] for caption in self.captions])

    @property
    def names(self) -> list[str]:
        """Of the figures."""
        return [name + group for group in self._groups for name in _FIGURES]

    @cached_property
    def _groups(self) -> dict[str, np.ndarray]:
        """Of captioned digits, which are of combinations that training pictures show, and which are not."""
        try:
            _, asked = understand(self.captions)
        except ValueError:  # other captions
            return {"": np.ones(len(self.captions), dtype=bool)}
        unseen = never_shown(asked["digit"], asked["colour"])
        return {name: members for name, members in (("_seen", ~unseen), ("_unseen", unseen)) if members.any()}

    def measure(
        self,
        pipeline: PriorPipeline,
        count: int | None = None,
        *,
        seed: int = 0,
        num_candidates: int = 1,
        **call: Any,
    ) -> list[dict[str, Any]]:
        """Draw an embedding for the caption of each picture, on all processes, and judge them: report entries.

        `prior_cosine`: to the mean embedding of the other pictures of that caption, or to the picture's own if there
        are no others. `prior_recall_at_1`: the share that no other caption's mean is nearer to.

        Each has a `ceiling`: what a picture's own embedding gets, if there are others of its caption; a `floor`: what
        the caption's own embedding gets, which a prior would get that copies it; and a `chance`: what is expected of
        embeddings of pictures chosen at random.

        Args:
            count: of captions, the first; by default all.
            seed: of the draws: that of caption k is a function of (seed, k).
            call: arguments of the pipeline.
        """
        count = min(count or len(self.captions), len(self.captions))
        asked = self.captions[:count]
        pictures = np.concatenate(
            on_all_processes(
                lambda batch: pipeline.codec.embeddings(batch).cpu().numpy(), self.images.batches(self.batch_size)
            )
        )

        def draw(places: range) -> np.ndarray:
            return pipeline(
                asked[places.start : places.stop],
                generator=image_generators(seed, list(places)),
                output_type="np",
                num_candidates=num_candidates,
                **call,
            ).image_embeds

        def read(places: range) -> np.ndarray:
            words = asked[places.start : places.stop]
            return pipeline.conditions[0].of_words(words, torch.device("cpu"))["proj_embedding"].numpy()

        drawn, texts = self._in_batches(draw, count), self._in_batches(read, count)
        centres, targets = centroids(pictures, self.kinds)
        targets, kinds = targets[:count], self.kinds[:count]
        found, floors, ceilings = (
            nearness(vectors, targets, centres, kinds) for vectors in (drawn, texts, pictures[:count])
        )
        random = unit(targets) @ unit(pictures).mean(0), np.full(count, 1 / len(centres))
        has_others = np.bincount(self.kinds)[kinds] > 1
        entries = []
        for group, members in self._groups.items():
            members = members[:count]
            for number, name in enumerate(_FIGURES if members.any() else ()):
                entries.append(_entry(name + group, found[number][members]))
                marks = {"floor": floors[number][members], "chance": random[number][members]}
                if (members & has_others).any():
                    marks["ceiling"] = ceilings[number][members & has_others]
                entries[-1] |= {mark: float(values.mean()) for mark, values in marks.items()}
        about = {"captions": len(centres), "dataset": self.images.name, "split": self.images.split}
        return [entry | about | {"seed": seed} for entry in entries]

    def _in_batches(self, function: Callable[[range], np.ndarray], count: int) -> np.ndarray:
        size = self.batch_size
        parts = (range(start, min(start + size, count)) for start in range(0, count, size))
        return np.concatenate(on_all_processes(function, parts))


def _entry(name: str, values: np.ndarray) -> dict[str, Any]:
    count, mean = len(values), float(values.mean())
    if name.startswith("prior_recall"):
        ends = between(*wilson_interval(mean, count))
    else:
        ends = interval(mean, float(values.std(ddof=1) / count**0.5) if count > 1 else None)
    return {"name": name, "value": mean, **ends, "n": count}
