"""The benchmarks of speed start, compare like with like, and count what they say they count."""

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

import gpu
import peers
import run_all
from ceilings import SIZES, Ceilings
from dms_language_model import DISTILLED, MOMENTS, PLAIN, table_of
from growth import Growth
from paired import ratio_of
from super_net_step import MODES, Case, Comparison
from traffic import FIELDS, Traffic

from mmscale.arch import SearchSpace
from mmscale.cost import count, count_parts
from mmscale.models import ArchNet

FOLDER = Path(__file__).parents[1] / 'benchmarks'


def call(monkeypatch, script, *words):
    """What a script prints, which ends well."""
    monkeypatch.setattr(sys, 'argv', [script, *words])
    output = io.StringIO()
    with redirect_stdout(output):
        try:
            runpy.run_path(str(FOLDER / script), run_name='__main__')
        except SystemExit as end:
            assert not end.code, end.code
    return output.getvalue()


NAMED = {command.split()[0] for command in run_all.COMMANDS} | {'gpu.py', 'run_all.py'}
SCRIPTS = sorted(NAMED)


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_start(script, monkeypatch):
    assert script in call(monkeypatch, script, '--help')


def test_options_of_all_are_those_of_the_scripts(monkeypatch):
    for command in run_all.COMMANDS:
        script, *words = command.split()
        known = call(monkeypatch, script, '--help')
        for word in words:
            assert not word.startswith('--') or word in known, command


@pytest.mark.slow
def test_step_prints_what_it_promises(monkeypatch):
    words = ['--space', 'digits', '--scaling-stage', '0', '--mode', 'forward', '--rounds', '1']
    rows = json.loads(call(monkeypatch, 'super_net_step.py', *words, '--json'))
    assert [row['draws'] for row in rows] == ['changing', 'repeated']
    for row in rows:
        keys = ('space', 'scaling_stage', 'mode', 'resolution', 'batch')
        assert [row[key] for key in keys] == ['digits', 0, 'forward', 32, 2]
        low, high = row['quartiles']
        assert 0 < low <= row['ratio'] <= high
        assert row['ratio'] == row['parts']['forward']['ratio']


@pytest.mark.slow
@pytest.mark.parametrize('mode', [mode for mode in MODES if mode != 'host'])
def test_both_ways_compute_the_same(mode):
    """A comparison refuses different losses; the static side trains what the mode is made of."""
    comparison = Comparison('digits')
    case = Case('digits', 1, mode, 'new', 32, 4)
    ratios, written = comparison.measure(case, rounds=1)
    assert set(ratios) == {'step', 'forward', 'backward', 'update'}
    networks = {'single': 1, 'forward': 1, 'both_sides': 2, 'sandwich': 2}[mode]
    assert len(comparison.ways[1].model.backbones) == networks
    assert min(written) > 0


def test_different_losses_are_refused(monkeypatch):
    comparison = Comparison('digits')
    extract = comparison.model.backbone.extract

    def damaged(arch, side='left'):
        net = extract(arch, side)
        nn.init.zeros_(net.stem.conv.weight)
        return net

    monkeypatch.setattr(comparison.model.backbone, 'extract', damaged)
    with pytest.raises(RuntimeError, match='differ'):
        comparison.measure(Case('digits', 0, 'single', 'repeated', 24, 4), rounds=1)


def counted(function):
    with Traffic() as traffic:
        function()
    return dict(zip(FIELDS, traffic.totals.tolist(), strict=True))


def test_traffic_of_single_operations():
    one, other = torch.ones(100), torch.ones(100)
    for function, read, written in (
        (lambda: one + other, 800, 400),
        (lambda: one.add_(other), 800, 400),
        (lambda: one.copy_(other), 400, 400),
        (lambda: one.zero_(), 0, 400),
        (lambda: one.clone(), 400, 400),
        (lambda: one.view(10, 10)[2:], 0, 0),
        (lambda: torch.empty(1000), 0, 0),
        (lambda: torch._foreach_add_([one, other], [other, one]), 1600, 800),
    ):
        found = counted(function)
        assert (found['bytes_read'], found['bytes_written']) == (read, written)


