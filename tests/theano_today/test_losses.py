"""The same seed gives the same losses on every Python and NumPy.

The expected losses are those of Python 3.11 with NumPy 1.26.4 and the engine off: Theano as it was
written.
"""
import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pytest
import theano
from lasagne import layers
from nolearn.lasagne import BatchIterator, NeuralNet

EXPECTED = [
    (1.081616461277008, 1.0273711681365967),
    (1.021269178390503, 1.0135557651519775),
    (1.0109494805336, 1.014169454574585),
]


@pytest.mark.parametrize('engine', [True, False])
def test_losses(engine):
    try:
        if not engine:
            theano_today.cpu.disable()
        np.testing.assert_allclose(losses(), EXPECTED, rtol=1e-6)
    finally:
        theano_today.cpu.enable()


def losses():
    np.random.seed(1)
    lasagne.random.set_rng(np.random.RandomState(3))
    random = np.random.RandomState(0)
    X = random.rand(200, 1, 24, 24).astype('float32')
    y = np.stack([X[:, 0, :12].mean((1, 2)), X[:, 0, 12:].std((1, 2))], 1).astype('float32')
    y = (y - y.mean(0)) / y.std(0)
    net = NeuralNet(
        layers=[('input', layers.InputLayer), ('conv1', layers.Conv2DLayer),
                ('pool1', layers.MaxPool2DLayer), ('dropout1', layers.DropoutLayer),
                ('conv2', layers.Conv2DLayer), ('pool2', layers.MaxPool2DLayer),
                ('hidden', layers.DenseLayer), ('dropout2', layers.DropoutLayer),
                ('output', layers.DenseLayer)],
        input_shape=(None, 1, 24, 24), conv1_num_filters=8, conv1_filter_size=(3, 3),
        pool1_pool_size=(2, 2), dropout1_p=.1, conv2_num_filters=8, conv2_filter_size=(2, 2),
        pool2_pool_size=(2, 2), hidden_num_units=50, dropout2_p=.5, output_num_units=2,
        output_nonlinearity=None, regression=True,
        update_learning_rate=theano.shared(np.float32(.02)),
        update_momentum=theano.shared(np.float32(.9)),
        batch_iterator_train=BatchIterator(128), max_epochs=len(EXPECTED))
    net.fit(X, y)
    return [(row['train_loss'], row['valid_loss']) for row in net.train_history_]
