"""How far trainings are, and how long they can still take."""
import contextlib
import os
import sys
import threading
import time
from datetime import timedelta

import numpy as np
from tabulate import tabulate

__all__ = ['Table', 'TimeLeft', 'hms', 'progress', 'seconds_an_epoch', 'time_left']

TABLE = 30.     # seconds from one table to the next


def hms(seconds):
    """Write seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=int(round(seconds))))


def seconds_an_epoch(history):
    """What an epoch takes, from a net's `train_history_`: the median of the last few.

    The first epoch tells little: Theano compiles in it.
    """
    return float(np.median([info['dur'] for info in history[1:][-9:] or history]))


class TimeLeft:
    """Print, twice a minute, how far a training is and how long it can still take.

    A handler for `on_epoch_finished` of a nolearn net; it is silent where the net is (verbose=0).

    Parameters
    ----------
    every : float
        Seconds from one line to the next.
    title : str
        What the line begins with: the name of the training.

    Attributes
    ----------
    stage, stages : int
        For several trainings of the same length: which one this is, of how many.
    """

    def __init__(self, every=30, title=''):
        self.every, self.title = every, title
        self.stage = self.stages = 1
        self.printed = time.time()

    def __call__(self, nn, train_history):
        if time.time() < self.printed + self.every or len(train_history) < 2 or not nn.verbose:
            return
        self.printed = time.time()
        epoch, duration = train_history[-1]['epoch'], seconds_an_epoch(train_history)
        left = duration * max(nn.max_epochs - epoch, 0)
        message = f'epoch {epoch} of {nn.max_epochs}, at most {hms(left)} left'
        if self.stages > 1:
            rest = left + duration * nn.max_epochs * (self.stages - self.stage)
            message = f'specialist {self.stage} of {self.stages}, {message}, {hms(rest)} for all'
        print('# ' + (self.title and self.title + ': ') + message)


def progress(nn, history):
    """How far a training is, as a row of `Table` says it: numbers by name."""
    best = min(history, key=lambda info: (info['valid_loss'] != info['valid_loss'],  # NaN is last
                                          info['valid_loss']))
    return dict(
        epoch=history[-1]['epoch'], epochs=nn.max_epochs, best_epoch=best['epoch'],
        duration=seconds_an_epoch(history), best_loss=float(best['valid_loss']),
        train_loss=float(history[-1]['train_loss']), valid_loss=float(history[-1]['valid_loss']))


def time_left(lefts, alls, lanes):
    """The seconds until the last of several trainings ends, `lanes` of them at a time.

    Parameters
    ----------
    lefts : list of float or None
        Seconds that each can still take; None for those that wait: as long as the others take.
    alls : list of float
        Seconds that those take in all of which it is known.
    lanes : int

    Returns
    -------
    float or None
        None where nothing is known or nothing is left.
    """
    if not alls or not any(left is None or left for left in lefts):
        return None
    ends = sorted(left for left in lefts if left)
    ends = [0] * (lanes - len(ends)) + ends
    for _ in range(lefts.count(None)):
        ends = sorted(ends[1:] + [ends[0] + sum(alls) / len(alls)])
    return ends[-1]


class Table:
    """How far several trainings are, printed every half a minute with what they print themselves.

    Parameters
    ----------
    trainings, waiting : list of Training
        All, and those of them that are not finished.
    jobs : int
        How many at a time.
    scale, unit : float, str
        Of the square roots of the losses.
    verbose : int
        0: no table, only what the trainings print.
    """

    def __init__(self, trainings, waiting, jobs, scale=1., unit='', verbose=1):
        self.jobs, self.scale, self.unit, self.verbose = jobs, scale, unit, verbose
        self.states = {training.title: 'waits' if training in waiting else 'finished'
                       for training in trainings}
        self.rows = {}
        self.topic = 'trainings-' + os.urandom(8).hex()
        self.file, self.lock, self.end = sys.stdout, threading.Lock(), threading.Event()

    @contextlib.contextmanager
    def of(self, client):
        """Context in which it hears what is said on its topic of Dask's events, and prints."""
        self.begin = time.monotonic()
        thread = threading.Thread(target=self._print_often, daemon=True)
        client.subscribe_topic(self.topic, self._hear)
        thread.start()
        try:
            yield
        finally:
            self.end.set()
            thread.join()
            client.unsubscribe_topic(self.topic)
            self.print()

    def ended(self, training, state):
        """Note that a training has ended."""
        self.states[training.title] = state

    def _hear(self, event):
        message = event[1]
        title = message['title']
        if 'progress' in message:
            self.rows[title] = message['progress']
            self.states[title] = None
        elif 'started' in message:
            if self.states[title] != 'waits':
                self._print_line(title, '# Its worker has died; it goes on from its checkpoint.')
            self.states[title] = 'starts'
        else:
            self._print_line(title, message['line'])

    def _print_line(self, title, line):
        with self.lock:
            print(title + ': ' + line, file=self.file, flush=True)

    def _print_often(self):
        while not self.end.wait(TABLE):
            self.print()

    def print(self):
        """Print the table."""
        if not self.verbose:
            return
        rows, lefts, alls = [], [], []
        for title, state in self.states.items():
            row, left = self.rows.get(title), 0 if state in ('finished', 'stopped', 'failed') \
                else None
            cells = [''] * 5
            if row:
                losses = row['train_loss'], row['valid_loss'], row['best_loss']
                cells = ['{epoch} of {epochs}'.format(**row), *(
                    f'{self.scale * loss ** 0.5:.3f}' for loss in losses), row['best_epoch']]
                alls.append(row['duration'] * row['epochs'])
                if state is None:
                    left = row['duration'] * max(row['epochs'] - row['epoch'], 0)
            rows.append([title, *cells, hms(left) if state is None else state])
            lefts.append(left)
        left, unit = time_left(lefts, alls, self.jobs), self.unit and f' ({self.unit})'
        with self.lock:
            rest = '' if left is None else f', at most {hms(left)} left'
            print(f'# {hms(time.monotonic() - self.begin)} since the start{rest}', file=self.file)
            print(tabulate(rows, [
                'training', 'epoch', 'train RMSE' + unit, 'valid RMSE' + unit, 'best', 'at epoch',
                'time left'], disable_numparse=True, colalign=('left',) + ('right',) * 6),
                file=self.file, flush=True)
