"""Pickles of strangers: nothing in them runs, whatever they try."""
import builtins
import collections
import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import struct
import subprocess
import sys
import time

import kfkd
import numpy as np
import pytest
import theano
from beyond.runs import net_files
from lasagne import layers
from nolearn.lasagne import NeuralNet
from theano_today.nets import safe_pickle
from theano_today.nets.progress import TimeLeft

FLAG = 'a-stranger-was-here'


def op(*parts):
    """A pickle of protocol 4 from opcodes and strings."""
    text = b''.join(part if isinstance(part, bytes) else
                    pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in parts)
    return b'\x80\x04' + text + b'.'


def name(module, attribute):
    return op(module, attribute, pickle.STACK_GLOBAL)[2:-1]


class Call:
    """What pickles as a call of `function` with `args`."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) + ((self.state,) if self.state is not None else ())


def touch():
    return open(FLAG, 'w')


class Trap:
    """Runs code when it is made, called, compared, hashed, or given attributes."""

    def __new__(cls, *args):
        touch()
        return object.__new__(cls)

    __init__ = __call__ = __setstate__ = __eq__ = lambda self, *args: touch()

    def __reduce__(self):
        return Trap, (1,)

    __hash__ = None


def dumps(value, protocol=4):
    return pickle.dumps(value, protocol)


def text(value):
    """A value in opcodes, without the frame around it."""
    return pickle.dumps(value, 2)[2:-1]


command = 'touch ' + FLAG
PYTHON = f'open({FLAG!r}, "w")'
empty_net = name('nolearn.lasagne.base', 'NeuralNet') + b')\x81'


def net_with(**attributes):
    return op(empty_net, text(attributes), b'b')


HOSTILE = {
    'os.system': dumps(Call(os.system, command)),
    'os.system, protocol 0': dumps(Call(os.system, command), 0),
    'os.system, protocol 1': dumps(Call(os.system, command), 1),
    'os.system, protocol 2': dumps(Call(os.system, command), 2),
    'os.system, protocol 5': dumps(Call(os.system, command), 5),
    'posix.system': op(name('posix', 'system'), text((command,)), b'R'),
    'text opcodes': b'cos\nsystem\n(S\'' + command.encode() + b"'\ntR.",
    'inst': b'(S\'' + command.encode() + b"'\nios\nsystem\n.",
    'obj': b'(cos\nsystem\nS\'' + command.encode() + b"'\no.",
    'eval': dumps(Call(eval, PYTHON)),
    'exec': dumps(Call(exec, PYTHON)),
    'compile': dumps(Call(compile, PYTHON, 'x', 'exec')),
    'builtins by an old name': b'c__builtin__\neval\n(S\'' + PYTHON.encode() + b"'\ntR.",
    'open': dumps(Call(open, FLAG, 'w')),
    'io.open': dumps(Call(io.open, FLAG, 'w')),
    'getattr': op(name('builtins', 'getattr'), text(('', 'join')), b'R'),
    'getattr of a class': op(name('builtins', 'getattr'), name('nolearn.lasagne.base', 'NeuralNet'),
                             text('fit'), b'\x86R'),
    'getattr by the name of a handler': op(name('builtins', 'getattr'),
                                           text(('', 'on_epoch_finished')), b'R'),
    '__import__': dumps(Call(__import__, 'antigravity')),
    'import_module': dumps(Call(importlib.import_module, 'antigravity')),
    'subprocess': dumps(Call(subprocess.Popen, ['touch', FLAG])),
    'subprocess.call': dumps(Call(subprocess.call, ['touch', FLAG])),
    'partial': dumps(Call(functools.partial, os.system, command)),
    'attrgetter': dumps(Call(operator.attrgetter, 'system')),
    'methodcaller': dumps(Call(operator.methodcaller, 'system', command)),
    'map': op(name('builtins', 'map'), name('os', 'system'), text([command]), b'\x86R'),
    'type': dumps(Call(type, 'New', (), {})),
    'object': dumps(Call(builtins.object)),
    'newobj of a trap': op(name(__name__, 'Trap'), b')\x81'),
    'newobj_ex': op(name(__name__, 'Trap'), b')', text({}), b'\x92'),
    'reduce of a trap': pickle.dumps(Trap.__reduce__(object.__new__(Trap))[0]),
    'a net that is a trap': op(name('theano_today.compat', 'new_net'), name(__name__, 'Trap'), b'\x85R'),
    'a net of a layer': op(name('theano_today.compat', 'new_net'),
                           name('lasagne.layers.dense', 'DenseLayer'), b'\x85R'),
    'a net of a number': op(name('theano_today.compat', 'new_net'), text((1,)), b'R'),
    'build of a trap': op(empty_net, name(__name__, 'Trap'), b'b'),
    'reconstructor': dumps(Call(copyreg._reconstructor, dict, object, None)),
    'reconstructor of a trap': op(name('copyreg', '_reconstructor'), name(__name__, 'Trap'),
                                  name('builtins', 'object'), b'N\x87R'),
    '__newobj__ by name': op(name('copyreg', '__newobj__'), name(__name__, 'Trap'), b'\x85R'),
    'nested global': op(name('nolearn.lasagne.base', 'NeuralNet.__init__.__globals__')),
    'nested global of numpy': op(name('numpy', 'ndarray.tofile')),
    'nested through a module': op(name('lasagne.init', 'np.load')),
    'nested to sys': op(name('kfkd', 'os.system'), text((command,)), b'R'),
    'a module of kfkd': op(name('kfkd', 'os')),
    'a function of kfkd': op(name('kfkd', 'remove_checkpoints'), b')R'),
    'main of kfkd': op(name('kfkd', 'main'), text((['fit'],)), b'R'),
    'a name with spaces': op(name('os', ' system')),
    'a name with a newline': op(name('os', 'system\n\x1b[2J')),
    'no name': op(name('', '')),
    'a name that is no string': op(b'K\x01', b'K\x02', pickle.STACK_GLOBAL),
    'persistent id': b'Pnet\n.',
    'binary persistent id': op('net', b'Q'),
    'extension': b'\x80\x02\x82\x01.',
    'out-of-band buffer': b'\x80\x05\x97.',
    'set': dumps({1, 2}),
    'frozenset': dumps(frozenset([1])),
    'complex': dumps(1j),
    'range': dumps(range(3)),
    'slice': dumps(Call(slice, 1)),
    'bytes by a call': dumps(Call(bytes, 10 ** 9)),
    'bytearray by a call': dumps(Call(bytearray, 10 ** 10)),
    'default dict': dumps(collections.defaultdict(list)),
    'OrderedDict of something': dumps(Call(collections.OrderedDict, [(1, 2)])),
    'a layer made': op(name('lasagne.layers.input', 'InputLayer'), b')\x81'),
    'a layer called': dumps(Call(layers.InputLayer, (1, 2))),
    'a net called': dumps(Call(NeuralNet, [])),
    'a shared variable': dumps(theano.shared(1.)),
    'a Theano expression': dumps(theano.tensor.matrix() * 2),
    'theano.function': dumps(Call(theano.function, [], [])),
    'a function of numpy': dumps(Call(np.load, 'x.npy', None, True)),
    'fromfile': dumps(Call(np.fromfile, '/etc/passwd', 'u1')),
    'memmap': op(name('numpy', 'memmap'), text((FLAG, 'u1', 'w+', 0, (10,))), b'R'),
    'an array of objects': dumps(np.array([1, 'a', None], dtype=object)),
    'an array of objects, protocol 2': dumps(np.array([os.system], dtype=object), 2),
    'an array of records': dumps(np.zeros(3, [('a', 'f4'), ('b', 'O')])),
    'an array of text': dumps(np.array(['a', 'b'])),
    'an array of dates': dumps(np.array(['2020-01-01'], 'M8[D]')),
    'a large array': op(name('numpy.core.multiarray', '_reconstruct'), b'(',
                        name('numpy', 'ndarray'), text((10 ** 12,)), b'C\x01b', b'tR'),
    'an array larger than its bytes': op(
        name('numpy.core.numeric', '_frombuffer'), b'(C\x041234', name('numpy', 'dtype'),
        text(('f4', False, True)), b'R', text((10 ** 12,)), text('C'), b'tR'),
    'an array of negative length': op(
        name('numpy.core.numeric', '_frombuffer'), b'(C\x041234', name('numpy', 'dtype'),
        text(('f4', False, True)), b'R', text((-1,)), text('C'), b'tR'),
    **{f'an array with its axes in the order {axes!r}': op(    # as NumPy 2 has it
        name('numpy._core.numeric', '_frombuffer'), b'(C\x041234', name('numpy', 'dtype'),
        text(('u1', False, True)), b'R', text((2, 2)), text('K'), text(axes), b'tR')
       for axes in [(0, 0), (0, 2), (-1, 0), (0,), (False, True), [1, 0], 'ab', None, ((), ())]},
    'an array with axes and another order': op(
        name('numpy._core.numeric', '_frombuffer'), b'(C\x041234', name('numpy', 'dtype'),
        text(('u1', False, True)), b'R', text((2, 2)), text('C'), text((1, 0)), b'tR'),
    'a type with parts': op(name('numpy', 'dtype'), text(('f4', False, True)), b'R', b'(',
                            text(3), text('|'), b'N', text(('a',)), text({'a': 1}),
                            text(8), text(1), text(0), b'tb'),
    'a type that is an object': op(name('numpy', 'dtype'), text(('O8', False, True)), b'R'),
    'a type made of a list': op(name('numpy', 'dtype'), text(([('a', 'O')], False, True)), b'R'),
    'an array subclass': op(name('numpy.core.multiarray', '_reconstruct'), b'(',
                            name('numpy', 'memmap'), text((0,)), b'C\x01b', b'tR'),
    'attributes for a function': op(name('lasagne.objectives', 'squared_error'),
                                    text({'__code__': 1}), b'b'),
    'attributes for a class': op(name('nolearn.lasagne.base', 'NeuralNet'),
                                 text({'predict': 1}), b'b'),
    'attributes for a list': op(b']', text({'append': 1}), b'b'),
    'slots': op(empty_net, b'N', text({'predict': 1}), b'\x86b'),
    'dunder attributes': net_with(__class__=1),
    'a class as attribute __class__': op(empty_net, b'}', '__class__', name(
        'nolearn.lasagne.base', 'Layers'), b'sb'),
    'items for a net': op(empty_net, 'a', 'b', b's'),
    'append to a net': op(empty_net, 'a', b'a'),
    'append to a class': op(name('nolearn.lasagne.base', 'Layers'), b'(', 'a', b'e'),
    'a layer named by a string': net_with(layers=[('input', 'subprocess.Popen')]),
    'a layer named by a string, new form': net_with(
        layers=[('subprocess.Popen', {'args': ['touch', FLAG]})]),
    'a module as layer': net_with(layers=[('input', 'antigravity')]),
    'a wrapper of a layer': op(empty_net, b'}', 'layers', b'](', b'(',
                               name('lasagne.layers.input', 'InputLayer'), b'}', 'layer_wrapper',
                               name('lasagne.objectives', 'squared_error'), b's', b't', b'esb'),
    'a function as layer': op(empty_net, b'}', 'layers', b'](', b'(', 'input',
                              name('lasagne.updates', 'sgd'), b't', b'esb'),
    'layers that are a dictionary': net_with(layers={'a': 1}),
    'C code in a Theano type': op(name('theano.tensor.type', 'TensorType'), b')\x81', text(
        {'dtype': f'float32; system("{command}");', 'broadcastable': (False,)}), b'b'),
    'weights that are no arrays': net_with(_saved_weights={'conv1': ['x']}),
    'shared variables that are no arrays': net_with(_shared={'update_momentum': 'x'}),
    'a random state out of bounds': op(
        name('numpy.random._pickle', '__randomstate_ctor'), text(('MT19937',)), b'R', text(
            {'bit_generator': 'MT19937', 'state': {'key': [0] * 624, 'pos': 10 ** 9},
             'has_gauss': 0, 'gauss': 0.}), b'b'),
    'another random generator': op(name('numpy.random._pickle', '__randomstate_ctor'),
                                   text(('os.system',)), b'R'),
    'text that claims a terabyte': b'\x80\x04\x8d' + struct.pack('<Q', 10 ** 12) + b'abc.',
    'bytes that claim a terabyte': b'\x80\x04\x8e' + struct.pack('<Q', 10 ** 12) + b'abc.',
    'a bytearray that claims a terabyte': b'\x80\x05\x96' + struct.pack('<Q', 10 ** 12) + b'abc.',
    'a frame that claims a terabyte': b'\x80\x04\x95' + struct.pack('<Q', 10 ** 12) + b'abc.',
    'a negative length': b'\x80\x02\x8b' + struct.pack('<i', -5) + b'abc.',
    'a huge place in the memo': b'\x80\x02r' + struct.pack('<I', 2 ** 32 - 1) + b'.',
    'a billion small objects': b'\x80\x02' + b'}' * 2000000 + b'.',
    'a key that hashes for ever':
        b'\x80\x04)q\x00' + b'0h\x00h\x00\x86q\x00' * 100 + b'0}h\x00Ns.',
    'a protocol to come': b'\x80\x63N.',
    'no end': b'\x80\x04]',
    'an empty stack': b'\x80\x04.',
    'a reduce of nothing': b'\x80\x04R.',
    'a place in the memo that is empty': b'\x80\x04h\x07.',
    'pop beyond the stack': b'\x80\x04000.',
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('case', list(HOSTILE))
def test_hostile_pickles_are_refused_before_their_code_runs(here, case, monkeypatch):
    data, modules, start = HOSTILE[case], set(sys.modules), time.time()
    monkeypatch.setattr(safe_pickle, 'INSTRUCTIONS', 1 << 20)  # else that case takes ten seconds
    (here / 'net.pickle').write_bytes(data)
    with pytest.raises(kfkd.DataError, match='net.pickle is not a file of nets') as info:
        kfkd.load_nets('net.pickle')
    assert not isinstance(info.value.__cause__, (NameError, RecursionError)), 'an error of our own'
    assert os.listdir(str(here)) == ['net.pickle']
    assert set(sys.modules) == modules
    assert time.time() < start + 60
    if case in ('no end', 'an empty stack', 'pop beyond the stack'):
        return
    # As a part of something that looks right, too.
    (here / 'net.pickle').write_bytes(b'\x80\x04](' + data[:-1] + b'e.')
    with pytest.raises(kfkd.DataError):
        kfkd.load_nets('net.pickle')
    assert os.listdir(str(here)) == ['net.pickle']


def test_the_collection_is_dangerous_to_pickle_itself(here):
    """Else the test above would prove nothing."""
    for case in ('os.system', 'eval', 'exec', 'open', 'subprocess.call', 'inst', 'obj',
                 'posix.system', 'newobj of a trap', 'text opcodes'):
        pickle.loads(HOSTILE[case])
        wait = time.time() + 10
        while not os.path.exists(FLAG) and time.time() < wait:
            time.sleep(0.01)
        os.remove(FLAG)
    with pytest.raises(Exception):
        layer, = pickle.loads(HOSTILE['a layer named by a string']).layers_
    assert pickle.loads(HOSTILE['nested to sys']) == 0
    os.remove(FLAG)


# In pickles of protocols 0 and 1, which nets are not written in.
HOSTILE_ARRAYS = dict(
    HOSTILE,
    **{'a key of an old dictionary that hashes for ever':
        b')p0\n' + b'0g0\ng0\n\x86p0\n' * 100 + b'(g0\nNd.',
       'a string that claims two gigabytes': b'T' + struct.pack('<i', 2 ** 31 - 1) + b'abc.',
       'a string of a negative length': b'T' + struct.pack('<i', -5) + b'abc.',
       'a number of millions of digits': b'I' + b'9' * 10 ** 7 + b'\n.',
       'bytes by another encoding': op(name('_codecs', 'encode'), text(('abc', 'rot13')), b'R'),
       'a net': pickle.dumps(kfkd.net, -1)})


@pytest.mark.parametrize('case', list(HOSTILE_ARRAYS))
def test_files_of_arrays_are_as_safe(here, case, monkeypatch):
    modules, start = set(sys.modules), time.time()
    monkeypatch.setattr(safe_pickle, 'INSTRUCTIONS', 1 << 20)
    (here / 'arrays.pickle').write_bytes(HOSTILE_ARRAYS[case])
    with open('arrays.pickle', 'rb') as f, pytest.raises(pickle.UnpicklingError) as info:
        safe_pickle.load_arrays(f)
    assert not isinstance(info.value.__cause__, (NameError, RecursionError)), 'an error of our own'
    assert os.listdir(str(here)) == ['arrays.pickle']
    assert set(sys.modules) == modules and time.time() < start + 60


def test_the_message_names_the_class(here):
    (here / 'net.pickle').write_bytes(HOSTILE['os.system'])
    with pytest.raises(kfkd.DataError, match=r'posix\.system, which is none of those'):
        kfkd.load_nets('net.pickle')
    (here / 'net.pickle').write_bytes(HOSTILE['a name with a newline'])
    with pytest.raises(kfkd.DataError, match=r'os\.system\\n\\x1b\[2J'):
        kfkd.load_nets('net.pickle')


# -------------------------------------------------------------------------- what must go on working

@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_the_decks_net_and_values_of_its_kinds(protocol):
    random = np.random.RandomState(3)
    random.normal(size=3)
    random_after = np.random.RandomState()
    random_after.set_state(random.get_state())
    net = kfkd.build_net()
    net.train_history_ = [{'epoch': 1, 'train_loss': np.float64(0.1), 'train_loss_best': np.bool_(1),
                           'valid_loss': np.nan}]
    net.columns_ = kfkd.COLUMNS
    net.random = random
    net.arrays = [np.arange(24).astype(dtype).reshape(2, 3, 4).transpose(axes)
                  for dtype in ('f4', 'f8', 'i4', 'u1', 'bool') for axes in
                  ((0, 1, 2), (2, 1, 0), (1, 0, 2))] + [np.float32(2), np.zeros((0, 3)), np.array(1.)]
    again = safe_pickle.loads(pickle.dumps(net, protocol), [
        kfkd.AdjustVariable, kfkd.EarlyStopping, kfkd.FlipBatchIterator, kfkd.FaceBatchIterator,
        TimeLeft])
    for a, b in zip(net.arrays, again.arrays):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and type(a) is type(b)
    np.testing.assert_array_equal(again.random.normal(size=5), random_after.normal(size=5))
    assert again.columns_ == kfkd.COLUMNS and repr(again.train_history_) == repr(net.train_history_)
    assert again.update_learning_rate.get_value() == net.update_learning_rate.get_value()
    assert again.get_params().keys() == net.get_params().keys()
    assert [kind for _, kind in again.layers] == [kind for _, kind in net.layers]


# As Python 2 and its NumPy write {'values': [array of two float32]}: strings for bytes.
PYTHON_2 = (
    b'\x80\x02}q\x01U\x06values]q\x02cnumpy.core.multiarray\n_reconstruct\nq\x03(cnumpy\nndarray\n'
    b'K\x00\x85U\x01btR(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN'
    b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08' + np.array([1.5, -3e8], '<f4').tobytes()
    + b'tbas.')


def test_arrays_of_every_protocol_and_of_python_2(here):
    values = {'values': [np.arange(6.).reshape(2, 3).T, np.float32(2)], 'names': ('a', 'b', 3, None, True)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (here / 'arrays.pickle').write_bytes(pickle.dumps(values, protocol))
        with open('arrays.pickle', 'rb') as f:
            found = safe_pickle.load_arrays(f)
        assert found['names'] == values['names'] and found['values'][1] == 2
        np.testing.assert_array_equal(found['values'][0], values['values'][0])
    (here / 'arrays.pickle').write_bytes(PYTHON_2)
    with open('arrays.pickle', 'rb') as f:
        [array] = safe_pickle.load_arrays(f)['values']
    assert array.dtype == np.float32 and list(array) == [1.5, np.float32(-3e8)]


def test_every_layer_of_lasagne_may_be_named():
    kinds = [kind for kind in vars(layers).values() if isinstance(kind, type)]
    assert len(kinds) > 30
    assert safe_pickle.loads(pickle.dumps(kinds)) == kinds


class Iterator(kfkd.FlipBatchIterator):
    """A class of one's own."""


