"""Faces in photographs: reading, finding, cutting, refining, on pictures of which all points are known."""
import io
import struct
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from data import make_faces, photos
from PIL import Image
from theano_today.nets.files import FileError

HALF = (photos.SIZE - 1) / 2


@pytest.fixture(scope='module')
def drawn():
    """Images and points (n, 15, 2) of drawn faces; the first of this seed look too far aside to be found."""
    images, labels = make_faces.draw_faces(30, seed=5)
    return images[6:], labels[6:].reshape(-1, 15, 2).astype(float)


def turned(degrees, scale, x, y):
    """The map that turns and scales a cut and puts its middle at (x, y)."""
    matrix = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    matrix[:, 2] = (x, y) - matrix[:, :2] @ (HALF, HALF)
    return matrix


def photograph(drawn, maps, shape):
    """A grey picture with drawn faces, one for each map, and the points of mean faces in their place."""
    picture = cv2.GaussianBlur(np.random.RandomState(0).uniform(80, 170, shape), (0, 0), 3).astype(np.uint8)
    for image, to_photo in zip(drawn[0], maps):
        face = cv2.warpAffine(image, to_photo, shape[::-1], flags=cv2.INTER_CUBIC)
        there = cv2.warpAffine(np.full_like(image, 255), to_photo, shape[::-1]) > 254
        picture[there] = face[there]
    return picture, np.array([photos.MEAN_FACE @ one[:, :2].T + one[:, 2] for one in maps])


class Oracle:
    """A net that knows the points of a picture, but is wrong by a share of how far a face is off the mean.

    Where there is no face near, it answers with the mean face, as nets do.
    """

    def __init__(self, monkeypatch, points, wrong=0.3):
        self.points, self.wrong, self.calls = points, wrong, []
        cuts = photos._Photograph.cuts

        def noting(photo, maps):
            self.maps = maps
            return cuts(photo, maps)
        monkeypatch.setattr(photos._Photograph, 'cuts', noting)

    def __call__(self, X, columns):
        assert X.shape == (len(self.maps), 1, 96, 96) and X.dtype == np.float32
        assert X.min() >= 0 and X.max() <= 1
        self.calls.append(columns)
        answers = []
        for inverse in map(cv2.invertAffineTransform, self.maps):
            inside = self.points @ inverse[:, :2].T + inverse[:, 2] - photos.MEAN_FACE
            off = min(inside, key=lambda one: np.abs(one).max())
            if np.abs(off).max() > 40:
                off = 0 * off
            answer = photos.MEAN_FACE + off * (1 - self.wrong)
            answers.append([answer[make_faces.KEYPOINTS.index(name[:-2]), 'xy'.index(name[-1])]
                            for name in columns])
        return np.array(answers)


def distance(points):
    """Between the eyes, (n,)."""
    return np.linalg.norm(points[:, 0] - points[:, 1], axis=1)


def errors(faces, points):
    """The largest error of each face, in the order of `points`, as a share of the distance of its eyes."""
    assert len(faces) == len(points)
    order = [np.abs(faces.points - own).max(axis=(1, 2)).argmin() for own in points]
    assert sorted(order) == list(range(len(points)))
    return np.linalg.norm(faces.points[order] - points, axis=2).max(axis=1) / distance(points)


# --------------------------------------------------------------------------------------- marking

def test_the_mean_face_is_that_of_the_drawn_faces(drawn):
    assert photos.MEAN_FACE.shape == (len(make_faces.KEYPOINTS), 2)
    assert np.abs(drawn[1].mean(axis=0) - photos.MEAN_FACE).max() < 2.5  # of 24 faces
    # It is its own mirror image, to a tenth of a pixel.
    left, right = photos.MEAN_FACE[[0, 2, 3, 6, 7, 11]], photos.MEAN_FACE[[1, 4, 5, 8, 9, 12]]
    np.testing.assert_allclose((left + right)[:, 0], 96, atol=0.11)
    np.testing.assert_allclose(left[:, 1], right[:, 1], atol=0.01)


