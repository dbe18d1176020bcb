"""A page that shows a run to a class, made from its record (see beyond/records.py).

    python kfkd.py report runs/2026-11-22-184500-all

One HTML file with its pictures in it: no network, no script.  What the record, or the data as they
are now, cannot tell is left out, and a sentence in its place says why.
"""
import glob
import json
import os
import shlex
import time
from datetime import datetime

import numpy as np
import pandas as pd
from matplotlib import colormaps, colors, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from theano_today.nets.files import FileError, open_regular, replacing

from .runs import experiment as config
from .curves import analyse, plot_analysis
from .findings import SAMPLES, Faces, find_nets, listed, points
from .page import CSS, E, bar, canvas, copied, face, html, key, note, png, svg, table
from .runs.compare import read

LARGEST_TEXT = 1 << 20      # bytes of experiment.yaml


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

    sections = [
        ('ran', 'What ran', what_ran(record, folder, json.loads(json.dumps(defaults or {})))),
        ('data', 'The data', data(record, faces)),
        ('training-faces', 'Training faces', training_faces(faces, nets, scale)),
        ('nets', 'The nets', net_tables(nets)),
        ('curves', 'Learning curves', curves(nets, scale)),
        ('filters', 'Filters of the first layer', filters(nets)),
        ('extremes', 'Best and worst validation faces', extremes(nets)),
        ('keypoints', 'Error of each keypoint', keypoints(nets)),
        ('submission', 'Submission', submission(record, folder)),
    ]
    page = E(
        'html',
        E('head', E('meta', charset='utf-8'),
          E('meta', name='viewport', content='width=device-width, initial-scale=1'),
          E('title', 'Run {}'.format(name)), E('style', CSS)),
        E('body',
          E('header', E('h1', 'Run ', name), summary(record, nets),
            E('nav', E('ol', *[E('li', E('a', title, href='#' + place))
                               for place, title, _ in sections]), aria_label='Contents')),
          E('main', *[E('section', E('h2', title, id=place + '-title'), *content, id=place,
                        aria_labelledby=place + '-title')
                      for place, title, content in sections])),
        lang='en')
    content = html(page)
    fname = fname.format(name=name)
    with replacing(fname) as f:
        f.write(content)
    print('Wrote {} ({:.0f} KB, in {:.0f} s).'.format(
        fname, len(content) / 1000, time.time() - started))


def missing(nets, what):
    """Return a note for each reason why `what` of some nets is not on the page."""
    reasons = {}
    for net in nets:
        reasons.setdefault(net.why, []).append(net.title.lower())
    return [note('{} left out here for the {}: {}'.format(what, listed(names), why))
            for why, names in reasons.items()]


# -------------------------------------------------------------------------------------- sections

