"""Text encoders and their tokenizers: small ones learned from the captions of a run, and those of transformers."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

# The tokens of a caption in stock diffusers' IFPipeline, padding included.
CAPTION_LENGTH = 77
_SPECIAL = ("<pad>", "</s>", "<unk>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PADDING, _END, _NEVER_SEEN = 0, 1, slice(2, len(_SPECIAL) + len(_BYTES))
# Where T5 keeps its bias for the token before and the one after, of 32 buckets of offsets.
_BEFORE, _AFTER = 1, 17
# Tokens from which on all words are equally far away.
_FAR = 16
# Of `teach_wordings`: rows at most, and rows a step.
_ROWS, _ROWS_A_STEP = 10_000, 64


def train_tokenizer(captions: Iterable[str], vocabulary: int = 8192) -> PreTrainedTokenizerFast:
    """A tokenizer for these captions, lower-cased, that stock pipelines load; always the same for the same captions.

    The commonest words are tokens of their own, because a small encoder learns whole words far sooner. Other words are
    spelled with the commonest groups of two to four characters, and with single ones. (The trainers of `tokenizers`
    sum in the order in which their threads end: two processes would not agree, nor a run with its resumption.)
    Characters that no caption has become bytes of UTF-8, so that all text comes back from its tokens. Nothing trains
    the bytes before the model is fine-tuned on captions that have them. (`T5Tokenizer` would load without bytes.)

    Args:
        captions: in any script. Every character that they hold becomes a token.
        vocabulary: at most so many tokens beside bytes and special ones, if there are not more characters.
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
    room = max(0, vocabulary - len(characters) - len(common))
    by_count = sorted(groups, key=lambda group: (-groups[group], group))
    spelling = [*characters, *by_count[:room]]
    # The likeliest reading wins: a word before any spelling, and of spellings the one of fewest pieces.
    pieces = dict.fromkeys((*_SPECIAL, *_BYTES), 0.0) | dict.fromkeys(spelling, -50.0)
    pieces |= {word: math.log(words[word] / words.total()) for word in common}
    return _as_in_t5(Tokenizer(Unigram(list(pieces.items()), unk_id=_SPECIAL.index("<unk>"), byte_fallback=True)))


def _with_marks(caption: str) -> str:
    return "".join("▁" + word for word in caption.split())


def _as_in_t5(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Words begin with a mark, and a caption ends with a token of its own."""
    marks = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.normalizer = normalizers.Lowercase()  # not all stock pipelines do it
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(**marks),
            pre_tokenizers.Split("<", "isolated"),  # or the text "<0x41>" would be a byte
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(**marks)])
    end = [("</s>", _SPECIAL.index("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=end)
    padding, end, unknown = _SPECIAL
    names = {"pad_token": padding, "eos_token": end, "unk_token": unknown}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CAPTION_LENGTH,
        split_special_tokens=True,  # or the text "</s>" would end a caption
        **names,
    )


def is_learned(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether it is one of `train_tokenizer`, and so its encoder one that was learned with a U-Net."""
    return type(tokenizer) is PreTrainedTokenizerFast  # those of published encoders have classes of their own


def knows_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether it is not one of `train_tokenizer` that was trained without any caption."""
    return not is_learned(tokenizer) or len(tokenizer) > len(_SPECIAL) + len(_BYTES) + 1  # the mark of a word


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of all that turns text into tokens."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # set by calls
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def small_text_encoder(tokens: int, width: int, layers: int) -> T5EncoderModel:
    """A transformer of T5's kind (arXiv 1910.10683) with heads of 32 channels and random weights.

    It starts from what a random one takes long to find, since only the denoising loss teaches it: one head looks at
    the word before and one at the word after, so that "red seven" and "red ground" differ from the first step; and
    the padding's embedding is zero, so that its states, most of what the network is told, hold nothing but what they
    attend to in the caption. So is that of bytes, which would be noise: no gradient ever reaches them.

    Args:
        tokens: of a tokenizer of `train_tokenizer`.
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
            relative_attention_max_distance=_FAR,
        )
    )
    nn.init.zeros_(encoder.shared.weight[_PADDING])
    nn.init.zeros_(encoder.shared.weight[_NEVER_SEEN])
    nearness = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (offset, head)
    with torch.no_grad():
        nearness[_BEFORE, 0] = nearness[_AFTER, 1] = 4.0  # e^4 = 55: most of a short caption's attention
    return encoder


