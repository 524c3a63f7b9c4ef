"""The network and its optimizer, made ready for training."""

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs
from diffusers import ModelMixin

from ..settings.arguments import OptimizationArguments
from ..systems.plan import Plan
from .device import has_fused_optimizer


def adam(options: OptimizationArguments, device: torch.device) -> tuple[str, Callable[..., torch.optim.Optimizer]]:
    """What AdamW is called there, and what makes one.

    Raises:
        ValueError: it takes a package that is not installed.
    """
    if options.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ValueError("`use_8bit_adam` needs an extra: pip install bitsandbytes") from None
        return "8-bit AdamW", AdamW8bit
    fused = has_fused_optimizer(device)
    return f"{'fused' if fused else 'plain'} AdamW", partial(torch.optim.AdamW, fused=fused)


def prepared(plan: Plan, accelerator: Accelerator) -> tuple[torch.nn.Module, AcceleratedOptimizer, bool]:
    """Network and AdamW, wrapped by Accelerate, and whether AdamW can skip a bad step without the host."""
    network, options = plan.system.trained or plan.system.network, plan.config.optimization
    for part in filter(lambda part: isinstance(part, ModelMixin), network.children()):
        if plan.config.model.gradient_checkpointing:
            part.enable_gradient_checkpointing()
        if plan.config.model.compile:
            part.compile_repeated_blocks()
    groups = [
        {
            "params": [weight for weight in part.parameters() if weight.requires_grad],
            "rate": plan.system.rates.get(name, 1.0),
        }
        for name, part in network.named_children()
    ]
    _, make = adam(options, accelerator.device)
    optimizer = make(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
        eps=options.adam_epsilon,
    )
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        # DeepSpeed needs the batch size, which it otherwise reads from a prepared loader.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = options.train_batch_size
    if plan.system.trained is not None:  # what joins later has no gradient before
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    model, wrapped = accelerator.prepare(network, optimizer)
    # DeepSpeed has already stepped, with its own optimizer, by the time the gradient norm is known.
    return model.train(), wrapped, optimizer.defaults.get("fused", False) and plugin is None
