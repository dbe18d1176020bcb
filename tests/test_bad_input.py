"""Whatever is wrong with a file or a command line: one clear message, and nothing is changed.

Every case goes through `kfkd.main`, as a user's would.  A case that Hypothesis makes may also turn out
to be right.
"""
import os
import pickle
import signal
import stat
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import kfkd
import numpy as np
import pandas as pd
import pytest
from beyond.runs import training
from data import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nolearn.lasagne import NeuralNet
from theano_today.nets.files import replacing

ROWS = 7
NAN = float('nan')


class Constant(NeuralNet):
    """A trained net, as far as `predict` and the learning curves are concerned."""

    def __init__(self, outputs, **attributes):
        history = [{'epoch': n, 'train_loss': 0.1, 'valid_loss': 0.2, 'dur': 1.} for n in (1, 2)]
        vars(self).update(outputs=outputs, train_history_=history, **attributes)

    def predict(self, X):
        return np.full((len(X), self.outputs), 0.5, np.float32)

    def __getstate__(self):
        return vars(self)


@pytest.fixture(scope='module')
def good():
    """The content of good files by their names."""
    rng = np.random.RandomState(0)
    table = pd.DataFrame(rng.uniform(10, 86, (ROWS, 30)).round(1), columns=kfkd.COLUMNS)
    table.loc[ROWS - 1, 'nose_tip_x'] = NAN
    table['Image'] = [' '.join(map(str, image)) for image in rng.randint(0, 10, (ROWS, 9216))]
    test = pd.DataFrame({'ImageId': [1, 2, 3], 'Image': table['Image'][:3]})
    lookup = pd.DataFrame({'RowId': range(1, 5), 'ImageId': [1, 1, 2, 3], 'FeatureName': [
        'nose_tip_x', 'nose_tip_y', 'nose_tip_x', 'nose_tip_y'], 'Location': ''})
    nets = OrderedDict([(('nose_tip_x', 'nose_tip_y'), Constant(2))])
    return {'training.csv': table.to_csv(index=False).encode(),
            'test.csv': test.to_csv(index=False).encode(),
            'IdLookupTable.csv': lookup.to_csv(index=False).encode(),
            'net-specialists.pickle': pickle.dumps(nets, -1),
            'net.pickle': b'of an earlier training', 'training-faces.png': b'of an earlier training',
            'learning-curves.png': b'of an earlier run', 'test-predictions.png': b'as well'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, good):
    """A folder with good files, and kfkd pointed at it, up to where a training would begin."""
    path = tmp_path_factory.mktemp('folder')
    patch = pytest.MonkeyPatch()
    patch.chdir(path)
    for name, value in dict(
            FTRAIN='training.csv', FTEST='test.csv', FLOOKUP='IdLookupTable.csv', FTESTLABELS=None,
            TRUSTED=(Constant,)).items():
        patch.setattr(kfkd, name, value)
    patch.setattr(training.Training, 'checkpointed', lambda *args: nullcontext())
    patch.setattr(NeuralNet, 'fit', lambda *args: None)
    patch.setattr(kfkd.net_files, 'save', lambda *args: None)
    patch.setattr(kfkd.figures, 'write_figure', lambda fig, fname: kfkd.pyplot.close(fig))
    patch.setattr(kfkd.figures, 'write_page', lambda *args: None)
    yield path
    patch.undo()


@contextmanager
def within(seconds):
    """Raise an error in what takes longer."""
    def stop(signum, frame):
        raise AssertionError('it hangs')
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def content(path):
    return {item.name: item.read_bytes() if stat.S_ISREG(item.lstat().st_mode) and
            item.lstat().st_size < 1e7 else item.lstat().st_ino for item in path.iterdir()}


