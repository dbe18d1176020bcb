"""Tiny nets for the tests of nolearn and of scikit-learn."""
import theano_today  # noqa: F401  (before theano)

from lasagne import nonlinearities
from lasagne.layers import Conv2DLayer, DenseLayer, InputLayer, MaxPool2DLayer
from nolearn.lasagne import BatchIterator, NeuralNet


def classifier(**kwargs):
    """A tiny net for `digits`, with settings in nolearn's legacy format."""
    settings = dict(
        layers=[('input', InputLayer), ('conv', Conv2DLayer), ('pool', MaxPool2DLayer),
                ('output', DenseLayer)],
        input_shape=(None, 1, 6, 6), conv_num_filters=2, conv_filter_size=(3, 3),
        pool_pool_size=(2, 2), output_num_units=3, output_nonlinearity=nonlinearities.softmax,
        update_learning_rate=.05, max_epochs=2,
        batch_iterator_train=BatchIterator(10), batch_iterator_test=BatchIterator(10))
    settings.update(kwargs)
    return NeuralNet(**settings)


def regressor(**kwargs):
    settings = dict(
        layers=[(InputLayer, {'shape': (None, 4)}), (DenseLayer, {'num_units': 1,
                                                                  'nonlinearity': None})],
        regression=True, update_learning_rate=.05, max_epochs=2)
    settings.update(kwargs)
    return NeuralNet(**settings)
