"""Whether samples are what their captions asked for, as a CLIP sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..judges.clip import caption_scores
from ..judges.features import Extractor, to_rgb
from ..statistics.intervals import median_interval, wilson_interval
from .extraction import features_of_images, features_of_samples, on_all_processes
from .image_sets import ImageSet
from .quality import between, interval
from .samples import Samples, captions_in

if TYPE_CHECKING:
    from ..models.clip import Clip

_AT_ONCE = 256  # captions


def clip_extractor(clip: "Clip", name: str) -> Extractor:
    """The part of a CLIP that looks, where its model is.

    Args:
        name: for reports, to which a hash is added.
    """
    sizes = dict(clip.processor.size) | dict(clip.processor.crop_size or {})
    return Extractor(
        name=f"clip:{name}@{clip.fingerprint[:8]}",
        preprocessing="the CLIP's: " + ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in sizes.items()),
        dimension=clip.dimension,
        network=lambda images: clip.look(to_rgb(images).round().byte()),
        device=clip.model.device,
    )


def features_of_captions(clip: "Clip", captions: Sequence[str]) -> np.ndarray:
    """Float32 (N, D), computed by all processes together."""
    parts = (captions[start : start + _AT_ONCE] for start in range(0, len(captions), _AT_ONCE))
    return np.concatenate(on_all_processes(lambda part: clip.read(part).cpu().numpy(), parts))


class ClipExam:
    """Captions, and the CLIP that looks for the caption of a sample among them all.

    Args:
        flag: that asks for it, for messages.
        asked: what samples are drawn with, as `words_for` returns it.
        images: whose captions these are, in this order.
        model: a CLIP by Hub name or folder, as `load_clip` takes it.
        device: for the network.

    Raises:
        ValueError: nothing is asked for in captions, or there is no such CLIP.
    """

    names = ("clip_score", "clip_recall_at_1", "clip_median_rank")

    def __init__(
        self,
        flag: str,
        asked: Mapping[str, Sequence[Any]],
        images: ImageSet,
        model: str | None,
        device: torch.device | str = "cpu",
    ):
        from ..models.clip import load_clip  # takes seconds

        captions = captions_in(asked, f"{flag} clip")
        model_flag = flag.replace("metrics", "clip_model")
        if model is None:
            raise ValueError(f"{model_flag} must be given with {flag} clip: the Hub name or folder of a CLIP")
        self.images, self.clip = images, load_clip(model, model_flag)
        self.clip.model.to(device)
        self.extractor = clip_extractor(self.clip, Path(model).resolve().name if Path(model).is_dir() else model)
        self.captions = list(dict.fromkeys(captions))
        place = {caption: number for number, caption in enumerate(self.captions)}
        self.own = np.array([place[caption] for caption in captions])

    def measure(self, samples: Samples) -> list[dict[str, Any]]:
        """How near samples, drawn for these captions in turn, are to their captions: report entries.

        `clip_score`: 100 max(cos, 0), averaged, as is usually reported (Hessel et al. 2021, arXiv 2104.08718, has 2.5
        for 100, and writes "A photo depicts" before the caption).
        `clip_recall_at_1`: the share of samples to which no other caption is nearer than their own.
        `clip_median_rank`: of the own caption among all, from 1.

        Each has a 95 % interval, a `ceiling`: the same for the real pictures of these captions, and a `chance`: what
        is expected of captions chosen at random.
        """
        about = {
            "captions": len(self.captions),
            **({"captions_cut": self._cut} if self._cut else {}),
            "extractor": self.extractor.name,
            "preprocessing": self.extractor.preprocessing,
            "dataset": self.images.name,
            "split": self.images.split,
            **samples.about,
        }
        entries = self._entries(features_of_samples(self.extractor, samples.images))
        for entry, real in zip(entries, self._ceilings, strict=True):
            entry |= {"ceiling": real["value"], "ceiling_n": real["n"], **about}
        return entries

    @cached_property
    def _words(self) -> np.ndarray:
        return features_of_captions(self.clip, self.captions)

    @cached_property
    def _cut(self) -> int:
        return self.clip.count_cut(self.captions)

    @cached_property
    def _ceilings(self) -> list[dict[str, Any]]:
        count = min(len(self.own), self.images.count or len(self.own))
        return self._entries(features_of_images(self.extractor, replace(self.images, most=count)))

    def _entries(self, pictures: np.ndarray) -> list[dict[str, Any]]:
        """Entries without ceilings, for features of pictures that are for the captions in turn."""
        found = caption_scores(pictures, self._words, np.resize(self.own, len(pictures)))
        count, captions = len(pictures), len(self.captions)
        score, first, median = found["score"].mean(), found["first"].mean(), np.median(found["rank"])
        error = float(found["score"].std(ddof=1) / count**0.5) if count > 1 else None
        figures = {
            "clip_score": (score, interval(float(score), error), found["chance"].mean()),
            "clip_recall_at_1": (first, between(*wilson_interval(first, count)), 1 / captions),
            "clip_median_rank": (median, between(*median_interval(found["rank"])), (captions + 1) / 2),
        }
        return [
            {"name": name, "value": float(value), **ends, "chance": float(chance), "n": count}
            for name, (value, ends, chance) in figures.items()
        ]
