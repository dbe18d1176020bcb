"""A page that shows a run to a class, made from its record (see record.py).

    python kfkd.py report runs/2026-11-22-184500-all

One HTML file with its pictures in it: no network, no script.  What the record, or the data as they
are now, cannot tell is left out, and a sentence in its place says why.  This module gathers what
there is; the words are in report.html, a template of Jinja2, the style in report.css.
"""
import base64
import glob
import io
import json
import os
import shlex
import time
from datetime import datetime
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps, colors, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from theano_today.nets.files import FileError, open_regular, replacing

from ..curves import analyse, plot_analysis
from ..figures import BLUE, SKY, YELLOW
from . import experiment
from .compare import one_line, read
from .findings import SAMPLES, Faces, find_nets, listed, points

LARGEST_TEXT = 1 << 20      # bytes of experiment.yaml
# Each with a shape of its own, too.
COLORS = dict(labelled=YELLOW, found=SKY)


def write_report(folder, fname, load_nets, read_table, load, files=(), defaults=None, scale=48):
    """Write the page of a run.

    Parameters
    ----------
    folder : str
        The record of the run.
    fname : str
        The page; `{name}` in it stands for the name of the folder.
    load_nets : callable
        From the name of a file to its nets: a dictionary of NeuralNet by their columns.
    read_table : callable
        From the name of a file of training faces to a DataFrame: label columns in pixels, and Image
        with arrays of pixels in 0..255.
    load : callable
        From the name of such a file and columns to X in [0, 1] and y in [-1, 1], the rows in the
        order in which nets are trained on them.
    files : sequence of str
        Where the training faces may be.  Those are used that have the SHA-256 of the record.
    defaults : dict, optional
        The constants that need no mention.
    scale : float
        Pixels of a distance of 1 in y, whose 0 is the middle of the image.

    Raises
    ------
    RecordError
        If there is no record in the folder.
    FileError
        If the page cannot be written.
    """
    started = time.time()
    record = read(folder)
    name = os.path.basename(os.path.abspath(folder))
    faces = Faces(record, files, read_table, load)
    nets = find_nets(folder, record, load_nets, faces, scale)
    kinds = kinds_of([net for net in nets if net.validation])
    blank, middle = np.full((12, 14), 0.45), np.array([6.5, 5.5])
    content = environment().get_template('report.html').render(
        name=name, colors=COLORS, tiles=tiles(record, nets),
        ran=what_ran(record, folder, json.loads(json.dumps(defaults or {}))),
        data=data(record, faces), training_faces=training_faces(faces, nets, scale),
        nets=net_tables(nets), curves=[learning_curve(net, scale) for net in nets],
        filters=filters(nets), extremes=[extremes(net) for net in nets if net.validation],
        key=dict(label=drawn(blank, middle), found=drawn(blank, found=middle)),
        keypoints=keypoints(kinds) if kinds else None, submission=submission(record, folder),
        validations_missing=missing([net for net in nets if not net.validation]))
    # Text from a record may have halves of characters, which UTF-8 has not.
    content = content.encode('utf-8', 'xmlcharrefreplace')
    fname = fname.format(name=name)
    with replacing(fname) as f:
        f.write(content)
    print(f'Wrote {fname} ({len(content) / 1000:.0f} KB, in {time.time() - started:.0f} s).')


