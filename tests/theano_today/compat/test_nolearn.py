"""nolearn 0.6.1 does on today's Python what it was written to do, and its pickles are small."""
import copy
import os
import pickle

import theano_today  # noqa: F401  (before theano)

import numpy as np
import pandas
import pytest
import scipy.sparse
from lasagne import updates
from lasagne.layers import DenseLayer, InputLayer
from nolearn.lasagne import BatchIterator, NeuralNet, PrintLayerInfo, PrintLog, SaveWeights, TrainSplit
from nolearn.lasagne.handlers import RememberBestWeights, RestoreBestWeights, WeightLog
from nolearn_nets import classifier, regressor


@pytest.fixture(scope='module')
def fitted(digits, tmp_path_factory):
    """A net fitted with every handler of nolearn, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp('fitted')
    net = classifier(
        max_epochs=4, verbose=3, use_label_encoder=True,
        on_epoch_finished=[SaveWeights(str(folder / 'w-{epoch}.pickle'), every_n_epochs=2),
                           SaveWeights(str(folder / 'net.pickle'), pickle=True, only_best=True),
                           RememberBestWeights(verbose=1)],
        on_batch_finished=[WeightLog(str(folder / 'log.csv'), write_every=1)],
        on_training_finished=[RestoreBestWeights()])
    return net.fit(digits[0], np.array(['a', 'b', 'c'])[digits[1]]), folder


def compiled(net):
    """Names of the net's functions that have been compiled."""
    return {name for name in ('train_iter_', 'eval_iter_', 'predict_iter_')
            if getattr(vars(net).get(name), 'compiled', None) is not None}


def test_handlers(fitted, capsys):
    net, folder = fitted
    assert sorted(os.listdir(folder)) == [
        'log.csv', 'net.pickle', 'w-0002.pickle', 'w-0004.pickle']
    with open(folder / 'log.csv') as f:
        assert len(f.readlines()) == 1 + 4 * 3  # a header; 4 epochs of 27 faces in tens
    assert [row['epoch'] for row in net.train_history_] == [1, 2, 3, 4]
    best, = [handler for handler in net.on_epoch_finished if hasattr(handler, 'best_weights')]
    for layer, values in best.best_weights.items():
        for ours, theirs in zip(net.get_all_params_values()[layer], values):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('verbose, words', [
    (1, ['learnable parameters', 'conv', '2x4x4']), (2, ['cap.Y', 'magenta']),
    (3, ['filter Y', 'field X'])])
def test_layer_info(verbose, words, capsys):
    net = classifier(verbose=verbose)
    net.initialize()
    PrintLayerInfo()(net)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)
    assert compiled(net) == set()


def test_classification(fitted, digits):
    net, _ = fitted
    x, y = digits
    names = np.array(['a', 'b', 'c'])[y]
    assert net.score(x, names) > .8 and set(net.predict(x)) <= set('abc')
    probabilities = net.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(net.get_output('output', x), probabilities, rtol=1e-5)
    assert net.get_output('conv', x).shape == (36, 2, 4, 4)


def test_visualize(fitted, digits):
    from nolearn.lasagne import visualize
    plt = visualize.plt
    net, _ = fitted
    x, y = digits
    plt.close('all')  # plot_loss draws into the figure that is there
    try:
        visualize.plot_loss(net)
        lines = plt.gca().get_lines()
        assert [len(line.get_xdata()) for line in lines] == [4, 4]
        visualize.plot_conv_weights(net.layers_['conv'])
        assert len(plt.gcf().axes) == 4
        visualize.plot_conv_activity(net.layers_['conv'], x[:1])
        assert len(plt.gcf().axes) == 6
        visualize.plot_occlusion(net, x[:1], [y[0]], square_length=3)
        assert len(plt.gcf().axes) == 3
        visualize.plot_saliency(net, x[:2])
        assert len(plt.gcf().axes) == 6
    finally:
        plt.close('all')


def test_train_split(line, digits):
    """The fifth that nolearn held out with the KFold classes of 2015."""
    x, y = line
    _, x_valid, _, y_valid = TrainSplit(.2)(x, y, regressor())
    np.testing.assert_array_equal(x_valid, x[:8])
    np.testing.assert_array_equal(y_valid, y[:8])
    x, y = digits
    x_train, x_valid, _, y_valid = TrainSplit(.25)(x, y, classifier())
    assert len(x_train) == 27 and sorted(y_valid) == [0] * 3 + [1] * 3 + [2] * 3
    assert len(TrainSplit(0)(x, y, classifier())[1]) == 0
    _, x_valid, _, _ = TrainSplit(.25, stratify=False)(x, y, classifier())
    np.testing.assert_array_equal(x_valid, x[:9])


def test_save_and_load_params(fitted, digits, tmp_path):
    net, folder = fitted
    path = str(tmp_path / 'weights.pickle')
    net.save_params_to(path)
    for source in (path, net, net.get_all_params_values(), str(folder / 'net.pickle')):
        other = classifier()
        other.load_params_from(source)
        if source != str(folder / 'net.pickle'):
            np.testing.assert_allclose(other.predict_proba(digits[0]), net.predict_proba(digits[0]),
                                       rtol=1e-5)
        assert 'train_iter_' not in compiled(other)


# ------------------------------------------------------------------------ nolearn: pickles, clones

@pytest.mark.parametrize('copied', [
    lambda net: pickle.loads(pickle.dumps(net, -1)), copy.deepcopy,
    lambda net: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net, -1))))],
    ids=['pickle', 'deepcopy', 'pickle twice'])
