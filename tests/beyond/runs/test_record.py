"""Records of runs, and what `compare` says of them."""
import hashlib
import json
import os

import kfkd
import numpy as np
import pandas as pd
import pytest
import yaml
from beyond.runs import compare, experiment, record

# A net of a moment.
NET = """
layers:
- {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
- {name: pool, type: MaxPool2DLayer, pool_size: [8, 8]}
- {name: hidden, type: DenseLayer, num_units: 10}
- {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
"""


@pytest.fixture
def work(faces, tmp_path, monkeypatch):
    """A working folder, with kfkd's constants set for small runs in it."""
    for name, fname in (('FTRAIN', 'training.csv'), ('FTEST', 'test.csv'),
                        ('FLOOKUP', 'IdLookupTable.csv'), ('FTESTLABELS', 'test-labels.csv')):
        monkeypatch.setattr(kfkd, name, str(faces / fname))
    for name, value in dict(MAX_EPOCHS=2, SPECIALIST_SAMPLES=100, BATCH_SIZE=16, VERBOSE=0,
                            NET=yaml.safe_load(NET)).items():
        monkeypatch.setattr(kfkd, name, value)
    monkeypatch.setattr(kfkd, 'net', kfkd.net)  # `fit` puts its own there
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(work):
    return sorted((work / 'runs').iterdir()) if (work / 'runs').exists() else []


def weights(path):
    return [values for layer in kfkd.load_nets(str(path)).get_all_params_values().values()
            for values in layer]


def test_a_run_leaves_its_record(work, faces):
    assert kfkd.main([]) == 0
    run, = runs(work)
    content = json.loads((run / 'record.json').read_text())
    assert run.name.endswith('-all') and content['state'] == 'finished'
    assert content['constants']['MAX_EPOCHS'] == 2 and content['constants']['SEED'] == kfkd.SEED
    sha = hashlib.sha256((faces / 'training.csv').read_bytes()).hexdigest()
    assert content['data']['training.csv'] == dict(rows=120, sha256=sha)
    assert set(content['nets']) == {'net'} | {f'specialist-{n}' for n in range(1, 7)}
    assert content['versions']['theano'] == '1.0.5' and content['machine']['cores']
    assert content['results']['test_rmse'] > 0 and content['seconds'] > 0

    net = kfkd.load_nets('net.pickle')
    history = pd.read_csv(run / 'history-net.csv')
    np.testing.assert_allclose(history['valid_loss'],
                               [info['valid_loss'] for info in net.train_history_])
    assert content['nets']['net']['valid_rmse'] == pytest.approx(
        48 * history['valid_loss'].min() ** .5, abs=1e-5)
    submission, = work.glob('submission-*.csv')
    for name in ('net.pickle', 'net-specialists.pickle', 'training-faces.png', submission.name,
                 'learning-curves.png', 'test-predictions.png'):
        assert os.path.samefile(str(run / name), name)  # no second copy on the disk
    with open(kfkd.__file__) as f:
        assert (run / 'kfkd.py').read_text() == f.read()


def test_compare_names_what_differs_and_nothing_else(work, monkeypatch, capsys):
    assert kfkd.main(['fit']) == 0
    first = (work / 'net.pickle').read_bytes()
    monkeypatch.setattr(kfkd, 'LEARNING_RATE', (0.01, 0.001))
    assert kfkd.main(['fit']) == 0
    one, other = runs(work)
    assert (one / 'net.pickle').read_bytes() == first  # the second run has not touched it

    capsys.readouterr()
    assert kfkd.main(['compare', str(one), str(other)]) == 0
    printed = capsys.readouterr().out
    constants, circumstances, results = compare.differences(
        {name: compare.read(str(name)) for name in (one, other)})
    assert list(constants.index) == ['LEARNING_RATE'] and circumstances.empty
    assert list(constants.loc['LEARNING_RATE']) == [[0.03, 0.0001], [0.01, 0.001]]
    assert 'LEARNING_RATE' in printed and 'MOMENTUM' not in printed
    assert 'What else differs: none.' in printed and 'net: validation RMSE' in printed
    assert (work / 'compare.png').stat().st_size > 10000