@pytest.mark.parametrize('degrees, scale', [(0, 1), (0, 3.3), (-12, 2.2), (10, 0.6)])
def test_a_face_is_found_and_its_points_are_refined(drawn, monkeypatch, degrees, scale):
    picture, points = photograph(drawn, [turned(degrees, scale, 310, 240)], (480, 640))
    oracle = Oracle(monkeypatch, points)
    faces = photos.mark(picture, oracle)
    assert errors(faces, points) < 0.02
    x, y, width, height = faces.boxes[0]
    assert width == height and 0.7 < width / (96 * scale) < 1.4
    assert x < points[0, :, 0].min() and points[0, :, 0].max() < x + width
    assert y < points[0, :, 1].min() and points[0, :, 1].max() < y + height
    # What tells how a face lies is asked for again and again, everything once.
    assert oracle.calls == [photos.LYING] * photos.PASSES + [make_faces.COLUMNS]


def test_twenty_faces_from_left_to_right(drawn, monkeypatch):
    maps = [turned(0, 1, 70 + 150 * column, 70 + 150 * row) for row in range(4) for column in range(6)]
    picture, points = photograph(drawn, maps, (600, 900))
    faces = photos.mark(picture, Oracle(monkeypatch, points))
    assert len(faces) >= 20  # the detector knows most of the drawn faces
    found = [np.abs(points - own).max(axis=(1, 2)).argmin() for own in faces.points]
    assert len(set(found)) == len(found)
    assert errors(faces, points[np.sort(found)]).max() < 0.02
    assert (np.diff(faces.boxes[:, 0]) >= 0).all()


def test_faces_at_the_border(drawn, monkeypatch):
    picture, points = photograph(drawn, [turned(0, 2, 300, 200), turned(0, 2, 80, 200)], (400, 600))
    left, top = 10, 115  # both lose a bit at the top, the second on its left too
    picture, points = picture[top:, left:], points - (left, top)
    faces = photos.mark(picture, Oracle(monkeypatch, points))
    assert errors(faces, points).max() < 0.02
    assert (faces.boxes[:, :2] < 0).any()


def test_a_net_that_sees_no_face_there_has_the_last_word(drawn, monkeypatch):
    picture, points = photograph(drawn, [turned(0, 2, 300, 200)], (400, 600))
    assert len(photos.find(picture)) == 1
    assert len(photos.mark(picture, Oracle(monkeypatch, points + 1000))) == 0
    assert len(photos.mark(picture, Oracle(monkeypatch, points))) == 1


def test_finds_of_one_face_are_one_face(drawn, monkeypatch):
    picture, points = photograph(drawn, [turned(0, 2, 300, 200)], (400, 600))
    find = photos.find
    monkeypatch.setattr(photos, 'find', lambda *args: np.concatenate(
        [find(*args), find(*args) + (10, -5, 8, 8)]))
    assert len(photos.mark(picture, Oracle(monkeypatch, points))) == 1


def test_points_that_no_net_knows(drawn, monkeypatch):
    picture, points = photograph(drawn, [turned(0, 2, 300, 200)], (400, 600))
    oracle = Oracle(monkeypatch, points)

    def without(*names):
        return lambda X, columns: np.where([name in names for name in columns], np.nan, oracle(X, columns))
    faces = photos.mark(picture, without('mouth_left_corner_x', 'mouth_left_corner_y'))
    assert np.isnan(faces.points).any(axis=2).tolist() == [[name == 'mouth_left_corner'
                                                           for name in make_faces.KEYPOINTS]]
    with pytest.raises(FileError, match='nets that know .*nose_tip_x'):
        photos.mark(picture, without('nose_tip_x'))


