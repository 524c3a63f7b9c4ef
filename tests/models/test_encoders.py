"""Frozen text encoders, by folder."""

import json

import pytest
from safetensors.torch import load_file, save_file
from texts import write_encoder
from transformers import GPT2Config, GPT2Model

from ddpm_hf.models.text import CAPTION_LENGTH, load_text_encoder


def test_encoders_of_transformers_load_frozen_and_what_is_none_is_named(tmp_path):
    for kind, width in (("bert", 48), ("clip", 40), ("t5", 32)):
        tokenizer, encoder = load_text_encoder(write_encoder(tmp_path / kind, kind))
        tokens = tokenizer(["a red apple"], padding="max_length", max_length=CAPTION_LENGTH, return_tensors="pt")
        assert encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].shape == (1, CAPTION_LENGTH, width)
        assert not encoder.training and not any(weight.requires_grad for weight in encoder.parameters())
    decoder = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2Model(decoder).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "bert" / "tokenizer.json").unlink()
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "block" not in name},
        tmp_path / "t5" / "model.safetensors",
    )
    for name, reason in (
        ("gpt2", "Unrecognized configuration class .*GPT2Config"),
        ("t5", "[0-9]+ weights are missing, such as encoder.block"),
        ("bert", "its tokenizer has 5 of 13 tokens"),
        ("nowhere", ""),
    ):
        with pytest.raises(
            ValueError, match=f"`text_encoder` must be train, or a folder.*, got {tmp_path / name}: {reason}"
        ):
            load_text_encoder(str(tmp_path / name))


def test_an_encoder_that_brings_code_is_refused_and_its_code_not_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForTextEncoding": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": code}))
    with pytest.raises(ValueError, match="`text_encoder` must be train, or a folder"):
        load_text_encoder(str(tmp_path))
    assert not trace.exists()
