"""What the monitors record is what happened: checked by hand, by finite differences, by weights."""
import copy
import json
import pickle

import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from beyond import monitors
from beyond.monitors import (
    ActivationMonitor, GradientMonitor, UpdateMonitor, describe, norm, samples, series, verdict)
from lasagne import layers
from lasagne.nonlinearities import softmax, tanh
from matplotlib import pyplot
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from sklearn.base import clone


class Noisy(BatchIterator):
    """An iterator that changes its batches at random, as augmentation does."""
    def transform(self, Xb, yb):
        return Xb + self.random.normal(0, .01, Xb.shape).astype(Xb.dtype), yb


def data(n=120, classes=False):
    random = np.random.RandomState(0)
    X = random.rand(n, 1, 8, 8).astype(np.float32)
    y = X[:, 0, :2, :2].reshape(n, 4) - X[:, 0, 3:5, 3:5].reshape(n, 4)
    return X, y.argmax(axis=1).astype(np.int32) if classes else y


def small_net(max_epochs=3, **settings):
    lasagne.random.set_rng(np.random.RandomState(1))
    return NeuralNet(**dict(dict(
        layers=[('input', layers.InputLayer), ('conv', layers.Conv2DLayer),
                ('drop', layers.DropoutLayer), ('hidden', layers.DenseLayer),
                ('output', layers.DenseLayer)],
        input_shape=(None, 1, 8, 8), conv_num_filters=5, conv_filter_size=3, drop_p=.3,
        hidden_num_units=9, hidden_nonlinearity=tanh, output_num_units=4,
        output_nonlinearity=None, update_learning_rate=.05, update_momentum=.9, regression=True,
        batch_iterator_train=Noisy(32), batch_iterator_test=BatchIterator(32),
        train_split=TrainSplit(.2), max_epochs=max_epochs), **settings))


class Recorder:
    """All weights after each batch, by parameter."""
    def __init__(self, net):
        self.weights = []
        net.on_training_started.append(self)
        net.on_batch_finished.append(self)

    def __call__(self, nn, train_history):
        self.weights.append({monitors.param_name(name, param): param.get_value()
                             for name in nn.layers_ for param in nn.layers_[name].get_params()})


@pytest.fixture(scope='module')
def monitored():
    """A net trained with three monitors, every other batch, and all its weights on the way."""
    net = small_net(objective_l2=1e-3)
    recorder = Recorder(net)
    attached = [monitor.attach(net) for monitor in (
        ActivationMonitor(every=2), GradientMonitor(every=2), UpdateMonitor(every=2))]
    net.fit(*data())
    return net, recorder.weights, attached


def test_samples_are_where_they_should_be(monitored):
    net, weights, _ = monitored
    assert len(weights) == 1 + 3 * 3  # three batches an epoch
    for name in 'activations', 'gradients', 'updates':
        found = samples(net.train_history_, name)
        assert [sample['batch'] for sample in found] == [1, 3, 5, 7, 9]
        np.testing.assert_allclose([sample['epoch'] for sample in found],
                                   [1 / 3, 1, 5 / 3, 7 / 3, 3])
        assert [len(row[name]) for row in net.train_history_] == [2, 1, 2]
    epoch, ratio = series(net.train_history_, 'updates', 'conv.W', 'ratio')
    assert len(epoch) == len(ratio) == 5 and (ratio > 0).all()


def test_updates_are_the_weights_real_differences(monitored):
    net, weights, _ = monitored
    for sample in samples(net.train_history_, 'updates'):
        before, after = weights[sample['batch'] - 1], weights[sample['batch']]
        assert set(sample['layers']) == set(before)
        for name, numbers in sample['layers'].items():
            difference = after[name].astype(float) - before[name]
            expected = dict(
                max_weight=np.abs(before[name]).max(), mean_weight=np.abs(before[name]).mean(),
                max_update=np.abs(difference).max(), mean_update=np.abs(difference).mean())
            if before[name].any():
                expected['ratio'] = np.sqrt((difference ** 2).sum() / (before[name] ** 2.).sum())
            assert set(numbers) == set(expected)
            for number, value in expected.items():
                assert numbers[number] == pytest.approx(value, rel=1e-4, abs=1e-8), (name, number)


def test_training_is_the_same_as_without_monitors(monitored):
    net = small_net(objective_l2=1e-3)
    recorder = Recorder(net)
    net.fit(*data())
    for name, values in recorder.weights[-1].items():
        np.testing.assert_array_equal(values, monitored[1][-1][name], err_msg=name)


def forward(weights, X):
    """The net without dropout, in NumPy and float64."""
    windows = np.lib.stride_tricks.sliding_window_view(X[:, 0].astype(float), (3, 3), axis=(1, 2))
    conv = np.einsum('nijkl,fkl->nfij', windows, weights['conv.W'][:, 0, ::-1, ::-1])
    conv = np.maximum(conv + weights['conv.b'][:, None, None], 0)
    hidden = np.tanh(conv.reshape(len(X), -1) @ weights['hidden.W'] + weights['hidden.b'])
    return {'conv': conv, 'hidden': hidden,
            'output': hidden @ weights['output.W'] + weights['output.b']}


