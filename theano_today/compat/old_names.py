"""What pandas, matplotlib and SciPy took away from scripts of 2015: for ``python -m theano_today`` alone."""
import functools
import numbers

from .mending import after_import


def install():
    """Put the names back when a script imports these packages."""
    after_import('pandas')(_pandas)
    after_import('matplotlib.axes')(_matplotlib)
    after_import('scipy.stats')(_scipy_stats)


class _Ix:
    """A frame's or series' rows and columns by labels, and by places where labels are no numbers."""

    def __init__(self, data):
        self._data = data

    def _labels(self, key):
        keys = key if isinstance(key, tuple) and self._data.ndim > 1 else (key,)
        labels = tuple(self._of_axis(one, axis) for one, axis in zip(keys, self._data.axes))
        return labels if isinstance(key, tuple) else labels[0]

    @staticmethod
    def _of_axis(key, axis):
        if axis.dtype.kind in 'iu':
            return key
        numbers_of = [key.start, key.stop] if isinstance(key, slice) else \
            key if isinstance(key, list) else [key]
        if all(isinstance(one, numbers.Integral) or one is None for one in numbers_of) and any(
                one is not None for one in numbers_of):
            labels = axis[key]
            return list(labels) if isinstance(key, (slice, list)) else labels
        return key

    def __getitem__(self, key):
        return self._data.loc[self._labels(key)]

    def __setitem__(self, key, value):
        self._data.loc[self._labels(key)] = value


def _pandas(pandas):
    for kind in pandas.DataFrame, pandas.Series:
        if not hasattr(kind, 'ix'):  # deprecated in pandas 0.20, removed in 1.0
            kind.ix = property(_Ix)
        if not hasattr(kind, 'as_matrix'):  # deprecated in pandas 0.23, removed in 1.0
            kind.as_matrix = lambda self, columns=None: (
                self if columns is None else self[columns]).to_numpy()
    if not hasattr(pandas.DataFrame, 'sort'):  # deprecated in pandas 0.17, removed in 0.20
        def sort(self, columns=None, axis=0, ascending=True, inplace=False):
            if columns is None:
                return self.sort_index(axis=axis, ascending=ascending, inplace=inplace)
            return self.sort_values(columns, axis=axis, ascending=ascending, inplace=inplace)
        pandas.DataFrame.sort = sort
    pandas.DataFrame.__getitem__ = _by_places(pandas.DataFrame.__getitem__)


def _by_places(getitem):
    """Let ``frame[[0]]`` be the first column where the columns have names, as it was until pandas 0.20."""
    @functools.wraps(getitem)
    def get(self, key):
        try:
            return getitem(self, key)
        except KeyError:
            if isinstance(key, list) and key and self.columns.dtype.kind not in 'iuf' and all(
                    type(one) is int and one not in self.columns for one in key):
                return self.iloc[:, key]
            raise
    return get


def _matplotlib(axes):
    if not hasattr(axes.Axes, 'set_color_cycle'):  # deprecated in matplotlib 1.5, removed since
        axes.Axes.set_color_cycle = lambda self, colors: self.set_prop_cycle(color=list(colors))


def _scipy_stats(stats):
    if not hasattr(stats, 'itemfreq'):  # deprecated in SciPy 1.0, removed since
        import numpy as np
        stats.itemfreq = lambda a: np.column_stack(np.unique(a, return_counts=True))
