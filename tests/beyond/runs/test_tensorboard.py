"""TensorBoard's event files: read back byte by byte and compared with the history of the net."""
import contextlib
import copy
import io
import os
import pickle
import struct
import sys

import theano_today  # noqa: F401  (before theano)

import kfkd
import lasagne
import numpy as np
import pytest
import theano
import yaml
from beyond.runs import tensorboard
from beyond.monitors import ActivationMonitor, GradientMonitor, UpdateMonitor
from beyond.runs.tensorboard import TensorBoard, draw_filters
from lasagne import layers
from lasagne.nonlinearities import softmax
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from PIL import Image
from sklearn.base import clone
from theano_today.nets import safe_pickle
from theano_today.nets.checkpoint import Checkpoint
from theano_today.nets.files import FileError

pytest.importorskip('tensorboardX')


# ------------------------------------------------------------ a reader that shares no code with it

def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def masked(data):
    crc = crc32c(data)
    return (crc >> 15 | crc << 17) + 0xa282ead8 & 0xffffffff


def records(data):
    """The records of a TFRecord file: length, its checksum, content, its checksum."""
    f = io.BytesIO(data)
    while f.tell() < len(data):
        length = f.read(8)
        assert struct.unpack('<I', f.read(4)) == (masked(length),)
        content = f.read(*struct.unpack('<Q', length))
        assert struct.unpack('<I', f.read(4)) == (masked(content),)
        yield content


def varint(f):
    number = shift = 0
    while True:
        byte, = f.read(1)
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number


def message(data):
    """The fields of a protocol buffer: {number: [values]}."""
    f, fields = io.BytesIO(data), {}
    while f.tell() < len(data):
        key = varint(f)
        fields.setdefault(key >> 3, []).append({
            0: lambda: varint(f), 1: lambda: struct.unpack('<d', f.read(8))[0],
            2: lambda: f.read(varint(f)), 5: lambda: struct.unpack('<f', f.read(4))[0]}[key & 7]())
    return fields


# Numbers of fields, from tensorflow/core/util/event.proto and framework/summary.proto.
WALL_TIME, STEP, VERSION, SUMMARY, SESSION = 1, 2, 3, 5, 7
VALUE, TAG, SIMPLE_VALUE, IMAGE, HISTOGRAM, PNG = 1, 1, 2, 4, 5, 4


def events(folder):
    """What TensorBoard makes of a folder: ({tag: [(step, number)]}, {tag: PNG or histogram})."""
    numbers, others = {}, {}
    for path in sorted(folder.iterdir()):
        for position, record in enumerate(records(path.read_bytes())):
            event = message(record)
            step = event.get(STEP, [0])[0]
            assert (event.get(VERSION) == [b'brain.Event:2']) == (position == 0)
            assert 1.7e9 < event[WALL_TIME][0] < 1e10
            if SESSION in event:  # a new start: forget what an earlier process had beyond it
                numbers = {tag: [point for point in points if point[0] < step]
                           for tag, points in numbers.items()}
            for value in map(message, message(event.get(SUMMARY, [b''])[0]).get(VALUE, [])):
                tag = value[TAG][0].decode()
                if SIMPLE_VALUE in value:
                    numbers.setdefault(tag, []).append((step, value[SIMPLE_VALUE][0]))
                else:
                    others[tag] = value.get(IMAGE) or value[HISTOGRAM]
    return numbers, others


def test_the_reader_knows_the_checksum():
    assert crc32c(b'123456789') == 0xe3069283


# --------------------------------------------------------------------------------- what is written

def data(n=60, classes=False):
    X = np.random.RandomState(0).rand(n, 1, 8, 8).astype(np.float32)
    y = X[:, 0, :2, :2].reshape(n, 4) - np.float32(.5)
    return X, y.argmax(axis=1).astype(np.int32) if classes else y


