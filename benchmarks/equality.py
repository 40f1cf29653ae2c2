#!/usr/bin/env python
"""Records what a change that shall alter nothing must leave as it is, and compares two records.

    python benchmarks/equality.py record OUT [--root CHECKOUT] [--only PART]
    python benchmarks/equality.py compare OLD/record.json NEW/record.json

A record holds the digests of: costs of every row of ``tests/data/pycls_complexity.csv``; the
weights after 50 iterations of every training mode; ``result.json``, archive and Archs of every
search; what every kind of export does with an image. The very checkout it records runs in
processes of its own, so this file also records versions before it existed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ITERATIONS = 50
# What names or reflects the config's own text, versions and times.
LEFT_OUT = {'config_hash', 'versions', 'config', 'provenance'}

# Every config by the names it has had, the newest first.
CONFIGS = {
    'supernet': ['scalenet/supernet_digits.py'],
    'retrain': ['scalenet/digits-s1.py'],
    'dms ArchNet': ['dms/dms-digits-s2.py', 'dms/arch_net_digits.py'],
    'dms ResNet': ['dms/dms-resnet18-w16_digits.py', 'dms/resnet_18_digits.py'],
    'dms DeiT': ['dms/dms-deit-mini_digits.py', 'dms/deit_digits.py'],
    'dms GPT-2': ['dms/dms-gpt2-mini_stdlib.py', 'dms/gpt2_stdlib.py'],
    'dms Llama': ['dms/dms-llama-mini_stdlib.py', 'dms/llama_stdlib.py'],
    'distilled': ['dms/arch-net-distilled_digits.py', 'dms/retrain_dist_arch_net_digits.py'],
    'retrain pruned': ['scalenet/arch-net_digits.py', 'dms/retrain_arch_net_digits.py'],
    'detection supernet': [
        'det/retinanet_supernet_fpn_digits.py',
        'det/supernet_retinanet_digits.py',
    ],
    'detector': ['det/retinanet_digits-s2_fpn_digits.py', 'det/retinanet_digits.py'],
    'dms detector': ['det/dms-retinanet_r18-w16_fpn_digits.py', 'det/dms_retinanet_digits.py'],
    'mcea': ['scalenet/search-mcea_digits.py', 'scalenet/search_digits.py'],
    'random': ['scalenet/search-random_digits.py', 'scalenet/random_digits.py'],
    'evolution': ['scalenet/search-evolution_digits.py', 'scalenet/evolution_digits.py'],
    'scaling': ['scalenet/search-scaling_digits.py', 'scalenet/scaling_digits.py'],
    'compound': ['scalenet/search-compound_digits.py', 'scalenet/compound_digits.py'],
    'pareto': ['scalenet/search-pareto_digits.py', 'scalenet/pareto_digits.py'],
    'separate': ['scalenet/search-separate_digits.py', 'scalenet/separate_digits.py'],
    'detection search': ['det/search-mcea_retinanet_digits.py', 'det/search_retinanet_digits.py'],
}
# fmt: off
TRAININGS = {
    'supernet, sandwich': ('supernet', ['model.mode=sandwich', 'model.warmup_iters=20']),
    'supernet, single': ('supernet', ['model.mode=single', 'model.warmup_iters=0']),
    'supernet, both sides': (
        'supernet',
        ['model.mode=both_sides', 'model.warmup_iters=0', 'custom_hooks.0.sides=[left,right]'],
    ),
    'supernet, separate kernels': ('supernet', ['model.backbone.kernels=separate']),
    'supernet, sandwich on both sides': (
        'supernet',
        ['model.mode=sandwich', 'model.warmup_iters=20', 'custom_hooks.0.sides=[left,right]'],
    ),
    'supernet, sandwich of the space': (
        'supernet', ['model.mode=sandwich', 'model.warmup_iters=20', 'model.teacher=space'],
    ),
    'supernet, AdamW': (
        'supernet',
        [
            'model.mode=single', 'model.warmup_iters=0', 'optim_wrapper.optimizer._delete_=True',
            'optim_wrapper.optimizer.type=AdamW', 'optim_wrapper.optimizer.lr=0.001',
            'optim_wrapper.optimizer.weight_decay=0.05',
        ],
    ),
    'supernet, AdamW, sandwich': (
        'supernet',
        [
            'model.warmup_iters=20', 'optim_wrapper.optimizer._delete_=True',
            'optim_wrapper.optimizer.type=AdamW', 'optim_wrapper.optimizer.lr=0.001',
            'optim_wrapper.optimizer.weight_decay=0.05',
        ],
    ),
    'supernet, accumulated': (
        'supernet',
        [
            'model.mode=both_sides', 'model.warmup_iters=0', 'custom_hooks.0.sides=[left,right]',
            'optim_wrapper.accumulative_counts=3',
        ],
    ),
    # Norms of slices add up in another order than those of whole tensors with zeros: nearly equal.
    'supernet, clipped': (
        'supernet', ['model.warmup_iters=20', 'optim_wrapper.clip_grad.max_norm=0.5'],
    ),
    'supernet, averaged': (
        'supernet', ['model.warmup_iters=20', 'custom_hooks.2.type=EMAHook'],
    ),
    'supernet, recomputed': (
        'supernet', ['model.warmup_iters=20', 'model.backbone.with_cp=True'],
    ),
    'retrain': ('retrain', []),
    'dms ArchNet': ('dms ArchNet', []),
    'dms ResNet': ('dms ResNet', []),
    'dms DeiT': ('dms DeiT', []),
    'dms GPT-2': ('dms GPT-2', []),
    'dms Llama': ('dms Llama', []),
    'detection supernet': (
        'detection supernet',
        [
            'model.detector.backbone.init_cfg.checkpoint='
            f'{{out}}/train/supernet_sandwich/iter_{ITERATIONS}.pth'
        ],
    ),
    'detector': ('detector', []),
    'dms detector': ('dms detector', []),
}
# fmt: on
SEARCHES = (
    'mcea',
    'random',
    'evolution',
    'scaling',
    'compound',
    'pareto',
    'separate',
    'detection search',
)  # fmt: skip

ROWS = """
import csv, json, sys
from mmscale.arch import apply_scaling, get_arch, group_widths, scaling_rule
from mmscale.cost import count
for row in csv.DictReader(open(sys.argv[1], encoding='utf-8', newline='')):
    arch = get_arch(row['base'])
    if row['strategy'] != 'base':
        scaling = scaling_rule(row['strategy']).scaling(int(row['scale']))
        arch = apply_scaling(arch, scaling, 'pycls')
    costs = [[c.flops, c.params, c.acts] for c in (count(arch, 'pycls'), count(arch))]
    print(json.dumps([arch.digest, costs]))
