"""The command line of a program: its steps, and how it ends."""
import argparse
import contextlib
import io
import itertools
import os
import signal
import sys

from matplotlib import pyplot

from data import photos, tables
from theano_today.nets.checkpoint import stopping_on_signals
from theano_today.nets.files import FileError, check_writable

from .. import figures
from . import report as pages
from . import record
from .compare import read
from .experiment import described
from .net_files import by_columns


def parse(argv, program, doc, everything, steps):
    """Parse the command line of a program.

    Parameters
    ----------
    argv : list of str or None
        Its words; those of this process where it is None.
    program : str
        The name of its file.
    doc : str
        What the program is, for ``-h``.
    everything : callable
        What is done when no step is named.
    steps : dict of str to (function, metavar, default, help)
        `metavar` is '' for a step that takes nothing, and ends with ... for one that takes several
        words; with a default, or in [brackets], the word may be missing.

    Returns
    -------
    argparse.Namespace
        step, its function and the arguments to call it with; config, set, fresh.
    """
    parser = argparse.ArgumentParser(
        prog='python ' + program, description=doc,
        usage=f'python {program} [-h] [--config FILE] [--set NAME=VALUE] [--fresh] [STEP ...]',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Without a step: the first four, one after the other.')
    parser.add_argument('--config', metavar='FILE',
                        help='take constants and net from a YAML file, as a record of a run has it')
    parser.add_argument('--set', metavar='NAME=VALUE', action='append', default=[],
                        help='set a constant, also one of the file; several times for several')
    parser.add_argument('--fresh', action='store_true',
                        help='forget the checkpoint of a training that was stopped, start anew')
    parser.set_defaults(function=everything)
    subparsers = parser.add_subparsers(dest='step', title='steps', metavar='STEP')
    for name, (function, metavar, default, help_) in steps.items():
        step = subparsers.add_parser(name, help=help_, description=help_)
        step.set_defaults(function=function)
        if metavar:
            several, optional = metavar.endswith('...'), default is not None or metavar[0] == '['
            step.add_argument('arguments', metavar=metavar.strip('[.]'), default=default,
                              nargs={(0, 0): None, (0, 1): '?', (1, 0): '+', (1, 1): '*'}[
                                  several, optional])
        if name.startswith('fit'):
            step.add_argument('--fresh', action='store_true', default=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    arguments = getattr(args, 'arguments', [])
    args.arguments = arguments if isinstance(arguments, list) else [arguments]
    return args


@contextlib.contextmanager
def exit_status(program):
    """Context of all that a program does: what it cannot go on with becomes one line.

    Yields
    ------
    callable
        Returns the exit status when the block is done.
    """
    status = 0
    try:
        with stopping_on_signals():
            yield lambda: status
    except (FileError, MemoryError, OSError) as error:
        print(f'{program}: {one_line(error)}', file=sys.stderr)
        status = 1
    except KeyboardInterrupt as error:
        print(f'{program}: interrupted', file=sys.stderr)
        status = 128 + getattr(error, 'signum', signal.SIGINT)
    else:
        if pyplot.get_fignums():  # windows are open: keep them until they are closed
            pyplot.show()


def one_line(text):
    """Return a message as one line of what can be printed, 1000 characters at most."""
    message = ' '.join(str(text).split()) or 'there is not enough memory'
    if len(message) > 1000:
        message = message[:500] + ' ... ' + message[-500:]
    # Names in files may hold anything, such as codes that redraw the terminal.
    return ''.join(c if c.isprintable() else '?' for c in message)


def mark(fnames, mark_image, fmarked, fpoints):
    """Mark the faces in photographs: a picture for each that has some, and a table of all points.

    A photograph that cannot be read does not keep the others from being marked.

    Parameters
    ----------
    fnames : sequence of str
        The photographs.
    mark_image : callable
        Returns the `photos.Faces` in an image.
    fmarked : str
        Names of the pictures; {name} stands for that of the photograph.
    fpoints : str
        The table.

    Raises
    ------
    FileError
        When all else is done, if some photographs could not be read.
    """
    fnames = list(dict.fromkeys(fnames))
    check_writable(fpoints)
    found, without, bad = {}, [], 0
    for fname, marked in zip(fnames, _marked_names(fnames, fmarked)):
        try:
            image = photos.read(fname)
        except FileError as error:
            bad += 1
            print(one_line(error), file=sys.stderr)
            continue
        found[fname] = faces = mark_image(image)
        if faces:
            print(one_line(f'{fname}: {_number(len(faces), "face")} found.'))
            figures.write_marked(image, faces, marked)
        else:
            without.append(fname)
            print(one_line(f'{fname}: no face found.'))
    photos.write_points(found, fpoints)
    record.keep(fpoints)
    print(one_line('Wrote {}: {} in {}{}.'.format(
        fpoints, _number(sum(map(len, found.values())), 'face'),
        _number(len(found) - len(without), 'photograph'),
        ', none in ' + ', '.join(without) if without else '')))
    if bad:
        raise FileError(f'{bad} of {_number(len(fnames), "photograph")} could not be read.')


def _number(n, what):
    return f'{n} {what}' + 's' * (n != 1)


def _marked_names(fnames, fmarked):
    """Names for the pictures of photographs: none is given twice, or is a photograph's own."""
    taken = {os.path.realpath(fname) for fname in fnames}
    for fname in fnames:
        stem = os.path.splitext(os.path.basename(fname))[0]
        stem = ''.join(c if c.isprintable() else '_' for c in stem)[:100]
        names = (fmarked.format(name=stem + number) for number in itertools.chain(
            [''], map('-{}'.format, itertools.count(2))))
        name = next(name for name in names if os.path.realpath(name) not in taken)
        taken.add(os.path.realpath(name))
        yield name


def report(run, load_nets, load2d, constants):
    """Write the page of a run.

    Parameters
    ----------
    run : str
        The record of the run.
    load_nets, load2d : callable
        Those of the program.
    constants : object
        Its constants, as attributes.

    Raises
    ------
    FileError
        If the run was with other rows than the program now loads.
    """
    gaps = read(run)['constants'].get('GAPS', False)
    if gaps != constants.GAPS:  # its validation faces would be others
        raise FileError(f'{run} was with GAPS = {gaps}, now it is {constants.GAPS}: report with '
                        f'--config {os.path.join(run, "experiment.yaml")}.')

    def load(fname, columns):
        with contextlib.redirect_stdout(io.StringIO()):
            return load2d(cols=columns, fname=fname)

    pages.write_report(
        run, constants.FREPORT, lambda fname: by_columns(load_nets(fname), fname), tables.read_faces,
        load, [constants.FTRAIN, os.path.join(constants.DRAWN, 'training.csv')],
        dict(described(vars(constants), os.path.dirname(constants.DATA)), **constants.DECK))


def patterns(constants):
    """Patterns of the files that a program writes: its constants F..., which are names of files."""
    return [value.format(time='*', name='*') for name, value in constants.items()
            if name.startswith('F') and name.isupper() and isinstance(value, str)]
