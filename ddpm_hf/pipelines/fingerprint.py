"""A hash of weights, which ties a measurement to the model it was made on."""

import hashlib

import torch
from diffusers import DiffusionPipeline


def weights_fingerprint(model: torch.nn.Module | DiffusionPipeline) -> str:
    """A hash of the parameters and buffers of a network, or of all networks of a pipeline.

    For a pipeline with one network it is the hash of that network.
    """
    digest = hashlib.sha256()
    if isinstance(model, DiffusionPipeline):
        networks = {name: part for name, part in sorted(model.components.items()) if isinstance(part, torch.nn.Module)}
        if len(networks) == 1:
            return weights_fingerprint(*networks.values())
        digest.update("".join(name + weights_fingerprint(network) for name, network in networks.items()).encode())
        return digest.hexdigest()[:32]
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def upsampler_fingerprint(pipeline: DiffusionPipeline) -> dict[str, str]:
    """`upsampler` -> the hash of its networks; empty for a pipeline without one."""
    return {"upsampler": weights_fingerprint(pipeline.upsampler)} if pipeline.stages[1:] else {}