"""
OUTPUTS = """
import hashlib, json, sys
import numpy, onnxruntime, torch
digests, folder = {}, sys.argv[1]
session = onnxruntime.InferenceSession(folder + '/model.onnx')
shape = [d if isinstance(d, int) else 2 for d in session.get_inputs()[0].shape]
image = numpy.random.default_rng(0).standard_normal(shape).astype('float32')
outputs = session.run(None, {session.get_inputs()[0].name: image})
program = torch.export.load(folder + '/model.pt2').module()
outputs2 = program(torch.from_numpy(image))
outputs2 = outputs2 if isinstance(outputs2, (list, tuple)) else [outputs2]
for name, found in (('onnx', outputs), ('pt2', [o.detach().numpy() for o in outputs2])):
    content = b''.join(numpy.ascontiguousarray(output).tobytes() for output in found)
    digests[name] = hashlib.sha256(content).hexdigest()
print(json.dumps(digests))
"""
STATES = """
import hashlib, json, sys
import torch
from mmscale.models.checkpoints import load_checkpoint
state = load_checkpoint(sys.argv[1])
def walk(value):
    if isinstance(value, torch.Tensor):
        yield value.detach().contiguous().flatten().numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode(); yield from walk(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from walk(part)
    else:
        yield repr(value).encode()
parts = [key for key in ('state_dict', 'optimizer') if key in state]
print(json.dumps({k: hashlib.sha256(b'|'.join(walk(state[k]))).hexdigest() for k in parts}))
"""


class Recorder:
    """Runs a checkout's tools in a folder and keeps what comes out, part by part."""

    def __init__(self, root: Path, out: Path, only: str | None) -> None:
        self.root, self.out, self.only = root.resolve(), out.resolve(), only
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / 'record.json'
        self.record = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def run(self, *command: str) -> str:
        environment = {**os.environ, 'PYTHONPATH': str(self.root), 'OMP_NUM_THREADS': '1'}
        environment['OMP_WAIT_POLICY'] = 'PASSIVE'
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.out,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f'{" ".join(command)[:300]}\n{done.stdout[-600:]}{done.stderr[-3000:]}'
            )
        return done.stdout

    def tool(self, name: str, *arguments: str) -> str:
        return self.run(str(self.root / 'tools' / f'{name}.py'), *arguments)

    def config(self, key: str) -> str:
        for name in CONFIGS[key]:
            if (self.root / 'configs' / name).is_file():
                return str(self.root / 'configs' / name)
        raise FileNotFoundError(f'{self.root} has no config for {key}')

    def part(self, name: str, make: Callable[[], object]) -> None:
        if name in self.record or (self.only and self.only not in name):
            return
        try:
            self.record[name] = make()
        except (OSError, RuntimeError, ValueError) as error:
            print(f'{name}: FAILED\n{error}', flush=True)
            return
        self.file.write_text(json.dumps(self.record, indent=1, sort_keys=True))
        print(f'{name}: {self.record[name]}'[:150], flush=True)

    def state(self, path: Path) -> dict[str, str]:
        return json.loads(self.run('-c', STATES, str(path)).splitlines()[-1])

    def train(self, name: str) -> dict[str, str]:
        key, options = TRAININGS[name]
        folder = self.out / 'train' / name.replace(', ', '_').replace(' ', '_')
        length = [f'train_cfg.max_iters={ITERATIONS}', 'default_hooks.checkpoint.interval=50']
        if (folder / f'iter_{ITERATIONS}.pth').is_file():  # of a recording that was interrupted
            return self.state(folder / f'iter_{ITERATIONS}.pth')
        self.tool(
            'train', self.config(key), '--work-dir', str(folder), '--no-validate',
            '--cfg-options', *length, *(option.format(out=self.out) for option in options),
        )  # fmt: skip
        return self.state(folder / f'iter_{ITERATIONS}.pth')

    def search(self, name: str) -> dict[str, str]:
        folder = self.out / 'work_dirs' / f'{name.replace(" ", "_")}'
        supernet = 'detection_supernet' if name == 'detection search' else 'supernet_sandwich'
        options = [f'load_from={self.out}/train/{supernet}/iter_{ITERATIONS}.pth']
        options += ['test_cfg.subnet_evaluator.max_images=150']
        options += ['test_cfg.subnet_evaluator.calibration_images=100']
        self.tool(
            'search', self.config(name), '--work-dir', str(folder), '--cfg-options', *options
        )
        if name in ('mcea', 'evolution'):  # where the configs look for a base model
            old = {'mcea': 'search_digits', 'evolution': 'evolution_digits'}[name]
            for link in (old, f'search-{name}_digits'):
                place = self.out / 'work_dirs' / link
                if not place.exists():
                    place.symlink_to(folder)
        return digests_of_search(folder)

    def export(self, name: str, *arguments: str) -> dict[str, str]:
        folder = self.out / 'export' / name
        self.tool('export', *arguments, '--out', str(folder), '--overwrite')
        found = json.loads(self.run('-c', OUTPUTS, str(folder)).splitlines()[-1])
        weights = next(path for path in folder.iterdir() if path.name == 'weights.pth')
        return {**found, **self.state(weights)}

    def prune(self) -> dict[str, str]:
        folder = self.out / 'pruned'
        self.tool(
            'prune', self.config('dms ArchNet'), str(self.out / 'train/dms_ArchNet/iter_50.pth'),
            '--out', str(folder), '--overwrite', '--recipe', self.config('retrain pruned'),
        )  # fmt: skip
        arch = hashlib.sha256((folder / 'arch.json').read_bytes()).hexdigest()
        return {'arch': arch, **self.state(folder / 'weights.pth')}


