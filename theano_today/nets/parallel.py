"""Several nets of nolearn, one after the other or side by side, on workers of Dask.

    trainings = [Training('left', 'left.npz', prepare_left),
                 Training('right', 'right.npz', prepare_right)]
    for training in side_by_side(trainings, jobs=2):
        training.fit()
        print(training.title, training.net.train_history_[-1]['valid_loss'])

`side_by_side` lets each training have a finished checkpoint, and nothing more: `fit` then gives the
net the weights and the history of a training in this very process, bit for bit at the same number
of threads, or raises what has stopped it there.  With one job it does nothing, and `fit` trains.

Where a client of Dask is there already, its workers train, also on machines that do not see the
folder of the checkpoints; they should have one thread (``dask worker --nthreads 1``).  Otherwise
the workers are processes of this machine (`cluster`).
"""
import contextlib
import copy
import os
import sys
import time

import cloudpickle
import lasagne
import numpy as np

from . import cluster
from .checkpoint import SIGNALS, Stopped, _handling, check_settings, is_finished
from .files import FileError, beside, replacing
from .progress import Table
from .training import Training

__all__ = ['Training', 'TrainingError', 'side_by_side']

POLL = 0.2      # seconds from one look at the signals to the next


class TrainingError(FileError):
    """A training has lost its workers; the message says how and what to do."""


def side_by_side(trainings, jobs=-1, scale=1., unit='', verbose=1):
    """Train the nets that have no finished checkpoint, several at a time.

    Twice a minute a table tells how far they are.  When a worker dies, its training goes on from
    its checkpoint.

    Parameters
    ----------
    trainings : list of Training
    jobs : int
        How many at a time.  1: they are left to `Training.fit`.  -1: one for each core, or for each
        worker of the client that is there.
    scale, unit : float, str
        Of the errors in the table, the square roots of the losses: 48, 'pixels' for faces.
    verbose : int
        0: no table.

    Returns
    -------
    list of Training
        Those that are finished, then those whose `error` tells why they are not.

    Raises
    ------
    CheckpointError
        If a checkpoint is of other settings, before anything is trained.
    Stopped
        When told to (Ctrl-C, SIGTERM, SIGHUP), after the trainings have written their checkpoints.

    Notes
    -----
    Each process has its share of the cores, unless OMP_NUM_THREADS is set, and with
    ``device=cuda`` a GPU of its own, unless a number is given.
    """
    if jobs == 1:
        return trainings
    for training in trainings:  # now, not when the others have been trained for hours
        if os.path.exists(training.fname):
            check_settings(training.fname, training.prepare_quietly()[-1], training.fresh)
    waiting = [training for training in trainings if not is_finished(training.fname)]
    if waiting:
        with cluster.client(jobs, len(waiting)) as (client, jobs):
            _train(waiting, client, jobs, Table(trainings, waiting, jobs, scale, unit, verbose))
    return sorted(trainings, key=lambda training: training.error is not None)


def _train(waiting, client, jobs, table):
    running, signums = {}, []

    def told(signum, frame):
        signums.append(signum)
        if len(signums) > 1:
            raise Stopped(signum)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print('\n# Stopping each training after its batch. Once more stops at once and loses '
                  'what the checkpoints do not have.', file=sys.stderr, flush=True)

    def take(future):
        training = running.pop(future)
        try:
            state, checkpoint = future.result()
            if checkpoint is not None:
                with replacing(training.fname) as f:
                    f.write(checkpoint)
        except Exception as error:
            state, training.error = 'failed', _error(error)
        future.release()  # or Dask would train again when that worker is lost
        table.ended(training, state)

    # Who sees the file `seen` sees the checkpoints.
    with beside(waiting[0].fname) as seen, table.of(client), _handling(told, SIGNALS):
        while (running or waiting) and not signums:
            while waiting and len(running) < jobs:
                training = waiting.pop(0)
                try:
                    running[_submit(client, training, table, seen)] = training
                except Exception as error:  # others go on
                    training.error = error
                    table.ended(training, 'failed')
            for future in [future for future in running if future.done()]:
                take(future)
            time.sleep(POLL)
        if signums:
            begun = sum(client.run(cluster.stop, on_error='ignore').values(), [])
            for future, training in list(running.items()):
                if training.title in begun:
                    take(future)
            client.cancel(list(running))  # these compile: they have nothing to lose
            raise Stopped(signums[0])


def _submit(client, training, table, seen):
    """Send a training to the cluster, as bytes: its scheduler need not have Theano."""
    import dask
    training.error, there = None, copy.copy(training)
    there.net, X, y, settings = training.prepare_quietly()
    there.prepare, there.fname, saved = None, os.path.abspath(training.fname), b''
    with contextlib.suppress(FileNotFoundError), open(training.fname, 'rb') as f:
        saved = f.read()
    streams = np.random.get_state(), lasagne.random.get_rng().get_state()
    payload = cloudpickle.dumps((there, X, y, settings, streams), 5)

    def task(*args):  # nested, so that it travels as code, not as a name
        from theano_today.nets import worker
        return worker.work(*args)

    with dask.config.set({'distributed.admin.large-graph-warning-threshold': '1TB'}):
        return client.submit(task, payload, saved, seen, table.topic, key=(
            training.title + '-' + os.urandom(8).hex()), pure=False)


def _error(error):
    """What to raise here for what a worker, or Dask, has raised."""
    kind, message = type(error).__name__, ' '.join(str(error).split())
    if kind == 'KilledWorker':
        message = 'its worker has died again and again, perhaps for want of memory; fewer jobs ' \
            'need less'
    elif 'Cancelled' in kind:
        message = 'Dask has given it up, or is gone'
    elif isinstance(error, MemoryError):
        message = f'there is not enough memory ({message or kind}); fewer jobs need less'
    elif isinstance(error, ImportError):
        message += ' on its worker: the packages and the folder of the program must be there, ' \
            'in PYTHONPATH'
    else:
        return error
    return TrainingError(message)
