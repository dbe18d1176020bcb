"""Find 15 points in faces: Daniel Nouri's kfkd.py tutorial, as the slides tell it, on today's Python.

    python kfkd.py                              all four steps below, one after the other
    python kfkd.py fit                          train the first net, write net.pickle
    python kfkd.py fit_specialists [NET]        fine-tune six specialists from it (net.pickle),
                                                write net-specialists.pickle
    python kfkd.py plot_learning_curves [NETS]  draw RMSE against epoch, write learning-curves.png
    python kfkd.py predict [NETS]               mark the test faces, write submission-<time>.csv

    python kfkd.py compare RUN...               tell runs apart by their records in runs/, write
                                                compare.png
    python kfkd.py report RUN                   show a run on one page, write report-<run>.html
    python kfkd.py --config FILE [...]          the same with constants and net of a YAML file

Stop a training when you like (Ctrl-C, kill): the same command goes on where it stopped, from the
checkpoint that is written every few minutes, and ends in the same net, bit for bit. With --fresh it
forgets the checkpoint and starts anew.

The data are the CSV files of Kaggle's "Facial Keypoints Detection" in data/ (see data/README.md).
Without them, faces are drawn into data/faces/ and used instead.

To run an experiment, edit the constants below and run again.  From another program:

    import kfkd
    kfkd.MAX_EPOCHS = 50
    kfkd.fit()

The functions stand in the order of the slides; each names its slide.
"""
import argparse
import contextlib
import csv
import functools
import importlib.util
import inspect
import io
import os
import pickle
import signal
import sys
import time
import warnings
from collections import OrderedDict
from datetime import datetime

try:
    import theano_today  # noqa: F401, first of all: it prepares Python for the packages below
except ImportError as error:
    if __name__ == '__main__':
        sys.exit('kfkd.py: {}'.format(error))
    raise

import lasagne
import numpy as np
import pandas as pd
import theano
from lasagne import layers
from lasagne.layers import Conv2DLayer, MaxPool2DLayer
from matplotlib import pyplot
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from sklearn.base import clone
from sklearn.utils import shuffle

from beyond import config
from beyond.augmentation import PRESETS, AffineBatchIterator
from beyond.monitors import ActivationMonitor, GradientMonitor, UpdateMonitor
from beyond.records import Record, compare as compare_records, constants_of
from beyond.report import write_report
from beyond.tensorboard import TensorBoard
from theano_today.nets import parallel, safe_pickle
from theano_today.nets.checkpoint import Checkpoint, Diverged, Stopped, digest, stopping_on_signals
from theano_today.nets.files import (
    FileError, check_writable, locked, open_regular, remove_leftovers, remove_unlocked, replacing)
from theano_today.nets.parallel import hms

# ---------------------------------------------------------------------------- constants to edit

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
FTRAIN = os.path.join(DATA, 'training.csv')        # 30 label columns and Image
FTEST = os.path.join(DATA, 'test.csv')             # ImageId and Image
FLOOKUP = os.path.join(DATA, 'IdLookupTable.csv')  # which point of which face Kaggle asks for
FTESTLABELS = None              # a file of true test labels to score against; Kaggle gives none

MAX_EPOCHS = 3000               # epochs of the first net at most (deck: 3000)
PATIENCE = 200                  # epochs without a better validation loss before stopping (200)
BATCH_SIZE = 128                # faces a batch (128)
EVAL_SIZE = 0.2                 # share of the faces kept for validation (0.2)
LEARNING_RATE = 0.03, 0.0001    # at the first and at the last epoch (.03, .0001)
MOMENTUM = 0.9, 0.999           # at the first and at the last epoch (.9, .999)
SPECIALIST_SAMPLES = 4e6        # faces a specialist sees in its training (4e6)
AUGMENT = None                  # None: flips only. 'faces', 'deck': beyond.augmentation's PRESETS
MONITOR = False                 # record activations, gradients and updates (beyond.monitors)
NET = None                      # what --config says of the net, other than the deck's
STANDARDIZE = False             # inputs with mean 0 and deviation 1: no plateau at the start (False)
SEED = 42                       # of weights, dropout and flips; same seed, data, threads: same net
VERBOSE = 1                     # nolearn's: 0 is silent, 1 prints a row an epoch, 2 tells more
CHECKPOINT_MINUTES = 5          # from one checkpoint of a training to the next
JOBS = 1                        # specialists trained at a time; other than 1: each in a process of
                                # its own, -1: as many as there are cores (theano_today.nets)

FNET = 'net.pickle'                             # files written, in the folder you are in
FSPECIALISTS = 'net-specialists.pickle'
FSUBMISSION = 'submission-{time}.csv'
FFACES = 'training-faces.png'
FCURVES = 'learning-curves.png'
FPREDICTIONS = 'test-predictions.png'
LARGEST_TABLE = 4e9             # bytes of a CSV file; Kaggle's have 0.24e9
FCHECKPOINT = 'checkpoint-{name}.npz'           # while there is a training to go on with
FCOMPARE = 'compare.png'
FREPORT = 'report-{name}.html'
RUNS = 'runs'                   # each run that trains leaves a record in this folder; None: no record
TENSORBOARD = None              # folder for TensorBoard's event files; None: none

TRUSTED = ()                    # classes and functions of your own that pickled nets may refer to

# Without Kaggle's files, these faces are drawn and used, in a run of minutes:
DRAWN = os.path.join(DATA, 'faces')
DRAWN_ROWS = 6000, 500          # faces for training (some 30 % with all points) and for testing
DRAWN_CONSTANTS = {             # constant: (the deck's value, ours for drawn faces); a constant
    'MAX_EPOCHS': (3000, 40),   # that you have changed from the deck's value stays as you set it
    'SPECIALIST_SAMPLES': (4e6, 20000),
    'STANDARDIZE': (False, True),          # or the run would end before the net leaves the mean
    'BATCH_SIZE': (128, 32),               # face; smaller batches and a higher rate are for the
    'LEARNING_RATE': ((0.03, 0.0001), (0.2, 0.005)),  # same: more and larger steps in the time
    'MOMENTUM': ((0.9, 0.999), (0.9, 0.98)),
}

DECK = dict(                    # the deck's constants, whatever you have set above: for reports
    {name: deck for name, (deck, ours) in DRAWN_CONSTANTS.items()},
    PATIENCE=200, EVAL_SIZE=0.2, AUGMENT=None, MONITOR=False, NET=None, SEED=42)

# ------------------------------------------------------------- slide "Data Exploration + Validation"

