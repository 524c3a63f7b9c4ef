"""What diffusers offers for its better models, and lacks for UNet2DModel, works for DDPMUNet2D."""

import copy

import pytest
import torch
from accelerate import infer_auto_device_map
from diffusers import UNet2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf.models.unet import DDPMUNet2D, SelfAttnProcessor, paper_config

CONFIG = paper_config(16, base_channels=8, channel_multipliers=(1, 2), attention_resolutions=(8,), blocks_per_level=1)
NEEDS_PEFT = "LoRA adapters need an extra: pip install peft"


@pytest.fixture(name="model")
def model_fixture() -> DDPMUNet2D:
    torch.manual_seed(0)
    return DDPMUNet2D(**CONFIG).eval()


@pytest.fixture(name="sample")
def sample_fixture() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(model: UNet2DModel, sample: torch.Tensor) -> torch.Tensor:
    return model(sample, 500).sample


# --- attention


def sdpa_kernels(model: UNet2DModel, sample: torch.Tensor) -> set[str]:
    """The kernels by which PyTorch computed the network's attention."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        predict(model, sample)
    return {event.key for event in trace.key_averages() if event.key.startswith("aten::_scaled_dot_product")}


@pytest.mark.usefixtures("restore_backend")
def test_attention_backend_acts(model, sample):
    math_kernel = {"aten::_scaled_dot_product_attention_math"}
    stock = UNet2DModel(**CONFIG).eval()
    before, kernels = predict(model, sample), sdpa_kernels(model, sample)
    assert kernels and kernels != math_kernel

    stock.set_attention_backend("_native_math")
    assert sdpa_kernels(stock, sample) == kernels, "stock has learnt it; our processor may go"
    model.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)  # another model chose another backend
    assert sdpa_kernels(model, sample) == math_kernel
    torch.testing.assert_close(predict(model, sample), before, atol=1e-5, rtol=1e-5)

    model.reset_attention_backend()
    assert sdpa_kernels(model, sample) == kernels


def test_attention_backend_acts_as_a_context(model, sample):
    with attention_backend("_native_math"):
        assert sdpa_kernels(model, sample) == {"aten::_scaled_dot_product_attention_math"}


def test_attention_backend_is_refused_where_it_would_not_act(model):
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="AttnProcessor does not follow an attention backend"):
        model.set_attention_backend("_native_math")


class _AttentionDtypes(TorchDispatchMode):
    """Notes what PyTorch's fused attention is called with."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function) and "backward" not in str(function):
            self.found = getattr(self, "found", set()) | {args[0].dtype}
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("trains", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_attention_of_half_precision_is_wide_where_it_goes_backwards(model, sample, trains, dtype):
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(trains), _AttentionDtypes() as attention:
        model(sample, 5)
    assert attention.found == {dtype}


def test_attention_processors_are_listed_and_replaced(model, sample):
    layers = [name for name, module in model.named_modules() if isinstance(module, Attention)]
    assert len(layers) == 4  # one in the down block, one in the middle, two in the up block
    assert sorted(model.attn_processors) == sorted(f"{name}.processor" for name in layers)
    assert all(type(processor) is SelfAttnProcessor for processor in model.attn_processors.values())
    before = predict(model, sample)
    model.set_attn_processor(AttnProcessor())  # softmax(QK)V written out: diffusers' reference
    assert all(type(processor) is AttnProcessor for processor in model.attn_processors.values())
    torch.testing.assert_close(predict(model, sample), before, atol=1e-5, rtol=1e-5)


def test_attention_slicing(model, sample):
    before = predict(model, sample)
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_attention_slice(1)
    torch.testing.assert_close(predict(model, sample), before, atol=1e-5, rtol=1e-5)


# --- memory


def test_gradient_checkpointing_saves_memory_and_changes_nothing(model, sample):
    def train() -> tuple[int, list[torch.Tensor]]:
        kept = []
        model.zero_grad()
        with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
            loss = model(sample, 500).sample.square().mean()
        loss.backward()
        return sum(kept), [parameter.grad.clone() for parameter in model.parameters()]

    model.train()
    plain_memory, plain = train()
    model.enable_gradient_checkpointing()
    memory, checkpointed = train()
    assert memory < plain_memory / 2
    for expected, got in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_layerwise_casting(model, sample):
    before = predict(model, sample)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["mid_block.resnets.0.conv1.weight"] == torch.float8_e4m3fn
    assert dtypes["mid_block.resnets.0.norm1.weight"] == torch.float32
    # e4m3 keeps 3 bits of mantissa: a relative error of at most 1/16 in each weight
    error = (predict(model, sample) - before).norm() / before.norm()
    assert 0 < error < 0.2


@pytest.mark.parametrize(
    "offload", [dict(offload_type="leaf_level"), dict(offload_type="block_level", num_blocks_per_group=1)]
)
def test_group_offloading(model, sample, offload):
    before = predict(model, sample)
    model.enable_group_offload(onload_device=torch.device("cpu"), **offload)
    assert torch.equal(predict(model, sample), before)


def test_device_map(model, sample, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = DDPMUNet2D.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(predict(loaded, sample), predict(model, sample), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="does not support `device_map='auto'`"):
        UNet2DModel.from_pretrained(tmp_path, device_map="auto")


def test_device_map_keeps_whole_what_joins_tensors():
    """An up block concatenates its input and a skip connection: split over two devices it would fail."""
    model = DDPMUNet2D(**paper_config(32, base_channels=8, attention_resolutions=(16,)))
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    device_map = infer_auto_device_map(
        model,
        max_memory={0: int(size * 0.7), 1: size, "cpu": size},
        no_split_module_classes=model._no_split_modules,
    )
    assert set(device_map.values()) == {0, 1}
    whole = [f"up_blocks.{level}" for level in range(4)]
    assert not [name for name in device_map if name.startswith(tuple(f"{block}." for block in whole))]


# --- compilation, copies


def test_compile_repeated_blocks(sample, fresh_compiler):
    """The network has more kinds of residual blocks than the 8 compiled forms that PyTorch allows by itself."""
    config = paper_config(16, 3, base_channels=8, channel_multipliers=(1, 2, 3), blocks_per_level=1)
    model = DDPMUNet2D(**config).eval()
    before = predict(model, sample)
    with pytest.raises(ValueError, match="_repeated_blocks"):
        UNet2DModel(**config).compile_repeated_blocks()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(predict(model, sample), before, atol=1e-5, rtol=1e-5)


def test_compiles_in_one_graph_padding_included(model, fresh_compiler):
    sample = torch.randn(1, 3, 15, 17, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(predict(compiled, sample), predict(model, sample), atol=1e-5, rtol=1e-5)


def test_copy_is_independent_and_equal(model, sample):
    """What an average of weights starts from."""
    twin = copy.deepcopy(model)
    expected = predict(model, sample)
    with torch.no_grad():
        model.conv_in.weight.zero_()
    assert torch.equal(predict(twin, sample), expected)


def test_half_precision(model, sample):
    expected = predict(model, sample)
    output = predict(model.to(torch.bfloat16), sample.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    # bfloat16 has 8 bits of mantissa
    assert (output.float() - expected).norm() / expected.norm() < 0.05


# --- LoRA


@pytest.fixture(name="lora_config")
def lora_config_fixture():
    peft = pytest.importorskip("peft", reason=NEEDS_PEFT)
    return peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)


def test_lora_adapter_is_saved_and_loaded(model, sample, lora_config, tmp_path):
    plain = predict(model, sample)
    model.add_adapter(lora_config)
    adapted = predict(model, sample)
    assert not torch.allclose(adapted, plain, atol=1e-4)
    model.save_lora_adapter(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]

    torch.manual_seed(0)
    fresh = DDPMUNet2D(**CONFIG).eval()
    fresh.load_lora_adapter(tmp_path)
    assert torch.equal(predict(fresh, sample), adapted)
    fresh.disable_adapters()
    assert torch.equal(predict(fresh, sample), plain)


def test_lora_trains_the_adapter_alone(model, sample, lora_config):
    model.add_adapter(lora_config)
    model(sample, 500).sample.square().mean().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained and all("lora_" in name for name in trained)