def digests_of_search(folder: Path) -> dict[str, str]:
    """Of a search's result (less what names the config), its Archs, history and archive lines."""

    def digest(chunks: Iterator[bytes]) -> str:
        return hashlib.sha256(b'\n'.join(chunks)).hexdigest()

    result = json.loads((folder / 'result.json').read_text())
    kept = {key: value for key, value in result.items() if key not in LEFT_OUT}
    return {
        'result': digest(iter([json.dumps(kept, sort_keys=True).encode()])),
        'archs': digest(path.read_bytes() for path in sorted((folder / 'archs').iterdir())),
        # Of a given family there are no events.
        'history': digest(path.read_bytes() for path in folder.glob('history.jsonl')),
        'archive': digest(path.read_bytes() for path in sorted((folder / 'archive').iterdir())),
    }


def record(root: Path, out: Path, only: str | None) -> None:
    recorder = Recorder(root, out, only)
    rows = ROOT / 'tests' / 'data' / 'pycls_complexity.csv'
    recorder.part(
        f'costs of {sum(1 for _ in csv.reader(rows.open())) - 1} golden rows',
        lambda: hashlib.sha256(recorder.run('-c', ROWS, str(rows)).encode()).hexdigest(),
    )
    for name in TRAININGS:
        recorder.part(f'training: {name}', lambda name=name: recorder.train(name))
    for name in SEARCHES:
        recorder.part(f'search: {name}', lambda name=name: recorder.search(name))
    result = str(recorder.out / 'work_dirs' / 'mcea' / 'result.json')
    recorder.part('export: result', lambda: recorder.export('result', result))
    recorder.part(
        'export: config',
        lambda: recorder.export(
            'config', recorder.config('retrain'),
            '--checkpoint', str(recorder.out / 'train/retrain/iter_50.pth'),
        ),
    )  # fmt: skip
    recorder.part(
        'export: Arch, fused',
        lambda: recorder.export(
            'arch', str(recorder.out / 'work_dirs/mcea/archs/scaling_stage_1.json'), '--fuse',
            '--checkpoint', str(recorder.out / 'work_dirs/mcea/weights/scaling_stage_1.pth'),
        ),
    )  # fmt: skip
    recorder.part('prune: ArchNet', recorder.prune)


def compare(old: Path, new: Path) -> int:
    """Prints a line per part; returns how many differ or are missing."""
    first, second = (json.loads(path.read_text()) for path in (old, new))
    wrong = 0
    for name in sorted(first.keys() | second.keys()):
        is_equal = name in first and first.get(name) == second.get(name)
        wrong += not is_equal
        which = ''
        if (
            not is_equal
            and isinstance(first.get(name), dict)
            and isinstance(second.get(name), dict)
        ):
            which = ', '.join(k for k in first[name] if first[name][k] != second[name].get(k))
        print(f'{"equal" if is_equal else "DIFFERENT"}  {name}  {which}')
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    recording = commands.add_parser('record', help='run everything and write OUT/record.json')
    recording.add_argument('out', type=Path)
    recording.add_argument('--root', type=Path, default=ROOT, help='checkout to record')
    recording.add_argument('--only', help='parts whose name has this in it')
    comparing = commands.add_parser('compare', help='compare two records')
    comparing.add_argument('old', type=Path)
    comparing.add_argument('new', type=Path)
    args = parser.parse_args()
    if args.command == 'compare':
        sys.exit(bool(compare(args.old, args.new)))
    record(args.root, args.out, args.only)


if __name__ == '__main__':
    main()