def run(folder, files, argv, capsys):
    """Run kfkd.main with these files; check the message if it ends with an error, and clean up.

    Returns
    -------
    status : int
    message : str
    """
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tables._tables.clear()
    before = content(folder)
    capsys.readouterr()
    try:
        with within(60):
            status = kfkd.main(argv)
    except SystemExit as error:  # argparse
        status = error.code
    out, err = capsys.readouterr()
    after = content(folder)
    new = {name for name in after if name.startswith('submission-')}
    for name in new:
        os.remove(str(folder / name))
    assert 'Traceback' not in out + err
    if status:
        assert status == 2 or status == 1 and err.startswith('kfkd.py: ') and err.count('\n') == 1
        assert len(err) < 1200 and err.strip('\n').isprintable() or status == 2
        assert after == before, 'a file was changed'
    else:
        assert set(after) - new == set(before)
    return status, err


@pytest.fixture
def refused(folder, good, capsys):
    """Function: the command must fail with the files given, and say the words."""
    def check(words, argv, **files):
        files = {name.replace('_csv', '.csv').replace('_pickle', '.pickle').replace(
            'specialists', 'net-specialists'): data for name, data in files.items()}
        status, message = run(folder, dict(good, **files), argv, capsys)
        assert status in (1, 2), 'it was accepted'
        for word in words if isinstance(words, tuple) else (words,):
            assert word in message, message
    return check


def test_the_good_files_are_good(folder, good, capsys):
    for argv in ['fit'], ['fit_specialists', 'net-specialists.pickle'], ['predict'], \
            ['plot_learning_curves']:
        status, message = run(folder, good, argv, capsys)
        # fit_specialists starts from a single net
        assert status == (argv[0] == 'fit_specialists'), message


# ------------------------------------------------------------------------------ tables by hand

def table(data):
    return [line.split(',') for line in data.decode().rstrip('\n').split('\n')]


def text(rows):
    return '\n'.join(','.join(row) for row in rows).encode() + b'\n'


def cell(row, column, value):
    """A change: another value in a cell; row 0 is the header."""
    def change(data):
        rows = table(data)
        rows[row][column] = value
        return text(rows)
    return change


def columns(select):
    def change(data):
        return text([select(row) for row in table(data)])
    return change


IMAGE = ' '.join(['7'] * 9216)
EVERY_TABLE = [
    ('empty', lambda data: b''),
    ('a line end', lambda data: b'\n'),
    ('spaces', lambda data: b'   \n  \n'),
    ('header only', lambda data: data.split(b'\n')[0] + b'\n'),
    ('half a header', lambda data: data[:10]),
    ('text', lambda data: b'This is not a table.\n'),
    ('html', lambda data: b'<!DOCTYPE html>\n<html><body>Please log in</body></html>\n'),
    ('json', lambda data: b'{"a": [1, 2, 3]}'),
    ('zip file', lambda data: b'PK\x03\x04' + bytes(range(256))),
    ('gzip file', lambda data: b'\x1f\x8b\x08' + bytes(range(256))),
    ('picture', lambda data: b'\x89PNG\r\n\x1a\n' + bytes(range(256))),
    ('pickle', lambda data: pickle.dumps({'a': 1})),
    ('semicolons', lambda data: data.replace(b',', b';')),
    ('tabs', lambda data: data.replace(b',', b'\t')),
    ('bars', lambda data: data.replace(b',', b'|')),
    ('UTF-16', lambda data: data.decode().encode('utf-16')),
    ('UTF-32', lambda data: data.decode().encode('utf-32')),
    ('EBCDIC', lambda data: data.decode().encode('cp500')),
    ('bytes that are no UTF-8', lambda data: data.replace(b'I', b'\xff\xfe')),
    ('Latin-1 in a name', lambda data: b'\xe4' + data),
    ('zeros in the middle', lambda data: data[:300] + bytes(20) + data[320:]),
    ('zeros only', lambda data: bytes(5000)),
    ('no header', lambda data: data.split(b'\n', 1)[1]),
    ('header in capitals', lambda data: data.split(b'\n')[0].upper() + b'\n' + data.split(b'\n', 1)[1]),
    ('a column twice', columns(lambda row: row + row[:1])),
    ('a cell too many in every row', lambda data: text(
        [row + ['9'] * (n > 0) for n, row in enumerate(table(data))])),
    ('a cell too many in one row', lambda data: text(
        [row + ['9'] * (n == 2) for n, row in enumerate(table(data))])),
    ('a quote that does not end', lambda data: data.replace(b'\n', b'\n"', 1)),
    ('one line of a million bytes', lambda data: b'x' * (1 << 21)),
    ('codes that redraw the terminal', lambda data: b'\x1b[2J\x1b]0;x\x07,b\n1,2\n'),
]


