"""Is one row of the transfer table better than another, or is it noise? Paired comparison by bootstrap over seeds and
test images.

Both rows are tested on the same images, and trained with the same seeds: each resample draws the same images and seeds
for both, so that an image that is hard for every network moves neither. Source: Efron and Tibshirani, "An introduction
to the bootstrap", 1993, chapter 13 (percentile interval) and section 8.4 (paired samples).

Letters in shapes: N test images, S resamples, n seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UserError
from tutelage.tasks.evidence import Evidence
from tutelage.training.evaluate import KeptEvidence

_CELLS = 2**22
"""Numbers of a block of resamples that is computed at once."""
_NORMAL = 1.959964
"""The 97.5% point of the normal distribution."""
_STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)
"""The 97.5% points of Student's distribution with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Comparison:
    """A difference between two rows of one column.

    Attributes:
        difference: the first row's figure less the second's, each a mean over seeds, in the figure's unit.
        low, high: the 95% interval of the difference.
        seeds: over how many seeds; with 1, the interval knows of the test images alone, not of how much another seed
            would change.
        images: over how many test images; 0: over the seeds alone.
    """

    difference: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero. Otherwise the difference is inside the noise."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """One row's figure with one seed.

    Attributes:
        value: on the test images as they are.
        draws: float64 [S], on the images of every resample; None where the images are not resampled.
    """

    value: float
    draws: NDArray[np.float64] | None = None


class Resampling:
    """Test images drawn again, with replacement, the same for every row of a column.

    Args:
        images: N.
        seed: of the draws; equal arguments give equal draws.
        resamples: S.
    """

    def __init__(self, images: int, seed: int = 0, resamples: int = 1000) -> None:
        random = np.random.default_rng([seed, images, 1])
        draws = (random.integers(0, images, images) for _ in range(resamples)) if images else iter(())
        self.counts = np.zeros((resamples, images), np.uint16)
        """[S,N]: how often a resample holds an image."""
        for row, draw in zip(self.counts, draws, strict=False):
            row[:] = np.bincount(draw, minlength=images)

    def figure(self, evidence: Evidence, name: str) -> Resampled:
        """One figure in every resample.

        Args:
            evidence: of N images.
            name: one of its figures.
        """
        whole = evidence.figure(name, np.ones((1, len(evidence))))
        parts = [evidence.figure(name, block) for block in self._blocks()]
        return Resampled(float(whole[0]), np.concatenate(parts) if parts else np.zeros(0))

    def _blocks(self) -> Iterator[NDArray[np.float64]]:
        step = max(1, _CELLS // max(1, self.counts.shape[1]))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step].astype(np.float64)


def check_same_images(tests: Sequence[KeptEvidence]) -> None:
    """Raises UserError unless all tests are of the same images in the same order."""
    for test in tests[1:]:
        if test.ids != tests[0].ids:
            odd = sorted(set(test.ids) ^ set(tests[0].ids))
            raise UserError(
                "the rows were not tested on the same images, so they cannot be compared image by image",
                record=odd[0] if odd else None,
                value=f"{len(tests[0].ids)} and {len(test.ids)} images, {len(odd)} of them in one row only",
                fix="test all rows on one test part",
            )


def difference(
    row: Sequence[Resampled], other: Sequence[Resampled], images: int = 0, seed: int = 0, resamples: int = 1000
) -> Comparison:
    """Row less other from figures that were resampled together.

    In each resample the images are drawn first, and give every seed's difference and their mean. Then as many seeds are
    drawn, with replacement, as there are, and the deviation of their mean is added, with two corrections (simulated
    with 2 to 5 seeds: the intervals hold the true difference in 92% to 97% of cases, without them in 54% to 99%):

    - two or three seeds drawn again show too little of what they were drawn from: `stretch`;
    - seeds differ also because a test set is finite. This part is in the resampled images already; by how much it is
      known from them, and the deviation is shrunk by it, so that it is not counted twice.

    Args:
        row, other: one entry a seed, n of each; the n-th of both belong together.
        images: N, 0 where images were not resampled.
        seed: of the draws of seeds.
        resamples: S, where images were not resampled.

    Raises:
        ValueError: one seed and no resampled images: there is nothing to draw from.
    """
    n = len(row)
    values = np.array([a.value - b.value for a, b in zip(row, other, strict=True)])
    pairs = [(a.draws, b.draws) for a, b in zip(row, other, strict=True)]
    drawn = [a - b for a, b in pairs if a is not None and b is not None]
    if n < 2 and len(drawn) < n:
        raise ValueError("one seed says nothing about noise unless its test images are drawn again")
    each = np.stack(drawn, 1) if len(drawn) == n else np.broadcast_to(values, (resamples, n))
    each = each[np.isfinite(each).all(1)]  # a resample without anything to measure a figure on says nothing
    means = each.mean(1)
    if n > 1:
        chosen = np.random.default_rng([seed, n, 2]).integers(0, n, each.shape)
        deviation = (values - values.mean())[chosen].mean(1)
        means = means + _own_share(values, each) * stretch(n) * deviation
    low, high = np.percentile(means, [2.5, 97.5]) if len(means) else (math.nan, math.nan)
    return Comparison(float(values.mean()), float(low), float(high), n, images if len(drawn) == n else 0)


def _own_share(values: NDArray[np.float64], each: NDArray[np.float64]) -> float:
    """The share of the seeds' spread that would be there on endlessly many images: from [n] and [S,n], 0 to 1."""
    n, spread = len(values), float(values.var(ddof=1))
    if spread == 0 or not len(each):
        return 0.0
    of_images = float((each - each.mean(1, keepdims=True)).var(0).mean()) * n / (n - 1)
    return math.sqrt(max(0.0, 1 - of_images / spread))


def stretch(n: int) -> float:
    """What the deviations of n seeds that were drawn again are multiplied by; n is at least 2.

    The spread of resampled means is too small by sqrt((n - 1) / n), and it is taken for that of a normal distribution
    where it is Student's.
    """
    freedom = n - 1
    if freedom <= len(_STUDENT):
        point = _STUDENT[freedom - 1]
    else:  # Cornish and Fisher's expansion, off by less than 1e-3 from here on
        z = _NORMAL
        point = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        point += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return math.sqrt(n / freedom) * point / _NORMAL
