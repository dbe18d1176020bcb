"""A record of every run: which constants gave which curve, in a folder that nothing overwrites.

    runs/2026-11-22-184500-fit/
        record.json         when, how long, how it ended; seed, data, machine, versions; results
        experiment.yaml     the constants: `python kfkd.py --config .../experiment.yaml fit` reruns them
        history-net.csv     losses and seconds of each epoch; a file for each net
        kfkd.py             the program itself, should its code have been edited
        net.pickle, *.png   what the run wrote, by hard links where the file system has them

`python kfkd.py compare RUN...` says what differs between runs; `compare` here does the work.
"""
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from datetime import datetime
from importlib import metadata

import numpy as np
import pandas as pd
from matplotlib import pyplot, ticker

from theano_today.nets.files import FileError, open_regular, replacing

from . import config

PACKAGES = ('theano', 'lasagne', 'nolearn', 'numpy', 'scipy', 'scikit-learn', 'pandas', 'matplotlib')

# Okabe and Ito's colours, as in kfkd.py.
COLORS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#999933', '#000000']


class RecordError(FileError):
    """A folder that is no record of a run; the message says what is wrong with it."""


class Record(object):
    """What a run leaves behind.  Its folder is made when there is a trained net to tell of.

    Used as a context manager around the run: what ends the block, or no exception, is how the run
    ended.

    Parameters
    ----------
    root : str or None
        The folder of all records; None for no record at all.
    name : str
        What the run does, a part of the folder's name.
    module : module
        The program: its constants (names in capitals) are recorded as they are at the end.
    argv : sequence of str
        The command line.
    """
    def __init__(self, root=None, name='', module=None, argv=()):
        self.root, self.name, self.module = root, name, module
        self.folder = None
        self.files = []
        self.content = dict(
            name=name, command=list(argv), state='running', message='',
            started=datetime.now().isoformat(timespec='seconds'), seconds=None,
            constants={}, data={}, nets={}, results={}, machine={}, versions={})
        self._start = time.time()

    def __enter__(self):
        if self.root is not None and os.path.lexists(self.root) and not os.path.isdir(self.root):
            raise FileError('{} is a file: the records of runs need a folder of that name.'.format(
                self.root))  # now, not after the training
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            state = 'finished'
        else:
            state = 'stopped' if issubclass(kind, KeyboardInterrupt) else 'failed'
        self.content.update(state=state, message=str(error or ''))
        if self.folder:
            with contextlib.suppress(FileError) if kind else contextlib.nullcontext():
                self.write()  # a full disk must not hide what ended the run

    def data(self, fname, rows):
        """Note which data the run sees: rows, and the SHA-256 of the file as `sha256sum` prints it."""
        fname = os.path.expanduser(fname)
        if self.root is None or os.path.basename(fname) in self.content['data']:
            return
        self.content['data'][os.path.basename(fname)] = dict(rows=rows, sha256=sha256(fname))

    def net(self, name, model, columns, scale=1):
        """Note a trained net: its curve, and the errors at its best epoch.

        Parameters
        ----------
        name : str
            'net', 'specialist-1', ...
        model : NeuralNet
        columns : sequence of str
            What the net predicts.
        scale : float
            From the square root of the loss to the unit of the labels: 48 for pixels.
        """
        if self.root is None or not model.train_history_:
            return
        history = pd.DataFrame([{key: value for key, value in row.items() if np.isscalar(value)}
                                for row in model.train_history_])
        best = history['valid_loss'].idxmin() if history['valid_loss'].notna().any() else 0
        rmse = scale * np.sqrt(history.loc[best, ['train_loss', 'valid_loss']].astype(float))
        self.content['nets'][name] = dict(
            columns=list(columns), epochs=len(history), best_epoch=int(history['epoch'][best]),
            valid_rmse=_number(rmse['valid_loss']), train_rmse=_number(rmse['train_loss']),
            seconds=round(float(history['dur'].sum()), 2))
        self._make_folder()
        with replacing(os.path.join(self.folder, 'history-{}.csv'.format(name))) as f:
            history.to_csv(f, index=False)
        self.write()

    def result(self, **results):
        """Note numbers that the run ends in."""
        self.content['results'].update(results)

    def keep(self, fname):
        """Keep a file that the run has written, as it is now."""
        if self.root is None:
            return
        self.files.append(os.path.abspath(fname))
        if self.folder:
            self._keep_files()

    def write(self):
        """Write record.json and experiment.yaml as of now."""
        constants = constants_of(self.module)
        self.content.update(constants=constants, seconds=round(time.time() - self._start, 2))
        with replacing(os.path.join(self.folder, 'record.json')) as f:
            f.write(json.dumps(self.content, indent=1).encode())
        with replacing(os.path.join(self.folder, 'experiment.yaml')) as f:
            f.write(config.text(constants, vars(self.module).get('NET')).encode())
        self._keep_files()

    def _make_folder(self):
        if self.folder:
            return
        path = os.path.join(self.root, '{}-{}'.format(
            datetime.now().strftime('%Y-%m-%d-%H%M%S'), self.name))
        for number in range(1, 1000):
            folder = path if number == 1 else '{}-{}'.format(path, number)
            try:
                os.makedirs(folder)
            except FileExistsError:
                continue
            except OSError as error:
                raise FileError('{} cannot be made: {}.'.format(folder, error.strerror)) from error
            break
        self.folder = folder
        self.content.update(machine=_machine(), versions=_versions())
        self.files.append(os.path.abspath(self.module.__file__))
        print('The record of this run is in {}.'.format(folder))

    def _keep_files(self):
        while self.files:
            fname = self.files.pop(0)
            copy = os.path.join(self.folder, os.path.basename(fname))
            with contextlib.suppress(OSError):
                os.remove(copy)
            try:
                if fname == os.path.abspath(self.module.__file__):
                    raise OSError  # editors may write into the file itself
                os.link(fname, copy)  # `replacing` gives the next file of this name an inode of its own
            except OSError:
                try:
                    shutil.copy2(fname, copy)
                except OSError as error:
                    raise FileError('{} cannot be written: {}.'.format(
                        copy, error.strerror or error)) from error