def test_activations_are_those_of_numpy(monitored):
    net, weights, _ = monitored
    X, y = data()
    iterator = Noisy(32)
    for _ in range(2):  # the first is that of the training
        probe = iterator.transform(X[24:24 + 32], None)[0]  # the first fifth is for validation
    first = samples(net.train_history_, 'activations')[0]['layers']
    for name, values in forward(weights[1], probe).items():
        numbers = first[name]
        assert numbers['mean'] == pytest.approx(values.mean(), abs=1e-5)
        assert numbers['std'] == pytest.approx(values.std(), abs=1e-5)
        assert numbers['zeros'] == pytest.approx((np.abs(values) <= 1e-3).mean(), abs=.002)
        np.testing.assert_allclose(numbers['quantiles'], np.quantile(values, monitors.QUANTILES),
                                   atol=1e-4)
        assert sum(numbers['histogram']['counts']) == values.size
    dead = (forward(weights[1], probe)['conv'].max(axis=(0, 2, 3)) <= 0).mean()
    assert first['conv']['dead'] == pytest.approx(dead)
    assert 'saturated' in first['hidden'] and 'saturated' not in first['output']


def loss_in_numpy(weights, X, y):
    penalty = sum((weights[name].astype(float) ** 2).sum() for name in weights if name[-1] == 'W')
    return ((forward(weights, X)['output'] - y) ** 2).mean() + 1e-3 * penalty


def test_gradients_are_theanos_and_finite_differences():
    net = small_net(objective_l2=1e-3, drop_p=0)
    X, y = data(40)
    monitor = GradientMonitor(batch=(X, y))
    recorder = Recorder(net)
    kept = []
    describe_ = monitors.describe
    monitor.attach(net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitors, 'describe',
                      lambda values, **kwargs: kept.append(values) or describe_(values, **kwargs))
        net.fit(X, y, epochs=1)
    weights = recorder.weights[1]  # those after the first batch, where the sample is taken
    numbers = samples(net.train_history_, 'gradients')[0]['layers']
    assert list(numbers) == ['conv.W', 'conv.b', 'hidden.W', 'hidden.b', 'output.W', 'output.b']

    params = [param for layer in net.layers_.values() for param in layer.get_params()]
    target = T.matrix()
    loss = ((lasagne.layers.get_output(net.layers_['output'], deterministic=True) - target) ** 2
            ).mean() + 1e-3 * sum((param ** 2).sum() for param in params if param.ndim > 1)
    values = dict(zip(numbers, kept))
    by_hand = theano.function([net.layers_['input'].input_var, target], theano.grad(loss, params))
    for param, value in zip(params, weights.values()):
        param.set_value(value)
    for name, gradient in zip(numbers, by_hand(X, y)):
        np.testing.assert_allclose(values[name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)
        assert numbers[name]['norm'] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)

    random = np.random.RandomState(2)
    for name in weights:
        direction = random.normal(size=weights[name].shape)
        step = 1e-6  # few ReLUs have their kink in so short a way
        up, down = (loss_in_numpy(dict(weights, **{name: weights[name] + sign * step * direction}),
                                  X, y) for sign in (1, -1))
        slope = (values[name] * direction).sum()
        assert (up - down) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-5), name


def test_gradients_of_outputs():
    net = small_net(drop_p=0, max_epochs=1)
    X, y = data(40)
    GradientMonitor(batch=(X, y), of='outputs', layers=['hidden', 'output']).attach(net)
    recorder = Recorder(net)
    net.fit(X, y)
    numbers = samples(net.train_history_, 'gradients')[0]['layers']
    outputs = forward(recorder.weights[1], X)
    by_output = 2 * (outputs['output'] - y) / y.size
    by_hidden = by_output @ recorder.weights[1]['output.W'].T
    assert numbers['output']['norm'] == pytest.approx(np.linalg.norm(by_output), rel=1e-4)
    assert numbers['hidden']['norm'] == pytest.approx(np.linalg.norm(by_hidden), rel=1e-4)
    assert numbers['hidden']['std'] == pytest.approx(by_hidden.std(), rel=1e-3)


def test_second_fit_starts_clean_clones_and_pickles(monitored):
    net = copy.deepcopy(monitored[0])
    twin = clone(monitored[0])
    assert len(twin.on_batch_finished) == 4  # the recorder and three monitors, once each
    handler = twin.on_batch_finished[-1].__self__
    assert isinstance(handler, UpdateMonitor) and handler in [
        getattr(other, '__self__', None) for other in twin.on_epoch_finished]
    net = pickle.loads(pickle.dumps(monitored[0]))
    assert net.train_history_ == monitored[0].train_history_
    assert len(pickle.dumps(monitored[2][0])) < 500
    json.dumps([row['updates'] for row in net.train_history_])

    monitored[2][1].on_training_started(net, net.train_history_)
    assert monitored[2][1].batches == 0