def test_ones_own_classes_are_trusted_by_name_or_by_use(here, monkeypatch):
    net = kfkd.build_net()
    net.batch_iterator_train = Iterator(128)
    net_files.save(net, 'net.pickle')
    with pytest.raises(kfkd.DataError, match='Iterator, which is none .* belong in TRUSTED'):
        kfkd.load_nets('net.pickle')
    monkeypatch.setattr(kfkd, 'TRUSTED', (Iterator,))
    assert isinstance(kfkd.load_nets('net.pickle').batch_iterator_train, Iterator)
    monkeypatch.setattr(kfkd, 'TRUSTED', ())
    monkeypatch.setattr(kfkd, 'build_net', lambda c=None: net)
    assert isinstance(kfkd.load_nets('net.pickle').batch_iterator_train, Iterator)


class Recorder:
    def __init__(self):
        self.seen = []

    def on_epoch_finished(self, nn, train_history):
        self.seen.append(train_history[-1])

    def secret(self):
        raise AssertionError


def test_methods_may_be_handlers_by_nolearns_names():
    recorder = Recorder()
    net = NeuralNet(layers=[('input', layers.InputLayer)],
                    on_epoch_finished=[recorder.on_epoch_finished])
    twin = safe_pickle.loads(dumps(net), [Recorder])
    twin.on_epoch_finished[0](twin, [1])
    assert twin.on_epoch_finished[0].__self__.seen == [1]
    net.on_epoch_finished = [recorder.secret]
    with pytest.raises(pickle.UnpicklingError, match="the attribute 'secret' of a Recorder"):
        safe_pickle.loads(dumps(net), [Recorder])