def small_net(**settings):
    lasagne.random.set_rng(np.random.RandomState(1))
    return NeuralNet(**dict(dict(
        layers=[('input', layers.InputLayer), ('conv', layers.Conv2DLayer),
                ('output', layers.DenseLayer)],
        input_shape=(None, 1, 8, 8), conv_num_filters=5, conv_filter_size=3, output_num_units=4,
        output_nonlinearity=None, regression=True, update_momentum=.9,
        update_learning_rate=theano.shared(np.float32(.01)), batch_iterator_train=BatchIterator(16),
        batch_iterator_test=BatchIterator(16), train_split=TrainSplit(.2), max_epochs=4),
        **settings))


def halve(nn, train_history):
    nn.update_learning_rate.set_value(nn.update_learning_rate.get_value() / np.float32(2))


def float32(values):
    return [(step, np.float32(value)) for step, value in values]


def test_every_number_is_that_of_the_history(tmp_path):
    net = small_net(on_epoch_finished=[halve])
    before = dict(vars(net))
    for monitor in ActivationMonitor, GradientMonitor, UpdateMonitor:
        monitor(every=2, size=8).attach(net)
    attached = {name: list(getattr(net, name)) for name in tensorboard.HANDLERS}
    handler = TensorBoard(str(tmp_path), scale=48)
    with handler.attached(net):
        net.fit(*data())
    assert {name: getattr(net, name) for name in tensorboard.HANDLERS} == attached
    assert set(vars(net)) - set(before) <= {'layers_', '_output_layers', '_initialized',
                                            'train_iter_', 'eval_iter_', 'predict_iter_'}
    run, = tmp_path.iterdir()
    assert str(run) == handler.run and len(run.name) == 17
    numbers, others = events(run)

    def expected(number):
        return float32((row['epoch'], number(row)) for row in net.train_history_)

    def mean(column, layer, number):
        return lambda row: np.mean([sample['layers'][layer][number] for sample in row[column]])

    assert numbers.pop('loss/train') == expected(lambda row: row['train_loss'])
    assert numbers.pop('loss/valid') == expected(lambda row: row['valid_loss'])
    assert numbers.pop('rmse/train') == expected(lambda row: 48 * row['train_loss'] ** .5)
    assert numbers.pop('rmse/valid') == expected(lambda row: 48 * row['valid_loss'] ** .5)
    assert numbers.pop('update/learning_rate') == expected(  # that of the epoch, not of the next
        lambda row: np.float32(.01) / 2 ** (row['epoch'] - 1))
    assert numbers.pop('update/momentum') == expected(lambda row: .9)
    assert numbers.pop('seconds/epoch') == expected(lambda row: row['dur'])
    for layer in 'conv', 'output':
        for column, name, number in (
                ('updates', layer + '.W', 'ratio'), ('activations', layer, 'std'),
                ('gradients', layer + '.W', 'norm'), ('gradients', layer + '.b', 'norm')):
            tag = f'monitor_{column}_{number}/{name}'
            assert numbers.pop(tag) == expected(mean(column, name, number)), tag
    assert numbers.pop('monitor_activations_dead/conv') == expected(
        mean('activations', 'conv', 'dead'))
    # Biases are 0 before the first batch, and have no ratio in its sample.
    assert [step for step, _ in numbers.pop('monitor_updates_ratio/conv.b')] == [1, 2, 3, 4]
    assert [step for step, _ in numbers.pop('monitor_updates_ratio/output.b')] == [1, 2, 3, 4]
    assert not numbers

    W = net.layers_['conv'].W.get_value()
    image = np.asarray(Image.open(io.BytesIO(message(others['first_layer/conv'][0])[PNG][0])))
    np.testing.assert_array_equal(image, draw_filters(W))


