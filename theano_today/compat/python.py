"""What later versions of Python took away."""
import collections
import collections.abc
import importlib.util
import shutil
import sys
import sysconfig
import types
import warnings

from .mending import beforehand, replace


@beforehand
def _names_of_collections():
    """collections.Iterable and friends moved to collections.abc: Python 3.3, removed in 3.10."""
    for name in ('Callable', 'Iterable', 'Mapping', 'MutableMapping', 'MutableSequence',
                 'MutableSet', 'Sequence', 'Set', 'Sized'):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))


# '\s' in docstrings is a SyntaxWarning since Python 3.12, in every file that an installer has left for
# Python to compile (uv does): a screenful before the first word of a program.
warnings.filterwarnings('ignore', '.*invalid escape sequence', SyntaxWarning,
                        r'.*[\\/](theano|lasagne|nolearn)[\\/]')


# distutils, imp (both removed in Python 3.12) and pkg_resources (a part of setuptools that was
# removed in its version 82): Theano and Lasagne get what they use of them from here, and all others
# what Python or setuptools have.  So no later setuptools, and none at all, makes a difference.

def _get_python_inc(plat_specific=0):
    return sysconfig.get_paths()['platinclude' if plat_specific else 'include']


def _get_python_lib(plat_specific=0, standard_lib=0):
    if not standard_lib:
        return sysconfig.get_paths()['platlib' if plat_specific else 'purelib']
    base = {'base': sys.base_prefix, 'platbase': sys.base_exec_prefix}
    return sysconfig.get_paths(vars=base)['platstdlib' if plat_specific else 'stdlib']


distutils = types.SimpleNamespace(
    spawn=types.SimpleNamespace(find_executable=shutil.which),
    sysconfig=types.SimpleNamespace(
        get_config_var=sysconfig.get_config_var, get_python_inc=_get_python_inc,
        get_python_lib=_get_python_lib, get_python_version=sysconfig.get_python_version,
        get_config_h_filename=sysconfig.get_config_h_filename))


def _find_module(name, path=None):
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError('No module named {!r}'.format(name), name=name)
    return None, spec.origin, ('', '', 0)


imp = types.SimpleNamespace(find_module=_find_module)

replace('theano.configdefaults', {
    'import distutils.spawn': 'from {} import distutils'.format(__name__)})
replace('theano.gof.cmodule', {
    'import distutils.sysconfig': 'from {} import distutils'.format(__name__)})
replace('theano.tests.breakpoint', {  # it looks for debuggers
    'import imp': 'from {} import imp'.format(__name__)})
replace('lasagne', {
    'import pkg_resources': 'import importlib.metadata',
    'pkg_resources.get_distribution("Lasagne").version': 'importlib.metadata.version("Lasagne")',
    'del pkg_resources': 'del importlib'}, optional=True)  # Lasagne's master has its version as text
replace('theano.gpuarray.linalg', {
    'import pkg_resources': 'import importlib.metadata',
    'pkg_resources.DistributionNotFound': 'importlib.metadata.PackageNotFoundError'})

# A nose that somebody installs fails on today's Python, or succeeds, and both stop Theano: it goes on
# only if nose is not there.  (theano.sandbox.cuda, which asks for nose too: see `gpu`.)
sys.modules.setdefault('theano.tests.main', None)  # `theano.test`