def test_settings_that_claim_more_than_the_weights_there_are(here, capsys, monkeypatch):
    monkeypatch.setattr(kfkd, 'FTRAIN', 'faces.csv')    # or it would draw thousands
    net = kfkd.build_net().set_params(conv1_num_filters=2, conv2_num_filters=2, conv3_num_filters=2,
                                      hidden4_num_units=5, hidden5_num_units=5)
    net.columns_ = kfkd.COLUMNS
    net.initialize_layers()
    state = net.__getstate__()
    for change in (dict(hidden4_num_units=10 ** 10), dict(conv1_num_filters=10 ** 9),
                   dict(input_shape=(None, 1, 10 ** 6, 10 ** 6)), dict(layers=net.layers * 2),
                   dict(hidden5_num_units=-1), dict(hidden4_num_units='many'), dict(layers=[])):
        other = NeuralNet.__new__(NeuralNet)
        vars(other).update(state, **change)
        net_files.save(other, 'net.pickle')
        assert kfkd.main(['fit_specialists', 'net.pickle']) == 1
        assert 'net.pickle holds a net that cannot be used' in capsys.readouterr().err


def test_a_pickle_has_no_paths_and_no_source():
    """Theano notes where a variable was made, and pickles that with it."""
    data = pickle.dumps(kfkd.build_net(), -1)
    assert b'kfkd.py' not in data and b'LEARNING_RATE' not in data
