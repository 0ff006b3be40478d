"""The order of images: complete, random, the same from anywhere, without memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from tutelage.data.mixture import Mixture, mix, part_of, parts_of, shuffled
from tutelage.errors import UserError


class Counted:
    """As much of a dataset as a mixture looks at."""

    head, space, faults, in_files = None, None, (), False

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def labelled(self):
        return None


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
        taken, whole = parts_of([Counted("a", 50), Counted("b", 20)], {"a": share}, seed=1)
        assert len(whole) == 20
        assert len(set(taken.indices.tolist())) == len(taken) == round(50 * share)
        return set(taken.indices.tolist())

    assert part(0.2) < part(0.5) < part(0.9) < set(range(50))
    assert part(0.2) != set(range(10))
    assert len(part_of(Counted("a", 50), 0.001, seed=1)) == 1
    assert part_of(whole := Counted("a", 50), 1.0, seed=1) is whole


def test_shares_and_order_are_those_of_runs_that_are_under_way():
    sources = [Counted("a", 50), Counted("b", 20), Counted("c", 333)]
    parts = parts_of(sources, {"a": 0.3, "c": 0.1}, seed=5)
    mixture = Mixture(parts, seed=5)
    drawn = [(sources[k].name, parts[k].indices[i] if k != 1 else i) for k, i in map(mixture.at, range(8))]
    assert drawn == [("c", 314), ("b", 15), ("c", 108), ("a", 38), ("b", 4), ("a", 12), ("b", 2), ("c", 111)]


def test_a_share_is_rounded_up_and_not_past_it():
    for percent in range(1, 101):
        for count in (1, 7, 20, 100, 333):
            share = Fraction(percent, 100) * count
            assert len(part_of(Counted("a", count), percent / 100, seed=1)) == -(-share.numerator // share.denominator)


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
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="share"):
            part_of(Counted("a", 3), share, seed=0)


class Partly(Counted):
    """Every third image has a label."""

    head = "things"

    def labelled(self):
        return np.arange(0, self.count, 3)


def test_a_share_of_a_partly_labelled_source_is_of_its_labels_and_the_rest_a_pool():
    data, whole = Partly("a", 30), set(range(30))
    (taken,) = parts_of([data], {"a": 0.5}, seed=1)
    assert len(taken) == 5
    kept = {int(taken.whole.indices[i]) for i in taken.indices}
    assert kept < set(range(0, 30, 3))
    taken, rest = parts_of([data], {"a": 0.5}, seed=1, rest=True)
    assert {int(taken.whole.indices[i]) for i in taken.indices} == kept
    assert set(rest.whole.indices.tolist()) == whole - set(range(0, 30, 3))
    assert (taken.name, taken.head, rest.name, rest.head) == ("a", "things", "a", None)
    pool = Counted("b", 10)
    assert parts_of([pool], {}, seed=1, rest=True) == [pool]
    silent = Partly("a", 30)
    silent.labelled = lambda: np.arange(0)
    with pytest.raises(UserError, match="no image of a source has a label"):
        parts_of([silent], {}, seed=1)
    (rest,) = parts_of([silent], {}, seed=1, rest=True)
    assert len(rest) == 30


def test_both_parts_of_one_source_are_one_source_to_equal():
    labelled, rest = parts_of([Partly("a", 30)], {}, seed=1, rest=True)
    mixture = Mixture([labelled, Counted("b", 7), rest], mode="equal")
    drawn = Counter(mixture.at(n)[0] for n in range(2 * 30 * 7))
    assert drawn == {0: 70, 2: 140, 1: 210}
    assert "has been seen once after 60 images (a (labels) 10, b 7, a (no labels) 20)" in mixture.meaning()
