"""Read and check the CSV files of Kaggle's facial-keypoints-detection, and look a submission up.

    faces = read_faces('data/training.csv')     # label columns in pixels, and Image
    answers = look_up(predictions, 'data/IdLookupTable.csv', 'data/test.csv')

Whatever is wrong in a file is a `FileError` that names the file, the line and the column; what is
odd, but can be used, is printed.
"""
import contextlib
import csv
import io
import os
import re
import warnings
import zipfile
import zlib
from datetime import datetime

import numpy as np
import pandas as pd

from theano_today.nets.files import FileError, open_regular, replacing

from .make_faces import COLUMNS, xy

__all__ = ['COLUMNS', 'are_there', 'check_columns', 'check_enough', 'check_rows', 'farthest_cell',
           'image_ids', 'look_up', 'open_table', 'read_faces', 'read_table', 'score', 'select',
           'write_submission', 'xy', 'zip_of']

LARGEST = 4e9   # bytes of a file; Kaggle's have 0.24e9
ALL_IN_ONE = 'facial-keypoints-detection.zip'   # Kaggle's "Download all"


def are_there(*fnames):
    """Tell whether one of these files is there, or in one of Kaggle's zip files beside it."""
    return any(os.path.exists(fname) or zip_of(fname) for fname in fnames)


def zip_of(fname):
    """Return the path of the zip file that has a missing `fname` in it, as Kaggle packs it, or None.

    That of training.csv is training.zip or training.csv.zip, in the same folder; or the one with
    all files of the contest, where training.csv may be packed once more.
    """
    folder, name = os.path.split(os.path.expanduser(fname))
    if os.path.exists(os.path.join(folder, name)):
        return None
    for packed in (os.path.splitext(name)[0] + '.zip', name + '.zip', ALL_IN_ONE):
        path = os.path.join(folder, packed)
        if os.path.isfile(path):
            if packed != ALL_IN_ONE:
                return path
            with _unzipping(path), zipfile.ZipFile(path) as archive:
                if _member(archive, name):
                    return path
    return None


def _member(archive, name):
    """Return the entry of a zip file that is the file `name`, or its zip file, or None."""
    for wanted in (name, os.path.splitext(name)[0] + '.zip', name + '.zip'):
        for info in archive.infolist():
            if info.filename.split('/')[-1] == wanted and '__MACOSX' not in info.filename:
                return info
    return None


