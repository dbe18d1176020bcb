"""The page of a run: what is on it is true, and what cannot be told is left out."""
import base64
import io
import json
import os
import pickle
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jinja2
import kfkd
import numpy as np
import pandas as pd
import pytest
import yaml
from beyond.runs import compare, net_files, record
from beyond.runs import report as pages
from data import make_faces
from PIL import Image
from sklearn.utils import shuffle

NET = """
layers:
- {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
- {name: conv, type: Conv2DLayer, num_filters: 5, filter_size: [4, 4], stride: [8, 8]}
- {name: hidden, type: DenseLayer, num_units: 10}
- {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
"""
SECTIONS = ['ran', 'data', 'training-faces', 'nets', 'curves', 'filters', 'extremes', 'keypoints',
            'submission']
VOID = 'meta', 'img', 'br'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


class Element:
    def __init__(self, tag='', attributes=()):
        self.tag, self.attributes, self.content = tag, dict(attributes), []

    def all(self, *tags, **attributes):
        """Elements inside, in order."""
        for part in self.content:
            if isinstance(part, Element):
                if (not tags or part.tag in tags) and all(
                        part.attributes.get(name.rstrip('_')) == value
                        for name, value in attributes.items()):
                    yield part
                yield from part.all(*tags, **attributes)

    def text(self):
        return ''.join(part if isinstance(part, str) else part.text() for part in self.content)

    def rows(self):
        """Tables inside: the texts of their cells."""
        return [[cell.text() for cell in row.all('th', 'td')] for row in self.all('tr')]


class Page(HTMLParser):
    """Read a page into a tree; each tag must be closed in its turn."""

    def __init__(self, fname):
        super().__init__()
        self.root = Element()
        self.open = [self.root]
        with open(fname, encoding='utf-8') as f:
            self.source = f.read()
        self.feed(self.source)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        element = Element(tag, attrs)
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].content.append(data)

    def section(self, name):
        return next(self.root.all('section', id=name))

    def notes(self):
        return [note.text() for note in self.root.all('p', class_='note')]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The record of a run of all steps, in a folder with its data; kfkd's constants set for it."""
    folder = tmp_path_factory.mktemp('report')
    make_faces.write_csvs(str(folder / 'faces'), 120, 8)
    with pytest.MonkeyPatch.context() as patch:
        for name, fname in (('FTRAIN', 'training.csv'), ('FTEST', 'test.csv'),
                            ('FLOOKUP', 'IdLookupTable.csv'), ('FTESTLABELS', 'test-labels.csv')):
            patch.setattr(kfkd, name, str(folder / 'faces' / fname))
        for name, value in dict(MAX_EPOCHS=12, SPECIALIST_SAMPLES=200, BATCH_SIZE=16, VERBOSE=0,
                                LEARNING_RATE=(.01, .01), PATIENCE=7, NET=yaml.safe_load(NET),
                                net=kfkd.net).items():
            patch.setattr(kfkd, name, value)
        patch.chdir(folder)
        assert kfkd.main([]) == 0
        run, = (folder / 'runs').iterdir()
        yield run


