"""How long does an epoch of training take, and how long could it take?

    python tests/benchmarks/epoch.py                              the deck's net, five rounds
    python tests/benchmarks/epoch.py --torch-python PATH/python   PyTorch from another environment
    python tests/benchmarks/epoch.py --net mnist --rounds 10      the net of Lasagne's MNIST example
    python tests/benchmarks/epoch.py --net faces                  that of beyond/recipes/faces.yaml
    python tests/benchmarks/epoch.py --rows 4280 --contenders engine torch    more rows, two of them

Each contender is a process of its own. In each round every contender trains one epoch, one after
the other, so that whatever else the machine does falls on all of them alike; then the speed of a
large matrix product (sgemm) is measured. Medians and ratios are printed, and the share of the
machine's peak: the arithmetic of an epoch is three times the forward pass over the training rows
(forward, gradient of the inputs, gradient of the weights) plus once over the validation rows, and
the best sgemm of all rounds says how long that takes.

engine    nolearn's `net.fit` with theano_today's CPU engine
engine-1  the same on one thread
engine-2x the same with twice the rows
stock     the same packages and flags with optimizer_excluding=theano_today_cpu
plain     stock Theano out of the box: theano_today's mends only, none of its flags, BLAS or malloc
          settings
torch     the same net in PyTorch, eager, channels_last; left out where PyTorch is not installed

Images are random: the time does not depend on them. The first epoch of each contender, with its
compilation, is not counted but printed as "start". "dur" is nolearn's column, "loop" the whole call
of `fit` for one epoch, "memory" the largest resident size of the process.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
import types

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONTENDERS = ['engine', 'engine-1', 'engine-2x', 'stock', 'plain', 'torch']
BATCH_SIZES = {'deck': 128, 'mnist': 128, 'faces': 32}
FLIP_PAIRS = [(0, 2), (1, 3), (4, 8), (5, 9), (6, 10), (7, 11),
              (12, 16), (13, 17), (14, 18), (15, 19), (22, 24), (23, 25)]


# ---- data ----

def faces(rows):
    """Random images and labels of the deck's shapes."""
    random = np.random.RandomState(0)
    return (random.rand(rows, 1, 96, 96).astype(np.float32),
            random.uniform(-1, 1, (rows, 30)).astype(np.float32))


def digits(rows):
    """Random images and classes of MNIST's shapes."""
    random = np.random.RandomState(0)
    return (random.rand(rows, 1, 28, 28).astype(np.float32),
            random.randint(0, 10, rows).astype(np.int32))


# Multiplications of one forward pass for one row: convolution outputs times filter, dense layers.
MULTIPLICATIONS = {
    'deck': 94 * 94 * 32 * 9 + 46 * 46 * 64 * 32 * 4 + 22 * 22 * 128 * 64 * 4 +
    15488 * 1000 + 1000 * 1000 + 1000 * 30,
    'mnist': 24 * 24 * 32 * 25 + 8 * 8 * 32 * 32 * 25 + 512 * 256 + 256 * 10,
    'faces': 94 * 94 * 16 * 9 + 45 * 45 * 32 * 16 * 9 + 20 * 20 * 64 * 32 * 9 + 8 * 8 * 128 * 64 * 9 +
    8 * 8 * 128 * 128 * 9 + 4 * 4 * 256 * 128 * 9 + 4096 * 500 + 500 * 30,
}
DATA = {'deck': faces, 'mnist': digits, 'faces': faces}


# ---- Theano, with and without the engine ----

def only_mends():
    """Put the mends of theano_today in place, and nothing else of it."""
    package = types.ModuleType('theano_today')
    package.__path__ = [os.path.join(ROOT, 'theano_today')]
    sys.modules['theano_today'] = package
    from theano_today import compat
    compat.install()


def theano_epochs(net_name, rows):
    """Train one epoch for each `yield`; the value is the epoch's `dur`."""
    import theano_today  # noqa: F401
    X, y = DATA[net_name](rows)
    net = {'deck': deck_net, 'mnist': mnist_net, 'faces': faces_net}[net_name]()
    while True:
        net.fit(X, y, epochs=1)
        yield net.train_history_[-1]['dur']


def deck_net():
    import kfkd
    kfkd.VERBOSE = 0
    return kfkd.build_net()


def faces_net():
    """That of beyond/recipes/faces.yaml with its update rule, but with flips for augmentation."""
    import kfkd
    from beyond.runs import experiment
    from nolearn.lasagne import TrainSplit
    recipe = os.path.join(ROOT, 'beyond', 'recipes', 'faces.yaml')
    vars(kfkd).update(experiment.constants(recipe, vars(kfkd)))
    kfkd.VERBOSE, kfkd.AUGMENT = 0, None
    net = kfkd.build_net()
    net.train_split, net.on_epoch_finished = TrainSplit(.2), []
    return net


