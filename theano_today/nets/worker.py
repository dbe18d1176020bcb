"""What a worker of Dask does with a training that `parallel` sends it."""
import asyncio
import contextlib
import functools
import io
import os
import pickle
import tempfile
import threading

import lasagne
import numpy as np
from nolearn.lasagne.handlers import PrintLayerInfo, PrintLog
from theano.compile import SharedVariable

from .checkpoint import Diverged, _as_list
from .progress import progress

__all__ = ['stop', 'work']

_one = threading.Lock()     # random streams and what is printed belong to a process
_here = []                  # the training of this one


async def stop():
    """End the training of this worker after its batch; its title in a list (for `Client.run`).

    One that has not begun is left alone: it may compile for a minute.
    """
    begun = [training for training in _here if training.checkpoint and training.checkpoint.begun]
    for training in begun:
        training.checkpoint.stop()
    while any(training in _here for training in begun):
        await asyncio.sleep(0.05)
    return [training.title for training in begun]


def work(payload, saved, seen, topic):
    """Train; return what became of it, and the checkpoint for who does not see it."""
    from distributed import get_worker
    worker = get_worker()
    key = worker.get_current_task()

    def unwanted(nn, history):
        task = worker.state.tasks.get(key)
        if task is None or task.state == 'cancelled':  # the client is gone
            training.checkpoint.stop()

    with _one, contextlib.ExitStack() as stack:
        training, X, y, settings, (np_stream, stream) = pickle.loads(payload)
        say = functools.partial(_say, worker, topic, training.title)
        say(started=worker.address)
        away = not os.path.exists(seen)
        if away:  # another machine
            training.fname = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()),
                                          os.path.basename(training.fname))
            if saved:
                with open(training.fname, 'wb') as f:
                    f.write(saved)
        np.random.set_state(np_stream)
        lasagne.random.set_rng(np.random.RandomState())
        lasagne.random.get_rng().set_state(stream)
        net = training.net
        # A row an epoch of several trainings at a time tells nobody anything: there is a table.
        net.verbose = 0
        for printer in PrintLog, PrintLayerInfo:
            stack.callback(setattr, printer, '__call__', printer.__call__)
            printer.__call__ = _silent(printer.__call__)
        # Functions, which have no state for a checkpoint to keep.
        net.on_batch_finished = [unwanted] + _as_list(net.on_batch_finished)
        net.on_epoch_finished = [lambda nn, history: say(progress=progress(nn, history))] + \
            _as_list(net.on_epoch_finished)
        _here.append(training)
        stack.callback(_here.remove, training)
        with contextlib.redirect_stdout(_Lines(lambda line: say(line=line))):
            try:
                training.fit_prepared(X, y, settings)
            except Diverged as error:
                error.shared = {name: value.get_value() for name, value in vars(net).items()
                                if isinstance(value, SharedVariable) and value.ndim == 0}
                raise
        say(progress=progress(net, net.train_history_))
        saved = None
        if away:
            with open(training.fname, 'rb') as f:
                saved = f.read()
        return 'finished' if training.checkpoint.finished else 'stopped', saved


def _say(worker, topic, title, **message):
    worker.log_event(topic, dict(message, title=title))


def _silent(function):
    def silent(*args):
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args)
    return silent


class _Lines(io.TextIOBase):
    """A file that hands on whole lines."""

    def __init__(self, hand_on):
        self.hand_on, self.begun = hand_on, ''

    def write(self, text):
        *whole, self.begun = (self.begun + text).split('\n')
        for line in filter(str.strip, whole):
            self.hand_on(line)
        return len(text)
