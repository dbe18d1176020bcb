"""What happens at the end of an epoch: the rate falls along a cosine, weights are averaged."""
from types import SimpleNamespace

import theano_today  # noqa: F401  (before theano)

import kfkd
import lasagne
import numpy as np
import pytest
import theano
from beyond.handlers import AverageWeights, CosineAnnealing
from beyond.layers import BatchNormLayer
from lasagne import layers
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from theano_today.nets.checkpoint import Checkpoint


def test_cosine():
    nn = SimpleNamespace(rate=theano.shared(np.float32(.2)), max_epochs=8)
    handler = CosineAnnealing('rate', .2, .04)
    values = []
    for epoch in range(1, 11):
        handler(nn, [dict(epoch=epoch)])
        values.append(float(nn.rate.get_value()))
    assert values[3] == pytest.approx(.12)  # half way
    assert values[1] == pytest.approx(.04 + .16 * (1 + .5 ** .5) / 2)  # cos(45 degrees)
    assert values[7:] == pytest.approx([.04] * 3)  # a second `fit` stays at `stop`
    assert np.all(np.diff(values[:8]) < 0)


class Weights:
    """As much of a net as handlers see that set its weights at the end."""
    def __init__(self, max_epochs):
        self.param = theano.shared(np.zeros(3, np.float32))
        self.layers_ = {'only': SimpleNamespace(get_params=lambda: [self.param])}
        self.max_epochs, self.on_training_finished = max_epochs, []

    def get_all_params(self):
        return [self.param]

    def get_all_params_values(self):
        return {'only': [self.param.get_value()]}

    def train(self, handlers, values, losses):
        history = []
        for epoch, (value, loss) in enumerate(zip(values, losses), 1):
            self.param.set_value(np.full(3, value, np.float32))
            history.append(dict(epoch=epoch, valid_loss=loss))
            for handler in handlers:
                handler(self, history)
        for handler in self.on_training_finished:
            handler(self, history)
        return self.param.get_value()[0]


def test_the_net_ends_with_the_mean_of_the_last_epochs():
    handlers = [AverageWeights(3), kfkd.EarlyStopping(10)]
    for start in 0, 10:  # a second training averages its own epochs only
        assert Weights(5).train(handlers, start + np.array([9, 9, 1, 2, 6]), [5, 1, 4, 3, 2]) == \
            start + 3
    # One that ends early has what EarlyStopping gives it.
    assert Weights(5).train(handlers, [9, 8, 1, 2], [5, 1, 4, 3]) == 8
    with pytest.raises(ValueError, match='at least one'):
        AverageWeights(0)


def small_net(handlers):
    lasagne.random.set_rng(np.random.RandomState(3))
    return NeuralNet(
        [(layers.InputLayer, dict(name='input', shape=(None, 6))),
         (layers.DenseLayer, dict(name='hidden', num_units=8)),
         (BatchNormLayer, dict(name='norm')),
         (layers.DenseLayer, dict(name='output', num_units=2, nonlinearity=None))],
        update_learning_rate=theano.shared(np.float32(.05)), update_momentum=.9, regression=True,
        batch_iterator_train=BatchIterator(8), train_split=TrainSplit(.25), max_epochs=6,
        on_epoch_finished=handlers, verbose=0)


class StopAfter:
    """Ctrl-C after some epochs."""
    not_in_checkpoint = True

    def __init__(self, epochs):
        self.epochs = epochs

    def __call__(self, nn, train_history):
        if len(train_history) == self.epochs:
            raise KeyboardInterrupt


def test_a_training_that_was_stopped_ends_in_the_same_bits(tmp_path):
    random = np.random.RandomState(5)
    X, y = random.rand(40, 6).astype(np.float32), random.rand(40, 2).astype(np.float32)
    weights = []
    for name, stops in ('whole', []), ('stopped', [4]):
        for stop in stops + [None]:
            own = [CosineAnnealing('update_learning_rate', .05, 0), AverageWeights(3),
                   kfkd.EarlyStopping(50)]
            net = small_net(own + [StopAfter(stop)] * (stop is not None))
            with theano.configparser.change_flags(cxx=''), \
                    Checkpoint(tmp_path / f'{name}.npz', net, every=0):
                net.fit(X, y)
        weights.append([param.get_value() for param in net.get_all_params()])
        assert [row['epoch'] for row in net.train_history_] == list(range(1, 7))
    for a, b in zip(*weights):
        assert np.array_equal(a, b)
    mean, variance = (net.layers_['norm'].mean.get_value(), net.layers_['norm'].variance.get_value())
    assert np.abs(mean).max() > .01 and np.abs(variance - 1).max() > .01  # they have been learned