def summary(record, nets):
    """Say in a sentence what ran, and in large figures how well."""
    ended = {'finished': 'finished after ', 'stopped': 'was stopped after ',
             'failed': 'failed after '}.get(record['state'])
    sentence = E('p', E('code', command(record)), ' ', ended or 'has written its last '
                 'record after ', duration(record['seconds']), '.')
    tiles = []
    for title, chosen in kinds_of(nets):
        if all(net.info['valid_rmse'] is not None for net in chosen):
            guess = all(net.validation for net in chosen) and together(
                [net.validation.rmse(guess=True) for net in chosen], chosen)
            tiles.append((title + ', validation', together(
                [net.info['valid_rmse'] for net in chosen], chosen), guess))
    test = [record['results'].get(name) for name in ('test_rmse', 'test_rmse_of_mean')]
    if all(isinstance(value, (int, float)) for value in test):
        tiles.append(('Test faces', *test))
    return E('div', sentence, E('dl', *[
        E('div', E('dt', title), E('dd', '{:.2f} px'.format(value), class_='value'),
          E('dd', 'RMSE; guessing the mean face gives {} px'.format(pixels(guess)) if guess
            else 'RMSE'))
        for title, value, guess in tiles], class_='tiles') if tiles else None)


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
        began = '{:%d %B %Y, %H:%M}'.format(datetime.fromisoformat(began))
    except ValueError:
        pass
    state = {
        'finished': 'All that was asked for was done.',
        'stopped': 'The run was stopped before its end.',
        'failed': 'The run failed.',
    }.get(record['state'], 'The record has no end: the run was still going on, or it was killed.')
    machine = {str(name): str(value) for name, value in record['machine'].items()}
    yield table(None, [
        ['Command', E('code', command(record))],
        ['Began', began],
        ['Took', duration(record['seconds'])],
        ['Ended', ' '.join(filter(None, [state, record['message']]))],
        ['Processor', '{}, {} cores'.format(machine.get('processor', 'not known'),
                                            machine.get('cores', '?'))],
        ['System', machine.get('system', 'not known')],
        ['Threads', machine.get('threads', 'not known')]])

    yield E('h3', 'Constants that differ from the defaults')
    experiment, net, problem = experiment_of(folder)
    rows = [[E('code', name), E('code', text_of(value)),
             E('code', text_of(defaults[name])) if name in defaults else '-']
            for name, value in record['constants'].items()
            if name not in defaults or value != defaults[name]]
    if net:
        rows.append([E('code', 'NET'), 'of its own, see experiment.yaml below', 'the deck\'s'])
    if rows:
        yield table(['constant', 'in this run', 'default'], rows)
    else:
        yield E('p', 'None.')
    yield E('details', E('summary', 'All constants'), table(
        ['constant', 'value'], [[E('code', name), E('code', text_of(value))]
                                for name, value in record['constants'].items()]))
    yield E('details', E('summary', 'Versions and flags'), table(
        ['package', 'version'], [[str(name), str(value)]
                                 for name, value in record['versions'].items()]),
        E('p', 'THEANO_FLAGS: ', E('code', machine.get('theano_flags') or 'none')))
    if problem:
        yield note('The run cannot be started again from its record: ', problem)
    else:
        again = ['--config', os.path.join(folder, 'experiment.yaml')]
        yield E('details', E('summary', 'To run it again'),
                E('p', E('code', command(record, again)), ' with this file of the record:'),
                E('pre', experiment))


def experiment_of(folder):
    """Return experiment.yaml as text, what it says of the net, and why there is none."""
    fname = os.path.join(folder, 'experiment.yaml')
    try:
        with open_regular(fname) as f:
            text = f.read(LARGEST_TEXT).decode()
        return text, config.read(fname)['net'], ''
    except (FileError, OSError, UnicodeError) as error:
        return '', {}, str(error)


def data(record, faces):
    """Rows and fingerprints of the files, and how many faces have each keypoint."""
    files = [[str(name), '{:,}'.format(content['rows']), E('code', content['sha256'])]
             for name, content in record['data'].items()]
    if files:
        yield table(['file', 'rows', 'SHA-256'], files, numbers=[1])
    if faces.table is None:
        yield note('Counts and pictures of the faces are left out: ', faces.why)
        return
    labels = faces.table.drop(columns='Image')
    there = labels.notna()
    rows = []
    for name, numbers in points(labels.columns):
        count = int(there.iloc[:, numbers].all(axis=1).sum())
        rows.append([name, '{:,}'.format(count), '{:.0%}'.format(count / len(labels)),
                     bar(count / len(labels))])
    complete = int(there.all(axis=1).sum())
    yield E('p', '{:,} of {:,} faces have all {} keypoints. A net learns from the faces that have '
            'all of its own keypoints.'.format(complete, len(labels), len(rows)))
    yield table(['keypoint', 'faces', 'share', ''], rows, 'Faces that have each keypoint',
                numbers=[1, 2])


def training_faces(faces, nets, scale):
    """Some of the faces that the first net of the run has been trained on."""
    for net in nets[:1]:
        if net.validation:
            samples = net.validation.samples
            about = 'Some of the {:,} faces that the {} was trained on, and their labels.'.format(
                net.validation.trained_on, net.title.lower())
        else:
            try:
                X, y = faces.load(net.columns)
            except FileError as error:
                yield note('The faces are left out: ', error)
                return
            samples = list(zip(X[:SAMPLES, 0], y[:SAMPLES] * scale + scale))
            about = 'Some of the faces that have the keypoints of the {}.'.format(net.title.lower())
        yield E('p', about)
        yield E('div', *[E('figure', face(image, 'Face with its keypoints', labelled=labels))
                         for image, labels in samples], class_='faces')


