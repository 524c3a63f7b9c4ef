"""A hash of weights, which ties a measurement to the model it was made on."""

import hashlib

import torch
from diffusers import DiffusionPipeline

from ..models.fingerprint import network_fingerprint


def weights_fingerprint(model: torch.nn.Module | DiffusionPipeline) -> str:
    """A hash of the parameters and buffers of a network, or of all networks of a pipeline.

    For a pipeline with one network it is the hash of that network.
    """
    if not isinstance(model, DiffusionPipeline):
        return network_fingerprint(model)
    networks = {name: part for name, part in sorted(model.components.items()) if isinstance(part, torch.nn.Module)}
    if len(networks) == 1:
        return network_fingerprint(*networks.values())
    names = "".join(name + network_fingerprint(network) for name, network in networks.items())
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def upsampler_fingerprint(pipeline: DiffusionPipeline) -> dict[str, str]:
    """`upsampler` -> the hash of its networks; empty for a pipeline without one."""
    return {"upsampler": weights_fingerprint(pipeline.upsampler)} if pipeline.stages[1:] else {}
