"""`python kfkd.py` as a user runs it: the deck's own net, all four steps, in a process of its own."""
import os
import subprocess
import sys

import kfkd
import numpy as np
import pandas as pd
import pytest
from data import make_faces

# What a user does who edits the constants at the top of kfkd.py.
EDITS = {'FTRAIN': 'training.csv', 'FTEST': 'test.csv', 'FLOOKUP': 'IdLookupTable.csv',
         'FTESTLABELS': 'test-labels.csv', 'MAX_EPOCHS': 3, 'SPECIALIST_SAMPLES': 200,
         'STANDARDIZE': True, 'BATCH_SIZE': 32}


def run(folder, *words):
    """Run kfkd.py with the edits in `folder`; return the completed process."""
    code = 'import kfkd, sys\nvars(kfkd).update({!r})\nsys.exit(kfkd.main(sys.argv[1:]))'
    return subprocess.run([sys.executable, '-c', code.format(EDITS)] + list(words), cwd=str(folder),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder with drawn faces in which all four steps have run, and what they printed."""
    folder = tmp_path_factory.mktemp('tutorial')
    make_faces.write_csvs(str(folder), 200, 24)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_step_leaves_its_file(finished):
    folder, printed = finished
    for name in ('net.pickle', 'net-specialists.pickle', 'training-faces.png',
                 'learning-curves.png', 'test-predictions.png'):
        assert (folder / name).stat().st_size > 10000
    assert 'Neural Network with 16561502 learnable parameters' in printed
    assert printed.count('Training model for columns') == 6
    assert printed.count('Best validation RMSE') == 7
    assert 'Test RMSE' in printed


def test_nets_are_trained(finished):
    specialists = kfkd.load_nets(str(finished[0] / 'net-specialists.pickle'))
    assert list(specialists) == [setting['columns'] for setting in kfkd.SPECIALIST_SETTINGS]
    first = kfkd.load_nets(str(finished[0] / 'net.pickle'))
    losses = [info['train_loss'] for info in first.train_history_]
    assert len(losses) == 3 and losses[-1] < losses[0] and np.isfinite(losses).all()


def test_submission_answers_the_whole_table(finished):
    folder = finished[0]
    table = pd.read_csv(folder / 'IdLookupTable.csv')
    submission = pd.read_csv(next(folder.glob('submission-*.csv')))
    assert (submission['RowId'] == table['RowId']).all()
    assert submission['Location'].between(0, 96).all()
    assert submission['Location'].nunique() > len(table) / 2


def test_small_enough_pickles(finished):
    # 16.6 million weights of 4 bytes are 66 MB; with functions and momentum it was 136 MB.
    assert (finished[0] / 'net.pickle').stat().st_size < 68e6


def test_same_seed_same_net(finished, tmp_path):
    folder = finished[0]
    for name in ('training.csv', 'test.csv'):
        os.symlink(str(folder / name), str(tmp_path / name))
    done = run(tmp_path, 'fit')
    assert done.returncode == 0, done.stderr
    a, b = (kfkd.load_nets(str(path / 'net.pickle')) for path in (folder, tmp_path))
    for (name, u), v in zip(a.get_all_params_values().items(), b.get_all_params_values().values()):
        for x, y in zip(u, v):
            np.testing.assert_array_equal(x, y, err_msg=name)
