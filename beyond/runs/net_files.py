"""Files of trained nets: written whole, read without running what a stranger may have put there."""
import contextlib
import inspect
import os
import pickle
from collections import OrderedDict

import numpy as np
import pandas as pd
from nolearn.lasagne import NeuralNet

from theano_today.nets import safe_pickle
from theano_today.nets.files import FileError, open_regular, replacing
from theano_today.nets.progress import TimeLeft

from ..augmentation import (
    AffineFaceBatchIterator, FaceBatchIterator, mean_squared_error_of_known, middle_of,
    predict_aligned, predict_mirrored, squared_error_of_known)
from ..handlers import AverageWeights, CosineAnnealing
from ..layers import BatchNormLayer, ExpectedPositionLayer
from ..monitors import ActivationMonitor, GradientMonitor, UpdateMonitor
from ..splits import LookalikeSplit
from .record import keep


def handler_of_earlier_versions(nn, train_history):
    """Do nothing: EarlyStopping once had helpers in other lists of a net."""


# What nets may refer to, beside the classes of the program; the second by the names in earlier files.
TRUSTED = [TimeLeft, FaceBatchIterator, AffineFaceBatchIterator, ActivationMonitor, GradientMonitor,
           UpdateMonitor, AverageWeights, CosineAnnealing, BatchNormLayer, ExpectedPositionLayer,
           LookalikeSplit, squared_error_of_known, mean_squared_error_of_known,
           handler_of_earlier_versions]
RENAMED = {('kfkd', thing.__name__): thing
           for thing in (TimeLeft, FaceBatchIterator, AffineFaceBatchIterator)}
RENAMED.update(dict.fromkeys([('kfkd', 'start_early_stopping'), ('kfkd', 'restore_best_weights')],
                             handler_of_earlier_versions))


def save(nets, fname):
    """Pickle a net, or a dictionary of nets."""
    with replacing(fname) as f:
        pickle.dump(nets, f, -1)
    print(f'Wrote {fname}.')
    keep(fname)


def load(fname, trusted=()):
    """Unpickle what `save` has written.  No code that a stranger has put into the file is run.

    Parameters
    ----------
    fname : str
    trusted : sequence of classes and functions
        What nets may refer to, beside those of Lasagne, nolearn and this package.

    Raises
    ------
    FileError
        If it is not there, or not a file of nets.
    """
    try:
        with open_regular(fname) as f:
            return safe_pickle.load(f, TRUSTED + list(trusted), RENAMED)
    except FileNotFoundError:
        raise FileError(f'{fname} is not there: run the steps before this one, or name the '
                        'file.') from None
    except pickle.UnpicklingError as error:
        raise FileError(f'{fname} is not a file of nets that this program has written: {error}. '
                        'Classes of your own belong in TRUSTED.') from error


_kept = {}  # the nets of one file: they may take 0.4 GB


def kept(load, *fnames, own):
    """Load the nets of the first of some files that is there, once as long as it does not change.

    Parameters
    ----------
    load : callable
        As `load`, of one argument.
    fnames : str
    own : str
        The file that comes with the program, for where there is none of the others.

    Returns
    -------
    nets : dict
        By their columns.
    fname : str
        The file they are from.

    Raises
    ------
    FileError
        If it is not a file of nets.
    """
    fname = next(filter(os.path.exists, fnames), own)
    state = os.stat(fname)
    key = os.path.abspath(fname), state.st_ino, state.st_mtime_ns, state.st_size
    if key not in _kept:
        why = f': there is no {" or ".join(fnames)} here' if fname == own else ''
        print(f'Taking the nets of {os.path.relpath(fname)}{why}.')
        nets = by_columns(load(fname), fname)
        _kept.clear()
        _kept[key] = nets
    return _kept[key], fname


