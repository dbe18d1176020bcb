"""What can still be found out of a run from its record: nets, and what they find in faces.

A record may have lost its weights, and the faces may have changed since: then there is less, and
`why` says why.
"""
import hashlib
import os

import numpy as np

from data import tables
from theano_today.nets.files import FileError

from .record import sha256

SAMPLES = 12                    # training faces kept to be shown
EXTREMES = 6                    # best, and worst, validation faces of the first net
EXTREMES_OF_SPECIALISTS = 3


class Faces:
    """The training faces of a run, if they are still what they were.

    Attributes
    ----------
    fname : str or None
    table : DataFrame or None
        As `read_table` returns it.
    why : str
        Why there are none.
    """
    def __init__(self, record, files, read_table, load):
        self.fname = self.table = None
        self._load, self._lines = load, None
        try:
            self.fname = self._find(record, files)
            self.table = read_table(self.fname)
        except (FileError, OSError) as error:
            self.why = str(error)

    def _find(self, record, files):
        recorded = record['constants'].get('FTRAIN')
        files = [recorded] * isinstance(recorded, str) + list(files)
        known = {os.path.basename(name): content['sha256']
                 for name, content in record['data'].items()}
        tried = [os.path.expanduser(fname) for fname in dict.fromkeys(files)
                 if os.path.basename(fname) in known]
        if not tried:
            raise FileError('The record does not say which faces the nets were trained on.')
        there = [fname for fname in tried if tables.are_there(fname)]
        for fname in there:
            if sha256(fname) == known[os.path.basename(fname)]:
                return fname
        if there:
            raise FileError('The faces have changed since the run: the SHA-256 of '
                            f'{listed(there)} is another.')
        raise FileError(f'The faces of the run are no longer there: no {" or ".join(tried)}.')

    def load(self, columns):
        """Return X and y of the faces that have all these columns, in the order of the training.

        Raises
        ------
        FileError
            If there are none.
        """
        if self.table is None:
            raise FileError(self.why)
        return self._load(self.fname, columns)

    def line(self, image):
        """Return the line of the file that holds an image, pixels in [0, 1]."""
        if self._lines is None:
            self._lines = {}
            for number, pixels in enumerate(self.table['Image'], 2):  # 1 is the header
                scaled = np.asarray(pixels, np.float32) / np.float32(255)
                self._lines.setdefault(hashlib.sha1(scaled.tobytes()).digest(), number)
        return self._lines.get(hashlib.sha1(np.ascontiguousarray(image).tobytes()).digest())


class Net:
    """A net of a record.

    Attributes
    ----------
    name, title, keypoints : str
        'specialist-2', 'Specialist 2', 'nose tip'.
    first : bool
        Whether it is the net that finds all points, which specialists begin with.
    points : list of (str, list of int)
        Keypoints and the numbers of their columns.
    info : dict
        What the record says of it.
    history : DataFrame
    columns : tuple of str
    layers : list of tuple or None
        As `layers_of` returns them; None if the weights are not to be had, and `why` says why.
    filters : ndarray, shape (number, channels, height, width), or None
        The weights of the first convolution, if there is one.
    validation : Validation or None
        None if there are no weights or no faces; `why` says why.
    """
    def __init__(self, name, info, history, why):
        self.name, self.info, self.history, self.why = name, info, history, why
        self.columns = tuple(info['columns'])
        self.first = name == 'net'
        self.title = 'First net' if self.first else name.replace('-', ' ').capitalize()
        self.points = points(self.columns)
        names = [point for point, _ in self.points]
        self.keypoints = listed(names) if len(names) < 5 else f'{len(names)} keypoints'
        self.layers = self.filters = self.validation = None

    def look_into(self, model, faces, scale):
        """See what the net is made of, and what it finds in the faces kept for validation.

        Parameters
        ----------
        model : NeuralNet
        faces : Faces
        scale : float
            Pixels of a distance of 1 in what the net finds.
        """
        try:
            self.layers, self.filters = layers_of(model), first_filters(model)
            X, y = faces.load(self.columns)
            print(f'{self.title}: finding the points of its validation faces.')
            self.validation = Validation(model, X, y, scale, faces.line,
                                         EXTREMES if self.first else EXTREMES_OF_SPECIALISTS)
        except FileError as error:
            self.why = str(error)
        except Exception as error:  # a net from a file: its attributes may be anything
            said = str(error).strip().split('\n')[0][:200]
            self.why = f'The net cannot be used ({type(error).__name__}: {said}).'