@pytest.mark.parametrize('fname, argv', [('training.csv', ['fit']), ('training.csv', []), (
    'test.csv', ['predict']), ('IdLookupTable.csv', ['predict'])])
@pytest.mark.parametrize('what, change', EVERY_TABLE, ids=[what for what, _ in EVERY_TABLE])
def test_files_that_are_no_tables(refused, good, fname, argv, what, change):
    refused(fname, argv, **{fname.replace('.', '_'): change(good[fname])})


@pytest.mark.parametrize('change, words', [
    (cell(2, 5, 'abc'), ('line 3', 'left_eye_inner_corner_y', "'abc' is not a number")),
    (cell(2, 5, '1.2.3'), ('line 3', "'1.2.3' is not a number")),
    (cell(2, 5, '"1,5"'), ('line 3', "'1,5' is not a number")),
    (cell(2, 5, '0x10'), ('line 3', 'is not a number')),
    (cell(2, 5, '1e999'), ('line 3', 'is not a number')),
    (cell(2, 5, '-inf'), ('line 3', '-inf is not a number')),
    (cell(2, 5, '1+2j'), ('line 3', 'is not a number')),
    (cell(2, 5, '2020-01-01'), ('line 3', 'is not a number')),
    (cell(2, 5, '=A1+1'), ('line 3', "'=A1+1' is not a number")),
    (cell(2, 5, 'x' * 5000), ('line 3', 'is not a number')),
    (cell(2, 5, '\x1b[31m'), ('line 3', 'is not a number')),
    (lambda data: text([table(data)[0]] + [['True'] + row[1:] for row in table(data)[1:]]),
     ('line 2', 'left_eye_center_x', 'True is not a number')),
    (cell(3, 30, ''), ('line 4', 'no image')),
    (cell(3, 30, '7'), ('line 4', '1 pixels could be read')),
    (cell(3, 30, IMAGE[:-2]), ('line 4', '9215 pixels')),
    (cell(3, 30, IMAGE + ' 7'), ('line 4', '9217 pixels')),
    (cell(3, 30, IMAGE + ' x'), ('line 4', '9217 pixels')),
    (cell(3, 30, IMAGE + 'x'), ('line 4', '9217 pixels')),
    (cell(3, 30, IMAGE.replace(' ', ';')), ('line 4', 'pixels could be read')),
    (cell(3, 30, 'x ' + IMAGE[2:]), ('line 4', '0 pixels')),
    (cell(3, 30, 'nan ' + IMAGE[2:]), ('line 4', 'no number')),
    (cell(3, 30, 'inf ' + IMAGE[2:]), ('line 4', 'no number')),
    (cell(3, 30, IMAGE * 3), ('line 4', 'pixels could be read')),
    (columns(lambda row: row[1:]), 'lacks the column'),
    (columns(lambda row: row[:-1]), 'has no column Image'),
    (columns(lambda row: row[:5] + row[6:]), ("lacks the column", 'left_eye_inner_corner_y')),
    (columns(lambda row: ['1' if row[0] != 'left_eye_center_x' else 'chin_x'] + row),
     ('has the column', 'chin_x')),
    (lambda data: data.replace(b'nose_tip_x', b'nose_tip_z'), 'nose_tip'),
    (lambda data: text([[''] + row[1:] if n else row for n, row in enumerate(table(data))]),
     'no row has a value in each'),
    (lambda data: text(table(data)[:3]), 'too few'),
    (lambda data: data[:-20000], 'pixels could be read'),
    (lambda data: data[:len(data) // 2 + 11], ''),
    (columns(lambda row: row[-1:]), 'lacks the column'),
])
def test_training_tables(refused, good, change, words):
    for argv in ['fit'], []:
        refused('training.csv', argv, training_csv=change(good['training.csv']))
        refused(words, argv, training_csv=change(good['training.csv']))


def test_a_specialist_without_a_row(folder, good, capsys, monkeypatch):
    """fit would be content with a file that has no nose, if its net had no use for one."""
    first = kfkd.build_net().set_params(hidden4_num_units=2, hidden5_num_units=2)
    first.initialize_layers()
    monkeypatch.setattr(kfkd, 'load_nets', lambda fname: first)
    rows = table(good['training.csv'])
    for row in rows[1:]:
        row[rows[0].index('nose_tip_x')] = ''
    monkeypatch.setattr(kfkd, 'SPECIALIST_SETTINGS', kfkd.SPECIALIST_SETTINGS[1:])
    status, message = run(folder, dict(good, **{'training.csv': text(rows)}),
                          ['fit_specialists'], capsys)
    assert status == 1 and 'no row has a value in each of the columns nose_tip_x' in message


@pytest.mark.parametrize('change, words', [
    (cell(1, 0, ''), ('line 2', 'ImageId', 'nan is not a whole number')),
    (cell(1, 0, '1.5'), ('line 2', 'ImageId', '1.5 is not a whole number')),
    (cell(1, 0, 'one'), ('line 2', "'one' is not a whole number")),
    (cell(1, 0, '2'), ('line 3', 'ImageId 2 is there twice')),
    (cell(1, 0, '1e30'), ('line 2', 'is not a whole number')),
    (cell(1, 0, '99999999999999999999'), ('line 2', 'is not a whole number')),
    (cell(1, 0, 'inf'), ('line 2', 'is not a whole number')),
    (cell(3, 1, ''), ('line 4', 'no image')),
    (cell(3, 1, IMAGE + ' 0'), ('line 4', '9217 pixels')),
    (cell(3, 1, '1,2'), 'test.csv'),
    (columns(lambda row: row[:1]), 'has no column Image'),
    (lambda data: text(table(data)[:2]), ('IdLookupTable.csv', 'is not in test.csv')),
    (lambda data: data[:-9], 'pixels could be read'),
])
def test_test_tables(refused, good, change, words):
    refused(words, ['predict'], test_csv=change(good['test.csv']))


@pytest.mark.parametrize('change, words', [
    (cell(1, 0, ''), ('line 2', 'RowId', 'is not a whole number')),
    (cell(1, 0, 'one'), ('line 2', 'RowId', "'one' is not a whole number")),
    (cell(2, 0, '1'), ('line 3', 'RowId', '1 is there twice')),
    (cell(1, 0, '0.5'), ('line 2', 'is not a whole number')),
    (cell(2, 1, '77'), ('line 3', 'ImageId', '77 is not in test.csv')),
    (cell(2, 1, '-1'), ('line 3', 'ImageId', 'is not in test.csv')),
    (cell(2, 1, ''), ('line 3', 'ImageId', 'is not a whole number')),
    (cell(2, 1, '1e400'), ('line 3', 'ImageId', 'is not a whole number')),
    (cell(2, 2, 'chin_x'), ('line 3', 'FeatureName', "'chin_x' is not in the nets")),
    (cell(2, 2, ''), ('line 3', 'FeatureName', 'nan is not in the nets')),
    (cell(2, 2, '3'), ('line 3', 'FeatureName', 'is not in the nets')),
    (cell(2, 2, 'NOSE_TIP_X'), ('line 3', 'FeatureName', 'is not in the nets')),
    (cell(2, 2, 'x' * 3000), ('line 3', 'FeatureName', 'is not in the nets')),
    (cell(2, 2, '\x1b[2J'), ('line 3', 'FeatureName', 'is not in the nets')),
    (columns(lambda row: row[1:]), 'has no column RowId'),
    (columns(lambda row: row[:1] + row[2:]), 'has no column ImageId'),
    (columns(lambda row: row[:2] + row[3:]), 'has no column FeatureName'),
])
def test_lookup_tables(refused, good, change, words):
    refused(words, ['predict'], IdLookupTable_csv=change(good['IdLookupTable.csv']))


@pytest.mark.parametrize('labels, words', [
    (b'ImageId,nose_tip_x\n1,2\n', 'has no column nose_tip_y'),
    (b'ImageId,nose_tip_x,nose_tip_y\n1,2,3\n', 'has no row for the ImageId 2'),
    (b'ImageId,nose_tip_x,nose_tip_y\n1,2,x\n2,2,2\n3,3,3\n', ('line 2', "'x' is not a number")),
    (b'', 'labels.csv'),
])
def test_tables_of_true_labels(folder, good, capsys, monkeypatch, labels, words):
    monkeypatch.setattr(kfkd, 'FTESTLABELS', 'labels.csv')
    status, message = run(folder, dict(good, **{'labels.csv': labels}), ['predict'], capsys)
    os.remove(str(folder / 'labels.csv'))
    assert status == 1
    assert all(word in message for word in (words if isinstance(words, tuple) else (words,)))


# ------------------------------------------------------------- things that are no readable files

COMMANDS = [('training.csv', ['fit']), ('training.csv', []), ('test.csv', ['predict']),
            ('IdLookupTable.csv', ['predict']), ('net-specialists.pickle', ['predict']),
            ('net-specialists.pickle', ['plot_learning_curves']), ('net.pickle', ['fit_specialists'])]


def make_folder(path):
    path.mkdir()


def make_pipe(path):
    os.mkfifo(str(path))


def make_loop(path):
    os.symlink(path.name, str(path))


def make_dangling(path):
    os.symlink('nowhere', str(path))


def make_device(path):
    os.symlink('/dev/zero', str(path))


def make_huge(path):
    with open(str(path), 'wb') as f:
        f.truncate(10 ** 10)


def make_huge_with_header(path):
    with open(str(path), 'wb') as f:
        f.write(b'ImageId,Image\n1,')
        f.truncate(10 ** 10)


@pytest.mark.parametrize('make', [make_folder, make_pipe, make_loop, make_dangling, make_device,
                                  make_huge, make_huge_with_header])
@pytest.mark.parametrize('fname, argv', COMMANDS)
def test_what_is_no_file(folder, good, capsys, make, fname, argv):
    for name, data in good.items():
        (folder / name).write_bytes(data)
    os.remove(str(folder / fname))
    make(folder / fname)
    try:
        status, message = run(folder, {}, argv, capsys)
        assert status == 1 and fname in message
    finally:
        (folder / fname).rmdir() if make is make_folder else os.remove(str(folder / fname))


@pytest.mark.parametrize('fname, argv', COMMANDS)
def test_no_permission(folder, good, capsys, monkeypatch, fname, argv):
    path = folder / fname
    for name, data in good.items():
        (folder / name).write_bytes(data)
    if os.geteuid() == 0:  # root may read everything
        def refuse(name, *args, **kwargs):
            if os.path.basename(str(name)) == fname:
                raise PermissionError(13, 'Permission denied', str(name))
            return open(name, *args, **kwargs)
        monkeypatch.setattr('theano_today.nets.files.open', refuse, raising=False)
        status, message = run_unreadable(folder, argv, capsys)
    else:
        path.chmod(0)
        try:
            status, message = run_unreadable(folder, argv, capsys)
        finally:
            path.chmod(0o600)
    assert status == 1 and fname in message and 'Permission denied' in message


def run_unreadable(folder, argv, capsys):
    tables._tables.clear()
    capsys.readouterr()
    status = kfkd.main(argv)
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    return status, err


# ---------------------------------------------------------------------------------------- nets

def net(**attributes):
    return pickle.dumps(OrderedDict([(('nose_tip_x', 'nose_tip_y'), Constant(2, **attributes))]), -1)


@pytest.mark.parametrize('data', [
    b'', b'\n', b'not a pickle', bytes(100), b'\x80', b'\x80\x05', b'PK\x03\x04', b'\x89PNG\r\n\x1a\n',
    b'\x93NUMPY\x01\x00', b'cnowhere\nnothing\n.', b'\x80\x05N.', pickle.dumps(3), pickle.dumps('net'),
    pickle.dumps([1, 2]), pickle.dumps({}), pickle.dumps({'a': 1}), pickle.dumps({('a', 'b'): 1}),
    pickle.dumps([Constant(2)]), pickle.dumps({'nose': Constant(2)}), pickle.dumps({(): Constant(2)}),
    pickle.dumps({(1, 2): Constant(2)}), pickle.dumps({NAN: Constant(2)}),
    pickle.dumps(Constant(2)), pickle.dumps(np.zeros(3)), pickle.dumps(Constant),
    pickle.dumps(Constant(2, columns_='nose_tip_x')), pickle.dumps(b'x' * 1000, 2),
])
@pytest.mark.parametrize('argv', [['predict'], ['plot_learning_curves'],
                                  ['fit_specialists', 'net-specialists.pickle']])
def test_pickles_that_hold_no_nets(refused, data, argv):
    refused('net-specialists.pickle', argv, specialists_pickle=data)


@pytest.mark.parametrize('attributes', [
    dict(train_history_=None), dict(train_history_=[]), dict(train_history_=[1]),
    dict(train_history_=[{'epoch': 1}]), dict(train_history_='history'),
    dict(train_history_=[{'valid_loss': 'x', 'train_loss': 1.}]),
    dict(train_history_={'valid_loss': [1, 2]}), dict(train_history_=3)])
def test_nets_without_a_history_are_not_drawn(refused, attributes):
    data = net()
    nets = pickle.loads(data)
    for model in nets.values():
        vars(model).update(attributes)
    refused('holds a net that cannot be used', ['plot_learning_curves'],
            specialists_pickle=pickle.dumps(nets, -1))


@pytest.mark.parametrize('outputs', [1, 3, 0, -1, 'two', None, 2.5, 10 ** 12])
def test_nets_that_answer_something_else_do_not_predict(refused, outputs):
    nets = OrderedDict([(('nose_tip_x', 'nose_tip_y'), Constant(outputs))])
    refused('holds a net that cannot be used', ['predict'],
            specialists_pickle=pickle.dumps(nets, -1))


# -------------------------------------------------------------------------------- command line

@pytest.mark.parametrize('argv', [
    ['fly'], ['Fit'], ['fit', 'a', 'b'], ['report', 'a', 'b'], ['--fast'], ['fit', '--fast'],
    ['predict', '--fresh'], ['plot_learning_curves', '--fresh'], ['--fresh=1'], ['-x'], ['--', '--x'],
    ['', ''], ['main'], ['globals'], ['__import__'], ['fit; ls'], ['report', '--', 'a', 'b'],
])
def test_command_lines_with_usage(folder, good, capsys, argv):
    status, message = run(folder, good, argv, capsys)
    assert status == 2 and 'usage: python kfkd.py' in message


@pytest.mark.parametrize('step', ['predict', 'plot_learning_curves', 'fit', 'fit_specialists'])
@pytest.mark.parametrize('fname', [
    '', ' ', '.', '/', '..', 'nowhere/net.pickle', 'net.pickle/x', '~nobody/net.pickle', '\0', 'a\0b',
    '\udc80', 'x' * 5000, '\x1b[2J', 'training.csv', '/dev/null', '/dev/zero', '/proc/self/mem',
    '/etc/passwd', 'net\n.pickle'])
def test_names_that_are_no_nets(refused, step, fname):
    refused('kfkd.py: ', [step, fname])


# ----------------------------------------------------------------------------------- Hypothesis

damages = st.lists(st.tuples(
    st.sampled_from(['cut', 'insert', 'replace', 'repeat', 'end']),
    st.floats(0, 1), st.integers(0, 40), st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b',', b'\n', b'"', b'\r', b';', b'\0', b'nan', b'1e999', b'-', b' ', b'.',
                         b'\n\n', b'"""', b',,,', b'\xef\xbb\xbf', b'Image', b'0x1']))),
    min_size=1, max_size=4)


