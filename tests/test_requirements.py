"""The requirements are pinned and met, and the lock file has a hash for everything in them."""
import importlib.metadata
import os
import re

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The line of requirements.txt that stands for Theano's source on PyPI.
THEANO = {'./requirements/theano': 'Theano==1.0.5'}


def lines(fname):
    """The requirements in a file, each in one line, without comments and options of pip."""
    with open(os.path.join(ROOT, fname)) as f:
        text = re.sub(r'(^| )#.*', '', f.read(), flags=re.M).replace('\\\n', ' ')
    found = [line.strip() for line in text.split('\n') if not line.startswith('--')]
    return [THEANO.get(line, line) for line in found if line]


def pinned(fname):
    """{(name, version, condition): number of hashes} of a requirements file."""
    found = {}
    for line in lines(fname):
        requirement = Requirement(line.partition(' --hash')[0])
        version, = [spec.version for spec in requirement.specifier if spec.operator == '==']
        condition = str(requirement.marker or '').replace('python_full_', 'python_')
        key = requirement.name.lower(), version, condition.replace('3.11.*', '3.11')
        found[key] = line.count('--hash=sha256:')
    return found


def test_lock_file_is_that_of_the_requirements():
    locked = pinned('requirements/lock.txt')
    assert set(locked) == set(pinned('requirements.txt'))
    assert len(locked) > 50 and min(locked.values()) >= 1
    assert min(number for (name, _, _), number in locked.items() if name == 'numpy') > 30


def test_what_builds_the_old_packages_has_hashes():
    assert all(pinned('requirements/build.txt').values())
    assert all(pinned('requirements/theano/sdist.txt').values())
    locked = [line for line in lines('requirements/lock.txt') if line.startswith('theano==')]
    sdist, = lines('requirements/theano/sdist.txt')
    assert [line.split()[1:] for line in locked] == [sdist.split()[1:]]


@pytest.mark.parametrize('fname', [
    'requirements.txt', 'requirements/tests.txt', 'requirements/build.txt', 'requirements/cuda.txt',
    'requirements/tests-cuda.txt', 'requirements/numpy1.txt'])
def test_requirements_are_pinned(fname):
    assert pinned(fname)


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13', '3.14'])
def test_each_package_has_one_version_for_each_python(python):
    names = [name for name, _, condition in pinned('requirements.txt') if not condition or
             Marker(condition).evaluate({'python_version': python, 'sys_platform': 'linux'})]
    assert len(names) == len(set(names)) and {'numpy', 'theano', 'pandas'} <= set(names)


def test_requirements_are_met():
    for requirement in map(Requirement, lines('requirements.txt')):
        if requirement.marker is None or requirement.marker.evaluate():
            importlib.metadata.distribution(requirement.name)