def test_classifier_with_label_encoder():
    X, y = data(classes=True)
    net = small_net(regression=False, output_nonlinearity=softmax, use_label_encoder=True,
                    max_epochs=1)
    GradientMonitor(every=1).attach(net)
    net.fit(X, np.array(list('abcd'))[y])
    assert len(samples(net.train_history_, 'gradients')) == 3


def test_describe_and_norm():
    numbers = describe(np.array([[1, -2], [0, np.inf]], 'f4'), near_zero=.1)
    assert not numbers['finite'] and 'quantiles' not in numbers
    numbers = describe(np.random.RandomState(0).normal(size=(300, 1000)).astype('f4'), .1)
    assert sum(numbers['histogram']['counts']) == monitors.SUBSET
    np.testing.assert_allclose(numbers['quantiles'], [-1.645, -.674, 0, .674, 1.645], atol=.04)
    assert norm(np.full((3, 3), 2.)) == 6


def test_bad_settings():
    with pytest.raises(ValueError, match="'weights' or 'outputs'"):
        GradientMonitor(of='biases')
    with pytest.raises(ValueError, match='attach a monitor'):
        samples([{'epoch': 1}], 'activations')


# ---------------------------------------------------------------------------- verdicts, figures

def history(losses=None, **numbers):
    """A history whose monitors have seen the same numbers in each of 20 epochs."""
    losses = .5 ** np.arange(20) if losses is None else losses
    return [dict({name: [dict(epoch=i + 1, batch=i, layers=layers)]
                  for name, layers in numbers.items()}, epoch=i + 1, train_loss=loss)
            for i, loss in enumerate(losses)]


def layer(**numbers):
    return dict(dict(mean=0., std=1., max=1., zeros=0., finite=True, norm=1.), **numbers)


@pytest.mark.parametrize('word, numbers', [
    ('vanishing', dict(gradients={'a.W': layer(norm=1e-6), 'b.W': layer(norm=1e-2)})),
    ('vanishing', dict(gradients={'a.W': layer(norm=0), 'b.W': layer(norm=0)})),
    ('exploding', dict(gradients={'a.W': layer(finite=False), 'b.W': layer()})),
    ('exploding', dict(updates={'a.W': dict(ratio=.5)})),
    ('standing still', dict(updates={'a.W': dict(ratio=1e-7)})),
    ('saturated', dict(activations={'a': layer(saturated=.8), 'b': layer()})),
    ('dead ReLUs', dict(activations={'a': layer(), 'b': layer(dead=.8)})),
    ('silent', dict(activations={'a': layer(), 'b': layer(std=1e-4)})),
    ('plateau', dict(losses=[.5] * 20)),
    ('exploding', dict(losses=[.5] * 19 + [np.nan])),
])
def test_verdicts(word, numbers):
    [line] = verdict(history(**numbers))
    assert line.startswith(word + ':') and any(character.isdigit() for character in line)


def test_verdict_of_health(monitored):
    healthy = dict(activations={'a': layer(dead=.1, saturated=.1)},
                   updates={'a.W': dict(ratio=1e-3)},
                   gradients={'a.W': layer(norm=.2), 'b.W': layer()})
    [line] = verdict(history(**healthy))
    assert line.startswith('Nothing vanishes')
    assert verdict(monitored[0].train_history_)


def test_a_dead_net_is_found_out():
    """Biases far below zero kill every ReLU; the monitors of a real training say so."""
    net = small_net(conv_b=lasagne.init.Constant(-50), max_epochs=1)
    ActivationMonitor().attach(net)
    net.fit(*data())
    assert any('dead ReLUs: 100% of the units of conv' in line
               for line in verdict(net.train_history_))


def test_figures(monitored):
    found = monitored[0].train_history_
    figures = [monitors.plot_activations(found), monitors.plot_gradients(found),
               monitors.plot_updates(found), monitors.plot_updates(found, 'hidden.W'),
               monitors.plot_histograms(found), monitors.plot_histograms(found, 'gradients', [1])]
    for fig in figures:
        for axis in fig.axes:
            assert axis.get_xlabel()
        fig.canvas.draw()
        pyplot.close(fig)
    lines = {line.get_label(): line for line in figures[1].axes[0].lines}
    np.testing.assert_allclose(lines['hidden.W'].get_ydata(),
                               series(found, 'gradients', 'hidden.W', 'norm')[1])
    assert set(lines) == {'conv.W', 'hidden.W', 'output.W'}
    with pytest.raises(ValueError, match='conv9.W is not among'):
        monitors.plot_updates(found, 'conv9.W')
