"""Event files for TensorBoard, written while a net of nolearn trains.

    with TensorBoard('events', scale=48).attached(net):
        net.fit(X, y)

and, beside it, in an environment that has TensorBoard: ``tensorboard --logdir events``.

After each epoch, at the step of its number: losses, RMSE or accuracy, custom scores, the settings
of the update rule (learning rate, momentum) that the epoch was trained with, its seconds, and means
of what beyond.monitors has recorded in it.  At the end: the filters of the first layer.

The files are written by tensorboardX, which needs NumPy and protobuf only.  They are whole after
each epoch.  Where a training goes on from a checkpoint, the epochs that are trained again take the
place of those that the earlier process had written.
"""
import contextlib
import itertools
import os
import time

import numpy as np
import theano
from theano_today.nets.checkpoint import STARTED
from theano_today.nets.files import FileError

from ..monitors import Monitor, layers_with_weights

# What each monitor's samples of an epoch are summed up by: (column of the history, number).
MONITORED = (('updates', 'ratio'), ('gradients', 'norm'), ('activations', 'std'),
             ('activations', 'dead'))
HANDLERS = 'on_training_started', 'on_epoch_finished', 'on_training_finished'
PIXELS = 12             # that a weight of a filter is drawn with


class TensorBoard:
    """Handler that writes the training of a net as event files.

    Parameters
    ----------
    folder : str or None
        Of this net's runs, made if it is not there; each has a folder there, named by its start (in
        a `Checkpoint` that of the whole training).  None: nothing is written.
    scale : float
        From the square root of a regression's loss to the unit of the labels: 48 for pixels.

    Raises
    ------
    ImportError
        If tensorboardX is missing.

    Notes
    -----
    A disk that fails ends the writing with a message, not the training.
    """
    not_in_checkpoint = True    # a training can go on with it or without

    def __init__(self, folder, scale=1):
        if folder is not None:
            _tensorboardx()  # now, not after the first epoch
            folder = os.path.abspath(folder)  # it may be used in a process that is elsewhere
        self.folder, self.scale = folder, scale
        self.run = None         # folder of the last training
        self._writer = None

    @contextlib.contextmanager
    def attached(self, net):
        """Context in which the handler belongs to a net; pickles made later know nothing of it."""
        self.attach(net)
        try:
            yield self
        finally:
            self.close()
            for name in HANDLERS:
                with contextlib.suppress(ValueError):  # without a folder it is not there
                    getattr(net, name).remove(getattr(self, name))

    def attach(self, net):
        """Add the handler to those of a net for good; return it."""
        if self.folder is None:
            return self
        net.on_training_started.append(self.on_training_started)
        # Before handlers that change the learning rate or stop the training, behind the monitors.
        monitors = [isinstance(getattr(handler, '__self__', None), Monitor)
                    for handler in net.on_epoch_finished]
        place = len(monitors) - monitors[::-1].index(True) if any(monitors) else 0
        net.on_epoch_finished.insert(place, self.on_epoch_finished)
        net.on_training_finished.append(self.on_training_finished)
        return self

    def on_training_started(self, nn, train_history):
        self.close()
        event_pb2, writer, _ = _tensorboardx()
        self.run = self._folder_of_run(nn)
        first = len(train_history) + 1
        try:
            os.makedirs(self.run, exist_ok=True)
            # The name has the second only: a process that goes on in the same one needs another.
            self._writer = writer.EventsWriter(
                os.path.join(self.run, 'events'), f'.{first:06}.{os.getpid()}')
        except OSError as error:
            raise FileError(f'{self.run} cannot be written: {error.strerror or error}.') from error
        # Readers drop from earlier files what is not before the step of this.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(session_log=start), first)

    def on_epoch_finished(self, nn, train_history):
        if self._writer is None:
            return
        event_pb2, _, summary = _tensorboardx()
        event = event_pb2.Event()
        for tag, value in self.numbers(nn, train_history[-1]):
            event.summary.value.extend(summary.scalar(tag, value).value)
        self._write(event, train_history[-1]['epoch'])

    def on_training_finished(self, nn, train_history):
        names = layers_with_weights(nn)
        if self._writer is not None and names and train_history:
            event_pb2, _, summary = _tensorboardx()
            W = nn.layers_[names[0]].get_params(trainable=True)[0].get_value().astype(float)
            if not np.isfinite(W).any():  # the net has diverged
                return self.close()
            tag = 'first_layer/' + names[0]
            if W.ndim == 4 and W.shape[1] in (1, 3):
                drawn = summary.image(tag, draw_filters(W), dataformats='HWC')
            else:
                drawn = summary.histogram(tag, W[np.isfinite(W)], bins=60)
            self._write(event_pb2.Event(summary=drawn), train_history[-1]['epoch'])
        self.close()

    def numbers(self, nn, info):
        """What there is to write of an epoch.

        Parameters
        ----------
        nn : NeuralNet
        info : dict
            The epoch's row of the history.

        Returns
        -------
        list of (tag, number)
        """
        losses = {'train': info['train_loss']}
        if isinstance(info['valid_loss_best'], (bool, np.bool_)):  # NaN without validation rows
            losses['valid'] = info['valid_loss']
        found = [('loss/' + name, loss) for name, loss in losses.items()]
        if nn.regression:
            found += [('rmse/' + name, self.scale * np.sqrt(loss)) for name, loss in losses.items()]
        elif 'valid' in losses:
            found.append(('accuracy/valid', info['valid_accuracy']))
        for scores in nn.custom_scores or [], nn.scores_train, nn.scores_valid:
            found += [('scores/' + name, info[name]) for name, _ in scores]
        for name, value in nn._get_params_for('update').items():
            if isinstance(value, theano.compile.SharedVariable):
                value = value.get_value()
            if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
                found.append(('update/' + name, value))
        found.append(('seconds/epoch', info['dur']))
        for column, number in MONITORED:
            samples = [sample['layers'] for sample in info.get(column, ())]
            for layer in samples[0] if samples else ():
                values = [sample[layer][number] for sample in samples if number in sample[layer]]
                if values:
                    tag = f'monitor_{column}_{number}/{layer}'
                    found.append((tag, np.mean(values)))
        return found

    def _folder_of_run(self, nn):
        checkpoint = vars(nn).get('_training')
        if checkpoint is not None:
            return os.path.join(self.folder, checkpoint.started)
        folder = unused = os.path.join(self.folder, time.strftime(STARTED))
        for number in itertools.count(2):
            if not os.path.exists(unused):
                return unused
            unused = f'{folder}-{number}'

    def close(self):
        """Close the file, if one is open."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _write(self, event, epoch):
        event.step, event.wall_time = int(epoch), time.time()
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            print(f'# {self.run} cannot be written ({error.strerror or error}): the training goes '
                  'on without it.')
            self.close()

    def __getstate__(self):  # an open file is no part of a pickled net
        return dict(vars(self), _writer=None)


def draw_filters(W):
    """Draw filters side by side; grey is 0, and all have the same scale.

    Parameters
    ----------
    W : ndarray, shape (filters, channels, height, width)
        Of one channel or three.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
    """
    W = np.nan_to_num(W, posinf=0, neginf=0)
    shades = 0.5 + 0.5 * W / (np.abs(W).max() or 1)
    shades = shades.repeat(PIXELS, axis=2).repeat(PIXELS, axis=3)
    shades = np.pad(shades, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
    n, channels, height, width = shades.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    page = np.ones((rows * columns, channels, height, width))
    page[:n] = shades
    page = page.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    page = page.reshape(rows * height, columns * width, channels)
    return np.broadcast_to((255 * page).round().astype(np.uint8), page.shape[:2] + (3,)).copy()


def _tensorboardx():
    """The parts of tensorboardX that write in this thread.

    Its SummaryWriter hands events to a thread of its own: a flush does not wait for that thread,
    and when the disk is full the thread ends and the training waits for it for ever.
    """
    try:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
    except ImportError as error:
        raise ImportError(f'TensorBoard files need tensorboardX ({error}): install '
                          'requirements.txt') from error
    return event_pb2, event_file_writer, summary
