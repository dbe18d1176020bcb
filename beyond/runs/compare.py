"""Tell runs apart by their records: constants, circumstances, results, and one picture of the curves.

    compare(['runs/2026-11-22-101500-fit', 'runs/2026-11-22-112000-fit'], 'compare.png')
"""
import json
import os

import numpy as np
import pandas as pd
from matplotlib import pyplot, ticker

from theano_today.nets.files import FileError, open_regular

from ..figures import RUNS, write_figure


class RecordError(FileError):
    """A folder that is no record of a run; the message says what is wrong with it."""


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
            folder, f'history-{os.path.basename(name)}.csv')) for name in content['nets']}
        _check(content)
    except FileNotFoundError as error:
        missing = os.path.basename(str(error.filename))
        raise RecordError(f'{folder} is no record of a run: {missing} is not there.')
    except (FileError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError(f'{folder} is no record of a run: {one_line(error)}')
    return content


def one_line(error):
    """Write an error as part of a sentence."""
    return ' '.join(str(error).split())[:200]


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
                raise ValueError(f'{name}: {repr(part[name]):.100} is not expected there.')
    texts = [content['command']] + [net['columns'] for net in content['nets'].values()]
    if not all(isinstance(text, str) for part in texts for text in part) or not all(texts[1:]):
        raise ValueError('command and columns are lists of texts.')
    for name, history in content['histories'].items():
        history[['epoch', 'train_loss', 'valid_loss']].astype(float)
        net = content['nets'][name]
        if not 1 <= net['best_epoch'] <= net['epochs'] == len(history):
            raise ValueError(f'history-{name}.csv has {len(history)} epochs, the record tells of '
                             f'{net["epochs"]}.')


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
        found = {f'{fname}: {what}': value if what == 'rows' else value[:12]
                 for fname, data in record['data'].items() for what, value in data.items()}
        found.update(record['versions'])
        found.update(record['machine'])
        return found

    def results(record):
        found = {'state': record['state']}
        for name, net in record['nets'].items():
            found.update({
                f'{name}: validation RMSE': net['valid_rmse'],
                f'{name}: at epoch': '{best_epoch} of {epochs}'.format(**net),
                f'{name}: seconds': net['seconds']})
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
            print(f'{title}: none.')
        else:
            print(f'{title}:\n{table.fillna("-").to_string()}')
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
        for (run, record), color in zip(records.items(), RUNS * len(records)):
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
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.set(title='{}: {} column{}'.format(name, len(columns), 's' * (len(columns) > 1)),
                 xlabel='epoch', ylabel=f'RMSE ({unit})' if unit else 'square root of the loss',
                 ylim=(0, None))
        axis.grid(alpha=0.4)
    axes[0, 0].plot([], [], '-', color='gray', label='solid: validation')
    axes[0, 0].plot([], [], '--', color='gray', label='dashed: training')
    fig.legend(loc='outside lower center', ncols=2)
    write_figure(fig, fname)