COLUMNS = tuple(point + axis for point in (
    'left_eye_center', 'right_eye_center', 'left_eye_inner_corner', 'left_eye_outer_corner',
    'right_eye_inner_corner', 'right_eye_outer_corner', 'left_eyebrow_inner_end',
    'left_eyebrow_outer_end', 'right_eyebrow_inner_end', 'right_eyebrow_outer_end', 'nose_tip',
    'mouth_left_corner', 'mouth_right_corner', 'mouth_center_top_lip', 'mouth_center_bottom_lip',
) for axis in ('_x', '_y'))


class DataError(FileError):
    """A file that cannot be used as it is; the message says which, where, and what to do."""


def use_drawn_faces():
    """Fall back on drawn faces where Kaggle's files have not been put in their place."""
    names = 'training.csv', 'test.csv', 'IdLookupTable.csv', 'test-labels.csv'
    if FTRAIN != os.path.join(DATA, names[0]) or os.path.exists(FTRAIN) or os.path.exists(FTEST):
        return
    changed = {name: ours for name, (deck, ours) in DRAWN_CONSTANTS.items()
               if globals()[name] == deck}
    print('{} is not there: using drawn faces in {}{}.'.format(FTRAIN, DRAWN, ''.join(
        ', {} = {}'.format(name, ours) for name, ours in changed.items())))
    files = [os.path.join(DRAWN, name) for name in names]
    globals().update(changed, **dict(zip(('FTRAIN', 'FTEST', 'FLOOKUP', 'FTESTLABELS'), files)))
    if not all(map(os.path.exists, files)):
        spec = importlib.util.spec_from_file_location(
            'make_faces', os.path.join(DATA, 'make_faces.py'))
        make_faces = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(make_faces)
        make_faces.write_csvs(DRAWN, *DRAWN_ROWS)


def read_table(fname, columns):
    """Read a CSV file that has at least the given columns.

    Raises
    ------
    DataError
        If there is no such file, or it is not a CSV file with these columns.
    """
    fname = os.path.expanduser(fname)
    try:
        with open_regular(fname) as f:
            header = check_header(f, fname)
            with warnings.catch_warnings():
                # Rows longer than the header; pandas would take their first cells for an index.
                warnings.simplefilter('error', pd.errors.ParserWarning)
                table = pd.read_csv(f, index_col=False)
    except FileNotFoundError:
        raise DataError('{} is not there. data/README.md says where to get it.'.format(fname))
    except FileError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, csv.Error, pd.errors.ParserWarning) as error:
        # ValueError: pandas' parser errors, bad encodings
        raise DataError('{} cannot be read as a CSV file: {}.'.format(
            fname, str(error).strip().rstrip('.')))
    for name in columns:
        if name not in table.columns:
            raise DataError('{} has no column {}. Its columns are: {}. Is it the right file, '
                            'separated by commas?'.format(
                                fname, name, repr(header[:5])[1:-1][:200]))
    if table.empty:
        raise DataError('{} has a header but no rows.'.format(fname))
    return table


def check_header(f, fname):
    """Return the names in the header of an open CSV file; look before pandas takes gigabytes."""
    size = os.fstat(f.fileno()).st_size
    if size > LARGEST_TABLE:
        raise DataError('{} has {:.1f} GB; at most {:.1f} are expected. Is it the right file? '
                        'LARGEST_TABLE allows more.'.format(fname, size / 1e9, LARGEST_TABLE / 1e9))
    start = f.read(1 << 20)
    f.seek(0)
    if b'\0' in start:
        raise DataError('{} is not a CSV file: it has zero bytes (another encoding, or binary '
                        'data). Save it as UTF-8.'.format(fname))
    if b'\n' not in start and b'\r' not in start and len(start) < size:
        raise DataError('{} is not a CSV file: its first line does not end.'.format(fname))
    header = next(csv.reader(start.decode('utf-8-sig', 'replace').splitlines()), [])
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError('{} has the column {!r} twice.'.format(fname, repeated[0][:100]))
    return header


def numbers(table, name, fname, whole=False):
    """Return a column of `table` as numbers; raise DataError for the first cell that is not one."""
    column = pd.to_numeric(table[name].astype(object), errors='coerce').astype(float)
    bad = column.isna() & (table[name].notna() | whole)
    bad |= np.isinf(column)
    bad |= table[name].map(lambda cell: isinstance(cell, (bool, np.bool_)))  # 1 and 0 to pandas
    if whole:
        bad |= (column != column.round()) | (column.abs() > 2 ** 53)
    if bad.any():
        row = bad.idxmax()
        raise DataError('{}, line {}, column {}: {:.100} is not a {}number.'.format(
            fname, row + 2, name, repr(table[name][row]), 'whole ' if whole else ''))
    return column.astype(int) if whole else column


record = Record()  # of nothing; `main` makes one for its run
_tables = {}


def read_faces(fname):
    """Read training.csv or test.csv and report what is odd in it.

    The file is parsed once and kept until it changes: `fit` and six specialists ask for it in turn.

    Returns
    -------
    pandas.DataFrame
        The label columns (or ImageId) as numbers, and at the end Image: arrays of 9216 pixels.

    Raises
    ------
    DataError
        If the file is missing or a cell cannot be used, by line and column.
    """
    fname = os.path.expanduser(fname)
    key = os.path.exists(fname) and (os.stat(fname).st_mtime_ns, os.stat(fname).st_size)
    if fname in _tables and _tables[fname][0] == key:
        return _tables[fname][1].copy()

    df = read_table(fname, ['Image'])
    df = df[[name for name in df.columns if name != 'Image'] + ['Image']]
    for name in df.columns[:-1]:
        df[name] = numbers(df, name, fname, whole=name == 'ImageId')
    repeated = df.duplicated()

    order = [name for name in COLUMNS if name in df.columns]
    if set(order) == set(df.columns[:-1]):  # the mirrored pairs are known by their places
        df = df[order + ['Image']]

    no_image = ~df['Image'].map(lambda image: isinstance(image, str))
    if no_image.any():
        raise DataError('{}, line {}: there is no image.'.format(fname, no_image.idxmax() + 2))
    df['Image'] = df['Image'].apply(parse_image)
    lengths = df['Image'].map(len)
    if (lengths != 96 * 96).any():
        row = (lengths != 96 * 96).idxmax()
        raise DataError('{}, line {}, column Image: {} pixels could be read, 96x96 = 9216 are '
                        'needed.'.format(fname, row + 2, lengths[row]))

    finite = df['Image'].map(lambda image: np.isfinite(image).all())
    if not finite.all():
        raise DataError('{}, line {}, column Image: there is a pixel that is no number.'.format(
            fname, (~finite).idxmax() + 2))

    odd = df['Image'].map(lambda im: not (im.min() >= 0 and im.max() <= 255))
    report(fname, odd, 'pixels outside 0..255')
    for name in df.columns[:-1]:
        if name != 'ImageId':
            report(fname, (df[name] < 0) | (df[name] > 96), name + ' outside the image (0..96)')
    report(fname, repeated, 'the same values as an earlier row')

    _tables[fname] = key, df
    return df.copy()


