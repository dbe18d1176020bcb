"""What would have gone wrong on the first GPU, each of them seen without one."""
import gc
import logging
import threading
import types
import weakref

import numpy as np
import pytest
import theano
import theano.tensor as tt
import torch
from reference import on_device
from theano.tensor.signal.pool import pool_2d
from theano_today.cuda import convert, graphs, ops_nnet, storage
from theano_today.cuda.kernels import elemwise, run
from theano_today.cuda.storage import DeviceStorage

MODES = ['graph']
X = np.arange(6, dtype='float32').reshape(2, 3)

recorded = pytest.mark.usefixtures('recorded')
stand_in = pytest.mark.skipif(convert.device().type != 'cpu', reason='replaces calls of CUDA')


def recordings(function):
    return [line.recording for line in function.fn.lines.values() if line and line.recording]


# ------------------------------------------------------------------------------------- the capture

class Cuda:
    """The calls of torch.cuda that record a graph, and what they leave behind."""

    def __init__(self):
        self.current, self.open_pools, self.pools = 'the default stream', [], 0

    def new_pool(self):
        self.pools += 1
        return self.pools

    def stream(self, stream):
        cuda = self

        class Context:
            def __enter__(self):
                self.before, cuda.current = cuda.current, stream

            def __exit__(self, *args):
                cuda.current = self.before
        return Context()

    def graph(self):
        cuda = self

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert cuda.current == 'a stream' and capture_error_mode == 'thread_local'
                if pool in cuda.open_pools:
                    raise RuntimeError('beginAllocateToPool: already recording to mempool_id')
                cuda.open_pools.append(pool)

            def capture_end(self):
                if cuda.broken:  # PyTorch looks at CUDA's answer first, and comes no further
                    raise RuntimeError('CUDA error: operation failed due to a previous error')
                cuda.end_pool(0, cuda.open_pools[-1])

            def replay(self):
                pass
        return Graph()

    def end_pool(self, device, pool):
        if pool not in self.open_pools:
            raise RuntimeError('endAllocatePool: not currently recording')
        self.open_pools.remove(pool)


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    for name, value in dict(
            synchronize=lambda: None, empty_cache=lambda: None, Stream=lambda: 'a stream',
            current_device=lambda: 0, stream=fake.stream, CUDAGraph=fake.graph,
            graph_pool_handle=fake.new_pool).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', fake.end_pool, raising=False)
    monkeypatch.setattr(graphs.CudaGraph, 'pool', None)
    monkeypatch.setattr(graphs.CudaGraph, 'stream', None)
    return fake


@stand_in
@pytest.mark.parametrize('broken', [True, False], ids=['invalidated', 'error in Python'])
def test_a_failed_capture_leaves_nothing_behind(cuda, broken):
    def fails():
        cuda.broken = broken
        raise ValueError('this cannot be captured')

    cuda.broken = False
    first = graphs.CudaGraph(lambda: ['results'])
    with pytest.raises(ValueError, match='cannot be captured'):
        graphs.CudaGraph(fails)
    assert cuda.current == 'the default stream' and not cuda.open_pools
    cuda.broken = False
    second = graphs.CudaGraph(lambda: ['more results'])
    assert (first.results, second.results) == (['results'], ['more results'])
    assert cuda.current == 'the default stream' and not cuda.open_pools


@recorded
@pytest.mark.filterwarnings('ignore')
def test_functions_go_on_after_a_failed_capture(monkeypatch, caplog):
    """On a GPU the capture is broken for real: the host must not wait for the device in it."""
    x = tt.matrix()
    w = theano.shared(X)
    f = theano.function([x], (x * w).sum(), updates=[(w, w + 1)])
    original = graphs.Recording

    def broken(function, *args):
        def look(*arguments):
            function(*arguments)[0].item()
            raise RuntimeError('the host has looked at the device')
        return original(look, *args)

    monkeypatch.setattr(graphs, 'Recording', broken)
    if convert.device().type == 'cpu':  # where nothing runs before the first replay
        monkeypatch.setattr(graphs, 'Rerun', lambda step: 1 / 0)
    with caplog.at_level(logging.WARNING):
        for n in range(5):
            assert f(X) == (X * (X + n)).sum()
    assert caplog.text.count('could not be captured') == 1 and not recordings(f)
    monkeypatch.undo()
    g = theano.function([x], (x * w).sum(), updates=[(w, w + 1)])
    for n in range(5, 10):
        assert g(X) == (X * (X + n)).sum()
    assert recordings(g) and f(X) == (X * (X + 10)).sum()


# ----------------------------------------------------------------------------- addresses in graphs

