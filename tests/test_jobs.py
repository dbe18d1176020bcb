"""kfkd.py's specialists with JOBS other than 1: side by side, over Dask, stopped and killed."""
import os
import pickle
import signal
import subprocess
import sys
import time

import kfkd
import numpy as np
import pytest
import stepwise
import yaml
from beyond.runs import compare
from theano_today.nets import parallel, progress, worker

# A net of a moment.
NET = yaml.safe_load("""
layers:
- {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
- {name: pool, type: MaxPool2DLayer, pool_size: [8, 8]}
- {name: dropout, type: DropoutLayer, p: 0.3}
- {name: hidden, type: DenseLayer, num_units: 10}
- {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
""")
# As many in every process as in this one, for the same bits.
THREADS = os.environ.get('OMP_NUM_THREADS', str(os.cpu_count()))
NOSE, EYEBROWS = kfkd.SPECIALIST_SETTINGS[1], kfkd.SPECIALIST_SETTINGS[5]


def constants(folder):
    return dict(
        FTRAIN=str(folder / 'training.csv'), FTEST=str(folder / 'test.csv'),
        FLOOKUP=str(folder / 'IdLookupTable.csv'), FTESTLABELS=None, RUNS=None, NET=NET,
        SPECIALIST_SETTINGS=[NOSE, EYEBROWS], MAX_EPOCHS=2, SPECIALIST_SAMPLES=600, BATCH_SIZE=16,
        CHECKPOINT_MINUTES=60)