def test_traffic_counts_the_multiply_adds_of_a_network():
    net = ArchNet('scalenet-s0').train()
    images = torch.zeros(2, 3, 64, 64)
    outputs = []
    forward = counted(lambda: outputs.append(net(images)[-1]))['multiply_adds']
    backward = counted(lambda: outputs[0].sum().backward())['multiply_adds']
    arch = count_at(net, 64)
    assert forward == 2 * arch
    # Images need no gradient, so the stem's is that of its weight alone.
    stem = net.stem.conv.weight.numel() * 32 * 32 * 2
    assert backward == 2 * forward - stem


def count_at(net, side):
    """Multiply-adds of the layers before the classifier."""
    return sum(part.cost.flops for part in count_parts(replace(net.arch, resolution=side))) - (
        net.arch.head.channels * net.arch.head.num_classes
    )


def test_least_seconds_are_the_longer_ones():
    ceilings = Ceilings([1e9] * len(SIZES), {'slow': 1e9, 'fast': 1e10})
    assert ceilings.least_seconds(2 * 10**9, 10**10) == pytest.approx(2)
    assert ceilings.least_seconds(10**9, 5 * 10**10) == pytest.approx(5)


def test_ratio_is_of_neighbours():
    ratio = ratio_of([[1, 1], [20, 10], [3, 1]])
    assert (ratio.ratio, ratio.quartiles, ratio.seconds) == (2, (1.5, 2.5), (3, 1))


def test_exponent_of_a_power_law():
    assert Growth('', '', [1, 10, 100], [3, 300, 30_000]).exponent == pytest.approx(2)


def test_masked_copies_are_the_networks(monkeypatch):
    from mmengine.config import Config

    config = Config.fromfile(FOLDER.parent / 'configs/_base_/search_spaces/digits.py')
    space = SearchSpace(**config.space)
    masked = peers.MaskedNet(space).train()
    for arch in (space.smallest(0), space.largest(1), space.largest()):
        net = ArchNet(arch).train()
        masked.set_net(net)
        masked.copy_to(net)
        images = torch.randn(2, 1, 32, 32)
        assert torch.equal(masked(images)[-1], net(images)[-1])
        # Statistics of what was used are written back, all others stay.
        whole, part = masked.whole.stem.bn.whole, net.stem.bn
        width = part.num_features
        assert torch.equal(whole.running_mean[:width], part.running_mean)
        assert (
            count(arch).params
            == sum(p.numel() for p in net.parameters())
            + (arch.head.channels + 1) * arch.head.num_classes
        )


def test_gpu_says_that_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    assert gpu.main() == 2
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.count('\n') == 1
    assert 'no GPU' in captured.err


@pytest.mark.slow
@pytest.mark.parametrize('part', gpu.OWN)
def test_own_parts_of_the_gpu_script(part):
    rows = list(gpu.OWN[part]('cpu', True))
    assert rows and not [row for row in rows if row[1].startswith('FAILED')]


def test_parts_that_fail_end_no_other(monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'SCRIPTS', {'missing': ('no_such_script.py', [], [])})
    monkeypatch.setattr(gpu, 'OWN', {'unknown': None})
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--device', 'cpu', '--quick'])
    assert gpu.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert 'FAILED with exit code 2' in lines[2]
    assert 'FAILED' in lines[4]


def test_unknown_benchmarks_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['run_all.py', 'no_such'])
    with pytest.raises(SystemExit):
        run_all.main()
    assert 'no_such is none of' in capsys.readouterr().err


def test_language_models_are_compared_seed_by_seed():
    """Seeds that differ more than both ways do hide nothing."""
    rows = [
        {
            'whole': {'perplexity': seed},
            PLAIN: {moment: {'perplexity': seed + 1.0} for moment in MOMENTS},
            DISTILLED: {moment: {'perplexity': seed + 0.75} for moment in MOMENTS},
        }
        for seed in (2.0, 4.0, 9.0)
    ]
    cells = [list(column.cells) for column in table_of(rows).columns]
    assert cells[0] == ['whole', PLAIN, DISTILLED, 'difference']
    assert cells[2] == ['', '6.000 ± 3.606', '5.750 ± 3.606', '-0.250 ± 0.000']
