"""The files of checkpoints: Python's values and arrays, whole and hashed, without pickles.

A NumPy archive (.npz): arrays named by the BLAKE2 hash of their content, so that equal ones are
written once, and a JSON text with everything else.
"""
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections import OrderedDict

import numpy as np

from .files import FileError, open_regular, replacing

__all__ = ['CannotPack', 'CheckpointError', 'digest', 'is_finished', 'pack', 'read', 'unpack',
           'write']

VERSION = 1
FRESH = 'by removing it'  # how to start anew, for messages
LARGEST_STATE = 1 << 25  # bytes of JSON: a hundred times what 3,000 epochs take
# What comes up where a file holds other things than it should.
STRANGE = AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError


class CheckpointError(FileError):
    """A checkpoint cannot be used; the message says why and what to do."""


# -------------------------------------------------------------------------- Python values as JSON

def digest(*arrays):
    """Return the BLAKE2 hash of arrays, their shapes and types, as 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.ascontiguousarray(array)
        hashed.update(f'{array.dtype.str}{array.shape}'.encode())
        hashed.update(array.reshape(-1).view(np.uint8))
    return hashed.hexdigest()


class CannotPack(TypeError):
    """A value that is no number, string, array, random stream, or a collection of these."""


def pack(value, arrays):
    """Return `value` as JSON has it, with its arrays in the dictionary `arrays` by their hash."""
    if isinstance(value, np.generic) or isinstance(value, np.ndarray) and value.ndim == 0:
        kind = 'scalar' if isinstance(value, np.generic) else '0-d array'
        if value.dtype.kind in 'biuf':
            return {kind: [value.dtype.str, value.item()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        # The order of the axes in memory decides which BLAS routine is called, hence the last bits.
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        if not value.transpose(axes).flags.c_contiguous:
            axes = list(range(value.ndim))
        value = np.ascontiguousarray(value.transpose(axes))
        name = digest(value)
        arrays[name] = value
        return {'array': [name, axes]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(item, arrays) for item in value]}
    if type(value) in (dict, OrderedDict):
        return {type(value).__name__: [[pack(key, arrays), pack(item, arrays)]
                                       for key, item in value.items()]}
    if isinstance(value, np.random.RandomState):
        return {'RandomState': pack(value.get_state(), arrays)}
    if isinstance(value, np.random.Generator):
        return {'Generator': pack(value.bit_generator.state, arrays)}
    raise CannotPack(type(value).__name__)


def unpack(node, arrays, old=None):
    """Undo `pack`.  Random generators are set in place in `old`, as others may share them."""
    if not isinstance(node, dict):
        return node
    (kind, content), = node.items()
    if kind == 'scalar':
        return np.dtype(content[0]).type(content[1])
    if kind == '0-d array':
        return np.array(content[1], content[0])
    if kind == 'array':
        name, axes = content
        return arrays[name].copy().transpose(np.argsort(axes))
    if kind in ('list', 'tuple'):
        return {'list': list, 'tuple': tuple}[kind](unpack(item, arrays) for item in content)
    if kind in ('dict', 'OrderedDict'):
        return {'dict': dict, 'OrderedDict': OrderedDict}[kind](
            (unpack(key, arrays), unpack(item, arrays)) for key, item in content)
    state = unpack(content, arrays)
    if kind == 'RandomState':
        old = old if isinstance(old, np.random.RandomState) else np.random.RandomState()
        if state[0] != 'MT19937' or not 0 <= state[2] <= 624:  # NumPy would read out of bounds
            raise ValueError('not the state of a RandomState')
        old.set_state(state)
        return old
    if kind == 'Generator':
        if not isinstance(old, np.random.Generator) or not 0 <= state['state'].get('pos', 0) <= 624:
            raise ValueError('there is no random Generator to be set')
        old.bit_generator.state = state
        return old
    raise ValueError(f'unknown kind {kind!r}')


# ----------------------------------------------------------------------------------- the file

def write(fname, state, arrays):
    """Write a checkpoint: `state` as JSON has it, and the arrays it refers to by their hash."""
    text = json.dumps(state).encode()
    with replacing(fname) as f, zipfile.ZipFile(f, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr(f'state-{_text_digest(text)}.json', text)
        for name, array in arrays.items():
            with archive.open(name + '.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(fname, fresh=FRESH):
    """Read what `write` has written, and check it against its hashes.

    Returns
    -------
    state : dict
    arrays : dict of str to ndarray

    Raises
    ------
    CheckpointError
        If the file is damaged or something else.  No code in it is run, and it takes no more
        memory than its own size.
    """
    arrays, state = {}, None
    try:
        with open_regular(fname) as f, zipfile.ZipFile(f) as archive:
            size = os.fstat(f.fileno()).st_size
            if sum(info.file_size for info in archive.infolist()) > size:
                raise ValueError('compressed or overlapping members')
            for info in archive.infolist():
                data = archive.read(info)
                name, _, extension = info.filename.rpartition('.')
                if extension == 'npy':
                    arrays[name] = _read_array(data)
                    if digest(arrays[name]) != name:
                        raise ValueError('an array does not match its hash')
                else:
                    if len(data) > LARGEST_STATE or name != 'state-' + _text_digest(data):
                        raise ValueError('the state does not match its hash')
                    state = json.loads(data.decode())
        if not isinstance(state, dict) or state.get('version') != VERSION:
            raise ValueError(f'not version {VERSION} of the format')
    except FileNotFoundError:
        raise
    except (OSError, EOFError, RuntimeError, SyntaxError, MemoryError, zipfile.BadZipFile,
            zlib.error, struct.error) + STRANGE as error:  # RuntimeError: encrypted
        said = str(error) or type(error).__name__
        raise CheckpointError(
            f'{fname} is no whole checkpoint of this program ({said}). Start anew {fresh}, or put '
            'the right file in its place.') from error
    return state, arrays


def is_finished(fname):
    """Whether there is a checkpoint of a training that has come to its end."""
    try:
        return bool(read(fname)[0].get('finished'))
    except (FileNotFoundError, FileError):
        return False


def _text_digest(text):
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _read_array(data):
    """Read an .npy file from bytes; unlike `numpy.load`, take no more memory than it has bytes."""
    f = io.BytesIO(data)
    if np.lib.format.read_magic(f) != (1, 0):
        raise ValueError('an array of another version of the .npy format')
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
    count = 1
    for length in shape:
        count *= length
    if dtype.kind not in 'biuf' or fortran or count * dtype.itemsize != len(data) - f.tell():
        raise ValueError('an array whose size is not the one it claims')
    return np.frombuffer(data, dtype, offset=f.tell()).reshape(shape)