def test_filters_are_drawn_to_one_scale():
    W = np.zeros((5, 1, 2, 3))
    W[0, 0, 0, 0], W[4, 0, 1, 2] = 1, -2
    page = draw_filters(W)
    height, width = 2 * tensorboard.PIXELS + 2, 3 * tensorboard.PIXELS + 2
    assert page.shape == (2 * height, 3 * width, 3) and page.dtype == np.uint8
    assert (page[1, 1] == 191).all() and (page[1, width - 2] == 128).all()
    assert (page[2 * height - 2, 2 * width - 2] == 0).all() and (page[-2, -2] == 255).all()
    assert (draw_filters(np.zeros((1, 3, 2, 2)))[1, 1] == 128).all()
    W[0, 0, 0, 0] = np.nan  # a net that has diverged
    assert (draw_filters(W)[1, 1] == 128).all()


def share_right(y, probabilities):
    return (probabilities.argmax(axis=1) == y).mean()


def test_a_classifier_and_scores_of_ones_own(tmp_path):
    net = small_net(
        layers=[('input', layers.InputLayer), ('output', layers.DenseLayer)], regression=False,
        output_nonlinearity=softmax, update_learning_rate=.01, max_epochs=2,
        custom_scores=[('share right', share_right)])
    for name in 'conv_num_filters', 'conv_filter_size':
        delattr(net, name)
        net._kwarg_keys.remove(name)
    TensorBoard(str(tmp_path)).attach(net)
    net.fit(*data(classes=True))
    run, = tmp_path.iterdir()
    numbers, others = events(run)
    assert set(numbers) == {'loss/train', 'loss/valid', 'accuracy/valid', 'scores/share_right',
                            'update/learning_rate', 'update/momentum', 'seconds/epoch'}
    for tag, name in ('accuracy/valid', 'valid_accuracy'), ('scores/share_right', 'share right'):
        assert numbers[tag] == float32((row['epoch'], row[name]) for row in net.train_history_)
    assert numbers['update/learning_rate'] == float32([(1, .01), (2, .01)])
    W = net.layers_['output'].W.get_value()
    histogram = message(others['first_layer/output'][0])  # min, max, num, sum, sum of squares, ...
    assert [histogram[field][0] for field in (1, 2, 3)] == [W.min(), W.max(), W.size]
    assert histogram[5][0] == pytest.approx((W.astype(float) ** 2).sum())
    limits, counts = (np.frombuffer(histogram[field][0]) for field in (6, 7))
    assert counts.sum() == W.size and len(limits) == len(counts)

    # Attached for good, the handler goes with copies of the net, but for its open file.
    net.on_training_started[0](net, net.train_history_)
    assert len(list(tmp_path.iterdir())) == 2  # another training has a folder of its own
    assert net.on_epoch_finished[0].__self__._writer is not None
    pickled = pickle.dumps(net, -1)
    for other in clone(net), copy.deepcopy(net), pickle.loads(pickled), \
            safe_pickle.loads(pickled, [TensorBoard, share_right]):
        handler = other.on_epoch_finished[0].__self__
        assert handler.folder == str(tmp_path) and handler._writer is None
        assert handler is other.on_training_finished[0].__self__
    net.on_epoch_finished[0].__self__.close()


class PowerCut(Exception):
    pass


def test_going_on_from_a_checkpoint_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, 'share', float('inf'))

    def train(cut=None, permanent=False):
        def power_cut(nn, train_history):
            if len(train_history) == cut:
                raise PowerCut
            if len(train_history) == 1:
                checkpoint.due = 0  # write one after the next batch
        net = small_net(on_epoch_finished=[power_cut])
        checkpoint = Checkpoint(tmp_path / 'c.npz', net)
        handler = TensorBoard(str(tmp_path / 'events'))
        if permanent:
            handler.attach(net)
        with checkpoint, contextlib.nullcontext() if permanent else handler.attached(net):
            net.fit(*data())
        return net

    with pytest.raises(PowerCut):
        train(cut=3, permanent=True)  # the checkpoint does not count the handler
    run, = (tmp_path / 'events').iterdir()
    assert [step for step, _ in events(run)[0]['loss/train']] == [1, 2, 3]
    monkeypatch.setattr('time.strftime', lambda *args: '2030-01-01-000000')  # much later
    net = train()
    assert [path.name for path in (tmp_path / 'events').iterdir()] == [run.name]
    numbers, _ = events(run)
    assert len(list(run.iterdir())) == 2
    for tag, name in ('loss/train', 'train_loss'), ('seconds/epoch', 'dur'):
        assert numbers[tag] == float32((row['epoch'], row[name]) for row in net.train_history_)
    train()  # it is finished: nothing is written
    assert len(list(run.iterdir())) == 2


