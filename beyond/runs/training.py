"""A training that can be stopped at any moment, goes on later, and says what has come of it.

    training = Training('net', columns, constants)
    with training.checkpointed(net, X, y):
        net.fit(X, y)
    save(net, 'net.pickle')         # also a net that was stopped: the best weights so far
    training.raise_if_stopped()
"""
import contextlib
import os

import numpy as np
from lasagne import objectives

from data import tables
from theano_today.nets import parallel
from theano_today.nets.checkpoint import Checkpoint, Diverged, Stopped, digest
from theano_today.nets.files import FileError, remove_unlocked
from theano_today.nets.progress import TimeLeft

from ..augmentation import knows_how_faces_lie
from ..handlers import AverageWeights
from .net_files import predict
from .record import note_net, note_result
from .tensorboard import TensorBoard

SCALE, UNIT = 48, 'pixels'      # of a distance of 1 between labels

# The constants that must be the same for a training to go on from its checkpoint.
MUST_STAY = ('AUGMENT', 'BATCH_SIZE', 'EVAL_SIZE', 'LEARNING_RATE', 'MOMENTUM', 'NET', 'PATIENCE',
             'SEED', 'STANDARDIZE')


class Training(parallel.Training):
    """The training of a net that finds points in faces.

    Parameters
    ----------
    name : str
        'net', 'specialist-1', ...
    columns : sequence of str
        What the net predicts.
    constants : object
        Those of the program, as attributes: FTRAIN, FCHECKPOINT, TENSORBOARD, MUST_STAY's, ...
    prepare : callable, optional
        Returns (net, X, y), where another process may do the training.
    pretrained : NeuralNet, optional
        The net takes its weights over.
    """

    stopped = None      # what has stopped it

    def __init__(self, name, columns, constants, prepare=None, pretrained=None):
        self.name, self.columns, self.constants = name, tuple(columns), constants
        more = ' ...' if len(columns) > 1 else ''
        title = f'{name.replace("-", " ")} ({columns[0]}{more})'
        super().__init__(
            title, constants.FCHECKPOINT.format(name=name), lambda: self._with_settings(*prepare()),
            60 * constants.CHECKPOINT_MINUTES, pretrained,
            _tensorboard(constants.TENSORBOARD, name).attached, 'with --fresh')

    def _with_settings(self, net, X, y):
        return net, X, y, self.settings(X, y)

    def settings(self, X, y):
        """What the training can only go on with when it has not changed."""
        fname = os.path.basename(self.constants.FTRAIN)
        names = MUST_STAY + ('MAX_EPOCHS' if self.name == 'net' else 'SPECIALIST_SAMPLES',)
        return {**{name: getattr(self.constants, name) for name in names},
                f'the faces in {fname}': digest(X), f'the labels in {fname}': digest(y)}

    @contextlib.contextmanager
    def checkpointed(self, net, X, y):
        """Context in which a net is fitted, going on from its checkpoint if there is one.

        Prints the best error, and tells the record of this run.  A signal, Ctrl-C or a loss that is
        no number ends the block, not the program: the net then has its best weights, and
        `raise_if_stopped` says what it was.

        Raises
        ------
        CheckpointError, FileError
            As `Checkpoint` does, or what has stopped the training in another process.
        KeyboardInterrupt, FileError
            If the training was stopped, or diverged, within its first epoch: there is nothing to
            keep.
        """
        if self.error is not None:
            raise self._elsewhere(net)
        if np.isnan(y).any() and net.objective_loss_function.__module__ == objectives.__name__:
            loss = net.objective_loss_function.__name__
            raise FileError(f'GAPS = True leaves gaps in the labels, and {loss} does not know what '
                            'they are: set the net\'s objective_loss_function to '
                            'mean_squared_error_of_known (beyond.augmentation).')
        try:
            with Checkpoint(self.fname, net, self.settings(X, y), self.every,
                            self.fresh) as checkpoint, self.around(net):
                yield
            if checkpoint.signum:
                self.stopped = Stopped(checkpoint.signum)
            elif not checkpoint.finished:  # nolearn takes Ctrl-C for a normal end
                self.stopped = KeyboardInterrupt()
        except Diverged as error:
            self.stopped = FileError(f'{error}. {self.why_diverged(net)}')
        if not net.train_history_:
            self.raise_if_stopped()
        if self.stopped is not None:
            for handler in net.on_epoch_finished:  # nolearn calls no handler then
                if hasattr(handler, 'on_training_finished'):
                    handler.on_training_finished(net, net.train_history_)
        print(best_error(net.train_history_))
        note_net(self.name, net, self.columns, SCALE)
        if self.stopped is None:
            self._tell_final_error(net, X, y)

    def _tell_final_error(self, net, X, y):
        """Say the validation error of what `predict` will do, where it is not that of an epoch."""
        how = ['averaged weights'] * any(isinstance(handler, AverageWeights)
                                         for handler in net.on_epoch_finished)
        c = self.constants
        if c.MIRROR:
            how.append('mean with the mirror image')
        if c.ALIGN and knows_how_faces_lie(self.columns):
            how.append('mean with the aligned face')
        X_valid, y_valid = net.train_split(X, y, net)[1::2] if how else (X[:0], y[:0])
        if len(X_valid):
            found = predict({self.columns: net}, X_valid, self.name, c.MIRROR, align=c.ALIGN).values
            error = float(SCALE * np.sqrt(np.nanmean((found - y_valid) ** 2)))
            print(f'Validation RMSE in the end: {error:.3f} {UNIT} ({", ".join(how)}).')
            note_result(**{f'final_valid_rmse_{self.name}': round(error, 4)})

    def raise_if_stopped(self):
        """Raise what has stopped the training, if it has not come to its end."""
        if self.stopped is not None:
            raise self.stopped

    def _elsewhere(self, net):
        """What has stopped the training in another process, to be raised."""
        error = self.error
        for name, value in getattr(error, 'shared', {}).items():  # of that moment
            getattr(net, name).set_value(value)
        if isinstance(error, Diverged):
            error = FileError(f'{error}. {self.why_diverged(net)}')
        if isinstance(error, (FileError, MemoryError, OSError)):
            said = (str(error) or repr(error)).rstrip('.')
            error = FileError(f'{self.title}: {said}. What the other specialists have learned is '
                              'kept: the same command goes on from there.')
        return error

    def why_diverged(self, net):
        """Name what has most likely made the loss NaN or infinite: a row, or LEARNING_RATE."""
        cell = tables.farthest_cell(self.constants.FTRAIN)
        if cell:
            return f'Most likely the cause is {cell}. Mend or remove that row.'
        rate = float(net.update_learning_rate.get_value())
        return (f'Most likely the learning rate, now {rate:g}, is too high: lower LEARNING_RATE, '
                f'{self.constants.LEARNING_RATE}.')


