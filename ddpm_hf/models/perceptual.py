"""The perceptual distance LPIPS (Zhang et al. 2018, arXiv 1801.03924), from its authors' package."""

import torch


class LPIPS:
    """(pictures, pictures) -> their distance, (B,): that of their features in VGG16, weighted as people judged.

    The pictures are (B, 1 or 3, H, W) in [-1, 1], with sides of at least 16. Gradients reach both.

    Raises:
        ValueError: the package `lpips`, `torchvision` or the weights of VGG16, which it downloads, are not at hand.
    """

    def __init__(self):
        try:
            import lpips
            from torchvision.models import VGG16_Weights
        except (ImportError, RuntimeError) as problem:  # the latter if torchvision was built for another torch
            self._refuse("pip install lpips torchvision", problem)
        url = VGG16_Weights.IMAGENET1K_V1.url
        try:
            # The package unpickles arbitrary objects; this fails unless the file holds only tensors.
            torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
            self.network = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)
        except Exception as problem:  # a download may raise anything
            self._refuse(f"{url} in {torch.hub.get_dir()}/checkpoints", problem)

    @staticmethod
    def _refuse(need: str, problem: Exception) -> None:
        reason = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
        raise ValueError(f"--perceptual lpips needs {need}, or --perceptual none to do without ({reason})") from None

    def __str__(self) -> str:
        return "LPIPS"

    def __call__(self, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        size = (-1, 3, -1, -1)
        return self.network.to(pictures.device)(pictures.expand(size), others.expand(size)).flatten()
