"""Differences and their intervals: against a slow plain bootstrap, the binomial distribution, and known coverage."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from tutelage.errors import UserError
from tutelage.tasks.evidence import Hits, PixelCounts
from tutelage.training.evaluate import KeptEvidence
from tutelage.transfer.statistics import Resampled, Resampling, check_same_images, difference, stretch


def _hits(first):
    first = np.asarray(first, bool)
    return Hits(first, first, np.zeros(len(first), np.int32), np.array(2))


def _row(*seeds):
    return {n: KeptEvidence(tuple(f"{i}" for i in range(len(s))), _hits(s)) for n, s in enumerate(seeds)}


def compare(row, other, name, seed=0, resamples=1000):
    """Row less other, of the evidence of each by seed, as the report puts it together."""
    tests = [*row.values(), *other.values()]
    check_same_images(tests)
    images = Resampling(len(tests[0].ids), seed, resamples)
    mine, theirs = ([images.figure(test.evidence, name) for test in side.values()] for side in (row, other))
    return difference(mine, theirs, len(tests[0].ids), seed)


def _slow(row, other, images, resamples):
    """The same in plain Python, from the same draws: (low, high)."""
    n = len(row)
    counts = Resampling(images, 0, resamples).counts
    chosen = np.random.default_rng([0, n, 2]).integers(0, n, (resamples, n))

    def share(hits, weights):
        return 100 * sum(int(h) * int(w) for h, w in zip(hits, weights, strict=True)) / sum(map(int, weights))

    each = [[share(a, w) - share(b, w) for a, b in zip(row, other, strict=True)] for w in counts]
    plain = [share(a, [1] * images) - share(b, [1] * images) for a, b in zip(row, other, strict=True)]
    middle = sum(plain) / n
    spread = sum((d - middle) ** 2 for d in plain) / (n - 1)
    apart = [[d - sum(ds) / n for d in ds] for ds in each]
    of_images = 0.0
    for s in range(n):
        mine = [ds[s] for ds in apart]
        mean = sum(mine) / resamples
        of_images += sum((d - mean) ** 2 for d in mine) / resamples / n
    share_of_seeds = math.sqrt(max(0, 1 - of_images * n / (n - 1) / spread))
    factor = math.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1) / 1.959964 * share_of_seeds
    means = [sum(ds) / n + factor * sum(plain[k] - middle for k in ks) / n for ds, ks in zip(each, chosen, strict=True)]
    return np.percentile(means, [2.5, 97.5])


def test_the_interval_is_that_of_a_slow_plain_bootstrap():
    random = np.random.default_rng(1)
    hard = random.random(30)
    row, other = ([hard < p + 0.2 * random.random(30) for p in ps] for ps in ((0.4, 0.8, 0.5), (0.2, 0.3, 0.1)))
    found = compare(_row(*row), _row(*other), "top-1", resamples=200)
    assert found.difference == pytest.approx(100 * (np.mean(row) - np.mean(other)))
    assert (found.low, found.high) == pytest.approx(tuple(_slow(row, other, 30, 200)), rel=1e-5)
    assert (found.seeds, found.images) == (3, 30)


def test_one_rows_share_has_the_binomial_interval():
    right = np.arange(400) < 100
    found = compare(_row(right), _row(np.zeros(400, bool)), "top-1", resamples=4000)
    half = 100 * 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.difference == 25
    assert (found.low, found.high) == pytest.approx((25 - half, 25 + half), abs=0.4)
    assert (found.seeds, found.images, found.clear) == (1, 400, True)


def test_pairing_takes_out_what_is_hard_for_both():
    random = np.random.default_rng(0)
    base = random.random(500) < 0.5
    better = base | (np.arange(500) % 25 == 0)  # right where the other is, and on a few more
    alone = random.permutation(better)
    paired, loose = (compare(_row(row), _row(base), "top-1") for row in (better, alone))
    assert paired.difference == pytest.approx(loose.difference)
    assert paired.clear
    assert not loose.clear
    assert paired.high - paired.low < (loose.high - loose.low) / 3
    same = compare(_row(base), _row(base), "top-1")
    assert (same.difference, same.low, same.high, same.clear) == (0, 0, 0, False)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("own", "common", "both"), [(0.0, 0.5, 0.5), (0.1, 0.5, 0.5), (0.1, 0.1, 0.1)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, own, common, both):
    """Figures that are means over images of: an effect of the seed, one of the image, and one of both together."""
    random, held, worlds, images = np.random.default_rng(3), 0, 300, 100
    weights = random.multinomial(images, np.full(images, 1 / images), 200) / images
    for world in range(worlds):
        values = random.normal(0, own, (seeds, 1)) + random.normal(0, common, images)
        values = values + random.normal(0, both, (seeds, images))
        row = [Resampled(float(v.mean()), weights @ v) for v in values]
        found = difference(row, [Resampled(0.0, np.zeros(200))] * seeds, images, seed=world)
        held += found.low <= 0 <= found.high
    assert 0.88 <= held / worlds <= 0.985


def test_equal_arguments_give_equal_intervals_and_other_draws_others():
    random = np.random.default_rng(0)
    rows = [_row(*(random.random(50) < 0.5 for _ in range(2))) for _ in range(2)]
    assert compare(*rows, "top-1", seed=1) == compare(*rows, "top-1", seed=1)
    assert compare(*rows, "top-1", seed=1) != compare(*rows, "top-1", seed=2)


def test_other_images_are_refused():
    row, other = _row([1, 0, 1]), _row([1, 0, 0])
    other = {0: KeptEvidence(("0", "1", "9"), other[0].evidence)}
    with pytest.raises(UserError, match="not tested on the same images") as told:
        compare(row, other, "top-1")
    assert "2 of them in one row only" in str(told.value)
    swapped = {0: KeptEvidence(("1", "0", "2"), row[0].evidence)}
    with pytest.raises(UserError, match="not tested on the same images"):
        compare(row, swapped, "top-1")


def test_seeds_alone_have_students_interval():
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    found = difference([Resampled(v) for v in values], [Resampled(0.0)] * 5, resamples=20000)
    half = student.ppf(0.975, 4) * np.std(values, ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), abs=0.15)
    assert found.images == 0
    assert found.clear == (half < 2.5)
    with pytest.raises(ValueError, match="one seed"):
        difference([Resampled(1.0)], [Resampled(0.0)])


@pytest.mark.parametrize("n", [2, 3, 11, 12, 30])
def test_the_stretch_is_students(n):
    assert stretch(n) == pytest.approx(math.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1) / 1.959964, abs=2e-4)
    assert stretch(10000) == pytest.approx(1, abs=1e-3)


def test_resamples_without_a_figure_say_nothing():
    """Only one of two images has a labelled pixel: a quarter of the resamples has none at all."""
    one = np.ones(1, np.int64)
    counts = PixelCounts(np.zeros(1, np.int32), np.zeros(1, np.uint8), one, one, one, np.array(2), np.array(2))
    test = KeptEvidence(("a", "b"), counts)
    draws = Resampling(2).figure(counts, "mIoU").draws
    assert 0.15 < np.isnan(draws).mean() < 0.35
    found = compare({0: test}, {0: test}, "mIoU")
    assert (found.low, found.high) == (0, 0)
    blind = PixelCounts(*(a[:0] for a in (counts.image, counts.label, one, one, one)), np.array(2), np.array(2))
    nothing = {0: KeptEvidence(("a", "b"), blind)}
    assert not compare(nothing, nothing, "mIoU").clear
