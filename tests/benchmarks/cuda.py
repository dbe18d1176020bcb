"""Is theano_today.cuda right and fast on this GPU?  One script; what it finds out is written at once.

    python tests/benchmarks/cuda.py                               all parts, in this order
    python tests/benchmarks/cuda.py --parts smoke timings         some of them
    python tests/benchmarks/cuda.py --rounds 2 --epochs 30 --contenders graph torch-nhwc
    python tests/benchmarks/cuda.py --schedule FOLDER             the deck's full schedule on Kaggle's
                                                                  files in FOLDER, all four steps
    THEANO_TODAY_TORCH=cpu python tests/benchmarks/cuda.py --rows 48 --rounds 1 --epochs 1 \\
        --warm-up 1 --parts timings --contenders eager torch      a rehearsal without a GPU

Parts, each of which is stopped after its time (minutes) and does not stop the others:

smoke     3    the kernels against tables and PyTorch's own calls, replays against eager calls bit for
               bit, a capture that fails, addresses in graphs
timings   6    graph and eager, and PyTorch in several ways
profile   1    the 25 longest kernels of three replays of a training step
nets      4    whole nets against Theano's C backend, and semantics
compile   4    timings with torch.compile, ours and PyTorch's
ops       8    every Op

Results go to the standard output and to a file (--out) line by line.

Contenders of the timings are processes of their own.  After the warm-up each trains a number of epochs
in one go (nolearn's `net.fit` for ours), in several rounds, in turns.  Ours is compared with the best
of PyTorch's.  The floor is the time for the arithmetic at the speed of the fastest large matrix product
of this GPU in float32, or for the bytes that the update must move at the speed of its fastest copy,
whichever is longer.

graph, eager, compile     device=cuda with THEANO_TODAY_CUDA set so
graph-x3                  graph, with THEANO_TODAY_TF32=x3
torch, torch-nhwc         the same net in PyTorch, eager, NCHW and channels_last; a thread makes the
                          next batch in page-locked memory
torch-bench, torch-nhwc-bench     the same with cudnn.benchmark
torch-graph               forward, backward and update in one CUDA graph, written by hand
torch-compile             torch.compile with mode='max-autotune-no-cudagraphs'

All of them flip batches on the host and read the loss of each batch, as nolearn does.

What a machine needs on which only PyTorch for CUDA is installed: the packages of requirements.txt.  If
it has NumPy, SciPy, pandas, scikit-learn and matplotlib, the three old ones are enough:

    pip wheel --no-deps -w wheels Theano==1.0.5 Lasagne==0.1 nolearn==0.6.1    here
    pip install --no-index --no-deps --target site wheels/*.whl                there
    PYTHONPATH=site python tests/benchmarks/cuda.py

If not, what is left comes in two lots: numpy, scipy, setuptools and the three packages for smoke and
Ops; pandas, scikit-learn and matplotlib besides for everything that builds the deck's net.
"""
import argparse
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time

import numpy as np

import epoch
from epoch import BATCH_SIZE, ROOT, faces, flip

OURS = ['graph', 'graph-x3', 'eager', 'compile']
TORCH = ['torch', 'torch-nhwc', 'torch-bench', 'torch-nhwc-bench', 'torch-graph', 'torch-compile']
PARAMETERS = 16561502
# A line is captured when it has been called six times; the last, smaller batch comes once an epoch.
WARM_UP_EPOCHS = 7
MINUTES = dict(smoke=3, timings=6, profile=1, nets=4, compile=4, ops=8)


class Report:
    """Lines for the standard output and for a file, at once."""

    def __init__(self, path):
        self.file = open(path, 'a', encoding='utf-8')

    def __call__(self, text):
        print(text, flush=True)
        print(text, file=self.file, flush=True)


# ---- contenders ----

def theano_epochs(rows):
    """Train as many epochs as are sent; yield seconds of each."""
    import theano_today  # noqa: F401
    import theano
    from theano_today.cuda import convert, graphs
    from theano_today.cuda.program import Program
    X, y = faces(rows)
    net = epoch.deck_net()
    stamps = []
    net.on_epoch_finished = list(net.on_epoch_finished) + [
        lambda net, history: stamps.append(time.time())]
    epochs, warm = yield
    while True:
        stamps[:] = [time.time()]
        net.fit(X, y, epochs=epochs)
        assert isinstance(net.train_iter_.fn, Program), theano.config.device
        if not warm and graphs.mode(convert.device()) != 'eager' and \
                convert.device().type == 'cuda':
            for function in net.train_iter_, net.eval_iter_:
                captured = function.fn.captured()
                if len(captured) < 2 or not all(captured):
                    raise RuntimeError(f'a line is not a CUDA graph: {captured}')
        epochs, warm = yield np.diff(stamps).tolist()