def test_eye_centres_go_to_the_pupils_and_nothing_else_moves(drawn, monkeypatch):
    picture, points = photograph(drawn, [turned(0, 2, 300, 200)], (400, 600))
    eyes = []
    monkeypatch.setattr(photos, 'pupils', lambda photo, two: eyes.append(two.copy()) or two + (1, 2))
    plain = photos.mark(picture, Oracle(monkeypatch, points)).points
    assert not eyes
    found = photos.mark(picture, Oracle(monkeypatch, points), at_pupils=True).points
    np.testing.assert_allclose(eyes[0], plain[0, :2], rtol=1e-6)  # the left eye's, the right eye's
    np.testing.assert_allclose(found[0, :2], plain[0, :2] + (1, 2), rtol=1e-6)
    assert (found[0, 2:] == plain[0, 2:]).all()


def eyes(degrees, distance, gaze=(0, 0), shade=0):
    """A picture of two eyes with lids: (image, middles of the lids, pupils), left and right.

    `gaze` is where both look to, `shade` how much darker the face is on one side, as a share.
    """
    side = int(2.4 * distance)
    middle, turn = side / 2, np.exp(1j * np.radians(degrees))
    y, x = np.mgrid[:side, :side]
    plane = ((x - middle) + 1j * (y - middle)) / turn / distance  # upright, the eyes' distance is 1
    image = 0.75 * (1 - shade * np.clip(plane.real + 0.5, 0, 1))
    for eye in (0.5, -0.5):
        u, v = plane.real - eye, plane.imag
        lids = (np.abs(u / 0.2) ** 2 + np.abs(v / 0.08) ** 1.5) < 1
        image = np.where(lids, 0.6, image)
        image = np.where(lids & (np.hypot(u - gaze[0], v - gaze[1]) < 0.093), 0.15, image)
    image = cv2.GaussianBlur((255 * image).astype(np.uint8), (0, 0), 0.015 * distance)
    lids = np.array([0.5, -0.5]) * turn
    pupils = (np.array([0.5, -0.5]) + gaze[0] + 1j * gaze[1]) * turn
    return (image, *(np.column_stack([z.real, z.imag]) * distance + middle for z in (lids, pupils)))


@pytest.mark.parametrize('degrees, distance', [(0, 33), (0, 160), (14, 80), (-20, 500)])
@pytest.mark.parametrize('gaze', [(0, 0), (0.06, 0), (-0.08, -0.02)])
def test_pupils(degrees, distance, gaze):
    image, lids, pupils = eyes(degrees, distance, gaze, shade=0.6)
    np.random.seed(0)
    start = lids + np.random.uniform(-0.03, 0.03, (2, 2)) * distance  # as nets are off
    found = photos.pupils(photos._Photograph(image), start)
    assert np.linalg.norm(found - pupils, axis=1).max() < 0.03 * distance


def test_where_there_is_no_eye_to_be_seen_it_is_where_it_is_in_the_mean():
    start = np.array([(120., 80.), (60.25, 78.5)])  # left, right
    across = start[0] - start[1]
    up = np.array([across[1], -across[0]])
    expected = start + photos.UP * up + photos.INWARD * np.array([-across, across])
    found = photos.pupils(photos._Photograph(np.full((200, 200), 90, np.uint8)), start)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Outside the photograph, too: it goes on as it ends.
    found = photos.pupils(photos._Photograph(np.full((20, 20), 90, np.uint8)), start)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('image', [
    np.zeros((480, 640), np.uint8), np.full((30, 30, 3), 200, np.uint8), np.zeros((1, 1)),
    np.zeros((1, 5000), np.uint8), np.zeros((5000, 2, 4), np.uint8)])
def test_no_face(image):
    faces = photos.mark(image, None)  # no net is asked
    assert len(faces) == 0 and not faces
    assert faces.points.shape == (0, 15, 2) and faces.boxes.shape == (0, 4)


def test_faces_too_small(drawn):
    picture, _ = photograph(drawn, [turned(0, 12 / 96, 300, 200)], (400, 600))
    assert len(photos.find(picture)) == 0
    picture, _ = photograph(drawn, [turned(0, 1, 300, 200)], (400, 600))
    assert len(photos.find(picture)) == 1
    assert len(photos.find(picture, smallest=0.5)) == 0
    for smallest in (0, -1, 1.5, float('nan')):
        with pytest.raises(ValueError, match='smallest is a share'):
            photos.find(picture, smallest)