def mnist_net():
    """The convolutional net of Lasagne's examples/mnist.py."""
    from lasagne import layers
    from lasagne.nonlinearities import softmax
    from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
    return NeuralNet(
        layers=[
            (layers.InputLayer, dict(shape=(None, 1, 28, 28))),
            (layers.Conv2DLayer, dict(num_filters=32, filter_size=5)),
            (layers.MaxPool2DLayer, dict(pool_size=2)),
            (layers.Conv2DLayer, dict(num_filters=32, filter_size=5)),
            (layers.MaxPool2DLayer, dict(pool_size=2)),
            (layers.DropoutLayer, dict(p=.5)),
            (layers.DenseLayer, dict(num_units=256)),
            (layers.DropoutLayer, dict(p=.5)),
            (layers.DenseLayer, dict(num_units=10, nonlinearity=softmax)),
        ],
        batch_iterator_train=BatchIterator(BATCH_SIZES['mnist']),
        batch_iterator_test=BatchIterator(BATCH_SIZES['mnist']),
        train_split=TrainSplit(.2, stratify=False),
        update_learning_rate=.01, update_momentum=.9, max_epochs=1)


# ---- PyTorch ----

def torch_epochs(net_name, rows):
    """The same for PyTorch; `dur` covers what nolearn's covers, training and validation."""
    import torch
    from torch import nn
    threads = os.environ.get('OMP_NUM_THREADS')
    if threads:
        torch.set_num_threads(int(threads))
    X, y = DATA[net_name](rows)
    # nolearn trains on four fifths of the rows, without shuffling.
    valid = rows // 5
    X_train, y_train, X_valid, y_valid = X[valid:], y[valid:], X[:valid], y[:valid]
    if net_name == 'deck':
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.1),
            nn.Conv2d(32, 64, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.2),
            nn.Conv2d(64, 128, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.3), nn.Flatten(),
            nn.Linear(15488, 1000), nn.ReLU(), nn.Dropout(.5), nn.Linear(1000, 1000), nn.ReLU(),
            nn.Linear(1000, 30))
        loss_function = nn.MSELoss()
    elif net_name == 'faces':
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3), nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(4096, 500), nn.ReLU(), nn.Linear(500, 30))
        loss_function = nn.MSELoss()
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(.5),
            nn.Linear(512, 256), nn.ReLU(), nn.Dropout(.5), nn.Linear(256, 10))
        loss_function = nn.CrossEntropyLoss()
        y_train, y_valid = y_train.astype(np.int64), y_valid.astype(np.int64)
    net = net.to(memory_format=torch.channels_last)
    if net_name == 'faces':
        optimizer = torch.optim.Adam(net.parameters(), lr=.001)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=.03, momentum=.9, nesterov=True)
    random, size = np.random.RandomState(42), BATCH_SIZES[net_name]

    def batches(X, y, flips):
        for i in range(0, len(X), size):
            Xb, yb = X[i:i + size], y[i:i + size]
            if flips:
                Xb, yb = flip(Xb, yb, random)
            yield torch.from_numpy(Xb).to(memory_format=torch.channels_last), torch.from_numpy(yb)

    while True:
        start = time.time()
        net.train()
        for Xb, yb in batches(X_train, y_train, flips=net_name != 'mnist'):
            optimizer.zero_grad()
            loss = loss_function(net(Xb), yb)
            loss.backward()
            optimizer.step()
            loss.item()  # nolearn reads the loss of each batch
        net.eval()
        with torch.no_grad():
            for Xb, yb in batches(X_valid, y_valid, flips=False):
                loss_function(net(Xb), yb).item()
        yield time.time() - start


def flip(Xb, yb, random):
    """Mirror a random half of a batch, as kfkd.FlipBatchIterator does."""
    indices = random.choice(len(Xb), len(Xb) // 2, replace=False)
    Xb, yb = Xb.copy(), yb.copy()
    Xb[indices] = Xb[indices, :, :, ::-1]
    yb[indices, ::2] = yb[indices, ::2] * -1
    for a, b in FLIP_PAIRS:
        yb[indices, a], yb[indices, b] = yb[indices, b], yb[indices, a]
    return Xb, yb


# ---- processes ----

def with_project(**changes):
    """The environment for a process that imports the project; PYTHONPATH keeps what is there."""
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))
    return dict(os.environ, PYTHONPATH=path, **changes)


