"""Faces in photographs: read a picture, find its faces, mark their points.

    image = read('family.jpg')              # upright, (height, width) or (height, width, 3)
    faces = mark(image, predict)            # predict: what a net finds in faces of 96x96 pixels
    faces.points, faces.boxes               # in pixels of the photograph

A net knows faces that stand upright in 96x96 pixels, with the eyes where its training faces have
them.  OpenCV's detector says where there may be a face, but its squares are now wider, now
narrower, and always upright.  So the cut is refined: the points that the net finds in it tell how
the face lies, and the next cut turns, scales and moves the photograph until they lie as in the mean
face.

Each face is cut twice, from squares that begin apart.  Where there is a face, both end at the same
points.  Where there is none, a net answers with the mean face wherever the cut is, and they stay
apart: so what the detector takes for a face, but the net does not, is known.

What nets know of eyes is the middle between the lids, as most training faces are labelled.  The
pupil lies elsewhere, above all where somebody looks aside.  `pupils` looks for it in the photograph.

Positions are in pixels, x to the right and y down; the centre of the top left pixel is (0, 0).
"""
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from theano_today.nets.files import FileError, open_regular, replacing

from .make_faces import COLUMNS, KEYPOINTS, SIZE, xy

__all__ = ['Faces', 'LARGEST', 'MEAN_FACE', 'NET', 'find', 'grey', 'mark', 'pupils', 'read',
           'similarity', 'table', 'write_points']

# For those who have trained no net yet: what beyond/recipes/photos.yaml leads to, as it was written.
NET = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'photos-net.pickle')

LARGEST = 100e6         # pixels of a photograph; a file of some bytes can say that it has more
# Pillow reads more, some through other programs, which a stranger's file need not start.
FORMATS = 'JPEG', 'PNG', 'TIFF', 'WEBP', 'BMP', 'GIF', 'PPM'

SMALLEST = 1 / 40       # of the longer side of a photograph: smaller faces are not looked for
WINDOW = 24             # pixels of the smallest face for the detector; its own limit is 20
EDGE = 0.05             # of the longer side: how far a face's square may reach over the border
NEIGHBOURS = 3          # squares nearly alike that make a find: OpenCV's default

# The mean of the labels of the drawn faces, in pixels of a cut; real faces that a detector has cut
# out lie within a pixel or two of it.
MEAN_FACE = np.array([
    (64.3, 37.9), (31.7, 37.9), (57.8, 38.6), (70.8, 37.8), (38.2, 38.6), (25.2, 37.8),
    (56.5, 28.3), (76.9, 29.6), (39.5, 28.3), (19.1, 29.6), (48.0, 59.6), (61.1, 72.2),
    (34.9, 72.2), (48.0, 69.3), (48.0, 79.4)])

# The points that tell how a face lies: those that all training faces have.
LYING = xy('left_eye_center', 'right_eye_center', 'nose_tip', 'mouth_center_bottom_lip')

# Where the two cuts of a face begin, from the detector's square: side, x and y of the middle.
BEGINNINGS = (0.9, -0.08, -0.08), (1.2, 0.08, 0.08)
PASSES = 2              # of finding the points that tell, and cutting anew
APART = 0.05            # of the distance of the eyes: cuts that end farther apart have seen no face

# A pupil is looked for in a square about the eye centre.  Lengths are shares of the distance of the
# eyes; the edge of an iris is 0.09 from its middle in grown-ups, whoever they are.
EYE_SIDE, EYE_PIXELS = 0.5, 49  # of the square, and how many pixels it is cut into
EYE_SCALE = (EYE_PIXELS - 1) / EYE_SIDE  # its pixels to the distance of the eyes
EDGE_FROM, EDGE_TO = 0.04, 0.11  # how far from the middle the edge is looked for
INWARD, UP = 0.02, 0.015  # where a pupil is from where nets put the eye centre, in the mean
LIKELY = 0.09, 0.075    # deviation from there, across and down
SURE = 0.03             # less: the best pixel wins; more: the mean of many