@pytest.fixture
def work(faces, tmp_path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', THREADS)
    for name, value in constants(faces).items():
        monkeypatch.setattr(kfkd, name, value)
    monkeypatch.setattr(kfkd, 'net', kfkd.net)  # `fit` puts its own there
    monkeypatch.chdir(tmp_path)
    return tmp_path


build_net = kfkd.build_net


def with_steps(monkeypatch, **kwargs):
    """Let kfkd build nets that write down their steps."""
    def build(c=None):
        model = build_net(c)
        model.on_batch_finished = [stepwise.Steps(os.path.abspath('steps'), **kwargs)]
        return model

    monkeypatch.setattr(kfkd, 'build_net', build)


def nets():
    with open('net-specialists.pickle', 'rb') as f:
        return {cols: stepwise.results(model) for cols, model in pickle.load(f).items()}


@pytest.fixture
def reference(work, monkeypatch):
    """What two specialists lead to in this process: the nose in 5 * 6, eyebrows in 20 * 2 steps."""
    kfkd.fit()
    with_steps(monkeypatch)
    kfkd.fit_specialists('net.pickle')
    found = nets()
    assert each_once() == {2: 30, 8: 40}
    os.remove('net-specialists.pickle')
    os.remove('steps')
    return found


def each_once():
    """{number of outputs: steps}, when each step has been computed once."""
    computed = [(outputs, step) for outputs, step, _ in stepwise.steps('steps')]
    counts = {outputs: computed.count((outputs, step)) and max(
        step for o, step in computed if o == outputs) for outputs, step in computed}
    assert sorted(computed) == sorted(
        (outputs, step) for outputs, last in counts.items() for step in range(1, last + 1))
    return counts


# ---------------------------------------------------------------------------------- the same bits

def content(thing, path='', found=None):
    """Everything that a pickled net holds, by its place, but for times."""
    found = {} if found is None else found
    if isinstance(thing, np.ndarray):
        found[path] = thing.dtype.str, thing.shape, thing.strides, thing.tobytes()
    elif isinstance(thing, dict):
        for key, value in thing.items():
            if key not in ('dur', 'printed'):
                content(value, f'{path}[{key!r}]', found)
    elif isinstance(thing, (list, tuple)):
        for number, value in enumerate(thing):
            content(value, f'{path}[{number}]', found)
    elif isinstance(thing, np.random.RandomState):
        content(thing.get_state(), path, found)
    elif hasattr(thing, 'get_value'):
        found[path] = repr(thing.get_value())
    elif isinstance(thing, (type, type(content))) or not hasattr(thing, '__dict__'):
        found[path] = repr(thing)
    elif type(thing).__name__ == 'method':
        content(thing.__self__, path + '.' + thing.__name__, found)
    else:
        content(vars(thing), f'{path}.{type(thing).__name__}', found)
    return found


def test_two_at_a_time_lead_to_the_bits_of_one(work, monkeypatch, capfd):
    for name, value in dict(AUGMENT='faces', MONITOR=True, STANDARDIZE=True, RUNS='runs',
                            TENSORBOARD='tensorboard').items():
        monkeypatch.setattr(kfkd, name, value)
    assert kfkd.main(['fit']) == 0
    found, printed = [], []
    for jobs in 1, 2:
        monkeypatch.setattr(kfkd, 'JOBS', jobs)
        assert kfkd.main(['fit_specialists']) == 0
        with open('net-specialists.pickle', 'rb') as f:
            found.append(content(pickle.load(f)))
        printed.append(capfd.readouterr().out)
        assert not list(work.glob('checkpoint*')) + list(work.glob('*.partial'))
    assert len(found[0]) > 200
    assert found[0] == found[1]
    assert 'since the start' not in printed[0]
    for name in 'specialist-1', 'specialist-2':
        assert len(list(work.glob(f'tensorboard/{name}/*/*events*'))) == 2, 'one each'
    table = printed[1][printed[1].rindex('since the start'):]
    for cells in (['specialist 1 (nose_tip_x ...)', '5 of 5', 'finished'],
                  ['specialist 2 (left_eyebrow_inner_end_x ...)', '20 of 20', 'finished']):
        assert any(all(cell in line for cell in cells) for line in table.split('\n'))
    for line in 'Training model for columns', 'Best validation RMSE':
        assert printed[0].count(line) == printed[1].count(line) + (line[0] == 'B')

    first, serial, side_by_side = [compare.read(str(run)) for run in sorted(work.glob('runs/*'))]
    constants, circumstances, _ = compare.differences({'1': serial, '2': side_by_side})
    assert list(constants.index) == ['JOBS'] and circumstances.empty
    assert list(serial['nets']) == list(side_by_side['nets']) == ['specialist-1', 'specialist-2']
    for name in serial['nets']:
        for what in 'epochs', 'best_epoch', 'valid_rmse', 'train_rmse':
            assert serial['nets'][name][what] == side_by_side['nets'][name][what]


# ------------------------------------------------------------------------------ stopped and killed

DRIVER = '''
import sys
import kfkd, stepwise, test_jobs, pytest
from pathlib import Path
nose, eyebrows = map(int, sys.argv[2:])
vars(kfkd).update(test_jobs.constants(Path(sys.argv[1])), JOBS=2)
test_jobs.with_steps(pytest.MonkeyPatch(), accidents={
    (2, nose): 'wait_to_be_told', (8, eyebrows): 'wait_to_be_told'})
sys.exit(kfkd.main(['fit_specialists']))
'''


def run_until(faces, nose, eyebrows, signum):
    """Run kfkd in a process, JOBS = 2, and signal it when the specialists are at these steps.

    They wait there until they are told to stop: it does not matter who is faster.
    """
    before = len(stepwise.steps('steps'))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen(
        [sys.executable, '-c', DRIVER, str(faces), str(nose), str(eyebrows)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: process.poll() is not None or {(2, nose), (8, eyebrows)} <= {
        step[:2] for step in stepwise.steps('steps')})
    process.send_signal(signum)
    printed = process.communicate(timeout=200)[0]
    return process.returncode, printed, {pid for _, _, pid in stepwise.steps('steps')[before:]}


def wait_for(condition, seconds=200):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def is_there(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_stopped_killed_and_finished_otherwise(work, faces, reference, monkeypatch):
    """Begun one by one, told to stop two by two, killed two by two, finished one by one."""
    checkpoints = ['checkpoint-specialist-1.npz', 'checkpoint-specialist-2.npz']
    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with_steps(monkeypatch, accidents={(2, 4): 'terminate'})
        assert kfkd.main(['fit_specialists']) == 143
        assert each_once() == {2: 4}

        status, printed, pids = run_until(faces, 6, 4, signal.SIGTERM)
        assert status == 143 and 'interrupted' in printed and 'Traceback' not in printed
        assert 'specialist 1 (nose_tip_x ...): # Going on from ' in printed
        assert len(pids) == 2 and not any(map(is_there, pids)), 'it waits for its processes'
        assert sorted(path.name for path in work.glob('checkpoint*')) == checkpoints
        assert not list(work.glob('*.partial'))
        done = each_once()

        status, printed, pids = run_until(faces, done[2] + 2, done[8] + 2, signal.SIGKILL)
        assert status == -signal.SIGKILL and len(pids) == 2
        wait_for(lambda: not any(map(is_there, pids)))
        assert each_once()[2] < 30 and each_once()[8] < 40, 'in the midst of it'
    finally:
        signal.signal(signal.SIGTERM, previous)

    with_steps(monkeypatch)
    assert kfkd.main(['fit_specialists']) == 0
    assert each_once() == {2: 30, 8: 40}, 'nothing is lost'
    assert nets() == reference


def test_one_that_fails_is_named_and_the_other_kept(work, reference, monkeypatch, capfd):
    monkeypatch.setattr(kfkd, 'JOBS', 2)
    monkeypatch.setattr(kfkd, 'RUNS', 'runs')
    with_steps(monkeypatch, accidents={(8, 9): 'diverge'})
    assert kfkd.main(['fit_specialists']) == 1
    message = capfd.readouterr().err.strip().split('\n')[-1]
    assert message.startswith(
        'kfkd.py: specialist 2 (left_eyebrow_inner_end_x ...): the training loss is ')
    assert 'epoch 5, batch 2' in message and 'LEARNING_RATE' in message and 'now 0.5' in message
    assert 'What the other specialists have learned is kept' in message
    assert not os.path.exists('net-specialists.pickle')
    run, = work.glob('runs/*')
    assert list(compare.read(str(run))['nets']) == ['specialist-1']

    monkeypatch.setattr(kfkd, 'JOBS', 1)
    with_steps(monkeypatch)
    assert kfkd.main(['fit_specialists']) == 0
    assert nets() == reference
    assert [step for outputs, step, _ in stepwise.steps('steps') if outputs == 2] == \
        list(range(1, 31)), 'it has not been trained again'


# ------------------------------------------------------------------------------------------- Dask

@pytest.fixture(scope='module')
def client(tmp_path_factory):
    """A cluster of Dask of two processes."""
    from dask.distributed import Client, LocalCluster
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OMP_NUM_THREADS', THREADS)
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
                          local_directory=str(tmp_path_factory.mktemp('dask'))) as cluster, \
                Client(cluster) as client:
            yield client


def test_over_dask_with_a_worker_that_is_killed(client, work, reference, monkeypatch, capfd):
    """Its training goes on from its checkpoint; the other's goes on as if nothing had been."""
    monkeypatch.setattr(kfkd, 'JOBS', -1)
    monkeypatch.setattr(kfkd, 'CHECKPOINT_MINUTES', 0)
    with_steps(monkeypatch, accidents={(8, 15): 'die_once', (2, 4): 'wait_for_death'})
    workers = set(client.run(os.getpid).values())
    kfkd.fit_specialists('net.pickle')
    assert set(client.run(os.getpid).values()) != workers, 'one of them was killed'
    assert nets() == reference
    of_nose = [step for outputs, step, _ in stepwise.steps('steps') if outputs == 2]
    assert of_nose == list(range(1, 31)), 'each step of the other once'
    of_eyebrows = [step for outputs, step, _ in stepwise.steps('steps') if outputs == 8]
    assert set(of_eyebrows) == set(range(1, 41)) and len(of_eyebrows) < 55, 'the time since'
    assert len({pid for outputs, _, pid in stepwise.steps('steps') if outputs == 8}) == 2
    assert '(left_eyebrow_inner_end_x ...): # Its worker has died' in capfd.readouterr().out


def test_dask_that_gives_a_task_up_is_not_waited_for(client, work, monkeypatch):
    submit = parallel._submit

    def give_up(*args):
        future = submit(*args)
        future.cancel()
        return future

    monkeypatch.setattr(parallel, '_submit', give_up)
    training = parallel.Training('net', 'net.npz', lambda: (
        stepwise.net(1, stepwise.Steps(os.path.abspath('steps'))), *stepwise.data(1), {}))
    assert parallel.side_by_side([training], -1) == [training]
    assert isinstance(training.error, parallel.TrainingError)
    assert 'given it up' in str(training.error)
    assert not list(work.glob('*.partial'))


def test_dask_ends_what_nobody_waits_for(client, work):
    """As when the program has been stopped or killed, and the worker is on another machine."""
    training = parallel.Training('long', 'long.npz', lambda: (
        stepwise.net(1, stepwise.Steps(os.path.abspath('steps'), 0.02), 10 ** 6),
        *stepwise.data(1), {}))
    future = parallel._submit(client, training, progress.Table([], [], 1), '/not/there')
    wait_for(lambda: len(stepwise.steps('steps')) > 2)
    pid = stepwise.steps('steps')[0][2]
    assert busy(client)[pid]
    future.cancel()
    wait_for(lambda: not busy(client)[pid])


def busy(client):
    """Whether each worker trains, by its process."""
    return dict(client.run(lambda: (os.getpid(), bool(worker._here))).values())


# ------------------------------------------------------------------------------------ the constant

@pytest.mark.parametrize('jobs', [0, 'two', 1.5, True, None])
def test_values_of_jobs_that_are_none(work, monkeypatch, capsys, jobs):
    monkeypatch.setattr(kfkd, 'JOBS', jobs)
    assert kfkd.main(['fit_specialists']) == 1
    error = capsys.readouterr().err
    assert 'JOBS is how many' in error and repr(jobs) in error and error.count('\n') == 1