def test_copies_compile_only_what_is_asked_of_them(copied, fitted, digits):
    net, _ = fitted
    other = copied(net)
    assert 'layers_' not in vars(other) and compiled(other) == set()
    assert other.train_history_ == net.train_history_
    assert other.update_learning_rate == net.update_learning_rate
    np.testing.assert_allclose(other.predict_proba(digits[0]), net.predict_proba(digits[0]),
                               rtol=1e-5)
    assert compiled(other) == {'predict_iter_'}


def test_fit_goes_on_after_loading(line):
    """Without momentum in the update rule, a net that was pickled half-way ends where others do."""
    straight = regressor(update=updates.sgd).fit(*line, epochs=2)
    paused = pickle.loads(pickle.dumps(straight))
    straight.fit(*line, epochs=2)
    paused.fit(*line, epochs=2)
    assert [row['epoch'] for row in paused.train_history_] == [1, 2, 3, 4]
    np.testing.assert_allclose([row['train_loss'] for row in paused.train_history_],
                               [row['train_loss'] for row in straight.train_history_], rtol=1e-5)
    assert compiled(paused) == {'train_iter_', 'eval_iter_'}


def test_pickle_has_the_weights_and_little_else(line):
    net = regressor(layers=[(InputLayer, {'shape': (None, 4)}), (DenseLayer, {'num_units': 5000}),
                            (DenseLayer, {'num_units': 1})])
    assert len(pickle.dumps(net, -1)) < 10000
    net.fit(*line, epochs=1)
    assert len(pickle.dumps(net, -1)) < 4 * 30001 + 10000
    restored = pickle.loads(pickle.dumps(net, -1))
    restored.initialize_layers()  # anew, as nolearn has it: other weights
    assert not np.array_equal(restored.layers_[1].W.get_value(), net.layers_[1].W.get_value())


def test_net_of_layer_objects_survives(line):
    net = regressor(layers=DenseLayer(InputLayer((None, 4)), 1, nonlinearity=None))
    net.fit(*line)
    for other in (pickle.loads(pickle.dumps(net, -1)), copy.deepcopy(net)):
        np.testing.assert_allclose(other.predict(line[0]), net.predict(line[0]), rtol=1e-5)
        other.layers_[1].W.set_value(np.zeros((4, 1), 'float32'))
    assert net.layers_[1].W.get_value().any()


def test_pickles_of_plain_nolearn_load(line):
    """They carry graph and functions: the state that nolearn 0.6.1 without mends pickles."""
    net = regressor().fit(*line)
    net.predict(line[0])
    state = dict(vars(net))
    for name in ('train_iter_', 'eval_iter_', 'predict_iter_'):
        state[name] = state[name].compiled
    old = NeuralNet.__new__(NeuralNet)
    old.__setstate__(pickle.loads(pickle.dumps(state, -1)))
    np.testing.assert_allclose(old.predict(line[0]), net.predict(line[0]), rtol=1e-5)


def test_a_net_that_was_not_fitted_says_so():
    with pytest.raises(AttributeError, match='layers_'):
        regressor().layers_
    with pytest.raises(AttributeError, match='predict_iter_'):
        regressor().predict_iter_


def test_lists_and_iterators_of_the_caller_stay_untouched():
    mine = []
    nets = [regressor(on_epoch_finished=mine, on_training_started=mine, verbose=1)
            for _ in range(2)]
    assert mine == []
    assert [type(handler) for handler in nets[0].on_epoch_finished] == [PrintLog]
    assert nets[0].batch_iterator_train is not nets[1].batch_iterator_train
    assert nets[0].train_split is not nets[1].train_split


class Lazy:
    """Rows that come when they are asked for, as those of an HDF5 file."""

    def __init__(self, array):
        self.array, self.shape, self.asked = array, array.shape, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.asked.append(rows)
        return self.array[rows]

    def __array__(self, *args, **kwargs):
        raise AssertionError('read as a whole')


class Dense(BatchIterator):
    """Sparse rows become dense, a batch at a time."""

    n_samples = property(lambda self: self.X.shape[0])

    def transform(self, Xb, yb):
        return Xb.toarray(), yb


def test_data_stay_what_they_are(line):
    x, y = line
    lazy = Lazy(x)
    net = regressor(max_epochs=1).fit(lazy, y)
    assert lazy.asked and net.predict(lazy).shape == y.shape
    sparse = regressor(max_epochs=1, check_input=False, batch_iterator_train=Dense(10),
                       batch_iterator_test=Dense(10)).fit(scipy.sparse.csr_matrix(x), y)
    W, b = sparse.get_all_params_values()['dense1']
    np.testing.assert_allclose(sparse.predict(scipy.sparse.csr_matrix(x)), x @ W + b, rtol=1e-4)
    frame = regressor(max_epochs=1).fit(pandas.DataFrame(x), pandas.DataFrame(y))
    assert frame.predict(pandas.DataFrame(x)).shape == y.shape


def test_parameters_that_python_2_pickled(line, tmp_path):
    """Its strings, and the contents of NumPy's arrays, are bytes."""
    values = np.array([[.5], [1e-9], [-3], [250]], 'float32')  # with bytes beyond ASCII
    assert max(values.tobytes()) > 127
    net = regressor()
    net.initialize()
    name, = [name for name, layer in net.layers_.items() if layer.get_params()]

    def text(string):
        return b'U' + bytes([len(string)]) + string

    array = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + text(b'b')
             + b'\x87R(K\x01K\x04K\x01\x86cnumpy\ndtype\n' + text(b'f4') + b'K\x00K\x01\x87R(K\x03'
             + text(b'<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89' + text(values.tobytes())
             + b'tb')
    path = tmp_path / 'weights.pickle'
    path.write_bytes(b'\x80\x02}' + text(name.encode()) + b']' + array + b'as.')
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(path.read_bytes())
    net.load_params_from(str(path))
    np.testing.assert_array_equal(net.get_all_params_values()[name][0], values)