def torch_net(channels_last):
    from torch import nn, channels_last as nhwc, contiguous_format
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.1),
        nn.Conv2d(32, 64, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.2),
        nn.Conv2d(64, 128, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.3), nn.Flatten(),
        nn.Linear(15488, 1000), nn.ReLU(), nn.Dropout(.5), nn.Linear(1000, 1000), nn.ReLU(),
        nn.Linear(1000, 30)).to(torch_device(), memory_format=(
            nhwc if channels_last else contiguous_format))


def torch_epochs(rows, name):
    """The same for PyTorch; an epoch is what it is for nolearn, training and validation."""
    import torch
    from torch import nn
    device = torch_device()
    torch.backends.cudnn.benchmark = 'bench' in name
    X, y = faces(rows)
    valid = rows // 5
    net = torch_net('nhwc' in name)
    optimizer = torch.optim.SGD(net.parameters(), lr=.03, momentum=.9, nesterov=True, foreach=True)
    random = np.random.RandomState(42)

    def forward(Xb, yb):
        return nn.functional.mse_loss(net(Xb), yb)

    if name == 'torch-compile':
        forward = torch.compile(forward, mode='max-autotune-no-cudagraphs', dynamic=False)

    def train_step(Xb, yb):
        optimizer.zero_grad(set_to_none='graph' not in name)
        loss = forward(Xb, yb)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def valid_step(Xb, yb):
        with torch.no_grad():
            return forward(Xb, yb)

    captured = name == 'torch-graph' and device.type == 'cuda'
    train = Captured(train_step, device) if captured else train_step
    validate = Captured(valid_step, device) if captured else valid_step

    def batches(X, y, flips):
        for i in range(0, len(X), BATCH_SIZE):
            batch = X[i:i + BATCH_SIZE], y[i:i + BATCH_SIZE]
            if flips:
                batch = flip(*batch, random)
            tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in batch]
            yield [t.pin_memory() for t in tensors] if device.type == 'cuda' else tensors

    def fed(batches):
        for batch in ahead(batches):
            yield batch if captured else [t.to(device, non_blocking=True) for t in batch]

    epochs, _ = yield
    while True:
        durations = []
        for _ in range(epochs):
            start = time.time()
            net.train()
            for batch in fed(batches(X[valid:], y[valid:], flips=True)):
                train(*batch).item()
            net.eval()
            for batch in fed(batches(X[:valid], y[:valid], flips=False)):
                validate(*batch).item()
            durations.append(time.time() - start)
        epochs, _ = yield durations


def ahead(iterable):
    """The items of an iterable, the next of which a thread makes meanwhile."""
    items, end = queue.Queue(1), object()

    def make():
        for item in iterable:
            items.put(item)
        items.put(end)

    threading.Thread(target=make, daemon=True).start()
    while True:
        item = items.get()
        if item is end:
            return
        yield item


def torch_device():
    import torch
    return torch.device('cpu' if os.environ.get('THEANO_TODAY_TORCH') == 'cpu' else 'cuda')


class Captured:
    """A step of PyTorch as CUDA graphs, one for each shape of the batch."""

    def __init__(self, step, device):
        self.step, self.device, self.graphs = step, device, {}

    def __call__(self, *tensors):
        import torch
        key = tuple(t.shape for t in tensors)
        if key not in self.graphs:
            inputs = [t.to(self.device) for t in tensors]
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step(*inputs)
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self.step(*inputs)
            self.graphs[key] = inputs, graph, result
        inputs, graph, result = self.graphs[key]
        for tensor, fixed in zip(tensors, inputs):
            fixed.copy_(tensor, non_blocking=True)
        graph.replay()
        return result


# ---- processes ----

def environment(name=None, **changes):
    """For a process that runs device=cuda, or PyTorch alone; what the caller has set stays."""
    flags = [os.environ.get('THEANO_FLAGS'), 'device=cuda']
    headers = os.path.join(sysconfig.get_paths()['include'], 'Python.h')
    if not shutil.which('g++') or not os.path.exists(headers):
        flags.append('cxx=')  # the GPU's functions need no C code of Theano's
    if name in OURS:
        mode, _, precision = name.partition('-')
        changes.update(THEANO_TODAY_CUDA=mode, THEANO_TODAY_TF32=precision or '0')
    return epoch.with_project(THEANO_FLAGS=','.join(filter(None, flags)), **changes)


