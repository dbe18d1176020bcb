"""Mends reach a module as Python imports it, or say that it is another version."""
import importlib
import pickle
import sys

import theano_today  # noqa: F401

import pytest
from theano_today import compat
from theano_today.compat import mending


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `patient` to be imported, and no traces of its mends."""
    (tmp_path / 'patient.py').write_text('def double(x):\n    return x + x + 1\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'patient'
    sys.modules.pop('patient', None)
    mending._REPLACEMENTS.pop('patient', None)
    mending._MENDS.pop('patient', None)


def test_text_is_replaced_and_then_the_mends_run(module):
    mending.replace(module, {'x + x + 1': 'x + x'})
    seen = []
    mending.after_import(module)(lambda patient: seen.append(patient.double(3)))
    patient = importlib.import_module(module)
    assert patient.double(2) == 4 and seen == [6]


def test_text_that_is_not_there(module):
    mending.replace(module, {'x * 2 + 1': 'x * 2'})
    with pytest.raises(ImportError, match=r"mends patient.*'x \* 2 \+ 1'.*requirements.txt"):
        importlib.import_module(module)


def test_pickles_name_the_package_not_its_files():
    """Nets that were pickled when compat was one file load, and the other way round."""
    assert compat.new_net.__module__ == 'theano_today.compat'
    assert pickle.loads(b'\x80\x02ctheano_today.compat\nnew_net\n.') is compat.new_net
    assert b'theano_today.compat' in pickle.dumps(compat.new_net, 2)
    assert b'compat.nolearn' not in pickle.dumps(compat.new_net, 2)
