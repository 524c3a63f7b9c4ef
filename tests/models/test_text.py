"""A tokenizer of a run's own captions: whole words, every character, and the same in every process."""

import random
import subprocess
import sys

from ddpm_hf.models.text import train_tokenizer

CAPTIONS = ["A red seven, on blue", "an apple \U0001f34e \u6f22\u5b57 \u00e9t\u00e9", "a red two"]


def many_captions() -> list[str]:
    choose = random.Random(0).choice
    return [" ".join(choose("abcdefgh") * 2 + choose("xyz") + str(n % 97) for _ in range(4)) for n in range(3000)]


def test_common_words_are_tokens_and_everything_seen_comes_back():
    tokenizer = train_tokenizer(CAPTIONS, 60)
    assert tokenizer.tokenize("a red seven, on") == ["\u2581a", "\u2581red", "\u2581seven", ",", "\u2581on"]
    for caption in (*CAPTIONS, "redder n\u00e9a"):  # the last of seen characters, not of seen words
        assert tokenizer.decode(tokenizer(caption.lower()).input_ids, skip_special_tokens=True) == caption.lower()
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token_id in tokenizer("\u017b").input_ids


def test_words_beyond_the_vocabulary_are_spelled():
    tokenizer = train_tokenizer(many_captions(), 200)
    assert len(tokenizer) <= 200
    for caption in many_captions()[:50]:
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True) == caption


def test_another_process_has_the_same_tokens():
    here = train_tokenizer(many_captions(), 200).get_vocab()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_text; "
        "print(sorted(test_text.train_tokenizer(test_text.many_captions(), 200).get_vocab().items()))"
    )
    command = [sys.executable, "-c", code, __file__.rpartition("/")[0]]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(sorted(here.items()))