def net_tables(nets):
    """The nets side by side, and the layers of each kind."""
    rows = []
    for net in nets:
        info, found = net.info, net.validation
        rows.append([
            E('span', net.title, E('small', net.keypoints)),
            '{:,}'.format(found.trained_on) if found else '-',
            '{:,}'.format(len(found.labels)) if found else '-',
            '{best_epoch} of {epochs}'.format(**info), pixels(info['train_rmse']),
            pixels(info['valid_rmse']), duration(info['seconds'])])
    if rows:
        yield table(['net', 'training faces', 'validation faces', 'best epoch', 'training RMSE',
                     'validation RMSE', 'time'], rows, 'RMSE in pixels, at the best epoch',
                    numbers=range(1, 7), stacked=True)

    kinds = {}
    for net in nets:
        if net.layers:
            kinds.setdefault(tuple(net.layers[:-1]), []).append(net)
    for same in kinds.values():
        net = same[0]
        rows = [[*layer[:3], '{:,}'.format(layer[3]) if layer[3] else ''] for layer in net.layers]
        rows.append(['in all', '', '', '{:,}'.format(weights_of(net))])
        yield E('h3', 'Layers of the ', net.title.lower())
        yield E('div', table(['layer', 'what it does', 'output', 'weights'], rows, numbers=[2, 3],
                             sums=1), class_='wide')
        if len(same) > 1:
            yield table(['net', 'output', 'weights in all'], [
                [net.title, net.layers[-1][2], '{:,}'.format(weights_of(net))]
                for net in same[1:]], 'The same layers but for the output', numbers=[1, 2])
    yield from missing([net for net in nets if not net.layers], 'The layers are')


def weights_of(net):
    """How many weights a net has."""
    return sum(weights for _, _, _, weights in net.layers)


def curves(nets, scale):
    """Each net's learning curve, and what it says."""
    if not nets:
        yield note('No net was trained.')
        return
    yield E('p', 'Error on the faces that the net learns from (training, dashed) and on those kept '
            'aside (validation). The dot is the best epoch, whose weights the net has; the dotted '
            'line is the lowest point of the smoothed curve, by which the sentences judge.')
    cards = []
    for net in nets:
        history, info = net.history.to_dict('records'), net.info
        cards.append(E('div', E('h3', net.title, E('small', net.keypoints))))
        try:
            judgement = str(analyse(history))
        except ValueError as error:  # trained without a validation set
            cards[-1].append(note(error))
            continue
        if info['valid_rmse'] is not None:
            judgement = 'Best: {} pixels at epoch {}. {}'.format(
                pixels(info['valid_rmse']), info['best_epoch'], judgement)
        alt = 'Learning curve of the {}: RMSE in pixels by epoch, {} epochs.'.format(
            net.title.lower(), len(history))
        cards[-1].append(E('p', judgement))
        cards[-1].append(E('figure', E('img', src=curve(history, info, scale), alt=alt, width=460,
                                       height=300)))
    yield E('div', *cards, class_='curves')


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
    return svg(fig)


def filters(nets):
    """The weights of the first convolution of each net."""
    shown = [net for net in nets if net.filters is not None]
    if shown:
        limit = max(float(np.abs(net.filters).max()) for net in shown)
        yield E('p', 'Each square is one filter of {} \u00d7 {} weights: white is 0, purple is '
                'negative and orange is positive, up to {:.2g}.'.format(
                    *shown[0].filters.shape[2:], limit))
        yield E('div', *[
            E('figure', E('img', src=png(montage(net.filters, limit)), alt='{} filters of the {}'
                          .format(len(net.filters), net.title.lower())),
              E('figcaption', net.title)) for net in shown], class_='filters')
    without = [net.title.lower() for net in nets if net.layers and net.filters is None]
    if without:
        yield note('Without a convolution, and so without filters: the {}.'.format(listed(without)))
    yield from missing([net for net in nets if not net.layers], 'The filters are')


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