@pytest.fixture
def work(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(run, **changes):
    """Make the page of a record; return it."""
    if changes:
        content = json.loads((run / 'record.json').read_text())
        content.update(changes)
        (run / 'record.json').write_text(json.dumps(content))
    assert kfkd.main(['report', str(run)]) == 0
    return Page(f'report-{run.name}.html')


@pytest.fixture
def copy(run, work):
    """A copy of the record, to be spoiled."""
    return shutil.copytree(str(run), str(work / 'copy')) and work / 'copy'


def split(columns):
    """Label columns in pixels and lines of the file: of training faces, of validation faces."""
    table = pd.read_csv(kfkd.FTRAIN)
    there = table[list(columns)].dropna()
    rows = shuffle(np.asarray(there.index), random_state=42)
    valid = -(-len(rows) // 5)  # the first of scikit-learn's five folds: those have one row more
    return [(table.loc[part], there.loc[part].values, part + 2)
            for part in (rows[valid:], rows[:valid])]


def images(table):
    return np.array([np.array(image.split(), np.float32) for image in table['Image']])


def errors(model, columns):
    """Errors of a net and of the mean guess on the validation faces, (n, columns) in pixels."""
    (_, train, _), (table, valid, lines) = split(columns)
    found = model.predict((images(table) / 255).reshape(-1, 1, 96, 96)) * 48 + 48
    return found - valid, train.mean(axis=0) - valid, lines


def rmse(differences):
    return np.sqrt((differences ** 2).mean())


def nets(run):
    """Nets of a record by name, with their columns."""
    first, specialists = (net_files.by_columns(kfkd.load_nets(str(run / name)), name).items()
                          for name in ('net.pickle', 'net-specialists.pickle'))
    first, = first
    return dict([('First net', first)] + [
        (f'Specialist {number}', pair) for number, pair in enumerate(specialists, 1)])


@pytest.fixture(scope='module')
def made(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('page'))
        yield report(run)


# ------------------------------------------------------------------------------------ what is on it

def test_the_page_stands_alone(made):
    assert made.source.startswith('<!DOCTYPE html>')
    assert [section.attributes['id'] for section in made.root.all('section')] == SECTIONS
    for element in made.root.all():
        for name in 'src', 'href', 'srcset', 'action', 'poster', 'data':
            address = element.attributes.get(name, '#')
            assert address.startswith(('data:image/', '#')), address[:100]
        assert element.tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base')
        assert not any(name.startswith('on') for name in element.attributes)
    for word in 'http:', 'https:', '@import', 'url(':
        assert word not in made.source
    ids = [element.attributes['id'] for element in made.root.all() if 'id' in element.attributes]
    assert len(set(ids)) == len(ids)
    for link in made.root.all('a'):
        assert link.attributes['href'][1:] in ids
    assert len(made.source) < 2e6


def test_those_who_cannot_see_it_can_read_it(made):
    assert next(made.root.all('html')).attributes['lang'] == 'en'
    levels = [int(element.tag[1]) for element in made.root.all('h1', 'h2', 'h3')]
    assert levels[0] == 1 and levels.count(1) == 1 and 2 in levels and 3 in levels
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    for image in made.root.all('img'):
        assert image.attributes['alt']
    for drawing in made.root.all('svg'):
        assert drawing.attributes.get('aria-hidden') or next(drawing.all('title')).text()
    for table in made.root.all('table'):
        for cell in table.all('th'):
            assert cell.attributes['scope'] in ('col', 'row', 'colgroup')


def test_pictures_can_be_read(made):
    kinds = set()
    for element in made.root.all('img', 'image'):
        address = element.attributes.get('src') or element.attributes['href']
        kind, _, content = address[5:].partition(';base64,')
        content = base64.b64decode(content, validate=True)
        kinds.add(kind)
        if kind == 'image/svg+xml':
            assert b'<svg' in content
        else:
            Image.open(io.BytesIO(content)).load()
    assert kinds == {'image/png', 'image/jpeg', 'image/svg+xml'}


def test_the_same_record_gives_the_same_page(run, made, work):
    assert report(run).source == made.source


def test_constants_that_differ(made):
    folded = {row[0]: row[1:] for part in made.section('ran').all('details') for row in part.rows()}
    differing = {row[0]: row[1:] for row in made.section('ran').rows() if len(row) == 3}
    assert differing['PATIENCE'] == ['7', '200'] and differing['MAX_EPOCHS'] == ['12', '3000']
    assert differing['LEARNING_RATE'] == ['0.01, 0.01', '0.03, 0.0001']
    assert 'SEED' not in differing and 'MOMENTUM' not in differing
    assert 'NET' in differing and folded['SEED'] == ['42'] and folded['theano'] == ['1.0.5']
    assert 'num_filters: 5' in next(made.section('ran').all('pre')).text()


def test_deck_constants_are_those_of_the_program():
    source = open(kfkd.__file__).read()
    for name, value in kfkd.DECK.items():
        written = re.search(rf'^{name} = (.*?)(?:  #|$)', source, re.M).group(1)
        assert eval(written) == value, name


def test_counts_of_the_data(run, made):
    table = pd.read_csv(kfkd.FTRAIN)
    rows = {row[0]: row[1:] for row in made.section('data').rows()}
    for name in kfkd.COLUMNS[::2]:
        both = table[[name, name[:-1] + 'y']].notna().all(axis=1).sum()
        assert rows[name[:-2].replace('_', ' ')][0] == str(both)
    assert rows['training.csv'] == ['120', record.sha256(kfkd.FTRAIN)]
    text = made.section('data').text()
    assert f'{len(table.dropna())} of 120 faces have all 15 keypoints' in text


def pixels_of(figure):
    address = next(figure.all('image')).attributes['href']
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(',')[2]))))


