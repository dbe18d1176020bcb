"""What somebody installs or removes later makes no difference: setuptools, distutils, nose."""
import os
import subprocess
import sys

import pytest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))

USE = '''
import theano_today, theano, lasagne, nolearn.lasagne, numpy as np
x = theano.tensor.vector()
assert theano.function([x], x * 2)(np.ones(2, 'float32')).tolist() == [2, 2]
assert lasagne.__version__ == '0.1'
'''


@pytest.mark.parametrize('names', [
    ('setuptools', 'pkg_resources', 'distutils'), ('imp', 'nose')], ids=' '.join)
def test_packages_that_fail_when_they_are_imported(names, tmp_path):
    for name in names:
        (tmp_path / (name + '.py')).write_text('raise RuntimeError({!r})\n'.format(name))
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', USE], text=True,
                          env=dict(os.environ, PYTHONPATH=path), cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_packages_that_nobody_has_compiled_are_imported_in_silence(tmp_path):
    (tmp_path / 'ours.py').write_text("'\\s'\n")
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = subprocess.run([sys.executable, '-c', USE + 'import ours'], text=True,
                          env=dict(os.environ, PYTHONPATH=path, PYTHONPYCACHEPREFIX=str(tmp_path)),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and 'site-packages' not in done.stdout, done.stdout
    # Other people's files are warned of as ever.
    assert ('ours.py:1: SyntaxWarning' in done.stdout) == (sys.version_info >= (3, 12)), done.stdout


def test_stand_ins_are_for_theano_alone():
    """Other packages of the process get what Python and setuptools have."""
    code = USE + '''
import sys, types
for name in ('distutils', 'imp', 'pkg_resources', 'numpy.distutils'):
    assert name not in sys.modules or sys.modules[name].__spec__ is not None, name
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], text=True,
                          env=dict(os.environ, PYTHONPATH=ROOT),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_compiler_finds_pythons_headers():
    from theano_today.compat import python
    config = python.distutils.sysconfig
    assert os.path.exists(os.path.join(config.get_python_inc(), 'Python.h'))
    assert os.path.exists(os.path.join(config.get_python_lib(standard_lib=1), 'os.py'))
    assert config.get_config_var('EXT_SUFFIX').endswith('.so')