@recorded
def test_replays_are_eager_calls_bit_for_bit(monkeypatch):
    results = []
    for mode in 'graph', 'eager':
        monkeypatch.setenv('THEANO_TODAY_CUDA', mode)
        stream = theano.sandbox.rng_mrg.MRG_RandomStreams(3)
        x, w, v = tt.matrix(), theano.shared(X), theano.shared(X * 0)
        cost = tt.sqr(x * w * (stream.uniform(x.shape) < 0.5) - 1).sum()
        step = 0.9 * v - 0.1 * theano.grad(cost, w)
        f = theano.function([x], cost, updates=[(v, step), (w, w + step)])
        results.append([f(X + n) for n in range(8)] + [w.get_value(), v.get_value()])
        assert bool(recordings(f)) == (mode == 'graph')
    for ours, theirs in zip(*results):
        np.testing.assert_array_equal(ours, theirs)


@recorded
def test_a_variable_that_is_only_written():
    x, w = tt.matrix(), theano.shared(X)
    f = theano.function([x], x.sum(), updates=[(w, x * 2)])
    for n in range(12):
        value = np.full((2 + n % 2, 3), n, 'float32')
        assert f(value) == value.sum()
        np.testing.assert_array_equal(w.get_value(), value * 2)
    assert len(recordings(f)) == 2


@recorded
def test_two_functions_write_one_variable():
    """Each of them finds that the other has put the variable elsewhere."""
    x, w = tt.matrix(), theano.shared(X)
    f = theano.function([x], [], updates=[(w, x * 2)])
    g = theano.function([x], w.sum(), updates=[(w, x[:1] + 1)])
    for n in range(12):
        f(X + n)
        np.testing.assert_array_equal(w.get_value(), 2 * (X + n))
        assert g(X + n) == 2 * (X + n).sum()
        np.testing.assert_array_equal(w.get_value(), X[:1] + n + 1)


@recorded
def test_the_stand_in_freezes_addresses():
    """A CUDA graph writes where the buffer was when it was captured: so does `Rerun`."""
    x, w = tt.matrix(), theano.shared(X)
    f = theano.function([x], [], updates=[(w, x * 2)])
    for n in range(4):
        f(X + n)
    recording, = recordings(f)
    old = w.container.storage.buffer
    w.container.storage.write(torch.zeros(1, 1))
    assert w.container.storage.buffer is not old and not recording.current()
    recording.graph.replay()
    np.testing.assert_array_equal(old.cpu().numpy(), 2 * (X + 3))
    np.testing.assert_array_equal(w.container.storage.buffer.cpu().numpy(), [[0]])