@pytest.mark.parametrize('scale, degrees', [(0.3, 0), (1, 0), (1, 20), (1.3, 0), (2.9, 0), (6.5, 5), (31, 0)])
def test_pixels_of_a_cut_are_where_the_map_says(scale, degrees):
    shape = 300, 4000
    y, x = np.mgrid[:shape[0], :shape[1]]
    picture = np.rint(x / 16).astype(np.uint8)
    to_photo = turned(degrees, scale, 2000.3, 150.7)
    cut, = photos._Photograph(picture).cuts(to_photo[None])
    y, x = np.mgrid[:96, :96]
    there = to_photo[0, 0] * x + to_photo[0, 1] * y + to_photo[0, 2]
    inside = np.s_[8:-8, 8:-8] if degrees else np.s_[:]
    np.testing.assert_allclose(cut[0][inside] * 255, there[inside].clip(0, 3999) / 16, atol=1)


def test_large_faces_are_smooth_cuts():
    """A pattern finer than a pixel of the cut becomes grey, not another pattern."""
    picture = np.indices((1200, 1200)).sum(axis=0).astype(np.uint8) % 2 * 255
    cut, = photos._Photograph(picture).cuts(turned(0, 9.3, 600, 600)[None])
    assert cut.std() < 0.01 and abs(cut.mean() - 0.5) < 0.01


# -------------------------------------------------------------------------------------- pictures

