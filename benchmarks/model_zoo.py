#!/usr/bin/env python
"""Costs the networks of mmpretrain's and mmdet's configs, beside what their metafiles publish.

``python benchmarks/model_zoo.py --out docs/model_zoo.md``

One config of every folder: the first that builds, of those with published flops if there are such.
Nothing is downloaded: what would be is listed with the line that tools/cost.py says of it.
Each config has a process of its own, with a limit of time.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# How many configs of a folder are tried until one builds.
TRIES = 2

TEXT = """# Costs of other people's configs

One config of every folder of mmpretrain's and mmdet's `configs/`: the first that builds without
downloads, of those that the folder's metafile publishes flops of if there are such. Made by
`python benchmarks/model_zoo.py --out docs/model_zoo.md` with onedl-mmpretrain {mmpretrain} and
onedl-mmdetection {mmdet}; seconds on one thread of a CPU, the imports left out. `G` are billions
of multiply-adds of the network at the shape (height x width, or tokens) that the config's test
pipeline makes, `M` millions of parameters. Folders none of whose first {tries} configs is counted
are listed below each table, with what the tool says of the first.

"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--package', choices=('mmpretrain', 'mmdet'), nargs='+',
                        default=['mmpretrain', 'mmdet'])  # fmt: skip
    parser.add_argument('--folder', nargs='+', help='only these folders')
    parser.add_argument('--limit', type=int, default=120, help='seconds for a config')
    parser.add_argument('--out', type=Path, help='Markdown file (default: print)')
    return parser.parse_args()


def configs_of(package: str) -> Path:
    """The folder of configs that an installed package brings."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / '.mim' / 'configs'


def published(folder: Path) -> dict[str, dict[str, float]]:
    """Numbers of the metafile of a folder by the name of the config."""
    import yaml

    path = folder / 'metafile.yml'
    content = yaml.safe_load(path.read_text(encoding='utf-8')) if path.is_file() else None
    models = (content or {}).get('Models') or [] if isinstance(content, Mapping) else content or []
    found = {}
    for model in models:
        about = {str(k).lower(): v for k, v in (model.get('Metadata') or {}).items()}
        numbers = {key: about[key] for key in ('flops', 'parameters') if about.get(key)}
        if model.get('Config'):
            found.setdefault(Path(model['Config']).name, numbers)
    return found


def candidates(
    package: str, only: list[str] | None
) -> Iterator[list[tuple[str, Path, dict[str, float]]]]:
    """Of every folder names, paths and published numbers of its first configs."""
    root = configs_of(package)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(folder.rglob('*.py'), key=lambda path: (len(path.parts), path))
        files = [
            path for path in files if '_base_' not in path.parts and not path.name.startswith('_')
        ]
        if not files or folder.name.startswith('_') or (only and folder.name not in only):
            continue
        numbers = published(folder)
        known = [path for path in files if numbers.get(path.name, {}).get('flops')]
        first = [*known, *(path for path in files if path not in known)][:TRIES]
        yield [
            (str(path.relative_to(root).with_suffix('')), path, numbers.get(path.name, {}))
            for path in first
        ]


def cost(path: Path) -> dict[str, Any]:
    """What the tool says of a config: its cost, or one line."""
    from mmscale.apis.model_cost import count_network
    from mmscale.apis.networks import find_network, quiet_log
    from mmscale.errors import MMScaleError, one_line

    start = time.perf_counter()
    try:
        with quiet_log(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            network = find_network(path)
            counted = count_network(network, memory=False)
    except MMScaleError as error:
        return {'error': one_line(error)}
    return {
        'shape': network.image_shape[-2:] if len(network.image_shape) > 1 else network.image_shape,
        'source': network.shape_source,
        'flops': counted.flops,
        'params': counted.params,
        'uncounted': counted.uncounted,
        'seconds': time.perf_counter() - start,
    }


def _answer(path: Path, answers: Any) -> None:
    try:
        answers.send(cost(path))
    except Exception as error:  # noqa: BLE001  a benchmark shows what is not one line yet
        answers.send({'error': f'traceback: {type(error).__name__}: {error}'})


def in_a_process(path: Path, limit: int) -> dict[str, Any]:
    """The same in a process of its own, which has the imports of this one."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=_answer, args=(path, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(limit) else {'error': f'no answer in {limit} s'}
    except EOFError:
        found = {'error': 'the process ended without an answer (memory?)'}
    process.kill()
    process.join()
    return found


def row(name: str, found: Mapping[str, Any], said: Mapping[str, float]) -> str:
    """A line of the table."""
    flops, params = found['flops'] / 1e9, found['params'] / 1e6
    shape = ' x '.join(map(str, found['shape']))
    if found['source'] == 'an assumption':
        shape += ' (assumed)'
    cells = [name, shape, f'{flops:,.2f}', f'{params:,.2f}']
    for key, ours, unit in (('flops', flops, 1e9), ('parameters', params, 1e6)):
        value = said.get(key)
        is_number = isinstance(value, (int, float))
        cells.append(f'{value / unit:,.2f} ({ours * unit / value - 1:+.1%})' if is_number else '')
    return '| ' + ' | '.join([*cells, f'{found["seconds"]:.1f}']) + ' |'


def main() -> None:
    args = parse_args()
    # Nothing is to be downloaded, and nobody is to wait for it.
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')
    for proxy in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        os.environ[proxy] = 'http://127.0.0.1:9'
    import torch

    from mmscale.quiet import quiet_imports

    with quiet_imports():
        import mmscale.datasets
        import mmscale.models  # noqa: F401
    torch.set_num_threads(1)
    versions, parts = {}, []
    for package in args.package:
        versions[package] = importlib.import_module(package).__version__
        with quiet_imports():
            importlib.import_module(f'{package}.models')
            importlib.import_module(f'{package}.datasets')
        rows, failures = [], []
        root = f'{configs_of(package)}{os.sep}'
        installed = f'{configs_of(package).parents[2]}{os.sep}'
        for tried in candidates(package, args.folder):
            reasons = []
            for name, path, said in tried:
                found = in_a_process(path, args.limit)
                if 'error' not in found:
                    rows.append(row(name, found, said))
                    break
                reason = found['error'].replace(root, '').replace(installed, '')
                reason = ' '.join(reason.split())
                reasons.append(f'* `{name}`: {reason:.200}')
                print(reasons[-1], flush=True)
            else:
                failures.append(reasons[0])
                continue
            print(rows[-1], flush=True)
        head = '| config | shape | G | M | published G (ours) | published M (ours) | s |'
        parts += [f'## {package}', '', head, '|---|---|---|---|---|---|---|', *rows, '']
        if failures:
            parts += [f'{len(failures)} folders are not counted:', '', *failures, '']
    if args.out is not None:
        known = {'mmpretrain': '-', 'mmdet': '-', 'tries': TRIES} | versions
        args.out.write_text(TEXT.format(**known) + '\n'.join(parts), encoding='utf-8')


if __name__ == '__main__':
    main()
