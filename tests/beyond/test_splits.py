"""Faces that look alike stand on one side of the split."""
import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
from beyond.augmentation import AffineBatchIterator, PRESETS
from beyond.splits import LookalikeSplit, descriptors, lookalikes
from scipy import ndimage

PEOPLE, FRAMES = 12, 5


@pytest.fixture(scope='module')
def album():
    """Twelve patterns in five frames each, shuffled: moved and turned a little, in other light."""
    random = np.random.RandomState(0)
    patterns = ndimage.gaussian_filter(random.rand(PEOPLE, 96, 96), (0, 4, 4))
    patterns = (patterns - patterns.min()) / np.ptp(patterns)
    who = random.permutation(np.repeat(np.arange(PEOPLE), FRAMES))
    X = patterns[who][:, None].astype(np.float32)
    y = (np.array([-.35, -.2, .35, -.2, 0, .1, 0, .4]) + random.normal(0, .02, (PEOPLE, 8)))[who]
    move = AffineBatchIterator(1, **dict(PRESETS['faces'], flip=0, shear=(0, 0), stretch=(1, 1)))
    X, y = move.transform(X, y.astype(np.float32))
    light = random.uniform(.5, 1, (len(who), 1, 1, 1)), random.uniform(0, .3, (len(who), 1, 1, 1))
    y[::3, 4:6] = np.nan
    return (X * light[0] + light[1]).astype(np.float32), y, who


def test_groups_are_people(album):
    X, y, who = album
    groups = lookalikes(X, y)
    assert len(set(groups)) == PEOPLE
    assert len(set(zip(groups, who))) == PEOPLE


def test_nobody_is_on_both_sides(album):
    X, y, who = album
    numbered = np.column_stack([y, who])
    X_train, X_valid, y_train, y_valid = LookalikeSplit(.25)(X, y, None)
    sides = [{int(who[row]) for row in range(len(X)) for image in side
              if np.array_equal(X[row], image)} for side in (X_train, X_valid)]
    assert sides[0] | sides[1] == set(range(PEOPLE)) and not sides[0] & sides[1]
    assert len(X_valid) == len(y_valid) == 15 and len(y_train) == 45
    again = LookalikeSplit(.25)(X, numbered[:, :8], None)
    assert np.array_equal(again[1], X_valid)  # the same faces each time
    none = LookalikeSplit(0)(X, y, None)
    assert len(none[0]) == 60 and len(none[1]) == len(none[3]) == 0


def test_what_cannot_be_split(album):
    X, y, _ = album
    with pytest.raises(ValueError, match='1 groups of lookalikes: too few'):
        LookalikeSplit(.5, distance=2)(X, y, None)
    with pytest.raises(ValueError, match='0 to 0.5'):
        LookalikeSplit(.7)


def test_light_does_not_matter(album):
    X, y, _ = album
    bright = descriptors(X[:5] * .5 + .2, y[:5])
    correlations = (bright * descriptors(X[:5], y[:5])).sum(axis=1)
    assert correlations.min() > .97
    assert np.isfinite(descriptors(X[:5] * 0, y[:5])).all()  # faces without a face
