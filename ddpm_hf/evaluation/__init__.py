"""Judgement: how likely a model finds images that it has never seen, how good its own are, and whether it copies."""
