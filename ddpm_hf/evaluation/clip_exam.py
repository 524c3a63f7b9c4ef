"""Whether samples are what their captions asked for, as a CLIP (Radford et al. 2021, arXiv 2103.00020) sees it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pipelines.fingerprint import weights_fingerprint
from ..statistics.caption_ranks import caption_scores
from ..statistics.intervals import median_interval, wilson_interval
from .extraction import features_of_images, features_of_samples, on_all_processes
from .features import Extractor, first_line, to_rgb
from .image_sets import ImageSet
from .quality import between, interval
from .samples import Samples, captions_in

_AT_ONCE = 256


class ClipExam:
    """Captions, and the CLIP that looks for the caption of a sample among them all.

    Args:
        flag: that asks for it, for messages.
        asked: what samples are drawn with, as `words_for` returns it.
        images: whose captions these are, in this order.
        model: a CLIP by Hub name or folder, as `Clip` takes it.
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
        captions = captions_in(asked, f"{flag} clip")
        model_flag = flag.replace("metrics", "clip_model")
        if model is None:
            raise ValueError(f"{model_flag} must be given with {flag} clip: the Hub name or folder of a CLIP")
        self.images, self.clip = images, Clip(model, model_flag, device)
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
            "extractor": self.clip.extractor.name,
            "preprocessing": self.clip.extractor.preprocessing,
            "dataset": self.images.name,
            "split": self.images.split,
            **samples.about,
        }
        entries = self._entries(features_of_samples(self.clip.extractor, samples.images))
        for entry, real in zip(entries, self._ceilings, strict=True):
            entry |= {"ceiling": real["value"], "ceiling_n": real["n"], **about}
        return entries

    @cached_property
    def _words(self) -> np.ndarray:
        return self.clip.read(self.captions)

    @cached_property
    def _cut(self) -> int:
        return self.clip.count_cut(self.captions)

    @cached_property
    def _ceilings(self) -> list[dict[str, Any]]:
        count = min(len(self.own), self.images.count or len(self.own))
        return self._entries(features_of_images(self.clip.extractor, replace(self.images, most=count)))

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


class Clip:
    """A `CLIPModel` of transformers with its tokenizer and image processor.

    Args:
        name: Hub name or folder.
        flag: that gives it, for messages.
        device: for the network.

    Attributes:
        extractor: of features of images, whose cosines with those of `read` matter.

    Raises:
        ValueError: it cannot be loaded, or is no CLIP.
    """

    def __init__(self, name: str | os.PathLike, flag: str, device: torch.device | str):
        # By its own name, the processor needs no torchvision.
        from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "clip":
                raise ValueError(f"it is a model of type {kind!r}")
            model, found = CLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            if found["missing_keys"]:
                raise ValueError(f"it has no weights {min(found['missing_keys'])}")
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            processor = CLIPImageProcessorPil.from_pretrained(name)
        except (OSError, ValueError, KeyError) as problem:
            raise ValueError(
                f"{flag} must be the Hub name or folder of a CLIPModel of transformers with its tokenizer and image "
                f"processor, got {name}: {first_line(problem)}"
            ) from None
        self._model, self._device = model.to(device).eval(), torch.device(device)
        self._length = model.config.text_config.max_position_embeddings

        def look(images: torch.Tensor) -> torch.Tensor:
            pixels = to_rgb(images).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            seen = processor([Image.fromarray(each) for each in pixels], return_tensors="pt").to(device)
            return model.visual_projection(model.vision_model(**seen).pooler_output)

        place = Path(name).resolve().name if Path(name).is_dir() else name
        sizes = dict(processor.size) | dict(processor.crop_size or {})
        self.extractor = Extractor(
            name=f"clip:{place}@{weights_fingerprint(model)[:8]}",
            preprocessing="the CLIP's: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sizes.items()),
            dimension=model.config.projection_dim,
            network=look,
            device=self._device,
        )

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> np.ndarray:
        """Features of captions, float32 (N, D); computed by all processes together."""

        def features(some: Sequence[str]) -> np.ndarray:
            options = {"padding": True, "truncation": True, "max_length": self._length, "return_tensors": "pt"}
            tokens = self._tokenizer(list(some), **options).to(self._device)
            told = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            return self._model.text_projection(self._model.text_model(**told).pooler_output).float().cpu().numpy()

        parts = (captions[start : start + _AT_ONCE] for start in range(0, len(captions), _AT_ONCE))
        return np.concatenate(on_all_processes(features, parts))

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        return sum(len(ids) > self._length for ids in self._tokenizer(list(captions), verbose=False).input_ids)