def places(path):
    return np.array([place.split() for place in re.findall(r'M([-\d.]+ [-\d.]+)', path)], float)


def test_training_faces_are_faces_of_the_training(made):
    (table, labels, _), _ = split(kfkd.COLUMNS)
    figures = list(made.section('training-faces').all('figure'))
    assert len(figures) == 12
    for figure, pixels, points in zip(figures, images(table), labels):
        np.testing.assert_array_equal(pixels_of(figure).ravel(), pixels)
        drawn = places(list(figure.all('path'))[-1].attributes['d'])
        np.testing.assert_allclose(drawn, points.reshape(-1, 2), atol=.0501)
    assert f'{len(table)} faces that the first net was trained on' in \
        made.section('training-faces').text()


def test_best_and_worst_are_validation_faces(run, made):
    section = made.section('extremes')
    figures = list(section.all('figure'))
    for title, (columns, model) in nets(run).items():
        found, _, lines = errors(model, columns)
        each = np.sqrt((found ** 2).mean(axis=1))
        shown = min(6 if title == 'First net' else 3, len(lines) // 2)
        order = each.argsort()
        (table, labels, _) = split(columns)[1]
        for row in list(order[:shown]) + list(order[::-1][:shown]):
            figure = figures.pop(0)
            assert next(figure.all('figcaption')).text() == f'{each[row]:.2f} px, line {lines[row]}'
            np.testing.assert_array_equal(pixels_of(figure).ravel(), images(table)[row])
            _, dots, _, _, crosses = [path.attributes['d'] for path in figure.all('path')]
            np.testing.assert_allclose(places(dots), labels[row].reshape(-1, 2), atol=.0501)
            np.testing.assert_allclose(places(crosses), (labels[row] + found[row]).reshape(-1, 2),
                                       atol=.0501)
    assert not figures


def test_error_of_each_keypoint(run, made):
    rows = {row[0]: row[1:] for row in made.section('keypoints').rows()}
    expected, squares = {}, {}
    for title, (columns, model) in nets(run).items():
        kind = title.split(' ')[0]
        for which, differences in zip(('net', 'guess'), errors(model, columns)):
            squares.setdefault((kind, which), []).append(
                (rmse(differences) ** 2, len(columns)))
            for number in range(0, len(columns), 2):
                name = columns[number][:-2].replace('_', ' ')
                expected.setdefault(name, {})[kind, which] = rmse(
                    differences[:, number:number + 2])
    cells = [(kind, which) for kind in ('First', 'Specialist') for which in ('net', 'guess')]
    assert len(expected) == 15
    for name, errors_ in expected.items():
        assert rows[name] == [f'{errors_[cell]:.2f}' for cell in cells], name
    assert rows['all'] == ['{:.2f}'.format(np.sqrt(sum(square * columns for square, columns in
                                                       squares[cell]) / 30)) for cell in cells]

    first, specialists, guess = made.section('keypoints').all('svg')
    for drawing, cell in ((first, cells[0]), (specialists, cells[2]), (guess, cells[3])):
        radii = {}
        for circle in drawing.all('circle'):
            radii.setdefault(next(circle.all('title')).text().partition(':')[0], float(
                circle.attributes['r']))
        for name in expected:
            assert radii[name] == pytest.approx(expected[name][cell], abs=.00501)
    hardest = max(expected, key=lambda name: expected[name][cells[2]])
    assert f'the hardest keypoint is the {hardest} (' in made.section('keypoints').text()


def test_nets_and_layers(run, made):
    section = made.section('nets')
    rows = {row[0]: row[1:] for row in section.rows()}
    assert rows['conv'] == ['Conv2D, 5 filters of 4 \u00d7 4, rectify', '5 \u00d7 12 \u00d7 12',
                            '85']
    assert rows['hidden'] == ['Dense, rectify', '10', '7,210'] and rows['output'][2] == '330'
    assert rows['in all'][-1] == '7,625'
    content = compare.read(str(run))
    train, valid = (len(part[2]) for part in split(kfkd.COLUMNS))
    assert rows['First net15 keypoints'][:5] == [
        str(train), str(valid), '{best_epoch} of {epochs}'.format(**content['nets']['net']),
        '{train_rmse:.2f}'.format(**content['nets']['net']),
        '{valid_rmse:.2f}'.format(**content['nets']['net'])]
    assert rows['Specialist 2'] == ['2', '7,317']  # of the second table


def test_curves_and_what_they_say(run, made):
    content = compare.read(str(run))
    section = made.section('curves')
    text = section.text()
    assert len(list(section.all('img'))) == 7
    for net in content['nets'].values():
        assert f'Best: {net["valid_rmse"]:.2f} pixels at epoch {net["best_epoch"]}.' in text
    assert 'Too short to judge: 1 of at least 10 epochs.' in text  # specialists of many faces
    from beyond.curves import analyse
    assert str(analyse(content['histories']['net'].to_dict('records'))) in text


def test_filters(run, made):
    figures = list(made.section('filters').all('figure'))
    assert len(figures) == 7
    address = next(figures[0].all('img')).attributes['src']
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(',')[2]))))
    weights = [net.layers_['conv'].W.get_value() for _, net in nets(run).values()]
    limit = max(np.abs(w).max() for w in weights)
    # Filters of 4 x 4 weights, each 6 x 6 pixels, and gaps of 4.
    middle = picture[3:24:6, :5 * 28][:, [28 * f + 6 * i + 3 for f in range(5) for i in range(4)]]
    red, blue = (middle[..., channel].astype(int) for channel in (0, 2))
    expected = weights[0][:, 0].transpose(1, 0, 2).reshape(4, 20)
    clear = np.abs(expected) > limit / 10
    assert clear.sum() > 20
    np.testing.assert_array_equal((red > blue)[clear], (expected > 0)[clear])


