"""Data for tiny nets."""
import numpy as np
import pytest


@pytest.fixture(scope='module')
def digits():
    rng = np.random.RandomState(0)
    y = np.tile([0, 1, 2], 12).astype('int32')
    x = rng.standard_normal((36, 1, 6, 6)).astype('float32')
    x[np.arange(36), 0, y * 2] += 3
    return x, y


@pytest.fixture(scope='module')
def line():
    rng = np.random.RandomState(0)
    x = rng.standard_normal((40, 4)).astype('float32')
    return x, (x @ [[1], [2], [-1], [0]]).astype('float32')
