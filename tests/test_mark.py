"""`python kfkd.py mark` and `kfkd.mark`, on photographs made here; what docs/photos.md says of them."""
import os
import pickle
import re
from types import SimpleNamespace

import cv2
import kfkd
import numpy as np
import pandas as pd
import pytest
from beyond.runs import experiment
from data import make_faces, photos
from nolearn.lasagne import NeuralNet
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class MeanNet(NeuralNet):
    """A net, as far as `mark` is concerned: it finds the mean face wherever it looks."""

    def __init__(self, columns):
        mean = photos.MEAN_FACE.ravel()[[make_faces.COLUMNS.index(name) for name in columns]]
        vars(self).update(columns_=columns, answer=mean / 48 - 1)

    def predict(self, X):
        return np.tile(self.answer, (len(X), 1)).astype(np.float32)

    def __getstate__(self):
        return vars(self)


@pytest.fixture(scope='module')
def photo():
    """A colour photograph of one drawn face, three times as large, and the points in it."""
    images, labels = make_faces.draw_faces(2, seed=5)
    face = cv2.resize(images[1], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    picture = np.full((400, 500), 120, np.uint8)
    picture[70:358, 130:418] = face
    points = (labels[1].reshape(-1, 2) + 0.5) * 3 - 0.5 + (130, 70)
    return np.dstack([picture, picture // 2 + 40, picture // 3]), points


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with nets, whose word is taken for a face wherever the detector says that there is one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kfkd, 'TRUSTED', (MeanNet,))
    monkeypatch.setattr(photos, 'APART', 10)
    columns = [setting['columns'] for setting in kfkd.SPECIALIST_SETTINGS]
    (tmp_path / 'net-specialists.pickle').write_bytes(pickle.dumps({one: MeanNet(one) for one in columns}))
    return tmp_path


def right(found, points):
    """Whether points are those of the mean face about the true ones, to a third of the eyes' distance."""
    far = np.linalg.norm(np.asarray(found) - points, axis=-1)
    return far.max() < np.linalg.norm(points[0] - points[1]) / 3


def test_photographs_are_marked(folder, photo, capsys):
    image, points = photo
    Image.fromarray(image).save('a face.jpg', quality=95)
    Image.fromarray(image[:, :, 0]).save('grey.tif')
    Image.new('RGB', (300, 200), 'green').save('lawn.png')
    before = sorted(os.listdir())
    assert kfkd.main(['mark', 'a face.jpg', 'lawn.png', 'grey.tif', 'a face.jpg']) == 0
    printed, err = capsys.readouterr()
    assert not err
    assert printed.splitlines() == [
        'Taking the nets of net-specialists.pickle.',
        'a face.jpg: 1 face found.', 'Wrote a face-marked.png.', 'lawn.png: no face found.',
        'grey.tif: 1 face found.', 'Wrote grey-marked.png.',
        'Wrote points.csv: 2 faces in 2 photographs, none in lawn.png.']
    assert sorted(os.listdir()) == sorted(before + ['a face-marked.png', 'grey-marked.png', 'points.csv'])
    table = pd.read_csv('points.csv')
    assert table['photo'].tolist() == ['a face.jpg'] * 15 + ['grey.tif'] * 15
    assert table['point'].tolist() == list(make_faces.KEYPOINTS) * 2
    for _, rows in table.groupby('photo'):
        assert right(rows[['x', 'y']], points)
    marked = np.asarray(Image.open('a face-marked.png').convert('RGB'))
    assert marked.shape == (512, 640, 3)  # 400 x 500, enlarged so that points do not hide the face
    nose = (points[make_faces.KEYPOINTS.index('nose_tip')] * 640 / 500).round().astype(int)
    around = marked[nose[1] - 25:nose[1] + 25, nose[0] - 25:nose[0] + 25].astype(int)
    assert (np.abs(around - (240, 228, 66)).max(axis=2) < 30).any()  # a yellow point


def test_what_cannot_be_read_does_not_keep_the_others_from_being_marked(folder, photo, capsys):
    Image.fromarray(photo[0]).save('good.png')
    (folder / 'text.jpg').write_text('text')
    (folder / 'cut.png').write_bytes((folder / 'good.png').read_bytes()[:5000])
    words = ['text.jpg', 'nothing\x1b[2J.jpg', '.', 'good.png', 'cut.png']
    assert kfkd.main(['mark', *words]) == 1
    printed, err = capsys.readouterr()
    assert 'good.png: 1 face found.' in printed and '1 face in 1 photograph.' in printed
    assert len(pd.read_csv('points.csv')) == 15
    lines = err.splitlines()
    assert len(lines) == 5
    for line, words in zip(lines, ('text.jpg is no picture', 'nothing?[2J.jpg is not there',
                                   '. cannot be read: it is a folder', 'cut.png is damaged',
                                   'kfkd.py: 4 of 5 photographs could not be read')):
        assert words in line


def test_no_picture_takes_the_place_of_another(folder, photo):
    image = Image.fromarray(photo[0])
    for name in ('one', 'two'):
        (folder / name).mkdir()
        image.save(f'{name}/me.jpg')
    image.save('me-marked.png')
    before = (folder / 'me-marked.png').read_bytes()
    image.save('m\x1b\n.png')
    assert kfkd.main(['mark', 'one/me.jpg', 'two/me.jpg', 'me-marked.png', 'm\x1b\n.png']) == 0
    assert (folder / 'me-marked.png').read_bytes() == before
    for name in ('me-2-marked.png', 'me-3-marked.png', 'me-marked-marked.png', 'm__-marked.png'):
        assert (folder / name).stat().st_size > 10000
    assert len(pd.read_csv('points.csv')) == 60


def test_without_nets_of_ones_own_it_takes_ours(folder, photo, capsys):
    image, points = photo
    os.remove('net-specialists.pickle')
    Image.fromarray(image).save('me.png')
    Image.fromarray(image).save('again.png')
    assert kfkd.main(['mark', 'me.png', 'again.png']) == 0
    printed, err = capsys.readouterr()
    assert not err and printed.count('Taking the nets of') == 1
    assert printed.startswith(f'Taking the nets of {os.path.relpath(photos.NET)}: '
                              'there is no net-specialists.pickle or net.pickle here.\n')
    table = pd.read_csv('points.csv')
    for _, rows in table.groupby('photo'):
        far = np.linalg.norm(rows[['x', 'y']] - points, axis=1)
        assert far.mean() < 0.06 * np.linalg.norm(points[0] - points[1])


def test_eye_centres_are_pupils(folder, photo, monkeypatch):
    monkeypatch.setattr(photos, 'pupils', lambda picture, eyes: np.array([(1, 2), (3, 4)]))
    found, = kfkd.mark(photo[0]).points
    assert found[:2].tolist() == [[1, 2], [3, 4]]
    assert right(np.vstack([photo[1][:2], found[2:]]), photo[1])


def test_our_net_is_what_its_recipe_says(monkeypatch):
    """Its layers, constants and way to the end; that it learned: on faces that it has not seen."""
    net = kfkd.load_nets(photos.NET)
    recipe = os.path.join(ROOT, 'beyond', 'recipes', 'photos.yaml')
    for name, value in experiment.constants(recipe, vars(kfkd)).items():
        monkeypatch.setattr(kfkd, name, value)
    named = kfkd.build_net()
    named.initialize_layers()
    assert [(type(layer), layer.name, layer.output_shape) for layer in net.layers_.values()] == [
        (type(layer), layer.name, layer.output_shape) for layer in named.layers_.values()]
    assert [type(handler) for handler in net.on_epoch_finished] == [
        type(handler) for handler in named.on_epoch_finished]
    assert len(net.train_history_) == kfkd.MAX_EPOCHS
    assert net.batch_iterator_train.seed == kfkd.SEED
    images, labels = make_faces.draw_faces(64, seed=7)
    found = net.predict(images[:, None] / np.float32(255)) * 48 + 48
    assert np.sqrt(np.mean((found - labels) ** 2)) < 1.7


def test_which_nets(folder, photo, monkeypatch):
    image, points = photo
    loads, load = [], kfkd.load_nets
    monkeypatch.setattr(kfkd, 'load_nets', lambda fname: loads.append(fname) or load(fname))
    for _ in range(3):
        faces = kfkd.mark(image)
        assert faces.points.shape == (1, 15, 2) and right(faces.points[0], points)
    assert loads == ['net-specialists.pickle']  # once, until it changes
    (folder / 'net.pickle').write_bytes(pickle.dumps(MeanNet(kfkd.COLUMNS)))
    kfkd.mark(image)
    os.utime('net-specialists.pickle', (1, 1))
    kfkd.mark(image)
    assert loads == ['net-specialists.pickle'] * 2
    os.remove('net-specialists.pickle')
    assert right(kfkd.mark(image).points[0], points)
    assert loads[2:] == ['net.pickle']
    assert len(kfkd.mark(image, smallest=0.9)) == 0

    nose = kfkd.COLUMNS[20:22]
    (folder / 'net.pickle').write_bytes(pickle.dumps({nose: MeanNet(nose)}))
    with pytest.raises(kfkd.DataError, match='nets that know'):
        kfkd.mark(image)
    (folder / 'net.pickle').write_bytes(b'no nets')
    with pytest.raises(kfkd.DataError, match='net.pickle is not a file of nets'):
        kfkd.mark(image)


# ------------------------------------------------------------------------------- docs/photos.md

def examples():
    """The code of the page's examples: the notebook's and the webcam's."""
    with open(os.path.join(ROOT, 'docs', 'photos.md')) as f:
        found = re.findall(r'^```python\n(.*?)^```', f.read(), flags=re.S | re.M)
    assert len(found) == 2 and all(len(code.splitlines()) <= 11 for code in found)
    return found


def test_the_notebook(folder, photo):
    Image.fromarray(photo[0]).save('holiday.jpg', quality=95)
    names = {}
    *lines, last = examples()[0].splitlines()
    exec('\n'.join(lines), names)
    axis = names['pyplot'].gca()
    marked, = axis.collections
    assert right(marked.get_offsets(), photo[1])
    names['pyplot'].close('all')
    table = eval(last, names)
    assert table.shape == (1, 30)
    assert table['x', 'nose_tip'][1] == pytest.approx(names['faces'].points[0, 10, 0])


def test_the_webcam(folder, photo, monkeypatch):
    image, points = photo
    frames = [image[:, :, ::-1].copy(), np.zeros_like(image), image[:, :, ::-1].copy()]
    shown, dots = [], []
    left = list(frames)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: SimpleNamespace(
        read=lambda: (bool(left), left.pop(0) if left else None)))
    monkeypatch.setattr(cv2, 'waitKey', lambda ms: -1)
    monkeypatch.setattr(cv2, 'imshow', lambda title, frame: shown.append(frame))
    circle = cv2.circle
    monkeypatch.setattr(cv2, 'circle', lambda *args: dots.append(args[1]) or circle(*args))
    exec(examples()[1], {})
    assert len(shown) == 3 and len(dots) == 30
    assert right(dots[:15], points) and dots[:15] == dots[15:]
    assert (shown[0] == (66, 228, 240)).all(axis=2).sum() > 15 * 9 and not shown[1].any()
