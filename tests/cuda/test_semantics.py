"""What users of Theano rely on beside the numbers: shared variables, updates, fall-back, errors."""
import copy
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import theano
import theano.tensor as tt
import torch
from lasagne import layers
from reference import C, on_device
from theano.tensor.nnet.neighbours import images2neibs
from theano_today.cuda import convert, graphs
from theano_today.cuda.storage import DeviceStorage
from without_torch import CODE as WITHOUT_TORCH

MODES = ['eager', 'graph']
X = np.arange(6, dtype='float32').reshape(2, 3)


@pytest.fixture
def counter():
    """A shared matrix and a function that adds one to it and returns the old sum."""
    w = theano.shared(X, 'w')
    return w, theano.function([], w.sum(), updates=[(w, w + 1)])


def test_get_and_set_value(counter):
    w, step = counter
    for n in range(4):
        assert step() == 15 + 6 * n
    assert isinstance(w.container.storage, DeviceStorage)
    np.testing.assert_array_equal(w.get_value(), X + 4)
    w.set_value(X * 2)
    assert step() == 30
    np.testing.assert_array_equal(w.get_value(), X * 2 + 1)
    w.set_value(np.ones((1, 2), 'float32'))  # another shape
    assert step() == 2 and step() == 4
    np.testing.assert_array_equal(w.get_value(), [[3, 3]])


def test_get_value_is_a_copy(counter):
    w, step = counter
    step()
    value = w.get_value()
    value[:] = 0
    assert step() == 21
    borrowed = w.get_value(borrow=True)
    assert w.get_value(borrow=True) is borrowed  # one transfer
    with pytest.raises(ValueError, match='read-only'):
        borrowed[:] = 0
    step()
    np.testing.assert_array_equal(borrowed, X + 2)


def test_set_value_copies_unless_told_to_borrow(counter):
    w, step = counter
    value = X.copy()
    w.set_value(value)
    value[:] = 0
    assert step() == 15
    w.set_value(X, borrow=True)
    assert step() == 15
    np.testing.assert_array_equal(X, np.arange(6).reshape(2, 3))  # no update writes into it


def test_outputs_belong_to_the_caller():
    w, x = theano.shared(X.copy()), tt.matrix()
    f = theano.function([x], [w, w.T, x, x.reshape((6,)), x[0], x * 2], updates=[(w, w + x[0, 0])])
    for _ in range(4):
        argument = X + 1
        before = w.get_value()
        results = f(argument)
        expected = [before, before.T, X + 1, (X + 1).ravel(), X[0] + 1, 2 * X + 2]
        for result, value in zip(results, expected):
            np.testing.assert_array_equal(result, value)
            result[...] = -7
        np.testing.assert_array_equal(argument, X + 1)
        np.testing.assert_array_equal(w.get_value(), before + 1)


def test_updates_happen_at_once():
    a, b = theano.shared(X), theano.shared(X + 10)
    swap = theano.function([], [], updates=[(a, b), (b, a)])
    turn = theano.function([], [], updates=[(a, a[::-1]), (b, b.reshape((2, 3)) + a)])
    for _ in range(3):
        swap()
    np.testing.assert_array_equal(a.get_value(), X + 10)
    np.testing.assert_array_equal(b.get_value(), X)
    turn()
    np.testing.assert_array_equal(a.get_value(), (X + 10)[::-1])
    np.testing.assert_array_equal(b.get_value(), X + X + 10)


def test_givens_and_defaults():
    x, y, i = tt.matrix(), tt.scalar('y'), tt.lscalar('i')
    data = theano.shared(np.arange(20, dtype='float32').reshape(10, 2))
    f = theano.function([i, theano.In(y, value=np.float32(2))], x.sum() * y,
                        givens={x: data[i * 3:(i + 1) * 3]})
    assert on_device(f)
    for n in list(range(4)) * 3:  # the last slice is shorter
        assert f(n) == 2 * data.get_value()[n * 3:n * 3 + 3].sum()
    assert f(0, y=1) == 15 and f(0) == 30


def test_an_index_that_is_a_value_too():
    n, x = tt.ivector(), tt.tensor3()
    f = theano.function([n, x], [x.reshape(n, ndim=3), tt.outer(n, n), n * 2, n])
    assert on_device(f)
    for shape in ([2, 3, 4], [4, 3, 2]) * 4:
        value = np.array(shape, 'int32')
        results = f(value, np.zeros((6, 2, 2), 'float32'))
        assert results[0].shape == tuple(shape)
        np.testing.assert_array_equal(results[1], np.outer(value, value))
        np.testing.assert_array_equal(results[2:], [value * 2, value])


def test_more_indices_than_lines_are_kept():
    i, data = tt.lscalar(), theano.shared(np.arange(200, dtype='float32'))
    f = theano.function([i], data[i:i + 2].sum())
    for n in list(range(150)) + list(range(5)) * 4:
        assert f(n) == 2 * n + 1


