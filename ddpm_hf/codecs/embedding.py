"""x_0 is CLIP's embedding of a picture: the prior of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..kept import KeptOfPictures
from .pixels import Generators, PixelCodec


@dataclass(frozen=True, eq=False)
class EmbeddingCodec(PixelCodec):
    """Between batches and embeddings, each channel less its mean and divided by its standard deviation.

    There is no way back to pictures, so that they have no bits/dim.

    Attributes:
        shape: (E,).
        mean, std: of each channel, float32 (1, E): `clip_mean` and `clip_std` of a `PriorTransformer`.
        encoder: what looks, frozen.
        look: uint8 pictures (B, 3, H, W) -> its embeddings, float32 (B, E), where it is.
        kept: the embeddings that batches have as "embeddings".
        source: where embeddings come from, in words.
        training: gives the batches of pictures whose embeddings have this mean and standard deviation; None if both
            are known.
    """

    shape: tuple[int]
    mean: torch.Tensor
    std: torch.Tensor
    encoder: nn.Module
    look: Callable[[torch.Tensor], torch.Tensor]
    kept: KeptOfPictures | None = None
    source: str = "computed in each step"
    training: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None
    called: ClassVar[str] = "embeddings"
    span: ClassVar[None] = None
    variance: ClassVar[float] = 1.0
    decoder: ClassVar[None] = None

    def describe(self) -> str:
        """Width, encoder, and where embeddings come from."""
        weights, kind = sum(weight.numel() for weight in self.encoder.parameters()), type(self.encoder).__name__
        return f"of {self.shape[0]} channels, {kind}, frozen, {weights:,} parameters; {self.source}"

    def prepare(self, device: torch.device) -> None:
        """Compute the embeddings that are kept, and their mean and standard deviation.

        All processes find the same. Without kept ones, the encoder is brought to where batches will be.

        Raises:
            ValueError: a channel is the same for all pictures.
        """
        home = next(self.encoder.parameters()).device
        self.encoder.to(device)
        if self.kept is not None:
            self.kept.fill(self.look, "clip_model")
        if self.training is not None:
            self._measure()
        if self.kept is not None:
            self.encoder.to(home)

    def _measure(self) -> None:
        sums, count = torch.zeros(2, *self.shape, dtype=torch.float64), 0
        for batch in self.training():
            embeddings = self.embeddings(batch).double().cpu()
            sums += torch.stack([embeddings.sum(0), embeddings.square().sum(0)])
            count += len(embeddings)
        mean, square = sums / count
        std = (square - mean.square()).clamp(min=0).sqrt()
        # What is left of a constant by the rounding of its square.
        if constant := int((std <= 1e-7 * mean.abs()).sum()):
            raise ValueError(
                f"`clip_model` must tell the training pictures apart, got one whose embeddings have the same number "
                f"for all of them in {constant} of {len(std)} channels."
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def embeddings(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The embeddings themselves, float32 (B, E): the batch's own, if it has them, else of its "images"."""
        kept = batch.get("embeddings")
        return self.look(batch["images"]).to(batch["images"].device) if kept is None else kept.float()

    def encode(self, batch: Mapping[str, torch.Tensor], generator: Generators = None) -> torch.Tensor:
        """x_0, float32 (B, E), of a batch with uint8 "images"; a generator has no use here."""
        embeddings = self.embeddings(batch)
        return (embeddings - self.mean.to(embeddings.device)) / self.std.to(embeddings.device)

    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0, or any x_t -> embeddings, float32 (B, E), as stock's `post_process_latents` gives them."""
        return x_0 * self.std.to(x_0.device) + self.mean.to(x_0.device)