def test_submission(run, made):
    written, = run.glob('submission-*.csv')
    places = pd.read_csv(str(written))['Location']
    rows = dict(made.section('submission').rows())
    assert rows['File'] == written.name and rows['Rows'] == str(len(places))
    assert rows['Smallest, median, largest location'] == \
        f'{places.min():.2f}, {places.median():.2f}, {places.max():.2f} px'
    result = compare.read(str(run))['results']['test_rmse']
    assert rows['RMSE on the test faces'] == f'{result:.2f} px'
    assert f'{result:.2f} px' in next(made.root.all('dl')).text()


# ----------------------------------------------------------------------------- what cannot be told

def test_a_run_of_the_first_net_alone(work, monkeypatch):
    monkeypatch.setattr(kfkd, 'MAX_EPOCHS', 1)
    assert kfkd.main(['fit']) == 0
    run, = (work / 'runs').iterdir()
    made = report(run)
    assert 'Specialist' not in made.source
    assert len(list(made.section('keypoints').all('svg'))) == 2
    [note] = made.notes()
    assert 'has written no submission' in note


def test_a_run_of_the_specialists_that_is_stopped(run, work, monkeypatch):
    def stop(nn, train_history):
        if nn.output_num_units == 6:
            raise KeyboardInterrupt

    build_net = kfkd.build_net
    monkeypatch.setattr(kfkd, 'build_net', lambda c=None: build_net(c).set_params(
        on_epoch_finished=build_net(c).on_epoch_finished + [stop]))
    assert kfkd.main(['fit_specialists', str(run / 'net.pickle')]) == 130
    stopped, = (work / 'runs').iterdir()
    made = report(stopped)
    assert 'First net' not in made.source
    assert 'was stopped after' in next(made.root.all('header')).text()
    titles = [head.text() for head in made.section('curves').all('h3')]
    assert len(titles) == 3 and titles[2].startswith('Specialist 3')
    for name in 'nets', 'filters', 'extremes', 'keypoints':
        [note] = made.section(name).all('p', class_='note')
        assert 'specialist 1, specialist 2 and specialist 3' in note.text()
        assert 'net-specialists.pickle is not in the record' in note.text()
    assert list(made.section('training-faces').all('image'))


