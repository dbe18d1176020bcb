"""The headers with which Theano's C modules begin, compiled once and not once for each module.

Half of the time of g++ for a module goes into the same six headers: Python's, NumPy's, <iostream>.
GCC can keep what it makes of a header ("Precompiled Headers" in its manual) and reads that back where
the options agree; where they do not, it reads the header itself, so a module is never another one.
"""
import functools
import hashlib
import os
import subprocess

__all__ = ['install']

BEGINNING = '''#include <Python.h>
#include <iostream>
#include "theano_mod_helper.h"
#include <math.h>
#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>
'''

# It takes as long to compile the headers alone as a module, so a process that needs one or two
# modules does without.
_MODULES_BEFORE = 2


def install(cmodule):
    """Compile the headers apart where g++ compiles Theano's modules.

    Parameters
    ----------
    cmodule : module
        `theano.gof.cmodule`.
    """
    compiler = cmodule.GCC_compiler
    original = compiler.compile_str
    modules = {}    # number of modules so far, by options

    @functools.wraps(original)
    def compile_str(module_name, src_code, location=None, include_dirs=None, lib_dirs=None, libs=None,
                    preargs=None, py_module=True, hide_symbols=True):
        options = list(preargs or [])
        if src_code.startswith(BEGINNING) and hide_symbols and _is_gcc(cmodule):
            folders = [f'-I{folder}' for folder in (include_dirs or []) + cmodule.std_include_dirs()
                       if folder]
            key = (cmodule.config.cxx, cmodule.gcc_version(), *options, *folders)
            modules[key] = modules.get(key, 0) + 1
            header = _header(cmodule.config.compiledir, key, modules[key] > _MODULES_BEFORE, [
                cmodule.config.cxx, '-g', *options, *folders, '-fvisibility=hidden'])
            if header:
                options = ['-include', header, *options]
        return original(module_name, src_code, location, include_dirs, lib_dirs, libs, options,
                        py_module, hide_symbols)

    compiler.compile_str = staticmethod(compile_str)


def _is_gcc(cmodule):
    """Clang reads other files, and complains where GCC is silent."""
    name = os.path.basename(cmodule.config.cxx)
    return 'g++' in name and 'clang' not in name and not cmodule.config.cmodule.remove_gxx_opt


def _header(folder, key, make, command):
    """Return the path of the headers that are compiled with some options; None if there are none."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    path = os.path.join(folder, f'headers-{digest[:16]}.h')
    compiled = path + '.gch'
    if os.path.exists(path) and os.path.exists(compiled):
        return path
    if not make:
        return None
    temporary = f'{path}.{os.getpid()}'
    try:
        with open(temporary, 'w') as f:
            f.write(BEGINNING)
        subprocess.run([*command, '-x', 'c++-header', temporary, '-o', f'{temporary}.gch'], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.replace(f'{temporary}.gch', compiled)
        os.replace(temporary, path)
    except (OSError, subprocess.CalledProcessError):
        return None     # a full disk, say: the modules can do without
    finally:
        for file in temporary, f'{temporary}.gch':
            if os.path.exists(file):
                os.unlink(file)
    return path
