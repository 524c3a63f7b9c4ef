"""States of captions on disk: computed once, whatever interrupts it, and found by their captions."""

import os
import signal

import pytest
import torch

from ddpm_hf.conditions.states import KeptStates

CAPTIONS = [f"caption {number}" for number in range(300)]


class Encoder:
    """Remembers what it was asked for; the states of "caption 7" are all 7 and differ from those of others."""

    def __init__(self, dies_after: int = 10**9):
        self.asked, self.dies_after = [], dies_after

    def __call__(self, captions: list[str]) -> torch.Tensor:
        if len(self.asked) >= self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.asked += captions
        return torch.stack([torch.full((2, 3), float(caption.split()[-1])) for caption in captions])


def test_a_kill_in_the_middle_costs_no_more_than_a_batch(tmp_path):
    pid = os.fork()
    if pid == 0:
        KeptStates(tmp_path, "encoder", lambda: CAPTIONS, (2, 3)).fill(Encoder(dies_after=128))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (partial,) = tmp_path.glob(".*.partial")
    with partial.open("ab") as file:
        file.write(b"half a row")  # as a kill may leave it

    rest = Encoder()
    states = KeptStates(tmp_path, "encoder", lambda: CAPTIONS * 2, (2, 3))
    states.fill(rest)
    assert len(rest.asked) == len(set(rest.asked)) == 300 - 128
    assert states[["caption 299", "caption 7", "caption 7"]].tolist() == [[[k] * 3] * 2 for k in (299.0, 7.0, 7.0)]
    assert states.file.stat().st_size == states.size == 300 * 2 * 3 * 2 and not partial.exists()

    again = Encoder()
    KeptStates(tmp_path, "encoder", lambda: reversed(CAPTIONS), (2, 3)).fill(again)
    assert not again.asked
    for encoder, captions in (("another", CAPTIONS), ("encoder", [*CAPTIONS, "caption 300"])):
        KeptStates(tmp_path, encoder, captions.copy, (2, 3)).fill(again)
    assert len(again.asked) == 300 + 301


def test_what_cannot_be_kept_is_said(tmp_path):
    with pytest.raises(ValueError, match="`text_encoder` must have states below 65504, got more for 'caption 70000'"):
        KeptStates(tmp_path, "encoder", lambda: ["caption 70000"], (2, 3)).fill(Encoder())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`cache_dir` must be writable"):
        KeptStates(tmp_path / "file", "encoder", lambda: CAPTIONS, (2, 3)).fill(Encoder())
