"""Text-to-image models for tests: a tiny run on captioned digits, encoders, and one that gives real pictures."""

from argparse import Namespace
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from running import TINY, forget_accelerator
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.data.captioned_digits import captions, plans
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.outputs.folder import OutputFolder
from ddpm_hf.pipelines.text_to_image import TextToImagePipeline
from ddpm_hf.systems.plan import Plan, make_plan

_MODEL = (
    "--system glide --resolution 16 --attention_resolutions 8 --text_width 64 --text_layers 1 --text_warmup_steps 2"
)


def begin_text_run(folder: Path, *flags: str) -> tuple[Plan, OutputFolder]:
    """A run as it is at its first step; its network has random output layers, so that it matters."""
    forget_accelerator()
    tiny = TINY[: TINY.index("--holdout")]  # the data set's own test split is held out
    arguments = [*tiny, *_MODEL.split(), "--num_train_timesteps", "40", *flags, "--output_dir", str(folder)]
    plan = make_plan(parse_training_arguments(arguments), Accelerator())
    torch.nn.init.normal_(plan.system.network.unet.conv_out.weight, std=0.1)
    output = OutputFolder(folder)
    output.open(plan.config, asdict(plan.facts), overwrite=False)
    return plan, output


def save_clip(folder: Path) -> Path:
    """A small CLIP with random weights, its tokenizer of single bytes and its image processor."""
    alphabet = sorted(ByteLevel.alphabet())
    names = [*alphabet, *(byte + "</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: k for k, name in enumerate(names)}, merges=[], model_max_length=48)
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {"vocab_size": len(names), "max_position_embeddings": 48}
    text |= {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    vision = common | {"image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.visual_projection.weight.data.neg_()  # or captions and pictures would lie on opposite sides
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)):
        part.save_pretrained(folder)
    return folder


def settings_of(folder: Path) -> dict:
    """Of the run that left this folder."""
    return yaml.safe_load((folder / "training_config.yaml").read_text())


def write_encoder(folder: Path, kind: str, seed: int = 0, positions: int = 77) -> str:
    """A folder with a text encoder of this kind and its tokenizer, both as the Hub has them, tiny and random."""
    torch.manual_seed(seed)
    layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "bert":
        words = "[PAD] [UNK] [CLS] [SEP] [MASK] a red apple ##s ein grune ##r kase".split()
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        encoder = BertModel(BertConfig(vocab_size=len(words), hidden_size=48, **layer))
    elif kind == "clip":
        letters = sorted(ByteLevel.alphabet())
        names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
        tokenizer = CLIPTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
        sizes = {"vocab_size": len(names), "hidden_size": 40, "max_position_embeddings": positions}
        encoder = CLIPTextModel(CLIPTextConfig(**sizes, **layer, **ends))
    else:
        pieces = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁apple", "▁ein", "▁", "e", "r"]
        tokenizer = T5Tokenizer(vocab=[(piece, -float(k)) for k, piece in enumerate(pieces)], extra_ids=0)
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2, "num_layers": 1}
        encoder = T5EncoderModel(T5Config(vocab_size=16, **sizes))
    for part in (tokenizer, encoder):
        part.save_pretrained(folder)
    return str(folder)


class Copyist(TextToImagePipeline):
    """Draws nothing: gives the last real picture, of those held out, that has the caption."""

    def __call__(self, *, prompt, **_):
        places, store = _held_out_pictures()
        return Namespace(images=torch.from_numpy(store.gather([places[caption] for caption in prompt])) / 255)


@cache
def _held_out_pictures() -> tuple[dict[str, int], PixelStore]:
    """Caption -> place of a picture that has it, and the pictures at 16x16."""
    asked = plans("coloured")["test"]
    ids = zip(*(asked[name] for name in ("digit", "colour", "ground")), strict=True)
    places = {caption: row for row, one in enumerate(ids) for caption in captions("coloured", one)}
    data = load_images(captioned=True, size=(16, 16), dataset_split="test")
    return places, PixelStore.build(data, (16, 16), 3, progress=False)
