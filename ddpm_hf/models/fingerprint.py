"""A hash of a network's weights."""

import hashlib

import torch


def network_fingerprint(network: torch.nn.Module) -> str:
    """A hash of the parameters and buffers of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
