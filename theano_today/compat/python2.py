"""What scripts for Python 2 use by names that Python 3 has changed.

For ``python -m theano_today script.py`` alone: many scripts of 2015 keep to the syntax that both
Pythons have and still say `xrange` or ``import cPickle``.  Other programs are left alone.
"""
import ast
import builtins
import functools
import importlib
import importlib.abc
import importlib.machinery
import math
import os
import pickle
import sys
import types

import numpy as np


def xrange(*args):
    """Count as Python 2 did: what comes from a division is taken for the whole number it was."""
    return range(*(math.floor(n) if isinstance(n, float) else n for n in args))


class Quotient(float):
    """The quotient of two whole numbers, which may serve as a size or an index, too.

    In Python 2 it was a whole number: ``bs / 2`` is a size in many scripts.  Python 3's value stays
    what it is, and where only a whole number will do it is the one that Python 2 had.
    """

    def __index__(self):
        return math.floor(self)

    def __reduce__(self):
        return float, (float(self),)


def divide(a, b):
    """``a / b`` in a script."""
    if type(a) in (int, Quotient) and type(b) in (int, Quotient):
        return Quotient(a / b)
    return a / b


class _Divisions(ast.NodeTransformer):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        function = ast.copy_location(ast.Name(_DIVIDE, ast.Load()), node)
        return ast.copy_location(ast.Call(function, [node.left, node.right], []), node)


_DIVIDE = '_theano_today_divide'


def compile_script(source, path):
    """Compile a script so that its quotients of whole numbers may be sizes (see `Quotient`)."""
    tree = ast.parse(source, path)
    if not any(isinstance(node, ast.ImportFrom) and node.module == '__future__'
               and any(alias.name == 'division' for alias in node.names) for node in tree.body):
        setattr(builtins, _DIVIDE, divide)
        tree = _Divisions().visit(tree)
    return compile(tree, path, 'exec', dont_inherit=True)


# Names of Python 2's builtins.
_BUILTINS = {
    'xrange': xrange, 'unicode': str, 'basestring': str, 'long': int, 'unichr': chr,
    'raw_input': input, 'reduce': functools.reduce}

# {Python 2's module: the modules that have its names today}.
_MODULES = {
    'cPickle': ['pickle'], 'cStringIO': ['io'], 'StringIO': ['io'], 'Queue': ['queue'],
    'ConfigParser': ['configparser'], 'urllib2': ['urllib.request', 'urllib.error'],
    'urlparse': ['urllib.parse'], 'HTMLParser': ['html.parser'], 'httplib': ['http.client'],
    'copy_reg': ['copyreg'], 'thread': ['_thread'], 'commands': ['subprocess'],
    '__builtin__': ['builtins']}


class _Loader(importlib.abc.Loader):
    def create_module(self, spec):
        return types.ModuleType(spec.name, 'Stand-in made by theano_today for a module of Python 2.')

    def exec_module(self, module):
        name = module.__name__
        for other in _MODULES[name]:
            source = importlib.import_module(other)
            vars(module).update((key, value) for key, value in vars(source).items()
                                if not (key.startswith('__') and key.endswith('__')))


class _Finder(importlib.abc.MetaPathFinder):
    """The last one asked: a module of that name that is there comes first."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in _MODULES:
            return importlib.machinery.ModuleSpec(fullname, _Loader())
        return None


def _pickle_load(load):
    """Read what Python 2 has pickled, too: its strings, among them NumPy's arrays, are bytes."""
    @functools.wraps(load)
    def load_any(file, **kwargs):
        start = file.tell() if hasattr(file, 'seek') and 'encoding' not in kwargs else None
        try:
            return load(file, **kwargs)
        except UnicodeDecodeError:
            if start is None:
                raise
            file.seek(start)
            return load(file, encoding='latin1', **kwargs)
    return load_any


def _pickle_loads(loads):
    @functools.wraps(loads)
    def loads_any(data, **kwargs):
        try:
            return loads(data, **kwargs)
        except UnicodeDecodeError:
            return loads(data, **{'encoding': 'latin1', **kwargs})
    return loads_any


def _np_load(load):
    """Let np.load read objects, as it did before NumPy 1.16.3, and the pickles of Python 2.

    Who runs an old script trusts the files that it reads with `cPickle`; these are no different.
    """
    @functools.wraps(load)
    def load_any(file, *args, **kwargs):
        if len(args) < 2:
            kwargs.setdefault('allow_pickle', True)
        return load(file, *args, **{'encoding': 'latin1', **kwargs})
    return load_any


def install():
    """Put Python 2's names into builtins, and its modules where an import finds no others."""
    for name, value in _BUILTINS.items():
        if not hasattr(builtins, name):
            setattr(builtins, name, value)
    import itertools
    import urllib.parse
    import urllib.request
    for module, names in [
            (itertools, {'izip': zip, 'imap': map, 'ifilter': filter,
                         'izip_longest': itertools.zip_longest}),
            (urllib, {name: getattr(urllib.request, name) for name in ('urlopen', 'urlretrieve')}),
            (urllib, {name: getattr(urllib.parse, name) for name in ('quote', 'unquote', 'urlencode')}),
            (os, {'getcwdu': os.getcwd}), (sys, {'maxint': sys.maxsize})]:
        for name, value in names.items():
            if name not in vars(module):
                setattr(module, name, value)
    np.load = _np_load(np.load)
    pickle.load, pickle.loads = _pickle_load(pickle.load), _pickle_loads(pickle.loads)
    sys.meta_path.append(_Finder())
