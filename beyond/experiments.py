"""The experiments of part 2 of the deck: each is one command and ends with a figure and a verdict.

    python -m beyond.experiments overfit-tiny          one of the names below, or several, or all
    python -m beyond.experiments augmentation --faces data/training.csv --epochs 100

{experiments}

They take a minute or two each: small nets, and faces that are drawn unless --faces names a file in
the contest's format.  Figures are written into the folder you are in.  The verdict is computed from
the numbers, whatever they say; the seed is fixed.

`check_overfitting` and `check_regularisation` are sanity checks for any net of nolearn.
"""
import argparse
import os
import pickle
import sys
import tempfile
import time
import warnings

import lasagne
import numpy as np
import theano
from lasagne import init, layers, nonlinearities, updates
from matplotlib import pyplot
from matplotlib.ticker import NullLocator
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from nolearn.lasagne import visualize
from scipy.stats import loguniform, uniform
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, mean_squared_error
from sklearn.model_selection import KFold, RandomizedSearchCV
from sklearn.utils import shuffle

from data import make_faces, tables
from theano_today.nets.progress import hms, seconds_an_epoch

from . import curves, monitors, nets, pictures
from .augmentation import PRESETS, AffineBatchIterator
from .figures import BLACK, BLUE, GREEN, RED, plot_face, write_figure

SEED = 0
EXPERIMENTS = {}
# A mirror and nothing else.
FLIPS = dict(rotation=(0, 0), translation=(0, 0), scale=(1, 1), shear=(0, 0), stretch=(1, 1))


def experiment(function):
    """List a function as an experiment, under its name with - for _."""
    EXPERIMENTS[function.__name__.replace('_', '-')] = function
    return function


# ---------------------------------------------------------------------------------------- tools

def faces(rows, fname=None, standardise=True, size=96):
    """Load faces with all 15 points.

    Parameters
    ----------
    rows : int
        The first so many, after shuffling; fewer where there are no more.
    fname : str, optional
        A training.csv in the contest's format; faces are drawn if not given.
    standardise : bool
        Pixels of mean 0 and deviation 1, in [0, 1] otherwise.
    size : int
        Height and width: 96 or what divides it.  Smaller faces are means of pixels.

    Returns
    -------
    X : ndarray of float32, shape (n, 1, size, size)
    y : ndarray of float32, shape (n, 30), in [-1, 1]
    """
    if fname:
        table = tables.read_faces(fname)
        print(table.count())
        table = table.dropna()
        tables.check_rows(table, fname)
        images, labels = np.vstack(table['Image'].values), table[table.columns[:-1]].values
        images, labels = shuffle(images, labels, random_state=42)
    else:
        images, labels = make_faces.draw_faces(rows)
    X = images.reshape(-1, 1, 96, 96) / np.float32(255)
    y = ((labels - 48) / 48).astype(np.float32)
    X, y = X[:rows], y[:rows]
    step = 96 // size
    X = X.reshape(len(X), 1, size, step, size, step).mean(axis=(3, 5))
    if standardise:
        X = (X - X.mean()) / X.std()
    return X.astype(np.float32), y.astype(np.float32)


class Progress:
    """Print every few seconds how far a training is, what it has reached, and the time left."""
    def __init__(self, label, epochs, every=10):
        self.label, self.epochs, self.every = label, epochs, every
        self.printed = time.time()
        self.first = None

    def __call__(self, nn, train_history):
        self.first = self.first or len(train_history)
        done = len(train_history) - self.first + 1
        # The first epoch tells little: Theano compiles in it.
        if time.time() < self.printed + self.every or not 1 < done < self.epochs:
            return
        self.printed = time.time()
        left = seconds_an_epoch(train_history) * (self.epochs - done)
        loss = train_history[-1]['train_loss']
        print(f'# {self.label}: epoch {done} of {self.epochs}, loss {loss:.5f}, '
              f'at most {hms(left)} left')


def train(net, X, y, epochs, label):
    """Train a net of nolearn and tell what came of it; return its history."""
    net.max_epochs = epochs
    progress = Progress(label, epochs)
    net.on_epoch_finished.append(progress)
    net.fit(X, y)
    net.on_epoch_finished.remove(progress)
    if len(net.train_history_) < epochs:
        raise KeyboardInterrupt  # nolearn takes Ctrl-C for a normal end
    last = net.train_history_[-1]
    seconds = np.median([row['dur'] for row in net.train_history_[1:] or net.train_history_])
    print(f'{label}: training loss {last["train_loss"]:.5f}, validation loss '
          f'{last["valid_loss"]:.5f} after {epochs} epochs of {seconds:.2f} s.')
    return net.train_history_


def seeded(build, *args, **kwargs):
    """Build a net whose weights and dropout depend on SEED alone."""
    lasagne.random.set_rng(np.random.RandomState(SEED))
    return build(*args, **kwargs)


def pixels(train_history, name='valid_loss'):
    """RMSE of each epoch, in pixels."""
    return 48 * np.sqrt([row[name] for row in train_history])


