"""Training that can be stopped at any moment and goes on later, bit for bit.

    with Checkpoint('checkpoint.npz', net, settings):
        net.fit(X, y)

writes a checkpoint every few minutes, and when the process is told to stop (Ctrl-C, SIGTERM,
SIGHUP).  The same lines in a new process go on from there and end in the same weights and the same
history, bit for bit, as a training that was never interrupted, given the same packages and number
of threads.

Works with any nolearn net.  A checkpoint holds the weights, the state of the update rule, Theano's
random streams, those of NumPy and Lasagne, the history, and the attributes of handlers and batch
iterators.

A checkpoint may fall between any two batches.  nolearn keeps the losses of an unfinished epoch in
local variables, so they are recorded here (`_Recorder`).  To go on in the middle of an epoch, that
epoch is begun again from the state its batch iterator had at its start; the batches already done
are drawn again, which brings the iterator to where it was, and answered from the record.
"""
import contextlib
import json
import os
import platform
import signal
import sys
import time
import types

import lasagne
import numpy as np
import theano
from nolearn.lasagne import BatchIterator
from theano.compile import SharedVariable

from .checkpoint_file import (
    FRESH, STRANGE, VERSION, CannotPack, CheckpointError, digest, is_finished, pack, read, unpack,
    write)
from .files import FileError, check_writable, locked

__all__ = ['Checkpoint', 'CheckpointError', 'Diverged', 'Stopped', 'check_settings', 'digest',
           'is_finished', 'processor', 'stopping_on_signals']

