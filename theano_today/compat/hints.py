"""What to do about errors that scripts of 2015 meet today: a line below the traceback."""
import importlib.util
import os
import re
import sys

# What Python 3 says of Python 2's syntax.
_SYNTAX = ('Missing parentheses in call to', 'multiple exception types must be parenthesized',
           'leading zeros in decimal integer literals', 'invalid syntax', 'invalid decimal literal',
           'invalid character', 'invalid prefix', 'expected')


def hint(error, traceback):
    """Return what to do about an error that an old script meets, or None.

    Parameters
    ----------
    error : BaseException
    traceback : traceback or None

    Returns
    -------
    str or None
    """
    if isinstance(error, TabError):
        return (f'{error.filename}, line {error.lineno}: tabs and spaces are mixed, as Python 2 allowed. '
                f'Mend it: expand -t 8 {error.filename} > new.py')
    if isinstance(error, SyntaxError):
        if str(error.msg).startswith(_SYNTAX) and error.filename:
            return (f'{error.filename}, line {error.lineno}: if this is the syntax of Python 2, '
                    f'{_tool()} {error.filename} mends the whole file (and keeps it as .bak).')
        return None
    place = ''
    while traceback is not None:
        place = f'{traceback.tb_frame.f_code.co_filename}, line {traceback.tb_lineno}: '
        traceback = traceback.tb_next
    text = str(error)
    if _newer_lasagne(error, text):
        return (f"{place}Lasagne's master has this, its release 0.1 has not. Scripts of 2016 and later ask "
                'for it: pip install https://github.com/Lasagne/Lasagne/archive/master.zip')
    if isinstance(error, AttributeError) and "'dict' object has no attribute" in text:
        return f'{place}a method that dict had in Python 2. {_tool()} FILE mends the whole file.'
    if isinstance(error, TypeError) and re.search(
            r"""['"](map|zip|filter|range|dict_keys|dict_values|dict_items)['"]""", text):
        return f'{place}in Python 2 this was a list. {_tool()} FILE mends the whole file.'
    if isinstance(error, TypeError) and (
            "'float' object cannot be interpreted as an integer" in text
            or 'slice indices must be integers' in text):
        return f'{place}if this number comes from a division, Python 2 gave a whole one: write // for /.'
    if isinstance(error, TypeError) and re.search(
            r"a bytes-like object is required, not 'str'|string pattern on a bytes-like|concat str to bytes"
            r"|can only concatenate str \(not \"bytes\"\)", text):
        return (f"{place}in Python 2 bytes were text. Open files of text with 'r' in place of 'rb', or "
                'write .decode() behind what gives the bytes.')
    if isinstance(error, UnicodeDecodeError) and "'ascii' codec" in text:
        return f"{place}if this loads what Python 2 has pickled: pickle.load(file, encoding='latin1')."
    return None


def _tool():
    """The command that turns a file for Python 2 into one for Python 3."""
    if importlib.util.find_spec('lib2to3'):
        return f'{os.path.basename(sys.executable)} -m lib2to3 -w'
    # lib2to3: deprecated in Python 3.9, removed in 3.13.
    return f'pip install fissix, then {os.path.basename(sys.executable)} -m fissix -w'


def _newer_lasagne(error, text):
    """Whether something is missing in Lasagne 0.1 that later versions have."""
    if getattr(sys.modules.get('lasagne'), '__version__', None) != '0.1':
        return False
    if isinstance(error, TypeError):
        return re.search(r'Layer\.__init__\(\) got an unexpected keyword argument', text)
    return isinstance(error, (ImportError, AttributeError)) and re.search(
        r"(from|module|named) 'lasagne\b", text)
