"""Small text encoders and their tokenizers, learned from the captions of a run."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace, Sequence, WhitespaceSplit
from tokenizers.trainers import UnigramTrainer
from transformers import T5Config, T5EncoderModel, T5Tokenizer

# The tokens of a caption in stock diffusers' IFPipeline, padding included.
CAPTION_LENGTH = 77


def train_tokenizer(captions: Iterable[str], vocabulary: int = 4096) -> T5Tokenizer:
    """A tokenizer for these captions, lower-cased, that stock pipelines load.

    Args:
        captions: in any script. Every character that they hold becomes a token, if there is room.
        vocabulary: at most so many tokens.
    """
    scratch = Tokenizer(Unigram())
    words = Metaspace(replacement="▁", prepend_scheme="always", split=True)  # as T5's own
    scratch.pre_tokenizer = Sequence([WhitespaceSplit(), words])
    special = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>"}
    trainer = UnigramTrainer(vocab_size=vocabulary, show_progress=False, **special)
    scratch.train_from_iterator((caption.lower() for caption in captions), trainer)
    pieces = [tuple(piece) for piece in json.loads(scratch.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=CAPTION_LENGTH)


def small_text_encoder(tokens: int, width: int, layers: int) -> T5EncoderModel:
    """A transformer of T5's kind (arXiv 1910.10683) with heads of 32 channels and random weights.

    Args:
        tokens: of the tokenizer.
        width: channels of its states, a multiple of 32.
    """
    return T5EncoderModel(
        T5Config(
            vocab_size=tokens,
            d_model=width,
            d_kv=32,
            num_heads=width // 32,
            d_ff=4 * width,
            num_layers=layers,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
