"""Batch normalisation and points from heat maps, against NumPy, SciPy and Theano's own Op."""
import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from beyond.layers import BatchNormLayer, ExpectedPositionLayer
from lasagne import layers
from scipy.special import softmax

SHAPE = 6, 3, 5, 4


def value(graph):
    return theano.function([], graph, mode='FAST_COMPILE')()


@pytest.fixture(scope='module')
def norm():
    """A layer whose parameters are no zeros and ones, and functions of it by name."""
    random = np.random.RandomState(0)
    beta, gamma, mean, variance = random.uniform(.5, 1.5, (4, 3)).astype(np.float32)
    layer = BatchNormLayer(layers.InputLayer((None,) + SHAPE[1:]), alpha=.25, epsilon=.01, beta=beta,
                           gamma=gamma, mean=mean, variance=variance)
    x, weight = T.tensor4(), T.tensor4()
    y = layers.get_output(layer, x)
    wrt = [x, layer.gamma, layer.beta]
    return layer, {
        'train': theano.function([x, weight], [y] + T.grad((weight * y).sum(), wrt),
                                 mode='FAST_COMPILE'),
        'use': theano.function([x], layers.get_output(layer, x, deterministic=True),
                               mode='FAST_COMPILE')}


def test_batch_norm_in_training_agrees_with_theanos_op(norm):
    layer, functions = norm
    random = np.random.RandomState(1)
    x = random.normal(3, 2, SHAPE).astype(np.float32)
    weight = random.normal(size=SHAPE).astype(np.float32)
    ours = functions['train'](x, weight)
    X, gamma, beta = T.tensor4(), T.vector(), T.vector()
    y, _, _ = T.nnet.bn.batch_normalization_train(X, gamma, beta, 'spatial', epsilon=.01)
    theirs = theano.function([X, gamma, beta], [y] + T.grad((weight * y).sum(), [X, gamma, beta]),
                             mode='FAST_COMPILE')(
        x, layer.gamma.get_value(), layer.beta.get_value())
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_running_averages_change_in_training_alone(norm):
    layer, functions = norm
    x = np.random.RandomState(2).normal(3, 2, SHAPE).astype(np.float32)
    before = layer.mean.get_value(), layer.variance.get_value()
    functions['train'](x, x)
    after = layer.mean.get_value(), layer.variance.get_value()
    for old, new, batch in zip(before, after, (x.mean((0, 2, 3)), x.var((0, 2, 3)))):
        np.testing.assert_allclose(new, .75 * old + .25 * batch, rtol=1e-4)
    y = functions['use'](x)
    for channel in range(3):
        expected = (x[:, channel] - after[0][channel]) / np.sqrt(after[1][channel] + .01)
        np.testing.assert_allclose(y[:, channel], expected * layer.gamma.get_value()[channel]
                                   + layer.beta.get_value()[channel], rtol=1e-4, atol=1e-5)
    assert np.array_equal(layer.mean.get_value(), after[0])
    assert layers.get_all_params(layer, trainable=True) == [layer.beta, layer.gamma]
    assert layers.get_all_params(layer, regularizable=True) == [layer.gamma]


def test_batch_norm_behind_a_dense_layer_averages_over_the_batch():
    layer = BatchNormLayer((None, 7))
    x = np.random.RandomState(3).normal(3, 2, (50, 7)).astype(np.float32)
    y = value(layer.get_output_for(theano.shared(x)))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)


@pytest.mark.parametrize('layer, arguments, words', [
    (BatchNormLayer, dict(incoming=(None, None, 3, 3)), 'number of channels'),
    (ExpectedPositionLayer, dict(incoming=(None, 8), num_units=4), 'needs maps'),
    (ExpectedPositionLayer, dict(incoming=(None, 8, 3, 3), num_units=3), 'even number'),
])
def test_shapes_that_do_not_go(layer, arguments, words):
    with pytest.raises(ValueError, match=words):
        layer(**arguments)


def test_expected_positions_are_means_over_the_softmax():
    random = np.random.RandomState(4)
    x = random.normal(size=SHAPE).astype(np.float32)
    layer = ExpectedPositionLayer((None,) + SHAPE[1:], 4, W=lasagne.init.Normal(2.))
    assert layer.output_shape == (None, 4)
    found = value(layer.get_output_for(theano.shared(x)))
    maps = np.einsum('nchw,cp->nphw', x, layer.W.get_value())
    share = softmax(maps, axis=(2, 3))
    across = (np.arange(4) + .5) / 4 * 2 - 1  # middles of the columns
    down = (np.arange(5) + .5) / 5 * 2 - 1
    expected = np.stack([share.sum(2) @ across, share.sum(3) @ down], axis=2).reshape(6, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sharp_map_is_at_its_cell():
    x = np.zeros((1, 1, 12, 12), np.float32)
    x[0, 0, 3, 8] = 50
    layer = ExpectedPositionLayer((None, 1, 12, 12), 2, W=np.ones((1, 1), np.float32))
    # Cells of 8 pixels of a face of 96: the middle of the ninth is at 68, that of the fourth at 28.
    np.testing.assert_allclose(value(layer.get_output_for(theano.shared(x)))[0] * 48 + 48, [68, 28],
                               rtol=1e-5)
