"""How mends get into modules while Python imports them."""
import collections
import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import sys

_BEFOREHAND = []
_MENDS = collections.defaultdict(list)  # {module: functions}
_REPLACEMENTS = collections.defaultdict(dict)  # {module: {old text: new text}}
_OPTIONAL = set()  # {(module, old text)}
_AROUND = {}  # {module: context manager}
_STAND_INS = {}  # {module: function that fills it}
_ALWAYS = set()  # those that come before a module of that name


def beforehand(mend):
    """Mark a function to be called before Theano is imported."""
    _BEFOREHAND.append(mend)
    return mend


def after_import(module_name):
    """Mark a function to be called with the module `module_name` once that has been imported.

    It runs right after Python has executed the module, so that a script that needs Theano alone
    does not pay for importing Lasagne, nolearn and scikit-learn.
    """
    def register(mend):
        _MENDS[module_name].append(mend)
        return mend
    return register


def replace(module_name, texts, optional=False):
    """Replace source text of the module `module_name`: where a function is wrong in its middle.

    Parameters
    ----------
    module_name : str
    texts : dict of str to str
        Old text: new text.  A text that is not in the source makes the import fail: the module is
        another version than the one mended.
    optional : bool
        Whether there are versions without these texts that need no mend.
    """
    _REPLACEMENTS[module_name].update(texts)
    if optional:
        _OPTIONAL.update((module_name, old) for old in texts)


def around_import(module_name, context):
    """Import the module `module_name`, when somebody asks for it, within ``with context():``."""
    _AROUND[module_name] = context


def stand_in(module_name, always=False):
    """Mark a function that fills the module `module_name`, which later versions no longer have.

    It is called with the empty module when that is imported, and not if there is one of that name;
    with `always` it is called all the same.
    """
    def register(fill):
        _STAND_INS[module_name] = fill
        if always:
            _ALWAYS.add(module_name)
        return fill
    return register


class MendingFinder(importlib.abc.MetaPathFinder):
    """Find modules that have a mend the usual way, and hand them to `MendingLoader`."""

    def find_spec(self, fullname, path=None, target=None):
        if all(fullname not in mends for mends in (_MENDS, _REPLACEMENTS, _AROUND, _STAND_INS)):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if fullname in _STAND_INS and (spec is None or fullname in _ALWAYS):
            return importlib.machinery.ModuleSpec(
                fullname, StandInLoader(), is_package=any(
                    name.startswith(fullname + '.') for name in _STAND_INS))
        if spec is not None and spec.loader is not None:
            spec.loader = MendingLoader(spec.loader)
        return spec


class MendingLoader(importlib.abc.Loader):
    """Load a module with its own loader, then call its mends."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        with _AROUND.get(module.__name__, contextlib.nullcontext)():
            self._exec_mended(module)

    def _exec_mended(self, module):
        name = module.__name__
        if name in _REPLACEMENTS:
            exec(_compiled(name, module.__file__, self._mended_source(name, module.__file__)),
                 vars(module))
        else:
            self.loader.exec_module(module)
        for mend in _MENDS.get(name, ()):
            mend(module)

    def _mended_source(self, name, file):
        source = self.loader.get_source(name)
        for old, new in _REPLACEMENTS[name].items():
            if old not in source and (name, old) not in _OPTIONAL:
                raise ImportError(
                    'theano_today mends {}, and the text to be mended is not in {}: {!r}. Install '
                    'the versions of requirements.txt.'.format(name, file, old), name=name)
            source = source.replace(old, new)
        return source

    def __getattr__(self, name):  # get_source, get_data, ...: tracebacks and pickles ask for them
        return getattr(self.loader, name)


class StandInLoader(importlib.abc.Loader):
    """Make a module that is not there (any more)."""

    def create_module(self, spec):
        return None  # an ordinary one

    def exec_module(self, module):
        module.__doc__ = 'Stand-in made by theano_today.'
        _STAND_INS[module.__name__](module)


def _compiled(name, file, source):
    """Compile a mended module, or take the code from the cache that Python keeps for this folder.

    Compiling the mended modules takes half a second; Python keeps the code of the others, too.
    """
    digest = hashlib.blake2b(source.encode() + file.encode(), digest_size=16).digest()
    cached = importlib.util.cache_from_source(os.path.join(os.path.dirname(__file__), name + '.py'))
    try:
        with open(cached, 'rb') as f:
            if f.read(len(digest)) == digest:
                return marshal.loads(f.read())
    except (OSError, EOFError, ValueError, TypeError):  # not there, or damaged
        pass
    code = compile(source, file, 'exec')
    if not sys.dont_write_bytecode:
        partial = '{}.{}'.format(cached, os.getpid())
        try:
            os.makedirs(os.path.dirname(cached), exist_ok=True)
            with open(partial, 'wb') as f:
                f.write(digest + marshal.dumps(code))
            os.replace(partial, cached)
        except OSError:  # a folder that cannot be written
            pass
    return code


def before_theano():
    """Put back what Theano, Lasagne and nolearn import or use by a name that has moved."""
    for mend in _BEFOREHAND:
        mend()


def install():
    """Make the mends for imports to come (once)."""
    before_theano()
    if not any(isinstance(finder, MendingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MendingFinder())
