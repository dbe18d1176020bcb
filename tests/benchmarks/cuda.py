"""Is theano_today.cuda right and fast on this GPU?  One script, one call.

    python tests/benchmarks/cuda.py                          checks, then timings
    python tests/benchmarks/cuda.py --no-checks --rounds 20  timings only
    python tests/benchmarks/cuda.py --tf32                   with TensorFloat-32 for everybody
    python tests/benchmarks/cuda.py --schedule FOLDER        the deck's full schedule on Kaggle's
                                                             files in FOLDER, all four steps
    THEANO_TODAY_TORCH=cpu python tests/benchmarks/cuda.py --rows 64 --rounds 1 --no-checks
                                                             a rehearsal without a GPU

The checks are tests/cuda, on the GPU: every Op, whole nets against Theano's C backend, semantics.

For the timings each contender is a process of its own. In each round every contender trains one
epoch of the deck's net, one after the other. Medians of all rounds are printed, with the floor: the
time for the arithmetic at the speed of the fastest large matrix product of this GPU, or for the
bytes that the update must move at the speed of its fastest copy, whichever is longer.

graph, compile, eager    nolearn's `net.fit` with device=cuda and THEANO_TODAY_CUDA set so
torch                    the same net in PyTorch, eager
torch-graph              the same, forward, backward and update in one CUDA graph, written by hand

All of them flip batches on the host and read the loss of each batch, as nolearn does. The first two
epochs of each, with compiling and capturing, are not counted but printed as "start".
"""
import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

import epoch
from epoch import BATCH_SIZE, ROOT, faces, flip, progress

CONTENDERS = ['graph', 'compile', 'eager', 'torch', 'torch-graph']
WARM_UP_EPOCHS = 2
PARAMETERS = 16561502


# ---- contenders ----

def theano_epochs(rows):
    """Train one epoch for each `yield`; the value is the epoch's `dur`."""
    import theano_today  # noqa: F401
    import theano
    from theano_today.cuda.program import Program
    X, y = faces(rows)
    net = epoch.deck_net()
    while True:
        net.fit(X, y, epochs=1)
        assert isinstance(net.train_iter_.fn, Program), theano.config.device
        yield net.train_history_[-1]['dur']


def torch_epochs(rows, graphs):
    """The same for PyTorch; `dur` covers what nolearn's covers, training and validation."""
    import torch
    from torch import nn
    device = torch_device()
    X, y = faces(rows)
    valid = rows // 5
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.1),
        nn.Conv2d(32, 64, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.2),
        nn.Conv2d(64, 128, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.3), nn.Flatten(),
        nn.Linear(15488, 1000), nn.ReLU(), nn.Dropout(.5), nn.Linear(1000, 1000), nn.ReLU(),
        nn.Linear(1000, 30)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=.03, momentum=.9, nesterov=True, foreach=True)
    random = np.random.RandomState(42)

    def train_step(Xb, yb):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.mse_loss(net(Xb), yb)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def valid_step(Xb, yb):
        with torch.no_grad():
            return nn.functional.mse_loss(net(Xb), yb)

    train = Captured(train_step, device) if graphs else to_device(train_step, device)
    validate = Captured(valid_step, device) if graphs else to_device(valid_step, device)

    def batches(X, y):
        for i in range(0, len(X), BATCH_SIZE):
            yield X[i:i + BATCH_SIZE], y[i:i + BATCH_SIZE]

    while True:
        start = time.time()
        net.train()
        for Xb, yb in batches(X[valid:], y[valid:]):
            train(*flip(Xb, yb, random)).item()
        net.eval()
        for Xb, yb in batches(X[:valid], y[:valid]):
            validate(Xb, yb).item()
        yield time.time() - start


def torch_device():
    import torch
    return torch.device('cpu' if os.environ.get('THEANO_TODAY_TORCH') == 'cpu' else 'cuda')


def to_device(step, device):
    import torch
    return lambda *arrays: step(*[torch.from_numpy(a).to(device) for a in arrays])


