"""Counter-based random numbers: the published vectors, any part alone, numba against numpy."""

import numpy as np
import pytest

from paring.kernels import random
from paring.kernels.random import cpu, reference

KEYS = np.array([random.key(0, "model", "tensor"), 2**64 - 1, 0], np.uint64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that come with Random123, for philox4x32-10
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_generator_is_philox(counter, key, expected):
    words = reference.philox(np.array(counter, np.uint64), np.array(key, np.uint64))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@pytest.mark.parametrize(
    ("start", "count"), [(0, 5000), (3, 1), (1, 4096), (2**34 + 6, 9999), (7, 0), (0, 0)]
)
def test_numba_makes_what_numpy_makes(start, count):
    found = cpu.uniform(KEYS, start, count)
    assert found.shape == (3, count)
    np.testing.assert_array_equal(found, reference.uniform(KEYS, start, count))


def test_a_part_is_a_part_of_the_whole():
    whole = random.uniform(KEYS, 0, 10_000)
    for start, stop in ((0, 1), (1, 3), (4097, 9_999)):
        np.testing.assert_array_equal(random.uniform(KEYS, start, stop - start), whole[:, start:stop])


def test_numbers_are_uniform_and_streams_independent():
    n = 1 << 18
    keys = np.array([random.key(seed, model, "w") for seed in (0, 1) for model in "ab"], np.uint64)
    found = random.uniform(keys, 0, n).astype(np.float64)
    assert found.min() >= 0 and found.max() < 1
    np.testing.assert_array_equal(found * 2**24, np.round(found * 2**24))
    counts = np.stack([np.histogram(row, 64, (0, 1))[0] for row in found])
    assert (np.abs(counts - n / 64) < 6 * np.sqrt(n / 64)).all()
    assert (np.abs(np.corrcoef(found) - np.eye(4)) < 6 / np.sqrt(n)).all()
    after = np.corrcoef(found[0, 1:], found[0, :-1])[0, 1]
    assert abs(after) < 6 / np.sqrt(n)


def test_keys_tell_apart_what_differs():
    keys = {
        random.key(*what)
        for what in ((0, "a", "bc"), (0, "ab", "c"), (1, "a", "bc"), (0, "abc"), (0, "a", "b", "c"))
    }
    assert len(keys) == 5
    # recipes must give the same models ever after
    assert random.key(0, "digest", "layers.0.weight") == 15390361468944103615
