"""Whether a CLIP finds the captions of pictures, and the pictures of captions."""

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.captioned_digits import ATTRIBUTES, attributes_of, captions, understand
from ..judges.clip import caption_scores, chance_of_pictures, nearest_captions, picture_ranks
from ..judges.prompt_judge import figure_names, shares
from ..statistics.intervals import wilson_interval
from .clip_exam import clip_extractor, features_of_captions
from .extraction import on_all_processes
from .image_sets import ImageSet
from .quality import between

if TYPE_CHECKING:
    from ..models.clip import Clip
    from ..pipelines.contrastive import ContrastivePipeline

_FIRST = (1, 5, 10)


class RetrievalExam:
    """Pictures and captions of a data set, each to be found by the other, as Radford et al. 2021 do (§3.1).

    Args:
        flag: that asks for it, for messages.
        images: whose first captions are taken; one without captions is left out.

    Raises:
        ValueError: there are not two different captions.
    """

    def __init__(self, flag: str, images: ImageSet):
        found = [str(caption) for batch in images.batches(256) for caption in batch["captions"]]
        self.images, self.captions = images, [caption for caption in dict.fromkeys(found) if caption]
        if len(self.captions) < 2:
            raise ValueError(
                f"{flag} retrieval needs two different captions, and {images.name} ({images.split}) has "
                f"{len(self.captions)}"
            )
        self.has_caption = np.array([bool(caption) for caption in found])
        place = {caption: number for number, caption in enumerate(self.captions)}
        self.own = np.array([place[caption] for caption in found if caption])
        self.names = [f"retrieval_{kind}_at_{first}" for kind, _, first in self._asked()]
        try:
            self.level, self.attributes = understand([caption for caption in found if caption])
            self.names += [_of_classes(name) for name in figure_names(self.attributes)]
        except ValueError:  # they are not of captioned digits
            self.level = None

    def measure(self, pipeline: "ContrastivePipeline") -> list[dict[str, Any]]:
        """Report entries, each with a 95 % interval and what is expected by chance.

        `retrieval_caption_at_k`: the share of pictures whose caption is among the k nearest of all different ones.
        Of captions made of class names, that at 1 is the accuracy of zero-shot classification.
        `retrieval_picture_at_k`: the share of different captions one of whose pictures is among the k nearest.
        `zero_shot_…`: of captioned digits, the attributes of the nearest of the captions of all combinations, as
        `PromptJudge.score` compares them.
        """
        clip = pipeline.parts
        extractor = clip_extractor(clip, "itself")
        batches = (batch["images"] for batch in self.images.batches(64))
        pictures = np.concatenate(on_all_processes(extractor, batches))[self.has_caption]
        words = features_of_captions(clip, self.captions)
        scores = {"caption": caption_scores(pictures, words, self.own)["rank"]}
        scores["picture"] = picture_ranks(pictures, words, self.own)
        entries = []
        for kind, total, first in self._asked():
            share, count = float((scores[kind] <= first).mean()), len(scores[kind])
            chance = first / total if kind == "caption" else chance_of_pictures(self.own, first)
            entries.append({"name": f"retrieval_{kind}_at_{first}", "value": share, "chance": chance, "n": count})
            entries[-1] |= between(*wilson_interval(share, count))
        if self.level is not None:
            entries += self._zero_shot(clip, pictures)
        about = {"captions": len(self.captions), "dataset": self.images.name, "split": self.images.split}
        return [entry | about for entry in entries]

    def _asked(self) -> list[tuple[str, int, int]]:
        """What is looked for, among how many, and how many of the first are looked at."""
        totals = {"caption": len(self.captions), "picture": len(self.own)}
        return [(kind, total, first) for kind, total in totals.items() for first in _FIRST if first < total]

    def _zero_shot(self, clip: "Clip", pictures: np.ndarray) -> list[dict[str, Any]]:
        names = attributes_of(self.level)
        every = np.array(list(product(*(range(len(ATTRIBUTES[name])) for name in names))))
        every = every[every[:, names.index("colour")] != every[:, names.index("ground")]]
        words = features_of_captions(clip, [captions(self.level, ids)[0] for ids in every])
        nearest = every[nearest_captions(pictures, words)]
        entries = shares(dict(zip(names, nearest.T, strict=True)), self.attributes)
        return [entry | {"name": _of_classes(entry["name"])} for entry in entries]


def _of_classes(name: str) -> str:
    """The name of a figure of `shares` when a CLIP reads the pictures."""
    return name.replace("prompt_", "zero_shot_", 1)