def damage(data, steps):
    for kind, where, length, piece in steps:
        at = int(where * len(data))
        if kind == 'cut':
            data = data[:at] + data[at + length:]
        elif kind == 'insert':
            data = data[:at] + piece + data[at:]
        elif kind == 'replace':
            data = data[:at] + piece + data[at + len(piece):]
        elif kind == 'repeat':
            data = data[:at] + data[at:at + length] * 3 + data[at + length:]
        else:
            data = data[:at]
    return data


def damaged(examples):
    def decorate(test):
        return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[
            HealthCheck.function_scoped_fixture, HealthCheck.too_slow])(
                given(steps=damages)(test))
    return decorate


@damaged(100)
def test_damaged_training_tables(folder, good, capsys, steps):
    header, rest = good['training.csv'].split(b'\n', 1)
    run(folder, dict(good, **{'training.csv': damage(header, steps) + b'\n' + rest}), ['fit'], capsys)
    run(folder, dict(good, **{'training.csv': damage(good['training.csv'], steps)}), ['fit'], capsys)


@damaged(150)
def test_damaged_cells_of_labels(folder, good, capsys, steps):
    rows = table(good['training.csv'])
    labels = damage(text([row[:-1] for row in rows[1:]]), steps).split(b'\n')
    lines = [label + b',' + row[-1].encode() for label, row in zip(labels, rows[1:])]
    data = b'\n'.join([','.join(rows[0]).encode()] + lines) + b'\n'
    run(folder, dict(good, **{'training.csv': data}), ['fit'], capsys)