def extremes(nets):
    """The validation faces with the smallest and with the largest errors."""
    done = [net for net in nets if net.validation]
    if done:
        yield E('p', 'RMSE of the face in pixels, and its line in the file of the training faces. '
                'Look at the worst ones: at times it is the label that is wrong.')
        yield key()
    for net in done:
        found = net.validation
        yield E('h3', net.title, E('small', net.keypoints))
        rows = [E('div', E('p', '{} of {:,}:'.format(which, len(found.labels))),
                  E('div', *[extreme(found, row) for row in shown],
                    class_='faces' if net.first else 'faces half'))
                for which, shown in (('Best', found.best), ('Worst', found.worst)) if shown]
        yield E('div', *rows, class_=None if net.first else 'pairs')
    yield from missing([net for net in nets if not net.validation], 'The faces are')


def extreme(found, row):
    """A validation face, its labels, what the net finds, and how far they are apart."""
    line = found.lines[row]
    return E('figure', face(found.images[row], 'Validation face, RMSE {:.2f} pixels'.format(
        found.errors[row]), found.labels[row], found.found[row]),
        E('figcaption', E('b', '{:.2f} px'.format(found.errors[row])),
          ', ' if line else None, line and E('span', 'line {}'.format(line), class_='whole')))


def keypoints(nets):
    """Which keypoints are found well, and which are not: as a table, and on the mean face."""
    kinds = kinds_of([net for net in nets if net.validation])
    if kinds:
        yield E('p', 'RMSE over x and y in pixels, as in the contest, on the faces that each net '
                'kept for validation. Guessing gives the mean of the training labels, whatever the '
                'face.')
        results = [(title, errors_of_points(chosen)) for title, chosen in kinds]
        names = list(dict.fromkeys(name for _, errors in results for name in errors))
        rows = [[name] + [pixels(errors[name][which]) if name in errors else '-'
                          for _, errors in results for which in ('rmse', 'guess')]
                for name in names]
        rows.append(['all'] + [pixels(together([net.validation.rmse(guess=guess)
                                                for net in chosen], chosen))
                               for _, chosen in kinds for guess in (False, True)])
        last, errors = results[-1]
        order = sorted(errors, key=lambda name: errors[name]['rmse'])
        if len(order) > 1:
            yield E('p', '{}: the hardest keypoint is the {} ({} pixels), the easiest the {} ({}).'
                    .format(last, order[-1], pixels(errors[order[-1]]['rmse']),
                            order[0], pixels(errors[order[0]]['rmse'])))
        yield from maps(kinds, results)
        yield table(['keypoint'] + ['net', 'guess'] * len(kinds), rows,
                    'RMSE in pixels', numbers=range(1, 1 + 2 * len(kinds)),
                    groups=[(title, 2) for title, _ in kinds], sums=1)
        yield E('p', 'The learning curves average over batches, of which the last is smaller; here '
                'each face counts alike. So the two can differ a little.')
    yield from missing([net for net in nets if not net.validation], 'The errors are')


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
        marks = [circle(*error['place'], error[which], limit,
                        '{}: {} pixels'.format(name, pixels(error[which])))
                 for name, error in sorted(errors.items(), key=lambda item: -item[1][which])
                 if len(error['place']) == 2]
        legend, room = scale_of_circles(limit, *mean.shape)
        figures.append(E('figure', canvas(
            mean, '{}: mean face with a circle at each keypoint'.format(title), *marks, *legend,
            below=room), E('figcaption', E('b', title))))
    yield E('p', 'On the mean of the validation faces: the radius of a circle is the RMSE, in the '
            'pixels of the face.')
    yield E('div', *figures, class_='maps')


def circle(x, y, radius, limit, text):
    """A circle whose radius and colour tell an error in pixels."""
    color = colors.to_hex(colormaps['viridis'](radius / (limit or 1)))
    return E('circle', E('title', text), cx='{:.1f}'.format(x), cy='{:.1f}'.format(y),
             r='{:.2f}'.format(radius), fill=color, fill_opacity=0.6, stroke='#fff',
             stroke_width=0.4)


