"""The lock file is that of requirements.txt, and has a hash for everything."""
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pinned(fname):
    """{(name, version, condition): number of hashes} of a requirements file."""
    with open(os.path.join(ROOT, fname)) as f:
        text = re.sub(r'(^| )#.*', '', f.read(), flags=re.M).replace('\\\n', ' ')
    found = {}
    for line in text.split('\n'):
        if line.strip():
            name, version, condition = re.match(
                r'([\w.-]+)==([\w.]+)\s*(?:;(.*?))?\s*(?=--hash|$)', line).groups()
            condition = re.sub(r'\s+', ' ', (condition or '').replace('python_full_', 'python_')).strip()
            found[name.lower(), version, condition] = line.count('--hash=sha256:')
    return found


def test_lock_file_is_that_of_the_requirements():
    locked = pinned('requirements-lock.txt')
    assert set(locked) == set(pinned('requirements.txt'))
    assert len(locked) > 25 and min(locked.values()) >= 1
    assert locked['numpy', '1.26.4', ''] > 30, 'the wheels of all Pythons, and the source'


def test_what_builds_the_old_packages_has_hashes():
    assert all(pinned('requirements-build.txt').values())
