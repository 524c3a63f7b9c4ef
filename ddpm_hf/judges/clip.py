"""How near a picture is to a caption, as a CLIP (Radford et al. 2021, arXiv 2103.00020) sees it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..pipelines.fingerprint import weights_fingerprint

# Cosines that differ by less are equal, because features are float32.
_RESOLUTION = 1e-6
_AT_ONCE = 256


class Clip:
    """A `CLIPModel` of transformers with its tokenizer and image processor.

    Args:
        name: Hub name or folder.
        flag: that gives it, for messages.
        device: for the network.

    Attributes:
        name: for reports; of the same name, features are the same.
        preprocessing: of images, for reports.
        dimension: D, of the features of images and captions, whose cosines matter.

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
            self._processor = CLIPImageProcessorPil.from_pretrained(name)
        except (OSError, ValueError, KeyError) as problem:
            reason = str(problem).partition("\n")[0]
            raise ValueError(
                f"{flag} must be the Hub name or folder of a CLIPModel of transformers with its tokenizer and image "
                f"processor, got {name}: {reason}"
            ) from None
        self._model, self._device = model.to(device).eval(), torch.device(device)
        self._length = model.config.text_config.max_position_embeddings
        place = Path(name).resolve().name if Path(name).is_dir() else name
        self.name = f"clip:{place}@{weights_fingerprint(model)[:8]}"
        sizes = dict(self._processor.size) | dict(self._processor.crop_size or {})
        self.preprocessing = "the CLIP's: " + ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in sizes.items())
        self.dimension = model.config.projection_dim

    @torch.no_grad()
    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images, uint8 (B, 3, H, W) -> (B, D)."""
        pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).cpu().numpy()]
        pixels = self._processor(pictures, return_tensors="pt").pixel_values.to(self._device)
        return self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> np.ndarray:
        """Features of captions, float32 (B, D)."""
        options = {"padding": True, "truncation": True, "max_length": self._length, "return_tensors": "pt"}
        tokens = self._tokenizer(list(captions), **options).to(self._device)
        told = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return self._model.text_projection(self._model.text_model(**told).pooler_output).cpu().numpy()

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        return sum(len(ids) > self._length for ids in self._tokenizer(list(captions), verbose=False).input_ids)


def caption_scores(pictures: np.ndarray, captions: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """How near pictures are to their own captions, and whether others are nearer.

    Args:
        pictures: features (n, D).
        captions: features (N, D), a row for each distinct caption.
        own: which is whose, int (n,).

    Returns:
        For each picture, float64 (n,): "score", 100 max(cos, 0); "chance", its mean over all captions; "rank" of the
        own caption, from 1, of equally near captions the middle one; "first", 1 if none is nearer, which equally near
        captions share.
    """
    found = {name: [] for name in ("score", "chance", "rank", "first")}
    captions = _unit(captions)
    for start in range(0, len(pictures), _AT_ONCE):
        cosine = _unit(pictures[start : start + _AT_ONCE]) @ captions.T
        mine = np.take_along_axis(cosine, own[start : start + _AT_ONCE, None], axis=1)
        above, equal = (cosine > mine + _RESOLUTION).sum(1), (np.abs(cosine - mine) <= _RESOLUTION).sum(1)
        scores = 100 * cosine.clip(min=0)
        found["score"].append(100 * mine[:, 0].clip(min=0))
        found["chance"].append(scores.mean(1))
        found["rank"].append(above + (equal + 1) / 2)
        found["first"].append((above == 0) / equal)
    return {name: np.concatenate(values) for name, values in found.items()}


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)