def best_error(history):
    """Say the best validation error of a history; where there is none, the last training error."""
    validated = [row for row in history if np.isfinite(row['valid_loss'])]
    best = min(validated or history[-1:], key=lambda row: row['valid_loss'])
    kind, loss = ('Best validation', 'valid_loss') if validated else ('Training', 'train_loss')
    return f'{kind} RMSE: {SCALE * np.sqrt(best[loss]):.3f} {UNIT}, at epoch {best["epoch"]}.'


def check_jobs(jobs):
    """Raise FileError for a value of JOBS that is no number of processes."""
    if not isinstance(jobs, (int, np.integer)) or isinstance(jobs, bool) or jobs == 0:
        raise FileError('JOBS is how many specialists are trained at a time, or -1 for as many as '
                        f'there are cores, not {jobs!r}.')


def count(net, number, trainings):
    """Let what a net says of the time left be that of training `number` of several."""
    for handler in net.on_epoch_finished:
        if isinstance(handler, TimeLeft):
            handler.stage, handler.stages = number, trainings


def _tensorboard(folder, name):
    """The handler that writes the training of a net to a folder; None: nothing."""
    try:
        return TensorBoard(folder and os.path.join(folder, name), SCALE)
    except ImportError as error:
        raise FileError(f'TENSORBOARD = {folder!r}: {error}.') from error


def remove_checkpoints(fcheckpoint, step=None):
    """Remove the checkpoints of a step, 'fit' or 'fit_specialists', or of both.

    Parameters
    ----------
    fcheckpoint : str
        Their name; {name} stands for that of the training.
    step : str, optional
    """
    names = {'fit': ['net'], 'fit_specialists': ['specialist-*']}.get(step, ['net', 'specialist-*'])
    remove_unlocked(*(fcheckpoint.format(name=name) for name in names))