class Captured(object):
    """A step of PyTorch as CUDA graphs, one for each shape of the batch; batches come pinned."""

    def __init__(self, step, device):
        self.step, self.device, self.graphs = step, device, {}

    def __call__(self, *arrays):
        import torch
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        key = tuple(t.shape for t in tensors)
        if key not in self.graphs:
            inputs = [t.to(self.device) for t in tensors]
            pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step(*inputs)
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self.step(*inputs)
            self.graphs[key] = inputs, pinned, graph, result
        inputs, pinned, graph, result = self.graphs[key]
        for tensor, staging, fixed in zip(tensors, pinned, inputs):
            staging.copy_(tensor)
            fixed.copy_(staging, non_blocking=True)
        graph.replay()
        return result


def set_precision(tf32):
    import torch
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


# ---- processes ----

class Contender(epoch.Contender):
    """A process that trains an epoch when asked to (see epoch.py)."""

    def __init__(self, name, options):
        self.name, self.epochs = name, []
        ours = not name.startswith('torch')
        environment = epoch.with_project(THEANO_TODAY_TF32=str(int(options.tf32)))
        if ours:
            environment.update(THEANO_TODAY_CUDA=name, THEANO_FLAGS=','.join(
                filter(None, [os.environ.get('THEANO_FLAGS'), 'device=cuda'])))
        start = time.time()
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), '--work', name, '--rows',
             str(options.rows)] + ['--tf32'] * options.tf32,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(WARM_UP_EPOCHS):
            self.run()
        self.start = time.time() - start
        self.epochs.clear()
        progress('{}: ready after {:.0f} s'.format(name, self.start))