def environment():
    """What fills in templates of this folder; text is escaped, a missing name is an error."""
    filler = Environment(
        loader=FileSystemLoader(os.path.dirname(os.path.abspath(__file__))), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filler.filters.update(listed=listed, duration=duration, pixels=pixels,
                          thousands='{:,}'.format)
    return filler


# -------------------------------------------------------------------------------------- sections

def missing(nets):
    """Return the reasons why something of nets is not on the page, each with their titles."""
    reasons = {}
    for net in nets:
        reasons.setdefault(net.why, []).append(net.title.lower())
    return [(names, why) for why, names in reasons.items()]


def tiles(record, nets):
    """How well the nets find points, and how well the mean face does, in large figures."""
    found = []
    for title, chosen in kinds_of(nets):
        if all(net.info['valid_rmse'] is not None for net in chosen):
            guess = together([net.validation.rmse(guess=True) for net in chosen], chosen) \
                if all(net.validation for net in chosen) else None
            found.append(dict(title=title + ', validation', guess=guess, rmse=together(
                [net.info['valid_rmse'] for net in chosen], chosen)))
    rmse, guess = test_errors(record)
    if rmse is not None and guess is not None:
        found.append(dict(title='Test faces', rmse=rmse, guess=guess))
    return found


def test_errors(record):
    """RMSE on the test faces, and that of a guess; None for what the record does not have."""
    values = [record['results'].get(name) for name in ('test_rmse', 'test_rmse_of_mean')]
    return [value if isinstance(value, (int, float)) else None for value in values]


def kinds_of(nets):
    """Return titles with their nets: the first net, and the specialists."""
    kinds = [('First net', [net for net in nets if net.first]),
             ('Specialists', [net for net in nets if not net.first])]
    return [(title, chosen) for title, chosen in kinds if chosen]


def together(rmse, nets):
    """RMSE of several nets as one, each with the weight of its columns."""
    return float(np.sqrt(np.average(np.square(rmse),
                                    weights=[len(net.columns) for net in nets])))


def what_ran(record, folder, defaults):
    """When, how long, on what, with which constants."""
    began = record['started']
    try:
        began = f'{datetime.fromisoformat(began):%d %B %Y, %H:%M}'
    except ValueError:
        pass
    constants = record['constants']
    text, net, problem = experiment_of(folder)
    machine = {name: str(record['machine'].get(name) or '') for name in (
        'processor', 'cores', 'system', 'threads', 'theano_flags')}
    return SimpleNamespace(
        command=command(record), state=record['state'], seconds=record['seconds'], began=began,
        message=record['message'], machine=machine, problem=problem,
        experiment=text, again=command(record, [
            '--config', os.path.join(folder, 'experiment.yaml')]),
        constants=[(code(name), code(text_of(value))) for name, value in constants.items()],
        changed=[(code(name), code(text_of(value)),
                  code(text_of(defaults[name])) if name in defaults else '-')
                 for name, value in constants.items()
                 if name not in defaults or value != defaults[name]] + net * [
                     (code('NET'), 'of its own, see experiment.yaml below', "the deck's")],
        versions=list(record['versions'].items()))


def experiment_of(folder):
    """Return experiment.yaml as text, whether it has a net of its own, and why there is none."""
    fname = os.path.join(folder, 'experiment.yaml')
    try:
        with open_regular(fname) as f:
            text = f.read(LARGEST_TEXT).decode()
        return text, bool(experiment.read(fname)['net']), ''
    except (FileError, OSError, UnicodeError) as error:
        return '', False, str(error)


def data(record, faces):
    """Rows and fingerprints of the files, and how many faces have each keypoint."""
    shown = SimpleNamespace(why=None, files=[
        (name, f'{content["rows"]:,}', code(content['sha256']))
        for name, content in record['data'].items()])
    if faces.table is None:
        shown.why = faces.why
        return shown
    there = faces.table.drop(columns='Image').notna()
    shown.faces, shown.complete = len(there), int(there.all(axis=1).sum())
    shown.rows = []
    for name, numbers in points(there.columns):
        count = int(there.iloc[:, numbers].all(axis=1).sum())
        share = count / len(there)
        shown.rows.append((name, f'{count:,}', f'{share:.0%}', bar(share)))
    return shown


def training_faces(faces, nets, scale):
    """Some of the faces that the first net of the run has been trained on."""
    if not nets:
        return None
    net = nets[0]
    shown = dict(title=net.title.lower(), why=None, trained_on=None)
    if net.validation:
        shown['trained_on'], samples = net.validation.trained_on, net.validation.samples
    else:
        try:
            X, y = faces.load(net.columns)
        except FileError as error:
            return dict(shown, why=error)
        samples = zip(X[:SAMPLES, 0], y[:SAMPLES] * scale + scale)
    return dict(shown, faces=[drawn(image, labels) for image, labels in samples])


def net_tables(nets):
    """The nets side by side, and the layers of each kind."""
    rows, kinds = [], {}
    for net in nets:
        info, found = net.info, net.validation
        rows.append([
            Markup('<span>{}<small>{}</small></span>').format(net.title, net.keypoints),
            *(map('{:,}'.format, (found.trained_on, len(found.labels))) if found else '--'),
            '{best_epoch} of {epochs}'.format(**info), pixels(info['train_rmse']),
            pixels(info['valid_rmse']), duration(info['seconds'])])
        if net.layers:
            kinds.setdefault(tuple(net.layers[:-1]), []).append(net)
    return dict(rows=rows, missing=missing([net for net in nets if not net.layers]), kinds=[
        dict(title=same[0].title.lower(),
             layers=[(*layer[:3], f'{layer[3]:,}' if layer[3] else '')
                     for layer in same[0].layers] + [('in all', '', '', weights_of(same[0]))],
             others=[(net.title, net.layers[-1][2], weights_of(net)) for net in same[1:]])
        for same in kinds.values()])


def weights_of(net):
    """Write how many weights a net has."""
    return f'{sum(weights for _, _, _, weights in net.layers):,}'


def learning_curve(net, scale):
    """A net's learning curve, and what it says."""
    history, info = net.history.to_dict('records'), net.info
    shown = dict(title=net.title, keypoints=net.keypoints, epochs=len(history), why=None,
                 best_rmse=info['valid_rmse'], best_epoch=info['best_epoch'])
    try:
        return dict(shown, judgement=str(analyse(history)), drawing=curve(history, info, scale))
    except ValueError as error:  # trained without a validation set
        return dict(shown, why=error)


def curve(history, info, scale):
    """Draw a learning curve; return its address."""
    with rc_context({'font.size': 9, 'legend.fontsize': 8}):
        fig = Figure(figsize=(4.6, 3), dpi=150)
        axis = fig.add_axes((0.12, 0.15, 0.86, 0.83))
        plot_analysis(history, scale, 'pixels', axis=axis)
    axis.set_title('')
    if info['valid_rmse'] is not None:
        axis.plot(info['best_epoch'], info['valid_rmse'], 'o', color='black', zorder=5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(history) > 500:  # a drawing of so many lines is heavier than their picture
        for line in axis.lines:
            line.set_rasterized(True)
    content = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'kfkd'}):  # the same figure, the same bytes
        fig.savefig(content, format='svg', metadata={'Date': None}, transparent=True)
    return data_uri(content.getvalue(), 'image/svg+xml')


