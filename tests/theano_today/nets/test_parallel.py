"""Trainings side by side, with nets of a moment; test_jobs.py has those of kfkd."""
import functools
import os
import signal
import sys
import types

import theano_today  # noqa: F401, before the packages below
import joblib
import lasagne
import numpy as np
import pytest
import stepwise
from theano_today.nets import parallel
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
    handler = stepwise.Steps('steps', **kwargs)
    return (stepwise.net(outputs, handler, epochs), *stepwise.data(outputs), {'outputs': outputs})


def training(outputs, **kwargs):
    return parallel.Training('net {}'.format(outputs), 'net-{}.npz'.format(outputs),
                             functools.partial(prepare, outputs, **kwargs))


def take_over(outputs):
    """The net that a finished training has led to, or which is trained now."""
    net, X, y, settings = prepare(outputs)
    with Checkpoint('net-{}.npz'.format(outputs), net, settings):
        net.fit(X, y)
    return stepwise.results(net)


@pytest.fixture
def references(folder):
    """What the trainings of 1, 2, ... outputs lead to in this process."""
    found = {}
    for outputs in 1, 2:
        found[outputs] = take_over(outputs)
        os.remove('net-{}.npz'.format(outputs))
    os.remove('steps')
    return found


def test_what_becomes_of_a_training(references, monkeypatch, capfd):
    """One that ends well, one that is killed once, and all the ways to fail, in one call."""
    def refuse():
        raise FileError('a file is not there')

    trainings = [training(1), training(2, accidents={(2, 7): 'die_once'}),
                 training(3, accidents={(3, 4): 'die'}),
                 training(4, accidents={(4, 7): 'diverge'}),
                 training(5, accidents={(5, 4): 'divide'}),
                 parallel.Training('net 6', 'net-6.npz', refuse)]
    monkeypatch.setattr(parallel, 'STARTS', 2)
    failures = parallel.fit(trainings, n_jobs=2, every=0.01)
    one, two, killed, diverged, bug, refused = trainings
    assert list(failures) == [killed, diverged, bug, refused]

    for outputs in references:
        assert is_finished(trainings[outputs - 1].fname)
        computed = stepwise.steps('steps')
        assert take_over(outputs) == references[outputs]
        assert stepwise.steps('steps') == computed, 'it has been trained again'
    of_one = [step for outputs, step, _ in computed if outputs == 1]
    assert of_one == list(range(1, 21)), 'each step once, whatever happens to others'

    assert isinstance(failures[killed], parallel.TrainingError)
    assert 'its process was killed by signal 9 (SIGKILL)' in str(failures[killed])
    assert len({pid for outputs, _, pid in computed if outputs == 3}) == parallel.STARTS
    assert isinstance(failures[diverged], Diverged)
    assert (failures[diverged].epoch, failures[diverged].batch) == (2, 3)
    assert diverged.net.update_learning_rate.get_value() == np.float32(0.5)
    assert isinstance(failures[bug], RuntimeError)
    assert 'ZeroDivisionError' in str(failures[bug]) and 'stepwise.py' in str(failures[bug])
    assert str(failures[refused]) == 'a file is not there'
    for outputs in 4, 5:  # no second try
        assert len({pid for o, _, pid in computed if o == outputs}) == 1

    out, err = capfd.readouterr()
    assert out.count('net 2: # Its process was killed by signal 9') == 1
    assert out.count('starting it again, from its checkpoint') == 2
    assert 'trn loss' not in out, "nolearn's rows of several nets in one another"
    table = out[out.rindex('since the start'):]
    assert 'net 1' in table and '4 of 4' in table and 'finished' in table and 'died' in table
    assert not [name for name in os.listdir('.') if name.endswith('.partial')]


def test_a_machine_that_does_not_see_the_folder(references, monkeypatch, capfd):
    """The unfinished checkpoint goes there, the finished one and what was printed come back."""
    net, X, y, settings = prepare(2)
    begun = Checkpoint('net-2.npz', net, settings)
    net.on_batch_finished.append(
        lambda nn, history: begun.stop() if len(stepwise.steps('steps')) == 8 else None)
    with begun:
        net.fit(X, y)
    assert not begun.finished and not is_finished('net-2.npz')
    with open('net-2.npz', 'rb') as f:
        checkpoint = f.read()
    os.remove('net-2.npz')
    os.remove('steps')
    original = parallel._run
    monkeypatch.setattr(parallel, '_task', lambda ticket, payload: joblib.delayed(original)(
        dict(ticket, folder=os.path.join(os.sep, 'nowhere'), checkpoint=checkpoint), payload))
    steps = os.path.abspath('steps')
    training = parallel.Training('net 2', 'net-2.npz', lambda: prepare(2))
    assert parallel.fit([training], 1, verbose=0) == {}
    assert [step for _, step, _ in stepwise.steps(steps)] == list(range(9, 21))
    assert take_over(2) == references[2]
    out, _ = capfd.readouterr()
    assert 'net 2: # Going on from ' in out and 'since the start' not in out


