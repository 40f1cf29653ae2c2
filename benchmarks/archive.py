#!/usr/bin/env python
"""How long an archive of many entries takes to open, what memory it holds, and a look-up's time.

``python benchmarks/archive.py --entries 1000000``

The entries have Archs of a given preset and random digests, two ranks share them.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from mmscale.arch import get_arch
from mmscale.cost import count
from mmscale.search import Archive, Entry, Score

FINGERPRINT = {'weights': 'benchmark'}
RANKS = 2
LOOKUPS = 100_000


def write(directory: Path, entries: int, preset: str) -> int:
    """Writes an archive; returns its bytes."""
    from mmscale.search.entry import key_of, make_header, make_line

    arch = get_arch(preset)
    data = json.loads(Entry(arch, count(arch), Score(0, 50_000)).to_line())['entry']
    header = make_header(FINGERPRINT)
    key = key_of(header.encode())
    directory.mkdir()
    for rank in range(RANKS):
        with (directory / f'rank{rank:04d}.jsonl').open('w', encoding='utf-8') as file:
            file.write(header + '\n')
            for i in range(rank, entries, RANKS):
                score = {'correct': i * 7919 % 50_000, 'total': 50_000}
                file.write(make_line('entry', {**data, 'digest': digest(i), 'score': score}, key))
                file.write('\n')
    return sum(path.stat().st_size for path in directory.iterdir())


def digest(number: int) -> str:
    """A digest of its own for every number."""
    return f'{number * 0x9E3779B97F4A7C15 % (1 << 256):064x}'


class Named:
    """What an archive looks at to find an Arch."""

    def __init__(self, name: str) -> None:
        self.digest = name


def memory() -> int:
    """Bytes that this process holds now."""
    pages = int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1])
    return pages * resource.getpagesize()


def measure(directory: Path, entries: int) -> list[str]:
    """Opens the archive, looks entries up; the numbers of a row."""
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    archive = Archive.open_existing(directory)
    opened, opened_cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(archive) == entries
    held = memory() - before
    names = [Named(digest(i * 31 % (2 * entries))) for i in range(LOOKUPS)]
    start = time.process_time()
    known = sum(archive.score(name) is not None for name in names)
    looked_up = (time.process_time() - start) / LOOKUPS
    return [
        f'{entries:>9,}',
        f'{opened:8.2f}',
        f'{opened_cpu:8.2f}',
        f'{held / 1e6:8.0f}',
        f'{1e6 * looked_up:8.2f}',
        f'{known / LOOKUPS:8.0%}',
    ]


def main() -> None:
    """Measures growing archives up to the number of entries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--entries', type=int, default=100_000, help='most of them')
    parser.add_argument('--preset', default='scalenet-s1', help='whose Arch they have')
    args = parser.parse_args()
    if args.entries < 1000:
        parser.error(f'--entries {args.entries} must be 1000 or more')
    print('  entries   opened       CPU     held  look-up    found     file')
    print('                 s         s       MB       µs                 MB')
    for entries in sorted({args.entries // 100, args.entries // 10, args.entries}):
        with tempfile.TemporaryDirectory() as folder:
            size = write(Path(folder) / 'archive', entries, args.preset)
            row = measure(Path(folder) / 'archive', entries)
            print(*row, f'{size / 1e6:8.0f}', flush=True)


if __name__ == '__main__':
    main()
