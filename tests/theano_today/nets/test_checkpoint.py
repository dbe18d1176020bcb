"""Checkpoints of nets other than kfkd's: any update rule, any handler, any iterator."""
import os
import pickle
import signal
import subprocess
import sys
import time

import theano_today  # noqa: F401, before the packages below
import lasagne
import numpy as np
import pytest
from beyond.monitors import ActivationMonitor, GradientMonitor, UpdateMonitor
from lasagne import layers
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from nolearn.lasagne.handlers import RememberBestWeights, SaveWeights
from theano_today.nets.checkpoint import Checkpoint, CheckpointError, digest, read
from theano_today.nets.files import FileError, locked, remove_leftovers


class Noise(BatchIterator):
    """Draws from three streams: its own, a modern one, and NumPy's global one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generator = np.random.default_rng(5)

    def transform(self, Xb, yb):
        factor = self.random.uniform() + self.generator.normal() + np.random.uniform()
        return Xb * np.float32(factor), yb


class Diary:
    """Notes every batch once; a list of arrays is a state, too."""

    def __init__(self):
        self.seen = []

    def __call__(self, net, history):
        self.seen.append(net.layers_['output'].b.get_value())

    def epoch(self, net, history):
        self.seen.append(np.random.uniform(size=2))


class PowerCut(Exception):
    pass


def build(update, cut=None):
    lasagne.random.set_rng(np.random.RandomState(1))
    np.random.seed(2)
    diary = Diary()
    batches = []

    def power_cut(net, history):
        batches.append(1)
        if len(batches) == cut:
            raise PowerCut

    net = NeuralNet(
        layers=[('input', layers.InputLayer), ('noise', layers.GaussianNoiseLayer),
                ('hidden', layers.DenseLayer), ('dropout', layers.DropoutLayer),
                ('output', layers.DenseLayer)],
        input_shape=(None, 6), hidden_num_units=9, output_num_units=3,
        output_nonlinearity=lasagne.nonlinearities.softmax, update=update,
        update_learning_rate=0.01, batch_iterator_train=Noise(10), max_epochs=4,
        train_split=TrainSplit(0.25), on_batch_finished=[diary, power_cut],
        on_epoch_finished=[diary.epoch, RememberBestWeights(verbose=0)])
    net.diary_ = diary
    return net


def data():
    rng = np.random.RandomState(0)
    return rng.normal(size=(60, 6)).astype(np.float32), rng.randint(0, 3, 60).astype(np.int32)


def outcome(net):
    return (digest(*(value for values in net.get_all_params_values().values() for value in values)),
            digest(*net.diary_.seen), len(net.diary_.seen),
            repr([{k: v for k, v in info.items() if k != 'dur'} for info in net.train_history_]),
            np.random.uniform(), net.batch_iterator_train.generator.normal())


def test_any_net_goes_on_in_the_same_bits(tmp_path, monkeypatch, capsys):
    update = lasagne.updates.adam  # of all rules the one with the most state
    monkeypatch.setattr(Checkpoint, 'share', float('inf'))
    fname = str(tmp_path / 'checkpoint.npz')
    plain = build(update).fit(*data())
    expected = outcome(plain)

    for cut in 7, 1, 4:  # batches of five an epoch: in the second epoch, at once, at an end
        net = build(update, cut)
        with pytest.raises(PowerCut):
            with Checkpoint(fname, net, dict(mine=np.float32(3)), every=0):
                net.fit(*data())
    net = build(update)
    with Checkpoint(fname, net, dict(mine=np.float32(3)), every=0) as checkpoint:
        net.fit(*data())
    assert checkpoint.finished and 'Going on from' in capsys.readouterr().out
    assert outcome(net)[0] == expected[0], 'weights'
    assert outcome(net)[1:4] == expected[1:4], 'handlers, history'
    assert [name for name in vars(net) if name not in vars(plain)] == [], 'nothing stays behind'
    assert net.on_batch_finished[0] is net.diary_ and len(net.on_epoch_finished) == 2

    # Finished: the net is there at once, and the file is one that NumPy can read.
    again = build(update)
    with Checkpoint(fname, again, dict(mine=np.float32(3))):
        again.fit(*data())
    assert outcome(again)[0] == expected[0] and len(again.train_history_) == 4
    with np.load(fname) as archive:
        assert sum(name.startswith('state-') for name in archive.files) == 1
    checkpoint.remove()
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_streams_go_on_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, 'share', float('inf'))
    plain = build(lasagne.updates.sgd).fit(*data())
    expected = outcome(plain)
    net = build(lasagne.updates.sgd, cut=13)
    with pytest.raises(PowerCut):
        with Checkpoint(tmp_path / 'c.npz', net, every=0):
            net.fit(*data())
    net = build(lasagne.updates.sgd)
    with Checkpoint(tmp_path / 'c.npz', net, every=0):
        net.fit(*data())
    assert outcome(net) == expected


def test_a_monitored_training_goes_on_in_the_same_bits(tmp_path, monkeypatch, capsys):
    """The samples, too: those of the gradients see dropout masks of a stream of their own."""
    monkeypatch.setattr(Checkpoint, 'share', float('inf'))

    def monitored(cut=None):
        net = build(lasagne.updates.sgd, cut)
        for monitor in ActivationMonitor, GradientMonitor, UpdateMonitor:
            monitor(every=3, size=20).attach(net)
        return net

    expected = outcome(monitored().fit(*data()))
    for cut in 8, 3:  # between two samples; at one
        net = monitored(cut)
        with pytest.raises(PowerCut):
            with Checkpoint(tmp_path / 'c.npz', net, every=0):
                net.fit(*data())
    net = monitored()
    with Checkpoint(tmp_path / 'c.npz', net, every=0):
        net.fit(*data())
    assert [len(row['gradients']) for row in net.train_history_] == [2, 2, 1, 2]
    assert outcome(net) == expected
    assert 'does not keep' not in capsys.readouterr().out


def test_a_net_can_be_pickled_in_its_training(tmp_path):
    net = build(lasagne.updates.sgd)
    net.on_epoch_finished.append(SaveWeights(str(tmp_path / 'net.pickle'), pickle=True))
    net.diary_, net.on_batch_finished = None, []
    net.on_epoch_finished.pop(0)
    with Checkpoint(tmp_path / 'c.npz', net):
        net.fit(*data())
    with open(str(tmp_path / 'net.pickle'), 'rb') as f:
        saved = pickle.load(f)
    assert len(saved.train_history_) == 4 and len(saved.on_epoch_finished) == 2
    assert 'train_loop' not in vars(saved) and '_training' not in vars(saved)


def test_the_interval_keeps_the_cost_below_its_share(tmp_path):
    net = build(lasagne.updates.sgd)
    written = []

    class Slow(Checkpoint):
        def write(self):
            super().write()
            written.append(len(self.net.train_history_))

    with Slow(tmp_path / 'c.npz', net, every=0):
        net.fit(*data())
    # Writing takes a millisecond or more, so the second one is due a hundred of them later.
    assert 1 <= len(written) < 20


def test_what_cannot_be_kept_is_told_once(tmp_path, capsys):
    net = build(lasagne.updates.sgd)
    net.diary_.figure = object()
    with Checkpoint(tmp_path / 'c.npz', net):
        net.fit(*data())
    assert capsys.readouterr().out.count('does not keep Diary.figure (object)') == 1


def test_iterators_that_shuffle_in_place_are_refused(tmp_path):
    net = build(lasagne.updates.sgd)
    net.batch_iterator_train = BatchIterator(10, shuffle=True)
    with pytest.raises(CheckpointError, match='shuffles in place'):
        with Checkpoint(tmp_path / 'c.npz', net):
            pass


def test_another_net_is_refused(tmp_path):
    net = build(lasagne.updates.sgd)
    with Checkpoint(tmp_path / 'c.npz', net):
        net.fit(*data())
    state, arrays = read(tmp_path / 'c.npz')
    assert state['finished'] and len(arrays) >= 5
    for change, words in ((dict(hidden_num_units=8), 'hidden_num_units was 9, is 8'),
                          (dict(max_epochs=5), 'max_epochs was 4, is 5')):
        with pytest.raises(CheckpointError, match=words):
            with Checkpoint(tmp_path / 'c.npz', build(lasagne.updates.sgd).set_params(**change)):
                pass


# --------------------------------------------------------------------------- one training at a time

OTHER = """
import sys
sys.path.insert(0, {tests!r})
import theano_today, lasagne
from test_checkpoint import build, data
from theano_today.nets.checkpoint import Checkpoint

