"""A build backend that lets pip build PyPI's own source of Theano 1.0.5 on Python 3.12 and later.

pip asks it for a wheel of this folder, and it asks another pip for a wheel of sdist.txt, in an
environment where the names stand that Theano's setup.py misses (shim/sitecustomize.py).  Of the
options of the first pip the second one knows what stands in pip.conf and in variables like
PIP_INDEX_URL, PIP_PROXY or PIP_FIND_LINKS, not those of the command line.
"""
import os
import subprocess
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))


def get_requires_for_build_wheel(config_settings=None):
    """Refuse a Python for which there are no wheels of NumPy; need no more than pyproject.toml."""
    python = '{} {}.{}'.format(sys.implementation.name, *sys.version_info[:2])
    if sysconfig.get_config_var('Py_GIL_DISABLED'):
        python += ' without the GIL'
    if python not in [f'cpython 3.{minor}' for minor in range(10, 15)]:
        sys.exit(f'requirements.txt is for CPython 3.10 to 3.14; this is {python}. Make the '
                 'environment with one of those: python3.13 -m venv venv')
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build Theano's wheel, and return its name."""
    before = set(os.listdir(wheel_directory))
    # What pip has told this backend is not meant for the next one.
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('_PYPROJECT_HOOKS_', 'PEP517_'))}
    environment['PYTHONPATH'] = os.pathsep.join(
        filter(None, [os.path.join(HERE, 'shim'), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation',
               '--require-hashes', '--wheel-dir', wheel_directory,
               '-r', os.path.join(HERE, 'sdist.txt')]
    if subprocess.run(command, env=environment, stdout=sys.stderr).returncode:
        sys.exit("pip could not get or build Theano's source, see above. A mirror or proxy must be "
                 'set in pip.conf or by variables (PIP_INDEX_URL, PIP_PROXY, PIP_FIND_LINKS): this '
                 'step does not see options of the command line.')
    wheel, = set(os.listdir(wheel_directory)) - before
    return wheel
