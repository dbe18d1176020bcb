"""Trainings side by side, with nets of a moment; test_jobs.py has those of kfkd."""
import contextlib
import functools
import os
import socket
import subprocess
import sys
import types

import theano_today  # noqa: F401, before the packages below
import lasagne
import numpy as np
import pytest
import stepwise
from theano_today.nets import cluster, parallel, progress, worker
from theano_today.nets.checkpoint import Checkpoint, Diverged, is_finished
from theano_today.nets.files import FileError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # As many threads as this process has, for the same bits.
    monkeypatch.setenv('OMP_NUM_THREADS', os.environ.get('OMP_NUM_THREADS', str(os.cpu_count())))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(outputs, epochs=4, **kwargs):
    lasagne.random.set_rng(np.random.RandomState(outputs))
    handler = stepwise.Steps(os.path.abspath('steps'), **kwargs)
    return (stepwise.net(outputs, handler, epochs), *stepwise.data(outputs), {'outputs': outputs})


def training(outputs, every=300., **kwargs):
    return parallel.Training(f'net {outputs}', f'net-{outputs}.npz',
                             functools.partial(prepare, outputs, **kwargs), every)


def take_over(outputs):
    """The net that a finished training has led to, or which is trained now."""
    return stepwise.results(training(outputs).fit())


@pytest.fixture
def references(folder):
    """What the trainings of 1, 2, ... outputs lead to in this process."""
    found = {}
    for outputs in 1, 2:
        found[outputs] = take_over(outputs)
        os.remove(f'net-{outputs}.npz')
    os.remove('steps')
    return found


def test_what_becomes_of_a_training(references, capfd):
    """One that ends well, one that is killed once, and all the ways to fail, in one call."""
    def refuse():
        raise FileError('a file is not there')

    trainings = [training(1), training(2, 0.01, accidents={(2, 7): 'die_once'}),
                 training(3, accidents={(3, 4): 'die'}),
                 training(4, accidents={(4, 7): 'diverge'}),
                 training(5, accidents={(5, 4): 'divide'}),
                 parallel.Training('net 6', 'net-6.npz', refuse)]
    one, two, killed, diverged, bug, refused = trainings
    with socket.socket() as other:  # another Dask is there already, as with two programs at a time
        with contextlib.suppress(OSError):
            other.bind(('', 8787))
            other.listen()
        assert parallel.side_by_side(trainings, 2) == trainings
    assert one.error is None and two.error is None

    for outputs in references:
        assert is_finished(trainings[outputs - 1].fname)
        computed = stepwise.steps('steps')
        assert take_over(outputs) == references[outputs]
        assert stepwise.steps('steps') == computed, 'it has been trained again'
    of_one = [step for outputs, step, _ in computed if outputs == 1]
    assert of_one == list(range(1, 21)), 'each step once, whatever happens to others'

    assert isinstance(killed.error, parallel.TrainingError)
    assert 'its worker has died again and again' in str(killed.error)
    assert len({pid for outputs, _, pid in computed if outputs == 3}) > 2
    assert isinstance(diverged.error, Diverged)
    assert (diverged.error.epoch, diverged.error.batch) == (2, 3)
    with pytest.raises(Diverged):
        diverged.fit()
    assert diverged.net.update_learning_rate.get_value() == np.float32(0.5)
    assert isinstance(bug.error, ZeroDivisionError)
    assert str(refused.error) == 'a file is not there'
    for outputs in 4, 5:  # no second try
        assert len({pid for o, _, pid in computed if o == outputs}) == 1

    out, err = capfd.readouterr()
    assert out.count('net 2: # Its worker has died; it goes on from its checkpoint.') == 1
    assert 'trn loss' not in out, "nolearn's rows of several nets in one another"
    table = out[out.rindex('since the start'):]
    assert 'net 1' in table and '4 of 4' in table and 'finished' in table and 'failed' in table
    assert 'distributed' not in err, "Dask's own log"
    assert not [name for name in os.listdir('.') if name.endswith('.partial')]


def test_failures_come_last(folder, monkeypatch):
    trainings = [training(1), training(2)]
    trainings[0].error = FileError('no')
    monkeypatch.setattr(parallel, 'is_finished', lambda fname: True)
    assert parallel.side_by_side(trainings, 2) == trainings[::-1]
    assert parallel.side_by_side(trainings, 1) == trainings


def test_a_machine_that_does_not_see_the_folder(folder, references, monkeypatch, capfd):
    """The unfinished checkpoint goes there, the finished one and what was printed come back."""
    net, X, y, settings = prepare(2)
    begun = Checkpoint('net-2.npz', net, settings)
    net.on_batch_finished.append(
        lambda nn, history: begun.stop() if len(stepwise.steps('steps')) == 8 else None)
    with begun:
        net.fit(X, y)
    assert not begun.finished and not is_finished('net-2.npz')
    os.remove('steps')
    capfd.readouterr()
    steps, submit = os.path.abspath('steps'), parallel._submit
    monkeypatch.setattr(parallel, '_submit', lambda *args: submit(*args[:-1], '/not/there'))
    assert parallel.side_by_side([training(2)], 2, verbose=0)[0].error is None
    out, _ = capfd.readouterr()
    assert 'net 2: # Going on from ' in out and 'since the start' not in out
    assert str(folder) not in out, 'it is another file'
    assert [step for _, step, _ in stepwise.steps(steps)] == list(range(9, 21))
    assert take_over(2) == references[2]


