"""The Hub: a model's card, and the page that it is pushed to."""

from .portability import make_portable

__all__ = ["make_portable"]