@damaged(100)
def test_damaged_test_tables(folder, good, capsys, steps):
    run(folder, dict(good, **{'test.csv': damage(good['test.csv'], steps)}), ['predict'], capsys)


@damaged(150)
def test_damaged_lookup_tables(folder, good, capsys, steps):
    run(folder, dict(good, **{'IdLookupTable.csv': damage(good['IdLookupTable.csv'], steps)}),
        ['predict'], capsys)


@damaged(200)
def test_damaged_pickles(folder, good, capsys, steps):
    for argv in ['predict'], ['plot_learning_curves']:
        run(folder, dict(good, **{'net-specialists.pickle': damage(
            good['net-specialists.pickle'], steps)}), argv, capsys)


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(st.one_of(st.text(max_size=12), st.sampled_from(
    ['predict', 'plot_learning_curves', '--fresh', '-h', '--help', '-', '--', 'x.pickle'])),
    min_size=1, max_size=4))
def test_random_command_lines(folder, good, capsys, argv):
    run(folder, good, argv, capsys)


# -------------------------------------------------------------------------------- other places

def test_columns_in_another_order_mean_the_same(folder, good, capsys):
    """The mirrored pairs of the first net are known by the places of their columns."""
    rows = table(good['training.csv'])
    order = list(np.random.RandomState(1).permutation(31))
    shuffled = text([[row[i] for i in order] for row in rows])
    frames = []
    for data in good['training.csv'], shuffled:
        (folder / 'training.csv').write_bytes(data)
        tables._tables.clear()
        frames.append(kfkd.load())
    for a, b in zip(*frames):
        np.testing.assert_array_equal(a, b)


def test_outputs_stay_in_the_folder(folder, good, capsys):
    """An output that is a link is replaced by a file; what the link points to is left alone."""
    target = folder.parent / 'target'
    target.write_text('mine')
    os.symlink(str(target), str(folder / 'link.pickle'))
    with replacing(str(folder / 'link.pickle')) as f:
        f.write(b'net')
    assert target.read_text() == 'mine' and (folder / 'link.pickle').read_bytes() == b'net'
    os.remove(str(folder / 'link.pickle'))


def test_not_enough_memory_is_one_line(folder, good, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError
    monkeypatch.setattr(kfkd, 'load2d', full)
    status, message = run(folder, good, ['predict'], capsys)
    assert status == 1 and 'not enough memory' in message
