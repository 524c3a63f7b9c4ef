"""What the tests of networks share."""

import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry


@pytest.fixture
def restore_backend():
    """`set_attention_backend` also changes a setting of the whole process, and no method takes that back."""
    active = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(active)