def scale_of_circles(limit, height, width):
    """Return circles of known radius for the room below a face, and the height of that room."""
    step = next((step for step in (0.5, 1, 2, 5, 10) if limit / step <= 6), 20)
    radii = [radius for radius in np.arange(1, limit // step + 1) * step if radius <= 20]
    room = 2 * max(radii, default=0) + 10
    marks = [E('rect', x=-0.5, y=height - 0.5, width=width, height=room, fill='#555')]
    x = 4
    for radius in radii:
        x += max(radius, 3)
        if x + radius > width - 10:
            break
        label = '{:g}{}'.format(radius, ' px' if radius == radii[0] else '')
        marks += [circle(x, height + room / 2 - 3.5, radius, limit, '{:g} pixels'.format(radius)),
                  E('text', label, x=x, y=height + room - 3, font_size=4.5, fill='#fff',
                    text_anchor='middle')]
        x += max(radius, 3) + 3
    return marks, room


def submission(record, folder):
    """What the run would send to the contest."""
    pattern = os.path.basename(str(record['constants'].get('FSUBMISSION', 'submission-{time}.csv')))
    parts = [glob.escape(part) for part in pattern.split('{time}')]
    files = sorted(glob.glob(os.path.join(glob.escape(folder), '*'.join(parts))))
    if not files:
        yield note('The run has written no submission: that is what predict does, the last of the '
                   'four steps.')
        return
    fname = files[-1]
    try:
        with open_regular(fname) as f:
            places = pd.read_csv(f)['Location'].astype(float)
        if not len(places) or not np.isfinite(places).all():
            raise ValueError('not all of its locations are numbers')
    except (FileError, OSError, ValueError, LookupError) as error:
        yield note('{} is left out, it cannot be read: {}'.format(
            os.path.basename(fname), ' '.join(str(error).split())[:200]))
    else:
        results = record['results']
        rows = [['File', os.path.basename(fname)], ['Rows', '{:,}'.format(len(places))],
                ['Smallest, median, largest location', '{:.2f}, {:.2f}, {:.2f} px'.format(
                    places.min(), places.median(), places.max())],
                ['At the edge of the image (0 or 96)', '{:,}'.format(
                    int(places.isin([0, 96]).sum()))]]
        for name, title in (('test_rmse', 'RMSE on the test faces'),
                            ('test_rmse_of_mean', 'RMSE of guessing the mean')):
            if isinstance(results.get(name), (int, float)):
                rows.append([title, '{:.2f} px'.format(results[name])])
        yield table(None, rows)
        if 'test_rmse' not in results:
            yield E('p', 'The error is not known: the contest keeps the labels of test faces.')
    picture = os.path.join(folder, os.path.basename(str(
        record['constants'].get('FPREDICTIONS', 'test-predictions.png'))))
    try:
        address, (width, height) = copied(picture)
    except (OSError, ValueError) as error:
        yield note('The picture of the test faces is left out: {}'.format(
            'it is not in the record.' if isinstance(error, FileNotFoundError)
            else ' '.join(str(error).split())[:200]))
    else:
        yield E('figure', E('img', src=address, width=width, height=height,
                            alt='Test faces and the keypoints found in them'))


# ---------------------------------------------------------------------------------------- words

def command(record, options=()):
    """The command line of a run."""
    return ' '.join(['python kfkd.py'] + [shlex.quote(word) for word in
                                          [*options, *record['command']]])


def duration(seconds):
    """Write seconds as a reader would."""
    if seconds is None:
        return 'a time not known'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return '{} h {} min'.format(hours, minutes)
    return '{} min {} s'.format(minutes, seconds) if minutes else '{} s'.format(seconds)


def pixels(rmse):
    """Write an error in pixels."""
    return '-' if rmse is None else '{:.2f}'.format(rmse)


def text_of(value):
    """Write a constant as kfkd.py has it."""
    return ', '.join(map(repr, value)) if isinstance(value, list) else repr(value)
