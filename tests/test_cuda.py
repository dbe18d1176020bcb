"""The engine for NVIDIA GPUs, on PyTorch's CPU device: its flags, tests/cuda, kfkd.py with it."""
import importlib
import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from without_torch import CODE as WITHOUT_TORCH

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

has_torch = importlib.util.find_spec('torch') is not None
has_triton = importlib.util.find_spec('triton') is not None
needs_torch = pytest.mark.skipif(
    not has_torch, reason='PyTorch is not installed: pip install -r requirements/tests-cuda.txt')
needs_triton = pytest.mark.skipif(
    not has_triton, reason='Triton is not installed: pip install triton')
# Theano's C code is what results are compared with: g++ shall be quick, not the code.
QUICK = 'gcc.cxxflags=-O0'


def run(args, flags='device=cuda', **environment):
    """Run Python with Theano's flags beside those of this process."""
    flags = ','.join(filter(None, [os.environ.get('THEANO_FLAGS'), flags]))
    environment = dict(os.environ, THEANO_FLAGS=flags, **environment)
    return subprocess.run([sys.executable] + args, env=environment, cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def passes(names, monkeypatch, **environment):
    """Run files of tests/cuda in one process: each start of PyTorch and Theano takes seconds."""
    monkeypatch.delenv('THEANO_TODAY_CUDA', raising=False)  # each file has its own
    done = run(['-m', 'pytest', '-q', '-W', 'ignore', '-p', 'no:cacheprovider', '--durations=25',
                *[os.path.join(HERE, 'cuda', f'test_{name}.py') for name in names]],
               f'device=cuda,{QUICK}', THEANO_TODAY_TORCH='cpu', **environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:]
    assert ' passed' in done.stdout and 'skipped' not in done.stdout


@needs_torch
def test_on_the_device(monkeypatch):
    """The tests in tests/cuda; with 'graph', all but the calls of CUDA that capture a graph.

    Triton's compiler compiles the kernels for three kinds of GPU.
    """
    passes(['flag', 'ops', 'nets', 'semantics', 'feeding', 'pretend', 'faults', 'compile'] +
           ['compiled_kernels'] * has_triton, monkeypatch, TRITON_INTERPRET='0')


@needs_torch
@needs_triton
def test_kernels(monkeypatch):
    """Triton's interpreter runs them."""
    passes(['kernels'], monkeypatch, TRITON_INTERPRET='1')


@needs_torch
@needs_triton
def test_launches_of_a_training_step():
    """What README says of the deck's net, counted."""
    done = run([os.path.join(HERE, 'benchmarks', 'kernels.py')], '')
    assert done.returncode == 0, done.stdout[-8000:]
    kernels, size = re.search(r'(\d+) kernels, ([.\d]+) GB', done.stdout).groups()
    assert int(kernels) <= 60 and float(size) <= 4


@needs_torch
def test_flag():
    """One value of it; the others: tests/cuda/test_flag.py."""
    code = ('import theano_today, theano, os; '
            'print(theano.function([], theano.shared(1.) * 2).fn.device); '
            'print(os.environ["THEANO_FLAGS"])')
    done = run(['-c', code], 'device=gpu0', THEANO_TODAY_TORCH='cpu')
    assert done.stdout.startswith('cpu\n') and done.returncode == 0, done.stdout
    # What this process starts sees the flag as the user gave it.
    assert 'device=gpu0' in done.stdout and 'device=cpu' not in done.stdout


def error_of(code, flags='device=cuda', **environment):
    done = run(['-c', code], flags, **environment)
    assert done.returncode != 0
    return done.stdout.strip().split('\n')[-1]


def test_without_pytorch():
    message = error_of(WITHOUT_TORCH + 'import theano_today')
    assert 'device=cuda needs PyTorch' in message and 'requirements/cuda.txt' in message


def test_kfkd_says_it_in_one_line(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(WITHOUT_TORCH)
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    done = run(['kfkd.py', 'fit'], PYTHONPATH=path)
    assert done.returncode == 1 and done.stdout.startswith('kfkd.py: device=cuda needs PyTorch')
    assert done.stdout.count('\n') == 1


@needs_torch
def test_without_a_gpu():
    message = error_of('import theano_today', CUDA_VISIBLE_DEVICES='')
    assert 'SetupError: device=cuda' in message and 'nvidia-smi' in message


def test_the_cpu_needs_no_pytorch():
    code = (WITHOUT_TORCH + 'import theano_today, theano; '
            'print(theano.function([], theano.shared(1.) * 2)())')
    done = run(['-c', code], '')
    # Theano tells before it where another process of these tests is compiling.
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '2.0', done.stdout


def test_pygpu_keeps_its_flag(tmp_path):
    """Where Theano's own backend is installed, the flag goes to Theano."""
    (tmp_path / 'pygpu.py').write_text('raise ImportError("this is Theano\'s own backend")\n')
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    done = run(['-c', 'import theano_today, theano; print(theano.config.device)'], PYTHONPATH=path)
    assert "pygpu was configured but could not be imported" in done.stdout
    assert done.stdout.strip().endswith('cuda')


def test_benchmarks_keep_the_callers_path(monkeypatch):
    """A machine with a GPU may have the packages in a folder that PYTHONPATH names."""
    folder = os.path.join(HERE, 'benchmarks')
    monkeypatch.syspath_prepend(folder)
    epoch = importlib.import_module('epoch')
    monkeypatch.setenv('PYTHONPATH', '/somewhere/site')
    assert epoch.with_project(A='b')['PYTHONPATH'] == os.pathsep.join([ROOT, '/somewhere/site'])
    monkeypatch.delenv('PYTHONPATH')
    assert epoch.with_project()['PYTHONPATH'] == ROOT
    for name in os.listdir(folder):  # all of them go by it
        if name.endswith('.py'):
            with open(os.path.join(folder, name)) as file:
                assert 'PYTHONPATH=ROOT' not in file.read(), name


TRAIN = '''
import sys
import kfkd, lasagne, numpy as np
kfkd.VERBOSE, kfkd.BATCH_SIZE = 0, 4
lasagne.random.set_rng(np.random.RandomState(1))
net = kfkd.build_net()
rng = np.random.RandomState(0)
X = rng.rand(15, 1, 96, 96).astype("float32")
y = rng.uniform(-1, 1, (15, 30)).astype("float32")
net.fit(X, y, epochs=2)
kfkd.net_files.save(net, sys.argv[1])
np.savez(sys.argv[1] + ".npz", X=X, predictions=net.predict(X), losses=[
    (row["train_loss"], row["valid_loss"]) for row in net.train_history_])
print(type(net.train_iter_.fn).__name__)
'''

PREDICT = '''
import sys
import kfkd, numpy as np
saved = np.load(sys.argv[-1] + ".npz")
net = kfkd.load_nets(sys.argv[-1])
np.testing.assert_allclose(net.predict(saved["X"]), saved["predictions"], rtol=1e-4, atol=1e-5)
print(type(net.predict_iter_.fn).__name__)
'''


@needs_torch
def test_kfkd_unchanged(tmp_path):
    """kfkd.py's net trains on the device as on the CPU, and each side reads the other's pickles."""
    device, host = str(tmp_path / 'device'), str(tmp_path / 'host')
    for flags, code, paths, printed in (
            ('device=cuda', TRAIN, [device], 'Program\n'),
            ('', WITHOUT_TORCH + TRAIN + PREDICT, [host, device], 'CVM\nCVM\n'),
            ('device=cuda', PREDICT, [host], 'Program\n')):
        done = run(['-c', code, *paths], flags, THEANO_TODAY_TORCH='cpu', PYTHONPATH=ROOT)
        assert done.stdout.endswith(printed), done.stdout
    losses = [np.load(path + '.npz')['losses'] for path in (device, host)]
    assert losses[0].shape == (2, 2)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


JOBS = '''
import os
import stepwise
from theano_today.nets.parallel import Training, side_by_side

def prepare(outputs):
    steps = stepwise.Steps(os.path.abspath("steps"))
    return (stepwise.net(outputs, steps), *stepwise.data(outputs), {})

trainings = [Training(str(n), f"net-{n}.npz", lambda n=n: prepare(n)) for n in (1, 2)]
for training in side_by_side(trainings, 2, verbose=0):
    net = training.fit()
    assert training.checkpoint.finished and len(net.train_history_) == 4
print(type(net.train_iter_.fn).__name__, len(stepwise.steps("steps")))
'''


@needs_torch
def test_trainings_side_by_side(tmp_path):
    path = os.pathsep.join([ROOT, HERE])
    done = run(['-c', f'import os; os.chdir({str(tmp_path)!r})\n' + JOBS],
               THEANO_TODAY_TORCH='cpu', PYTHONPATH=path)
    assert done.returncode == 0 and done.stdout.endswith('Program 40\n'), done.stdout