@dataclass(frozen=True)
class Faces:
    """Faces in a picture, from left to right; positions in its pixels.

    Attributes
    ----------
    points : ndarray of float32, shape (n, 15, 2)
        x and y of the `KEYPOINTS`, in their order; NaN for those that the nets do not know.  `left`
        is the person's left.
    boxes : ndarray of float32, shape (n, 4)
        The square of each face, upright: x and y of its top left corner, width and height.
    """
    points: np.ndarray
    boxes: np.ndarray

    def __len__(self):
        return len(self.points)


# ------------------------------------------------------------------------------ pictures as arrays

def read(fname):
    """Read a photograph and turn it upright, as its EXIF data say.

    Returns
    -------
    ndarray of uint8, shape (height, width) or (height, width, 3)
        Grey or RGB; what is transparent is white.

    Raises
    ------
    FileError
        If it is not there, is no picture, is damaged or cut off, or has more than `LARGEST` pixels.
    """
    try:
        with open_regular(fname) as f, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of Pillow's, on odd EXIF data and on size: see below
            image = Image.open(f, formats=FORMATS)
            if image.width * image.height > LARGEST:
                raise Image.DecompressionBombError
            return np.asarray(_plain(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise FileError(f'{fname} is not there.') from None
    except UnidentifiedImageError:
        raise FileError(f'{fname} is no picture that can be read: those are JPEG, PNG, TIFF, WebP, '
                        'GIF, BMP and PPM.') from None
    except Image.DecompressionBombError:
        raise FileError(f'{fname} has more than {LARGEST / 1e6:.0f} million pixels: make it '
                        'smaller first.') from None
    except (FileError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise what they like
        raise FileError(f'{fname} is damaged or not complete '
                        f'({type(error).__name__}: {str(error)[:200]}).') from error


def _plain(image):
    """Return a picture of Pillow's as one of mode L or RGB, over white where it is transparent."""
    if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
        return Image.fromarray(_stretched(np.asarray(image, np.float32)))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('L' if image.mode in ('1', 'L') else 'RGB')


def _stretched(values):
    """Bring numbers of any range to 0..255: cameras of 10, 12 and 16 bits write the same format."""
    values = np.where(np.isfinite(values), values, 0)
    lowest, highest = values.min(), values.max()
    return ((values - lowest) * (255 / max(highest - lowest, 1e-30)) + 0.5).astype(np.uint8)


def grey(image):
    """Return an image as grey values.

    Parameters
    ----------
    image : array, shape (height, width), or (height, width, 1, 3 or 4)
        Grey, RGB or RGBA.  uint8 or other integers in 0..255; uint16; or float in [0, 1].

    Returns
    -------
    ndarray of uint8, shape (height, width)

    Raises
    ------
    ValueError
        For another shape or other values.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if not (image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4)) or 0 in image.shape:
        raise ValueError('An image has the shape (height, width), or (height, width, 3 or 4) for '
                         f'RGB or RGBA, not {image.shape}.')
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    elif image.dtype.kind == 'f':
        if not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
            raise ValueError('Pixels of type float are in [0, 1].')
        image = (image * 255 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        if image.dtype.kind not in 'iu' or image.min() < 0 or image.max() > 255:
            raise ValueError(f'Pixels are uint8, uint16 or float, not {image.dtype}.')
        image = image.astype(np.uint8)
    if image.ndim == 2:
        return np.ascontiguousarray(image)
    return np.asarray(_plain(Image.fromarray(np.ascontiguousarray(image))).convert('L'))


# ------------------------------------------------------------------------------------- detection

def _opencv():
    try:
        import cv2
    except ImportError:
        raise FileError('to mark photographs takes OpenCV: pip install -r requirements.txt'
                        ) from None
    return cv2


@lru_cache
def _detector():
    cv2 = _opencv()
    if not hasattr(cv2, 'CascadeClassifier'):
        raise FileError(f'OpenCV {cv2.__version__} has no cascades, which find faces; 4.14 has: '
                        'pip install -r requirements.txt')
    # Of OpenCV's cascades for frontal faces, the one with the fewest finds that were none, on the
    # photographs of docs/photos.md; it misses none that "default" and "alt" find there.
    return cv2.CascadeClassifier(
        os.path.join(cv2.data.haarcascades, 'haarcascade_frontalface_alt2.xml'))


def find(image, smallest=SMALLEST):
    """Find faces that look into the camera, with OpenCV's cascade of Haar features.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width)
    smallest : float
        Width of the smallest face that is looked for, as a share of the longer side.  The time
        that it takes goes with the square of its inverse.  Faces below 24 pixels are not found.

    Returns
    -------
    ndarray of float, shape (n, 4)
        Squares: x and y of the top left corner, width and height.
    """
    cv2 = _opencv()
    if not 0 < smallest <= 1:
        raise ValueError('smallest is a share of the longer side, above 0 and at most 1, not '
                         f'{smallest!r}.')
    shrink = min(1, WINDOW / (smallest * max(image.shape)))
    height, width = image.shape
    small = cv2.resize(image, (max(1, round(width * shrink)), max(1, round(height * shrink))),
                       interpolation=cv2.INTER_AREA)
    factors = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    edge = round(EDGE * max(small.shape))  # a square that is partly outside is none to the detector
    small = cv2.copyMakeBorder(small, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    found = _detector().detectMultiScale(small, 1.1, NEIGHBOURS, minSize=(WINDOW, WINDOW))
    return (np.reshape(found, (-1, 4)) - (edge, edge, 0, 0)) * factors


# ------------------------------------------------------------------------------------------- cuts

def similarity(points, onto):
    """The turn, scale and shift (2, 3) that bring points nearest onto others; NaN do not count.

    Where there are fewer than two points, a shift, or nothing.
    """
    known = ~np.isnan(points + onto).any(axis=1)
    factor, middle, target = 1, np.zeros(2), np.zeros(2)
    if known.any():
        middle, target = points[known].mean(axis=0), onto[known].mean(axis=0)
        # Points of the plane as complex numbers: least squares with a single factor.
        a, b = (points[known] - middle) @ [1, 1j], (onto[known] - target) @ [1, 1j]
        if np.abs(a).max() > 1e-6 and np.abs(b).max() > 1e-6:
            factor = np.vdot(a, b) / np.vdot(a, a)
    turn = np.array([[np.real(factor), -np.imag(factor)], [np.imag(factor), np.real(factor)]])
    return np.column_stack([turn, target - turn @ middle])


def _sent(points, maps):
    """Send the points (n, k, 2) through maps (n, 2, 3)."""
    return points @ maps[:, :, :2].transpose(0, 2, 1) + maps[:, None, :, 2]


def _first_cuts(boxes):
    """Maps (2 n, 2, 3) from pixels of a cut to the photograph: two for each of the squares."""
    half = (SIZE - 1) / 2
    maps = []
    for x, y, width, height in boxes:
        for side, right, down in BEGINNINGS:
            scale = side * width / SIZE
            middle_x, middle_y = x + (0.5 + right) * width - 0.5, y + (0.5 + down) * height - 0.5
            maps.append([(scale, 0, middle_x - scale * half), (0, scale, middle_y - scale * half)])
    return np.array(maps)


class _Photograph:
    """A grey photograph, and what it is at a half, a quarter, ... of its size, as far as needed."""

    def __init__(self, image):
        self.sizes = [image]

    def cuts(self, maps):
        """Return cuts (n, 1, 96, 96) of float32 in [0, 1]; the edge goes on beyond itself."""
        return np.stack([self.cut(to_photo) for to_photo in maps])[:, None] / np.float32(255)

    def cut(self, to_photo, size=SIZE):
        """Return one cut (size, size) of uint8."""
        cv2 = _opencv()
        # Interpolation looks at four pixels.  Where a pixel of the cut is larger, what is finer
        # would be noise in it, and training faces are smooth: take the photograph's mean first.
        halvings = max(0, int(np.log2(_scale(to_photo)) + 0.35))
        while len(self.sizes) <= halvings:
            height, width = self.sizes[-1].shape
            self.sizes.append(cv2.resize(self.sizes[-1], (max(1, width // 2), max(1, height // 2)),
                                         interpolation=cv2.INTER_AREA))
        image = self.sizes[halvings]
        shrunk = np.array(image.shape[::-1]) / self.sizes[0].shape[::-1]
        source = to_photo * shrunk[:, None]
        source[:, 2] += (shrunk - 1) / 2  # from the middle of a pixel to that of the one it is in
        return cv2.warpAffine(image, source, (size, size), borderMode=cv2.BORDER_REPLICATE,
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _scale(maps):
    """Pixels of the photograph to a pixel of the cut."""
    return np.linalg.norm(maps[..., 0], axis=-1)


def _boxes(maps):
    """The squares (n, 4) that cuts (n, 2, 3) come from, as if they stood upright."""
    sides = _scale(maps)[:, None] * SIZE
    middles = _sent(np.full((len(maps), 1, 2), (SIZE - 1) / 2), maps)[:, 0]
    return np.hstack([middles - sides / 2, sides, sides])


# ------------------------------------------------------------------------------------------ marking

def mark(image, predict, smallest=SMALLEST, at_pupils=False):
    """Find the faces in an image and mark their points.

    Parameters
    ----------
    image : array
        As `grey` takes it.
    predict : callable
        ``predict(X, columns)`` says where points lie in cuts `X` (n, 1, 96, 96), float32 in [0, 1]:
        an array (n, len(columns)), in pixels of the cut; NaN for what it does not know.
    smallest : float
        As `find` takes it.
    at_pupils : bool
        Move the eye centres from where `predict` has them to the `pupils`.

    Returns
    -------
    Faces

    Raises
    ------
    ValueError
        For an image that is none.
    FileError
        If `predict` does not know one of `LYING`.
    """
    image = grey(image)
    found = find(image, smallest)
    if not len(found):
        return Faces(np.empty((0, len(KEYPOINTS), 2), np.float32), np.empty((0, 4), np.float32))
    photo, maps = _Photograph(image), _first_cuts(found)

    def points(columns):
        return _sent(predict(photo.cuts(maps), columns).reshape(len(maps), -1, 2), maps)

    mean = MEAN_FACE[[KEYPOINTS.index(name[:-2]) for name in LYING[::2]]]
    for _ in range(PASSES):
        lying = points(LYING)
        if np.isnan(lying).any():
            raise FileError(f'To mark photographs takes nets that know {", ".join(LYING)}.')
        maps = np.array([similarity(mean, own) for own in lying])
    both = points(COLUMNS).reshape(len(found), 2, -1, 2)
    boxes = _boxes(maps).reshape(len(found), 2, 4).mean(axis=1)
    kept = _kept(both, boxes)
    faces = both.mean(axis=1)[kept]
    if at_pupils:
        eyes = [KEYPOINTS.index(name) for name in ('left_eye_center', 'right_eye_center')]
        for points in faces:
            points[eyes] = pupils(photo, points[eyes])
    return Faces(faces.astype(np.float32), boxes[kept].astype(np.float32))


def _kept(both, boxes):
    """Tell which are faces, from left to right, and each one once.

    Parameters
    ----------
    both : ndarray, shape (n, 2, 15, 2)
        Points that were found in the two cuts of each.
    boxes : ndarray, shape (n, 4)
    """
    eyes = boxes[:, 2] * (np.linalg.norm(MEAN_FACE[0] - MEAN_FACE[1]) / SIZE)
    middle = both.mean(axis=1)
    apart = np.sqrt(np.nanmean(((both - middle[:, None]) ** 2).sum(axis=3), axis=(1, 2))) / eyes
    kept = []
    for face in np.argsort(apart):
        far = [np.nanmean(np.linalg.norm(middle[face] - middle[other], axis=1)) / eyes[other]
               for other in kept]
        if apart[face] < APART and min(far, default=1) > 0.5:
            kept.append(face)
    return sorted(kept, key=lambda face: boxes[face, 0])


# ------------------------------------------------------------------------------------------ pupils

def pupils(photo, eyes):
    r"""Find the pupils near the eye centres of a face.

    An iris is darker than what is about it.  So at its middle `c`, the brightness :math:`I` grows
    away from it all around: the mean of

    .. math:: \frac{p - c}{|p - c|} \cdot \frac{\nabla I(p)}{|\nabla I(p)|}

    over the pixels p at the distance of its edge is large, whatever the light.  Gradients that are
    small count less, so do darkness, and pixels far from where the net has put the eye centre.

    Parameters
    ----------
    photo : _Photograph
    eyes : ndarray, shape (2, 2)
        x and y of the left and of the right eye centre, in pixels of the photograph.

    Returns
    -------
    ndarray, shape (2, 2)

    References
    ----------
    F. Timm, E. Barth, "Accurate Eye Centre Localisation by Means of Gradients", VISAPP 2011.
    """
    middle = (EYE_PIXELS - 1) / 2
    for expected in ((-INWARD, -UP), (INWARD, -UP)), ((0, 0), (0, 0)):
        across = eyes[0] - eyes[1]
        turn = np.column_stack([across, (-across[1], across[0])]) / EYE_SCALE
        eyes = np.array([eye + turn @ _pupil(photo.cut(
            np.column_stack([turn, eye - turn @ (middle, middle)]), EYE_PIXELS), place)
            for eye, place in zip(eyes, expected)])
    return eyes


@lru_cache
def _about_the_middle():
    """For the square of an eye: the filters that see an edge all around, and where each pixel is."""
    offset = np.arange(EYE_PIXELS, dtype=np.float32) - (EYE_PIXELS - 1) / 2
    x, y = np.meshgrid(offset, offset)
    far = np.hypot(x, y)
    ring = np.clip((far - EDGE_FROM * EYE_SCALE) / 2 + 0.5, 0, 1) * np.clip(
        (EDGE_TO * EYE_SCALE - far) / 2 + 0.5, 0, 1) / np.maximum(far, 1)
    ring /= ring.sum() * np.maximum(far, 1)
    return x * ring, y * ring, x, y


def _pupil(image, expected):
    """Return where the pupil is in the square of an eye, in its pixels from the middle.

    Where it is `expected` is a share of the distance of the eyes.
    """
    cv2 = _opencv()
    to_right, down, x, y = _about_the_middle()
    unlikely = (((x / EYE_SCALE - expected[0]) / LIKELY[0]) ** 2 +
                ((y / EYE_SCALE - expected[1]) / LIKELY[1]) ** 2)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.012 * EYE_SCALE)
    image -= image.mean()  # or darkness, where all pixels are alike, leaves no digits for the rest
    gradient = np.array([cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)])
    size = np.hypot(*gradient)
    gradient /= size + 3 * size.mean() + 1e-6
    dark = -cv2.GaussianBlur(image, (0, 0), 0.03 * EYE_SCALE) / (image.std() + 1e-6)
    votes = cv2.filter2D(gradient[0], -1, to_right) + cv2.filter2D(gradient[1], -1, down)
    votes += 0.09 * dark - 0.15 * unlikely
    weights = np.exp((votes - votes.max()) / SURE)
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


# --------------------------------------------------------------------------------------- points.csv

def table(photos):
    """Return a row for each point of each face.

    Parameters
    ----------
    photos : dict of str to Faces

    Returns
    -------
    DataFrame
        photo; face, from 1; point; x, y, and box_x, box_y, box_width, box_height in pixels of it.
    """
    rows = [(photo, number, name, *point, *box)
            for photo, faces in photos.items()
            for number, (points, box) in enumerate(zip(faces.points, faces.boxes), 1)
            for name, point in zip(KEYPOINTS, points)]
    return pd.DataFrame(rows, columns=['photo', 'face', 'point', 'x', 'y',
                                       'box_x', 'box_y', 'box_width', 'box_height'])


def write_points(photos, fname):
    """Write `table` of photographs as a CSV file."""
    with replacing(fname) as f:
        table(photos).to_csv(f, index=False, float_format='%.2f', errors='surrogateescape')
