import os
from pathlib import Path

import datasets
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Each test keeps its caches in a folder of its own, whatever the machine's are."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.fixture
def shared_data():
    """The folder with mnist/ and emoji-google-64/, which only some machines have."""
    folder = os.environ.get("DDPM_HF_DATA")
    if not folder:
        pytest.skip("these data need a folder: DDPM_HF_DATA with mnist/ and emoji-google-64/")
    return Path(folder)