class Contender:
    """A process that trains epochs when asked to.

    Attributes
    ----------
    start : float
        Seconds from the start of the process to the end of the warm-up.
    epochs : list of float
        Seconds of each further epoch.
    """

    processes = []

    def __init__(self, name, options):
        self.name, self.epochs = name, []
        start = time.time()
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), '--work', name, '--rows', str(options.rows)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(name))
        self.processes.append(self.process)
        self.run(options.warm_up, True)
        self.start = time.time() - start
        self.epochs.clear()

    def run(self, epochs, warm=False):
        self.process.stdin.write(json.dumps([epochs, warm]) + '\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.name} has stopped, see above')
        self.epochs += json.loads(line)


def work(options):
    """Train for each line on standard input; answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print
    name = options.work
    epochs = theano_epochs(options.rows) if name in OURS else torch_epochs(options.rows, name)
    next(epochs)
    for line in sys.stdin:
        answers.write(json.dumps(epochs.send(json.loads(line))) + '\n')
        answers.flush()


# ---- the machine ----

def ceilings():
    """TFLOP/s of the fastest float32 product and GB/s of the fastest copy, of five tries each."""
    import torch
    device = torch_device()
    n = 8192 if device.type == 'cuda' else 512
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    source = torch.rand(n * n * 4, device=device)
    target = torch.empty_like(source)

    def synchronize():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    def best(function):
        times = []
        for _ in range(7):
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            times.append(time.perf_counter() - start)
        return min(times[2:])
    return (2e-12 * n ** 3 / best(lambda: torch.mm(a, b)),
            8e-9 * len(source) / best(lambda: target.copy_(source)))


def describe(report):
    import torch
    report(f'Python {sys.version.split()[0]}, NumPy {np.__version__}, PyTorch {torch.__version__}, '
           f'CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}')
    for package in ('triton', 'theano', 'lasagne', 'nolearn'):
        try:
            from importlib.metadata import version
            report(f'{package} {version(package)}')
        except Exception:
            report(f'{package} is missing')
    if torch_device().type == 'cuda':
        report(f'{torch.cuda.get_device_name()} {torch.cuda.get_device_properties(0)}')
        report(subprocess.run(
            ['nvidia-smi', '--format=csv',
             '--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu'],
            capture_output=True, text=True).stdout.strip())


# ---- parts ----

def run_tests(report, minutes, names, *more, mode='graph'):
    """Run files of tests/cuda on the GPU; return whether all passed."""
    return run_process(report, minutes, [
        sys.executable, '-m', 'pytest', '-q', '-W', 'ignore', '-p', 'no:cacheprovider', *more,
        *[os.path.join(ROOT, 'tests', 'cuda', f'test_{name}.py') for name in names]],
        environment(THEANO_TODAY_CUDA=mode))


def run_process(report, minutes, command, env):
    """Pass on what a process prints; end it, and what it has started, after its time."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=env, start_new_session=True)

    def stop():
        report(f'stopped after {minutes:g} minutes')
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(60 * minutes, stop)
    timer.start()
    for line in process.stdout:
        report(line.rstrip('\n'))
    timer.cancel()
    return process.wait() == 0


def run_timings(report, options, names, minutes):
    """Time contenders; return whether all came through.  Results are shown after each round."""
    end = time.time() + 60 * minutes
    contenders, failed = [], []

    def stop():
        report(f'stopped after {minutes:g} minutes')
        for process in Contender.processes:  # whoever waits for an answer gets an empty line
            process.kill()

    def tried(name, function):
        try:
            return function()
        except (RuntimeError, OSError) as error:
            report(str(error))
            failed.append(name)

    timer = threading.Timer(60 * minutes, stop)
    timer.start()
    try:
        for name in names:
            contender = tried(name, lambda: Contender(name, options))
            if contender is not None:
                report(f'{name}: ready after {contender.start:.0f} s')
                contenders.append(contender)
        ceiling = ceilings()
        for n in range(options.rounds):
            for contender in contenders:
                if contender.name not in failed:
                    tried(contender.name, lambda: contender.run(options.epochs))
            report(f'-- round {n + 1}')
            table(report, options, [c for c in contenders if c.epochs], *ceiling)
            if time.time() > end:
                break
    finally:
        timer.cancel()
        for process in Contender.processes:
            process.kill()
        Contender.processes.clear()
    return not failed