def test_similarity_is_the_least_squares_one():
    random = np.random.RandomState(1)
    for _ in range(20):
        points, onto = random.uniform(0, 96, (2, 6, 2))
        points[0], onto[1, 0] = np.nan, np.nan
        ours = photos.similarity(points, onto)
        x, y = points[2:].T
        one, zero = np.ones(4), np.zeros(4)
        # x' = a x - b y + c, y' = b x + a y + d
        system = np.vstack([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
        a, b, c, d = np.linalg.lstsq(system, onto[2:].T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(ours, [[a, -b, c], [b, a, d]], rtol=1e-6, atol=1e-6)
    one = np.array([[10., 20.], [np.nan, np.nan]])
    np.testing.assert_allclose(photos.similarity(one, one + 3), [[1, 0, 3], [0, 1, 3]])
    np.testing.assert_allclose(photos.similarity(one * np.nan, one), [[1, 0, 0], [0, 1, 0]])


@pytest.fixture(scope='module')
def colour():
    """A colour picture in which every corner is another."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30], image[20:, 30:] = (
        (250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128))
    return image


@pytest.mark.parametrize('fname, options, most', [
    ('a.png', {}, 0), ('a.tif', {}, 0), ('a.bmp', {}, 0), ('a.ppm', {}, 0),
    ('a.webp', dict(lossless=True), 0), ('a.jpg', dict(quality=95), 12), ('upper.JPG', dict(quality=95), 12),
    ('a.tiff', dict(compression='tiff_lzw'), 0), ('no-extension', dict(format='PNG'), 0)])
def test_formats(tmp_path, colour, fname, options, most):
    Image.fromarray(colour).save(tmp_path / fname, **options)
    found = photos.read(str(tmp_path / fname))
    assert found.shape == colour.shape and found.dtype == np.uint8
    assert np.abs(found[2:-2, 2:28].astype(int) - colour[2:-2, 2:28]).mean() <= most


@pytest.mark.parametrize('orientation, undo', [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, 1)),
    (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)), (8, lambda a: np.rot90(a, -1))])
def test_pictures_stand_upright(tmp_path, colour, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for fname in ('a.png', 'a.tif'):
        Image.fromarray(np.ascontiguousarray(undo(colour))).save(tmp_path / fname, exif=exif)
        np.testing.assert_array_equal(photos.read(str(tmp_path / fname)), colour)


def test_kinds_of_pixels(tmp_path, colour):
    path = str(tmp_path / 'a.png')

    def read(image, fname=path, **options):
        image.save(fname, **options)
        return photos.read(fname)
    whole = Image.fromarray(colour)
    grey = np.asarray(whole.convert('L'))
    np.testing.assert_array_equal(read(whole.convert('L')), grey)
    assert set(np.unique(read(whole.convert('1')))) <= {0, 255}
    np.testing.assert_array_equal(read(whole.quantize(8)), colour)
    assert np.abs(read(whole.convert('CMYK'), str(tmp_path / 'a.jpg')).astype(int) - colour).mean() < 20

    # Transparent is white, half transparent lighter.
    alpha = whole.convert('RGBA')
    alpha.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [128]]), 20, axis=0).repeat(60, axis=1)))
    found = read(alpha)
    assert (found[:20] == 255).all() and found[25, 5].tolist() == [132, 132, 252]
    found = read(whole.quantize(8), transparency=whole.quantize(8).getpixel((0, 0)))
    assert found[0, 0].tolist() == [255, 255, 255] and found[0, 59].tolist() == [10, 250, 10]
    found = read(whole.convert('LA'))
    np.testing.assert_array_equal(found[..., 0], grey)

    # 16 bits, whatever their range: from the darkest to the brightest.
    for factor, kind in ((257, np.uint16), (16, np.uint16), (1e-3, np.float32), (70000, np.int32)):
        values = (grey * float(factor)).astype(kind)
        found = read(Image.fromarray(values), str(tmp_path / 'a.tif'))
        expected = (grey - grey.min()) * 255. / (grey.max() - grey.min())
        np.testing.assert_allclose(found, expected, atol=1)
    assert not read(Image.fromarray(np.full((5, 5), 9, np.uint16)), str(tmp_path / 'a.tif')).any()
    found = read(Image.fromarray(np.float32([[0, np.nan, np.inf, 1]])), str(tmp_path / 'a.tif'))
    assert found.tolist() == [[0, 0, 0, 255]]


def test_pages_and_animations_are_their_first_picture(tmp_path, colour):
    first, second = Image.fromarray(colour), Image.fromarray(255 - colour)
    first.save(tmp_path / 'a.tif', save_all=True, append_images=[second])
    first.quantize(8).save(tmp_path / 'a.gif', save_all=True, append_images=[second.quantize(8)])
    for fname in ('a.tif', 'a.gif'):
        np.testing.assert_array_equal(photos.read(str(tmp_path / fname)), colour)


def test_what_is_no_photograph(tmp_path, colour, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoded = {}
    for fname in ('a.jpg', 'a.png', 'a.webp', 'a.tif'):
        noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (200, 200, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        noise.save(buffer, {'jpg': 'jpeg', 'tif': 'tiff'}.get(fname[2:], fname[2:]))
        encoded[fname] = buffer.getvalue()
    for fname, content in encoded.items():
        (tmp_path / fname).write_bytes(content)
        assert photos.read(fname).shape == (200, 200, 3)
        (tmp_path / fname).write_bytes(content[:len(content) // 2])
        with pytest.raises(FileError, match=f'^{fname} is (damaged or not complete|no picture)'):
            photos.read(fname)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'drawing.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / 'page.eps').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    for fname, message in (('folder', 'folder cannot be read: it is a folder'),
                           ('nothing.jpg', 'nothing.jpg is not there'),
                           ('empty.jpg', 'empty.jpg is no picture'), ('text.jpg', 'text.jpg is no picture'),
                           ('drawing.svg', 'is no picture'), ('page.eps', 'is no picture')):
        with pytest.raises(FileError, match=message):
            photos.read(fname)


def test_50_megapixels_and_more_than_the_limit(tmp_path, monkeypatch):
    path = tmp_path / 'large.png'
    Image.new('L', (8660, 5774)).save(path, compress_level=1)
    assert photos.read(str(path)).shape == (5774, 8660)
    content = path.read_bytes()
    header = b'IHDR' + struct.pack('>II', 60000, 60000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:])
    with pytest.raises(FileError, match='large.png has more than 100 million pixels: make it smaller'):
        photos.read(str(path))
    monkeypatch.setattr(photos, 'LARGEST', 99)
    Image.new('1', (10, 10)).save(path)
    with pytest.raises(FileError, match='has more than'):
        photos.read(str(path))


def test_grey(colour):
    grey = np.asarray(Image.fromarray(colour).convert('L'))
    alpha = np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)])
    for image in (colour, colour / 255, colour.astype(np.float32) / 255, colour.astype(int), alpha,
                  colour.astype(np.uint16) * 257, colour[::-1][::-1], colour.tolist()):
        found = photos.grey(image)
        assert found.dtype == np.uint8 and found.shape == (40, 60)
        assert np.abs(found.astype(int) - grey).max() <= 1
    np.testing.assert_array_equal(photos.grey(grey), grey)
    np.testing.assert_array_equal(photos.grey(grey[:, :, None]), grey)
    alpha[..., 3] = 0
    assert (photos.grey(alpha) == 255).all()


@pytest.mark.parametrize('image, message', [
    (np.zeros(5), 'has the shape'), (np.zeros((2, 5, 5)), 'has the shape'), (None, 'has the shape'),
    (np.zeros((0, 5)), 'has the shape'), (np.zeros((1, 5, 5, 3)), 'has the shape'),
    ('photo.jpg', 'has the shape'), (np.full((5, 5), 2.), r'in \[0, 1\]'),
    (np.full((5, 5), np.nan), r'in \[0, 1\]'), (np.full((5, 5), 256), 'Pixels are'),
    (np.full((5, 5), -1), 'Pixels are'), (np.full((5, 5), 'x'), 'Pixels are')])
def test_arrays_that_are_no_images(image, message):
    with pytest.raises(ValueError, match=message):
        photos.mark(image, None)


def test_opencv_without_cascades(monkeypatch):
    photos._detector.cache_clear()
    monkeypatch.delattr(cv2, 'CascadeClassifier')
    with pytest.raises(FileError, match='has no cascades.*pip install -r requirements.txt'):
        photos.find(np.zeros((50, 50), np.uint8))
    monkeypatch.setitem(__import__('sys').modules, 'cv2', None)
    with pytest.raises(FileError, match='takes OpenCV'):
        photos.find(np.zeros((50, 50), np.uint8))


def test_points_are_written_as_a_table(tmp_path):
    points = np.arange(60, dtype=np.float32).reshape(2, 15, 2)
    points[1, 3] = np.nan
    faces = photos.Faces(points, np.float32([(1, 2, 3, 3), (4, 5, 6, 6)]))
    nobody = photos.Faces(points[:0], np.empty((0, 4), np.float32))
    path = tmp_path / 'points.csv'
    photos.write_points({'a, "b".jpg': faces, 'nobody.png': nobody, 'bad\udcff.jpg': faces}, str(path))
    table = pd.read_csv(path, encoding_errors='surrogateescape')
    assert table.columns.tolist() == ['photo', 'face', 'point', 'x', 'y', 'box_x', 'box_y', 'box_width',
                                      'box_height']
    assert len(table) == 60 and table['photo'].unique().tolist() == ['a, "b".jpg', 'bad\udcff.jpg']
    assert table['face'].tolist() == ([1] * 15 + [2] * 15) * 2
    assert table['point'].tolist() == list(make_faces.KEYPOINTS) * 4
    np.testing.assert_array_equal(table[['x', 'y']][:30], points.reshape(30, 2))
    assert table.loc[20, 'box_x':].tolist() == [4, 5, 6, 6]
    photos.write_points({}, str(path))
    assert path.read_text().startswith('photo,face,point,x,y,') and path.read_text().count('\n') == 1