def test_arguments_are_checked_as_ever():
    x, y = tt.matrix('x'), tt.matrix('y')
    f = theano.function([x], x * 2)
    with pytest.raises(TypeError, match='Bad input argument'):
        f(X.astype('complex64'))
    # Nobody has set floatX here: where a script has left it out, doubles are rounded.
    assert f(X.astype('float64')).dtype == 'float32'
    downcasting = theano.function([x], x * 2, allow_input_downcast=True)
    assert downcasting(X.astype('float64')).dtype == 'float32'
    with pytest.raises(theano.compile.UnusedInputError):
        theano.function([x, y], x)
    with pytest.raises(TypeError, match='Missing required input'):
        f()
    f = theano.function([x, y], x * 2, on_unused_input='ignore')
    np.testing.assert_array_equal(f(X, X), X * 2)
    # Views of every kind, and arrays that may not be written to.
    fixed = X.copy()
    fixed.flags.writeable = False
    for value in (X[::-1], X.T, X[:, ::2], fixed, X.astype('>f4').astype('float32')):
        np.testing.assert_array_equal(f(value, X), value * 2)


def test_kinds_of_outputs():
    x = tt.matrix()
    f = theano.function([x], {'sum': x.sum(), 'twice': x * 2})
    assert f(X)['sum'] == 15 and sorted(f(X)) == ['sum', 'twice']
    assert theano.function([x], [], on_unused_input='ignore')(X) == []
    total = theano.function([x], x.sum())(X)
    assert isinstance(total, np.ndarray) and total.shape == () and total.dtype == 'float32'
    f = theano.function([x], [x.sum(), x * 2, tt.constant(3.), x.shape[0]])
    for _ in range(3):
        assert f(X)[2:] == [3, 2]
        assert f(X, output_subset=[0]) == [15]
    assert (x * 2).eval({x: X})[1, 2] == 10


def test_integers_of_shared_variables():
    n = theano.shared(0)
    data = theano.shared(np.arange(10, dtype='float32'))
    f = theano.function([], data[n:n + 2].sum(), updates=[(n, n + 1)])
    assert [float(f()) for _ in range(5)] == [1, 3, 5, 7, 9]
    assert n.get_value() == 5 and n.get_value().dtype == 'int64'


def test_the_host_and_the_device_share_variables(counter):
    w, step = counter
    scale = theano.function([], w.sum(), updates=[(w, w * 2)], mode=C)
    assert not on_device(scale)
    value = X.copy()
    for _ in range(4):
        assert step() == value.sum()
        value = value + 1
        assert scale() == value.sum()
        value = value * 2
        np.testing.assert_array_equal(w.get_value(), value)
        w.set_value(value - 1)
        value = value - 1
        assert scale() == value.sum()
        value = value * 2


def test_captured_lines_follow_their_buffers(counter):
    """A CUDA graph knows addresses: it must notice when a variable gets another buffer."""
    w, step = counter
    x = tt.vector()
    rate = theano.shared(np.float32(2))
    scaled = theano.function([x], [x * rate, w.sum()], updates=[(rate, rate + 1)])
    value, factor = X.copy(), 2
    for n in range(12):
        if n == 5:
            theano.function([], theano.shared(X) * 2)()  # new buffers, but not of these
        if n == 8:
            value = np.ones((1, 2), 'float32')
            w.set_value(value)
        if n == 9:
            rate.set_value(np.float32(7))  # as a schedule does
            factor = 7
        assert step() == value.sum()
        value = value + 1
        first, second = scaled(X[1] + n), scaled(X[0] - n)
        np.testing.assert_array_equal(first[0], (X[1] + n) * factor)
        np.testing.assert_array_equal(second[0], (X[0] - n) * (factor + 1))
        assert first[1] == second[1] == value.sum()
        factor += 2
    line = list(scaled.fn.lines.values())[-1]
    assert (line.recording is not None) == (graphs.mode(convert.device()) == 'graph')


def test_copies_of_functions(counter):
    w, step = counter
    step()
    other = theano.shared(X * 10)
    swapped = step.copy(swap={w: other})
    assert on_device(swapped) and swapped() == [150] and swapped() == [156]
    frozen = step.copy(delete_updates=True)
    assert frozen() == frozen() == [21]
    assert step() == 21 and frozen() == [27]
    np.testing.assert_array_equal(other.get_value(), X * 10 + 2)


def test_pickles_hold_plain_arrays(counter):
    w, step = counter
    step()
    text = pickle.dumps(w)
    assert b'theano_today' not in text and b'torch' not in text
    again = pickle.loads(text)
    np.testing.assert_array_equal(again.get_value(), X + 1)
    np.testing.assert_array_equal(copy.deepcopy(w).get_value(), X + 1)
    more = theano.function([], again.sum(), updates=[(again, again + 1)])
    assert more() == 21 and more() == 27 and w.get_value().sum() == 21
    function = pickle.loads(pickle.dumps(step))
    assert on_device(function) and function() == 21