def filters(nets):
    """The weights of the first convolution of each net."""
    shown = [net for net in nets if net.filters is not None]
    limit = max((float(np.abs(net.filters).max()) for net in shown), default=0)
    return dict(
        shown=[dict(title=net.title, number=len(net.filters),
                    picture=png(montage(net.filters, limit))) for net in shown],
        size=shown[0].filters.shape[2:] if shown else None, limit=limit,
        without=[net.title.lower() for net in nets if net.layers and net.filters is None])


def montage(weights, limit):
    """Paint filters in rows of eight, each scaled up, with gaps; RGB bytes."""
    number, _, height, width = weights.shape
    scale = max(24 // width, 1)
    rows = -(-number // 8)
    gap = 4
    picture = np.full((rows * (height * scale + gap) - gap, 8 * (width * scale + gap) - gap, 3),
                      255, np.uint8)
    # Purple to orange through white: told apart by the colour-blind.
    painted = colormaps['PuOr_r'](colors.Normalize(-limit or -1, limit or 1)(weights[:, 0]))
    for index, filter_ in enumerate(np.uint8(255 * painted[..., :3])):
        top, left = (index // 8) * (height * scale + gap), (index % 8) * (width * scale + gap)
        picture[top:top + height * scale, left:left + width * scale] = np.kron(
            filter_, np.ones((scale, scale, 1), np.uint8))
    return picture


def extremes(net):
    """The validation faces with the smallest and with the largest errors."""
    found = net.validation
    best, worst = ([
        dict(error=found.errors[row], line=found.lines[row],
             face=drawn(found.images[row], found.labels[row], found.found[row])) for row in rows]
        for rows in (found.best, found.worst))
    return dict(title=net.title, keypoints=net.keypoints, first=net.first,
                faces=len(found.labels), best=best, worst=worst)


def keypoints(kinds):
    """Which keypoints are found well, and which are not: as a table, and on the mean face."""
    results = [(title, errors_of_points(chosen)) for title, chosen in kinds]
    names = list(dict.fromkeys(name for _, errors in results for name in errors))
    rows = [[name] + [pixels(errors[name][which]) if name in errors else '-'
                      for _, errors in results for which in ('rmse', 'guess')] for name in names]
    rows.append(['all'] + [pixels(together([net.validation.rmse(guess=guess) for net in chosen],
                                           chosen))
                           for _, chosen in kinds for guess in (False, True)])
    order = sorted((error['rmse'], name) for name, error in results[-1][1].items())
    easiest, hardest = ((name, rmse) for rmse, name in (order[0], order[-1]))
    return dict(kinds=[title for title, _ in kinds], rows=rows, maps=maps(kinds, results),
                easiest=easiest, hardest=hardest if len(order) > 1 else None)


def errors_of_points(nets):
    """Return for each keypoint of nets its mean place, its RMSE, and that of a guess, in pixels."""
    errors = {}
    for net in nets:
        found = net.validation
        for name, columns in net.points:
            errors[name] = dict(place=found.labels[:, columns].mean(axis=0),
                                rmse=found.rmse(columns), guess=found.rmse(columns, guess=True))
    return errors


def maps(kinds, results):
    """Mean faces with a circle at each keypoint whose radius is the RMSE."""
    pictures = [(title, chosen, errors, 'rmse') for (title, chosen), (_, errors) in
                zip(kinds, results)]
    title, chosen, errors, _ = pictures[-1]
    pictures.append(('Guessing the mean', chosen, errors, 'guess'))
    limit = max(error[which] for _, _, errors, which in pictures for error in errors.values())
    figures = []
    for title, chosen, errors, which in pictures:
        mean = np.average([net.validation.mean_face for net in chosen], axis=0,
                          weights=[len(net.validation.labels) for net in chosen])
        circles = [circle(*error['place'], error[which], limit,
                          f'{name}: {pixels(error[which])} pixels')
                   for name, error in sorted(errors.items(), key=lambda item: -item[1][which])
                   if len(error['place']) == 2]
        legend, room = scale_of_circles(limit, *mean.shape)
        figures.append(dict(title=title, image=grey(mean), circles=circles, legend=legend,
                            room=room))
    return figures


def circle(x, y, radius, limit, text, label=''):
    """A circle whose radius and colour tell an error in pixels."""
    return dict(x=x, y=y, radius=radius, text=text, label=label,
                color=colors.to_hex(colormaps['viridis'](radius / (limit or 1))))


def scale_of_circles(limit, height, width):
    """Return circles of known radius for the room below a face, and the height of that room."""
    step = next((step for step in (0.5, 1, 2, 5, 10) if limit / step <= 6), 20)
    radii = [radius for radius in np.arange(1, limit // step + 1) * step if radius <= 20]
    room = 2 * max(radii, default=0) + 10
    circles, x = [], 4
    for radius in radii:
        x += max(radius, 3)
        if x + radius > width - 10:
            break
        circles.append(circle(x, height + room / 2 - 3.5, radius, limit,
                              f'{radius:g} pixels',
                              '{:g}{}'.format(radius, ' px' if radius == radii[0] else '')))
        x += max(radius, 3) + 3
    return circles, room


def submission(record, folder):
    """What the run would send to the contest."""
    pattern = os.path.basename(str(record['constants'].get('FSUBMISSION', 'submission-{time}.csv')))
    parts = [glob.escape(part) for part in pattern.split('{time}')]
    files = sorted(glob.glob(os.path.join(glob.escape(folder), '*'.join(parts))))
    shown = dict(file=os.path.basename(files[-1]) if files else None, why=None, no_picture=None)
    if not files:
        return shown
    try:
        with open_regular(files[-1]) as f:
            places = pd.read_csv(f)['Location'].astype(float)
        if not len(places) or not np.isfinite(places).all():
            raise ValueError('not all of its locations are numbers')
        shown['rmse'], guess = test_errors(record)
        shown['rows'] = [
            ('File', shown['file']), ('Rows', f'{len(places):,}'),
            ('Smallest, median, largest location',
             f'{places.min():.2f}, {places.median():.2f}, {places.max():.2f} px'),
            ('At the edge of the image (0 or 96)', f'{places.isin([0, 96]).sum():,}')]
        for error, title in ((shown['rmse'], 'RMSE on the test faces'),
                             (guess, 'RMSE of guessing the mean')):
            if error is not None:
                shown['rows'].append((title, f'{error:.2f} px'))
    except (FileError, OSError, ValueError, LookupError) as error:
        shown['why'] = one_line(error)
    picture = os.path.join(folder, os.path.basename(str(
        record['constants'].get('FPREDICTIONS', 'test-predictions.png'))))
    try:
        shown['picture'], shown['size'] = copied(picture)
    except FileNotFoundError:
        shown['no_picture'] = 'it is not in the record.'
    except (OSError, ValueError) as error:
        shown['no_picture'] = one_line(error)
    return shown


# -------------------------------------------------------------------------------------- pictures

def data_uri(content, kind):
    """Return bytes as an address that holds them; `kind` is image/png, ..."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def png(pixels):
    """Return the address of a picture: array of bytes, (height, width) grey or (..., 3) RGB."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'png', optimize=True)
    return data_uri(content.getvalue(), 'image/png')


def copied(fname, largest=1000):
    """Return the address of a PNG file, as a smaller JPEG of photographs, and its size.

    Parameters
    ----------
    fname : str
    largest : int
        Width and height to keep to.

    Returns
    -------
    str, (int, int)

    Raises
    ------
    OSError, ValueError
        If it is no PNG file.
    """
    try:
        with open_regular(fname) as f, Image.open(f, formats=['PNG']) as image:
            image = image.convert('RGB')
    except (SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
        raise ValueError(str(error)) from error
    image.thumbnail((largest, largest))
    content = io.BytesIO()
    image.save(content, 'jpeg', quality=88, subsampling=0, optimize=True)
    return data_uri(content.getvalue(), 'image/jpeg'), image.size


def bar(share):
    """Return a horizontal bar that fills a share, 0 to 1, of its place."""
    return Markup('<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" '
                  'class="bar"><rect width="100" height="10" fill="#e2e5ea"/>'
                  '<rect width="{:.1f}" height="10" fill="{}"/></svg>').format(100 * share, BLUE)


def grey(image):
    """Return what a drawing needs of pixels in [0, 1], shape (height, width)."""
    return dict(address=png(np.uint8(np.round(255 * np.clip(image, 0, 1)))),
                height=image.shape[0], width=image.shape[1])


def drawn(image, labelled=None, found=None):
    """Return a face and the paths of its marks.

    Parameters
    ----------
    image : ndarray, shape (height, width)
        Pixels in [0, 1].  The centre of the first one is (0, 0), as in the data.
    labelled, found : ndarray, shape (2k,), optional
        x and y of k points in turn, in pixels: labels, and what a net has found.
    """
    def path(pattern, *marks):
        if any(mark is None for mark in marks):
            return None
        places = np.hstack([np.reshape(mark, (-1, 2)) for mark in marks])
        return ''.join(pattern.format(*place) for place in places if np.isfinite(place).all())

    return dict(image=grey(image), dots=path('M{:.1f} {:.1f}h0', labelled),
                links=path('M{:.1f} {:.1f}L{:.1f} {:.1f}', labelled, found),
                crosses=path('M{:.1f} {:.1f}m-1.7-1.7l3.4 3.4m0-3.4l-3.4 3.4', found))


# ----------------------------------------------------------------------------------------- words

def command(record, options=()):
    """The command line of a run."""
    return ' '.join(['python kfkd.py'] + [shlex.quote(word) for word in
                                          [*options, *record['command']]])


def code(text):
    """Write what a program reads; whatever is in it is escaped."""
    return Markup('<code>{}</code>').format(text)


def duration(seconds):
    """Write seconds as a reader would."""
    if seconds is None:
        return 'a time not known'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def pixels(rmse):
    """Write an error in pixels."""
    return '-' if rmse is None else f'{rmse:.2f}'


def text_of(value):
    """Write a constant as kfkd.py has it."""
    return ', '.join(map(repr, value)) if isinstance(value, list) else repr(value)