@contextlib.contextmanager
def _unzipping(path):
    """Tell that a zip file is to blame for an error of its kind in the block."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: it has a password
        raise FileError(f'{path} cannot be unpacked: {str(error).rstrip(".")}. Is the download '
                        'complete? Download it again, or unpack it yourself.') from error


@contextlib.contextmanager
def open_table(fname, largest=LARGEST):
    """Open a file, or what bears its name in one of Kaggle's zip files beside it (`zip_of`).

    Yields
    ------
    f : binary file
        At its start; it can be read again after ``f.seek(0)``.
    size : int
        Bytes in it.

    Raises
    ------
    FileNotFoundError
    FileError
        If it is there, but cannot be read, unpacked, or is larger than `largest`.
    """
    path = zip_of(fname)
    if path is None:
        with open_regular(fname) as f:
            yield f, os.fstat(f.fileno()).st_size
        return
    name = os.path.basename(fname)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_unzipping(path))
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_regular(path))))
        info = _member(archive, name)
        if info and info.filename.endswith('.zip'):  # packed once more
            _check_size(info.file_size, f'{info.filename} in {path}', largest)
            archive = stack.enter_context(zipfile.ZipFile(io.BytesIO(archive.read(info))))
            info = _member(archive, name)
        if not info or info.filename.endswith('.zip'):
            raise FileError(f'{path} has no {name} in it.')
        _check_size(info.file_size, f'{name} in {path}', largest)  # zipfile reads no more than it
        yield stack.enter_context(archive.open(info)), info.file_size


def _check_size(size, what, largest):
    if size > largest:
        raise FileError(f'{what} has {size / 1e9:.1f} GB; at most {largest / 1e9:.1f} are '
                        'expected. Is it the right file? LARGEST_TABLE allows more.')


def read_table(fname, columns, largest=LARGEST):
    """Read a CSV file that has at least the given columns.

    Raises
    ------
    FileError
        If there is no such file, or it is not a CSV file with these columns.
    """
    fname = os.path.expanduser(fname)
    try:
        with open_table(fname, largest) as (f, size):
            header = _check_header(f, fname, size, largest)
            with warnings.catch_warnings():
                # Rows longer than the header; pandas would take their first cells for an index.
                warnings.simplefilter('error', pd.errors.ParserWarning)
                table = pd.read_csv(f, index_col=False)
    except FileNotFoundError:
        raise FileError(f'{fname} is not there. data/README.md says where to get it.') from None
    except FileError:
        raise
    except (OSError, ValueError, csv.Error, pd.errors.ParserWarning) as error:
        # ValueError: pandas' parser errors, bad encodings
        said = str(error).strip().rstrip('.')
        raise FileError(f'{fname} cannot be read as a CSV file: {said}.') from error
    for name in columns:
        if name not in table.columns:
            raise FileError(f'{fname} has no column {name}. Its columns are: '
                            f'{repr(header[:5])[1:-1][:200]}. Is it the right file, separated by '
                            'commas?')
    if table.empty:
        raise FileError(f'{fname} has a header but no rows.')
    return table


def _check_header(f, fname, size, largest):
    """Return the names in the header of an open CSV file; look before pandas takes gigabytes."""
    _check_size(size, fname, largest)
    start = f.read(1 << 20)
    f.seek(0)
    if b'\0' in start:
        raise FileError(f'{fname} is not a CSV file: it has zero bytes (another encoding, or '
                        'binary data). Save it as UTF-8.')
    if b'\n' not in start and b'\r' not in start and len(start) < size:
        raise FileError(f'{fname} is not a CSV file: its first line does not end.')
    header = next(csv.reader(start.decode('utf-8-sig', 'replace').splitlines()), [])
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise FileError(f'{fname} has the column {repeated[0][:100]!r} twice.')
    return header


def _numbers(table, name, fname, whole=False):
    """Return a column of `table` as numbers; raise FileError for the first cell that is not one."""
    column = pd.to_numeric(table[name].astype(object), errors='coerce').astype(float)
    bad = column.isna() & (table[name].notna() | whole)
    bad |= np.isinf(column)
    bad |= table[name].map(lambda cell: isinstance(cell, (bool, np.bool_)))  # 1 and 0 to pandas
    if whole:
        bad |= (column != column.round()) | (column.abs() > 2 ** 53)
    if bad.any():
        row = bad.idxmax()
        number = 'whole number' if whole else 'number'
        raise FileError(f'{fname}, line {row + 2}, column {name}: '
                        f'{_shown(table[name][row]):.100} is not a {number}.')
    return column.astype(int) if whole else column


_tables = {}  # name of a file: its time and size, and what `read_faces` has made of it


def read_faces(fname, largest=LARGEST):
    """Read training.csv or test.csv and print what is odd in it.

    The file is parsed once and kept until it changes: a net and six specialists ask for it in turn.

    Returns
    -------
    pandas.DataFrame
        The label columns (or ImageId) as numbers, and at the end Image: arrays of 9216 pixels.

    Raises
    ------
    FileError
        If the file is missing or a cell cannot be used, by line and column.
    """
    fname = os.path.expanduser(fname)
    path = zip_of(fname) or fname
    key = os.path.exists(path) and (path, os.stat(path).st_mtime_ns, os.stat(path).st_size)
    if fname in _tables and _tables[fname][0] == key:
        return _tables[fname][1].copy()

    df = read_table(fname, ['Image'], largest)
    df = df[[name for name in df.columns if name != 'Image'] + ['Image']]
    for name in df.columns[:-1]:
        df[name] = _numbers(df, name, fname, whole=name == 'ImageId')
    repeated = df.duplicated()

    order = [name for name in COLUMNS if name in df.columns]
    if set(order) == set(df.columns[:-1]):  # the mirrored pairs are known by their places
        df = df[order + ['Image']]

    no_image = ~df['Image'].map(lambda image: isinstance(image, str))
    if no_image.any():
        raise FileError(f'{fname}, line {no_image.idxmax() + 2}: there is no image.')
    df['Image'] = df['Image'].apply(_parse_image)
    lengths = df['Image'].map(len)
    if (lengths != 96 * 96).any():
        row = (lengths != 96 * 96).idxmax()
        raise FileError(f'{fname}, line {row + 2}, column Image: {lengths[row]} pixels could be '
                        'read, 96x96 = 9216 are needed.')

    finite = df['Image'].map(lambda image: np.isfinite(image).all())
    if not finite.all():
        raise FileError(f'{fname}, line {(~finite).idxmax() + 2}, column Image: there is a pixel '
                        'that is no number.')

    odd = df['Image'].map(lambda im: not (im.min() >= 0 and im.max() <= 255))
    _tell(fname, odd, 'pixels outside 0..255')
    for name in df.columns[:-1]:
        if name != 'ImageId':
            _tell(fname, (df[name] < 0) | (df[name] > 96), name + ' outside the image (0..96)')
    _tell(fname, repeated, 'the same values as an earlier row')

    _tables[fname] = key, df
    return df.copy()


def _shown(value):
    """A cell of a table as a message shows it; NumPy 2 would write np.float64(1.5)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _parse_image(text):
    """Return the numbers in a string as an array, up to the first thing that is not a number.

    If there is such a thing after 96x96 numbers, it counts as one more.
    """
    # Whole numbers, as in Kaggle's files, are read ten times faster as such.
    image, whole = _leading_numbers(text, np.int64)
    if not whole or len(image) != 96 * 96:
        image, whole = _leading_numbers(text, np.float32)
        if not whole and len(image) == 96 * 96:
            return np.append(image, np.float32(np.nan))
    with np.errstate(invalid='ignore'):
        small = image.astype(np.uint8)  # a quarter of the memory
    return small if (small == image).all() else image