def best(train_history, last=5):
    """Mean validation RMSE of the last epochs, in pixels: steadier than the last one."""
    return float(pixels(train_history)[-last:].mean())


def guess(y, eval_size=.2):
    """RMSE of always answering the mean of the training labels, in pixels."""
    held = len(y) // int(round(1 / eval_size))  # nolearn's TrainSplit keeps the first fold
    return float(48 * np.sqrt(np.mean((y[:held] - y[held:].mean(axis=0)) ** 2)))


def curves_of(histories, title, mean_face=None):
    """Draw learning curves of several nets: solid validation, dashed training, RMSE in pixels."""
    fig, axis = pyplot.subplots(figsize=(8, 5), layout='constrained')
    for (name, history), color in zip(histories.items(), [BLACK, BLUE, RED, GREEN]):
        epochs = np.arange(1, len(history) + 1)
        axis.plot(epochs, pixels(history), color=color, linewidth=2, label=name)
        axis.plot(epochs, pixels(history, 'train_loss'), '--', color=color, alpha=.6)
    if mean_face:
        axis.axhline(mean_face, color='gray', linestyle=':', label='the mean face')
    axis.plot([], [], '--', color='gray', label='dashed: training')
    # Logarithmic: a training can begin at 20 pixels, and differences of tenths count.
    axis.set(title=title, xlabel='epoch', ylabel='RMSE (pixels)', yscale='log')
    low, high = axis.get_ylim()
    axis.set_yticks([tick for tick in (.2, .5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30)
                     if low < tick < high])
    axis.yaxis.set_major_formatter('{x:g}')
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=.4)
    axis.legend()
    return fig


# ---------------------------------------------------------------------- slide "Starting Tips"