def test_nothing_is_started_for_what_is_finished(folder, monkeypatch):
    take_over(1)
    monkeypatch.setattr(cluster, 'client', None)
    one = training(1)
    assert parallel.side_by_side([one], 2) == [one] and one.error is None


def test_a_checkpoint_of_other_settings_is_an_error_before_any_training(folder):
    take_over(1)
    changed = parallel.Training('net 1', 'net-1.npz', lambda: (*prepare(1)[:3], {'outputs': 3}))
    with pytest.raises(FileError, match=r'net-1.npz is of a training with other settings: '
                                        r'outputs was 1, is 3.'):
        parallel.side_by_side([training(2), changed], 2)
    assert not os.path.exists('net-2.npz') and len(stepwise.steps('steps')) == 20


PROGRAM = '''
import os
import stepwise
from theano_today.nets.parallel import Training, side_by_side

class Note:
    def __init__(self):
        self.batches = 0

    def __call__(self, nn, history):
        self.batches += 1

def prepare(outputs):
    net = stepwise.net(outputs, stepwise.Steps(os.path.abspath('steps')))
    net.on_batch_finished.append(Note())
    return (net, *stepwise.data(outputs), {})

print('begun')
trainings = [Training(str(n), 'net-{}.npz'.format(n), lambda n=n: prepare(n)) for n in (1, 2)]
for training in side_by_side(trainings, 2, verbose=0):
    print(training.fit().on_batch_finished[-1].batches)
'''


def test_a_program_without_a_guard_and_with_a_class_of_its_own(folder):
    """Workers can import neither, and do not run the program once more."""
    (folder / 'program.py').write_text(PROGRAM)
    done = subprocess.run([sys.executable, 'program.py'], stdout=subprocess.PIPE, text=True,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert [line for line in done.stdout.splitlines() if line[0] != '#'] == ['begun', '20', '20']
    assert os.getpid() not in {pid for _, _, pid in stepwise.steps('steps')}
    assert len(stepwise.steps('steps')) == 40


@pytest.mark.parametrize('jobs, most, workers', [(2, 6, 2), (-1, 6, 4), (-1, 3, 3), (8, 6, 6)])
def test_a_worker_for_each_core_or_training(monkeypatch, jobs, most, workers):
    monkeypatch.setattr('dask.system.CPU_COUNT', 4)
    monkeypatch.setattr(cluster, '_local_client',
                        lambda environment, workers: contextlib.nullcontext(workers))
    with cluster.client(jobs, most) as (found, at_a_time):
        assert len(found) == at_a_time == workers


def test_share_of_the_threads(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert [cluster._environments(jobs, 8)[0]['OMP_NUM_THREADS'] for jobs in (1, 2, 3, 16)] == \
        ['8', '4', '2', '1']
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert cluster._environments(2, 8)[0] == {}


@pytest.mark.parametrize('flags, visible, gpus, devices', [
    ('device=cuda', None, 2, ['0', '1', '0']), ('device=gpu', None, 3, ['0', '1', '2']),
    ('device=cuda', '5,7', 2, ['5', '7', '5']), ('device=cuda1', None, 4, [None] * 3),
    ('device=cuda', None, 1, [None] * 3), ('', None, 4, [None] * 3)])
def test_one_gpu_after_the_other(monkeypatch, flags, visible, gpus, devices):
    monkeypatch.setenv('THEANO_FLAGS', flags)
    monkeypatch.setenv('THEANORC', os.devnull)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(
        cuda=types.SimpleNamespace(device_count=lambda: gpus)))
    assert [of_one.get('CUDA_VISIBLE_DEVICES') for of_one in cluster._environments(3, 8)[1]] == \
        devices


def test_messages_say_what_to_do():
    assert str(parallel._error(MemoryError())) == \
        'there is not enough memory (MemoryError); fewer jobs need less'
    assert 'PYTHONPATH' in str(parallel._error(ModuleNotFoundError("No module named 'kfkd'")))
    for error in FileError('a file is bad'), ValueError('no'):
        assert parallel._error(error) is error


def test_what_is_printed_is_handed_on_by_line():
    lines = []
    with contextlib.redirect_stdout(worker._Lines(lines.append)):
        print('one', 'two')
        print('three', end='')
        print(' four\n\nfive')
    assert lines == ['one two', 'three four', 'five']


def test_time_left_counts_those_that_wait():
    # Two run for 10 and 20 seconds more, two wait, of 40 seconds each: 10 + 40, 20 + 40.
    assert progress.time_left([10, 20, None, None], [40, 40], 2) == 60
    assert progress.time_left([0, 20, None], [40, 40], 2) == 40
    assert progress.time_left([0, 0], [40, 40], 2) is None
    assert progress.time_left([None, None], [], 2) is None
