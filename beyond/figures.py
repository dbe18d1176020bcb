"""What all figures share: the colours, faces with their points, and how a figure becomes a file."""
from matplotlib import pyplot

from theano_today.nets.files import replacing

from .runs import record

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLACK, BLUE, RED, GREEN = '#000000', '#0072B2', '#D55E00', '#009E73'
PINK, SKY, YELLOW = '#CC79A7', '#56B4E9', '#F0E442'
OLIVE = '#999933'   # Tol's, for where their orange would be too near to RED

NETS = [BLUE, OLIVE, GREEN, PINK, SKY, BLACK]       # beside a mean in RED
RUNS = [BLUE, RED, GREEN, PINK, SKY, OLIVE, BLACK]


def plot_face(image, points, axis):
    """Draw a face and its points.

    Parameters
    ----------
    image : ndarray, shape (height, width)
        Pixels in [0, 1].
    points : ndarray, shape (2k,)
        x and y of k points in turn, in pixels.
    axis : matplotlib Axes
    """
    axis.imshow(image, cmap='gray', vmin=0, vmax=1)
    # Light marks with a dark rim are seen on skin, hair and background, in print too.
    axis.scatter(points[0::2], points[1::2], marker='o', s=14, facecolor=YELLOW, edgecolor='black',
                 linewidth=0.7)
    axis.set_xlim(-0.5, image.shape[1] - 0.5)
    axis.set_ylim(image.shape[0] - 0.5, -0.5)


def write_page(X, y, draw, fname, title):
    """Write a page of the first 16 faces with their points.

    Parameters
    ----------
    X, y : sequences
        Of faces and their points.
    draw : callable
        Draws one: ``draw(face, points, axis)``.
    fname, title : str
    """
    fig, axes = pyplot.subplots(4, 4, figsize=(8, 8.6), sharex=True, sharey=True,
                                layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, face, points in zip(axes.flat, X, y):
        axis.set_visible(True)
        axis.set_xticks([0, 48, 95])
        axis.set_yticks([0, 48, 95])
        draw(face, points, axis)
    fig.suptitle(title)
    fig.supxlabel('x (pixels)')
    fig.supylabel('y (pixels)')
    write_figure(fig, fname)


def write_figure(fig, fname):
    """Write a figure as PNG; show it too where there is a display."""
    with replacing(fname) as f:
        fig.savefig(f, format='png', dpi=120)
    print(f'Wrote {fname}.')
    record.keep(fname)
    if pyplot.get_backend().lower() == 'agg':  # no display
        pyplot.close(fig)
    else:
        pyplot.show(block=False)