def predict(nets, X, fname, mirror=False, wanted=None, align=False):
    """Ask nets where the points of faces lie.

    Parameters
    ----------
    nets : dict of tuple of str to NeuralNet
        By their columns.
    X : ndarray, shape (n, 1, 96, 96)
    fname : str
        The file the nets are from, for messages.
    mirror : bool
        Take the mean with what they find in the mirror images (`predict_mirrored`).
    wanted : sequence of str, optional
        Columns; only the nets that know some of them are asked.
    align : bool
        Take the mean with what they find when the faces lie as the mean face (`predict_aligned`).

    Returns
    -------
    DataFrame, n rows
        Positions in [-1, 1].  The columns are those of the nets in turn, or `wanted`, with NaN in
        those that no net knows.
    """
    asked = {cols: model for cols, model in nets.items()
             if wanted is None or set(wanted) & set(cols)}
    columns = [name for cols in asked for name in cols]

    def ask(X):
        found = []
        for cols, model in asked.items():
            found.append(predict_mirrored(model, X) if mirror else model.predict(X))
            check_answers(found[-1], X, cols)
        return np.hstack(found)

    found = {}
    if asked:
        with usable(fname):
            answers = (predict_aligned(ask, X, columns, middle_of(next(iter(asked.values())), X))
                       if align else ask(X))
        found.update(zip(columns, answers.T))
    return pd.DataFrame(found, index=range(len(X)), columns=wanted, dtype=float)


def predict_mean(nets, X, mirror=False, align=False):
    """Take the mean of what the nets of several files find, each column from those that know it.

    Parameters
    ----------
    nets : dict of str to dict
        Nets by their columns, by the names of their files.
    X, mirror, align
        As `predict` takes them.

    Returns
    -------
    DataFrame, n rows
    """
    found = [predict(by_columns, X, fname, mirror, align=align) for fname, by_columns in nets.items()]
    return pd.concat(found).groupby(level=0).mean() if len(found) > 1 else found[0]


def parts_of(net):
    """Classes and functions that a net's handlers, iterators and split are of."""
    parts = []
    for name, value in vars(net).items():
        if name.startswith(('on_', 'batch_iterator_', 'train_split')):
            for part in value if isinstance(value, list) else [value]:
                parts.append(part if inspect.isfunction(part) else type(part))
    return parts


@contextlib.contextmanager
def usable(fname):
    """Tell that the nets of a file are to blame for any error in the block."""
    try:
        yield
    except Exception as error:  # a net's attributes may be anything
        said = str(error).strip().split('\n')[0][:200]
        raise FileError(f'{fname} holds a net that cannot be used ({type(error).__name__}: '
                        f'{said}).') from error


def check_answers(answers, X, cols):
    """Raise ValueError if a net does not answer the images `X` with a number for each column."""
    if answers.shape != (len(X), len(cols)) or not np.isfinite(answers).all():
        raise ValueError(f'it does not answer with {len(cols)} numbers a face')


def curves(net, scale=1):
    """The learning curves of a net, for `usable` to say if it has none.

    Returns
    -------
    done : Series
        The share of the training that was done after each epoch, in percent.
    valid, train : Series
        Errors: square roots of the losses times `scale`.
    """
    history = pd.DataFrame(net.train_history_)
    valid, train = (np.sqrt(history[name].astype(float)) * scale
                    for name in ('valid_loss', 'train_loss'))
    return (history.index + 1) * 100. / len(history), valid, train


def by_columns(nets, fname):
    """Return the nets of a file as a dictionary by columns, also where it holds a single one."""
    if isinstance(nets, NeuralNet) and isinstance(vars(nets).get('columns_'), tuple):
        return OrderedDict([(nets.columns_, nets)])
    if not isinstance(nets, dict) or not nets or not all(
            isinstance(model, NeuralNet) and isinstance(cols, tuple) and cols
            for cols, model in nets.items()):
        raise FileError(f'{fname} holds no nets that fit or fit_specialists has written.')
    return nets


def single(load, fname):
    """Load the net of a file that other nets are to start from; None, where there is no name."""
    if fname is None:
        return None
    net = load(fname)
    if not isinstance(net, NeuralNet):
        raise FileError(f'{fname} holds no single net: fit_specialists starts from what fit has '
                        'written.')
    with usable(fname):
        net.get_all_params_values()
        for iterator in (net.batch_iterator_train, net.batch_iterator_test):
            iterator.pixel_mean, iterator.pixel_std = map(
                np.float32, (iterator.pixel_mean, iterator.pixel_std))
    return net
