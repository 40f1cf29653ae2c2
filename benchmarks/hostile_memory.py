#!/usr/bin/env python
"""Peak memory of the tools on hostile files, beside that on an honest one of the same kind.

    python benchmarks/hostile_memory.py [--only TEXT]

Each line is one process. The exit code is 1 if one takes over a gigabyte more than the honest case
of its entry point, or runs for over five minutes. What is large of a hostile file are holes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mmscale.arch import Arch, Block, Head, Stem, get_arch
from mmscale.tables import make_table

ROOT = Path(__file__).resolve().parent.parent
MOST_MORE = 10**9
# Peaks above this end a process.
MOST_BYTES = 8 * 10**9
SECONDS = 300
SPARSE = 20 * 10**9
HONEST = 'honest'


def write_inputs(folder: Path) -> None:
    """Writes the honest files: an Arch, its weights, and the result of a search that found it."""
    import torch
    from safetensors.torch import save_file

    from mmscale.apis.networks import build_network, find_network

    arch = get_arch('scalenet-s0')
    arch = replace(arch, resolution=32, head=replace(arch.head, num_classes=10))
    arch.save(folder / f'arch-{HONEST}.json')
    weights = build_network(arch).state_dict()
    torch.save({'state_dict': weights}, folder / f'weights-{HONEST}.pth')
    save_file(weights, folder / f'safe-{HONEST}.safetensors')
    for tool, config in (('test', 'scalenet/digits-s0.py'), ('train', 'scalenet/digits-s0.py'),
                         ('prune', 'dms/dms-digits-s2.py')):  # fmt: skip
        network = find_network(ROOT / 'configs' / config).build()
        torch.save({'state_dict': network.state_dict()}, folder / f'{tool}-{HONEST}.pth')
    result = dict(schema=1, settings={}, scaling_stages=[dict(arch=arch.to_json())])
    (folder / f'result-{HONEST}.json').write_text(json.dumps(result), encoding='utf-8')


def write_archs(folder: Path) -> None:
    """Writes Archs that are allowed and too large."""

    def blocks(count: int, width: int) -> tuple[tuple[Block, ...], ...]:
        first = Block('basic', 3, 1, 16, width, width, 1, act='relu')
        return ((first, *[replace(first, in_channels=width)] * (count - 1)),)

    for name, stages in (
        ('10 GB', blocks(40, 2**11)),
        ('4096 blocks', blocks(4096, 64)),
        ('the largest', blocks(4096, 2**20)),
    ):
        Arch(32, Stem(16), stages, Head(num_classes=10)).save(folder / f'arch-{name}.json')


def write_texts(folder: Path) -> None:
    """Writes JSON files that are large or become so: as Archs, and as results of searches."""
    count = 2**24  # what is allowed
    for kind in ('arch', 'result'):
        for name, start, one, end in (
            ('empty objects', '{"settings": {}, "stages": [', '{},', '0]}'),
            ('objects', '{"settings": {}, "stages": [', '{"":0},', '0]}'),
            ('lists', '{"settings": {}, "stages": [', '[0],', '0]}'),
            ('depth', '', '[', ''),
            ('emoji', '"\U0001f600', 'a', '"'),
        ):
            text = f'{start}{one * ((count - len(start) - 8) // len(one))}{end}'
            (folder / f'{kind}-{name}.json').write_text(text, encoding='utf-8')
        _sparse(folder / f'{kind}-sparse.json', b'{"settings": ')


def _sparse(path: Path, start: bytes, size: int = SPARSE) -> None:
    with path.open('wb') as file:
        file.write(start)
        file.truncate(size)


def _zip(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipFile:
    """A file as torch writes it, up to the storages."""
    archive = zipfile.ZipFile(path, 'w', compression)
    archive.writestr('a/data.pkl', b'\x80\x02' + pickled + b'.')
    archive.writestr('a/version', b'3\n')
    return archive


def write_checkpoints(folder: Path) -> None:
    """Writes checkpoints that are small on the disk, and what they stand for is not."""
    import torch

    many = 2**27

    def path(name: str) -> Path:
        return folder / f'weights-{name}.pth'

    for name, pickled in (
        ('sets', b'](' + b'\x8f' * many + b'e'),
        ('dicts', b'](' + b'}' * many + b'e'),
        ('memo', b'N' + b'\x94' * many),
        ('buffers', b'](cmmengine.logging.history_buffer\nHistoryBuffer\nq\x00'
         + b'h\x00)\x81' * (many // 4) + b'e'),
        ('texts', b'](' + (b'X' + struct.pack('<I', 2**25) + '\U0001f600'.encode()
         + b'a' * (2**25 - 4)) * 4 + b'e'),
        ('copies', b'(c_codecs\nencode\nq\x00X' + struct.pack('<I', 2**20) + b'a' * 2**20
         + b'q\x01X\x06\x00\x00\x00latin1q\x02](' + b'h\x00h\x01h\x02\x86R' * 5000 + b'et'),
        ('announced bytes', b'\x96' + struct.pack('<Q', 2**33)),
        ('long number', b'\x8b' + struct.pack('<I', 2**26) + b'\x01' * 2**26),
    ):  # fmt: skip
        _zip(path(name), pickled).close()
    with (
        _zip(path('deflated'), b'}', zipfile.ZIP_DEFLATED) as archive,
        archive.open('a/data/0', 'w', force_zip64=True) as record,
    ):
        for _ in range(3000):
            record.write(bytes(10**6))
    with zipfile.ZipFile(path('records'), 'w') as archive:
        for i in range(300_000):
            archive.writestr(f'a/data/{i}', b'')
    # Two lists of records: the one in the middle is torch's, the one at the end is Python's.
    hidden = path('deflated').read_bytes()
    path('two lists').write_bytes(hidden[:-22] + _list_and_end(hidden))
    big = 4 * 10**9
    torch.save({'state_dict': {'a': torch.zeros(2**20, dtype=torch.uint8)}}, path('small'))
    _stretch(path('small'), path('sparse'), 2**20, big)
    path('small').unlink()
    base = torch.zeros(2**23)
    torch.save({f'w{i}': base.view(2**10, 2**13) for i in range(1000)}, path('repeated'))
    _sparse(path('old and sparse'), b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.')
    header = f'{"pax":<100}'.encode().replace(b' ', b'\x00') + b'0000644\x00' * 3
    header += f'{big:011o}\x00'.encode() + b'00000000000\x00' + b' ' * 8 + b'x' + bytes(355)
    checksum = f'{sum(header[:512]):06o}\x00 '.encode()
    _sparse(path('tar'), header[:148] + checksum + header[156:512])
    empty = dict(dtype='U8', shape=[0], data_offsets=[0, 0])
    for name, text, size in (
        ('sparse', {'a': dict(dtype='U8', shape=[big], data_offsets=[0, big])}, big),
        ('header', {f'{i}': empty for i in range(10**6)}, 0),
    ):
        content = json.dumps(text).encode()
        start = struct.pack('<Q', len(content)) + content
        _sparse(folder / f'safe-{name}.safetensors', start, len(start) + size)


def _list_and_end(content: bytes) -> bytes:
    """The list and the end of a zip file of one empty record, to stand behind another list."""
    name = b'a/data.pkl'
    entry = struct.pack('<4s6H3L5H2L', b'PK\x01\x02', 20, 20, 0, 0, 0, 0, 0, 3, 3, len(name), 0, 0,
                        0, 0, 0, 0) + name  # fmt: skip
    _, _, _, _, _, _, offset, _ = struct.unpack('<4s4H2LH', content[-22:])
    return entry + struct.pack('<4s4H2LH', b'PK\x05\x06', 0, 0, 1, 1, len(entry), offset, 0)


def _stretch(source: Path, out: Path, size: int, wanted: int) -> None:
    """Copies a checkpoint with one storage, of which a hole of the wanted size is made."""
    with zipfile.ZipFile(source) as old:
        pickled = old.read(next(name for name in old.namelist() if name.endswith('data.pkl')))
        number = b'J' + struct.pack('<i', size)
        assert number in pickled
        pickled = pickled.replace(number, b'\x8a\x06' + wanted.to_bytes(6, 'little'))
    with zipfile.ZipFile(out, 'w') as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/version', b'3\n')
        with archive.open('a/data/0', 'w', force_zip64=True):
            pass
        record = archive.getinfo('a/data/0')
        place = archive.start_dir
        record.file_size = record.compress_size = wanted
        for _ in range(wanted // 10**6):
            record.CRC = zlib.crc32(bytes(10**6), record.CRC)
        archive.fp.seek(place + wanted)
        archive.start_dir = place + wanted
        archive._didModify = True


def write_all(folder: Path) -> None:
    """Writes all files."""
    for write in (write_inputs, write_archs, write_texts, write_checkpoints):
        write(folder)


def cases(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Entry points, kinds of input (the honest one first), and commands."""
    arch, weights = f'{folder}/arch-{HONEST}.json', f'{folder}/weights-{HONEST}.pth'
    out = f'--out {folder}/out'
    digits = f'{ROOT}/configs/scalenet/digits-s0.py'
    training = f'tools/train.py {digits} --work-dir {folder}/out'
    tools = {
        'export --checkpoint': f'tools/export.py {arch} {out} --formats mmpretrain --checkpoint @',
        'convert': f'tools/convert.py @ {arch} --to timm {out}.pth',
        'test': f'tools/test.py {digits} --work-dir {folder}/out @',
        'train load_from': f'{training} --cfg-options train_cfg.max_iters=1 load_from=@',
        'train --resume': f'{training} --resume @',
        'prune': f'tools/prune.py {ROOT}/configs/dms/dms-digits-s2.py @ {out}',
        'export': f'tools/export.py @ --checkpoint {weights} {out} --formats mmpretrain',
        'cost': 'tools/cost.py @',
        'scale': 'tools/scale.py @ --factor 2',
        'report': f'tools/report.py @ {out}',
        'build': f'{folder}/build.py @',
    }
    (folder / 'build.py').write_text('import sys, mmscale; mmscale.build(sys.argv[1])')
    few = ('sets', 'sparse', 'deflated')
    trained = ('test', 'train load_from', 'train --resume', 'prune')
    for entry, kind, only in (
        *((name, kind, None) for name in ('export --checkpoint', 'convert')
          for kind in ('weights', 'safe')),
        *((name, 'weights', few) for name in trained),
        *((name, 'arch', None) for name in ('export', 'cost', 'scale', 'report')),
        *((name, 'result', None) for name in ('export', 'cost')),
        # Of the large ones a user who builds them has asked for all their memory.
        ('build', 'arch', ('the largest', 'objects', 'sparse')),
    ):  # fmt: skip
        for path in sorted(
            folder.glob(f'{kind}-*'), key=lambda path: (HONEST not in path.name, path)
        ):
            name = path.stem.partition('-')[2]
            if only is None or name in (HONEST, *only):
                if name == HONEST and entry in ('test', 'train load_from', 'prune'):
                    path = folder / f'{entry.split()[0]}-{HONEST}.pth'
                words = [word.replace('@', str(path)) for word in tools[entry].split()]
                yield f'{entry} ({kind})', name, words


