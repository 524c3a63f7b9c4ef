"""States of captions on disk, found by their captions."""

import pytest
import torch

from ddpm_hf.conditions.states import KeptStates

CAPTIONS = [f"caption {number}" for number in range(300)]


class Encoder:
    """Remembers what it was asked for; the states of "caption 7" are all 7 and differ from those of others."""

    def __init__(self):
        self.asked = []

    def __call__(self, captions: list[str]) -> torch.Tensor:
        self.asked += captions
        return torch.stack([torch.full((2, 3), float(caption.split()[-1])) for caption in captions])


def test_each_caption_is_encoded_once_whatever_their_order_and_repetitions(tmp_path):
    encoder = Encoder()
    states = KeptStates(tmp_path, "encoder", lambda: CAPTIONS * 2, (2, 3))
    states.fill(encoder)
    assert sorted(encoder.asked) == sorted(CAPTIONS)
    assert states[["caption 299", "caption 7", "caption 7"]].tolist() == [[[k] * 3] * 2 for k in (299.0, 7.0, 7.0)]

    again = Encoder()
    KeptStates(tmp_path, "encoder", lambda: reversed(CAPTIONS), (2, 3)).fill(again)
    assert not again.asked
    for encoder, captions in (("another", CAPTIONS), ("encoder", [*CAPTIONS, "caption 300"])):
        KeptStates(tmp_path, encoder, captions.copy, (2, 3)).fill(again)
    assert len(again.asked) == 300 + 301


def test_states_that_half_precision_does_not_hold_are_the_encoders(tmp_path):
    with pytest.raises(ValueError, match="`text_encoder` must give numbers below 65504, .* captions 0 to 0"):
        KeptStates(tmp_path, "encoder", lambda: ["caption 70000"], (2, 3)).fill(Encoder())
