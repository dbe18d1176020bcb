"""Images and their points move together, in the ranges that are promised."""
import pickle
import threading

import theano_today  # noqa: F401  (before theano)

import kfkd
import numpy as np
import pytest
import scipy.stats
import theano
import theano.tensor as T
from kfkd import FlipBatchIterator
from nolearn.lasagne import BatchIterator
from scipy import ndimage
from theano_today.nets.files import FileError

pytest.importorskip('cv2')
from beyond import augmentation  # noqa: E402
from beyond.augmentation import (  # noqa: E402
    FACE_FLIP_INDICES, PRESETS, AffineBatchIterator, affine_matrices, augmented, flip_indices_of,
    mean_squared_error_of_known, middle_of, move, predict_aligned, predict_mirrored,
    squared_error_of_known, warp)
from data import photos  # noqa: E402

COLUMNS = [column for setting in kfkd.SPECIALIST_SETTINGS for column in setting['columns']]
STILL = dict(rotation=(0, 0), translation=(0, 0), scale=(1, 1), flip=0, shear=(0, 0),
             stretch=(1, 1))


def dots(n, random, radius=20):
    """Images with one bright spot each, a Gaussian, and its place as a label of two columns."""
    place = random.uniform(48 - radius, 48 + radius, (n, 2))
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    distance = (x - place[:, :1, None]) ** 2 + (y - place[:, 1:, None]) ** 2
    return (np.exp(-distance / 8)[:, None].astype(np.float32),
            ((place - 48) / 48).astype(np.float32))


def centroids(images):
    """Where the spot of each image is, (x, y) in pixels."""
    weights = images[:, 0] / images[:, 0].sum(axis=(1, 2), keepdims=True)
    return np.stack([(weights.sum(axis=1) * np.arange(96)).sum(axis=1),
                     (weights.sum(axis=2) * np.arange(96)).sum(axis=1)], axis=1)


def test_a_dot_stays_under_its_keypoint_in_1000_draws():
    X, y = dots(1000, np.random.RandomState(0), radius=12)
    iterator = AffineBatchIterator(1000, flip_indices=())  # the deck's ranges
    Xb, yb = iterator.transform(X, y)
    assert np.abs(yb - y).max() > .3
    # Only spots that lie in the image as a whole have their centroid at their centre.
    whole = (np.abs(yb * 48) < 35).all(axis=1)
    assert whole.sum() > 900
    distance = np.linalg.norm(centroids(Xb) - (yb * 48 + 48), axis=1)[whole]
    assert distance.max() < .1


def test_image_agrees_with_scipy():
    random = np.random.RandomState(1)
    X = ndimage.gaussian_filter(random.rand(20, 2, 80, 96), (0, 0, 2, 2)).astype(np.float32)
    matrices = affine_matrices(**AffineBatchIterator(1).draw(20))
    ours = warp(X, matrices, (48, 40))
    for image, matrix, warped in zip(X, matrices, ours):
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        move_middle = np.array([[1, 0, 48], [0, 1, 40], [0, 0, 1]])
        source = move_middle @ inverse @ np.linalg.inv(move_middle)
        source = source[[1, 0, 2]][:, [1, 0, 2]]  # SciPy counts (row, column)
        for plane, ours_of_plane in zip(image, warped):
            theirs = ndimage.affine_transform(plane, source, order=1, mode='nearest')
            # OpenCV rounds places to 1/32 pixel.
            np.testing.assert_allclose(ours_of_plane, theirs, atol=.02 * np.ptp(plane))