def parse_image(text):
    """Return the numbers in a string as an array, up to the first thing that is not a number.

    If there is such a thing after 96x96 numbers, it counts as one more.
    """
    with warnings.catch_warnings(record=True) as caught:  # NumPy warns of such a thing
        warnings.simplefilter('always')
        # Whole numbers, as in Kaggle's files, are read ten times faster as such.
        image = np.fromstring(text, sep=' ', dtype=np.int64)
        if caught or len(image) != 96 * 96:
            caught.clear()
            image = np.fromstring(text, sep=' ', dtype=np.float32)
            if caught and len(image) == 96 * 96:
                return np.append(image, np.float32(np.nan))
        small = image.astype(np.uint8)  # a quarter of the memory
        return small if (small == image).all() else image


def report(fname, odd, what):
    """Print how many rows are odd, and the line of the first."""
    if odd.any():
        print('{}: {} of {} rows have {} (first: line {}).'.format(
            os.path.basename(fname), odd.sum(), len(odd), what, odd.idxmax() + 2))


# ------------------------------------------------------------------------- slide "Pre-Processing"

def load(test=False, cols=None):
    """Load the faces and the positions of their points.

    Parameters
    ----------
    test : bool
        Load FTEST instead of FTRAIN.
    cols : sequence of str, optional
        Only these label columns.  Rows in which one of the columns is missing are left out, so a
        subset of the columns has more rows than all of them.

    Returns
    -------
    X : ndarray of float32, shape (n, 9216)
        Pixels in [0, 1].
    y : ndarray of float32, shape (n, number of columns), or None if `test`
        Positions in [-1, 1] from the left (x) or top (y) edge of the image to the other:
        (pixels - 48) / 48.

    Raises
    ------
    DataError
        If the file cannot be used.
    """
    use_drawn_faces()
    fname = FTEST if test else FTRAIN
    df = read_faces(fname)
    record.data(fname, rows=len(df))

    if cols:  # get a subset of columns
        missing = [name for name in cols if name not in df.columns]
        if missing:
            raise DataError('{} has no column {}.'.format(fname, missing[0]))
        df = df[list(cols) + ['Image']]

    print(df.count())  # prints the number of values for each column
    df = df.dropna()  # drop all rows that have missing values in them
    if df.empty:
        raise DataError('{}: no row has a value in each of the columns {}.'.format(
            fname, ', '.join(df.columns[:-1])))

    X = np.vstack(df['Image'].values).astype(np.float32)
    X /= 255.  # scale pixel values to [0, 1]

    if not test:  # only FTRAIN has any target columns
        y = df[df.columns[:-1]].values
        y = (y - 48) / 48  # scale target coordinates to [-1, 1]
        X, y = shuffle(X, y, random_state=42)  # shuffle train data
        y = y.astype(np.float32)
    else:
        y = None

    return X, y


def load2d(test=False, cols=None):
    """Load as `load` does, with X of shape (n, 1, 96, 96): what a convolution takes."""
    X, y = load(test, cols)
    return X.reshape(-1, 1, 96, 96), y


def plot_sample(x, y, axis):
    """Draw a face and its points.

    Parameters
    ----------
    x : ndarray, 9216 pixels in any shape
    y : ndarray, shape (2k,)
        x and y of k points in turn, in [-1, 1].
    axis : matplotlib Axes
    """
    axis.imshow(x.reshape(96, 96), cmap='gray', vmin=0, vmax=1)
    # Light marks with a dark rim are seen on skin, hair and background, in print too.
    axis.scatter(y[0::2] * 48 + 48, y[1::2] * 48 + 48, marker='o', s=14,
                 facecolor='#F0E442', edgecolor='black', linewidth=0.7)
    axis.set_xlim(-0.5, 95.5)
    axis.set_ylim(95.5, -0.5)