def test_a_record_runs_again_to_the_same_bits(work, monkeypatch):
    monkeypatch.setattr(kfkd, 'SEED', 7)
    assert kfkd.main(['fit']) == 0
    before = weights('net.pickle')
    run, = runs(work)
    monkeypatch.setattr(kfkd, 'SEED', 8)
    monkeypatch.setattr(kfkd, 'NET', None)
    monkeypatch.setattr(kfkd, 'BATCH_SIZE', 128)
    assert kfkd.main(['--config', str(run / 'experiment.yaml'), 'fit']) == 0
    for a, b in zip(before, weights('net.pickle')):
        np.testing.assert_array_equal(a, b)
    constants, circumstances, results = compare.differences(
        {str(name): compare.read(str(name)) for name in runs(work)})
    assert constants.empty and circumstances.empty
    assert len(set(results.loc['net: validation RMSE'])) == 1


def stop(nn, train_history):
    if len(train_history) == 2:
        raise KeyboardInterrupt


def test_a_run_that_is_stopped_says_so(work, monkeypatch):
    build_net = kfkd.build_net
    monkeypatch.setattr(kfkd, 'build_net', lambda c=None: build_net(c).set_params(
        on_epoch_finished=build_net(c).on_epoch_finished + [stop], max_epochs=5))
    monkeypatch.setattr(kfkd, 'TRUSTED', (stop,))
    assert kfkd.main(['fit']) == 130
    run, = runs(work)
    content = compare.read(str(run))
    assert content['state'] == 'stopped' and content['nets']['net']['epochs'] == 2


def test_no_record_without_training(work, monkeypatch):
    monkeypatch.setattr(kfkd, 'RUNS', None)
    assert kfkd.main(['fit']) == 0
    assert not runs(work)
    monkeypatch.setattr(kfkd, 'RUNS', 'runs')
    assert kfkd.main(['predict', 'net.pickle']) == 0
    assert kfkd.main(['predict', 'nowhere.pickle']) == 1
    kfkd.fit()  # from a program
    assert not runs(work)


@pytest.mark.parametrize('damage, message', [
    (lambda run: (run / 'record.json').unlink(), 'record.json is not there'),
    (lambda run: (run / 'history-net.csv').unlink(), 'history-net.csv is not there'),
    (lambda run: (run / 'record.json').write_text('{'), 'is no record of a run'),
    (lambda run: (run / 'record.json').write_text('[]'), 'is no record of a run'),
    (lambda run: (run / 'record.json').write_text('{"nets": {"../x": 1}}'), 'is no record'),
    (lambda run: (run / 'history-net.csv').write_text('epoch\n1\n'), 'is no record of a run'),
])
def test_damaged_records(work, capsys, damage, message):
    assert kfkd.main(['fit']) == 0
    run, = runs(work)
    damage(run)
    capsys.readouterr()
    assert kfkd.main(['compare', str(run)]) == 1
    error = capsys.readouterr().err
    assert message in error and str(run) in error and error.count('\n') == 1
    assert not (work / 'compare.png').exists()


def test_the_folder_of_a_run_is_its_own(work, monkeypatch):
    class Clock(record.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(record, 'datetime', Clock)
    assert kfkd.main(['fit']) == 0 and kfkd.main(['fit']) == 0
    assert [run.name for run in runs(work)] == ['2026-01-02-030405-fit', '2026-01-02-030405-fit-2']


def test_runs_that_cannot_be_kept_are_told_before_the_training(work, capsys):
    (work / 'runs').write_text('a file')
    assert kfkd.main(['fit']) == 1
    assert 'runs is a file' in capsys.readouterr().err
    assert os.listdir('.') == ['runs']


def test_constants_without_values_are_left_out():
    constants = dict(A=(), B=(1, 2.5), C=None)
    assert experiment.describe_constants(constants) == {'B': [1, 2.5], 'C': None}