def test_a_disk_that_fails_ends_the_writing_not_the_training(tmp_path, monkeypatch, capsys):
    net = small_net()
    handler = TensorBoard(str(tmp_path / 'events'))

    class Full:
        def write_event(self, event):
            raise OSError(28, 'No space left on device')

        def close(self):
            raise OSError(28, 'No space left on device')

    def full(nn, train_history):
        if len(train_history) == 2:
            handler._writer = Full()

    net.on_epoch_finished.append(full)
    with handler.attached(net):
        net.fit(*data())
    assert len(net.train_history_) == 4
    assert capsys.readouterr().out.count('No space left on device') == 1
    run, = (tmp_path / 'events').iterdir()
    assert [step for step, _ in events(run)[0]['loss/train']] == [1, 2]


def test_a_folder_that_cannot_be_is_told_before_the_first_epoch(tmp_path):
    (tmp_path / 'file').write_text('')
    net = small_net()
    with pytest.raises(FileError, match='file.* cannot be written'):
        with TensorBoard(str(tmp_path / 'file')).attached(net):
            net.fit(*data())
    assert not net.train_history_ and not net.on_epoch_finished
    with TensorBoard(None).attached(net):
        assert not net.on_epoch_finished


# -------------------------------------------------------------------------------------- in kfkd.py

NET = """
layers:
- {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
- {name: pool, type: MaxPool2DLayer, pool_size: [16, 16]}
- {name: conv, type: Conv2DLayer, num_filters: 3, filter_size: [2, 2]}
- {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    from killable import write_faces
    write_faces(str(tmp_path))
    for name, value in dict(
            FTRAIN=str(tmp_path / 'training.csv'), MAX_EPOCHS=3, SPECIALIST_SAMPLES=50,
            BATCH_SIZE=16, VERBOSE=0, NET=yaml.safe_load(NET), RUNS=None, TENSORBOARD='events',
            SPECIALIST_SETTINGS=kfkd.SPECIALIST_SETTINGS[:2], net=kfkd.net).items():
        monkeypatch.setattr(kfkd, name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_kfkd_writes_a_folder_for_each_net_and_run(work, monkeypatch):
    assert kfkd.main(['fit']) == 0
    assert kfkd.main(['fit_specialists']) == 0
    nets = {path.name: path for path in (work / 'events').iterdir()}
    assert sorted(nets) == ['net', 'specialist-1', 'specialist-2']
    net = kfkd.load_nets('net.pickle')
    assert not any(isinstance(getattr(handler, '__self__', None), TensorBoard)
                   for handler in net.on_epoch_finished)
    specialists = list(kfkd.load_nets('net-specialists.pickle').values())
    for name, model in zip(sorted(nets), [net] + specialists):
        run, = nets[name].iterdir()
        numbers, others = events(run)
        assert numbers['rmse/valid'] == float32(
            (row['epoch'], 48 * np.sqrt(row['valid_loss'])) for row in model.train_history_)
        # The filters are those of the best epoch, as in the pickle.
        image = np.asarray(Image.open(io.BytesIO(message(others['first_layer/conv'][0])[PNG][0])))
        np.testing.assert_array_equal(image, draw_filters(model.layers_['conv'].W.get_value()))


def test_a_missing_package_is_told_before_training(work, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    assert kfkd.main(['fit']) == 1
    error = capsys.readouterr().err
    assert error.startswith("kfkd.py: TENSORBOARD = 'events': ") and error.count('\n') == 1
    assert 'requirements.txt' in error
    assert not os.path.exists('events') and not os.path.exists('net.pickle')