def test_matrix_is_the_product_it_says():
    p = AffineBatchIterator(1).draw(200)
    points = np.random.RandomState(2).uniform(-48, 48, (200, 7, 2))
    moved = move(points, affine_matrices(**p))
    for i in range(200):
        angle, shear = np.deg2rad(p['rotation'][i]), np.deg2rad(p['shear'][i])
        mirror = np.diag([-1 if p['flip'][i] else 1, 1, 1])
        size = np.diag([p['scale'][i] * p['stretch'][i] ** .5,
                        p['scale'][i] / p['stretch'][i] ** .5, 1])
        sheared = np.array([[1, np.tan(shear), 0], [0, 1, 0], [0, 0, 1]])
        rotated = np.array([[np.cos(angle), -np.sin(angle), 0],
                            [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        shifted = np.array([[1, 0, p['translation'][i, 0]], [0, 1, p['translation'][i, 1]],
                            [0, 0, 1]])
        homogeneous = np.column_stack([points[i], np.ones(7)])
        expected = (shifted @ rotated @ sheared @ size @ mirror @ homogeneous.T).T[:, :2]
        np.testing.assert_allclose(moved[i], expected, atol=1e-9)


def test_directions_are_as_said():
    def moved(**changes):
        iterator = AffineBatchIterator(1, **dict(STILL, **changes))
        points = np.array([[[10., 0], [0, 10]]])
        return move(points, affine_matrices(**iterator.draw(1)))[0].round(3)
    assert moved(rotation=(90, 90)).tolist() == [[0, 10], [-10, 0]]  # y points down: clockwise
    assert moved(scale=(1.5, 1.5)).tolist() == [[15, 0], [0, 15]]
    assert moved(stretch=(1.21, 1.21)).tolist() == [[11, 0], [0, 9.091]]
    assert moved(shear=(45, 45)).tolist() == [[10, 0], [10, 10]]
    assert moved(flip=1).tolist() == [[-10, 0], [0, 10]]
    assert moved(translation=(3, 3)).tolist() == [[13, 3], [3, 13]]


def test_distributions_are_the_decks():
    p = AffineBatchIterator(1, seed=3).draw(20000)
    uniform = {'rotation': (0, 360), 'shear': (-20, 20)}
    for name, (low, high) in uniform.items():
        assert scipy.stats.kstest(p[name], 'uniform', (low, high - low)).pvalue > .01, name
    for name, limit in (('scale', 1.6), ('stretch', 1.3)):
        assert scipy.stats.kstest(np.log(p[name]), 'uniform',
                                  (-np.log(limit), 2 * np.log(limit))).pvalue > .01, name
    for axis in 0, 1:
        assert scipy.stats.kstest(p['translation'][:, axis], 'uniform', (-10, 20)).pvalue > .01
    assert abs(np.corrcoef(p['translation'].T)[0, 1]) < .03
    assert scipy.stats.binomtest(int(p['flip'].sum()), 20000, .5).pvalue > .01
    assert PRESETS['deck'] == {name: getattr(AffineBatchIterator(1), name)
                               for name in PRESETS['deck']}


def test_still_maps_change_nothing():
    X, y = dots(5, np.random.RandomState(4))
    Xb, yb = AffineBatchIterator(5, flip_indices=(), **STILL).transform(X, y)
    np.testing.assert_array_equal(Xb, X)
    np.testing.assert_allclose(yb, y, atol=1e-7)


def test_mirrored_labels_are_the_decks():
    random = np.random.RandomState(5)
    X, y = random.rand(20, 1, 96, 96).astype('f4'), random.uniform(-.9, .9, (20, 30)).astype('f4')
    ours = AffineBatchIterator(20, **dict(STILL, flip=1))
    Xb, yb = ours.transform(X, y)
    theirs = kfkd.FlipBatchIterator(20, seed=1)
    theirs.random = type('All', (), {'choice': staticmethod(lambda n, *a, **k: np.arange(n))})
    X2, y2 = theirs.transform(X, y)
    np.testing.assert_allclose(yb, y2, atol=1e-6)
    # Column 48, the 0 of the labels, stays; theirs mirrors the image about 47.5.
    np.testing.assert_allclose(Xb[..., 1:], X2[..., :-1], atol=1e-6)
    ours.middle = 47.5
    np.testing.assert_allclose(ours.transform(X, y)[0], X2, atol=1e-6)


@pytest.mark.parametrize('setting', kfkd.SPECIALIST_SETTINGS)
def test_flip_indices_of_each_specialist(setting):
    assert sorted(flip_indices_of(setting['columns'])) == sorted(setting['flip_indices'])
    n = len(setting['columns'])
    y = np.tile(np.linspace(-.5, .5, n, dtype='f4'), (3, 1))
    iterator = AffineBatchIterator(3, flip_indices=setting['flip_indices'], **dict(STILL, flip=1))
    flipped = iterator.transform(np.zeros((3, 1, 96, 96), 'f4'), y)[1]
    for column, name in enumerate(setting['columns']):
        other = name.replace('left', 'LEFT').replace('right', 'left').replace('LEFT', 'right')
        sign = -1 if name.endswith('_x') else 1
        np.testing.assert_allclose(
            flipped[:, column], sign * y[:, setting['columns'].index(other)], atol=1e-6)


def test_flip_indices_of_all_columns():
    from data import make_faces
    assert set(flip_indices_of(make_faces.COLUMNS)) == set(FACE_FLIP_INDICES)
    with pytest.raises(ValueError, match='left_eye_center_y'):
        flip_indices_of(['left_eye_center_x', 'right_eye_center_x', 'right_eye_center_y'])


# ------------------------------------------------------------------------ points that leave

def corners(n=400):
    """Points near the corners of the image: the deck's ranges send many of them out."""
    y = np.tile(np.array([-.7, -.7, .7, -.7, .7, .7, 1.2, 0], 'f4'), (n, 1))  # the last is outside
    y[0, 0] = np.nan
    return np.zeros((n, 1, 96, 96), 'f4'), y


def test_resampled_points_stay_inside():
    X, y = corners()
    yb = AffineBatchIterator(400, flip_indices=()).transform(X, y)[1]
    assert np.isnan(yb[0, 0]) and np.isnan(yb).sum() <= 2
    assert np.nanmin(yb[:, :6]) >= -1 and np.nanmax(yb[:, :6]) <= 47 / 48 + 1e-6
    assert len(np.unique(yb[:, 2].round(4))) > 390


def test_an_image_that_never_fits_is_only_mirrored():
    X, y = corners()
    iterator = AffineBatchIterator(400, flip_indices=(), **dict(STILL, scale=(3, 3), flip=.5))
    yb = iterator.transform(X, y)[1]
    sign = np.where(yb[:, 2] < 0, -1, 1)
    np.testing.assert_allclose(yb[1:, 1:2], y[1:, 1:2])
    np.testing.assert_allclose(yb[:, 2], sign * .7, rtol=1e-6)
    assert 100 < (sign < 0).sum() < 300


def test_points_outside_as_nan_or_kept():
    X, y = corners()
    settings = dict(flip_indices=(), seed=7)
    kept = AffineBatchIterator(400, outside='keep', **settings).transform(X, y)[1]
    gaps = AffineBatchIterator(400, outside='nan', **settings).transform(X, y)[1]
    out = ((kept < -1) | (kept > 47 / 48)).reshape(400, 4, 2).any(axis=2).repeat(2, axis=1)
    assert .2 < out.mean() < .8
    np.testing.assert_array_equal(np.isnan(gaps)[1:], out[1:])
    np.testing.assert_array_equal(gaps[~out & ~np.isnan(gaps)], kept[~out & ~np.isnan(gaps)])


def test_squared_error_of_known():
    a, b = T.matrices('ab')
    loss = squared_error_of_known(a, b)
    function = theano.function([a, b], [loss, theano.grad(loss.sum(), a)], mode='FAST_COMPILE')
    prediction = np.array([[1, 2], [3, 4]], 'f4')
    target = np.array([[0, np.nan], [np.nan, 2]], 'f4')
    error, gradient = function(prediction, target)
    np.testing.assert_array_equal(error, [[1, 0], [0, 4]])
    np.testing.assert_array_equal(gradient, [[2, 0], [0, 4]])


def test_mean_squared_error_of_known():
    a, b = T.matrices('ab')
    loss = mean_squared_error_of_known(a, b).mean()
    function = theano.function([a, b], [loss, theano.grad(loss, a)], mode='FAST_COMPILE')
    random = np.random.RandomState(9)
    prediction, target = random.normal(size=(2, 5, 4)).astype('f4')
    target[:4, 1:] = np.nan
    error, gradient = function(prediction, target)
    assert error == pytest.approx(np.nanmean((prediction - target) ** 2), rel=1e-5)
    # 8 of 20 are known.
    np.testing.assert_allclose(gradient, np.nan_to_num(2 * (prediction - target) / 8), rtol=1e-5)
    error, gradient = function(prediction, target * np.nan)
    assert error == 0 and not gradient.any()


# ------------------------------------------------------------------------------ as an iterator

def batches(**settings):
    X, y = dots(70, np.random.RandomState(8))
    iterator = AffineBatchIterator(32, flip_indices=(), **settings)
    before = X.copy(), y.copy()
    result = [list(iterator(X, y)) for epoch in range(2)]
    np.testing.assert_array_equal(X, before[0])  # the caller's faces are left alone
    np.testing.assert_array_equal(y, before[1])
    return result


def test_same_seed_same_batches_also_from_a_thread():
    first, again, threaded, other = (
        batches(seed=1), batches(seed=1), batches(seed=1, prefetch=3), batches(seed=2))
    for epochs in again, threaded:
        for a, b in zip(sum(first, []), sum(epochs, [])):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
    assert [len(X) for X, y in threaded[0]] == [32, 32, 6]
    assert not np.array_equal(first[0][0][1], first[1][0][1])  # each epoch draws anew
    assert not np.array_equal(first[0][0][1], other[0][0][1])
    assert first[0][0][0].dtype == first[0][0][1].dtype == np.float32


def test_no_thread_is_left_and_errors_come_out():
    X, y = dots(200, np.random.RandomState(9))
    threads = threading.active_count()
    iterator = AffineBatchIterator(32, flip_indices=(), prefetch=2)
    some = iter(iterator(X, y))
    next(some)
    assert threading.active_count() == threads + 1
    some.close()
    assert threading.active_count() == threads
    iterator.flip_indices = [(0, 2)]
    with pytest.raises(ValueError, match='names column 2, but the labels have 2 columns'):
        list(iterator(X, y))
    assert threading.active_count() == threads


def test_classes_and_missing_labels_pass_through():
    X, _ = dots(10, np.random.RandomState(10))
    iterator = AffineBatchIterator(10)
    classes = np.arange(10, dtype=np.int32)
    assert iterator.transform(X, classes)[1] is classes
    assert iterator.transform(X, None)[1] is None


def test_standardised_pixels_go_first():
    class Both(AffineBatchIterator, kfkd.FaceBatchIterator):
        pass
    X, y = dots(10, np.random.RandomState(11))
    iterator = Both(10, flip_indices=(), seed=4, border='constant')
    plain = iterator.transform(X, y)[0]
    iterator = Both(10, flip_indices=(), seed=4, border='constant')
    iterator.fit_pixels(X)
    scaled = iterator.transform(X, y)[0]
    inside = plain > 1e-3
    np.testing.assert_allclose((plain - X.mean())[inside] / X.std(), scaled[inside], rtol=1e-3)


def test_pickles_and_nolearns_base():
    iterator = AffineBatchIterator(16, scale=(.9, 1.1), flip_indices=())
    assert isinstance(iterator, BatchIterator)
    X, y = dots(16, np.random.RandomState(12))
    twin = pickle.loads(pickle.dumps(iterator))
    np.testing.assert_array_equal(iterator.transform(X, y)[0], twin.transform(X, y)[0])


@pytest.mark.parametrize('settings, words', [
    (dict(rotation=30), 'rotation is a pair'), (dict(rotation=(10, -10)), 'no range'),
    (dict(scale=(0, 1)), 'scale = .* above 0'), (dict(stretch=(-1, 1)), 'stretch'),
    (dict(shear=(-90, 0)), 'shear = .* above -90 below 90'), (dict(flip=2), 'probability'),
    (dict(translation=(0, np.nan)), 'translation'), (dict(outside='crop'), 'outside is one of'),
    (dict(border='black'), 'border is one of'),
])
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        AffineBatchIterator(128, **settings)


def test_images_of_another_shape():
    with pytest.raises(ValueError, match=r'\(n, channels, height, width\), not \(2, 9216\)'):
        AffineBatchIterator(2).transform(np.zeros((2, 9216), 'f4'), None)
    X, y = dots(4, np.random.RandomState(13))
    reversed_ = AffineBatchIterator(4, flip_indices=()).transform(X[::-1, :, ::-1, ::-1], y)[0]
    again = AffineBatchIterator(4, flip_indices=()).transform(X[::-1, :, ::-1, ::-1].copy(), y)[0]
    np.testing.assert_array_equal(reversed_, again)


def test_labels_of_odd_number():
    with pytest.raises(ValueError, match='3 columns'):
        AffineBatchIterator(2, flip=0).transform(
            np.zeros((2, 1, 96, 96), 'f4'), np.zeros((2, 3), 'f4'))


def test_without_opencv(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(ImportError, match='pip install -r requirements.txt'):
        augmentation.AffineBatchIterator(128)


# ------------------------------------------------------------------------- kfkd's AUGMENT and MIRROR

def test_a_preset_with_changes():
    iterator = augmented({'faces': {'middle': 47, 'rotation': (-1, 1)}})(batch_size=8, seed=1)
    assert (iterator.middle, iterator.rotation) == (47, (-1, 1))
    assert iterator.translation == PRESETS['faces']['translation'] and iterator.batch_size == 8
    assert augmented('deck')(8).rotation == (0, 360)


@pytest.mark.parametrize('wanted, words', [
    ('face', "one of 'deck', 'faces', not 'face'"), ({'deck': {}, 'faces': {}}, 'one of'),
    (3, 'one of'), ({'faces': {'midle': 47}}, 'midle'), ({'faces': {'flip': 2}}, 'probability'),
    ({'faces': 47}, "AUGMENT = {'faces': 47}"), ({'faces': {'middle': 'x'}}, 'could not convert'),
])
def test_augment_that_is_wrong(wanted, words):
    with pytest.raises(FileError, match=words):
        augmented(wanted)


class DotFinder:
    """Find the two dots of a picture exactly, or with an error to the right; the left one first."""
    def __init__(self, iterator, offset, error=0):
        self.batch_iterator_train, self.offset, self.error = iterator, offset, error

    def predict(self, X):
        left = np.arange(96) < 48
        found = [centroids(X * left), centroids(X * ~left)]
        return ((np.hstack(found) + self.offset - 48 + [self.error, 0] * 2) / 48).astype('f4')


@pytest.mark.parametrize('iterator, offset', [
    (AffineBatchIterator(1, flip_indices=((0, 2), (1, 3))), 0),             # labels name pixels
    (AffineBatchIterator(1, flip_indices=((0, 2), (1, 3)), middle=47), 1),  # counted from 1
    (FlipBatchIterator(1), .5),                                             # from the edge
])
def test_a_face_and_its_mirror_image_have_the_same_points(iterator, offset):
    iterator.flip_indices = (0, 2), (1, 3)
    X, _ = dots(20, np.random.RandomState(10), radius=12)
    X = np.concatenate([X[:10, :, :, 24:72], X[10:, :, :, 24:72]], axis=3)
    exact = DotFinder(iterator, offset)
    np.testing.assert_allclose(predict_mirrored(exact, X), exact.predict(X), atol=1e-4)
    # What is wrong in one direction falls out: in the mirror image it is wrong in the other.
    np.testing.assert_allclose(predict_mirrored(DotFinder(iterator, offset, 5), X),
                               exact.predict(X), atol=1e-4)


# ------------------------------------------------------------------------------------ kfkd's ALIGN

LYING = photos.MEAN_FACE[[photos.KEYPOINTS.index(name[:-2]) for name in photos.LYING[::2]]]


@pytest.fixture
def faces():
    """Faces of four dots, each in a channel of its own, turned, moved and scaled; and their labels."""
    random = np.random.RandomState(14)
    iterator = AffineBatchIterator(1, **dict(PRESETS['faces'], flip=0))
    shape = (LYING - 48 + random.normal(0, 1, (30, 4, 2))).astype(np.float32)
    points = move(shape, affine_matrices(**iterator.draw(30))) + 48
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    far = (x - points[..., :1, None]) ** 2 + (y - points[..., 1:, None]) ** 2
    return np.exp(-far / 8).astype(np.float32), points.reshape(30, -1) / 48 - 1


class Finder:
    """Find the dot of each channel, but `shy`: that much of the way from the mean face."""

    def __init__(self, shy=1., offset=0):
        self.shy, self.offset, self.seen = shy, offset, []

    def __call__(self, X):
        points = centroids(X.reshape(-1, 1, 96, 96)).reshape(len(X), 4, 2)
        self.seen.append(points)
        return ((LYING + self.shy * (points - LYING) + self.offset) / 48 - 1).reshape(len(X), -1)


@pytest.mark.parametrize('middle, offset', [(48, 0), (47, 1)])
def test_a_second_look_is_at_faces_that_lie_as_the_mean_face(faces, middle, offset):
    X, y = faces
    exact = Finder(offset=offset)
    found = predict_aligned(exact, X, photos.LYING, (middle, middle))
    np.testing.assert_allclose(found, y + offset / 48, atol=.002)  # a tenth of a pixel
    first, second = (np.abs(points + offset - LYING).mean() for points in exact.seen)
    assert second < first / 2


def test_a_second_look_helps_who_sees_the_mean_face_everywhere(faces):
    X, y = faces
    once, twice = (np.sqrt(np.mean((found - y) ** 2)) for found in (
        Finder(.8)(X), predict_aligned(Finder(.8), X, photos.LYING, (48, 48))))
    assert twice < .75 * once


def test_no_second_look_without_the_points_that_tell_how_a_face_lies(faces):
    X, y = faces
    for columns in photos.LYING[:6], photos.LYING[::-1], COLUMNS[:8]:
        finder = Finder()
        predict_aligned(finder, X, columns, (48, 48))
        assert len(finder.seen) == 1


def test_where_labels_have_their_0():
    X = np.zeros((1, 1, 80, 96))
    for iterator, middle in ((AffineBatchIterator(1), (48, 40)), (FlipBatchIterator(1), (47.5, 39.5)),
                             (AffineBatchIterator(1, middle=47), (47, 47))):
        assert tuple(middle_of(DotFinder(iterator, 0), X)) == middle
