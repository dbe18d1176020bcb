"""Make the project importable however pytest is started, and draw without a display."""
import os
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))
os.environ.setdefault('MPLBACKEND', 'agg')


@pytest.fixture(autouse=True)
def same_numbers():
    """Let what a test draws depend on itself alone: nets begin with the same weights each time."""
    np.random.seed(0)
    if 'lasagne' in sys.modules:
        sys.modules['lasagne'].random.set_rng(np.random)  # as Lasagne begins; some tests set another


@pytest.fixture(scope='session')
def faces(tmp_path_factory):
    """A folder with a small data set of drawn faces."""
    from data import make_faces
    folder = tmp_path_factory.mktemp('faces')
    make_faces.write_csvs(str(folder), 120, 8)
    return folder
