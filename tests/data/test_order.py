"""The clock: published SplitMix64 numbers, uniformity, and slices that tile the global batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddpm_hf.data.order import PositionSampler, below, epoch_permutation, position_bits, shuffled_rows, stream_key


def test_position_bits_are_splitmix64():
    """First outputs for seed 1234567, as published at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert position_bits(np.uint64(1234567), np.arange(5)).tolist() == expected


def test_bits_need_no_neighbours():
    key = stream_key(3, 1)
    whole = position_bits(key, np.arange(1000))
    assert position_bits(key, np.array([999, 5, 5, 0])).tolist() == whole[[999, 5, 5, 0]].tolist()
    assert position_bits(key, np.array([10**15])).dtype == np.uint64


def test_keys_differ_by_seed_and_purpose():
    keys = {int(stream_key(seed, purpose)) for seed in range(50) for purpose in range(4)}
    assert len(keys) == 200


@pytest.mark.parametrize("bound", [1, 2, 7, 100])
def test_below_is_uniform(bound):
    drawn = below(position_bits(stream_key(0, 0), np.arange(20_000)), bound)
    assert drawn.min() >= 0 and drawn.max() < bound
    if bound > 1:
        assert stats.chisquare(np.bincount(drawn, minlength=bound)).pvalue > 1e-3


def test_below_takes_a_bound_for_each():
    bits = np.full(3, np.uint64(2**64 - 1))
    assert below(bits, np.array([1, 10, 1000])).tolist() == [0, 9, 999]


class TestOrder:
    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 50), epoch=st.integers(0, 5))
    def test_every_epoch_shows_every_row_once(self, seed, count, epoch):
        positions = np.arange(epoch * count, (epoch + 1) * count)
        assert sorted(shuffled_rows(seed, positions, count)) == list(range(count))

    def test_a_batch_may_cross_epochs(self):
        whole = shuffled_rows(5, np.arange(30), 10)
        assert shuffled_rows(5, np.arange(7, 26), 10).tolist() == whole[7:26].tolist()

    def test_epochs_and_seeds_differ(self):
        orders = {tuple(epoch_permutation(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
        assert len(orders) == 25

    def test_first_places_are_uniform_over_epochs(self):
        firsts = [epoch_permutation(0, epoch, 8)[0] for epoch in range(4000)]
        assert stats.chisquare(np.bincount(firsts, minlength=8)).pvalue > 1e-3


class TestSampler:
    @settings(deadline=None)
    @given(
        batch=st.integers(1, 5),
        accumulation=st.integers(1, 4),
        processes=st.integers(1, 4),
        start=st.integers(0, 1000),
    )
    def test_slices_tile_the_global_batch(self, batch, accumulation, processes, start):
        settings = {"start_step": start, "num_steps": 2, "gradient_accumulation_steps": accumulation}
        seen = []
        for process in range(processes):
            sampler = PositionSampler(batch, num_processes=processes, process_index=process, **settings)
            slices = list(sampler)
            assert len(slices) == 2 * accumulation and {len(piece) for piece in slices} == {batch}
            seen += [position for piece in slices for position in piece]
        total = batch * accumulation * processes
        assert sorted(seen) == list(range(start * total, (start + 2) * total))

    def test_the_documented_formula(self):
        sampler = PositionSampler(
            4, start_step=7, num_steps=1, gradient_accumulation_steps=3, num_processes=2, process_index=1
        )
        size, b = 24, 4
        assert list(sampler) == [range(7 * size + (a * 2 + 1) * b, 7 * size + (a * 2 + 2) * b) for a in range(3)]
        assert sampler.global_batch_size == size

    def test_processes_change_no_micro_batch(self):
        """Two processes with two micro-steps see, together, what one process sees with four."""
        one = list(PositionSampler(4, num_steps=1, gradient_accumulation_steps=4))
        two = [
            list(PositionSampler(4, num_steps=1, gradient_accumulation_steps=2, num_processes=2, process_index=r))
            for r in (0, 1)
        ]
        assert one == [two[0][0], two[1][0], two[0][1], two[1][1]]

    def test_no_end(self):
        sampler = iter(PositionSampler(2))
        assert [next(sampler) for _ in range(3)] == [range(0, 2), range(2, 4), range(4, 6)]
