"""Pieces of a web page in one file: elements, tables, pictures; no script, nothing from elsewhere.

A page is built as a tree of elements and written at the end, so that text is escaped wherever it
comes from and each tag is closed:

    body = E('body', E('h1', 'Points < 3 pixels'), table(['point', 'RMSE'], [['nose tip', '1.9']]))
    html(E('html', E('head', E('title', 'Faces')), body, lang='en'))    # bytes
"""
import base64
import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
from PIL import Image

from theano_today.nets.files import open_regular

BLOCKS = ('body', 'details', 'div', 'dl', 'figure', 'h1', 'h2', 'h3', 'head', 'header', 'li',
          'main', 'nav', 'p', 'section', 'table', 'tr')

# Each in Okabe and Ito's colours, and each with a shape of its own.
LABELLED, FOUND = '#F0E442', '#56B4E9'

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: #1d2129; font: 1.0625rem/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif; }
header, main { max-width: 62rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 2rem 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 .75rem; padding-top: .6rem;
  border-top: 2px solid #1d2129; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .4rem; }
h1, h2, h3 { text-wrap: balance; break-after: avoid; }
p, ol, dl, pre { max-width: 44rem; margin: .6rem 0; }
a { color: #005a9c; }
nav ol { columns: 16rem; padding-left: 1.4rem; font-size: .95rem; }
.note { border-left: 4px solid #E69F00; padding: .1rem 0 .1rem .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  max-width: none; margin: 1.25rem 0; }
.tiles div { border: 1px solid #c9ced6; border-radius: .4rem; padding: .7rem .9rem; }
.tiles dt { font-size: .9rem; }
.tiles dd { margin: 0; font-size: .9rem; color: #4a5260; }
.tiles .value { font-size: 1.7rem; line-height: 1.3; font-weight: 650; color: #1d2129; }
table { border-collapse: collapse; font-size: .94rem; line-height: 1.35; margin: .75rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; color: #4a5260; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 1px solid #1d2129; vertical-align: bottom; overflow-wrap: normal; }
tbody th { font-weight: 400; overflow-wrap: break-word; }
small { display: block; font-size: .86em; font-weight: 400; color: #4a5260; max-width: 40em; }
th small { max-width: 24em; white-space: normal; }
th span, .whole { white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid #e2e5ea; }
tr.sum > * { border-top: 1px solid #1d2129 !important; font-weight: 650; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
thead .number { white-space: normal; }
thead .group { text-align: center; border-bottom: 0; }
.bar { display: block; width: min(16rem, 30vw); height: 1.1em; }
.wide { overflow-x: auto; }
code, pre { font: .88em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: #f4f5f7; padding: .7rem .9rem; border-radius: .4rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: #005a9c; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { font-size: .9rem; line-height: 1.4; color: #4a5260; }
img { max-width: 100%; height: auto; }
.faces { display: grid; grid-template-columns: repeat(6, 1fr); gap: .75rem; margin: .4rem 0 1rem; }
.faces.half { grid-template-columns: repeat(3, 1fr); }
.pairs { display: grid; grid-template-columns: 1fr 1fr; gap: 0 .75rem; }
.pairs p { margin: 0; }
.faces figure { margin: 0; }
.faces svg, .maps svg { display: block; width: 100%; height: auto; border-radius: .25rem;
  background: #ddd; }
figcaption b { color: #1d2129; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem;
  max-width: none; }
.maps svg { max-width: 24rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr));
  gap: .5rem 2rem; }
.curves > div { break-inside: avoid; }
.key svg { height: 1em; width: 1.2em; vertical-align: -.1em; border-radius: .15em; }
.filters { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0 1rem; }
.filters img { width: 100%; image-rendering: pixelated; display: block; }
@media (max-width: 36rem) {
  .faces { grid-template-columns: repeat(3, 1fr); gap: .5rem; }
  .faces figcaption { font-size: .8rem; }
  .filters { grid-template-columns: 1fr 1fr; }
  .wide th, .wide td { padding-right: .3rem; }
  .stacked thead { position: absolute; clip-path: inset(50%); }
  .stacked tr { display: grid; grid-template-columns: 1fr 1fr 1fr; padding: .3rem 0; }
  .stacked th { grid-column: 1 / -1; }
  .stacked td { border: 0 !important; text-align: left; }
  .stacked td::before { content: attr(data-head); display: block; color: #4a5260; }
  .pairs { grid-template-columns: 1fr; }
  table { font-size: .86rem; }
  th, td { padding-right: .5rem; }
  h1 { font-size: 1.45rem; }
}
@media print {
  body { font-size: 10.5pt; }
  header, main { max-width: none; padding: 0; }
  nav { display: none; }
  tr, p, h3, .tiles div, .faces, .pairs { break-inside: avoid; }
  section > p, caption, thead { break-after: avoid; }
  .curves { grid-template-columns: 1fr 1fr; }
  .maps { grid-template-columns: 1fr 1fr 1fr; }
  a { color: inherit; text-decoration: none; }
}
"""


def E(tag, *content, **attributes):
    """Return an element.

    Parameters
    ----------
    tag : str
    content : Element, str, number or None
        Text is escaped when the page is written.  None is left out.
    attributes
        `class_` for class; other underscores stand for hyphens.  None and False are left out.

    Returns
    -------
    xml.etree.ElementTree.Element
    """
    element = ElementTree.Element(tag, {
        name.rstrip('_').replace('_', '-'): str(value) for name, value in attributes.items()
        if value is not None and value is not False})
    for part in content:
        if part is None:
            continue
        if isinstance(part, ElementTree.Element):
            element.append(part)
        elif len(element):
            element[-1].tail = (element[-1].tail or '') + str(part)
        else:
            element.text = (element.text or '') + str(part)
    if tag in BLOCKS:
        element.tail = '\n'
    return element


def html(root):
    """Return the bytes of a page."""
    text = io.BytesIO()
    ElementTree.ElementTree(root).write(text, encoding='utf-8', method='html')
    return b'<!DOCTYPE html>\n' + text.getvalue()


def table(heads, rows, caption=None, numbers=(), groups=None, sums=0, stacked=False):
    """Return a table whose first column names the rows.

    Parameters
    ----------
    heads : sequence of str or None
        Of the columns.
    rows : sequence of sequences
        Cells: text, elements, or None for an empty one.
    caption : str, optional
    numbers : sequence of int
        Columns that are flush right.
    groups : sequence of (str, int), optional
        Heads over several columns each, beginning with the second column.
    sums : int
        How many of the last rows sum up the others.
    stacked : bool
        On a narrow screen, each row becomes a block with its heads in it.
    """
    def cell(tag, part, column, **attributes):
        return E(tag, part, class_='number' if column in numbers else None, **attributes)

    head = heads and E('tr', *[cell('th', text, column, scope='col') if text else E('td')
                               for column, text in enumerate(heads)])
    over = groups and E('tr', E('td'), *[
        E('th', text, colspan=width, scope='colgroup', class_='group') if text
        else E('td', colspan=width) for text, width in groups])
    body = [E('tr', cell('th', row[0], 0, scope='row'),
              *[cell('td', part, column, data_head=heads[column] if stacked else None)
                for column, part in enumerate(row[1:], 1)],
              class_='sum' if number >= len(rows) - sums else None)
            for number, row in enumerate(rows)]
    return E('table', caption and E('caption', caption), heads and E('thead', over, head),
             E('tbody', *body), class_='stacked' if stacked else None)


def bar(share):
    """Return a horizontal bar that fills a share, 0 to 1, of its place."""
    return E('svg', E('rect', width=100, height=10, fill='#e2e5ea'),
             E('rect', width='{:.1f}'.format(100 * share), height=10, fill='#0072B2'),
             viewBox='0 0 100 10', preserveAspectRatio='none', aria_hidden='true', class_='bar')


def note(*text):
    """Return a paragraph that says what is not on the page, and why."""
    return E('p', *text, class_='note')


def data_uri(content, kind):
    """Return bytes as an address that holds them; `kind` is image/png, ..."""
    return 'data:{};base64,{}'.format(kind, base64.b64encode(content).decode())


def png(pixels):
    """Return the address of a picture: array of bytes, (height, width) grey or (..., 3) RGB."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'png', optimize=True)
    return data_uri(content.getvalue(), 'image/png')


def svg(fig):
    """Return the address of a Matplotlib figure as a drawing; the same figure, the same bytes."""
    content = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'kfkd'}):
        fig.savefig(content, format='svg', metadata={'Date': None}, transparent=True)
    return data_uri(content.getvalue(), 'image/svg+xml')


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


# --------------------------------------------------------------------------------------- faces

def face(image, alt, labelled=None, found=None):
    """Return a face with its points, drawn as lines that are sharp at any size.

    Parameters
    ----------
    image : ndarray, shape (height, width)
        Pixels in [0, 1].
    alt : str
        What is to be seen, for those who cannot.
    labelled, found : ndarray, shape (2k,), optional
        x and y of k points in turn, in pixels.  Labels are dots; what a net finds are crosses, with
        a line to the label.
    """
    marks = []
    if found is not None and labelled is not None:
        marks.append(_path(_places('M{:.1f} {:.1f}L{:.1f} {:.1f}', labelled, found), FOUND, 0.7))
    if labelled is not None:
        dots = _places('M{:.1f} {:.1f}h0', labelled)
        marks += [_path(dots, '#000', 3.6), _path(dots, LABELLED, 2.4)]
    if found is not None:
        crosses = _places('M{:.1f} {:.1f}m-1.7-1.7l3.4 3.4m0-3.4l-3.4 3.4', found)
        marks += [_path(crosses, '#000', 1.7), _path(crosses, FOUND, 0.9)]
    return canvas(image, alt, *marks)


def canvas(image, alt, *marks, below=0):
    """Return a face, `marks` in its pixels upon it, and room below it, in pixels too."""
    height, width = image.shape
    pixels = np.uint8(np.round(255 * np.clip(image, 0, 1)))
    # The centre of the first pixel is (0, 0), as in the data.
    return E('svg', E('title', alt),
             E('image', href=png(pixels), x=-0.5, y=-0.5, width=width, height=height), *marks,
             viewBox='-0.5 -0.5 {} {}'.format(width, height + below), role='img')


def key(labelled=True, found=True):
    """Return a line that tells the marks of `face` apart."""
    blank = np.full((12, 14), 0.45)
    parts = []
    if labelled:
        parts += [face(blank, 'dot', labelled=np.array([6.5, 5.5])), ' label']
    if found:
        parts += [',  ', face(blank, 'cross', found=np.array([6.5, 5.5])), ' found by the net']
    return E('p', *parts, class_='key')


def _places(pattern, *points):
    """Write `pattern` for each point whose coordinates are all numbers."""
    places = np.hstack([np.reshape(one, (-1, 2)) for one in points])
    return ''.join(pattern.format(*place) for place in places if np.isfinite(place).all())


def _path(d, stroke, width):
    return E('path', d=d, stroke=stroke, stroke_width=width, stroke_linecap='round', fill='none')
