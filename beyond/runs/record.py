"""A record of every run: which constants gave which curve, in a folder that nothing overwrites.

    runs/2026-11-22-184500-fit/
        record.json         when, how long, how it ended; seed, data, machine, versions; results
        experiment.yaml     the constants: `python kfkd.py --config .../experiment.yaml fit` reruns them
        history-net.csv     losses and seconds of each epoch; a file for each net
        kfkd.py             the program itself, should its code have been edited
        net.pickle, *.png   what the run wrote, by hard links where the file system has them

    with Record('runs', 'fit', lambda: constants, 'kfkd.py') as record:
        net.fit(X, y)
        note_net('net', net, columns)   # of the record that is open, if one is
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

from data.tables import open_table
from theano_today.nets.checkpoint import processor
from theano_today.nets.files import FileError, replacing

from . import experiment

PACKAGES = ('theano', 'lasagne', 'nolearn', 'numpy', 'scipy', 'scikit-learn', 'pandas', 'matplotlib')


class Record:
    """What a run leaves behind.  Its folder is made when there is a trained net to tell of.

    Used as a context manager around the run: what ends the block, or no exception, is how the run
    ended.  Within the block, `note_data`, `note_net`, `note_result` and `keep` tell this record what
    there is to keep; where no record is open they do nothing, so that every step may call them.

    Parameters
    ----------
    root : str or None
        The folder of all records; None for no record at all.
    name : str
        What the run does, a part of the folder's name.
    constants : callable
        Returns the constants of the program as attributes; recorded are those at the end.
    program : str
        The file of the program.
    argv : sequence of str, optional
        The command line; that of this process if it is None.
    """

    def __init__(self, root, name, constants, program, argv=None):
        self.root, self.name, self.constants = root, name, constants
        self.program = os.path.abspath(program)
        self.folder = None
        self.files = []
        self.content = dict(
            name=name, command=list(sys.argv[1:] if argv is None else argv), state='running', message='',
            started=datetime.now().isoformat(timespec='seconds'), seconds=None,
            constants={}, data={}, nets={}, results={}, machine={}, versions={})
        self._start = time.time()

    def __enter__(self):
        if self.root is not None and os.path.lexists(self.root) and not os.path.isdir(self.root):
            # now, not after the training
            raise FileError(
                f'{self.root} is a file: the records of runs need a folder of that name.')
        if self.root is not None:
            _open.append(self)
        return self

    def __exit__(self, kind, error, traceback):
        if self in _open:
            _open.remove(self)
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
        if os.path.basename(fname) in self.content['data']:
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
        if not model.train_history_:
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
        with replacing(os.path.join(self.folder, f'history-{name}.csv')) as f:
            history.to_csv(f, index=False)
        self.write()

    def result(self, **results):
        """Note numbers that the run ends in."""
        self.content['results'].update(results)

    def keep(self, fname):
        """Keep a file that the run has written, as it is now."""
        self.files.append(os.path.abspath(fname))
        if self.folder:
            self._keep_files()

    def write(self):
        """Write record.json and experiment.yaml as of now."""
        constants = vars(self.constants())
        described = experiment.described(constants, os.path.dirname(self.program))
        self.content.update(constants=described, seconds=round(time.time() - self._start, 2))
        with replacing(os.path.join(self.folder, 'record.json')) as f:
            f.write(json.dumps(self.content, indent=1).encode())
        with replacing(os.path.join(self.folder, 'experiment.yaml')) as f:
            f.write(experiment.text(described, constants.get('NET')).encode())
        self._keep_files()

    def _make_folder(self):
        if self.folder:
            return
        path = os.path.join(self.root, f'{datetime.now():%Y-%m-%d-%H%M%S}-{self.name}')
        for number in range(1, 1000):
            folder = path if number == 1 else f'{path}-{number}'
            try:
                os.makedirs(folder)
            except FileExistsError:
                continue
            except OSError as error:
                raise FileError(f'{folder} cannot be made: {error.strerror}.') from error
            break
        self.folder = folder
        self.content.update(versions=_versions(), machine=dict(
            system=platform.platform(), processor=processor(), cores=os.cpu_count(),
            threads=os.environ.get('OMP_NUM_THREADS', 'all'),
            theano_flags=os.environ.get('THEANO_FLAGS', '')))
        self.files.append(self.program)
        print(f'The record of this run is in {folder}.')

    def _keep_files(self):
        while self.files:
            fname = self.files.pop(0)
            copy = os.path.join(self.folder, os.path.basename(fname))
            with contextlib.suppress(OSError):
                os.remove(copy)
            try:
                if fname == self.program:
                    raise OSError  # editors may write into the file itself
                os.link(fname, copy)  # `replacing` gives the next file of this name an inode of its own
            except OSError:
                try:
                    shutil.copy2(fname, copy)
                except OSError as error:
                    raise FileError(
                        f'{copy} cannot be written: {error.strerror or error}.') from error


_open = []  # the records that are open: that of the run


def note_data(fname, rows):
    """Note which data the run sees (`Record.data`)."""
    for record in _open:
        record.data(fname, rows)


def note_net(name, model, columns, scale=1):
    """Note a trained net (`Record.net`)."""
    for record in _open:
        record.net(name, model, columns, scale)


def note_result(**results):
    """Note numbers that the run ends in (`Record.result`)."""
    for record in _open:
        record.result(**results)


def keep(fname):
    """Keep a file that the run has written (`Record.keep`)."""
    for record in _open:
        record.keep(fname)


def sha256(fname):
    """SHA-256 of a file, as `sha256sum` prints it; in one of Kaggle's zip files, unpacked."""
    sha = hashlib.sha256()
    with open_table(fname) as (f, _):
        for block in iter(lambda: f.read(1 << 20), b''):
            sha.update(block)
    return sha.hexdigest()


def _number(value):
    return None if not np.isfinite(value) else round(float(value), 6)


def _versions():
    versions = dict(python=sys.version.split()[0])
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