class Validation:
    """What a net finds in the faces that its own training kept for validation; all in pixels.

    Attributes
    ----------
    trained_on : int
        How many faces the net learned from.
    samples : list of (ndarray, ndarray)
        Pixels and labels of some of them.
    labels, found : ndarray, shape (n, number of columns)
    guess : ndarray, shape (number of columns,)
        The mean of the training labels, which is the best guess without looking at a face.
    errors : ndarray, shape (n,)
        RMSE of each face.
    best, worst : list of int
        Faces with the smallest errors, the smallest first; with the largest, the largest first.
    images, lines : dict of int to ndarray, int
        The pixels of these faces, and the line of the file that each is on.
    mean_face : ndarray, shape (height, width)
    """
    def __init__(self, model, X, y, scale, line, extremes):
        X_train, X_valid, y_train, y_valid = model.train_split(X, y, model)
        if len(X_valid) == 0:
            raise FileError('It has been trained without validation: no face was kept for it.')
        found = model.predict(X_valid)
        if found.shape != y_valid.shape or not np.isfinite(found).all():
            raise ValueError(f'it does not answer with {y.shape[1]} numbers a face')
        self.trained_on = len(X_train)
        self.samples = list(zip(X_train[:SAMPLES, 0], y_train[:SAMPLES] * scale + scale))
        self.labels, self.found, self.guess = (
            np.asarray(part, np.float64) * scale + scale
            for part in (y_valid, found, np.nanmean(y_train, axis=0, dtype=np.float64)))
        self.errors = np.sqrt(np.nanmean((self.found - self.labels) ** 2, axis=1))
        order = np.argsort(self.errors, kind='stable')
        shown = max(min(extremes, len(order) // 2), 1)
        self.best = [int(row) for row in order[:shown]]
        self.worst = [int(row) for row in order[:-shown - 1:-1] if row not in self.best]
        self.images = {row: X_valid[row, 0] for row in self.best + self.worst}
        self.lines = {row: line(image) for row, image in self.images.items()}
        self.mean_face = X_valid[:, 0].mean(axis=0, dtype=np.float64)

    def rmse(self, columns=slice(None), guess=False):
        """RMSE over all validation faces and these columns: of the net, or of the mean guess."""
        found = np.broadcast_to(self.guess, self.labels.shape) if guess else self.found
        return float(np.sqrt(np.nanmean((found - self.labels)[:, columns] ** 2)))


def find_nets(folder, record, load_nets, faces, scale):
    """Return the nets of a record, with all that can still be found out of each.

    Parameters
    ----------
    folder : str
    record : dict
        As `compare.read` returns it.
    load_nets : callable
        From the name of a file to its nets: a dictionary of NeuralNet by their columns.
    faces : Faces
    scale : float
        Pixels of a distance of 1 in what the nets find.

    Returns
    -------
    list of Net
    """
    models, why = {}, {}
    for first, constant, usual in ((True, 'FNET', 'net.pickle'),
                                   (False, 'FSPECIALISTS', 'net-specialists.pickle')):
        name = os.path.basename(str(record['constants'].get(constant, usual)))
        fname = os.path.join(folder, name)
        if not os.path.lexists(fname):
            why[first] = f'{name} is not in the record.'
            continue
        try:
            for columns, model in load_nets(fname).items():
                models[first, tuple(columns)] = model
            why[first] = f'{name} does not hold it.'
        except (FileError, OSError) as error:
            why[first] = str(error)
    nets = []
    for name, info in record['nets'].items():
        net = Net(name, info, record['histories'][name], why[name == 'net'])
        if (net.first, net.columns) in models:
            net.look_into(models[net.first, net.columns], faces, scale)
        nets.append(net)
    return nets


def points(columns):
    """Return the keypoints of label columns: a list of (name, [numbers of its columns])."""
    found = {}
    for number, column in enumerate(columns):
        found.setdefault(column[:-2] if column.endswith(('_x', '_y')) else column,
                         []).append(number)
    return [(name.replace('_', ' '), numbers) for name, numbers in found.items()]


def layers_of(model):
    """Return the layers of a net: (name, what it does, shape of the output, number of weights)."""
    layers = []
    for name, layer in model.layers_.items():
        what = [type(layer).__name__.replace('Layer', '')]
        if hasattr(layer, 'filter_size'):
            what.append(f'{layer.num_filters} filters of {times(layer.filter_size)}')
        if hasattr(layer, 'pool_size'):
            what.append(f'over {times(layer.pool_size)}')
        if hasattr(layer, 'p'):
            what.append(f'p = {layer.p:g}')
        nonlinearity = getattr(getattr(layer, 'nonlinearity', None), '__name__', 'linear')
        if nonlinearity != 'linear':
            what.append(nonlinearity)
        weights = sum(param.get_value(borrow=True).size for param in layer.params)
        layers.append((str(name), ', '.join(what),
                       times(layer.output_shape[1:]), int(weights)))
    return layers


def first_filters(model):
    """Return the weights of a net's first convolution, or None."""
    for layer in model.layers_.values():
        weights = getattr(layer, 'W', None)
        if weights is not None and weights.ndim == 4:
            return weights.get_value()
    return None


def listed(names):
    """Write names as in a sentence."""
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def times(shape):
    """Write a shape."""
    return ' \u00d7 '.join(map(str, shape)) if isinstance(shape, (list, tuple)) else str(shape)