def test_thinned_out(copy):
    (copy / 'net-specialists.pickle').unlink()
    (copy / 'test-predictions.png').unlink()
    made = report(copy)
    for name in 'nets', 'filters', 'extremes', 'keypoints':
        [note] = made.section(name).all('p', class_='note')
        assert 'net-specialists.pickle is not in the record' in note.text()
        assert 'first net' not in note.text()
    assert len(list(made.section('extremes').all('h3'))) == 1
    assert len(list(made.section('curves').all('img'))) == 7  # they need no weights
    [note] = made.section('submission').all('p', class_='note')
    assert 'it is not in the record' in note.text()


@pytest.mark.parametrize('spoil, message', [
    (lambda faces: (faces / 'training.csv').unlink(), 'no longer there'),
    (lambda faces: (faces / 'training.csv').write_text('Image\n'), 'have changed since the run'),
])
def test_data_that_are_not_what_they_were(copy, tmp_path, monkeypatch, spoil, message):
    faces = tmp_path / 'faces'
    shutil.copytree(os.path.dirname(kfkd.FTRAIN), str(faces))
    monkeypatch.setattr(kfkd, 'FTRAIN', str(faces / 'training.csv'))
    monkeypatch.setattr(kfkd, 'DRAWN', str(tmp_path / 'none'))  # where a report looks last
    constants = json.loads((copy / 'record.json').read_text())['constants']
    spoil(faces)
    made = report(copy, constants=dict(constants, FTRAIN=kfkd.FTRAIN))
    for name in 'data', 'training-faces', 'extremes', 'keypoints':
        [note] = made.section(name).all('p', class_='note')
        assert message in note.text() and str(faces / 'training.csv') in note.text()
        assert not list(made.section(name).all('figure'))
    assert not made.notes()[4:]
    assert len(list(made.section('filters').all('figure'))) == 7  # they need no faces
    assert {row[0] for row in made.section('nets').rows()} >= {'conv', 'hidden', 'output'}


