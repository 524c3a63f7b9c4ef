"""A tokenizer of a run's own captions: whole words, every character, and the same in every process."""

import random

import pytest
import transformers

from ddpm_hf.models.text import small_text_encoder, train_tokenizer

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


@pytest.mark.processes
def test_another_process_has_the_same_tokens(command, tmp_path):
    """Of another seed for the hashes of strings, which order what is in a set."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {__file__.rpartition('/')[0]!r}); import test_text; "
        "print(sorted(test_text.train_tokenizer(test_text.many_captions(), 200).get_vocab().items()))"
    )
    other = command(script)
    assert other.wait() == 0, other.err
    here = train_tokenizer(many_captions(), 200).get_vocab()
    assert other.out.strip() == str(sorted(here.items()))
