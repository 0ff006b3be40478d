"""The order of images: complete, random, the same from anywhere, without memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from tutelage.data.mixture import Mixture, mix, shuffled
from tutelage.errors import UserError


class Counted:
    """As much of a dataset as a mixture looks at."""

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count


def test_every_size_is_permuted():
    for size in [*range(1, 200), 1000, 1024, 1025, 5000]:
        assert sorted(shuffled(i, size, 7) for i in range(size)) == list(range(size))


def test_permutations_are_random():
    """Every element goes everywhere alike; chi-square with 9 x 9 degrees of freedom, mean 81, standard deviation 13."""
    table = np.zeros((10, 10))
    for key in range(4000):
        for i in range(10):
            table[i, shuffled(i, 10, mix(3, key))] += 1
    assert ((table - 400) ** 2 / 400).sum() < 81 + 4 * 13


def test_neighbours_are_not_neighbours():
    steps = np.diff([shuffled(i, 10_000, 5) for i in range(10_000)])
    assert np.mean(np.abs(steps) < 100) < 0.04  # 2% by chance
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.05  # of independent positions: -1/2


def test_uniform_gives_every_image_once_an_epoch_in_another_order():
    mixture = Mixture([Counted("a", 5), Counted("b", 1), Counted("c", 31)], seed=3)
    epochs = [[mixture.at(n) for n in range(37 * e, 37 * (e + 1))] for e in range(3)]
    union = [(0, i) for i in range(5)] + [(1, 0)] + [(2, i) for i in range(31)]
    assert all(sorted(epoch) == union for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [Mixture(mixture.datasets, seed=4).at(n) for n in range(37)]
    assert len(mixture) == 37
    assert "37 images" in mixture.meaning()


def test_equal_draws_every_source_alike_and_each_without_repeats():
    mixture = Mixture([Counted("a", 4), Counted("b", 40)], mode="equal")
    drawn = [mixture.at(n) for n in range(80)]
    assert Counter(number for number, _ in drawn) == {0: 40, 1: 40}
    assert Counter(i for number, i in drawn if number == 0) == dict.fromkeys(range(4), 10)
    assert Counter(i for number, i in drawn if number == 1) == dict.fromkeys(range(40), 1)
    assert all(Counter(number for number, _ in drawn[k : k + 8]) == {0: 4, 1: 4} for k in range(0, 80, 8))
    assert "80 images" in mixture.meaning()


def test_a_replacement_is_of_the_same_group():
    mixture = Mixture([Counted("a", 4), Counted("b", 40), Counted("c", 9)], mode="equal")
    for n in range(30):
        assert mixture.instead(n, 0) == n
        assert all(mixture.at(mixture.instead(n, k))[0] == mixture.at(n)[0] for k in range(5))
    assert len({mixture.at(mixture.instead(1, k)) for k in range(20)}) > 10


def test_fractions_are_nested():
    def part(share):
        mixture = Mixture([Counted("a", 50), Counted("b", 20)], seed=1, fractions={"a": share})
        drawn = {mixture.at(n) for n in range(len(mixture))}
        assert len(drawn) == len(mixture) == 20 + round(50 * share)
        return {i for number, i in drawn if number == 0}

    assert part(0.2) < part(0.5) < part(1.0)
    assert part(0.2) != set(range(10))
    assert len(Mixture([Counted("a", 50)], fractions={"a": 0.001})) == 1


def test_memory_does_not_grow_with_the_images():
    tracemalloc.start()
    mixture = Mixture([Counted("a", 10**9), Counted("b", 3 * 10**8)], seed=1)
    drawn = [mixture.at(n) for n in (0, 10**9, 10**12)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(drawn)) == 3
    assert peak < 20_000


def test_what_is_wrong_is_said():
    with pytest.raises(UserError, match="no source"):
        Mixture([])
    with pytest.raises(UserError, match="no images") as error:
        Mixture([Counted("a", 3), Counted("b", 0)])
    assert error.value.record == "b"
    with pytest.raises(UserError, match="not there"):
        Mixture([Counted("a", 3)], fractions={"b": 0.5})
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="share"):
            Mixture([Counted("a", 3)], fractions={"a": share})
