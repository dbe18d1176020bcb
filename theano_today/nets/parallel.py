"""Several nets of nolearn that train side by side, each in a process of its own.

    failures = fit([Training('left', 'left.npz', prepare_left),
                    Training('right', 'right.npz', prepare_right)], n_jobs=2)

Each training ends in a finished checkpoint (`theano_today.nets.checkpoint`), from which the net takes
its result: ``with Checkpoint('left.npz', net, settings): net.fit(X, y)`` gives the weights and the
history of a training in this very process, bit for bit at the same number of threads, and does not
train.

joblib hands the trainings out: to threads of this process, or to what
``joblib.parallel_config(backend='dask')`` or another registered backend has.  Wherever a training
arrives, it gets a process: threads and Theano's device are settings of a process, and one that is
killed takes no other with it.

- The net, its data and its weights travel through the standard input of that process, which then
  stays open: when it ends, who has started the process wants no more of it, or is dead.
- What it prints goes to a log, its state to small files of JSON.  They lie in a folder beside the
  checkpoints; on a machine that does not see it, in a temporary one, and the checkpoint comes back
  with the result.
"""
import contextlib
import faulthandler
import glob
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future
from datetime import timedelta

import joblib
import lasagne
import numpy as np
from joblib.externals import cloudpickle
from joblib.parallel import get_active_backend
from nolearn.lasagne.handlers import PrintLayerInfo, PrintLog
from tabulate import tabulate
from theano.compile import SharedVariable

from .. import _user_flag, cuda
from .checkpoint import (
    SIGNALS, Checkpoint, Diverged, Stopped, _as_list, _handling, check_settings, is_finished)
from .files import SUFFIX, FileError, _lock, replacing

__all__ = ['Training', 'TrainingError', 'fit', 'hms']

STARTS = 3      # how often a process that dies is started at most
TABLE = 30.     # seconds from one table to the next
POLL = 0.1      # seconds from one look at a process or a log to the next


class TrainingError(FileError):
    """A training has failed or its process has died; the message says how and what to do."""


class Training:
    """One of several trainings.

    Parameters
    ----------
    title : str
        What messages call it.
    fname : str
        Its checkpoint.
    prepare : callable
        Returns ``(net, X, y, settings)``: the net as it is before its training, not initialized;
        what its `fit` takes; the settings of its `Checkpoint`.  It is called when the training's
        turn comes, in another thread, so that the data of few trainings are in memory at a time.
    pretrained : NeuralNet, optional
        The net takes its weights over (`load_params_from`).

    Attributes
    ----------
    net : NeuralNet
        As `prepare` has returned it.  Where the training has diverged, its shared variables (the
        learning rate) have the values of that moment.
    """

    def __init__(self, title, fname, prepare, pretrained=None):
        self.title, self.fname = title, os.path.abspath(fname)
        self.prepare, self.pretrained = prepare, pretrained
        self.net = None


