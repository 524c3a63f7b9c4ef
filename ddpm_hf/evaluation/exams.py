"""Who says whether samples follow their captions, and what a model is worth that draws none."""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from .clip_exam import ClipExam
from .image_sets import ImageSet
from .prompt_exam import PromptExam
from .retrieval import RetrievalExam

if TYPE_CHECKING:
    from .prior_exam import PriorExam


def exams_for(
    metrics: Sequence[str],
    flag: str,
    asked: Mapping[str, Sequence[Any]],
    images: ImageSet,
    *,
    cache_dir: str | os.PathLike | None,
    clip_model: str | None,
    device: torch.device,
) -> list[PromptExam | ClipExam]:
    """One for each of "prompt" and "clip" among the metrics; arguments and errors as for these.

    Of what is told pictures that have captions, or their embeddings, these are the captions of the samples.
    """
    exams = []
    if {"prompt", "clip"} & set(metrics) and "prompt" not in asked:
        pictures = asked.get("image", asked.get("image_embeds", ()))
        captions = (str(caption) for batch in images.batches(256) for caption in batch.get("captions", ()))
        if found := list(islice(captions, len(pictures))):
            asked = {**asked, "prompt": found}
    if "prompt" in metrics:
        exams.append(PromptExam(flag, asked, images, cache_dir))
    if "clip" in metrics:
        exams.append(ClipExam(flag, asked, images, clip_model, device))
    return exams


def model_exams_for(
    metrics: Sequence[str], flag: str, images: ImageSet, **draws: Any
) -> "list[RetrievalExam | PriorExam]":
    """One for each metric of a model that draws no pictures; arguments and errors as for these exams."""
    exams = [RetrievalExam(flag, images)] if "retrieval" in metrics else []
    if "prior" in metrics:
        from .prior_exam import PriorExam  # its imports take seconds

        exams.append(PriorExam(flag, images, **draws))
    return exams
