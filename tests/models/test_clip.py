"""A CLIP made here: its tokenizer, its sizes, and what transformers makes of its files."""

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from ddpm_hf.models.clip import Clip, load_clip, new_clip, new_image_processor, train_clip_tokenizer

CAPTIONS = ["a red seven on a blue ground", "A RED two, blue background", "ein grüner Käse", "🍎 漢字", "these"]
SIZES = {"width": 32, "layers": 1, "text_width": 64, "text_layers": 2, "embedding_width": 16, "patch": 4}


@pytest.fixture(scope="module")
def clip() -> Clip:
    tokenizer = train_clip_tokenizer(CAPTIONS, 12)
    torch.manual_seed(0)
    return Clip(new_clip(8, tokenizer, **SIZES).eval(), tokenizer, new_image_processor(8))


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    """As transformers lays a CLIP out."""
    folder = tmp_path_factory.mktemp("saved")
    for part in (clip.model, clip.tokenizer, clip.processor):
        part.save_pretrained(folder)
    return folder


def test_the_tokenizer_has_tokens_for_words_and_all_text_comes_back(clip, saved):
    loaded = AutoTokenizer.from_pretrained(saved)
    for tokenizer in (clip.tokenizer, loaded):
        first, *_, last = tokenizer("seven").input_ids
        assert (first, last) == (tokenizer.bos_token_id, tokenizer.eos_token_id) and tokenizer.model_max_length == 12
        for words in ("red blue ground", "these seven two"):  # a later word does not take an earlier one apart
            assert len(tokenizer(words).input_ids) == 2 + len(words.split())
        for text in (*CAPTIONS, "never seen ☃", "grounds"):
            told = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(told).replace(" ,", ",") == text.lower()
    assert clip.tokenizer("snow").input_ids == loaded("snow").input_ids


def test_the_tokenizer_depends_on_the_captions_alone_and_has_no_more_merges_than_asked_for(clip):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert train_clip_tokenizer(shuffled, 12).get_vocab() == clip.tokenizer.get_vocab()
    assert len(train_clip_tokenizer(CAPTIONS, 12, merges=5)) == 2 * 256 + 5 + 2
    assert len(train_clip_tokenizer([], 12)) == 2 * 256 + 2


def test_its_halves_are_stocks_and_load_without_a_missing_key(clip, saved):
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = clip.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt", truncation=True)
    asked = {CLIPVisionModelWithProjection: pictures / 127.5 - 1, CLIPTextModelWithProjection: padded.input_ids}
    found = {CLIPVisionModelWithProjection: clip.look(pictures), CLIPTextModelWithProjection: clip.read(CAPTIONS)}
    for kind, part in ((CLIPVisionModelWithProjection, clip.vision()), (CLIPTextModelWithProjection, clip.text())):
        stock, info = kind.from_pretrained(saved, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert part.state_dict().keys() == stock.state_dict().keys()
        own = {weight.data_ptr() for weight in clip.model.parameters()}
        assert {weight.data_ptr() for weight in part.parameters()} <= own, "no copies"
        with torch.no_grad():
            for each in (stock, part):
                output = each(asked[kind])
                torch.testing.assert_close(output[0], found[kind], atol=1e-5, rtol=1e-5)
    assert clip.model.config.vision_config.image_size == 8
    whole, info = CLIPModel.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()) and whole.config.projection_dim == 16


def test_pictures_of_any_size_are_resized_and_cropped(clip, saved):
    large = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 14), np.uint8)
    pixels = CLIPImageProcessorPil.from_pretrained(saved)(
        [Image.fromarray(picture.transpose(1, 2, 0)) for picture in large], return_tensors="pt"
    ).pixel_values
    assert pixels.shape == (2, 3, 8, 8) and -1 <= pixels.min() < -0.5 < 0.5 < pixels.max() <= 1
    with torch.no_grad():
        expected = clip.vision()(pixels).image_embeds
    torch.testing.assert_close(clip.look(torch.from_numpy(large)), expected)


def test_it_looks_where_its_half_was_moved(clip):
    """As a prior's training does on a GPU, for which "meta" stands here."""
    moved = copy.deepcopy(clip)
    moved.vision().to("meta")
    assert moved.look(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).device.type == "meta"
    torch.testing.assert_close(moved.read(CAPTIONS), clip.read(CAPTIONS))


def test_a_fingerprint_is_of_all_that_embeddings_depend_on(clip, saved):
    assert load_clip(saved, "--clip_model").fingerprint == clip.fingerprint
    others = [
        Clip(clip.model, clip.tokenizer, new_image_processor(9)),
        Clip(clip.model, train_clip_tokenizer(CAPTIONS[:1], 12), clip.processor),
        Clip(new_clip(8, clip.tokenizer, **SIZES), clip.tokenizer, clip.processor),
    ]
    assert len({clip.fingerprint, *(other.fingerprint for other in others)}) == 4