def test_files_that_cannot_be_used(copy):
    class Stranger:
        def __reduce__(self):
            return os.mkdir, (str(copy / 'broken-in'),)

    (copy / 'net.pickle').write_bytes(pickle.dumps(Stranger()))
    specialists = kfkd.load_nets(str(copy / 'net-specialists.pickle'))
    specialists[next(iter(specialists))].train_split = None
    with open(str(copy / 'net-specialists.pickle'), 'wb') as f:
        pickle.dump(specialists, f, -1)
    submission, = copy.glob('submission-*.csv')
    submission.write_text('RowId,Location\n1,left\n')
    (copy / 'test-predictions.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(30))
    made = report(copy)
    assert not (copy / 'broken-in').exists()
    notes = [note.text() for note in made.section('extremes').all('p', class_='note')]
    assert len(notes) == 2 and 'mkdir' in notes[0]
    assert 'specialist 1: The net cannot be used (TypeError' in notes[1]
    assert len(list(made.section('extremes').all('h3'))) == 5
    notes = [note.text() for note in made.section('submission').all('p', class_='note')]
    assert len(notes) == 2 and 'cannot be read' in notes[0] and 'picture' in notes[1]


def test_hostile_records(copy):
    evil = '<script>alert("1")</script>\' onload=alert(2) &amp; </style>'
    content = json.loads((copy / 'record.json').read_text())
    specialist = dict(content['nets'].pop('specialist-6'), columns=[evil + '_x', evil + '_y'])
    os.rename(str(copy / 'history-specialist-6.csv'), str(copy / 'history-<b>.csv'))
    made = report(
        copy, name=evil, command=[evil], state=evil, message=evil, started=evil,
        constants=dict(content['constants'], **{evil: evil, 'FPREDICTIONS': '/etc/passwd',
                                                'FSUBMISSION': '../' * 9 + 'etc/passwd'}),
        data=dict(content['data'], **{evil: dict(rows=3, sha256=evil)}),
        nets=dict(content['nets'], **{'<b>': specialist}), results={evil: evil, 'test_rmse': evil},
        versions={evil: evil}, machine={evil: evil, 'processor': evil, 'theano_flags': evil})
    assert not list(made.root.all('script', 'b:x')) and made.source.count('<style>') == 1
    assert not any('onload' in name for element in made.root.all() for name in element.attributes)
    assert evil in made.section('ran').text() and evil in made.section('data').text()
    assert evil.replace('_', ' ') in made.section('nets').text()
    assert 'root:' not in made.source


@pytest.mark.parametrize('spoil', [
    lambda run, content: (run / 'record.json').unlink(),
    lambda run, content: content['nets']['net'].update(columns=[3]),
    lambda run, content: content['nets']['net'].update(best_epoch=10 ** 400),
    lambda run, content: content['nets']['net'].pop('seconds'),
    lambda run, content: content.update(seconds=float('nan')),
    lambda run, content: content['nets']['net'].update(valid_rmse=10 ** 400),
    lambda run, content: content.update(command='fit'),
    lambda run, content: content['data'].update(x=3),
])
def test_what_is_no_record(copy, capsys, spoil):
    content = json.loads((copy / 'record.json').read_text())
    spoil(copy, content)
    if (copy / 'record.json').exists():
        (copy / 'record.json').write_text(json.dumps(content))
    assert kfkd.main(['report', str(copy)]) == 1
    error = capsys.readouterr().err
    assert 'copy is no record of a run: ' in error and error.count('\n') == 1
    assert os.listdir('.') == ['copy']


def test_nothing_there(work, capsys):
    assert kfkd.main(['report', 'nowhere']) == 1
    assert capsys.readouterr().err == (
        'kfkd.py: nowhere is no record of a run: record.json is not there.\n')


# ------------------------------------------------------------------------------------------- parts

def test_text_is_escaped():
    evil = '<i>"&\''
    template = pages.environment().from_string('<p title="{{ a }}">{{ a }}{{ b }}</p>')
    assert template.render(a=evil, b=pages.code(evil)) == (
        '<p title="&lt;i&gt;&#34;&amp;&#39;">&lt;i&gt;&#34;&amp;&#39;'
        '<code>&lt;i&gt;&#34;&amp;&#39;</code></p>')
    with pytest.raises(jinja2.UndefinedError):  # a slip in the template
        template.render(a=evil)


def test_halves_of_characters(copy):
    """JSON may hold them, UTF-8 may not."""
    made = report(copy, message='\ud800')
    assert '&#55296;' in made.source


@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium')
def test_no_scrolling_sideways_on_a_phone(made, tmp_path):
    """In a frame as wide as a phone: what the page is wide, and pictures that are broken."""
    holder = tmp_path / 'holder.html'
    holder.write_text(
        '<iframe width=390 height=800 srcdoc="{}"></iframe><script>onload = () => {{'
        'const it = document.querySelector("iframe").contentDocument;'
        'document.title = [it.documentElement.scrollWidth, it.documentElement.clientWidth,'
        '[...it.images].filter(i => !i.naturalWidth).length, it.images.length]}}</script>'.format(
            made.source.replace('&', '&amp;').replace('"', '&quot;')), encoding='utf-8')
    shown = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         f'--user-data-dir={tmp_path}/profile', '--dump-dom', str(holder)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120).stdout.decode()
    width, window, broken, number = map(int, re.search(
        r'<title>([\d,]+)</title>', shown).group(1).split(','))
    assert width <= window <= 390 and broken == 0 and number > 10
