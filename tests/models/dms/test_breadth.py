"""The breadth table: what a row says, and that a network that fails has a row with the reason."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[3] / 'benchmarks'))

import dms_breadth
import dms_breadth_models

from mmscale.models.dms import ChannelGroup, ChannelGroups, DepthGroup, Member
from mmscale.models.dms.groups import runs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4)), None
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.block(self.first(x)).flip(1))


def add(monkeypatch, make):
    monkeypatch.setitem(dms_breadth_models.NETWORKS, 'net', ('ours', make))


def test_a_row(monkeypatch):
    add(monkeypatch, lambda: (Net(), [torch.zeros(2, 3)]))
    row = dms_breadth.row_of('net', seed=0)
    assert {key: row[key] for key in ('name', 'library', 'groups', 'elements', 'blocks')} == {
        'name': 'net',
        'library': 'ours',
        'groups': 1,
        'elements': 4,
        'blocks': 0,
    }
    assert row['equals_masks'] is row['cost_equal'] is True
    assert row['prunable_share'] == pytest.approx((16 + 20) / (16 + 20 + 10), abs=1e-4)
    assert dms_breadth.why_whole(row) == '1: flip picks some of them'
    assert '| net | 1 | 4 | 0 | 78.3% |' in dms_breadth.markdown([row])


def test_what_cannot_be_built_or_traced_has_a_reason(monkeypatch):
    def fail():
        raise ValueError('no such network')

    add(monkeypatch, fail)
    assert 'no such network' in dms_breadth.row_of('net', 0)['whole'][0]
    add(monkeypatch, lambda: (Net(), [torch.zeros(2, 5)]))
    row = dms_breadth.row_of('net', 0)
    assert 'Net cannot be traced' in dms_breadth.why_whole(row)
    assert row['groups'] is row['seconds'] is None


def test_wrong_groups_are_seen():
    """The check is one: of the order of channels that a flip changes."""
    model = Net()
    members = (Member('block.0', 'out', runs(4)), Member('last', 'in', runs(4)))
    groups = ChannelGroups((ChannelGroup('block.0', 4, members),))
    assert dms_breadth.checks(model, groups, [torch.randn(2, 3)], seed=0) == (False, True)


def test_the_share_of_what_can_go():
    model = Net()
    members = (Member('first', 'out', runs(4)),)
    groups = ChannelGroups(
        (ChannelGroup('first', 4, members),), (DepthGroup('depth', ('block',), (('block.0',),)),)
    )
    assert dms_breadth.prunable_share(model, groups) == (16 + 20) / 46


def test_unknown_names_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['dms_breadth.py', 'resnet19'])
    with pytest.raises(SystemExit):
        dms_breadth.main()
    assert 'unknown: resnet19; known are' in capsys.readouterr().err


def test_stored_rows_are_shown(monkeypatch, capsys, tmp_path):
    row = dict.fromkeys(dms_breadth.ROW) | {'name': 'net', 'library': 'ours', 'whole': ['why']}
    (tmp_path / 'rows.json').write_text(json.dumps([row]))
    words = ['dms_breadth.py', '--of', str(tmp_path / 'rows.json'), '--json']
    monkeypatch.setattr(sys, 'argv', words)
    dms_breadth.main()
    assert json.loads(capsys.readouterr().out) == [row]