STARTED = '%Y-%m-%d-%H%M%S'
HANDLERS = 'on_training_started', 'on_batch_finished', 'on_epoch_finished', 'on_training_finished'
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Stopped(KeyboardInterrupt):
    """A signal has ended the program in good order.  `signum` tells which."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


class Diverged(ArithmeticError):
    """The loss is no longer a finite number.

    Attributes
    ----------
    epoch, batch : int
        Where, counted from 1; `batch` is None if it was the validation loss.
    loss : float
    inputs : tuple of ndarray
        The batch; empty for the validation loss.
    """

    def __init__(self, epoch, batch, loss, inputs=()):
        super().__init__(epoch, batch, loss)
        self.epoch, self.batch, self.loss, self.inputs = epoch, batch, loss, inputs

    def __str__(self):
        if self.batch:
            return f'the training loss is {self.loss} in epoch {self.epoch}, batch {self.batch}'
        return f'the validation loss is {self.loss} in epoch {self.epoch}'


# ------------------------------------------------------------------------------------- signals

@contextlib.contextmanager
def _handling(handler, signums):
    """Install a signal handler for a while; one that is ignored (nohup) stays ignored."""
    previous = {}
    try:
        for signum in signums:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                previous[signum] = signal.signal(signum, handler)
    except ValueError:  # not the main thread: signals are the business of others
        pass
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def stopping_on_signals():
    """Context in which SIGTERM and SIGHUP raise `Stopped`, so that files are left in order."""
    def stop(signum, frame):
        raise Stopped(signum)
    return _handling(stop, SIGNALS[1:])


# ------------------------------------------------------------------------------- the training

def check_settings(fname, settings, fresh=FRESH):
    """Raise CheckpointError if there is a checkpoint of other settings, or a damaged one.

    What belongs to the net itself is compared when its training begins.  `fresh`: see `Checkpoint`.
    """
    try:
        saved = read(fname, fresh)[0]
    except FileNotFoundError:
        return
    try:
        changes = _differences(saved['settings'], _as_in_file(dict(settings)))
    except STRANGE as error:
        raise CheckpointError(f'{fname} has no settings ({type(error).__name__}: {error}). '
                              f'Start anew {fresh}.') from error
    if changes:
        raise _changed(fname, changes, fresh)


def _changed(fname, changes, fresh):
    return CheckpointError(
        f'{fname} is of a training with other settings: {"; ".join(changes)}. Put them back to go '
        f'on with it, or start anew {fresh}.')


class Checkpoint:
    """Context in which the training of a nolearn net writes checkpoints and goes on from one.

    Parameters
    ----------
    fname : str
        The file.
    net : NeuralNet
        As it is before its training.
    settings : dict
        Numbers, strings, and tuples and lists of these, by name: what must be the same for a
        training to go on.  The net's own settings and its weights at the start are added.
    every : float
        Seconds from one checkpoint to the next.  It is more where writing is slow, so that it never
        takes more than `share` (1 %) of the time.
    fresh : str
        How the user starts anew, for messages: "Start anew ...".

    Attributes
    ----------
    signum : int or None
        The signal that has ended the training.
    finished : bool
        Whether the training has come to its end, now or in an earlier process.  The checkpoint then
        holds what the net needs to be used, and `fit` does nothing more.
    started : str
        When the training began (YYYY-MM-DD-hhmmss), which may have been in an earlier process.

    Raises
    ------
    CheckpointError
        If the file is of other settings, named in the message, or damaged.
    FileError
        If the file cannot be written.  The last good checkpoint is still there then.  Also if
        another process is training with this file: it is named, and nothing is changed.
    Diverged
        If the loss becomes NaN or infinite.  No checkpoint is written of such a training.

    Notes
    -----
    Attributes of handlers are kept if they are numbers, strings, arrays, random generators, or
    lists, tuples and dictionaries of these; a message names those that are not, unless the class
    itself lists them in an attribute `not_in_checkpoint`: what is made anew when it is needed, such
    as compiled functions.  Handlers for which it is True may come and go.  nolearn's
    shuffling iterators (``shuffle=True``) reorder the caller's arrays from epoch to epoch, which
    going on could not repeat; they are refused.  The program's code is not compared.
    """
    share = 0.01

    def __init__(self, fname, net, settings=(), every=300., fresh=FRESH):
        self.fname, self.net, self.every, self.fresh = str(fname), net, every, fresh
        self.settings = _as_in_file(dict(settings))
        self.signum, self.finished = None, False
        self.started = time.strftime(STARTED)
        self.begun = False          # a batch is done: there is something to lose
        self.stopping = False       # `stop` has been called
        self.due = time.monotonic() + every
        self.saved = self.arrays = self.random = None  # what has been read
        self.reported = set()       # attributes of which it has been said that they are not kept

    def remove(self):
        """Remove the file, when the results it led to are safe."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.fname)

    def stop(self):
        """End the training after this batch, as a signal does; for other threads."""
        self.stopping = True

    # The context ------------------------------------------------------------------------------

    def __enter__(self):
        net = self.net
        for name in ('batch_iterator_train', 'batch_iterator_test', 'train_split'):
            if getattr(getattr(net, name), 'shuffle', False):
                raise CheckpointError(f'{name} shuffles in place (shuffle=True): its training '
                                      f'cannot be written to {self.fname}.')
        check_writable(self.fname)
        with contextlib.ExitStack() as context:
            context.enter_context(locked(self.fname))
            net.initialize()
            self.net_settings = _as_in_file(_settings(net))
            self._read()
            self._take_over(net)
            context.enter_context(_handling(self._on_signal, SIGNALS))
            self.context = context.pop_all()
        return self

    def _take_over(self, net):
        """Put our own handlers and training step into the net."""
        original = {name: _as_list(getattr(net, name)) for name in HANDLERS}
        self.handlers = [handler for handlers in original.values()
                         for handler in map(_owner, handlers) if hasattr(handler, '__dict__')
                         and getattr(handler, 'not_in_checkpoint', None) is not True]
        self.recorder = _Recorder(net, net.train_iter_)
        vars(net).update(
            _training=self,  # pickling a net in its training leaves all this out (compat)
            train_iter_=self.recorder,
            train_loop=self._train_loop,
            on_training_started=original['on_training_started'] + [self._started],
            on_batch_finished=[
                self._unless_replaying(handler) for handler in original['on_batch_finished']
            ] + [self._batch_finished],
            on_epoch_finished=original['on_epoch_finished'] + [self._epoch_finished],
            on_training_finished=original['on_training_finished'] + [self._finished])
        self.original = dict(original, train_iter_=self.recorder.function)

    def __exit__(self, kind, error, traceback):
        self.context.close()
        for name in ('_training', 'train_loop'):
            del vars(self.net)[name]
        vars(self.net).update(self.original)
        if self.signum and isinstance(error, Exception) and \
                not isinstance(error, (FileError, Diverged)):
            # A Ctrl-C in the terminal ends the compilers that Theano has started, too.
            raise Stopped(self.signum) from error

    def _on_signal(self, signum, frame):
        again, self.signum = self.signum, signum
        if again or not self.begun:
            raise Stopped(signum)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print('\n# Stopping after this batch. Once more stops at once and loses what '
                  f'{self.fname} does not have.', file=sys.stderr, flush=True)

    def _unless_replaying(self, handler):
        return lambda net, history: None if self.recorder.replaying else handler(net, history)

    # What nolearn calls -----------------------------------------------------------------------

    def _train_loop(self, X, y, epochs=None):
        """Train for the epochs that are left."""
        net = self.net
        if self.saved and self.saved['finished']:
            self._restore()
            self.finished = True
            return
        type(net).train_loop(net, X, y, (epochs or net.max_epochs) - len(net.train_history_))

    def _started(self, net, train_history):
        if self.saved:
            self._restore()
        self._begin_epoch()

    def _batch_finished(self, net, train_history):
        if self.recorder.replaying:
            if not self.recorder.to_replay:  # that was the last: go on with what was then
                _set_global_random(self.random)
                self.random = self.arrays = None
            return
        self.begun = True
        if self.signum or self.stopping:
            self.write()
            raise Stopped(self.signum or signal.SIGTERM)
        if time.monotonic() >= self.due:
            self.write()

    def _epoch_finished(self, net, train_history):
        info = train_history[-1]
        # nolearn writes NaN for everything where there are no validation rows.
        validated = isinstance(info['valid_loss_best'], (bool, np.bool_))
        if validated and not np.isfinite(info['valid_loss']):
            train_history.pop()
            raise Diverged(info['epoch'], None, info['valid_loss'])
        self.recorder.outputs = []
        self._begin_epoch()

    def _finished(self, net, train_history):
        self.finished = True
        self.recorder.outputs = []
        self._begin_epoch()
        self.write()

    # State ------------------------------------------------------------------------------------

    def _begin_epoch(self):
        """Note what going on in the middle of the epoch to come has to begin with."""
        arrays = {}
        iterators = [self._attributes(iterator, arrays) for iterator in self._iterators()]
        state = dict(iterators=iterators, random=_global_random(arrays))
        self.epoch_start = state, {name: array.copy() for name, array in arrays.items()}

    def _iterators(self):
        return [self.net.batch_iterator_train, self.net.batch_iterator_test, self.net.train_split]

    def _others(self):
        """Shared variables of a training step that are no weights: update rule, random streams."""
        params = set(self.net.get_all_params())
        return [variable for variable in self.recorder.function.get_shared()
                if variable not in params]

    def _shared(self):
        """Shared variables that are settings of the net, by name: a learning rate that changes."""
        return {name: value for name, value in vars(self.net).items()
                if isinstance(value, SharedVariable)}

    def _attributes(self, thing, arrays):
        """The attributes of a handler or an iterator, packed."""
        packed = {}
        left_out = getattr(thing, 'not_in_checkpoint', ())
        if isinstance(thing, BatchIterator):
            left_out = ('X', 'y') + tuple(left_out)  # the data of the last epoch
        for name, value in vars(thing).items():
            if name in left_out:
                continue
            try:
                packed[name] = pack(value, arrays)
            except CannotPack as error:
                name = f'{type(thing).__name__}.{name}'
                if name not in self.reported:
                    print(f'# {self.fname} does not keep {name} ({error}).')
                self.reported.add(name)
        return packed

    def write(self):
        """Write the checkpoint now (between two batches)."""
        begin = time.monotonic()
        net = self.net
        epoch_start, arrays = self.epoch_start
        arrays = dict(arrays)
        state = dict(
            version=VERSION, started=self.started, written=time.strftime('%Y-%m-%d %H:%M:%S'),
            finished=self.finished,
            settings=self.settings, net_settings=self.net_settings, machine=_machine(),
            history=pack(list(net.train_history_), arrays),
            weights=[pack(param.get_value(borrow=True), arrays) for param in net.get_all_params()],
            others=[] if self.finished else [
                pack(variable.get_value(borrow=True), arrays) for variable in self._others()],
            shared={name: pack(variable.get_value(borrow=True), arrays)
                    for name, variable in self._shared().items()},
            handlers=[self._attributes(handler, arrays) for handler in self.handlers],
            outputs=pack(self.recorder.outputs, arrays), random=_global_random(arrays),
            epoch_start=epoch_start)
        write(self.fname, state, arrays)
        now = time.monotonic()
        self.due = now + max(self.every, (now - begin) / self.share)

    def _read(self):
        """Read the checkpoint, if there is one; check that it is of this training, and say so."""
        try:
            saved, arrays = read(self.fname, self.fresh)
        except FileNotFoundError:
            return
        try:
            for name in HANDLERS:  # earlier versions have them there where there are none
                saved['net_settings'].pop(name, None)
            changes = _differences(saved['settings'], self.settings) or \
                _differences(saved['net_settings'], self.net_settings)
            others = _differences(saved['machine'], _machine())
            history = unpack(saved['history'], arrays)
            batches = len(saved['outputs']['list'])
            finished, written = bool(saved['finished']), str(saved['written'])
            started = saved.get('started', self.started)
            time.strptime(started, STARTED)  # it becomes part of file names
            if not all(np.isfinite(row[name]) for row in history
                       for name in ('epoch', 'train_loss', 'dur')):
                raise ValueError('numbers are missing in the history')
        except STRANGE as error:
            raise self._strange(error) from error
        if changes:
            raise _changed(self.fname, changes, self.fresh)
        for change in others if not finished else ():
            print(f'# {self.fname}: {change}. The result may differ in the last bits from that of '
                  'an uninterrupted training.')
        if finished:
            print(f'# {self.fname} is of a training that is finished: {len(history)} epochs.')
        else:
            print(f'# Going on from {self.fname} (written {written}): epoch {len(history) + 1}, '
                  f'after batch {batches}.')
        self.saved, self.arrays, self.net.train_history_ = saved, arrays, history
        self.started = started

    def _strange(self, error):
        return CheckpointError(f'{self.fname} does not fit this net ({type(error).__name__}: '
                               f'{error}). Start anew {self.fresh}.')

    def _restore(self):
        """Set net, handlers and random streams to what they were."""
        saved, arrays, net = self.saved, self.arrays, self.net
        try:
            _set_values(net.get_all_params(), saved['weights'], arrays)
            if not saved['finished']:
                _set_values(self._others(), saved['others'], arrays)
            shared = self._shared()
            names = [name for name in saved.get('shared', ()) if name in shared]
            _set_values([shared[name] for name in names],
                        [saved['shared'][name] for name in names], arrays)
            things = self.handlers + self._iterators()
            packed = saved['handlers'] + saved['epoch_start']['iterators']
            if len(things) != len(packed):
                raise ValueError('other handlers')
            for thing, attributes in zip(things, packed):
                for name, node in attributes.items():
                    vars(thing)[name] = unpack(node, arrays, vars(thing).get(name))
            self.recorder.outputs = unpack(saved['outputs'], arrays)
            self.recorder.to_replay = len(self.recorder.outputs)
            _set_global_random([unpack(node, arrays) for node in saved['epoch_start']['random']])
            self.random = [unpack(node, arrays) for node in saved['random']]
        except STRANGE as error:
            raise self._strange(error) from error
        self.saved = None


