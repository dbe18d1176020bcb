"""Trainings that are killed, stopped, or meet a full disk end in the same bits; see killable.py.

KILLS=50 pytest tests/test_reliability.py -k killed    runs fifty killed trainings instead of four
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import killable
import kfkd
import numpy as np
import pytest
from beyond.runs import net_files
from theano_today.nets.checkpoint import CheckpointError, read, write
from theano_today.nets.files import locked

KILLS = int(os.environ.get('KILLS', 4))


class Runner:
    """Runs small trainings, each in a folder of its own, and compares what they lead to."""

    def __init__(self, tmp_path_factory):
        self.data = tmp_path_factory.mktemp('data')
        killable.write_faces(str(self.data))
        self.process = subprocess.Popen(
            [sys.executable, killable.__file__, str(self.data)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, universal_newlines=True,
            env=dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1'))
        assert json.loads(self.process.stdout.readline()) == 'ready'
        self.reference = tmp_path_factory.mktemp('reference')
        done = self(self.reference)
        assert done['status'] == 0, done['printed']
        self.batches = done['batches']
        self.results = results(self.reference)

    def __call__(self, folder, *argv, **command):
        self.process.stdin.write(json.dumps(dict(command, folder=str(folder), argv=argv)) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    runner = Runner(tmp_path_factory)
    yield runner
    runner.process.stdin.close()
    runner.process.wait()


def results(folder):
    """Weights, history and columns of all nets in a folder, to be compared with ==."""
    found = {}
    for name in ('net.pickle', 'net-specialists.pickle'):
        if (folder / name).exists():
            for columns, net in net_files.by_columns(kfkd.load_nets(str(folder / name)), name).items():
                found[name, columns] = (
                    [value.tobytes() for values in net.get_all_params_values().values()
                     for value in values],
                    [{key: value for key, value in info.items() if key != 'dur'}
                     for info in net.train_history_])
    return found


def log(folder):
    """[('S' or 'W', time, (number of labels, epoch, batch)), ...]: see killable.log."""
    if not os.path.exists(killable.log(folder)):
        return []
    with open(killable.log(folder)) as f:
        lines = [line.split() for line in f]
    return [(what, float(when), tuple(map(int, place))) for what, when, *place in lines]


def steps(lines):
    return [place for what, _, place in lines if what == 'S']


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------ killed

def test_the_reference_is_trained_and_leaves_no_checkpoint(runner):
    assert [len(history) for _, history in runner.results.values()] == [40, 15, 15]
    first = runner.results['net.pickle', kfkd.COLUMNS]
    losses = [info['valid_loss'] for info in first[1]]
    assert min(losses) < losses[0]
    assert not list(runner.reference.glob('checkpoint*'))


@pytest.mark.parametrize('number', range(KILLS))
def test_killed_trainings_end_in_the_same_bits(runner, tmp_path, number):
    rng = random.Random(number)
    kill = dict(kill=['batch', 'writing', 'time'][number % 3])
    if kill['kill'] == 'time':
        kill['kill'] = rng.uniform(0, 10)
    else:
        kill['nth'] = rng.randint(1, runner.batches if kill['kill'] == 'batch' else 60)
    done = runner(tmp_path, **kill)
    before = log(tmp_path)
    if done['status'] == -signal.SIGKILL:
        done = runner(tmp_path)
    assert done['status'] == 0, done['printed']
    assert results(tmp_path) == runner.results
    assert not list(tmp_path.glob('checkpoint*')), 'leftovers'

    # Nothing was lost that a checkpoint had, or ought to have had.
    done_again = set(steps(before)) & set(steps(log(tmp_path)[len(before):]))
    assert not done_again & {place for what, _, place in before if what == 'W'}
    due, late = np.inf, False
    for what, when, _ in before:
        assert not (what == 'S' and late), 'a checkpoint was due after the step before'
        late = what == 'S' and when > due
        due = when if what == 'W' else due


def test_told_to_stop_it_stops_after_the_batch_and_loses_none(runner, tmp_path):
    computed = 0
    for name, status in ('SIGTERM', 143), ('SIGINT', 130), ('SIGHUP', 129):
        done = runner(tmp_path, 'fit', set={'CHECKPOINT_MINUTES': 60}, kill='batch', nth=70,
                      signum=int(getattr(signal, name)))
        assert done['status'] == status and 'Stopping after this batch' in done['printed']
        assert 'Traceback' not in done['printed']
        assert ('Going on from checkpoint-net.npz' in done['printed']) == (computed > 0)
        computed += done['batches']
        assert 70 <= computed < 320
        # What there is can be used, and the checkpoint wins when the training goes on.
        (_, history), = results(tmp_path).values()
        assert len(history) in (computed // 8 - 1, computed // 8)
    again = runner(tmp_path, 'fit')
    assert again['status'] == 0, again['printed']
    assert steps(log(tmp_path)) == [
        (30, epoch, batch) for epoch in range(1, 41) for batch in range(1, 9)], 'each of them once'
    assert results(tmp_path)['net.pickle', kfkd.COLUMNS] == \
        runner.results['net.pickle', kfkd.COLUMNS]


def test_a_specialist_goes_on_and_those_done_are_not_trained_again(runner, tmp_path):
    done = runner(tmp_path, kill='batch', nth=320 + 15 * 12 + 30)  # in the second specialist
    assert done['status'] == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob('checkpoint*.npz')) == [
        'checkpoint-net.npz', 'checkpoint-specialist-1.npz', 'checkpoint-specialist-2.npz']
    again = runner(tmp_path)
    assert again['status'] == 0 and again['batches'] < 15 * 12
    assert again['printed'].count('is of a training that is finished') == 2
    assert results(tmp_path) == runner.results


# ---------------------------------------------------------------- what must be the same, --fresh

@pytest.fixture(scope='module')
def stopped(runner, tmp_path_factory):
    """A folder with a training that was stopped in its middle."""
    folder = tmp_path_factory.mktemp('stopped')
    assert runner(folder, 'fit', kill='batch', nth=150, signum=int(signal.SIGTERM))['status'] == 143
    return folder


@pytest.fixture
def resumable(stopped, tmp_path):
    folder = tmp_path / 'again'
    shutil.copytree(str(stopped), str(folder))
    return folder


@pytest.mark.parametrize('name, value, message', [
    ('MAX_EPOCHS', 41, 'MAX_EPOCHS was 40, is 41'),
    ('SEED', 7, 'SEED was 42, is 7'),
    ('LEARNING_RATE', [0.02, 0.0001], 'LEARNING_RATE was [0.03, 0.0001], is [0.02, 0.0001]'),
])
def test_changed_constants_are_named(runner, resumable, name, value, message):
    before = files(resumable)
    done = runner(resumable, 'fit', set={name: value})
    assert done['status'] == 1 and done['batches'] == 0
    assert message in done['printed'] and '--fresh' in done['printed']
    assert files(resumable) == before


def test_changed_data_are_named_and_fresh_starts_anew(runner, resumable, tmp_path):
    with open(str(runner.data / 'training.csv')) as f:
        text = f.read()
    mine = tmp_path / 'training.csv'
    mine.write_text(text)
    unchanged = runner(resumable, 'fit', set={'FTRAIN': str(mine)},
                       kill='batch', nth=20)
    assert 'Going on' in unchanged['printed'], 'the same data in another file are the same'
    lines = text.split('\n')
    cells = lines[1].split(',')
    cells[0] = '50.5'
    mine.write_text('\n'.join([lines[0], ','.join(cells)] + lines[2:]))
    done = runner(resumable, 'fit', set={'FTRAIN': str(mine)})
    assert done['status'] == 1 and 'the labels in training.csv changed' in done['printed']
    assert 'the faces in training.csv changed' not in done['printed']
    done = runner(resumable, 'fit', '--fresh')
    assert done['status'] == 0 and done['batches'] == 320 and 'Going on' not in done['printed']
    assert results(resumable)['net.pickle', kfkd.COLUMNS] == \
        runner.results['net.pickle', kfkd.COLUMNS]


def test_a_training_that_another_process_is_at(runner, resumable):
    with locked(str(resumable / 'checkpoint-net.npz')):
        before = files(resumable)
        for argv in ['fit'], [], ['fit', '--fresh']:
            done = runner(resumable, *argv)
            assert done['status'] == 1 and done['batches'] == 0 and 'Traceback' not in done['printed']
            assert f'kfkd.py: checkpoint-net.npz is in use by process {os.getpid()}. ' in \
                done['printed']
            assert files(resumable) == before
    with locked(str(resumable / 'checkpoint-specialist-2.npz')):  # which has none yet
        before = files(resumable)
        done = runner(resumable, '--fresh')
        assert done['status'] == 1 and 'specialist-2.npz is in use' in done['printed']
        assert files(resumable) == before
    done = runner(resumable, 'fit', set={'MAX_EPOCHS': 41})
    assert 'MAX_EPOCHS was 40' in done['printed'], 'its end is the end of the lock'


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def compress(path):
    """A zip file a thousand times as large as it looks."""
    with zipfile.ZipFile(str(path), 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('state-0.json', b' ' * 10 ** 8)


def claim(path):
    """An array that claims more than it has."""
    with zipfile.ZipFile(str(path), 'w') as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n"
        archive.writestr('0.npy', b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header)


def pickled(path):
    """An archive with a pickled object, which numpy.load would run if it were let."""
    with open(str(path), 'wb') as f:
        np.savez(f, state=np.array([print], dtype=object))


def huge(path):
    with open(str(path), 'wb') as f:
        f.truncate(10 ** 10)


@pytest.mark.parametrize('damage', [
    truncate, flip, compress, claim, pickled, huge, lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'PK\x05\x06' + bytes(18)),
    lambda path: path.write_text('not a checkpoint')])
def test_damaged_checkpoints(resumable, damage):
    path = resumable / 'checkpoint-net.npz'
    damage(path)
    size, start = path.stat().st_size, time.process_time()
    with pytest.raises(CheckpointError, match='checkpoint-net.npz is no whole checkpoint .*--fresh'):
        read(str(path), 'with --fresh')
    assert time.process_time() < start + 5 and path.stat().st_size == size


def test_a_damaged_checkpoint_is_one_line_and_changes_nothing(runner, resumable):
    flip(resumable / 'checkpoint-net.npz')
    before = files(resumable)
    done = runner(resumable, 'fit')
    assert done['status'] == 1 and done['batches'] == 0
    assert done['printed'].strip().split('\n')[-1].startswith('kfkd.py: checkpoint-net.npz is no')
    assert 'Traceback' not in done['printed'] and files(resumable) == before


def test_a_checkpoint_that_has_the_right_hashes_and_wrong_content(runner, resumable):
    state, arrays = read(str(resumable / 'checkpoint-net.npz'))
    for name, value in ('weights', [{'0-d array': ['<f4', 1.]}] * len(state['weights'])), \
            ('random', None), ('history', {'list': [{'dict': []}]}):
        write(str(resumable / 'checkpoint-net.npz'), dict(state, **{name: value}), arrays)
        before = files(resumable)
        done = runner(resumable, 'fit')
        assert done['status'] == 1 and done['batches'] == 0, (name, done['printed'])
        assert 'checkpoint-net.npz does not fit this net' in done['printed']
        assert 'Traceback' not in done['printed'] and files(resumable) == before


# ------------------------------------------------------------------------ disks that fail

def test_full_disk(runner, tmp_path):
    done = runner(tmp_path, 'fit', full=5)
    assert done['status'] == 1 and 'Traceback' not in done['printed']
    assert re.search(r'kfkd.py: checkpoint-net.npz cannot be written: File too large. What was there '
                     'before is unchanged.', done['printed'])
    assert not list(tmp_path.glob('*.partial'))
    again = runner(tmp_path, 'fit')
    assert again['status'] == 0 and 'Going on from' in again['printed']
    assert results(tmp_path)['net.pickle', kfkd.COLUMNS] == \
        runner.results['net.pickle', kfkd.COLUMNS]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(folder)],
                       stderr=subprocess.DEVNULL):
        pytest.skip('this user may not mount a tmpfs')
    yield folder
    subprocess.check_call(['umount', '-l', str(folder)])


def test_full_file_system(runner, small_disk):
    assert runner(small_disk, 'fit', kill='batch', nth=100, signum=int(signal.SIGTERM))[
        'status'] == 143
    before = files(small_disk)
    with open(str(small_disk / 'filler'), 'wb', buffering=0) as f:
        with pytest.raises(OSError):
            while True:
                f.write(bytes(4096))
    done = runner(small_disk, 'fit')
    assert done['status'] == 1 and 'No space left on device' in done['printed']
    os.remove(str(small_disk / 'filler'))
    assert files(small_disk) == before
    assert runner(small_disk, 'fit')['status'] == 0
    assert results(small_disk)['net.pickle', kfkd.COLUMNS] == \
        runner.results['net.pickle', kfkd.COLUMNS]


def test_read_only_file_system(runner, small_disk):
    assert runner(small_disk, 'fit', kill='batch', nth=100, signum=int(signal.SIGTERM))[
        'status'] == 143
    before = files(small_disk)
    subprocess.check_call(['mount', '-o', 'remount,ro', str(small_disk)])
    code = ('import os, sys; sys.path.insert(0, {!r}); os.chdir({!r})\n'
            'import killable; killable.prepare({!r}); sys.exit(killable.kfkd.main(["fit"]))')
    done = subprocess.run(
        [sys.executable, '-c', code.format(os.path.dirname(__file__), str(small_disk),
                                           str(runner.data))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Theano tells where another process of these tests is compiling.
    errors = [line for line in done.stderr.splitlines() if 'compilelock' not in line]
    assert done.returncode == 1 and len(errors) == 1 and 'Read-only file system' in errors[0]
    assert files(small_disk) == before


def test_folder_without_permission(runner, tmp_path):
    """Root may write everywhere, but nobody may make a file in /proc."""
    folder = '/proc' if os.geteuid() == 0 else str(tmp_path / 'closed')
    if folder != '/proc':
        os.mkdir(folder, 0o500)
    done = runner(tmp_path, 'fit', set={'FNET': folder + '/net.pickle'})
    assert done['status'] == 1 and done['batches'] == 0, 'it is noticed before the training'
    assert '/net.pickle cannot be written' in done['printed']
    assert os.listdir(str(tmp_path)) in ([], ['closed'])


def test_leftovers_of_killed_runs_are_removed_and_others_stay(runner, tmp_path):
    ours = ['net.pickle.abcdefgh.partial', 'checkpoint-net.npz.01234567.partial',
            'submission-2026-01-01T00-00-00.csv.abc_efgh.partial']
    others = ['net.pickle.old', 'mine.partial', 'net.pickle.toolonganame.partial',
              'submission-mine.csv', 'other.pickle.abcdefgh.partial']
    for name in ours + others:
        (tmp_path / name).write_text('')
    assert runner(tmp_path, 'predict')['status'] == 1  # no nets there
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


# --------------------------------------------------------------------------------- bad numbers

def test_a_learning_rate_that_is_too_high(runner, tmp_path):
    done = runner(tmp_path, 'fit', set={'LEARNING_RATE': [0.01, 1e6]})
    assert done['status'] == 1 and 'Traceback' not in done['printed']
    message, = [line for line in done['printed'].split('\n') if line.startswith('kfkd.py: ')]
    epoch, batch = map(int, re.search(r'in epoch (\d+), batch (\d+)\.', message).groups())
    assert done['batches'] == (epoch - 1) * 8 + batch - 1  # the last good step
    assert 'the learning rate' in message and 'LEARNING_RATE' in message
    (weights, history), = results(tmp_path).values()
    assert np.isfinite([info['valid_loss'] for info in history]).all()
    assert len(history) == epoch - 1
    assert all(np.isfinite(np.frombuffer(w, np.float32)).all() for w in weights)


def test_a_row_that_spoils_the_training(runner, tmp_path):
    lines = (runner.data / 'training.csv').read_text().split('\n')
    cells = lines[4].split(',')
    cells[20] = '1e30'
    mine = tmp_path / 'mine.csv'
    mine.write_text('\n'.join(lines[:4] + [','.join(cells)] + lines[5:]))
    done = runner(tmp_path, 'fit', set={'FTRAIN': str(mine)})
    assert done['status'] == 1 and 'Traceback' not in done['printed']
    assert 'mine.csv, line 5, column nose_tip_x: 1e+30' in done['printed']
    assert 'epoch 1' in done['printed'] and not (tmp_path / 'net.pickle').exists()
