"""The prior of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, appendix C): diffusers' `PriorTransformer`."""

from diffusers import PriorTransformer

_HEAD = 32  # channels


def new_prior(embedding_width: int, length: int, *, width: int, layers: int, dropout: float = 0.0) -> PriorTransformer:
    """A causal transformer over a caption's tokens, its embedding, t and x_t, with random weights of torch's global
    generator; what it says in one place more is x_0.

    Mean and standard deviation of embeddings, `clip_mean` and `clip_std`, are zeros until they are measured, and
    frozen: no loss trains them.

    Args:
        embedding_width: E, of embeddings and of the states of a caption.
        length: tokens of a caption, padding included.
        width: of the transformer, a multiple of 32, the width of a head.
        layers: of the transformer.
        dropout: in its feed-forward layers.
    """
    prior = PriorTransformer(
        num_attention_heads=width // _HEAD,
        attention_head_dim=_HEAD,
        num_layers=layers,
        embedding_dim=embedding_width,
        num_embeddings=length,
        dropout=dropout,
    )
    for statistic in (prior.clip_mean, prior.clip_std):
        statistic.requires_grad_(False)
    return prior
