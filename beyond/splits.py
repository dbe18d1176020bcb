"""Faces kept for validation that tell how good a net is on people it has not seen.

    net.train_split = LookalikeSplit(0.2)

Photographs often come from films or albums: next to a face stands another of the same person, taken
a second later.  A split by rows puts one into the training and the other into the validation, whose
error then says little of new people.
"""
import numpy as np
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform
from sklearn.model_selection import GroupKFold

from data.photos import similarity

from .augmentation import _opencv

__all__ = ['LookalikeSplit', 'descriptors', 'lookalikes']


class LookalikeSplit:
    """Split faces into training and validation; faces that look alike stay on one side.

    A `train_split` of nolearn nets, in place of its `TrainSplit`.

    Parameters
    ----------
    eval_size : float
        Share of the faces that are kept for validation, as near as whole groups allow.  0: none.
    distance : float
        Faces are put into one group when the mean distance between two groups is at most this, where
        the distance of two faces is 1 minus the correlation of what `descriptors` says of them.

    Notes
    -----
    It takes memory and time of n² for n faces: 3,000 take 2 seconds, 7,000 take 0.6 GB.
    """

    def __init__(self, eval_size=0.2, distance=0.6):
        if not 0 <= eval_size <= 0.5:
            raise ValueError(f'eval_size is a share of the faces, 0 to 0.5, not {eval_size!r}.')
        self.eval_size, self.distance = eval_size, distance

    def __call__(self, X, y, net):
        if not self.eval_size:
            return X, X[:0], y, y[:0]
        folds = round(1 / self.eval_size)
        groups = lookalikes(X, y, self.distance)
        if len(np.unique(groups)) < folds:
            raise ValueError(f'The faces are {len(np.unique(groups))} groups of lookalikes: too few '
                             f'to keep {self.eval_size:g} of them for validation. A smaller '
                             f'distance than {self.distance:g} makes more groups.')
        train, valid = next(GroupKFold(folds).split(X, groups=groups))
        return X[train], X[valid], y[train], y[valid]


def lookalikes(X, y, distance=0.6):
    """Number the groups of faces that look alike: average linkage of `descriptors`.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    seen = descriptors(X, y)
    distances = np.clip(1 - seen @ seen.T, 0, None)
    np.fill_diagonal(distances, 0)
    return fcluster(average(squareform(distances, checks=False)), distance, 'distance')


def descriptors(X, y, size=32, blur=16):
    """Say what a face looks like, whatever its place, size, turn and light.

    The points of each face are brought onto the mean face, and the pixels with them; what is
    wider than `blur` pixels is taken away, and what is left is divided by its deviation around.

    Parameters
    ----------
    X : ndarray, shape (n, 1, height, width)
    y : ndarray, shape (n, 2k)
        Points in [-1, 1] from edge to edge; NaN where there is none.

    Returns
    -------
    ndarray of float32, shape (n, size * size)
        Each of mean 0 and length 1: their products are correlations.
    """
    cv2 = _opencv()
    images = np.asarray(X, np.float32)[:, 0]
    height, width = images.shape[1:]
    points = (y.reshape(len(y), -1, 2) + 1) * np.array([width, height]) / 2
    mean = np.nanmean(points, axis=0)
    found = np.empty((len(images), size, size), np.float32)
    for number, (image, own) in enumerate(zip(images, points)):
        image = cv2.warpAffine(image, similarity(own, mean), (width, height),
                               flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        image = image - cv2.GaussianBlur(image, (0, 0), blur)
        around = cv2.GaussianBlur(image * image, (0, 0), blur)
        found[number] = cv2.resize(image / np.sqrt(around + 4e-4), (size, size),  # 0.02 of [0, 1]
                                   interpolation=cv2.INTER_AREA)
    found = found.reshape(len(found), -1)
    found -= found.mean(axis=1, keepdims=True)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
