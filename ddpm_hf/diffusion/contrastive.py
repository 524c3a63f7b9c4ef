"""The objective of CLIP (Radford et al. 2021, arXiv 2103.00020, §2.3)."""

from collections.abc import Callable

import torch
from torch import distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from .tensors import at_least_float32


class ContrastiveLoss:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748), from picture to caption and from caption to picture.

    With u_i and v_j the embeddings of picture i and caption j as unit vectors, and a temperature 1 / s, the loss of
    pair i is the mean of

        -1/|S_i| Σ_{j in S_i} log(exp(s u_i·v_j) / Σ_k exp(s u_i·v_k))

    and of the same with u and v exchanged. S_i are the pairs of the same meaning, as in Yang et al. 2022 (arXiv
    2204.03610): of captions that describe the same, none is wrong for the other's picture. The pairs are those of all
    processes, and gradients flow to all of them: averaged over processes, the gradients are those of the whole batch.
    """

    loss = "contrastive"

    def __str__(self) -> str:
        return "InfoNCE between the pictures and captions of a step"

    def __call__(
        self,
        network: Callable[..., tuple[torch.Tensor, ...]],
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        **told: torch.Tensor,
    ) -> torch.Tensor:
        """One loss value per pair of this process, shape (batch,), float32, under autocast too.

        Args:
            network: called with (original_samples, timesteps, **told); its output is the embeddings of pictures and
                of captions, (batch, E) each, and s.
            original_samples: the pictures in [-1, 1], (batch, C, H, W).
            noise, timesteps: of no meaning here.
            told: with `meaning`, int64 (batch,), equal for pairs of the same meaning.
        """
        images, texts, scale = network(original_samples, timesteps, **told)
        images, texts = (F.normalize(each, dim=1) for each in at_least_float32(images, texts))
        same = (told["meaning"][:, None] == _of_all_processes(told["meaning"])).to(images.dtype)
        aims = same / same.sum(1, keepdim=True)
        to_texts, to_images = (
            F.cross_entropy(scale * own @ _of_all_processes(others).T, aims, reduction="none")
            for own, others in ((images, texts), (texts, images))
        )
        return (to_texts + to_images) / 2


def _of_all_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors (batch, …) of all processes in one, with gradients."""
    if not distributed.is_initialized():
        return tensor
    return torch.cat(all_gather(tensor))