def work(options):
    """Train an epoch for each line on standard input; answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print
    if options.work.startswith('torch'):
        set_precision(options.tf32)
        epochs = torch_epochs(options.rows, options.work == 'torch-graph')
    else:
        epochs = theano_epochs(options.rows)
    for _ in sys.stdin:
        start = time.time()
        dur = next(epochs)
        answers.write(json.dumps(dict(dur=dur, loop=time.time() - start)) + '\n')
        answers.flush()


# ---- the machine ----

def ceilings(tf32):
    """TFLOP/s of the fastest matrix product and GB/s of the fastest copy, of five tries each."""
    import torch
    device = torch_device()
    set_precision(tf32)
    n = 8192 if device.type == 'cuda' else 512
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    source = torch.rand(n * n * 4, device=device)
    target = torch.empty_like(source)

    def best(function):
        times = []
        for _ in range(7):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[2:])
    return (2e-12 * n ** 3 / best(lambda: torch.mm(a, b)),
            8e-9 * len(source) / best(lambda: target.copy_(source)))


def synchronize(device):
    import torch
    if device.type == 'cuda':
        torch.cuda.synchronize()


def describe():
    import torch
    print('Python {}, NumPy {}, PyTorch {}, CUDA {}, cuDNN {}'.format(
        sys.version.split()[0], np.__version__, torch.__version__, torch.version.cuda,
        torch.backends.cudnn.version()))
    if torch_device().type == 'cuda':
        print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
        subprocess.call(['nvidia-smi', '--format=csv',
                         '--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu'])


def run_checks(options):
    """Run tests/cuda on the GPU; return whether all passed."""
    print('== tests/cuda', flush=True)
    environment = dict(os.environ, THEANO_FLAGS=','.join(
        filter(None, [os.environ.get('THEANO_FLAGS'), 'device=cuda'])))
    return subprocess.call([sys.executable, '-m', 'pytest', '-q', '-W', 'ignore', '-p',
                            'no:cacheprovider', os.path.join(ROOT, 'tests', 'cuda')],
                           env=environment) == 0


def run_timings(options):
    names = [name for name in options.contenders
             if not (name == 'torch-graph' and torch_device().type == 'cpu')]
    contenders = []
    for name in names:
        try:
            contenders.append(Contender(name, options))
        except RuntimeError as error:
            print(error)
    for _ in range(options.rounds):
        for contender in contenders:
            contender.run()
    for contender in contenders:
        contender.close()
    tflops, bandwidth = ceilings(options.tf32)
    valid = options.rows // 5
    steps = -(-(options.rows - valid) // BATCH_SIZE)
    flops = 2e-12 * epoch.MULTIPLICATIONS['deck'] * (3 * (options.rows - valid) + valid)
    # Each step reads weights, gradients and momentum and writes weights and momentum.
    bytes_moved = 1e-9 * 5 * 4 * PARAMETERS * steps
    floor = max(flops / tflops, bytes_moved / bandwidth)
    print('== deck\'s net, {} rows ({} for validation), batches of {}, {} rounds, {}'.format(
        options.rows, valid, BATCH_SIZE, options.rounds, 'TF32' if options.tf32 else 'float32'))
    print('ceilings: {:.1f} TFLOP/s, {:.0f} GB/s; an epoch: {:.2f} TFLOP in {:.1f} ms, {:.1f} GB '
          'in {:.1f} ms; floor {:.1f} ms'.format(
              tflops, bandwidth, flops, 1e3 * flops / tflops, bytes_moved,
              1e3 * bytes_moved / bandwidth, 1e3 * floor))
    print('{:12}{:>10}{:>10}{:>10}{:>14}{:>10}{:>10}'.format(
        '', 'epoch ms', 'best', 'ms a step', '3000 epochs s', 'start s', 'of floor'))
    for contender in contenders:
        loop = contender.median('loop')
        print('{:12}{:10.1f}{:10.1f}{:10.2f}{:14.0f}{:10.1f}{:9.0%}'.format(
            contender.name, 1e3 * loop, 1e3 * min(e['loop'] for e in contender.epochs),
            1e3 * loop / steps, 3000 * loop, contender.start, floor / loop), flush=True)


def run_schedule(options):
    """The deck's constants on the files in a folder, from the CSV to the submission."""
    code = '''
import json, os, sys, time
import kfkd
folder, target = sys.argv[1:]
files = {'FTRAIN': 'training.csv', 'FTEST': 'test.csv', 'FLOOKUP': 'IdLookupTable.csv'}
for name, file in files.items():
    setattr(kfkd, name, os.path.join(folder, file))
os.makedirs(target, exist_ok=True)
os.chdir(target)
kfkd.VERBOSE = 0
for step in (kfkd.fit, kfkd.fit_specialists, kfkd.plot_learning_curves, kfkd.predict):
    start = time.time()
    result = step()
    print('%s: %.1f s' % (step.__name__, time.time() - start), flush=True)
    if step is kfkd.fit:
        with open('history.json', 'w') as f:
            json.dump([{k: float(v) for k, v in row.items() if k in ('epoch', 'train_loss',
                        'valid_loss', 'dur')} for row in result.train_history_], f)
'''
    environment = epoch.with_project(MPLBACKEND='agg', THEANO_FLAGS=','.join(
        filter(None, [os.environ.get('THEANO_FLAGS'), 'device=cuda'])),
        THEANO_TODAY_CUDA=options.mode, THEANO_TODAY_TF32=str(int(options.tf32)))
    print('== the deck\'s schedule', flush=True)
    start = time.time()
    code = subprocess.call([sys.executable, '-c', code, os.path.abspath(options.schedule),
                            os.path.abspath(options.out)], env=environment)
    print('whole schedule: {:.1f} s, exit {}'.format(time.time() - start, code))
    return code == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=2140, help='training and validation together')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--contenders', nargs='+', choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument('--tf32', action='store_true')
    parser.add_argument('--no-checks', action='store_true')
    parser.add_argument('--no-timings', action='store_true')
    parser.add_argument('--schedule', metavar='FOLDER')
    parser.add_argument('--mode', default='graph', choices=CONTENDERS[:3], help='for --schedule')
    parser.add_argument('--out', default='cuda-schedule', help='where --schedule writes its files')
    parser.add_argument('--work', choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    describe()
    right = options.no_checks or run_checks(options)
    if not options.no_timings:
        run_timings(options)
    if options.schedule:
        right &= run_schedule(options)
    return 0 if right else 1


if __name__ == '__main__':
    sys.exit(main())