def fit(trainings, n_jobs=-1, every=300., scale=1., unit='', verbose=1):
    """Train the nets that have no finished checkpoint, `n_jobs` at a time.

    Twice a minute a table tells how far they are.

    Parameters
    ----------
    trainings : list of Training
    n_jobs : int
        As in joblib: -1 is one for each core.  A cluster of Dask takes as many as it has threads.
    every : float
        Seconds from one checkpoint to the next.
    scale, unit : float, str
        Of the errors in the table, the square roots of the losses: 48, 'pixels' for faces.
    verbose : int
        0: no table.

    Returns
    -------
    dict of Training to Exception
        Those that did not come to their end, in the order of `trainings`, each with its cause:
        `Diverged`, `TrainingError`, what `prepare` has raised, or RuntimeError with the traceback
        of the process.  The others are finished.

    Raises
    ------
    CheckpointError
        If a checkpoint is of other settings, before anything is trained.
    Stopped
        When told to (Ctrl-C, SIGTERM, SIGHUP), after the trainings of this machine have written
        their checkpoints.

    Notes
    -----
    Each process has its share of the cores, unless OMP_NUM_THREADS is set where it is started, and
    with ``device=cuda`` one GPU after the other, unless a number is given.
    """
    backend, _ = get_active_backend(prefer='threads')
    jobs = min(backend.effective_n_jobs(n_jobs), len(trainings))
    here = getattr(backend, 'supports_sharedmem', False)  # threads of this process
    parallel = joblib.Parallel(
        n_jobs, prefer='threads', batch_size=1, pre_dispatch='n_jobs',
        return_as='generator_unordered' if backend.supports_return_generator else 'list')
    failures, signums = {}, []
    for training in trainings:  # now, not when the others have been trained for hours
        if os.path.exists(training.fname):
            check_settings(training.fname, training.prepare()[-1])

    def tasks(folder):
        for number, training in enumerate(trainings):
            if signums:
                return
            if is_finished(training.fname):
                continue
            ticket = dict(number=number, jobs=jobs, every=every, folder=folder,
                          fname=training.fname, checkpoint=None)
            try:
                payload = _pack(training)
                if not here:
                    with contextlib.suppress(FileNotFoundError), open(training.fname, 'rb') as f:
                        ticket['checkpoint'] = f.read()
            except Exception as error:  # others go on
                failures[training] = error
                continue
            yield _task(ticket, payload)

    def stop(signum, frame):
        again = bool(signums)
        signums.append(signum)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, 'running'))
        if again:
            for process in _processes_of(folder):
                process.kill()
        if again or not here:
            raise Stopped(signum)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print('\n# Stopping each training after its batch. Once more stops at once and loses '
                  'what the checkpoints do not have.', file=sys.stderr, flush=True)

    with _folder(os.path.dirname(trainings[0].fname)) as folder, \
            _Progress(trainings, folder, jobs, scale, unit, verbose, lambda: _notice_failures(
                parallel)) as progress, \
            _handling(stop, SIGNALS):
        for result in parallel(tasks(folder)):
            training = trainings[result['number']]
            if result['checkpoint'] is not None:
                with replacing(training.fname) as f:
                    f.write(result['checkpoint'])
            progress.done(result)
            if result['state'] not in ('finished', 'stopped'):
                failures[training] = _error(result, training)
    if signums:
        raise Stopped(signums[0])
    return {training: failures[training] for training in trainings if training in failures}


def _pack(training):
    """Everything the process of a training needs, as bytes, which Dask hands on as they are.

    cloudpickle takes along what is defined in the main program or a notebook.
    """
    training.net, X, y, settings = training.prepare()
    return cloudpickle.dumps((
        training.net, X, y, settings, training.pretrained,
        lasagne.random.get_rng().get_state(), np.random.get_state()), 5)


def _error(result, training):
    """The exception that tells what became of a training."""
    state = result['state']
    if state == 'diverged':
        for name, value in result['shared'].items():
            getattr(training.net, name).set_value(np.float32(value))
        return Diverged(result['epoch'], result['batch'], result['loss'])
    if state == 'died':
        return TrainingError('its process {}, {} times'.format(result['how'], STARTS))
    if result['expected']:
        return TrainingError(result['message'])
    return RuntimeError('{}: {}\n{}'.format(
        training.title, result['message'], result['traceback']))