def work(contender, net_name, rows):
    """Train an epoch for each line on standard input; answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print
    if contender == 'plain':
        only_mends()
    epochs = (torch_epochs if contender == 'torch' else theano_epochs)(net_name, rows)
    for _ in sys.stdin:
        start = time.time()
        dur = next(epochs)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers.write(json.dumps(dict(
            dur=dur, loop=time.time() - start,
            memory=memory / (2 ** 20 if sys.platform != 'darwin' else 2 ** 30))) + '\n')
        answers.flush()


class Contender:
    """A process that trains an epoch when asked to.

    Attributes
    ----------
    start : float
        Seconds from the start of the process to the end of its first epoch.
    epochs : list of dict
        What each further epoch took.
    """

    def __init__(self, name, options):
        self.name = name
        python = options.torch_python if name == 'torch' else sys.executable
        threads = 1 if name == 'engine-1' else options.threads
        environment = with_project(OMP_NUM_THREADS=str(threads),
                                   OPENBLAS_NUM_THREADS=str(threads))
        # Theano's own search for a BLAS crashes with today's NumPy, so plain has to name one:
        # none, which stands for NumPy's.  Flags given by the user come last and win.
        flags = {'stock': 'optimizer_excluding=theano_today_cpu',
                 'plain': 'floatX=float32,blas.ldflags='}
        environment['THEANO_FLAGS'] = ','.join(
            filter(None, [flags.get(name), environment.get('THEANO_FLAGS')]))
        self.rows = options.rows * (2 if name == 'engine-2x' else 1)
        start = time.time()
        self.process = subprocess.Popen(
            [python, os.path.abspath(__file__), '--work', name, '--net', options.net,
             '--rows', str(self.rows)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True, env=environment)
        self.epochs = []
        self.run()
        self.start = time.time() - start
        self.epochs.clear()
        progress(f'{name}: first epoch after {self.start:.0f} s')

    def run(self):
        self.process.stdin.write('epoch\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.name} has stopped, see above')
        self.epochs.append(json.loads(line))

    def median(self, what):
        return float(np.median([epoch[what] for epoch in self.epochs]))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def sgemm_rate(threads):
    """GFLOP/s of numpy's float32 matrix product, in a process of its own with `threads` threads."""
    code = ("import time, numpy as np\n"
            "a = np.random.rand(2048, 2048).astype(np.float32)\n"
            "best = 9.\n"
            "for _ in range(8):\n"
            "    start = time.time(); a.dot(a); best = min(best, time.time() - start)\n"
            "print(2e-9 * 2048 ** 3 / best)\n")
    return float(subprocess.check_output(
        [sys.executable, '-c', code],
        env=dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))))


def progress(text):
    print(text, file=sys.stderr, flush=True)


def available(name, options):
    if name != 'torch':
        return True
    found = subprocess.call([options.torch_python, '-c', 'import torch'], stderr=subprocess.DEVNULL) == 0
    if not found:
        print(f'torch: left out, {options.torch_python} cannot import it (see --torch-python)')
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--net', choices=sorted(DATA), default='deck')
    parser.add_argument('--rows', type=int, default=2140, help='training and validation together')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--contenders', nargs='+', choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument('--torch-python', default=sys.executable, metavar='PATH',
                        help='the Python that has PyTorch')
    parser.add_argument('--work', choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.net, options.rows)

    names = [name for name in options.contenders if available(name, options)]
    contenders = [Contender(name, options) for name in names]
    rates = []
    for _ in range(options.rounds):
        for contender in contenders:
            contender.run()
            progress(f'{contender.name}: {contender.epochs[-1]["loop"]:.2f} s')
        rates.append(sgemm_rate(options.threads))
    for contender in contenders:
        contender.close()

    valid = options.rows // 5
    arithmetic = 2e-9 * MULTIPLICATIONS[options.net] * (3 * (options.rows - valid) + valid)
    at_peak = arithmetic / max(rates)
    print(f'{options.net} net, {options.rows} rows ({valid} for validation), {options.threads} '
          f'threads, {options.rounds} rounds')
    print(f'sgemm: best {max(rates):.0f} GFLOP/s, median {np.median(rates):.0f}; '
          f'{arithmetic:.0f} GFLOP an epoch take {at_peak:.2f} s at best')
    print('{:10}{:>8}{:>8}{:>8}{:>8}{:>10}{:>10}{:>12}'.format(
        '', 'dur s', 'best', 'loop s', 'start s', 'memory GB', '/ engine', 'of the peak'))
    for contender in contenders:
        print('{:10}{:8.2f}{:8.2f}{:8.2f}{:8.1f}{:10.2f}{:10.2f}{:11.0%}'.format(
            contender.name, contender.median('dur'), min(epoch['dur'] for epoch in contender.epochs),
            contender.median('loop'), contender.start, contender.median('memory'),
            contender.median('loop') / contenders[0].median('loop'),
            at_peak * contender.rows / options.rows / contender.median('loop')))


if __name__ == '__main__':
    main()