def test_weights_read_by_a_machine_without_the_device(tmp_path):
    net = layers.DenseLayer(layers.InputLayer((2, 3)), 4)
    f = theano.function([net.input_layer.input_var], layers.get_output(net).sum(),
                        updates=[(net.W, net.W + 1)])
    f(X)
    path = str(tmp_path / 'net.pickle')
    with open(path, 'wb') as file:
        pickle.dump(net, file)
    code = (WITHOUT_TORCH + 'import theano_today, pickle\n'
            'net = pickle.load(open(sys.argv[1], "rb"))\n'
            'print(repr(net.W.get_value().tolist()))')
    flags = theano.config.base_compiledir
    environment = dict(os.environ, THEANO_FLAGS='base_compiledir=' + flags)
    out = subprocess.run([sys.executable, '-c', code, path], env=environment, check=True,
                         capture_output=True, text=True).stdout
    np.testing.assert_array_equal(np.array(eval(out), 'float32'), net.W.get_value())


# --------------------------------------------------------------------------------------- fall-back

def test_an_op_without_a_counterpart_runs_on_the_cpu():
    x, w = tt.matrix(), theano.shared(X)
    with pytest.warns(UserWarning, match='runs on the CPU.*Images2Neibs') as caught:
        f = theano.function([x], images2neibs(
            x.dimshuffle('x', 'x', 0, 1), (1, 3)) + w.sum(), updates=[(w, w + 1)], name='patches')
    assert len(caught) == 1 and 'patches' in str(caught[0].message)
    assert not on_device(f)
    np.testing.assert_array_equal(f(X), X + 15)
    np.testing.assert_array_equal(f(X), X + 21)
    g = theano.function([], w.sum(), updates=[(w, w * 2)])
    assert on_device(g) and g() == 27 and g() == 54
    np.testing.assert_array_equal(f(X), X + 108)


def test_scan_runs_on_the_cpu():
    x = tt.vector()
    with pytest.warns(UserWarning, match='runs on the CPU'):
        total, updates = theano.scan(lambda v, s: s + v, [x], [tt.constant(np.float32(0))])
        f = theano.function([x], total, updates=updates)
    np.testing.assert_array_equal(f(X[1]), X[1].cumsum())


def test_shapes_that_depend_on_values_run_on_the_cpu():
    x = tt.vector()
    with pytest.warns(UserWarning, match='runs on the CPU'):
        f = theano.function([x], x[(x > 1).nonzero()])
    np.testing.assert_array_equal(f(X[0]), [2])


def test_nothing_else_warns():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        theano.sandbox.rng_mrg.MRG_RandomStreams(7).uniform((3, 4)).eval()


# ------------------------------------------------------------------------------------------ errors

def test_out_of_memory_names_the_shapes(monkeypatch):
    x = tt.matrix('x')
    f = theano.function([x], tt.exp(x))
    f(X)

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.\nmore')

    monkeypatch.setattr(type(f.fn), 'interpret', no_memory)
    with pytest.raises(MemoryError, match=r'called with x \(4, 3\).*smaller batches'):
        f(np.vstack([X, X]))
    monkeypatch.undo()
    vector = tt.alloc(x.sum(), x.shape[0] * 2 ** 21)
    big = theano.function([x], tt.outer(vector, vector).sum())
    with pytest.raises(MemoryError, match=r'called with x \(2, 3\)'):
        big(X)


def test_assert_and_print(capsys):
    x = tt.matrix()
    checked = tt.opt.Assert('not square')(x, tt.eq(x.shape[0], x.shape[1]))
    positive = tt.opt.Assert('not positive')(x, tt.all(x >= 0))
    f, g = theano.function([x], checked * 2), theano.function([x], positive * 2)
    shown = theano.function([x], theano.printing.Print('this is x')(x).sum())
    assert on_device(f) and on_device(g) and on_device(shown)
    for _ in range(4):
        np.testing.assert_array_equal(f(X[:, :2]), 2 * X[:, :2])
        with pytest.raises(AssertionError, match='not square'):
            f(X)
        np.testing.assert_array_equal(g(X), 2 * X)
        with pytest.raises(AssertionError, match='not positive'):
            g(-X - 1)
        assert shown(X) == 15 and 'this is x __str__ = [[0. 1. 2.]' in capsys.readouterr().out


def test_errors_name_the_op():
    i = tt.iscalar()
    f = theano.function([i], theano.shared(X)[i])
    with pytest.raises(IndexError, match='(?s)Subtensor.*Backtrace when the node is created'):
        f(5)