def test_nothing_is_started_for_what_is_finished(folder, monkeypatch):
    take_over(1)
    monkeypatch.setattr(parallel, '_run', None)
    assert parallel.fit([training(1)], 2) == {}


def test_a_checkpoint_of_other_settings_is_an_error_before_any_training(folder):
    take_over(1)
    changed = parallel.Training('net 1', 'net-1.npz', lambda: (*prepare(1)[:3], {'outputs': 3}))
    with pytest.raises(FileError, match=r'net-1.npz is of a training with other settings: '
                                        r'outputs was 1, is 3. .*--fresh'):
        parallel.fit([training(2), changed], 2)
    assert not os.path.exists('net-2.npz') and len(stepwise.steps('steps')) == 20


def test_folders_of_killed_programs_are_removed_and_others_stay(folder):
    left = folder / 'trainings.abcdefgh.partial'
    left.mkdir()
    (left / 'owner').write_text('')
    with parallel._folder(str(folder)) as ours:
        assert not left.exists()
        with parallel._folder(str(folder)) as other:
            assert os.path.isdir(ours) and os.path.isdir(other)
    assert os.listdir(str(folder)) == []


def test_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(parallel.joblib, 'cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert [parallel._environment(jobs, 0)['OMP_NUM_THREADS'] for jobs in (1, 2, 3, 16)] == \
        ['8', '4', '2', '1']
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert parallel._environment(2, 0)['OMP_NUM_THREADS'] == '3'


@pytest.mark.parametrize('flags, gpus, devices', [
    ('device=cuda', 2, ['cuda0', 'cuda1', 'cuda0']), ('device=gpu', 3, ['cuda0', 'cuda1', 'cuda2']),
    ('device=cuda1', 4, ['cuda1'] * 3), ('device=cuda', 1, ['cuda'] * 3), ('', 4, [None] * 3)])
def test_one_gpu_after_the_other(monkeypatch, flags, gpus, devices):
    monkeypatch.setenv('THEANO_FLAGS', flags)
    monkeypatch.setenv('THEANORC', os.devnull)
    monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(
        cuda=types.SimpleNamespace(device_count=lambda: gpus)))
    found = []
    for slot in range(3):
        monkeypatch.setenv('THEANO_FLAGS', parallel._environment(2, slot)['THEANO_FLAGS'])
        found.append(parallel._user_flag('device'))
        monkeypatch.setenv('THEANO_FLAGS', flags)
    assert found == devices


def test_slots_are_taken_again():
    with parallel._slot() as a:
        with parallel._slot() as b:
            pass
        with parallel._slot() as c:
            assert (a, b, c) == (0, 1, 1)
    assert not parallel._slots


def test_how_processes_end():
    assert parallel._how(-signal.SIGSEGV) == 'was killed by signal 11 (SIGSEGV)'
    assert 'want of memory' in parallel._how(-signal.SIGKILL)
    assert parallel._how(3) == 'ended with status 3'


def test_messages_say_what_to_do():
    assert parallel._message(MemoryError()) == \
        'there is not enough memory (MemoryError); fewer jobs need less'
    assert 'PYTHONPATH' in parallel._message(ModuleNotFoundError("No module named 'kfkd'"))
    assert parallel._message(FileError('a file\nis bad')) == 'a file is bad'
    assert parallel._message(ValueError('no')) == 'ValueError: no'


def test_time_left_counts_those_that_wait():
    progress = parallel._Progress([], '.', 2, 1, '', 0)
    # Two run for 10 and 20 seconds more, two wait, of 40 seconds each: 10 + 40, 20 + 40.
    assert progress._all_left([10, 20, None, None], [40, 40]) == ', at most 0:01:00 left'
    assert progress._all_left([0, 20, None], [40, 40]) == ', at most 0:00:40 left'
    assert progress._all_left([0, 0], [40, 40]) == ''
    assert progress._all_left([None, None], []) == ''