def sha256(fname):
    """SHA-256 of a file, as `sha256sum` prints it."""
    sha = hashlib.sha256()
    with open_regular(fname) as f:
        for block in iter(lambda: f.read(1 << 20), b''):
            sha.update(block)
    return sha.hexdigest()


def constants_of(module):
    """Return the constants of a program that a record has: all but paths of this machine."""
    folder = os.path.dirname(os.path.abspath(module.__file__))
    return config.describe_constants(module, [
        name for name, value in vars(module).items()
        if isinstance(value, str) and value.startswith(folder)])


def _number(value):
    return None if not np.isfinite(value) else round(float(value), 6)


def _machine():
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
        model = next((line.partition(':')[2].strip() for line in f if line.startswith('model name')),
                     model)
    return dict(system=platform.platform(), processor=model, cores=os.cpu_count(),
                threads=os.environ.get('OMP_NUM_THREADS', 'all'),
                theano_flags=os.environ.get('THEANO_FLAGS', ''))


def _versions():
    versions = dict(python=sys.version.split()[0])
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# ---------------------------------------------------------------------------------------- comparing

def read(folder):
    """Read the record in a folder.

    Returns
    -------
    dict
        The content of record.json, and `histories`: a DataFrame for each net.

    Raises
    ------
    RecordError
        If there is none, or it is damaged.
    """
    fname = os.path.join(folder, 'record.json')
    try:
        with open_regular(fname) as f:
            content = json.loads(f.read().decode())
        content['histories'] = {name: pd.read_csv(os.path.join(
            folder, 'history-{}.csv'.format(os.path.basename(name)))) for name in content['nets']}
        _check(content)
    except FileNotFoundError as error:
        raise RecordError('{} is no record of a run: {} is not there.'.format(
            folder, os.path.basename(str(error.filename))))
    except (FileError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError('{} is no record of a run: {}'.format(
            folder, ' '.join(str(error).split())[:200]))
    return content


def _check(content):
    """Raise ValueError for a part of a record that is not what `Record` writes."""
    number = (int, float, type(None))
    kinds = [(content, dict(name=str, command=list, state=str, message=str, started=str,
                            seconds=number, constants=dict, results=dict, versions=dict,
                            machine=dict))]
    kinds += [(data, dict(rows=int, sha256=str)) for data in content['data'].values()]
    kinds += [(net, dict(columns=list, epochs=int, best_epoch=int, valid_rmse=number,
                         train_rmse=number, seconds=number)) for net in content['nets'].values()]
    for part, expected in kinds:
        for name, kind in expected.items():
            if not isinstance(part[name], kind) or isinstance(part[name], (int, float)) and not (
                    abs(part[name]) < 1e300):  # nor is it NaN
                raise ValueError('{}: {:.100} is not expected there.'.format(
                    name, repr(part[name])))
    texts = [content['command']] + [net['columns'] for net in content['nets'].values()]
    if not all(isinstance(text, str) for part in texts for text in part) or not all(texts[1:]):
        raise ValueError('command and columns are lists of texts.')
    for name, history in content['histories'].items():
        history[['epoch', 'train_loss', 'valid_loss']].astype(float)
        if not 1 <= content['nets'][name]['best_epoch'] <= content['nets'][name]['epochs'] == len(
                history):
            raise ValueError('history-{}.csv has {} epochs, the record tells of {}.'.format(
                name, len(history), content['nets'][name]['epochs']))


def differences(records):
    """What differs between records, as a table.

    Parameters
    ----------
    records : dict
        Records as `read` returns them, by the names that they shall have in the table.

    Returns
    -------
    constants, circumstances, results : DataFrame
        A column for each record.  Rows of the first two are what is not the same in all of them:
        constants; data, versions and machine.
    """
    def table(rows, which=lambda cells: True):
        cells = {name: rows(record) for name, record in records.items()}
        names = list(dict.fromkeys(row for column in cells.values() for row in column))
        chosen = [row for row in names if which([column.get(row) for column in cells.values()])]
        return pd.DataFrame({name: [column.get(row) for row in chosen]
                             for name, column in cells.items()}, index=chosen, dtype=object)

    def differ(cells):
        return len({json.dumps(cell) for cell in cells}) > 1

    def known_to_differ(cells):  # a run that only trains does not look at the test data
        return differ([cell for cell in cells if cell is not None])

    def circumstances(record):
        found = {'{}: {}'.format(fname, what): value if what == 'rows' else value[:12]
                 for fname, data in record['data'].items() for what, value in data.items()}
        found.update(record['versions'])
        found.update(record['machine'])
        return found

    def results(record):
        found = {'state': record['state']}
        for name, net in record['nets'].items():
            found.update({
                '{}: validation RMSE'.format(name): net['valid_rmse'],
                '{}: at epoch'.format(name): '{best_epoch} of {epochs}'.format(**net),
                '{}: seconds'.format(name): net['seconds']})
        found.update(record['results'])
        found['seconds in all'] = record['seconds']
        return found

    return (table(lambda record: record['constants'], differ), table(circumstances, known_to_differ),
            table(results))


def compare(folders, fname, scale=1, unit=''):
    """Print what differs between runs, and draw their learning curves into one figure.

    Parameters
    ----------
    folders : sequence of str
        Records of runs, at least two.
    fname : str
        The picture to write.
    scale, unit : float, str
        Factor of the error and its name: 48, 'pixels' for faces.

    Raises
    ------
    RecordError
    """
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    if len(set(names)) < len(names):
        names = [os.path.abspath(folder) for folder in folders]
    records = {name: read(folder) for name, folder in zip(names, folders)}
    constants, circumstances, results = differences(records)
    for title, table in (('Constants that differ', constants),
                         ('What else differs', circumstances), ('Results', results)):
        if table.empty:
            print('{}: none.'.format(title))
        else:
            print('{}:\n{}'.format(title, table.fillna('-').to_string()))
        print()
    plot(records, scale, unit, fname)


def plot(records, scale, unit, fname):
    """Draw the validation (solid) and training (dashed) curves of records; write the picture."""
    nets = [name for name in dict.fromkeys(
        name for record in records.values() for name in record['histories'])]
    columns = min(len(nets), 3)
    rows = -(-len(nets) // columns)
    fig, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns + 1, 3.4 * rows + 1),
                                squeeze=False, layout='constrained')
    for axis in axes.flat:
        axis.set_visible(False)
    for name, axis in zip(nets, axes.flat):
        axis.set_visible(True)
        for (run, record), color in zip(records.items(), COLORS * len(records)):
            if name not in record['histories']:
                continue
            history = record['histories'][name]
            for what, style in (('valid_loss', '-'), ('train_loss', '--')):
                axis.plot(history['epoch'], scale * np.sqrt(history[what]), style, color=color,
                          linewidth=2 if style == '-' else 1.2,
                          marker='o' if len(history) == 1 else None,
                          label=run if style == '-' and name == nets[0] else None)
        columns = next(record['nets'][name]['columns'] for record in records.values()
                       if name in record['nets'])
        axis.set_title('{}: {} column{}'.format(
            name, len(columns), 's' if len(columns) > 1 else ''))
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.set_xlabel('epoch')
        axis.set_ylabel('RMSE ({})'.format(unit) if unit else 'square root of the loss')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.4)
    axes[0, 0].plot([], [], '-', color='gray', label='solid: validation')
    axes[0, 0].plot([], [], '--', color='gray', label='dashed: training')
    fig.legend(loc='outside lower center', ncols=2)
    with replacing(fname) as f:
        fig.savefig(f, format='png', dpi=120)
    pyplot.close(fig)
    print('Wrote {}.'.format(fname))
