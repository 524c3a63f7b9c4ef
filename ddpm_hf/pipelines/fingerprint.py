"""Weights by which a measurement and the model it was made on are known to belong together."""

import hashlib

import torch


def weights_fingerprint(network: torch.nn.Module) -> str:
    """A hash of a network's parameters and buffers, so that no figure outlives the weights that it was measured on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
