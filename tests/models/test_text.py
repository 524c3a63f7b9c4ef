"""A tokenizer of a run's own captions: whole words, every character, and the same in every process."""

import random
from itertools import product

import numpy as np
import pytest
import torch
import transformers

from ddpm_hf.data.captioned_digits import captions
from ddpm_hf.models.text import (
    CAPTION_LENGTH,
    caption_states,
    small_text_encoder,
    teach_wordings,
    train_tokenizer,
)

CAPTIONS = ["A red seven, on blue", "an apple \U0001f34e \u6f22\u5b57 \u00e9t\u00e9", "a red two"]


def comes_back(tokenizer, text: str) -> bool:
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def many_captions() -> list[str]:
    choose = random.Random(0).choice
    return [" ".join(choose("abcdefgh") * 2 + choose("xyz") + str(n % 97) for _ in range(4)) for n in range(3000)]


def test_common_words_are_tokens_and_everything_seen_comes_back():
    tokenizer = train_tokenizer(CAPTIONS, 57)
    assert tokenizer.tokenize("a red seven, on") == ["\u2581a", "\u2581red", "\u2581seven", ",", "\u2581on"]
    for caption in (*CAPTIONS, "redder n\u00e9a"):  # the last of seen characters, not of seen words
        assert comes_back(tokenizer, caption.lower())
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("saved", [False, True])
def test_text_of_other_scripts_comes_back_too_and_says_nothing_until_it_is_trained(saved, tmp_path):
    tokenizer = train_tokenizer(CAPTIONS)
    if saved:  # by the class that a pipeline's index names, as stock diffusers does
        tokenizer.save_pretrained(tmp_path)
        tokenizer = getattr(transformers, type(tokenizer).__name__).from_pretrained(tmp_path)
    unknown = (
        "\u017b\u00f3\u0142w \U0001f422",
        "\u308a\u3093\u3054 red",
        "a <0x41> tag",
        "\x00",
        "<pad> an </s> <unk>",
    )
    assert all(comes_back(tokenizer, text.lower()) for text in unknown)
    assert tokenizer.unk_token_id not in sum(tokenizer(list(unknown)).input_ids, [])
    embedding = small_text_encoder(len(tokenizer), 64, 1).shared.weight
    seen = {token for caption in CAPTIONS for token in tokenizer(caption.lower()).input_ids}
    silent = {token for token in range(len(embedding)) if not embedding[token].any()}
    assert len(silent) == 1 + 1 + 256 and not seen & silent  # padding, the token for unknown ones, and bytes


def test_words_beyond_the_vocabulary_are_spelled():
    tokenizer = train_tokenizer(many_captions(), 200)
    assert len(tokenizer) <= 200 + 3 + 256
    for caption in many_captions()[:50]:
        assert comes_back(tokenizer, caption)


def test_a_taught_encoder_says_digit_ink_and_ground_apart_everywhere_and_in_every_wording():
    """By least squares: what its states owe to each of the three, in captions of which a quarter were not taught.

    Where words are not exchanged, that is 0.88, and what is added to it is of combinations that were taught.
    """
    combinations = [(d, c, g) for d, c, g in product(range(4), repeat=3) if c != g]
    rows = [captions("coloured", ids) for ids in combinations]
    tokenizer = train_tokenizer(caption for row in rows for caption in row)
    torch.manual_seed(0)
    encoder = small_text_encoder(len(tokenizer), 64, 2)
    with torch.no_grad():
        random_shares, random_likeness = what_states_owe(encoder, tokenizer, combinations)
    taught = [row for row, (d, c, _) in zip(rows, combinations, strict=True) if (3 * d + 1) % 4 != c]
    teach_wordings(encoder, tokenizer, taught, 200, torch.Generator().manual_seed(0))
    with torch.no_grad():
        shares, likeness = what_states_owe(encoder, tokenizer, combinations)
    assert random_shares.max() < 0.6 and random_likeness.min() > 0.5
    assert shares.min() > 0.93 and np.abs(likeness).max() < 0.3


def what_states_owe(encoder, tokenizer, combinations) -> tuple[np.ndarray, np.ndarray]:
    """Of the first and second word and of padding: the share of the variance of the states that is a sum of an effect
    of the digit, one of the ink and one of the ground, and the cosine of the last two's effects of a colour."""
    wordings = list(zip(*(captions("coloured", ids) for ids in combinations), strict=True))
    states = []
    for captions_of_wording in wordings:
        told = tokenizer(
            list(captions_of_wording), padding="max_length", max_length=CAPTION_LENGTH, return_tensors="pt"
        )
        states.append(encoder(told["input_ids"], told["attention_mask"])[0].double().numpy())
    one_hot = np.concatenate([np.eye(4)[list(values)] for values in zip(*combinations, strict=True)], 1)
    design = np.tile(one_hot - one_hot.mean(0), (len(wordings), 1))
    shares, likeness = [], []
    for place in (0, 1, 20, 76):
        state = np.concatenate([of_wording[:, place] for of_wording in states])
        state = state - state.mean(0)
        effects = np.linalg.lstsq(design, state, rcond=None)[0]
        shares.append(np.square(design @ effects).sum() / np.square(state).sum())
        ink, ground = (of - of.mean(0) for of in (effects[4:8], effects[8:]))
        likeness.append(np.sum(ink * ground) / np.linalg.norm(ink) / np.linalg.norm(ground))
    return np.array(shares), np.array(likeness)


def test_padding_that_is_all_the_same_is_computed_once():
    """States and gradients are those of the encoder that reads all tokens."""
    tokenizer = train_tokenizer(CAPTIONS)
    torch.manual_seed(0)
    encoder = small_text_encoder(len(tokenizer), 64, 2).double()
    for bias in (w for name, w in encoder.named_parameters() if "relative_attention_bias" in name):
        torch.nn.init.normal_(bias)
    told = tokenizer(["", *CAPTIONS], padding="max_length", max_length=CAPTION_LENGTH, return_tensors="pt")
    told = {name: told[name] for name in ("input_ids", "attention_mask")}
    wanted = torch.randn(4, CAPTION_LENGTH, 64, dtype=torch.float64)
    lengths, found = [], []
    encoder.encoder.block[0].register_forward_pre_hook(lambda block, given: lengths.append(given[0].shape[1]))
    for states in (encoder(**told)[0], caption_states(encoder, **told)):
        gradients = torch.autograd.grad((states * wanted).sum(), list(encoder.parameters()))
        found.append([states, *gradients])
    for short, whole in zip(*found, strict=True):
        assert torch.linalg.norm(short - whole) <= 1e-5 * torch.linalg.norm(whole)  # attention is in float32
    assert lengths[0] == CAPTION_LENGTH and lengths[1] < 40
    mirrored = {name: value.flip(1) for name, value in told.items()}  # padding to the left, as some tokenizers have it
    torch.testing.assert_close(caption_states(encoder, **mirrored), encoder(**mirrored)[0])
