"""Small text encoders and their tokenizers, learned from the captions of a run."""

import math
import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

# The tokens of a caption in stock diffusers' IFPipeline, padding included.
CAPTION_LENGTH = 77
_SPECIAL = ("<pad>", "</s>", "<unk>")
# Where T5 keeps its bias for the token before and the one after, of 32 buckets of offsets.
_BEFORE, _AFTER = 1, 17


def train_tokenizer(captions: Iterable[str], vocabulary: int = 8192) -> T5Tokenizer:
    """A tokenizer for these captions, lower-cased, that stock pipelines load; always the same for the same captions.

    The commonest words are tokens of their own, because a small encoder learns whole words far sooner. Other words are
    spelled with the commonest groups of two to four characters, and with single ones. (The trainers of `tokenizers`
    sum in the order in which their threads end: two processes would not agree, nor a run with its resumption.)

    Args:
        captions: in any script. Every character that they hold becomes a token.
        vocabulary: at most so many tokens, if there are not more characters.
    """
    # "a seven," has the words "▁a", "▁seven" and ",".
    words = Counter(
        part for caption in captions for part in re.findall(r"▁\w+|\w+|[^\w▁]", _with_marks(caption.lower()))
    )
    characters = sorted({character for word in words for character in word} | {"▁"})
    common = [word for word, _ in words.most_common(max(0, vocabulary - len(characters)) * 3 // 4)]
    groups = Counter()
    for word in words.keys() - set(common):
        groups.update(word[k : k + n] for n in (2, 3, 4) for k in range(len(word) - n + 1))
    room = max(0, vocabulary - len(characters) - len(common) - len(_SPECIAL))
    by_count = sorted(groups, key=lambda group: (-groups[group], group))
    spelling = [*characters, *by_count[:room]]
    # The likeliest reading wins: a word before any spelling, and of spellings the one of fewest pieces.
    pieces = dict.fromkeys(_SPECIAL, 0.0) | dict.fromkeys(spelling, -50.0)
    pieces |= {word: math.log(words[word] / words.total()) for word in common}
    return T5Tokenizer(vocab=list(pieces.items()), extra_ids=0, model_max_length=CAPTION_LENGTH)


def _with_marks(caption: str) -> str:
    return "".join("▁" + word for word in caption.split())


def small_text_encoder(tokens: int, width: int, layers: int) -> T5EncoderModel:
    """A transformer of T5's kind (arXiv 1910.10683) with heads of 32 channels and random weights.

    It starts from what a random one takes long to find, since only the denoising loss teaches it: one head looks at
    the word before and one at the word after, so that "red seven" and "red ground" differ from the first step; and
    the padding's embedding is zero, so that its states, most of what the network is told, hold nothing but what they
    attend to in the caption.

    Args:
        tokens: of the tokenizer, whose first is the padding.
        width: channels of its states, a multiple of 32, at least 64.
    """
    encoder = T5EncoderModel(
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
    nn.init.zeros_(encoder.shared.weight[0])
    nearness = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (offset, head)
    with torch.no_grad():
        nearness[_BEFORE, 0] = nearness[_AFTER, 1] = 4.0  # e^4 = 55: most of a short caption's attention
    return encoder