def _leading_numbers(text, dtype):
    """Return the numbers that a string begins with, and whether there is nothing else in it."""
    with warnings.catch_warnings():
        # Where it finds something else NumPy warns; an error since 2.3.
        warnings.simplefilter('error', DeprecationWarning)
        try:
            return np.fromstring(text, sep=' ', dtype=dtype), True
        except (DeprecationWarning, ValueError):
            pass
    numbers = []
    for word in text.split():
        number = re.match(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)', word, re.IGNORECASE)
        try:
            numbers.append(dtype(number.group() if number else word))
        except (ValueError, OverflowError):
            break
        if number.group() != word:
            break
    return np.array(numbers, dtype), False


def _tell(fname, odd, what):
    """Print how many rows are odd, and the line of the first."""
    if odd.any():
        print(f'{os.path.basename(fname)}: {odd.sum()} of {len(odd)} rows have {what} '
              f'(first: line {odd.idxmax() + 2}).')


def select(df, cols, fname):
    """Return some label columns of faces, and Image.

    Raises
    ------
    FileError
        If the file `fname` has no such column.
    """
    missing = [name for name in cols if name not in df.columns]
    if missing:
        raise FileError(f'{fname} has no column {missing[0]}.')
    return df[list(cols) + ['Image']]


def check_rows(df, fname):
    """Raise FileError if no row was left when those with missing values were dropped."""
    if df.empty:
        raise FileError(f'{fname}: no row has a value in each of the columns '
                        f'{", ".join(df.columns[:-1])}.')


def check_columns(fname):
    """Raise FileError if faces to train on have other label columns than `COLUMNS`."""
    df = read_faces(fname)
    odd = sorted(set(df.columns[:-1]) ^ set(COLUMNS))
    if odd:
        verb = 'lacks' if odd[0] in COLUMNS else 'has'
        raise FileError(f'{fname} {verb} the column {odd[0]!r:.100}: it must have the 30 columns '
                        'of data/README.md and Image.')


def check_enough(faces, eval_size, fname):
    """Raise FileError if there are too few faces to keep a share of them for validation.

    Parameters
    ----------
    faces : sequence
    eval_size : float
        The share; 0 keeps none.
    fname : str
        Where they are from.
    """
    if not 0 <= eval_size < 2 / 3:  # of two folds at least, which nolearn makes, one is kept
        raise FileError(f'EVAL_SIZE is the share of the faces that is kept for validation, from 0 '
                        f'(none) to 0.66, not {eval_size!r}.')
    if len(faces) == 0 or eval_size and len(faces) * eval_size < 1:
        raise FileError(f'{len(faces)} rows of {fname} are too few to keep {eval_size:.0%} for '
                        'validation.')


