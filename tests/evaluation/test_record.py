"""The report: what joins it, what leaves it, and what it refuses."""

import json

import pytest
import torch

from ddpm_hf.evaluation.record import metrics_of, summary_table, update_report
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.fingerprint import weights_fingerprint

NLL = {"name": "bits_per_dim", "value": 3.7, "dataset": "a", "split": "test", "n": 10, "sampler": "ddpm", "steps": 9}


def test_metrics_join_and_replace_their_like(tmp_path):
    file = tmp_path / "evaluation.json"
    update_report(file, "w", [NLL])
    update_report(file, "w", [{**NLL, "split": "train", "value": 3.5}, {**NLL, "name": "kid", "value": 0.1}])
    for value in (1.1, 1.2):
        update_report(file, "w", [{**NLL, "name": "fid", "value": value, "guidance_interval": [0.2, value]}])
    update_report(file, "w", [{**NLL, "name": "fid", "value": 1.0, "guidance_interval": [0.2, 1.1]}])
    found = update_report(file, "w", [{**NLL, "value": 3.6, "n": 20}])
    assert sorted((m["name"], m["split"], m["value"], m["n"]) for m in found) == [
        ("bits_per_dim", "test", 3.6, 20),
        ("bits_per_dim", "train", 3.5, 10),
        ("fid", "test", 1.0, 10),
        ("fid", "test", 1.2, 10),
        ("kid", "test", 0.1, 10),
    ]
    saved = json.loads(file.read_text())
    assert saved["schema"] == 1 and saved["metrics"] == found == metrics_of(file, "w")
    assert list(tmp_path.iterdir()) == [file]


def test_figures_of_other_weights_are_dropped(tmp_path):
    file = tmp_path / "evaluation.json"
    update_report(file, "old", [NLL])
    assert metrics_of(file, "new") == []
    assert update_report(file, "new", [{**NLL, "name": "kid"}]) == [{**NLL, "name": "kid"}]


def test_the_fingerprint_is_that_of_the_weights(tiny_pipeline):
    pipeline = tiny_pipeline()
    first = weights_fingerprint(pipeline.unet)
    assert weights_fingerprint(tiny_pipeline()) == first  # the only network of the pipeline
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] += 1e-6
    assert weights_fingerprint(pipeline.unet) != first
    assert len(weights_fingerprint(pipeline.unet.bfloat16())) == 32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "evaluation.json cannot be read as JSON"),
        ("\xff", "evaluation.json cannot be read as JSON"),
        ("[]", "evaluation.json must hold a mapping, got a list"),
        ('{"schema": 2, "metrics": []}', "must have schema 1, got 2"),
        ('{"schema": 1}', "must have a list of metrics"),
        ('{"schema": 1, "metrics": [{"name": "fid", "value": "low"}]}', "'low'"),
        ('{"schema": 1, "metrics": [{"value": 3}]}', "a name and a number"),
    ],
)
def test_a_file_that_is_no_report_is_named_and_left_alone(tiny_pipeline, tmp_path, content, words):
    tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "evaluation.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{words}.*; delete it to start a new report, or .*--output_dir"):
        update_report(file, "w", [NLL])
    with pytest.raises(ValueError, match=words):
        write_card(tmp_path)
    assert file.read_bytes() == content.encode("latin-1")


def test_the_model_card_reads_it(tiny_pipeline, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    metrics = update_report(tmp_path / "evaluation.json", weights_fingerprint(pipeline.unet), [NLL])
    assert ModelFolder.read(tmp_path).metrics == metrics


def test_table():
    read = summary_table([{**NLL, "sampler": None, "steps": None, "samples": "made.npz"}])
    assert read.splitlines()[1].split() == ["bits_per_dim", "3.7", "10", "made.npz", "a", "(test)"]
    lines = summary_table([{**NLL, "standard_error": 0.01}, {**NLL, "name": "kid", "floor": 0.25}]).splitlines()
    assert lines[1].split() == ["bits_per_dim", "3.7000", "±", "0.0100", "10", "ddpm", "9", "a", "(test)"]
    assert lines[2].split() == ["kid", "3.7", "0.25", "10", "ddpm", "9", "a", "(test)"]
    share = {**NLL, "value": 0.5, "interval_low": 0.25, "interval_high": 0.75, "ceiling": 0.97, "chance": 0.01}
    header, line = summary_table([share]).splitlines()
    assert header.split() == ["metric", "value", "ceiling", "chance", "n", "sampler", "data"]
    assert line.split()[1:7] == ["0.5", "(0.25", "to", "0.75)", "0.97", "0.01"]