def wait(net, history):
    print('training', flush=True)
    sys.stdin.readline()

net = build(lasagne.updates.sgd)
net.on_epoch_finished.append(wait)
with Checkpoint({fname!r}, net, every=0):
    net.fit(*data())
"""


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def other(tmp_path):
    """Another process that is in the middle of its training."""
    process = subprocess.Popen(
        [sys.executable, '-c', OTHER.format(tests=os.path.dirname(os.path.abspath(__file__)),
                                            fname=str(tmp_path / 'c.npz'))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
    assert process.stdout.readline() == 'training\n'
    yield process
    process.kill()
    process.communicate()


def test_a_checkpoint_belongs_to_one_training_at_a_time(other, tmp_path):
    before = files(tmp_path)
    assert sorted(before) == ['c.npz', 'c.npz.lock']
    start = time.time()
    for _ in range(2):
        with pytest.raises(FileError, match=rf'c\.npz is in use by process {other.pid}\. '):
            with Checkpoint(tmp_path / 'c.npz', build(lasagne.updates.sgd)):
                pass
    remove_leftovers(str(tmp_path / '*.npz'))
    assert files(tmp_path) == before and time.time() < start + 5
    with Checkpoint(tmp_path / 'd.npz', build(lasagne.updates.sgd)):  # another file, another lock
        assert (tmp_path / 'd.npz.lock').exists()
    assert files(tmp_path) == before

    # Killed, it locks nobody out.
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert files(tmp_path) == before
    net = build(lasagne.updates.sgd)
    with Checkpoint(tmp_path / 'c.npz', net):
        assert (tmp_path / 'c.npz.lock').read_text().split()[0] == str(os.getpid())
        assert len(net.fit(*data()).train_history_) == 4
    assert sorted(files(tmp_path)) == ['c.npz']

    (tmp_path / 'c.npz.lock').write_text('1 elsewhere')
    remove_leftovers(str(tmp_path / '*.npz'))
    assert sorted(files(tmp_path)) == ['c.npz']


def test_lock_files(tmp_path, monkeypatch):
    fname = str(tmp_path / 'file')
    with locked(fname):
        with pytest.raises(FileError, match=f'in use by process {os.getpid()}'):
            with locked(fname):
                pass
        (tmp_path / 'file.lock').write_text('12 elsewhere')
        with pytest.raises(FileError, match='in use by process 12 on elsewhere'):
            with locked(fname):
                pass
        (tmp_path / 'file.lock').write_text('')
        with pytest.raises(FileError, match='in use by another process'):
            with locked(fname):
                pass
    assert not list(tmp_path.iterdir())

    # A link would have somebody else's file overwritten.
    mine = tmp_path / 'mine'
    mine.write_text('mine')
    (tmp_path / 'file.lock').symlink_to(mine)
    with pytest.raises(FileError, match='file.lock cannot be written'):
        with locked(fname):
            pass
    assert mine.read_text() == 'mine'
    (tmp_path / 'file.lock').unlink()

    def no_locks(handle, operation):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr('theano_today.nets.files.fcntl.flock', no_locks)
    with locked(fname), locked(fname):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_an_error_on_the_way_in_leaves_no_lock(tmp_path):
    (tmp_path / 'c.npz').write_text('not a checkpoint')
    with pytest.raises(CheckpointError, match='no whole checkpoint'):
        with Checkpoint(tmp_path / 'c.npz', build(lasagne.updates.sgd)):
            pass
    assert sorted(files(tmp_path)) == ['c.npz']