def check_overfitting(net, X, y, rows=10, epochs=300, factor=1000):
    """Sanity check: a net must be able to learn a few rows by heart.

    Parameters
    ----------
    net : NeuralNet
        Not trained yet; it is trained, without validation and without other handlers.
    X, y : ndarray
        The first `rows` are learned.
    epochs : int
    factor : float
        The loss must fall by so much.

    Returns
    -------
    passed : bool
    verdict : str
        With what the monitors say if it did not pass.
    """
    net.train_split = TrainSplit(0)
    net.on_batch_finished, net.on_epoch_finished = [], []
    monitors.attach_all(net, every=max(epochs // 10, 1), size=rows)
    history = train(net, X[:rows], y[:rows], epochs, f'overfit {rows} rows')
    losses = np.array([row['train_loss'] for row in history])
    fall = losses[0] / losses[-1]
    passed = bool(fall >= factor)
    verdict = f'The loss of {rows} rows fell by a factor of {fall:,.0f} in {epochs} epochs, ' \
        f'from {losses[0]:.2e} to {losses[-1]:.2e}'
    if passed:
        return True, verdict + ': the net can learn.'
    reasons = ' '.join(monitors.verdict(history))
    return False, f'{verdict}; {factor:,.0f} is the least to ask for. {reasons}'


@experiment
def overfit_tiny(epochs=300, fname=None):
    """Learn ten faces by heart: the loss must fall by orders of magnitude."""
    X, y = faces(10, fname)
    net = seeded(nets.starter_net, (None, 1, 96, 96), 30)
    passed, verdict = check_overfitting(net, X, y, epochs=epochs)
    fig, axis = pyplot.subplots(figsize=(7, 4.4), layout='constrained')
    axis.plot(np.arange(1, epochs + 1), pixels(net.train_history_, 'train_loss'), color=BLUE)
    axis.set(title='Overfitting a tiny subset: ' + ('passed' if passed else 'NOT passed'),
             xlabel='epoch', ylabel='RMSE on the ten faces (pixels)', yscale='log')
    axis.grid(alpha=.4)
    return {'overfit-tiny': fig}, verdict


def check_regularisation(net, X, y, epochs, l2=(0, 1e-4, 1e-3, 1e-2), l1=(0, 1e-5, 1e-4, 1e-3),
                         dropout=(0, .2, .5, .8)):
    """Sanity check: more regularisation, a larger training loss.

    The net is compiled once; its weights start the same each time.

    Parameters
    ----------
    net : NeuralNet
        Not trained yet.  Where it has DropoutLayers, all of them are set.
    X, y : ndarray
    epochs : int
        Of each training.
    l2, l1, dropout : sequences of float
        Strengths to try, from small to large, one kind at a time; the others are 0.

    Returns
    -------
    dict of str to list of (strength, first training loss, last one, last validation loss)
        Training losses are those that training sees, penalty and dropout included.
    """
    strength = {name: theano.shared(np.float32(0), name) for name in ('l2', 'l1', 'dropout')}
    net.objective_l2, net.objective_l1 = strength['l2'], strength['l1']
    # nolearn collects a net's settings from its attributes; it names these two nowhere else.
    net._kwarg_keys += [key for key in ('objective_l2', 'objective_l1')
                        if key not in net._kwarg_keys]
    net.initialize_layers()
    drops = [layer for layer in net.layers_.values() if isinstance(layer, layers.DropoutLayer)]
    for layer in drops:
        layer.p = strength['dropout']
    net.initialize()
    start = net.get_all_params_values()
    momentum = [(shared, shared.get_value()) for shared in net.train_iter_.get_shared()]

    found = {}
    for kind, values in (('l2', l2), ('l1', l1), ('dropout', dropout if drops else ())):
        for value in values:
            for shared, original in momentum:
                shared.set_value(original)
            for name, params in start.items():
                for param, original in zip(net.layers_[name].get_params(), params):
                    param.set_value(original)
            for other in strength:
                strength[other].set_value(np.float32(value if other == kind else 0))
            net.train_history_ = []
            net.batch_iterator_train.random.seed(SEED)
            history = train(net, X, y, epochs, f'{kind} {value:g}')
            found.setdefault(kind, []).append((value, history[0]['train_loss'],
                                               history[-1]['train_loss'],
                                               history[-1]['valid_loss']))
    return found


@experiment
def regularisation(epochs=8, fname=None, rows=400):
    """Regularisation up, loss up: l1, l2 and dropout, each from none to much."""
    X, y = faces(rows, fname, size=48)
    net = seeded(nets.starter_net, (None, 1, 48, 48), 30, dropout=.5)
    found = check_regularisation(net, X, y, epochs)
    fig, axes = pyplot.subplots(1, len(found), figsize=(12, 4.2), layout='constrained', sharey=True)
    sentences = []
    for axis, (kind, runs) in zip(axes, found.items()):
        runs = np.array(runs)
        place = np.arange(len(runs))
        axis.plot(place, runs[:, 1], ':', color=BLUE, marker='o', label='training, first epoch')
        axis.plot(place, runs[:, 2], color=BLUE, marker='o',
                  label=f'training, epoch {epochs}')
        axis.plot(place, runs[:, 3], color=RED, marker='s', label='validation, nothing dropped'
                  if kind == 'dropout' else 'validation, penalty included')
        axis.set_xticks(place, [f'{value:g}' for value in runs[:, 0]])
        axis.set(xlabel=f'strength of {kind}' if kind != 'dropout' else 'share dropped', yscale='log')
        axis.grid(alpha=.4)
        rises = (np.diff(runs[:, 2]) > 0).all()
        up = 'up at every step' if rises else 'NOT up at every step'
        sentences.append(f'{kind} from {runs[0, 0]:g} to {runs[-1, 0]:g}: training loss from '
                         f'{runs[0, 2]:.4f} to {runs[-1, 2]:.4f}, {up}')
        axis.legend(fontsize='small')
    axes[0].set_ylabel('loss')
    fig.suptitle('Regularisation up, loss up')
    return {'regularisation': fig}, '; '.join(sentences) + '.'


@experiment
def starter(epochs=25, fname=None, rows=1500):
    """The starter net: three convolutions of 16 filters, to iterate quickly."""
    X, y = faces(rows, fname)
    net = seeded(nets.starter_net, (None, 1, 96, 96), 30)
    history = train(net, X, y, epochs, 'starter net')
    seconds = np.median([row['dur'] for row in history[1:] or history])
    verdict = (f'{len(X)} faces, {seconds:.1f} s an epoch: validation RMSE {best(history):.2f} '
               f'pixels after {epochs} epochs; the mean face gives {guess(y):.2f}.')
    return {'starter': curves_of({'starter net': history}, 'The starter net', guess(y))}, verdict


@experiment
def vgg(epochs=30, fname=None, rows=64, weights=None):
    """Fine-tune VGG-16 on faces, from a file of published weights (--weights vgg16.pkl)."""
    full = weights is not None
    with tempfile.TemporaryDirectory() as folder:
        if not full:
            weights = os.path.join(folder, 'vgg16.pkl')
            _write_random_weights(weights)
            print('No --weights: small random ones in the same format take their place.')
        X, y = faces(rows, fname, standardise=False, size=96 if full else 32)
        net = seeded(nets.vgg16_net, 30, X.shape[2], hidden=256 if full else 32,
                     width=1 if full else 1 / 16, regression=True, update_learning_rate=1e-4)
        loaded = nets.load_vgg16(net, weights)
    nets.freeze(net, nets.VGG16_CONVOLUTIONS)
    history = train(net, X, y, epochs, 'VGG-16')
    errors = pixels(history, 'train_loss')
    verdict = (f'{len(loaded)} of 16 layers loaded and {len(nets.VGG16_CONVOLUTIONS)} convolutions '
               f'kept as they were; training RMSE from {errors[0]:.2f} to {errors[-1]:.2f} pixels '
               f'in {epochs} epochs of {len(X)} faces, validation {pixels(history)[-1]:.2f}, the '
               f'mean face {guess(y):.2f}.')
    if not full:
        verdict += ' With random weights this shows that the path works, not what VGG is worth.'
    return {'vgg': curves_of({'VGG-16, new dense layers': history}, 'Fine-tuning VGG-16')}, verdict


def _write_random_weights(fname, width=1 / 16):
    """Write small random weights as the published ones are written."""
    random, values, channels = np.random.RandomState(SEED), [], 3
    for filters in sum(nets.VGG16_BLOCKS, ()):
        n = int(filters * width)
        values += [random.normal(0, .7 * (2 / 9 / channels) ** .5, (n, channels, 3, 3)),
                   np.zeros(n)]
        channels = n
    for inputs, n in ((channels * 49, 256), (256, 256), (256, 1000)):
        values += [random.normal(0, inputs ** -.5, (inputs, n)), np.zeros(n)]
    with open(fname, 'wb') as f:
        pickle.dump({'param values': [value.astype(np.float32) for value in values]}, f, 2)


# ------------------------------------------------------------------- slide "Reduce Overfitting"

@experiment
def augmented_faces(fname=None, columns=8):
    """Slide "Advanced Augmentation": a row of faces and a row of augmented ones."""
    X, y = faces(columns, fname, standardise=False)
    fig, axes = pyplot.subplots(3, columns, figsize=(1.35 * columns, 4.5), layout='constrained')
    moved = 0
    for row, (name, preset) in zip(axes, [('original', None), ("preset 'deck'", 'deck'),
                                          ("preset 'faces'", 'faces')]):
        Xb, yb = X, y
        if preset:
            Xb, yb = AffineBatchIterator(columns, seed=SEED, **PRESETS[preset]).transform(X, y)
            if preset == 'deck':
                moved = 48 * np.linalg.norm((yb - y).reshape(len(y), -1, 2), axis=2).mean()
        for axis, x, points in zip(row, Xb, yb):
            plot_face(x[0], points * 48 + 48, axis)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return {'augmented-faces': fig}, (
        f'With the deck\'s ranges the points of these faces move by {moved:.0f} pixels on average, '
        'and all stay in the image.')


@experiment
def augmentation(epochs=60, fname=None, rows=2000):
    """Slide "Data Augmentation": no augmentation, flips, a preset for faces, the deck's ranges."""
    X, y = faces(rows, fname)
    iterators = {
        'no augmentation': BatchIterator(32),
        'flips': AffineBatchIterator(32, seed=SEED, **FLIPS),
        "preset 'faces'": AffineBatchIterator(32, seed=SEED, **PRESETS['faces']),
        "preset 'deck'": AffineBatchIterator(32, seed=SEED, **PRESETS['deck'])}
    histories = {}
    for name, iterator in iterators.items():
        net = seeded(nets.starter_net, (None, 1, 96, 96), 30, batch_iterator_train=iterator)
        histories[name] = train(net, X, y, epochs, name)
    results = {name: best(history) for name, history in histories.items()}
    gaps = {name: best(history) / pixels(history, 'train_loss')[-5:].mean()
            for name, history in histories.items()}
    each = ', '.join(f'{name} {value:.2f} pixels (validation / training {gaps[name]:.2f})'
                     for name, value in results.items())
    verdict = (f'Validation RMSE after {epochs} epochs of {len(X)} faces: {each}; the mean face '
               f'gives {guess(y):.2f}.')
    first = results['no augmentation']
    better = ', '.join(name for name, value in results.items() if value < first)
    verdict += f' Better than none: {better or "no one"}.'
    return {'augmentation': curves_of(histories, 'Augmentation', mean_face=guess(y))}, verdict


@experiment
def dropout(epochs=80, fname=None, rows=500):
    """Slide "Dropout": the same net without and with it, on few faces."""
    X, y = faces(rows, fname)
    histories = {}
    for name, share in (('no dropout', 0), ('dropout 0.5', .5)):
        net = seeded(nets.starter_net, (None, 1, 96, 96), 30, num_units=400, dropout=share)
        histories[name] = train(net, X, y, epochs, name)
    a, b = (f'{best(history):.2f} pixels ({curves.analyse(history).state})'
            for history in histories.values())
    ratio = best(histories['dropout 0.5']) / best(histories['no dropout'])
    compared = 'better' if ratio < 1 else 'WORSE: dropout does not help here'
    verdict = (f'Validation RMSE after {epochs} epochs of {len(X)} faces: {a} without dropout, {b} '
               f'with it: {abs(ratio - 1):.0%} {compared}.')
    return {'dropout': curves_of(histories, 'Dropout', mean_face=guess(y))}, verdict


# ----------------------------------------------------------------- slide "Convergence Challenges"

@experiment
def normalisation(epochs=40, fname=None, rows=1000):
    """Slide "Normalization": pixels in [0, 1] against pixels of mean 0 and deviation 1.

    With the deck's Nesterov momentum: Adam, whose steps do not depend on the scale of the
    gradients, shows little of it.
    """
    histories = {}
    for name, standardise in (('pixels / 255', False), ('mean 0, deviation 1', True)):
        X, y = faces(rows, fname, standardise)
        net = seeded(nets.starter_net, (None, 1, 96, 96), 30, update=updates.nesterov_momentum,
                     update_learning_rate=.2, update_momentum=.9)
        histories[name] = train(net, X, y, epochs, name)
    raw, standard = histories.values()
    goal = best(raw)
    reached = np.flatnonzero(pixels(standard) <= goal)
    verdict = f'Validation RMSE after {epochs} epochs: {goal:.2f} pixels with pixels / 255, ' \
        f'{best(standard):.2f} with mean 0 and deviation 1'
    if len(reached) and best(standard) < goal:
        verdict += f', which gets there in {reached[0] + 1} epochs.'
    else:
        verdict += ': normalisation does NOT help here.'
    return {'normalisation': curves_of(histories, 'Normalisation', mean_face=guess(y))}, verdict


class OneOverRoot(init.Initializer):
    r"""The older initialisation of slide "Weight Initialization matters": U(-1/sqrt(n), 1/sqrt(n)).

    n is the number of inputs of a unit.
    """
    def sample(self, shape):
        inputs = shape[0] if len(shape) == 2 else np.prod(shape[1:])
        return init.Uniform(1 / np.sqrt(inputs)).sample(shape)


def deep_net(W, depth=6, units=200, inputs=24, learning_rate=.01):
    """A net of many tanh layers, as in Glorot and Bengio's experiments, for faces of 24x24."""
    stack = [(layers.InputLayer, dict(name='input', shape=(None, 1, inputs, inputs)))]
    stack += [(layers.DenseLayer, dict(name=f'layer{number}', num_units=units, W=W(),
                                       nonlinearity=nonlinearities.tanh))
              for number in range(1, depth + 1)]
    stack.append((layers.DenseLayer, dict(name='output', num_units=30, W=W(), nonlinearity=None)))
    return NeuralNet(stack, regression=True, update_learning_rate=learning_rate, update_momentum=.9,
                     batch_iterator_train=BatchIterator(32), batch_iterator_test=BatchIterator(128),
                     train_split=TrainSplit(.2))


class OutputSpread:
    """Record how much the outputs of a net differ from one input to another (deviation)."""
    def __init__(self, X):
        self.X, self.spread = X, []

    def __call__(self, nn, train_history):
        self.spread.append(float(nn.predict(self.X).std(axis=0).mean()))


@experiment
def initialisations(epochs=40, fname=None, rows=1000):
    """Slides "Weight Initialization matters": U(-1/sqrt(n), 1/sqrt(n)) against Glorot."""
    X, y = faces(rows, fname, size=24)
    unit = 48 * (y - y.mean(axis=0)).std()  # pixels
    y = (y - y.mean(axis=0)) * 48 / unit    # deviation 1, as Glorot's outputs have
    fig, axes = pyplot.subplots(3, 2, figsize=(10, 10.5), layout='constrained', sharex='row')
    found = {}
    for column, (name, W) in enumerate((('U(-1/sqrt(n), 1/sqrt(n))', OneOverRoot),
                                        ('Glorot', init.GlorotUniform))):
        net = seeded(deep_net, W)
        spread = OutputSpread(X[:200])
        net.on_training_started.append(spread)
        net.on_epoch_finished.append(spread)
        for monitor in (monitors.ActivationMonitor(every=100, size=100),
                        monitors.GradientMonitor(every=100, size=100, of='outputs')):
            monitor.attach(net)
        history = train(net, X, y, epochs, name)
        activations = monitors.samples(history, 'activations')[0]['layers']
        gradients = monitors.samples(history, 'gradients')[0]['layers']
        hidden = [layer for layer in activations if layer != 'output']
        for layer, color in monitors.colors_of(hidden).items():
            monitors.draw_histogram(axes[0, column], activations[layer], color, layer)
            monitors.draw_histogram(axes[1, column], gradients[layer], color, layer)
        axes[0, column].set(title=name, xlabel='activation')
        axes[1, column].set_xlabel('gradient of the loss by the activation')
        axes[2, column].plot(spread.spread, color=BLUE, label='outputs of the net')
        axes[2, column].axhline(y.std(axis=0).mean(), color=RED, linestyle=':', label='labels')
        axes[2, column].set(xlabel='epoch', ylabel='deviation from input to input',
                            ylim=(0, 1.15 * y.std(axis=0).mean()))
        axes[2, column].legend()
        found[name] = dict(
            activation=activations[hidden[-1]]['std'] / activations[hidden[0]]['std'],
            gradient=gradients[hidden[0]]['norm'] / gradients[hidden[-1]]['norm'],
            start=spread.spread[0],
            train=unit * np.sqrt(history[-1]['train_loss']),
            valid=unit * np.sqrt(history[-1]['valid_loss']))
    for axis in axes[:2].flat:
        axis.set_ylabel('density (1 at the highest)')
    for axis in axes[1]:
        axis.ticklabel_format(axis='x', style='sci', scilimits=(0, 0))
    axes[0, 1].legend(fontsize='small')
    fig.suptitle(f'{len(hidden)} tanh layers after the first batch: activations and '
                 'back-propagated gradients; below, the outputs')
    old, glorot = found.values()
    verdict = (
        'Layer {n} against layer 1, deviation of the activations: {a[activation]:.3f} with '
        '1/sqrt(n), {b[activation]:.2f} with Glorot. Layer 1 against layer {n}, norm of the '
        'gradient: {a[gradient]:.3f} and {b[gradient]:.2f}. Outputs differ from input to input by '
        '{a[start]:.3f} and {b[start]:.2f} of the labels\' deviation at the start. RMSE after '
        '{epochs} epochs, training and validation: {a[train]:.2f} and {a[valid]:.2f} pixels with '
        '1/sqrt(n), {b[train]:.2f} and {b[valid]:.2f} with Glorot.')
    verdict = verdict.format(n=len(hidden), a=old, b=glorot, epochs=epochs)
    visible = old['activation'] < .5 * glorot['activation'] and \
        old['gradient'] < .5 * glorot['gradient'] and old['start'] < .5 * glorot['start']
    return {'initialisations': fig}, verdict + (
        ' The deck\'s effect shows.' if visible else ' The deck\'s effect does NOT show.')


@experiment
def update_rules(epochs=30, fname=None):
    """Slide "Optimization - Updates": Lasagne's seven update rules on scikit-learn's digits."""
    X, y = digits()
    rules = dict(
        sgd=dict(learning_rate=.1), momentum=dict(learning_rate=.1, momentum=.9),
        nesterov_momentum=dict(learning_rate=.1, momentum=.9), adagrad=dict(learning_rate=.05),
        rmsprop=dict(learning_rate=.003), adadelta=dict(learning_rate=1.),
        adam=dict(learning_rate=.003))
    fig, axis = pyplot.subplots(figsize=(8, 5), layout='constrained')
    last = {}
    colors = monitors.colors_of(rules)
    for (name, settings), style in zip(rules.items(), ['-', '--', '-.', ':'] * 2):
        net = seeded(NeuralNet, [
            (layers.InputLayer, dict(name='input', shape=(None, 1, 8, 8))),
            (layers.DenseLayer, dict(name='hidden', num_units=100)),
            (layers.DenseLayer, dict(name='output', num_units=10,
                                     nonlinearity=nonlinearities.softmax))],
            update=getattr(updates, name), batch_iterator_train=BatchIterator(64),
            train_split=TrainSplit(.2),
            **{'update_' + key: value for key, value in settings.items()})
        history = train(net, X, y, epochs, name)
        losses = [row['train_loss'] for row in history]
        values = ', '.join(f'{value:g}' for value in settings.values())
        axis.plot(np.arange(1, epochs + 1), losses, style, linewidth=2, color=colors[name],
                  label=f'{name} ({values})')
        last[name] = losses[-1], history[-1]['valid_accuracy']
    axis.set(title='Update rules with their learning rate (and momentum), digits', xlabel='epoch',
             ylabel='training loss (cross-entropy)', yscale='log')
    axis.grid(alpha=.4)
    axis.legend()
    order = sorted(last, key=last.get)
    each = ', '.join('{} {:.1e} (accuracy {:.1%})'.format(name, *last[name]) for name in order)
    return {'update-rules': fig}, f'Training loss after {epochs} epochs, smallest first: {each}.'


class SearchScore:
    """Scorer of a search: minus the mean squared error; it prints how far the search is.

    Parameters
    ----------
    fits : int
        How many there will be.
    """
    def __init__(self, fits, every=10):
        self.fits, self.every, self.done = fits, every, 0
        self.printed = time.time()

    def __call__(self, net, X, y):
        now = time.time()
        self.first = now if self.done == 0 else self.first  # in which Theano compiles
        self.done += 1
        if now >= self.printed + self.every and 1 < self.done < self.fits:
            self.printed = now
            left = (now - self.first) / (self.done - 1) * (self.fits - self.done)
            print(f'# search: {self.done} of {self.fits} trainings, some {hms(left)} left')
        return -mean_squared_error(y, net.predict(X))


@experiment
def search(epochs=30, fname=None, rows=600, candidates=16):
    """Learning rate, momentum and dropout by scikit-learn's RandomizedSearchCV."""
    X, y = faces(rows + 200, fname, size=24)
    (X, X_test), (y, y_test) = np.split(X, [-200]), np.split(y, [-200])
    net = nets.SeededNet(
        [('input', layers.InputLayer), ('conv', layers.Conv2DLayer),
         ('pool', layers.MaxPool2DLayer), ('hidden', layers.DenseLayer),
         ('dropout', layers.DropoutLayer), ('output', layers.DenseLayer)],
        input_shape=(None, 1, 24, 24), conv_num_filters=8, conv_filter_size=(3, 3),
        pool_pool_size=(2, 2), hidden_num_units=100, output_num_units=30, output_nonlinearity=None,
        regression=True, update_learning_rate=.03, update_momentum=.9, max_epochs=epochs,
        batch_iterator_train=BatchIterator(32), train_split=TrainSplit(0))
    found = RandomizedSearchCV(
        net, {'update_learning_rate': loguniform(.01, 10), 'update_momentum': uniform(.5, .49),
              'dropout_p': uniform(0, .7)},
        n_iter=candidates, cv=KFold(3), scoring=SearchScore(3 * candidates + 1), random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of nets that diverge, which are counted
        found.fit(X, y)

    rmse = 48 * np.sqrt([-found.cv_results_[f'split{fold}_test_score']
                         for fold in range(3)])
    mean_face = float(48 * (y - y.mean(axis=0)).std())
    best, far = found.best_index_, ~(rmse.mean(axis=0) < 1.5 * mean_face)
    fig, axes = pyplot.subplots(1, 3, figsize=(12, 4.2), layout='constrained', sharey=True)
    for axis, name in zip(axes, ('update_learning_rate', 'update_momentum', 'dropout_p')):
        drawn = np.array([params[name] for params in found.cv_results_['params']])
        axis.vlines(drawn[~far], *np.sort(rmse[:, ~far], axis=0)[[0, -1]], color=BLUE, alpha=.5)
        axis.plot(drawn[~far], rmse[:, ~far].mean(axis=0), 'o', color=BLUE,
                  label='mean and range of three folds')
        axis.plot(drawn[far], np.full(far.sum(), 1.5 * mean_face), 'x', color=RED,
                  label='diverged, or worse than this')
        axis.plot(drawn[best], rmse[:, best].mean(), '*', color=BLACK, markersize=14, label='best')
        axis.axhline(mean_face, color='gray', linestyle=':', label='the mean face')
        axis.set_xlabel(name)
        axis.grid(alpha=.4)
    axes[0].set_xscale('log')
    axes[0].set_ylabel('RMSE by cross-validation (pixels)')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    fig.suptitle(f'{candidates} random settings of a small net')
    test = 48 * np.sqrt(mean_squared_error(y_test, found.predict(X_test)))
    guessed = 48 * np.sqrt(mean_squared_error(y_test, y.mean(axis=0)[None].repeat(200, axis=0)))
    means = rmse.mean(axis=0)
    middle = np.median(np.where(np.isfinite(means), means, np.inf))
    chosen = ', '.join(f'{name} {value:.2g}' for name, value in sorted(found.best_params_.items()))
    verdict = (
        f'Best of {candidates} settings: {chosen}; RMSE {means[best]:.2f} pixels by '
        f'cross-validation, where the median of the settings has {middle:.2f} and '
        f'{np.isnan(means).sum()} diverged. On 200 faces kept aside: {test:.2f}, the mean face '
        f'{guessed:.2f}.')
    return {'search': fig}, verdict


# ------------------------------------------------------------- slide "Train / Validation Split"

def digits():
    """scikit-learn's 1,797 digits: X (n, 1, 8, 8) in [0, 1], y the digit."""
    X, y = load_digits(return_X_y=True)
    return (X.reshape(-1, 1, 8, 8) / 16).astype(np.float32), y.astype(np.int32)


@experiment
def classification(epochs=20, fname=None):
    """The path of a classifier: cross-entropy, StratifiedKFold, label encoder, accuracy."""
    words = np.array('zero one two three four five six seven eight nine'.split())
    X, y = digits()
    net = seeded(nets.starter_net, (None, 1, 8, 8), 10, num_convolutions=2, regression=False,
                 use_label_encoder=True, verbose=1)
    history = train(net, X, words[y], epochs, 'digits')
    X_train, X_valid, y_train, y_valid = net.train_split(X, net.enc_.transform(words[y]), net)
    found, truth = net.predict(X_valid), net.enc_.inverse_transform(y_valid)
    shares = np.array([np.bincount(part, minlength=10) / len(part) for part in (y_train, y_valid)])
    fig, (axis, matrix) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout='constrained')
    axis.plot(np.arange(1, epochs + 1), [100 * row['valid_accuracy'] for row in history],
              color=BLUE)
    axis.set(xlabel='epoch', ylabel='validation accuracy (%)')
    axis.grid(alpha=.4)
    ConfusionMatrixDisplay.from_predictions(
        truth, found, labels=net.classes_, ax=matrix, cmap='Greys', colorbar=False,
        xticks_rotation=60, text_kw=dict(fontsize=8))
    fig.suptitle('Classification of scikit-learn\'s digits')
    right = found == truth
    verdict = (f'Validation accuracy {right.mean():.1%} after {epochs} epochs, {right.sum()} of '
               f'{len(truth)} digits; the shares of the classes in training and validation differ '
               f'by {np.abs(np.diff(shares, axis=0)).max():.2%} at most.')
    return {'classification': fig}, verdict


# --------------------------------------------------------------- slides "Monitor Layers' Training"

@experiment
def monitor(epochs=30, fname=None, rows=800):
    """Slides "Monitoring ...": activations, gradients and updates while the starter net trains."""
    X, y = faces(rows, fname)
    net = seeded(nets.starter_net, (None, 1, 96, 96), 30)
    history = train(monitors.attach_all(net, every=10), X, y, epochs, 'starter net')
    return {'monitor-activations': monitors.plot_activations(history),
            'monitor-gradients': monitors.plot_gradients(history),
            'monitor-updates': monitors.plot_updates(history),
            'monitor-histograms': monitors.plot_histograms(history)}, \
        ' '.join(monitors.verdict(history))


@experiment
def weights_and_activity(epochs=25, fname=None, rows=800):
    """nolearn's pictures of weights and activity, both paths of a batch, what points hang on."""
    X, y = faces(rows, fname)
    net = seeded(nets.starter_net, (None, 1, 96, 96), 30)
    train(net, X, y, epochs, 'starter net')
    points = dict(left_eye_center=0, nose_tip=20, mouth_left_corner=22)
    figures = {'paths': pictures.plot_paths(net, X[:32], y[:32]),
               'point-saliency': pictures.plot_point_saliency(net, X[:3], points)}
    for name, draw in (
            ('conv-weights', lambda: visualize.plot_conv_weights(net.layers_['conv1'])),
            ('conv-activity', lambda: visualize.plot_conv_activity(net.layers_['conv1'], X[:1])),
            ('occlusion', lambda: visualize.plot_occlusion(net, X[:2], [0, 0], square_length=9))):
        draw()
        figures[name] = pyplot.gcf()
    # How much of the saliency of a point lies near it?
    y_x, x_x = np.mgrid[:96, :96]
    near = []
    for name, column in points.items():
        heat = pictures.point_saliency(net, X[:32], (column, column + 1))
        x, y_ = (48 + 48 * y[:32, column + axis, None, None] for axis in (0, 1))
        disc = np.hypot(x_x - x, y_x - y_) < 16
        near.append(f'{name} {(heat * disc).sum() / heat.sum():.0%}')
    area = np.pi * 16 ** 2 / 96 ** 2
    return figures, ('Saliency within 16 pixels of the point, where a uniform one would have '
                     f'{area:.0%}: {", ".join(near)}.')


@experiment
def curve_analysis(epochs=100, fname=None, rows=500):
    """Slide "Learning Curves Analysis": three trainings, judged and marked."""
    X, y = faces(rows, fname, size=48)
    runs = {
        'small steps, dropout': dict(update_learning_rate=.0005, dropout=.3),
        'large steps, batches of 8': dict(update_learning_rate=.006,
                                          batch_iterator_train=BatchIterator(8)),
        'few faces': dict(num_units=400)}
    fig, axes = pyplot.subplots(1, 3, figsize=(15, 4.6), layout='constrained', sharey=True)
    sentences = []
    for axis, (name, settings) in zip(axes, runs.items()):
        net = seeded(nets.starter_net, (None, 1, 48, 48), 30, **settings)
        some = slice(0, 120 if name == 'few faces' else rows)
        history = train(net, X[some], y[some], epochs, name)
        curves.plot_analysis(history, 48, 'pixels', name, axis)
        sentences.append(f'{name}: {curves.analyse(history)}')
    axes[0].set_ylim(0, 8)
    return {'curve-analysis': fig}, ' '.join(sentences)


# ------------------------------------------------------------------------------------------ main

def listing():
    """Names and first lines of the experiments, for the manual."""
    return '\n'.join('    {:22}{}'.format(name, function.__doc__.split('\n')[0])
                     for name, function in EXPERIMENTS.items())


def main(argv=None):
    """Run the experiments named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m beyond.experiments', formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.format(experiments=listing()))
    parser.add_argument('names', nargs='+', metavar='NAME', choices=list(EXPERIMENTS) + ['all'])
    parser.add_argument('--faces', metavar='FILE', help='a training.csv; drawn faces if not given')
    parser.add_argument('--epochs', type=int, help='other than the default of each experiment')
    parser.add_argument('--rows', type=int, help='faces to use, other than the default')
    parser.add_argument('--weights', metavar='FILE', help='VGG-16 weights, for vgg')
    options = parser.parse_args(argv)

    given = dict(epochs=options.epochs, fname=options.faces, rows=options.rows,
                 weights=options.weights)
    names = list(EXPERIMENTS) if 'all' in options.names else options.names
    try:
        for name in names:
            function = EXPERIMENTS[name]
            takes = function.__code__.co_varnames[:function.__code__.co_argcount]
            start = time.time()
            figures, verdict = function(**{key: value for key, value in given.items()
                                           if value is not None and key in takes})
            for part, fig in figures.items():
                write_figure(fig, part + '.png')
                pyplot.close(fig)
            print(f'{name} ({time.time() - start:.0f} s): {verdict}\n', flush=True)
    except (OSError, ValueError) as error:  # files that are missing or not what they should be
        print(f'beyond.experiments: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('beyond.experiments: interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
