"""nolearn's batches with device=cuda: prepared while the device works, and still the same."""
import threading

import lasagne
import numpy as np
import pytest
from lasagne import layers
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from theano_today.nets.checkpoint import Checkpoint

MODES = ['graph']
X = np.arange(140, dtype='float32').reshape(35, 4)
Y = X[:, :1] / 100


class Slow(BatchIterator):
    """Notes who makes which batch, and lets the reader wait for one."""

    def __init__(self, batch_size, stream=None):
        super().__init__(batch_size)
        self.stream = stream
        self.made = [threading.Event() for _ in range(9)]
        self.threads = []

    def __deepcopy__(self, memo):
        return type(self)(self.batch_size, self.stream)

    def transform(self, Xb, yb):
        n = len(self.threads)
        self.threads.append(threading.current_thread())
        draw = (self.stream or self.random).uniform()
        if n == 3 and yb is None:
            raise KeyError('the fourth batch')
        self.made[n].set()
        return Xb + np.float32(draw), yb


def test_the_next_batch_is_made_during_the_step():
    iterator = Slow(10)
    draws = np.random.RandomState(42).uniform(size=4)
    for n, (Xb, yb) in enumerate(iterator(X, Y)):
        np.testing.assert_array_equal(Xb, X[10 * n:10 * n + 10] + np.float32(draws[n]))
        np.testing.assert_array_equal(yb, Y[10 * n:10 * n + 10])
        if n < 3:
            assert iterator.made[n + 1].wait(30)  # while the reader still holds this one
        assert len(iterator.threads) <= n + 2
    assert n == 3 and len(set(iterator.threads[1:])) == 1
    assert threading.main_thread() not in iterator.threads[1:]


@pytest.mark.parametrize('stream', ['numpy', 'lasagne'])
def test_streams_that_others_draw_from_keep_their_order(stream):
    np.random.seed(7)
    lasagne.random.set_rng(np.random if stream == 'numpy' else np.random.RandomState(7))
    expected = np.random.RandomState(7).uniform(size=8)
    shared = lasagne.random.get_rng()
    for n, (Xb, _) in enumerate(Slow(10, shared)(X, Y)):
        np.testing.assert_array_equal(Xb, X[10 * n:10 * n + 10] + np.float32(expected[2 * n]))
        assert shared.uniform() == expected[2 * n + 1]
    assert n == 3


def test_errors_come_out_and_no_thread_stays():
    threads = threading.active_count()
    seen = []
    with pytest.raises(KeyError, match='the fourth batch'):
        for Xb, _ in Slow(10)(X):
            seen.append(len(Xb))
    assert seen == [10, 10, 10]
    batches = Slow(10)(X, Y)
    next(iter(batches))
    del batches
    assert threading.active_count() == threads
    assert list(Slow(10)(X[:0], Y[:0])) == []


def test_dictionaries_and_other_types_pass():
    class Words(BatchIterator):
        def transform(self, Xb, yb):
            return dict(Xb, words=np.array(['a', 'b'])), None

    batches = list(Words(20)({'a': X, 'b': Y}))
    assert [len(Xb['a']) for Xb, yb in batches] == [20, 15]
    np.testing.assert_array_equal(batches[1][0]['b'], Y[20:])
    assert batches[0][0]['words'].tolist() == ['a', 'b'] and batches[0][1] is None


class PowerCut(Exception):
    pass


def train(fname, cut=None):
    """Four epochs; at batch `cut` the power goes."""
    lasagne.random.set_rng(np.random.RandomState(1))
    batches = []

    def power_cut(net, history):
        batches.append(1)
        if len(batches) == cut:
            raise PowerCut

    net = NeuralNet(
        layers=[('input', layers.InputLayer), ('dropout', layers.DropoutLayer),
                ('output', layers.DenseLayer)],
        input_shape=(None, 4), output_num_units=1, output_nonlinearity=None, regression=True,
        update_learning_rate=1e-5, batch_iterator_train=Shaken(5), max_epochs=4, verbose=0,
        train_split=TrainSplit(0.2), on_batch_finished=[power_cut])
    with Checkpoint(fname, net, every=0):
        net.fit(X, Y)
    return [row['train_loss'] for row in net.train_history_], net.get_all_params_values()


class Shaken(BatchIterator):
    def transform(self, Xb, yb):
        return Xb + self.random.normal(size=Xb.shape).astype('float32'), yb


def test_a_training_goes_on_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, 'share', 1e9)  # a checkpoint after every batch
    expected = train(str(tmp_path / 'whole.npz'))
    fname = str(tmp_path / 'cut.npz')
    with pytest.raises(PowerCut):
        train(fname, cut=9)  # in the middle of the second epoch
    losses, weights = train(fname)
    assert len(losses) == 4 and losses == expected[0]
    for name, values in weights.items():
        for ours, theirs in zip(values, expected[1][name]):
            np.testing.assert_array_equal(ours, theirs)