def table(report, options, contenders, tflops, bandwidth):
    valid = options.rows // 5
    steps = -(-(options.rows - valid) // BATCH_SIZE)
    flops = 2e-12 * epoch.MULTIPLICATIONS['deck'] * (3 * (options.rows - valid) + valid)
    # Each step reads weights, gradients and momentum and writes weights and momentum.
    moved = 1e-9 * 5 * 4 * PARAMETERS * steps
    floor = max(flops / tflops, moved / bandwidth)
    report(f'deck\'s net, {options.rows} rows ({valid} for validation), batches of {BATCH_SIZE}, '
           f'{options.epochs} epochs in one go; {tflops:.1f} TFLOP/s, {bandwidth:.0f} GB/s; an '
           f'epoch: {flops:.2f} TFLOP, {moved:.1f} GB, floor {1e3 * floor:.1f} ms')
    report('{:18}{:>10}{:>10}{:>11}{:>15}{:>10}{:>10}'.format(
        '', 'epoch ms', 'best', 'ms a step', '3000 epochs s', 'start s', 'of floor'))
    medians = {}
    for contender in contenders:
        medians[contender.name] = median = float(np.median(contender.epochs))
        report(f'{contender.name:18}{1e3 * median:10.1f}{1e3 * min(contender.epochs):10.1f}'
               f'{1e3 * median / steps:11.2f}{3000 * median:15.0f}{contender.start:10.1f}'
               f'{floor / median:9.0%}')
    ours = [name for name in medians if name in OURS]
    theirs = [name for name in medians if name not in OURS]
    if ours and theirs:
        best = min(theirs, key=medians.get)
        for name in ours:
            report(f'{name}: {medians[best] / medians[name]:.2f} times as fast as {best}')


PROFILE = '''
import sys
sys.path[:0] = [{benchmarks!r}]
import numpy as np
import theano_today
import torch
import epoch
X, y = epoch.faces(epoch.BATCH_SIZE)
net = epoch.deck_net()
net.initialize()
step = net.train_iter_
for _ in range(8):
    step(X, y)
assert step.fn.captured() == [True], step.fn.captured()
from torch.profiler import ProfilerActivity, profile
with profile(activities=[ProfilerActivity.CUDA]) as seen:
    for _ in range(3):
        step(X, y)
    torch.cuda.synchronize()
events = [e for e in seen.key_averages() if e.self_device_time_total]
events.sort(key=lambda e: -e.self_device_time_total)
for e in events[:25]:
    print('%9.1f us a step %6.1f launches  %s' % (
        e.self_device_time_total / 3, e.count / 3, e.key[:100]))
print('%.2f ms in %.0f kernels and copies a step' % (
    sum(e.self_device_time_total for e in events) / 3e3, sum(e.count for e in events) / 3))
print('%.2f GB of memory at most' % (torch.cuda.max_memory_allocated() / 1e9))
'''


def run_schedule(report, options):
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
    start = time.time()
    right = run_process(report, options.schedule_minutes, [
        sys.executable, '-c', code, os.path.abspath(options.schedule),
        os.path.abspath(options.schedule_out)], environment(options.mode, MPLBACKEND='agg'))
    report(f'whole schedule: {time.time() - start:.1f} s')
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=list(MINUTES), default=list(MINUTES))
    parser.add_argument('--out', default='cuda-results.txt', help='the file, to which is added')
    parser.add_argument('--rows', type=int, default=2140, help='training and validation together')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=20, help='in one go')
    parser.add_argument('--warm-up', type=int, default=WARM_UP_EPOCHS)
    parser.add_argument('--contenders', nargs='+', choices=OURS + TORCH)
    parser.add_argument('--schedule', metavar='FOLDER')
    parser.add_argument('--schedule-minutes', type=float, default=120)
    parser.add_argument('--schedule-out', default='cuda-schedule', help='where it writes its files')
    parser.add_argument('--mode', default='graph', choices=OURS, help='for --schedule')
    parser.add_argument('--work', choices=OURS + TORCH, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    report = Report(options.out)
    describe(report)
    if options.schedule:
        return 0 if run_schedule(report, options) else 1
    timed = options.contenders or [n for n in OURS + TORCH if n not in ('compile', 'torch-compile')]
    parts = {
        'smoke': lambda m: run_tests(report, m, ['faults', 'kernels'], '-x'),
        'timings': lambda m: run_timings(report, options, timed, m),
        'profile': lambda m: run_process(report, m, [sys.executable, '-c', PROFILE.format(
            benchmarks=os.path.dirname(os.path.abspath(__file__)))], environment('graph')),
        'nets': lambda m: run_tests(report, m, ['nets', 'semantics', 'feeding']),
        'compile': lambda m: run_timings(report, options, ['compile', 'torch-compile'], m),
        'ops': lambda m: run_tests(report, m, ['ops'], mode='eager'),
    }
    failed = []
    for name in options.parts:
        report(f'== {name}, at most {MINUTES[name]} minutes')
        start = time.time()
        try:
            right = parts[name](MINUTES[name])
        except Exception as error:  # the other parts have their turn
            report(f'{type(error).__name__}: {error}')
            right = False
        report(f'== {name}: {"passed" if right else "FAILED"} in {time.time() - start:.0f} s')
        failed += [] if right else [name]
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