def caption_states(
    encoder: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Tokens (B, length) -> the encoder's states, (B, length, width).

    T5's padding attends to words alone, and knows no more of their places than how far away they are. Beyond its
    longest distance padding is all the same, and is computed once: of a small encoder's 77 states of a short caption
    this leaves 30. (On a GPU the host would have to wait for the longest caption, which costs more.)
    """
    length = input_ids.shape[1]
    on_cpu = attention_mask is not None and attention_mask.is_cpu
    if isinstance(encoder, T5EncoderModel) and on_cpu and attention_mask[:, 0].all():  # padding is to the right
        told = int(attention_mask.sum(1).max()) + encoder.config.relative_attention_max_distance
        input_ids, attention_mask = input_ids[:, :told], attention_mask[:, :told]
    states = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
    return torch.cat([states, states[:, -1:].expand(-1, length - states.shape[1], -1)], dim=1)


def teach_wordings(
    encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sequence[str]],
    steps: int,
    generator: torch.Generator,
    most: int = CAPTION_LENGTH,
) -> None:
    """Teach an encoder, in place, to say the whole caption in each of its states, alike in every wording.

    A state is regressed on a sum of random vectors, one for each word and place in the row's first wording. So red ink
    and red ground are far apart, which a random encoder confuses, and the denoising loss takes long to separate; what
    is the same in all captions is left out; and as padding says the same, it does not drown the words.

    Some words are those that another row has in their places, so that the encoder learns to add words and not the
    captions by heart: it says combinations that no row has as clearly as those that there are.

    Args:
        tokenizer: of `train_tokenizer`.
        rows: all different: the wordings of each picture's caption as the network is told them, in one order
            throughout. A single row teaches nothing.
        steps: of 64 rows, a wording of each.
        generator: on the CPU, of the vectors and of all choices.
        most: tokens of a caption that the network is told.
    """
    if len(rows) < 2:
        return
    rows = [rows[k] for k in torch.randperm(len(rows), generator=generator)[:_ROWS].tolist()]
    longest = max(len(ids) for row in rows for ids in tokenizer(list(row)).input_ids)
    length = min(longest + _FAR, most)

    def tokens(captions: Sequence[str]) -> torch.Tensor:
        told = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return told["input_ids"]

    wordings = [tokens(row) for row in rows]
    first = torch.stack([each[0] for each in wordings])
    say = _sums_of_words(first, encoder.config, generator)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        drawn, others = torch.randint(len(rows), (2, _ROWS_A_STEP), generator=generator)
        shares = torch.rand(_ROWS_A_STEP, generator=generator).tolist()
        exchanged = _exchanged(first[drawn], first[others], len(tokenizer), generator)
        asked = [wordings[k][int(u * len(wordings[k]))] for k, u in zip(drawn.tolist(), shares, strict=True)]
        ids, wanted = exchanged(torch.stack(asked)), say(exchanged(first[drawn]))
        states = encoder(input_ids=ids, attention_mask=(ids != _PADDING).long())[0]
        F.mse_loss(states, wanted[:, None].expand_as(states)).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _exchanged(
    first: torch.Tensor, other: torch.Tensor, tokens: int, generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Tokens (n, length) of any wordings of n rows -> the same with some words exchanged for those of n other rows.

    Which are whose is told by their places in the first wordings, (n, length) each.
    """
    words = (first > _END) & (other > _END) & (first != other)
    words &= (first[:, :, None] == first[:, None]).sum(2) == 1  # of two that are equal it would not be clear which
    words &= torch.rand(first.shape, generator=generator) < 0.5
    table = torch.arange(tokens).repeat(len(first), 1)
    table[words.nonzero()[:, 0], first[words]] = other[words]
    return lambda ids: table.gather(1, ids)


def _sums_of_words(
    every: torch.Tensor, config: T5Config, generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Tokens (n, length) -> (n, d_model), of mean square 1 and mean 0 over `every`: a random vector for each word and
    place, added."""
    words = torch.randn(config.vocab_size, config.d_model, generator=generator)
    words[_PADDING] = 0
    # A place changes the signs of a word's channels, so that a word in two places has orthogonal vectors.
    signs = torch.randint(2, (every.shape[1], config.d_model), generator=generator) * 2 - 1

    def add(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([(words[row] * signs).sum(0) for row in ids])

    sums = add(every)
    mean, scale = sums.mean(0), (sums - sums.mean(0)).square().mean().sqrt()
    return lambda ids: (add(ids) - mean) / scale


def load_text_encoder(name: str) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """A tokenizer and an encoder in float32, frozen. Never runs code from the repository.

    Args:
        name: a folder or a repository on the Hub.

    Raises:
        ValueError: it is none, or none of text, or it lacks weights or a tokenizer that pads.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        loader = CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
        options = {} if loader is CLIPTextModel else {"trust_remote_code": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a pooler, which checkpoints may lack and nothing uses
            encoder, found = loader.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as problem:
        raise _no_encoder(name, str(problem).strip().partition("\n")[0]) from None
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise _no_encoder(name, f"{len(missing)} weights are missing, such as {missing[0]}")
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise _no_encoder(name, "its tokenizer must be a fast one with a token for padding")
    if 2 * len(tokenizer) < encoder.config.vocab_size:  # transformers makes an empty one where there are no files
        raise _no_encoder(name, f"its tokenizer has {len(tokenizer)} of {encoder.config.vocab_size} tokens")
    return tokenizer, encoder.eval().requires_grad_(False)


def leave_out_last_layers(encoder: PreTrainedModel, count: int) -> None:
    """Make of CLIP's text encoder, in place, one that says what stock's `clip_skip=count` takes of the whole one.

    The empty caption, which guides, is then read by the same layers; stock skips none for it.

    Raises:
        ValueError: it is none of CLIP, or no layer would be left.
    """
    if not isinstance(encoder, CLIPTextModel):
        raise ValueError(f"`clip_skip` is for CLIP's text encoder, got a {type(encoder).__name__}")
    layers = encoder.encoder.layers
    if count >= len(layers):
        raise ValueError(f"`clip_skip` must be below the {len(layers)} layers of this text encoder, got {count}")
    del layers[-count:]
    encoder.config.num_hidden_layers = len(layers)


def _no_encoder(name: str, reason: str) -> ValueError:
    return ValueError(
        "`text_encoder` must be train, or a folder or Hub name from which transformers loads an encoder of text, such "
        f"as T5, CLIP or BERT, and its tokenizer, got {name}: {reason}"
    )
