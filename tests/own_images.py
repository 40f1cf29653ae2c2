"""Small data sets in the formats of docs/own_data.md, and the configs of that page."""

import re
import struct
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]


def write_fashion(folder, train=96, test=40):
    """Digits as the unpacked files of Fashion-MNIST: 28 x 28, in the idx format."""
    folder.mkdir(parents=True)
    images, labels = load_digits(return_X_y=True)
    images = np.stack([cv2.resize(i.reshape(8, 8), (28, 28)) for i in images[: train + test]])
    images = (images * 15).clip(0, 255).astype(np.uint8)
    for name, part in (('train', slice(0, train)), ('t10k', slice(train, train + test))):
        for kind, data in (('images-idx3', images[part]), ('labels-idx1', labels[part])):
            header = struct.pack(f'>I{data.ndim}I', 0x800 + data.ndim, *data.shape)
            (folder / f'{name}-{kind}-ubyte').write_bytes(header + data.astype(np.uint8).tobytes())


def write_photos(folder, train=30, test=8):
    """Three classes of colour images, 40 x 56 or 56 x 40, in folders of their names."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    for digit, name in enumerate(('circles', 'lines', 'swans')):
        chosen = images[labels == digit][: train + test]
        for index, image in enumerate(chosen):
            part = folder / ('train' if index < train else 'test') / name
            part.mkdir(parents=True, exist_ok=True)
            size = (40, 56) if index % 2 else (56, 40)
            gray = cv2.resize(image.reshape(8, 8) / 16, size).clip(0, 1)
            colour = gray[..., None] * rng.uniform(100, 255, 3)
            cv2.imwrite(str(part / f'{index}.png'), colour.astype(np.uint8))


def write_page(folder):
    """The configs of the page, below a folder in which ``configs/`` lies too."""
    page = (ROOT / 'docs/own_data.md').read_text(encoding='utf-8')
    configs = re.findall(r'`(own/\w+\.py)`:\n\n```python\n(.*?)^```$', page, re.M | re.S)
    assert len(configs) == 6
    for name, text in configs:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding='utf-8')


def prepare(folder=Path()):
    """All that the commands of the page need."""
    write_fashion(folder / 'data/fashion-mnist')
    write_photos(folder / 'data/photos')
    write_page(folder)