class _Recorder:
    """A net's training step that remembers what it has returned in this epoch.

    It also stops a training whose loss is no number.
    """

    def __init__(self, net, function):
        self.net, self.function = net, function
        self.outputs = []       # of the batches of this epoch
        self.to_replay = 0      # how many of the next calls to answer from `outputs`
        self.replaying = False  # whether the last call was answered so

    def __call__(self, *inputs, **kwargs):
        self.replaying = self.to_replay > 0
        if self.replaying:
            outputs = self.outputs[-self.to_replay]
            self.to_replay -= 1
            return outputs
        outputs = self.function(*inputs, **kwargs)
        loss = np.mean(outputs[0])
        if not np.isfinite(loss):
            raise Diverged(len(self.net.train_history_) + 1, len(self.outputs) + 1, loss, inputs)
        self.outputs.append(outputs)
        return outputs

    def __getattr__(self, name):
        return getattr(self.function, name)


def _as_list(handlers):
    return list(handlers) if isinstance(handlers, (list, tuple)) else [handlers]


def _owner(handler):
    """Where a handler keeps its state: itself, or the object whose method it is; None: nowhere."""
    if isinstance(handler, types.FunctionType):
        return None
    return getattr(handler, '__self__', handler)


def _set_values(variables, nodes, arrays):
    """Set shared variables to packed values of the same shapes and types."""
    if len(variables) != len(nodes):
        raise ValueError(f'{len(nodes)} arrays for {len(variables)} variables')
    for variable, node in zip(variables, nodes):
        old = variable.get_value(borrow=True)
        new = unpack(node, arrays)
        if type(old) is not type(new) or isinstance(old, np.ndarray) and (
                old.shape != new.shape or old.dtype != new.dtype):
            raise ValueError('an array of another shape or type')
        variable.set_value(new, borrow=True)


