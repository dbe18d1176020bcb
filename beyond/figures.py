"""What all figures share: the colours, faces with their points, and how a figure becomes a file."""
import numpy as np
from matplotlib import pyplot
from PIL import Image

from theano_today.nets.files import replacing

from .runs import record

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLACK, BLUE, RED, GREEN = '#000000', '#0072B2', '#D55E00', '#009E73'
PINK, SKY, YELLOW = '#CC79A7', '#56B4E9', '#F0E442'
OLIVE = '#999933'   # Tol's, for where their orange would be too near to RED

NETS = [BLUE, OLIVE, GREEN, PINK, SKY, BLACK]       # beside a mean in RED
RUNS = [BLUE, RED, GREEN, PINK, SKY, OLIVE, BLACK]

DPI = 120   # pixels an inch of every figure


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
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


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
        axis.set(visible=True, xticks=[0, 48, 95], yticks=[0, 48, 95])
        draw(face, points, axis)
    fig.suptitle(title)
    fig.supxlabel('x (pixels)')
    fig.supylabel('y (pixels)')
    write_figure(fig, fname)


def write_marked(image, faces, fname, smallest=640, largest=1600):
    """Write a picture in which faces are numbered and their points marked.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width) or (height, width, 3)
    faces : data.photos.Faces
    fname : str
    smallest, largest : float
        Pixels of the longer side of what is written.
    """
    height, width = image.shape[:2]
    scale = np.clip(max(height, width), smallest, largest) / max(height, width)
    fig = pyplot.figure(figsize=(width * scale / DPI, height * scale / DPI))
    axis = fig.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    if scale < 1:
        image = Image.fromarray(image).resize((round(width * scale), round(height * scale)),
                                              reducing_gap=3)
    axis.imshow(image, cmap='gray', vmin=0, vmax=255,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for number, (points, (x, y, side, _)) in enumerate(zip(faces.points, faces.boxes), 1):
        dot = np.clip(0.025 * side * scale, 2, 9) * 72 / DPI  # its diameter in points
        axis.scatter(*points.T, marker='o', s=dot ** 2, facecolor=YELLOW, edgecolor='black',
                     linewidth=dot / 6)
        axis.add_patch(pyplot.Rectangle((x, y), side, side, fill=False, edgecolor=YELLOW,
                                        linewidth=dot / 4))
        axis.text(x, y, f' {number} ', fontsize=8, color='black',
                  verticalalignment='top', clip_on=True,
                  bbox=dict(facecolor=YELLOW, edgecolor='none', pad=1))
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    write_figure(fig, fname)


def write_curves(fig, axis, fname, lowest, highest):
    """Say which lines are which, show errors up to `highest`, from `lowest` or below, and write."""
    axis.plot([], [], color='gray', linewidth=3, label='solid: validation')
    axis.plot([], [], color='gray', linewidth=3, linestyle='--', alpha=0.6,
              label='dashed: training')
    fig.legend(loc='outside lower center', ncols=3)
    least = axis.dataLim.ymin
    axis.set_ylim((least * 0.95 if least < lowest else lowest, highest))
    axis.grid()
    write_figure(fig, fname)


def write_figure(fig, fname):
    """Write a figure as PNG; show it too where there is a display."""
    with replacing(fname) as f:
        fig.savefig(f, format='png', dpi=DPI)
    print(f'Wrote {fname}.')
    record.keep(fname)
    if pyplot.get_backend().lower() == 'agg':  # no display
        pyplot.close(fig)
    else:
        pyplot.show(block=False)
