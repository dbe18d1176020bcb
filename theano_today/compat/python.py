"""What later versions of Python took away."""
import collections
import collections.abc
import importlib.util
import sys
import types

from .mending import beforehand


@beforehand
def _names_of_collections():
    """collections.Iterable and friends moved to collections.abc: Python 3.3, removed in 3.10."""
    for name in ('Callable', 'Iterable', 'Mapping', 'MutableMapping', 'MutableSequence',
                 'MutableSet', 'Sequence', 'Set', 'Sized'):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))


@beforehand
def _stand_in_for_imp():
    """Serve ``imp.find_module``, with which Theano looks for debuggers; Python 3.12 removed imp."""
    if sys.version_info < (3, 12):
        return

    def find_module(name, path=None):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError('No module named {!r}'.format(name), name=name)
        return None, spec.origin, ('', '', 0)

    module = types.ModuleType('imp', 'Stand-in made by theano_today.')
    module.find_module = find_module
    sys.modules.setdefault(module.__name__, module)