class _Run:
    """What unpickles as the result of `_run`."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return _run, self.args


def _task(ticket, payload):
    """A task for joblib.  Bytes and Python's own functions: Dask's scheduler unpickles it, too."""
    return joblib.delayed(pickle.loads)(pickle.dumps(_Run(ticket, payload), 5))


def _notice_failures(parallel):
    """Let `parallel` raise what has become of tasks of Dask that failed around their function.

    joblib 1.5 is not told of a task that Dask has given up, and would wait for ever.
    """
    for task in list(getattr(parallel, '_jobs_set', ())):
        future = task.job
        if isinstance(future, Future) and future.done() and future.exception() is not None:
            task._register_outcome(dict(result=future.exception(), status='Error'))


# ---------------------------------------------------------------------- the folder of a call of fit

@contextlib.contextmanager
def _folder(parent):
    """A folder for logs and messages.  A file `running` in it says that the trainings are wanted.

    What killed programs have left is removed.
    """
    pattern = os.path.join(glob.escape(parent), 'trainings.*' + SUFFIX)
    for path in glob.glob(pattern):
        with contextlib.suppress(OSError), open(os.path.join(path, 'owner'), 'rb') as f:
            if _lock(f.fileno()):  # nobody has it any more
                shutil.rmtree(path)
    folder = tempfile.mkdtemp(SUFFIX, 'trainings.', parent)
    try:
        with open(os.path.join(folder, 'owner'), 'wb') as owner:
            _lock(owner.fileno())
            with open(os.path.join(folder, 'running'), 'wb'):
                pass
            yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, 'running'))
        while _processes_of(folder):  # each stops after its batch
            time.sleep(POLL)
        shutil.rmtree(folder, ignore_errors=True)


def _path(folder, number, what):
    return os.path.join(folder, '{}.{}'.format(number, what))


def _write_json(fname, content):
    """Write a small file at once: who reads it never sees a half."""
    with open(fname + SUFFIX, 'w') as f:
        json.dump(content, f)
    os.replace(fname + SUFFIX, fname)


def _read_json(fname):
    try:
        with open(fname) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


# ----------------------------------------------------------------- where joblib has a training done

_processes = {}  # of this process, by folder and number of the training
_slots = set()   # numbers of those that run, counted from 0, each as small as can be
_slots_lock = threading.Lock()


def _processes_of(folder):
    return [process for (where, _), process in list(_processes.items()) if where == folder]


@contextlib.contextmanager
def _slot():
    with _slots_lock:
        slot = min(set(range(len(_slots) + 1)) - _slots)
        _slots.add(slot)
    try:
        yield slot
    finally:
        with _slots_lock:
            _slots.remove(slot)


def _run(ticket, payload):
    """Train in a process; start it again when it dies.  Return what became of it, as a dictionary.

    `ticket` says which training this is and where its files are, `payload` is what `_pack` has
    returned.
    """
    number = ticket['number']
    running = os.path.join(ticket['folder'], 'running')
    with contextlib.ExitStack() as stack:
        here = os.path.isdir(ticket['folder'])
        if not here:  # another machine
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            ticket = dict(ticket, folder=folder, fname=os.path.join(
                folder, os.path.basename(ticket['fname'])))
            if ticket['checkpoint'] is not None:
                with open(ticket['fname'], 'wb') as f:
                    f.write(ticket['checkpoint'])
        slot = stack.enter_context(_slot())
        lost = _read_json(_path(ticket['folder'], number, 'starts')) or 0  # by workers that died
        _write_json(_path(ticket['folder'], number, 'starts'), lost + 1)
        log = stack.enter_context(open(_path(ticket['folder'], number, 'log'), 'a+b'))
        if lost:
            _say(log, '# Its worker has died; starting it again on {}, from its checkpoint.'.format(
                socket.gethostname()))

        def unwanted():
            return here and not os.path.exists(running) or _cancelled()

        # Dask gives a task up with its fourth worker, and joblib 1.5 then waits for ever.
        result = dict(state='stopped') if lost < STARTS else dict(
            state='died', how='has lost its worker')
        for start in range(lost, STARTS):
            if unwanted():
                break
            code = _run_once(ticket, payload, slot, log, unwanted)
            result = _read_json(_path(ticket['folder'], number, 'result')) or dict(
                state='died', how=_how(code))
            if result['state'] not in ('died', 'stopped') or unwanted():
                break
            if result['state'] == 'stopped':  # not by us
                result = dict(state='died', how='was stopped by ' + _name(result['signum']))
            _say(log, '# Its process {}{}.'.format(
                result['how'], '; starting it again, from its checkpoint' * (start < STARTS - 1)))
        if unwanted() and result['state'] != 'finished':
            result = dict(state='stopped')

        result.update(number=number, checkpoint=None, log=None,
                      progress=_read_json(_path(ticket['folder'], number, 'progress')))
        if not here:
            log.seek(0)
            result['log'] = log.read().decode(errors='replace')
            with contextlib.suppress(FileNotFoundError), open(ticket['fname'], 'rb') as f:
                result['checkpoint'] = f.read()
        return result


def _say(log, line):
    log.write((line + '\n').encode())
    log.flush()


def _run_once(ticket, payload, slot, log, unwanted):
    """Start a process and wait for its end; return its exit status."""
    process = subprocess.Popen(
        [sys.executable, '-c', 'from theano_today.nets import parallel; parallel.main()'],
        stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(ticket['jobs'], slot))
    _processes[ticket['folder'], ticket['number']] = process
    try:
        with contextlib.suppress(BrokenPipeError):  # it has died; its status says how
            pickle.dump(dict(ticket, checkpoint=None), process.stdin)
            process.stdin.write(payload)
            process.stdin.flush()
        while process.poll() is None:
            if unwanted() and not process.stdin.closed:
                process.stdin.close()
            time.sleep(POLL)
        return process.returncode
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        del _processes[ticket['folder'], ticket['number']]


def _environment(jobs, slot):
    """What a process sees: its share of the threads, its GPU, the modules of this process."""
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(os.path.abspath(path or '.') for path in sys.path)
    environment.setdefault('OMP_NUM_THREADS', str(max(joblib.cpu_count() // jobs, 1)))
    flag = _user_flag('device')
    if flag in ('cuda', 'gpu') and cuda.asked_for(flag):
        import torch
        gpus = torch.cuda.device_count()
        if gpus > 1:  # the last setting of a flag wins
            environment['THEANO_FLAGS'] = '{},device=cuda{}'.format(
                environment.get('THEANO_FLAGS', ''), slot % gpus).lstrip(',')
    return environment


def _cancelled():
    """Whether this thread works for a client of Dask that wants no more of it, or is gone."""
    if 'distributed' not in sys.modules:
        return False
    from distributed import get_worker
    from distributed.utils import thread_state
    try:
        task = get_worker().state.tasks.get(thread_state.key)
    except (AttributeError, ValueError):  # not a thread of Dask
        return False
    return task is None or task.state == 'cancelled'


def _name(signum):
    try:
        return 'signal {} ({})'.format(signum, signal.Signals(signum).name)
    except ValueError:
        return 'signal {}'.format(signum)


def _how(code):
    """Say how a process ended that has left no word."""
    if code >= 0:
        return 'ended with status {}'.format(code)
    return 'was killed by {}{}'.format(
        _name(-code), ', perhaps for want of memory' if -code == signal.SIGKILL else '')


# ------------------------------------------------------------------------ the process of a training

def main():
    """Train what comes through the standard input; see `_run_once`."""
    faulthandler.enable()  # a segmentation fault leaves a traceback in the log
    pipe = sys.stdin.buffer
    ticket = pickle.load(pipe)
    folder, number = ticket['folder'], ticket['number']
    with contextlib.suppress(OSError):
        os.remove(_path(folder, number, 'result'))
    try:
        # The process before this one may still write its last checkpoint, if not its end but that
        # of a worker of Dask has led to this one.
        with open(_path(folder, number, 'lock'), 'wb') as lock:
            _wait_for(lock)
            result = _train(ticket, pipe)
    except BaseException as error:
        result = dict(
            state='stopped' if isinstance(error, KeyboardInterrupt) else 'failed',
            signum=getattr(error, 'signum', signal.SIGINT),
            message=_message(error), traceback=traceback.format_exc(),
            expected=isinstance(error, (FileError, MemoryError, OSError, ImportError)))
        if result['state'] == 'failed':
            print(result['message'])
    sys.stdout.flush()
    with contextlib.suppress(FileNotFoundError):  # nobody wants it any more
        _write_json(_path(folder, number, 'result'), result)


def _wait_for(f):
    try:
        import fcntl
        fcntl.flock(f, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows; a file system without locks
        pass


def _message(error):
    message = ' '.join(str(error).split())
    if isinstance(error, MemoryError):
        return 'there is not enough memory ({}); fewer jobs need less'.format(
            message or 'MemoryError')
    if isinstance(error, ImportError):
        return '{} on {}: the packages and the folder of the program must be there, in ' \
            'PYTHONPATH'.format(message, socket.gethostname())
    return message if isinstance(error, FileError) else '{}: {}'.format(
        type(error).__name__, message)


def _train(ticket, pipe):
    net, X, y, settings, pretrained, rng, np_rng = pickle.load(pipe)
    np.random.set_state(np_rng)
    lasagne.random.set_rng(np.random.RandomState())
    lasagne.random.get_rng().set_state(rng)

    # A row an epoch of several trainings at a time tells nobody anything: there is a table.
    net.verbose = 0
    for printer in PrintLog, PrintLayerInfo:
        printer.__call__ = _silent(printer.__call__)
    progress = _Reporter(_path(ticket['folder'], ticket['number'], 'progress'), net.max_epochs)
    # A function, so that checkpoints do not count it among the handlers that have a state.
    net.on_epoch_finished = [
        lambda nn, history: progress(history)] + _as_list(net.on_epoch_finished)

    if pretrained is not None:
        net.load_params_from(pretrained)
    checkpoint = Checkpoint(ticket['fname'], net, settings, ticket['every'])
    threading.Thread(target=_watch, args=(pipe, checkpoint), daemon=True).start()
    try:
        with checkpoint:
            net.fit(X, y)
    except Diverged as error:
        print(error)
        return dict(state='diverged', epoch=error.epoch, batch=error.batch, loss=float(error.loss),
                    shared={name: float(value.get_value()) for name, value in vars(net).items()
                            if isinstance(value, SharedVariable) and value.ndim == 0})
    if not checkpoint.finished:
        return dict(state='stopped', signum=checkpoint.signum or signal.SIGINT)
    progress(net.train_history_, last=True)
    return dict(state='finished')


def _silent(function):
    def silent(*args, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args, **kwargs)
    return silent


def _watch(pipe, checkpoint):
    """Stop the training when the other end of the pipe is closed, by intention or by death."""
    os.read(pipe.fileno(), 1)  # not `pipe.read`, whose lock Python would wait for at its end
    if checkpoint.begun:
        checkpoint.stop()
    else:  # it may be compiling, for a minute: there is nothing to lose
        os.kill(os.getpid(), signal.SIGTERM)


class _Reporter:
    """Write down how far a training is, once a second at most."""

    def __init__(self, fname, epochs):
        self.fname, self.epochs = fname, epochs
        self.due = 0

    def __call__(self, history, last=False):
        if time.monotonic() < self.due and not last:
            return
        self.due = time.monotonic() + 1
        # The first epoch of a process takes long: Theano compiles in it.
        duration = float(np.median([info['dur'] for info in history[-9:]]))
        best = min(history, key=lambda info: (info['valid_loss'] != info['valid_loss'],
                                              info['valid_loss']))
        epoch = history[-1]['epoch']
        with contextlib.suppress(OSError):  # a full disk, or nobody wants it any more
            _write_json(self.fname, dict(
                epoch=epoch, epochs=self.epochs, best_epoch=best['epoch'],
                train_loss=float(history[-1]['train_loss']),
                valid_loss=float(history[-1]['valid_loss']), best_loss=float(best['valid_loss']),
                all=duration * self.epochs,
                left=0 if last else duration * max(self.epochs - epoch, 0)))


# --------------------------------------------------------------------------------------- the table

class _Progress:
    """Prints how far the trainings are, and what they print themselves."""

    def __init__(self, trainings, folder, jobs, scale, unit, verbose, each_time=lambda: None):
        self.trainings, self.folder, self.jobs, self.each_time = trainings, folder, jobs, each_time
        self.scale, self.unit, self.verbose = scale, unit, verbose
        self.results = {number: dict(state='finished', progress=None)
                        for number, training in enumerate(trainings) if is_finished(training.fname)}
        self.read = dict.fromkeys(range(len(trainings)), 0)  # bytes of each log
        self.file = sys.stdout
        self.start = time.monotonic()
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self.ended.set()
        self.thread.join()
        with self.lock:
            self._hand_on()
            self._print_table()

    def done(self, result):
        """Note the result of a training."""
        with self.lock:
            self.results[result['number']] = result
            self._hand_on()
            for line in (result['log'] or '').splitlines():
                self._print_line(result['number'], line)

    def _watch(self):
        due = self.start + TABLE
        while not self.ended.wait(POLL):
            self.each_time()
            with self.lock:
                self._hand_on()
                if time.monotonic() >= due:
                    due += TABLE
                    self._print_table()

    def _hand_on(self):
        """Print the new lines of the logs."""
        for number in self.read:
            with contextlib.suppress(FileNotFoundError), \
                    open(_path(self.folder, number, 'log'), 'rb') as f:
                f.seek(self.read[number])
                whole, newline, _ = f.read().rpartition(b'\n')
                self.read[number] += len(whole + newline)
                for line in whole.decode(errors='replace').splitlines():
                    self._print_line(number, line)

    def _print_line(self, number, line):
        if line.strip():
            print('{}: {}'.format(self.trainings[number].title, line), file=self.file, flush=True)

    def _print_table(self):
        if not self.verbose:
            return
        rows, lefts, alls = [], [], []
        for number, training in enumerate(self.trainings):
            result = self.results.get(number)
            progress = result['progress'] if result else _read_json(
                _path(self.folder, number, 'progress'))
            if result:
                state, left = result['state'], 0
            elif progress:
                state, left = hms(progress['left']), progress['left']
            else:
                started = os.path.exists(_path(self.folder, number, 'log'))
                state, left = 'starts' if started else 'waits', None
            rows.append([training.title] + self._numbers(progress) + [state])
            lefts.append(left)
            alls += [progress['all']] if progress else []
        print('# {} since the start{}'.format(
            hms(time.monotonic() - self.start), self._all_left(lefts, alls)), file=self.file)
        unit = self.unit and ' ({})'.format(self.unit)
        print(tabulate(rows, [
            'training', 'epoch', 'train RMSE' + unit, 'valid RMSE' + unit, 'best', 'at epoch',
            'time left'], disable_numparse=True, colalign=('left',) + ('right',) * 6),
            file=self.file, flush=True)

    def _numbers(self, progress):
        if not progress:
            return [''] * 5
        errors = ['{:.3f}'.format(self.scale * progress[name] ** 0.5)
                  for name in ('train_loss', 'valid_loss', 'best_loss')]
        return ['{epoch} of {epochs}'.format(**progress)] + errors + [progress['best_epoch']]

    def _all_left(self, lefts, alls):
        """The time until the last one ends, if those that wait take as long as the others."""
        if not alls or not any(left is None or left for left in lefts):
            return ''
        lanes = sorted(left for left in lefts if left) or [0]
        lanes = ([0] * self.jobs + lanes)[-max(self.jobs, len(lanes)):]
        for _ in range(lefts.count(None)):
            lanes = sorted(lanes[1:] + [lanes[0] + sum(alls) / len(alls)])
        return ', at most {} left'.format(hms(lanes[-1]))


def hms(seconds):
    """Write seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=int(round(seconds))))