def _global_streams():
    streams = [np.random.mtrand._rand, lasagne.random.get_rng()]
    return [stream for stream in streams if isinstance(stream, np.random.RandomState)]


def _global_random(arrays):
    return [pack(stream, arrays) for stream in _global_streams()]


def _set_global_random(streams):
    for stream, saved in zip(_global_streams(), streams):
        stream.set_state(saved.get_state())


def _settings(net):
    """What a net is made of: its layers, plain settings, iterator and first weights."""
    settings = {'layers': [
        [type(layer).__name__, list(layer.output_shape)] for layer in net.get_all_layers()]}
    for name, value in net.get_params(deep=False).items():
        if name not in ('verbose', 'layers') + HANDLERS and _is_plain(value):
            settings[name] = value
    for owner in ('batch_iterator_train', 'train_split'):
        thing = getattr(net, owner)
        settings[owner] = type(thing).__name__
        settings.update({f'{owner}.{name}': value for name, value in vars(thing).items()
                         if _is_plain(value)})
    settings['weights at the start'] = digest(
        *(param.get_value(borrow=True) for param in net.get_all_params()))
    return settings


def _as_in_file(settings):
    """What settings are when they come back from the file: tuples become lists, and so on."""
    return json.loads(json.dumps(settings, default=lambda value: (
        value.tolist() if isinstance(value, (np.generic, np.ndarray)) else repr(value))))


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def processor():
    """The model of this machine's processor."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _machine():
    """What else the last bits of a training depend on."""
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count())
    return {
        'the number of threads (OMP_NUM_THREADS)':
            os.environ.get('OMP_NUM_THREADS', str(len(cores))),
        'the version of Python': platform.python_version(),
        'the version of NumPy': np.__version__,
        'the version of Theano': theano.__version__,
        'the processor': processor(),
    }


def _differences(old, new):
    """Say in words what differs between two dictionaries of settings."""
    changes = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if a == b or a != a and b != b:
            continue
        a, b = (json.dumps(value) for value in (a, b))
        changes.append(f'{name} was {a}, is {b}' if max(len(a), len(b)) < 32
                       else name + ' changed')
    return changes