@recorded
def test_tables_outlive_the_graphs_that_read_them(monkeypatch):
    """The averages of windows that overhang divide by a table, one for each shape."""
    x = tt.tensor4()
    f = theano.function([x], pool_2d(x, (2, 2), ignore_border=False, mode='average_exc_pad'))
    table, made = ops_nnet._sizes, []

    def remember(*args):
        value = table(*args)
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(ops_nnet, '_sizes', remember)
    small = np.ones((1, 1, 3, 3), 'float32')
    for _ in range(4):
        f(small)
    assert recordings(f)
    used = made[-1]
    for n in range(4, 4 + 70):  # more shapes than anybody keeps tables for
        table((n, 3), (2, 2), (2, 2), (0, 0), (n // 2, 2), False, torch.float32, convert.device())
    gc.collect()
    assert used() is not None
    np.testing.assert_array_equal(f(small), np.ones((1, 1, 2, 2)))
    monkeypatch.undo()
    f.fn.lines.clear()
    gc.collect()
    assert used() is None


@recorded
def test_new_values_of_variables_are_not_kept_twice():
    x, w, v = tt.matrix(), theano.shared(X), theano.shared(X)
    f = theano.function([x], x.sum(), updates=[(w, w * x), (v, x[::-1])])
    for _ in range(4):
        f(X)
    recording, = recordings(f)
    assert [result is None for result in recording.graph.results] == [False, True, True]


# ------------------------------------------------------------------------------ indices and labels

def never(*args, **kwargs):
    raise AssertionError('a bad index has come to the device')


def embedding(words, weights):
    return weights[words].sum()


def loss(labels, weights):
    return tt.nnet.categorical_crossentropy(tt.nnet.softmax(weights), labels).mean()


@pytest.mark.parametrize('use, bad', [(embedding, [0, 3]), (embedding, [-4, 0]), (loss, [0, 3, 1]),
                                      (loss, [0, -1, 1])])
def test_bad_indices_are_found_on_the_host(use, bad, monkeypatch):
    indices, w = tt.ivector('words'), theano.shared(np.eye(3, dtype='float32'))
    cost = use(indices, w)
    f = theano.function([indices], cost, updates=[(w, w - theano.grad(cost, w))])
    assert on_device(f)
    good = np.zeros(len(bad), 'int32')
    for _ in range(4):
        f(good)
    before = w.get_value()
    line, = f.fn.lines.values()
    monkeypatch.setattr(line, 'function', never)
    if line.recording:
        monkeypatch.setattr(line.recording, 'replay', never)
    with pytest.raises(IndexError, match='words: .* is out of range; it must be at least'):
        f(np.array(bad, 'int32'))
    monkeypatch.undo()
    np.testing.assert_array_equal(w.get_value(), before)
    f(good)  # and the device is as it was


def test_bad_labels_in_a_shared_variable():
    """As with givens: a slice of all labels, of which only the last is wrong."""
    labels, i = theano.shared(np.array([0, 1, 2, 7], 'int32'), 'labels'), tt.lscalar()
    w = theano.shared(np.eye(2, 3, dtype='float32'))
    f = theano.function([i], loss(labels[i:i + 2], w))
    for _ in range(4):
        assert f(0) > 0
    with pytest.raises(IndexError, match='labels: 7 is out of range'):
        f(2)
    labels.set_value(np.array([0, 1, 2, 2], 'int32'))
    assert f(2) > 0
    labels.set_value(np.array([0, 9, 2, 2], 'int32'))
    with pytest.raises(IndexError, match='labels: 9 is out of range'):
        f(0)


def test_indices_computed_on_the_device():
    x, w = tt.matrix(), theano.shared(X)
    f = theano.function([x], w[tt.cast(x[:, 0], 'int64')])
    for _ in range(5):
        np.testing.assert_array_equal(f(X[:, 1:] * 0), X[[0, 0]])
        with pytest.raises(IndexError, match='5 is out of range'):
            f(X + 2)


# --------------------------------------------------------------------------------------- one lock

def test_threads_do_not_meet_on_the_device(monkeypatch):
    """An iterator that calls a function of Theano, while the net trains in the main thread."""
    w = theano.shared(X)
    f = theano.function([], w.sum(), updates=[(w, w * 1)])
    x = tt.matrix()
    g = theano.function([x], x * 2)
    for _ in range(4):
        f(), g(X)
    inside, at_once = [], []
    for program in (f.fn, g.fn):
        monkeypatch.setattr(program, '_call', lambda call=program._call: slowly(call))

    def slowly(call):
        inside.append(1)
        at_once.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()
        return call()

    feeder = threading.Thread(target=lambda: [g(X) for _ in range(20)])
    feeder.start()
    for _ in range(20):
        f()
    feeder.join()
    assert len(at_once) == 40 and set(at_once) == {1}


def test_values_are_not_read_during_a_call(monkeypatch):
    w = theano.shared(X)
    f = theano.function([], w.sum(), updates=[(w, w + 1)])
    f()
    seen = threading.Event()
    reader = threading.Thread(target=lambda: (w.get_value(), seen.set()))
    with storage.LOCK:  # as a call does
        assert isinstance(w.container.storage, DeviceStorage)
        reader.start()
        assert not seen.wait(0.1)
    reader.join()
    assert seen.is_set()


# ------------------------------------------------------------------------- Triton that does not work

@pytest.mark.parametrize('error', [
    RuntimeError('Failed to find C compiler. Please specify via CC environment variable.'),
    PermissionError(13, 'Permission denied', '/home/user/.triton/cache'), ImportError('no triton')])
def test_without_working_kernels(error, monkeypatch, caplog):
    """PyTorch's own calls do the work, with one warning: in the warm-up, or in the first call."""
    def fails(*args, **kwargs):
        raise error

    for name, value in dict(_installed=True, _failed=False, interpreted=lambda: True,
                            from_source=fails, launch=fails).items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(elemwise, 'from_source', fails)
    x, w = tt.matrix(), theano.shared(X)
    f = theano.function([x], tt.sqr(x * w + 1).sum(), updates=[(w, w * 0.5 + x)])
    u = theano.sandbox.rng_mrg.MRG_RandomStreams(1).uniform((3, 2))
    g, expected = theano.function([], u), X
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert f(X) == np.square(X * expected + 1).sum()
            expected = expected * np.float32(0.5) + X
            np.testing.assert_array_equal(w.get_value(), expected)
            assert 0 < g().mean() < 1
    assert caplog.text.count('Triton cannot run kernels here') == 1
    assert str(error).split('\n')[-1] in caplog.text


# ------------------------------------------------------------------------------------ page locking

@pytest.mark.parametrize('error', [
    TypeError("can't convert"), RuntimeError('CUDA error: out of memory (host)'),
    ValueError('strides')])
def test_arrays_that_cannot_be_locked(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(storage, 'torch', types.SimpleNamespace(
        empty=fails, from_numpy=torch.from_numpy))
    assert storage.pinned(X) is X
