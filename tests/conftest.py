"""Make the project importable however pytest is started, and draw without a display."""
import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))
os.environ.setdefault('MPLBACKEND', 'agg')


@pytest.fixture(scope='session')
def faces(tmp_path_factory):
    """A folder with a small data set of drawn faces."""
    from data import make_faces
    folder = tmp_path_factory.mktemp('faces')
    make_faces.write_csvs(str(folder), 120, 8)
    return folder
