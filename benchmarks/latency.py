"""Times networks of several families and scaling rules on this device, in one run.

    python benchmarks/latency.py [--device cuda --dtype float16 --batch 64 --train] [--out DIR]

The paper's central finding, to be seen on your own machine: time follows acts, more than flops or
params. Prints Pearson's r of time with each and the fitted runtime model; writes them with every
time as latency.json, which tools/scale.py reads, and as a plot, latency.png and .svg. By default
39 networks: three bases, and each by d, w, r, dw, dwr and dWr at 2 and 4. They are measured in
random order, so that a machine that slows down does not favour a rule.
"""

import argparse
import random
import sys
from pathlib import Path

from mmscale.apis.cost import fit_latency
from mmscale.arch import apply_scaling, get_arch, scaling_rule
from mmscale.launch.command_line import set_environment

BASES = ('EfficientNet-B0', 'RegNetX-400MF', 'RegNetZ-500MF')
RULES = ('d', 'w', 'r', 'dw', 'dwr', 'dWr')
METRICS = {'acts': 'activations', 'flops': 'multiply-adds', 'params': 'parameters'}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32')
    parser.add_argument('--train', action='store_true', help='forward and backward pass')
    parser.add_argument('--bases', nargs='+', default=BASES, metavar='NAME')
    parser.add_argument('--rules', nargs='+', default=RULES, metavar='RULE')
    parser.add_argument('--factors', nargs='+', type=float, default=(2.0, 4.0), metavar='S')
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/latency'))
    return parser.parse_args()


def networks(bases, rules, factors):
    """Archs by name: ``<base>`` and ``<base> <rule> <factor>``, in random order."""
    archs = {}
    for base in bases:
        archs[base] = get_arch(base)
        for rule in rules:
            for factor in factors:
                scaling = scaling_rule(rule).scaling(factor)
                archs[f'{base} {rule} {factor:g}'] = apply_scaling(archs[base], scaling, 'pycls')
    names = list(archs)
    random.Random(0).shuffle(names)
    return {name: archs[name] for name in names}


def plot(model, path):
    """Time against acts, flops, params and prediction: colours are rules, markers are bases."""
    from mmscale.visualization.style import PALETTE, new_figure, tidy

    bases, rules = {}, {'base': 'black'}
    for network in model.networks:
        base, *rule = network.name.split(' ')
        bases.setdefault(base, 'os^Dv<>Pp*hX'[len(bases) % 12])
        if rule:
            rules.setdefault(rule[0], PALETTE[(len(rules) - 1) % len(PALETTE)])
    panels = [
        (
            f'{name}, millions',
            f'r = {model.pearson[metric]:.3f}',
            [getattr(network, metric) / 1e6 for network in model.networks],
        )
        for metric, name in METRICS.items()
    ]
    predicted = [model.predict(network) for network in model.networks]
    panels.append(('predicted, milliseconds', f'median error {model.error:.1%}', predicted))
    figure = new_figure(16, 4.4)
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (label, title, values) in zip(all_axes, panels, strict=True):
        for network, value in zip(model.networks, values, strict=True):
            base, rule, *_ = f'{network.name} base'.split(' ')
            axes.plot(value, network.ms, marker=bases[base], color=rules[rule], linestyle='')
        tidy(axes, label, 'milliseconds' if axes is all_axes[0] else '', title)
        axes.margins(0.1)
        axes.set_xlim(left=0)
    all_axes[0].set_ylim(bottom=0)
    all_axes[-1].axline((0, 0), slope=1, color='grey', linewidth=0.8)
    for name, style in [
        *((rule, dict(color=colour, marker='o')) for rule, colour in rules.items()),
        *((base, dict(color='grey', marker=marker)) for base, marker in bases.items()),
    ]:
        all_axes[0].plot([], [], linestyle='', label=name, **style)
    all_axes[0].legend(fontsize=7)
    figure.suptitle(str(model.setting), fontsize=10)
    for kind in ('png', 'svg'):
        figure.savefig(path.with_suffix(f'.{kind}'), dpi=120)


def main():
    args = parse_args()
    set_environment()
    archs = networks(args.bases, args.rules, args.factors)
    args.out.mkdir(parents=True, exist_ok=True)

    def tell(name, latency):
        print(f'{name}: {latency.median_ms:.2f} ms', file=sys.stderr, flush=True)

    model = fit_latency(
        archs,
        args.device,
        args.batch,
        args.dtype,
        args.train,
        args.warmup,
        args.repeats,
        on_measured=tell,
    )
    model.save(args.out / 'latency.json')
    plot(model, args.out / 'latency.png')
    print(f'{len(archs)} networks: {model.setting}')
    for metric, r in sorted(model.pearson.items(), key=lambda item: -item[1]):
        low, high = model.pearson_interval(metric) or (r, r)
        print(f'Pearson r of time with {metric}: {r:.3f}, 95 % interval {low:.2f} to {high:.2f}')
    print(f'ms = {model.a:.4g} + {model.b:.4g} acts + {model.c:.4g} flops')
    print(f'median error of the fit: {model.error:.1%}')


if __name__ == '__main__':
    main()
