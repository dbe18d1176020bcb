"""The headers of Theano's C modules are compiled once."""
import os
import subprocess
from types import SimpleNamespace

import pytest

import theano_today.headers as headers

import theano.gof.cmodule

SOURCE = headers.BEGINNING + 'int three() { return sizeof(PyArrayObject) > 0 ? 3 : 0; }\n'


@pytest.fixture
def compiler(tmp_path):
    """A `cmodule` whose compile_str returns the files that g++ has read for a module."""
    real = theano.gof.cmodule

    class Compiler:
        @staticmethod
        def compile_str(module_name, src_code, location=None, include_dirs=None, lib_dirs=None,
                        libs=None, preargs=None, py_module=True, hide_symbols=True):
            path = tmp_path / 'mod.cpp'
            path.write_text(src_code)
            folders = [f'-I{folder}' for folder in (include_dirs or []) + real.std_include_dirs()]
            process = subprocess.run(
                ['g++', '-H', '-g', '-S', *preargs, *folders, '-fvisibility=hidden', str(path),
                 '-o', str(tmp_path / 'mod.s')], capture_output=True, text=True)
            assert process.returncode == 0, process.stderr
            return process.stderr.splitlines()

    cmodule = SimpleNamespace(
        GCC_compiler=Compiler, std_include_dirs=real.std_include_dirs, gcc_version=real.gcc_version,
        config=SimpleNamespace(cxx='g++', compiledir=str(tmp_path / 'modules'),
                               cmodule=SimpleNamespace(remove_gxx_opt=False)))
    (tmp_path / 'modules').mkdir()
    headers.install(cmodule)
    return cmodule


def compiled(lines):
    """The compiled headers among the files that g++ has read: -H marks them with '!'."""
    return [line[2:] for line in lines if line.startswith('! ')]


def test_are_compiled_once_for_each_set_of_options(compiler):
    folder, compile_str = compiler.config.compiledir, compiler.GCC_compiler.compile_str
    options = ['-O3', '-fPIC', '-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION']
    reads = [compile_str('m', SOURCE, preargs=options) for _ in range(4)]
    assert [len(compiled(lines)) for lines in reads] == [0, 0, 1, 1]
    assert any('pyport.h' in line for line in reads[1])     # which Python.h includes
    assert not any('pyport.h' in line for line in reads[2])
    files = os.listdir(folder)
    assert len(files) == 2 and compiled(reads[2]) == compiled(reads[3])
    others = [compile_str('m', SOURCE, preargs=['-O1', '-fPIC', '-fopenmp']) for _ in range(3)]
    assert len(compiled(others[2])) == 1 and compiled(others[2]) != compiled(reads[2])


def test_other_modules_and_compilers_go_without(compiler, monkeypatch):
    monkeypatch.setattr(headers, '_MODULES_BEFORE', -1)
    compile_str = compiler.GCC_compiler.compile_str
    other = '#define PY_SSIZE_T_CLEAN\n' + SOURCE
    assert compiled(compile_str('m', other, preargs=['-O1', '-fPIC'])) == []
    compiler.config.cxx = '/usr/bin/clang++'
    assert compiled(compile_str('m', SOURCE, preargs=['-O1', '-fPIC'])) == []
    assert os.listdir(compiler.config.compiledir) == []


def test_where_headers_cannot_be_kept_modules_are_compiled_as_ever(compiler, monkeypatch):
    monkeypatch.setattr(headers, '_MODULES_BEFORE', -1)
    compile_str = compiler.GCC_compiler.compile_str
    compiler.config.cxx = 'false-g++'   # there is no such compiler
    assert compiled(compile_str('m', SOURCE, preargs=['-O1', '-fPIC'])) == []
    compiler.config.cxx, compiler.config.compiledir = 'g++', '/dev/null/not-a-folder'
    assert compiled(compile_str('m', SOURCE, preargs=['-O1', '-fPIC'])) == []