def farthest_cell(fname, limit=1000):
    """Name the cell of training faces that lies farthest off, if that is absurdly far.

    Parameters
    ----------
    fname : str
    limit : float
        Pixels from the middle of the image, or grey values; 1000 is ten times the image's size.

    Returns
    -------
    str or None
        File, line, column and value.
    """
    df = read_faces(fname)
    far = {name: (df[name] - 48).abs() for name in df.columns[:-1]}
    far['Image'] = df['Image'].map(lambda image: np.abs(image.astype(float)).max())
    name = max(far, key=lambda name: far[name].max())
    if not far[name].max() > limit:
        return None
    row = far[name].idxmax()
    value = far[name][row] if name == 'Image' else df[name][row]
    return f'{fname}, line {row + 2}, column {name}: {value:g}'


# ---------------------------------------------------------------------------- what predictions need

def image_ids(fname):
    """ImageId of each row of the test faces; rows are numbered from 1 without such a column."""
    faces = read_faces(fname)
    if 'ImageId' not in faces.columns:
        return pd.RangeIndex(1, len(faces) + 1)
    repeated = faces['ImageId'].duplicated()
    if repeated.any():
        raise FileError(f'{fname}, line {repeated.idxmax() + 2}: the ImageId '
                        f'{faces["ImageId"][repeated.idxmax()]} is there twice.')
    return pd.Index(faces['ImageId'])


def look_up(predictions, fname, ftest, largest=LARGEST):
    """Pick from predictions what a lookup table asks for.

    Parameters
    ----------
    predictions : DataFrame
        Positions in pixels, by ImageId (rows) and label column.
    fname : str
        The lookup table, with the columns RowId, ImageId and FeatureName.
    ftest : str
        Where the ImageIds are from, for messages.

    Returns
    -------
    DataFrame
        RowId and Location, a row for each row of the table.
    """
    table = read_table(fname, ['RowId', 'ImageId', 'FeatureName'], largest)
    row_id, image_id = (_numbers(table, name, fname, whole=True) for name in ('RowId', 'ImageId'))
    if row_id.duplicated().any():
        row = row_id.duplicated().idxmax()
        raise FileError(f'{fname}, line {row + 2}, column RowId: {row_id[row]} is there twice.')
    rows = predictions.index.get_indexer(image_id)
    columns = predictions.columns.get_indexer(table['FeatureName'])
    for found, name, where in ((rows, 'ImageId', ftest), (columns, 'FeatureName', 'the nets')):
        if (found < 0).any():
            row = (found < 0).argmax()
            raise FileError(f'{fname}, line {row + 2}, column {name}: '
                            f'{_shown(table[name][row]):.100} is not in {where}.')
    return pd.DataFrame({'RowId': row_id, 'Location': predictions.values[rows, columns]})


def score(predictions, fname, ftest, ftrain, largest=LARGEST):
    """Print the errors on the true positions of test faces: of predictions, and of a guess.

    Parameters
    ----------
    predictions : DataFrame
        As for `look_up`.
    fname : str
        The true positions, by ImageId.
    ftest : str
        Where the ImageIds are from, for messages.
    ftrain : str
        Training faces: the mean of their labels is the guess.

    Returns
    -------
    dict
        test_rmse and test_rmse_of_mean, in pixels.
    """
    columns = list(predictions.columns)
    labels = read_table(fname, ['ImageId'] + columns, largest)
    for name in ['ImageId'] + columns:
        labels[name] = _numbers(labels, name, fname, whole=name == 'ImageId')
    labels = labels.drop_duplicates('ImageId').set_index('ImageId')
    missing = predictions.index.difference(labels.index)
    if len(missing):
        raise FileError(f'{fname} has no row for the ImageId {missing[0]} of {ftest}.')
    truth = labels.loc[predictions.index, columns].values
    mean = read_faces(ftrain)[columns].mean().values
    rmse, rmse_of_mean = (np.sqrt(np.nanmean((guess - truth) ** 2))
                          for guess in (predictions.values, mean))
    print(f'Test RMSE: {rmse:.3f} pixels. Guessing the mean of the training labels: '
          f'{rmse_of_mean:.3f}. Ratio: {rmse / rmse_of_mean:.2f}.')
    return dict(test_rmse=round(float(rmse), 4), test_rmse_of_mean=round(float(rmse_of_mean), 4))


def write_submission(submission, fname):
    """Write what `look_up` has returned; return the name of the file, with the time in it."""
    fname = fname.format(time=datetime.now().isoformat().replace(':', '-'))
    with replacing(fname) as f:
        submission.to_csv(f, index=False)
    print(f'Wrote {fname}.')
    return fname