def plot_faces(X, y, fname, title):
    """Write a page of the first 16 faces with their points to the picture `fname`."""
    fig, axes = pyplot.subplots(4, 4, figsize=(8, 8.6), sharex=True, sharey=True,
                                layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, face, points in zip(axes.flat, X, y):
        axis.set_visible(True)
        axis.set_xticks([0, 48, 95])
        axis.set_yticks([0, 48, 95])
        plot_sample(face, points, axis)
    fig.suptitle(title)
    fig.supxlabel('x (pixels)')
    fig.supylabel('y (pixels)')
    show(fig, fname)


def show(fig, fname):
    """Write a figure as PNG; show it too where there is a display."""
    with replacing(fname) as f:
        fig.savefig(f, format='png', dpi=120)
    print('Wrote {}.'.format(fname))
    record.keep(fname)
    if pyplot.get_backend().lower() == 'agg':  # no display
        pyplot.close(fig)
    else:
        pyplot.show(block=False)


# ---------------------------------------------- slides "Batch" and "Horizontal Flip Perturbation"

class FaceBatchIterator(BatchIterator):
    """Give the faces batch by batch, standardised when `fit_pixels` has seen training faces.

    The mean and the deviation are pickled with the net, so that a net takes pixels in [0, 1]
    wherever it is used.
    """
    pixel_mean = np.float32(0)
    pixel_std = np.float32(1)

    def fit_pixels(self, X):
        """Take mean and deviation from the training faces `X`, pixels in [0, 1]."""
        self.pixel_mean = np.float32(X.mean(dtype=np.float64))
        self.pixel_std = np.float32(X.std(dtype=np.float64)) or np.float32(1)

    def transform(self, Xb, yb):
        if self.pixel_mean != 0 or self.pixel_std != 1:
            Xb = (Xb - self.pixel_mean) / self.pixel_std
        return Xb, yb


class FlipBatchIterator(FaceBatchIterator):
    """Mirror a random half of each batch.

    The batch is a view of the training faces, so the flips are made in a copy: in the original
    script they piled up in the training set itself.

    Attributes
    ----------
    flip_indices : list of pairs of int
        Label columns that change places when a face is mirrored: a left eye becomes a right eye.
    """
    flip_indices = [
        (0, 2), (1, 3),
        (4, 8), (5, 9), (6, 10), (7, 11),
        (12, 16), (13, 17), (14, 18), (15, 19),
        (22, 24), (23, 25),
    ]

    def transform(self, Xb, yb):
        Xb, yb = super().transform(Xb, yb)

        # Flip half of the images in this batch at random:
        bs = Xb.shape[0]
        indices = self.random.choice(bs, bs // 2, replace=False)
        Xb = Xb.copy()
        Xb[indices] = Xb[indices, :, :, ::-1]

        if yb is not None:
            yb = yb.copy()
            # Horizontal flip of all x coordinates:
            yb[indices, ::2] = yb[indices, ::2] * -1

            # Swap places, e.g. left_eye_center_x -> right_eye_center_x
            for a, b in self.flip_indices:
                yb[indices, a], yb[indices, b] = yb[indices, b], yb[indices, a]

        return Xb, yb


# ------------------------------------------------------------------ slide "Advanced Augmentation"

class AffineFaceBatchIterator(AffineBatchIterator, FaceBatchIterator):
    """Turn, move and scale faces at random, points included, after standardising their pixels."""


def train_batches():
    """Return the batch iterator that AUGMENT asks for."""
    if AUGMENT is None:
        return FlipBatchIterator(batch_size=BATCH_SIZE, seed=SEED)
    if AUGMENT not in PRESETS:
        raise DataError('AUGMENT is None or one of {}, not {!r}.'.format(
            ', '.join(map(repr, PRESETS)), AUGMENT))
    try:
        return AffineFaceBatchIterator(BATCH_SIZE, seed=SEED, **PRESETS[AUGMENT])
    except ImportError as error:
        raise DataError('AUGMENT = {!r}: {}.'.format(AUGMENT, error))


# ------------------------------------------------- slide "Adjusting Learning Rate & Momentum"

class AdjustVariable(object):
    """Change a shared variable of the net linearly from epoch to epoch.

    Parameters
    ----------
    name : str
        Attribute of the net that is a Theano shared variable.
    start, stop : float
        Its values for the first and for the last of the net's `max_epochs`.  Epochs beyond, in a
        second `fit`, stay at `stop`.
    """
    def __init__(self, name, start=0.03, stop=0.001):
        self.name = name
        self.start, self.stop = start, stop

    def __call__(self, nn, train_history):
        ls = np.linspace(self.start, self.stop, nn.max_epochs)
        epoch = min(train_history[-1]['epoch'], nn.max_epochs)
        new_value = np.float32(ls[epoch - 1])
        getattr(nn, self.name).set_value(new_value)


# ------------------------------------------------------------------------ slide "Convergence Tuning"

class EarlyStopping(object):
    """Stop when the validation loss has not improved for `patience` epochs.

    The best weights come back when it stops and, through `restore_best_weights`, when the training
    ends in another way.
    """
    def __init__(self, patience=100):
        self.patience = patience
        self.start()

    def start(self):
        """Forget earlier training: its losses may be of other data."""
        self.best_valid = np.inf
        self.best_valid_epoch = 0
        self.best_weights = None
        self.stopped = False

    def __call__(self, nn, train_history):
        current_valid = train_history[-1]['valid_loss']
        current_epoch = train_history[-1]['epoch']
        if current_valid < self.best_valid:
            self.best_valid = current_valid
            self.best_valid_epoch = current_epoch
            self.best_weights = nn.get_all_params_values()
        elif self.best_valid_epoch + self.patience < current_epoch:
            self.stopped = True
            print("Early stopping.")
            print("Best valid loss was {:.6f} at epoch {}.".format(
                self.best_valid, self.best_valid_epoch))
            raise StopIteration()

    def __getstate__(self):  # the net that is pickled has these weights
        return dict(vars(self), best_weights=None)


def early_stopping(nn):
    """Return the `EarlyStopping` among the handlers of a net."""
    return next(handler for handler in nn.on_epoch_finished if isinstance(handler, EarlyStopping))


def start_early_stopping(nn, train_history):
    """Start clean in a second `fit` (a handler for `on_training_started`)."""
    early_stopping(nn).start()
    early_stopping(nn).best_valid_epoch = len(train_history)


def restore_best_weights(nn, train_history):
    """Give the net its best weights back (a handler for `on_training_finished`)."""
    best_weights = early_stopping(nn).best_weights or {}
    for name, values in best_weights.items():
        for param, value in zip(nn.layers_[name].get_params(), values):
            param.set_value(value)


class TimeLeft(object):
    """Print, twice a minute, how far the training is and how long it can still take.

    Attributes
    ----------
    stage, stages : int
        For several trainings of the same length: which one this is, of how many.
    """
    def __init__(self, every=30):
        self.every = every
        self.stage = self.stages = 1
        self.printed = time.time()

    def __call__(self, nn, train_history):
        # The first epoch tells little: Theano compiles in it.
        if time.time() < self.printed + self.every or len(train_history) < 2 or not nn.verbose:
            return
        self.printed = time.time()
        epoch = train_history[-1]['epoch']
        duration = np.median([info['dur'] for info in train_history[1:][-9:]])
        left = duration * max(nn.max_epochs - epoch, 0)
        message = 'epoch {} of {}, at most {} left'.format(epoch, nn.max_epochs, hms(left))
        if self.stages > 1:
            rest = left + duration * nn.max_epochs * (self.stages - self.stage)
            message = 'specialist {} of {}, {}, {} for all'.format(
                self.stage, self.stages, message, hms(rest))
        print('# ' + message)


# ---------------------------------------------------------------------- slide "Layers Definition"

def build_net():
    """Return the deck's net with the constants as they are now: 16,561,502 parameters."""
    model = NeuralNet(
        layers=[
            ('input', layers.InputLayer),
            ('conv1', Conv2DLayer),
            ('pool1', MaxPool2DLayer),
            ('dropout1', layers.DropoutLayer),
            ('conv2', Conv2DLayer),
            ('pool2', MaxPool2DLayer),
            ('dropout2', layers.DropoutLayer),
            ('conv3', Conv2DLayer),
            ('pool3', MaxPool2DLayer),
            ('dropout3', layers.DropoutLayer),
            ('hidden4', layers.DenseLayer),
            ('dropout4', layers.DropoutLayer),
            ('hidden5', layers.DenseLayer),
            ('output', layers.DenseLayer),
        ],
        input_shape=(None, 1, 96, 96),
        conv1_num_filters=32, conv1_filter_size=(3, 3), pool1_pool_size=(2, 2),
        dropout1_p=0.1,
        conv2_num_filters=64, conv2_filter_size=(2, 2), pool2_pool_size=(2, 2),
        dropout2_p=0.2,
        conv3_num_filters=128, conv3_filter_size=(2, 2), pool3_pool_size=(2, 2),
        dropout3_p=0.3,
        hidden4_num_units=1000,
        dropout4_p=0.5,
        hidden5_num_units=1000,
        output_num_units=30, output_nonlinearity=None,

        update_learning_rate=theano.shared(np.float32(LEARNING_RATE[0])),
        update_momentum=theano.shared(np.float32(MOMENTUM[0])),

        regression=True,
        batch_iterator_train=train_batches(),
        batch_iterator_test=FaceBatchIterator(batch_size=BATCH_SIZE),
        train_split=TrainSplit(eval_size=EVAL_SIZE),
        on_training_started=[start_early_stopping],
        on_epoch_finished=[
            AdjustVariable('update_learning_rate', *LEARNING_RATE),
            AdjustVariable('update_momentum', *MOMENTUM),
            EarlyStopping(patience=PATIENCE),
            TimeLeft(),
        ],
        on_training_finished=[restore_best_weights],
        max_epochs=MAX_EPOCHS,
        verbose=VERBOSE,
    )
    if NET:
        model = config.changed(model, NET)
    if MONITOR:
        for monitor in ActivationMonitor(), GradientMonitor(), UpdateMonitor():
            monitor.attach(model)
    return model


net = build_net()


# --------------------------------------------------------------------------------- slide "Fit"

def fit(keep_checkpoint=False):
    """Train the net on all 30 labels and write it to FNET.

    Parameters
    ----------
    keep_checkpoint : bool
        Leave the checkpoint there in the end, so that calling `fit` again gives the same net at
        once: for programs with further steps that may be stopped.

    Returns
    -------
    NeuralNet
        Also kept as the module's `net`.
    """
    global net
    check_writable(FNET)
    with locked(FCHECKPOINT.format(name='net')):  # or another process is training this net
        pass
    X, y = load2d()
    columns = tuple(read_faces(FTRAIN).columns[:-1])
    if columns != COLUMNS:
        odd = sorted(set(columns) ^ set(COLUMNS))[0]
        raise DataError('{} {} the column {!r:.100}: it must have the 30 columns of data/README.md '
                        'and Image.'.format(FTRAIN, 'lacks' if odd in COLUMNS else 'has', odd))
    check_enough(X)
    plot_faces(X, y, FFACES, '16 training faces and their 15 points')
    lasagne.random.set_rng(np.random.RandomState(SEED))
    net = build_net()
    net.columns_ = columns
    net.output_num_units = y.shape[1]
    if STANDARDIZE:
        for iterator in (net.batch_iterator_train, net.batch_iterator_test):
            iterator.fit_pixels(X)
    stopped = train(net, X, y, 'net')
    save(net, FNET)
    record.net('net', net, columns, scale=48)
    if stopped:
        raise stopped
    if not keep_checkpoint:
        remove_checkpoints('net')
    return net


def train(model, X, y, name):
    """Fit `model`, going on from its checkpoint if there is one, and tell the outcome.

    Returns
    -------
    None or exception
        If the training ended too early, what to raise when the best weights, which `model` then
        has, have been saved.
    """
    check_enough(X)
    events = tensorboard(name)
    stopped = None
    checkpoint = Checkpoint(FCHECKPOINT.format(name=name), model, must_stay(X, y, name),
                            60 * CHECKPOINT_MINUTES)
    try:
        with checkpoint, events.attached(model):
            model.fit(X, y)
        if checkpoint.signum:
            stopped = Stopped(checkpoint.signum)
        elif interrupted(model):
            stopped = KeyboardInterrupt()
    except Diverged as error:
        stopped = DataError('{}. {}'.format(error, why_diverged(model)))
    if not model.train_history_:
        raise stopped  # within the first epoch: there is nothing to keep
    if stopped:
        restore_best_weights(model, model.train_history_)  # nolearn calls no handler then
    best = early_stopping(model)
    print('Best validation RMSE: {:.3f} pixels, at epoch {}.'.format(
        np.sqrt(best.best_valid) * 48, best.best_valid_epoch))
    return stopped


def tensorboard(name):
    """Return the handler that writes the training of a net to TENSORBOARD, if that is not None."""
    try:
        return TensorBoard(TENSORBOARD and os.path.join(TENSORBOARD, name), scale=48)
    except ImportError as error:
        raise DataError('TENSORBOARD = {!r}: {}.'.format(TENSORBOARD, error))


def check_enough(X):
    """Raise DataError if there are too few faces to keep some for validation."""
    if len(X) * EVAL_SIZE < 1:
        raise DataError('{} rows of {} are too few to keep {:.0%} for validation.'.format(
            len(X), FTRAIN, EVAL_SIZE))


def interrupted(model):
    """Tell whether Ctrl-C ended the training: nolearn takes it for a normal end."""
    return not early_stopping(model).stopped and len(model.train_history_) < model.max_epochs


def must_stay(X, y, name):
    """What a training can only go on with when it has not changed."""
    names = ['AUGMENT', 'BATCH_SIZE', 'EVAL_SIZE', 'LEARNING_RATE', 'MOMENTUM', 'NET', 'PATIENCE',
             'SEED', 'STANDARDIZE', 'MAX_EPOCHS' if name == 'net' else 'SPECIALIST_SAMPLES']
    settings = {constant: globals()[constant] for constant in names}
    settings['the faces in ' + os.path.basename(FTRAIN)] = digest(X)
    settings['the labels in ' + os.path.basename(FTRAIN)] = digest(y)
    return settings


def why_diverged(model):
    """Name what has most likely made the loss NaN or infinite: a row of FTRAIN or LEARNING_RATE."""
    df = read_faces(FTRAIN)
    far = {name: (df[name] - 48).abs() for name in df.columns[:-1]}
    far['Image'] = df['Image'].map(lambda image: np.abs(image.astype(float)).max())
    name = max(far, key=lambda name: far[name].max())
    if far[name].max() > 1000:  # ten times the size of the image
        row = far[name].idxmax()
        value = far[name][row] if name == 'Image' else df[name][row]
        return ('Most likely the cause is {}, line {}, column {}: {:g}. Mend or remove that row.'
                .format(FTRAIN, row + 2, name, value))
    return 'Most likely the learning rate, now {:g}, is too high: lower LEARNING_RATE, {}.'.format(
        float(model.update_learning_rate.get_value()), LEARNING_RATE)


def remove_checkpoints(*names):
    """Remove the checkpoints of these trainings ('net', 'specialist-1', ...), or of all."""
    remove_unlocked(*(FCHECKPOINT.format(name=name) for name in names or ['net', 'specialist-*']))


def save(nets, fname):
    """Pickle a net, or the dictionary of the specialists."""
    with replacing(fname) as f:
        pickle.dump(nets, f, -1)
    print('Wrote {}.'.format(fname))
    record.keep(fname)


def load_nets(fname):
    """Unpickle what `save` has written.  No code that a stranger has put into the file is run.

    Nets may refer to the classes of Lasagne and nolearn, of this module, of `build_net`'s net as it
    is now, and to TRUSTED.
    """
    trusted = [AdjustVariable, EarlyStopping, TimeLeft, FaceBatchIterator, FlipBatchIterator,
               AffineFaceBatchIterator, ActivationMonitor, GradientMonitor, UpdateMonitor]
    for name, value in vars(build_net()).items():
        if name.startswith(('on_', 'batch_iterator_', 'train_split')):
            for part in value if isinstance(value, list) else [value]:
                trusted.append(part if inspect.isfunction(part) else type(part))
    try:
        with open_regular(fname) as f:
            return safe_pickle.load(f, trusted + list(TRUSTED))
    except FileNotFoundError:
        raise DataError('{} is not there: run the steps before this one, or name the file.'
                        .format(fname))
    except pickle.UnpicklingError as error:
        raise DataError('{} is not a file of nets that this program has written: {}. Classes of '
                        'your own belong in TRUSTED.'.format(fname, error))


# ------------------------------------------------------------------ slide "Fine Tune Pre-Trained"

SPECIALIST_SETTINGS = [
    dict(
        columns=(
            'left_eye_center_x', 'left_eye_center_y',
            'right_eye_center_x', 'right_eye_center_y',
        ),
        flip_indices=((0, 2), (1, 3)),
    ),
    dict(
        columns=(
            'nose_tip_x', 'nose_tip_y',
        ),
        flip_indices=(),
    ),
    dict(
        columns=(
            'mouth_left_corner_x', 'mouth_left_corner_y',
            'mouth_right_corner_x', 'mouth_right_corner_y',
            'mouth_center_top_lip_x', 'mouth_center_top_lip_y',
        ),
        flip_indices=((0, 2), (1, 3)),
    ),
    dict(
        columns=(
            'mouth_center_bottom_lip_x',
            'mouth_center_bottom_lip_y',
        ),
        flip_indices=(),
    ),
    dict(
        columns=(
            'left_eye_inner_corner_x', 'left_eye_inner_corner_y',
            'right_eye_inner_corner_x', 'right_eye_inner_corner_y',
            'left_eye_outer_corner_x', 'left_eye_outer_corner_y',
            'right_eye_outer_corner_x', 'right_eye_outer_corner_y',
        ),
        flip_indices=((0, 2), (1, 3), (4, 6), (5, 7)),
    ),
    dict(
        columns=(
            'left_eyebrow_inner_end_x', 'left_eyebrow_inner_end_y',
            'right_eyebrow_inner_end_x', 'right_eyebrow_inner_end_y',
            'left_eyebrow_outer_end_x', 'left_eyebrow_outer_end_y',
            'right_eyebrow_outer_end_x', 'right_eyebrow_outer_end_y',
        ),
        flip_indices=((0, 2), (1, 3), (4, 6), (5, 7)),
    ),
]
# A setting may also have `kwargs`, for example kwargs=dict(dropout2_p=0.3, dropout3_p=0.4): what
# its net has other than the first one.


def fit_specialists(fname_pretrain=None, keep_checkpoint=False):
    """Fine-tune a net for each group of columns and write all to FSPECIALISTS.

    A specialist sees more faces than the first net, as it needs fewer columns to be filled.

    They are trained one after the other, or JOBS at a time, which leads to the same bits.

    Parameters
    ----------
    fname_pretrain : str, optional
        A net to start from, as `fit` writes it.  Its weights are taken over wherever the shapes
        match: all but the output layer.
    keep_checkpoint : bool
        As in `fit`.

    Returns
    -------
    OrderedDict
        Specialists by their columns.
    """
    use_drawn_faces()
    check_writable(FSPECIALISTS)
    check_jobs()
    net_pretrain = None
    if fname_pretrain is not None:
        net_pretrain = load_nets(fname_pretrain)
        if not isinstance(net_pretrain, NeuralNet):
            raise DataError('{} holds no single net: fit_specialists starts from what fit has '
                            'written.'.format(fname_pretrain))
        with usable(fname_pretrain):
            net_pretrain.get_all_params_values()
            for iterator in (net_pretrain.batch_iterator_train, net_pretrain.batch_iterator_test):
                iterator.pixel_mean, iterator.pixel_std = map(
                    np.float32, (iterator.pixel_mean, iterator.pixel_std))

    # Trained side by side, specialists leave finished checkpoints, which the loop takes over.
    failures = train_side_by_side(net_pretrain) if JOBS != 1 else {}
    specialists = OrderedDict()
    for number, setting in enumerate(SPECIALIST_SETTINGS, 1):
        if number in failures:
            continue
        cols = setting['columns']
        X, y = load2d(cols=cols)
        model = build_specialist(number, X, y, net_pretrain)
        if net_pretrain is not None:
            # if a pretrain model was given, use it to initialize the weights of our new model:
            model.load_params_from(net_pretrain)

        print("Training model for columns {} for {} epochs".format(cols, model.max_epochs))
        stopped = train(model, X, y, 'specialist-{}'.format(number))
        record.net('specialist-{}'.format(number), model, cols, scale=48)
        if stopped:
            raise stopped
        specialists[cols] = model

    for error in failures.values():
        raise error
    save(specialists, FSPECIALISTS)
    if not keep_checkpoint:
        remove_checkpoints('specialist-*')
    return specialists


def build_specialist(number, X, y, net_pretrain=None):
    """Return the net for a group of columns, 1 for the first, as it is before its training.

    Its weights are yet to be taken over from `net_pretrain`.
    """
    setting = SPECIALIST_SETTINGS[number - 1]
    lasagne.random.set_rng(np.random.RandomState(SEED))
    model = clone(build_net())
    model.output_num_units = y.shape[1]
    model.batch_iterator_train.flip_indices = setting['flip_indices']
    # set number of epochs relative to number of training examples:
    model.max_epochs = max(int(SPECIALIST_SAMPLES / y.shape[0]), 1)
    model.set_params(**setting.get('kwargs', {}))
    for handler in model.on_epoch_finished:
        if isinstance(handler, TimeLeft):
            handler.stage, handler.stages = number, len(SPECIALIST_SETTINGS)

    if net_pretrain is not None:
        for name in ('batch_iterator_train', 'batch_iterator_test'):
            iterator, pretrained = getattr(model, name), getattr(net_pretrain, name)
            iterator.pixel_mean, iterator.pixel_std = pretrained.pixel_mean, pretrained.pixel_std
    elif STANDARDIZE:
        for iterator in (model.batch_iterator_train, model.batch_iterator_test):
            iterator.fit_pixels(X)
    return model


def check_jobs():
    """Raise DataError for a value of JOBS that is no number of processes."""
    if not isinstance(JOBS, (int, np.integer)) or isinstance(JOBS, bool) or JOBS == 0:
        raise DataError('JOBS is how many specialists are trained at a time, or -1 for as many as '
                        'there are cores, not {!r}.'.format(JOBS))


def train_side_by_side(net_pretrain):
    """Train the specialists, JOBS at a time, until each has a finished checkpoint.

    Returns
    -------
    dict of int to Exception
        What to raise for those that have failed, by their number.  The others are finished.
    """
    def prepare(number, cols):
        with contextlib.redirect_stdout(None):  # the counts are printed when the net is taken over
            X, y = load2d(cols=cols)
        check_enough(X)
        name = 'specialist-{}'.format(number)
        model = build_specialist(number, X, y, net_pretrain)
        tensorboard(name).attach(model)
        return model, X, y, must_stay(X, y, name)

    read_faces(FTRAIN)  # prints what is odd, once
    trainings = {}
    for number, cols in enumerate((setting['columns'] for setting in SPECIALIST_SETTINGS), 1):
        title = 'specialist {} ({}{})'.format(number, cols[0], ' ...' if len(cols) > 1 else '')
        trainings[parallel.Training(
            title, FCHECKPOINT.format(name='specialist-{}'.format(number)),
            functools.partial(prepare, number, cols), net_pretrain)] = number
    failures = {}
    for training, error in parallel.fit(
            list(trainings), JOBS, 60 * CHECKPOINT_MINUTES, 48, 'pixels', VERBOSE).items():
        if isinstance(error, Diverged):
            error = DataError('{}. {}'.format(error, why_diverged(training.net)))
        if isinstance(error, (FileError, MemoryError, OSError)):
            error = DataError('{}: {} What the other specialists have learned is kept: the same '
                              'command goes on from there.'.format(
                                  training.title, (str(error) or repr(error)).rstrip('.') + '.'))
        failures[trainings[training]] = error
    return failures


@contextlib.contextmanager
def usable(fname):
    """Tell that the nets of a file are to blame for any error in the block."""
    try:
        yield
    except Exception as error:  # a net's attributes may be anything
        raise DataError('{} holds a net that cannot be used ({}: {}).'.format(
            fname, type(error).__name__, str(error).strip().split('\n')[0][:200])) from error


def specialists_from(fname):
    """Return the nets of a file as a dictionary by columns, also when it holds the first net."""
    nets = load_nets(fname)
    if isinstance(nets, NeuralNet) and isinstance(vars(nets).get('columns_'), tuple):
        return OrderedDict([(nets.columns_, nets)])
    if not isinstance(nets, dict) or not nets or not all(
            isinstance(model, NeuralNet) and isinstance(cols, tuple) and cols
            for cols, model in nets.items()):
        raise DataError('{} holds no nets that fit or fit_specialists has written.'.format(fname))
    return nets


# --------------------------------------------------------------------------------- slide "Flow"

def predict(fname_specialists='net-specialists.pickle'):
    """Mark the points of the test faces and write them as Kaggle wants them.

    Parameters
    ----------
    fname_specialists : str
        What `fit_specialists` has written, or `fit`.

    Returns
    -------
    pandas.DataFrame
        RowId and Location (pixels, 0..96), a row for each row of FLOOKUP.
    """
    use_drawn_faces()
    specialists = specialists_from(fname_specialists)

    X = load2d(test=True)[0]
    y_pred = np.empty((X.shape[0], 0))
    columns = ()
    for cols, model in specialists.items():
        with usable(fname_specialists):
            y_pred1 = model.predict(X)
            if y_pred1.shape != (len(X), len(cols)) or not np.isfinite(y_pred1).all():
                raise ValueError('it does not answer with {} numbers a face'.format(len(cols)))
        y_pred = np.hstack([y_pred, y_pred1])
        columns += tuple(cols)

    y_pred2 = y_pred * 48 + 48
    y_pred2 = y_pred2.clip(0, 96)
    df = pd.DataFrame(y_pred2, columns=columns, index=image_ids())

    plot_faces(X, y_pred, FPREDICTIONS, '16 test faces and the points found in them')
    if FTESTLABELS:
        score(df)
    submission = look_up(df)
    filename = FSUBMISSION.format(time=datetime.now().isoformat().replace(':', '-'))
    with replacing(filename) as f:
        submission.to_csv(f, index=False)
    print("Wrote {}.".format(filename))
    record.keep(filename)
    return submission


def image_ids():
    """ImageId of each row of FTEST; rows are numbered from 1 where it has no such column."""
    faces = read_faces(FTEST)
    if 'ImageId' not in faces.columns:
        return pd.RangeIndex(1, len(faces) + 1)
    repeated = faces['ImageId'].duplicated()
    if repeated.any():
        raise DataError('{}, line {}: the ImageId {} is there twice.'.format(
            FTEST, repeated.idxmax() + 2, faces['ImageId'][repeated.idxmax()]))
    return pd.Index(faces['ImageId'])


def look_up(df):
    """Pick from the predictions `df`, ImageId by column, what FLOOKUP asks for."""
    table = read_table(FLOOKUP, ['RowId', 'ImageId', 'FeatureName'])
    row_id, image_id = (numbers(table, name, FLOOKUP, whole=True) for name in ('RowId', 'ImageId'))
    if row_id.duplicated().any():
        row = row_id.duplicated().idxmax()
        raise DataError('{}, line {}, column RowId: {} is there twice.'.format(
            FLOOKUP, row + 2, row_id[row]))
    rows, columns = df.index.get_indexer(image_id), df.columns.get_indexer(table['FeatureName'])
    for found, name, where in ((rows, 'ImageId', FTEST), (columns, 'FeatureName', 'the nets')):
        if (found < 0).any():
            row = (found < 0).argmax()
            raise DataError('{}, line {}, column {}: {:.100} is not in {}.'.format(
                FLOOKUP, row + 2, name, repr(table[name][row]), where))
    return pd.DataFrame({'RowId': row_id, 'Location': df.values[rows, columns]})


def score(df):
    """Print the RMSE of the predictions on the true labels, and that of a guess."""
    labels = read_table(FTESTLABELS, ['ImageId'] + list(df.columns))
    for name in ['ImageId'] + list(df.columns):
        labels[name] = numbers(labels, name, FTESTLABELS, whole=name == 'ImageId')
    labels = labels.drop_duplicates('ImageId').set_index('ImageId')
    missing = df.index.difference(labels.index)
    if len(missing):
        raise DataError('{} has no row for the ImageId {} of {}.'.format(
            FTESTLABELS, missing[0], FTEST))
    truth = labels.loc[df.index, df.columns].values
    mean = read_faces(FTRAIN)[list(df.columns)].mean().values
    rmse, rmse_of_mean = (np.sqrt(np.nanmean((guess - truth) ** 2)) for guess in (df.values, mean))
    print('Test RMSE: {:.3f} pixels. Guessing the mean of the training labels: {:.3f}. '
          'Ratio: {:.2f}.'.format(rmse, rmse_of_mean, rmse / rmse_of_mean))
    record.result(test_rmse=round(float(rmse), 4), test_rmse_of_mean=round(float(rmse_of_mean), 4))


# ------------------------------------------------------------------------ slide "Learning Curves"

# Okabe and Ito's colours, which colour-blind readers can tell apart; vermilion is the deck's red,
# so their orange, too near to it, gives way to Tol's olive.
COLORS = ['#0072B2', '#999933', '#009E73', '#CC79A7', '#56B4E9', '#000000']
_RED = '#D55E00'


def plot_learning_curves(fname_specialists='net-specialists.pickle'):
    """Draw the RMSE in pixels of each net against its training: solid validation, dashed training.

    Specialists train for different numbers of epochs, so the axis is the share of each one's
    training; the red curve is their mean, weighted by the number of columns.
    """
    models = specialists_from(fname_specialists)

    fig, ax = pyplot.subplots(figsize=(10, 7), layout='constrained')
    share = np.linspace(1, 100, 100)  # of each net's training, in percent
    valid_losses = []
    lowest = 1.0
    for number, (cg, model) in enumerate(models.items()):
        with usable(fname_specialists):
            history = pd.DataFrame(model.train_history_)
            done = (history.index + 1) * 100. / len(history)
            valid_loss, train_loss = (np.sqrt(history[name].astype(float)) * 48
                                      for name in ('valid_loss', 'train_loss'))
        color = COLORS[number % len(COLORS)]
        ax.plot(done, valid_loss, color=color, linewidth=3,
                label='{} ({}), {} epochs'.format(cg[0], len(cg), len(history)))
        ax.plot(done, train_loss, color=color, linestyle='--', linewidth=3, alpha=0.6)
        valid_losses.append(np.interp(share, done, valid_loss))
        lowest = min(lowest, valid_loss.min(), train_loss.min())

    weights = np.array([len(cg) for cg in models], dtype=float)
    weights /= weights.sum()
    mean_valid_loss = (np.vstack(valid_losses) * weights.reshape(-1, 1)).sum(axis=0)
    if len(models) > 1:
        begun = share >= 100. / min(len(model.train_history_) for model in models.values())
        ax.plot(share[begun], mean_valid_loss[begun], color=_RED, label='mean', linewidth=4,
                alpha=0.8)
    ax.plot([], [], color='gray', linewidth=3, label='solid: validation')
    ax.plot([], [], color='gray', linewidth=3, linestyle='--', alpha=0.6, label='dashed: training')
    fig.legend(loc='outside lower center', ncols=3)
    ax.set_ylim((lowest * 0.95 if lowest < 1 else 1.0, 4.0))
    ax.grid()
    ax.set_ylabel("RMSE (pixels)")
    ax.set_xlabel("share of the training done (%)")
    show(fig, FCURVES)


# --------------------------------------------------------------------------------- slide "Flow"

def configure(fname):
    """Take constants and net from a YAML file (slide "Tips from Deep Learning Packages")."""
    experiment = config.read(fname)
    config.set_constants(sys.modules[__name__], experiment['constants'], fname)
    config.net_settings(experiment['net'], fname)  # to name the file in what is wrong
    vars(sys.modules[__name__]).update(NET=experiment['net'])


@contextlib.contextmanager
def recording(step, argv):
    """Record what is done in the block."""
    global record
    with Record(RUNS, step or 'all', sys.modules[__name__],
                sys.argv[1:] if argv is None else argv) as record:
        try:
            yield
        finally:
            record = Record()


def faces_of(fname, cols=None):
    """Load faces as `load2d` does, of any file and in silence."""
    global FTRAIN
    ours, FTRAIN = FTRAIN, fname
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return load2d(cols=cols)
    finally:
        FTRAIN = ours


def run(args):
    """Run the four steps, or the one that the command line names."""
    if args.step is None:
        # What is done is done: a checkpoint stays until the last step has succeeded.
        fit(keep_checkpoint=True)  # train your first model
        # train specialists, initialize weights from your first model
        fit_specialists(FNET, keep_checkpoint=True)
        plot_learning_curves(FSPECIALISTS)
        predict(FSPECIALISTS)  # make predictions to submit to Kaggle
        remove_checkpoints()
    elif args.step == 'fit':
        fit()
    else:
        globals()[args.step](args.fname)


def main(argv=None):
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='kfkd.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='python kfkd.py [-h] [--config FILE] [--fresh] [fit | fit_specialists [NET] | '
              'plot_learning_curves [NETS] | predict [NETS] | compare RUN... | report RUN]')
    parser.add_argument('--config', help=argparse.SUPPRESS)
    parser.add_argument('--fresh', action='store_true', help=argparse.SUPPRESS)
    steps = parser.add_subparsers(dest='step', help=argparse.SUPPRESS, metavar='')
    steps.add_parser('fit')
    for name, default in (('fit_specialists', FNET), ('plot_learning_curves', FSPECIALISTS),
                          ('predict', FSPECIALISTS)):
        steps.add_parser(name).add_argument('fname', nargs='?', default=default)
    for name in 'fit', 'fit_specialists':
        steps.choices[name].add_argument('--fresh', action='store_true', default=argparse.SUPPRESS)
    steps.add_parser('compare').add_argument('runs', nargs='+')
    steps.add_parser('report').add_argument('run')
    args = parser.parse_args(argv)

    try:
        with stopping_on_signals():
            remove_leftovers(*(name.format(time='*', name='*') for name in (
                FNET, FSPECIALISTS, FSUBMISSION, FFACES, FCURVES, FPREDICTIONS, FCHECKPOINT,
                FREPORT)))
            if args.config:
                configure(args.config)
            if args.fresh:
                remove_checkpoints(*{'fit': ['net'], 'fit_specialists': ['specialist-*']}.get(
                    args.step, []))
            if args.step == 'compare':
                compare_records(args.runs, FCOMPARE, scale=48, unit='pixels')
            elif args.step == 'report':
                write_report(args.run, FREPORT, specialists_from, read_faces, faces_of,
                             files=[FTRAIN, os.path.join(DRAWN, 'training.csv')],
                             defaults=dict(constants_of(sys.modules[__name__]), **DECK))
            else:
                with recording(args.step, argv):
                    run(args)
    except (FileError, MemoryError, OSError) as error:
        message = ' '.join(str(error).split()) or 'there is not enough memory'
        if len(message) > 1000:
            message = message[:500] + ' ... ' + message[-500:]
        # Names in files may hold anything, such as codes that redraw the terminal.
        print('kfkd.py: ' + ''.join(c if c.isprintable() else '?' for c in message),
              file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print('kfkd.py: interrupted', file=sys.stderr)
        return 128 + getattr(error, 'signum', signal.SIGINT)
    if pyplot.get_fignums():  # windows are open: keep them until they are closed
        pyplot.show()
    return 0


if __name__ == '__main__':
    # As a module, so that pickles name classes of kfkd, not of __main__.
    import kfkd
    sys.exit(kfkd.main())