def run(words: list[str]) -> tuple[int, int, float, str]:
    """Peak memory in bytes, exit code, seconds and last line of a process."""
    start = time.monotonic()
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )  # fmt: skip
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            pages = int(Path(f'/proc/{process.pid}/statm').read_text().split()[1])
            if (
                time.monotonic() - start > SECONDS
                or pages * os.sysconf('SC_PAGESIZE') > MOST_BYTES
            ):
                process.kill()
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = log.read().split('\n')
    last = next((line for line in reversed(lines) if line.strip()), '')
    seconds = time.monotonic() - start
    return usage.ru_maxrss << 10, process.returncode, seconds, last


def main() -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default='', help='entry points and kinds with this in the name')
    only = parser.parse_args().only
    rows, failed, honest = [], False, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What this process takes would count as memory of those that it starts.
        writer = multiprocessing.get_context('spawn').Process(target=write_all, args=(folder,))
        writer.start()
        writer.join()
        for entry, kind, words in cases(folder):
            if only not in f'{entry} {kind}' and (kind != HONEST or only not in entry):
                continue
            shutil.rmtree(folder / 'out', ignore_errors=True)
            peak, code, seconds, last = run(words)
            more = peak - honest.setdefault(entry, peak)
            is_bad = more > MOST_MORE or code < 0
            failed |= is_bad
            cells = (f'{peak / 1e6:,.0f}', f'{more / 1e6:+,.0f}', f'{seconds:.0f}', code)
            mark = 'OVER' if is_bad else ''
            rows.append((entry, kind, *cells, mark, last.replace(name, '')[-90:]))
            print(*rows[-1], sep=' | ', file=sys.stderr, flush=True)
    columns = ('entry point', 'file', 'peak, MB', 'beyond honest', 's', 'exit', '', 'last line')
    Console(width=200).print(make_table('Peak memory on hostile files', columns, rows))
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
