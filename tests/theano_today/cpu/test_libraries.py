"""The kernels as libraries: made once, found again, and done without."""
import os
from types import SimpleNamespace

import pytest

import theano_today  # noqa: F401
import numpy as np
import theano
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano_today.cpu import libraries
from theano_today.cpu.mrg import MRGUniform

OPTIONS = ('-O0', '-fno-math-errno')    # of these tests alone


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty compile directory, in a process that has loaded nothing."""
    monkeypatch.setattr(libraries, 'config', SimpleNamespace(cxx=theano.config.cxx, compiledir=str(tmp_path)))
    for name in '_compilers', '_loaded':
        monkeypatch.setattr(libraries, name, {})
    libraries._name.cache_clear()
    yield tmp_path
    libraries._name.cache_clear()


def test_is_made_once_and_found_again(folder, monkeypatch):
    libraries.start('mrg', OPTIONS)
    (_, compiler), = libraries._compilers.values()
    libraries.start('mrg', OPTIONS)     # goes on
    assert [compiler] == [running for _, running in libraries._compilers.values()]
    name = libraries.load('mrg', OPTIONS)
    assert os.listdir(str(folder)) == [f'lib{name}.so'] and not libraries._compilers
    monkeypatch.setattr(libraries, '_loaded', {})       # another process
    monkeypatch.setattr(libraries.subprocess, 'Popen', None)
    assert libraries.load('mrg', OPTIONS) == name
    library, = libraries._loaded.values()
    assert library._name == str(folder / f'lib{name}.so')


def test_other_source_or_options_are_another_library(folder, monkeypatch):
    name = libraries._name('mrg', OPTIONS)
    assert libraries._name('mrg', OPTIONS + ('-g',)) != name != libraries._name('conv', OPTIONS)
    monkeypatch.setattr(libraries, 'digest', lambda names: 'changed')
    libraries._name.cache_clear()
    assert libraries._name('mrg', OPTIONS) != name


def test_compiler_fails(folder):
    with pytest.raises(OSError, match=r'could not compile mrg\.cpp:\n.*no-such-option'):
        libraries.load('mrg', OPTIONS + ('-fno-such-option',))
    assert os.listdir(str(folder)) == []


def test_what_nobody_waits_for_is_stopped(folder):
    libraries.start('conv', OPTIONS)
    (temporary, compiler), = libraries._compilers.values()
    assert os.path.exists(temporary)
    libraries._stop()
    assert compiler.poll() is not None and os.listdir(str(folder)) == []


def test_without_libraries_the_kernels_are_in_the_modules(monkeypatch):
    """As where the linker would not find them: on Windows and macOS."""
    def draw():
        function = theano.function([], MRG_RandomStreams(5).uniform((3, 1000), dtype='float32'))
        assert any(isinstance(node.op, MRGUniform) for node in function.maker.fgraph.toposort())
        return function()
    expected = draw()
    monkeypatch.setattr(libraries, 'supported', lambda: False)
    monkeypatch.setattr(libraries, 'load', None)
    np.testing.assert_array_equal(draw(), expected)
