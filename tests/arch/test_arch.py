"""Arch: round trips, digests, immutability, and one clear error for bad data."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmscale.arch import Arch, Block, Head, SqueezeExcite, Stem, get_arch
from mmscale.arch.arch import ACTS, GATES, KINDS, PADDINGS
from mmscale.cost import count_parts

WIDTHS = st.integers(1, 64)
EPS = st.floats(1e-8, 0.1)


@st.composite
def blocks(draw, in_channels):
    kind = draw(st.sampled_from(KINDS))
    stride = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 2, 3]))
    hidden = in_channels if kind == 'dsconv' else groups * draw(WIDTHS)
    if kind in ('dsconv', 'fused_mbconv', 'basic', 'conv'):
        groups = groups if in_channels % groups == hidden % groups == 0 else 1
    if kind in ('dsconv', 'mbconv') and draw(st.booleans()):
        groups = hidden
    grouped = None
    if kind in ('mbconv', 'bottleneck') and draw(st.booleans()):
        grouped = groups * draw(st.integers(1, 4))
    out_channels = in_channels if draw(st.booleans()) else draw(WIDTHS)
    if kind == 'conv':
        hidden = out_channels
        groups = groups if in_channels % groups == out_channels % groups == 0 else 1
    residuals = ['none', 'projection']
    if stride == 1 and in_channels == out_channels:
        residuals.append('identity')
    squeeze = st.builds(
        SqueezeExcite, WIDTHS, act=st.sampled_from(ACTS), gate=st.sampled_from(GATES)
    )
    return Block(
        kind=kind,
        kernel=draw(st.sampled_from([1, 3, 5, 7])),
        stride=stride,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=out_channels,
        groups=groups,
        se=None if kind in ('basic', 'conv') else draw(st.none() | squeeze),
        act=draw(st.sampled_from(ACTS)),
        residual=draw(st.sampled_from(residuals)),
        padding=draw(st.sampled_from(PADDINGS)),
        eps=draw(EPS),
        grouped_channels=grouped,
    )


@st.composite
def archs(draw):
    stem = draw(
        st.builds(
            Stem,
            out_channels=WIDTHS,
            in_channels=st.sampled_from([1, 3]),
            kernel=st.sampled_from([3, 7]),
            stride=st.integers(1, 4),
            act=st.sampled_from(ACTS),
            max_pool=st.booleans(),
            padding=st.sampled_from(PADDINGS),
            eps=EPS,
        )
    )
    channels, stages = stem.out_channels, []
    for depth in draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)):
        stage = []
        for _ in range(depth):
            stage.append(draw(blocks(channels)))
            channels = stage[-1].out_channels
        stages.append(tuple(stage))
    widths = st.integers(0, 64)
    head = draw(st.builds(Head, widths, widths, widths, act=st.sampled_from(ACTS), eps=EPS))
    return Arch(draw(st.integers(1, 1000)), stem, tuple(stages), head)


@settings(max_examples=60)
@given(archs())
def test_json_round_trip(arch):
    text = json.dumps(arch.to_json())
    again = Arch.from_json(json.loads(text))
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.digest == arch.digest
    assert json.dumps(again.to_json()) == text


@settings(max_examples=60)
@given(archs(), archs())
def test_digests_are_equal_for_equal_networks_only(one, other):
    assert (one == other) == (one.digest == other.digest) == (len({one, other}) == 1)


def test_every_field_of_an_arch_is_in_its_digest():
    arch = get_arch('scalenet-s0')
    block = arch.stages[2][1]
    blocks = [
        dataclasses.replace(block, **change)
        for change in (
            {'kernel': 9},
            {'hidden_channels': 360, 'groups': 360},
            {'se': None},
            {'se': dataclasses.replace(block.se, channels=9)},
            {'se': dataclasses.replace(block.se, act='silu')},
            {'se': dataclasses.replace(block.se, gate='sigmoid')},
            {'act': 'relu'},
            {'residual': 'none'},
            {'padding': 'same'},
            {'eps': 1e-3},
            {'kind': 'bottleneck'},
            {'grouped_channels': 480},
            {'groups': 1},
        )
    ]
    changed = [
        dataclasses.replace(
            arch,
            stages=(
                *arch.stages[:2],
                (arch.stages[2][0], other, *arch.stages[2][2:]),
                *arch.stages[3:],
            ),
        )
        for other in blocks
    ]
    changed += [
        dataclasses.replace(arch, stem=dataclasses.replace(arch.stem, **change))
        for change in (
            {'in_channels': 1},
            {'kernel': 7},
            {'stride': 4},
            {'act': 'relu'},
            {'max_pool': True},
            {'padding': 'same'},
            {'eps': 1e-3},
        )
    ]
    changed += [
        dataclasses.replace(arch, head=dataclasses.replace(arch.head, **change))
        for change in (
            {'channels': 0},
            {'hidden_channels': 8},
            {'num_classes': 10},
            {'act': 'relu'},
            {'eps': 1e-3},
        )
    ]
    changed.append(dataclasses.replace(arch, resolution=225))
    assert len({other.digest for other in [arch, *changed]}) == 1 + len(changed)


def test_archs_are_immutable_and_keep_nothing_of_their_source():
    source = get_arch('scalenet-s0').to_json()
    arch = Arch.from_json(source)
    digest = arch.digest
    source['resolution'] = 1
    source['stages'][0][0]['kernel'] = 9
    arch.to_json()['stages'][0][0]['se']['channels'] = 9
    assert arch == get_arch('scalenet-s0')
    assert dataclasses.replace(arch).digest == digest
    for part, key in ((arch, 'resolution'), (arch.stem, 'act'), (arch.blocks[0], 'kernel')):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, key, 3)


def test_stages_given_as_lists_become_tuples():
    arch = get_arch('scalenet-s0')
    again = Arch(arch.resolution, arch.stem, [list(stage) for stage in arch.stages], arch.head)
    assert again == arch
    assert hash(again) == hash(arch)


def test_a_pickled_arch_is_found_in_sets_of_another_process():
    # Hashes of strings differ from process to process, and archs travel with all_gather_object.
    program = (
        'import pickle, sys; from mmscale.arch import get_arch; arch = get_arch("scalenet-s0");'
        'hash(arch); sys.stdout.buffer.write(pickle.dumps(arch))'
    )
    environment = {**os.environ, 'PYTHONHASHSEED': '12345'}
    result = subprocess.run(
        [sys.executable, '-c', program], env=environment, capture_output=True, check=True
    )
    assert pickle.loads(result.stdout) in {get_arch('scalenet-s0')}  # noqa: S301 - our own


def test_equal_inner_widths_are_written_in_one_way():
    block = get_arch('scalenet-s0').stages[2][1]
    explicit = dataclasses.replace(block, grouped_channels=block.hidden_channels)
    assert explicit == block
    assert explicit.grouped_channels is None
    assert explicit.depthwise
    pruned = Block('bottleneck', 3, 1, 64, 20, 64, groups=1, grouped_channels=30)
    assert pruned.grouped_widths == (20, 30)
    assert not pruned.depthwise


def test_a_conv_has_no_activation_whatever_is_given():
    conv = Block('conv', 1, 2, 8, 12, 12, groups=4, act='relu', eps=1e-3)
    assert conv == Block('conv', 1, 2, 8, 12, 12, groups=4, act='silu', eps=1e-3)
    assert conv.grouped_widths == (8, 12)
    row = str(Arch(32, Stem(8), ((conv,),), Head())).splitlines()[3]
    assert ' '.join(row.split()) == 'stage 1 1 conv 1 8 -> 12 8 px'  # no hidden width
    assert dataclasses.replace(conv, eps=1e-5) != conv
    for change, message in (
        ({'hidden_channels': 8}, 'hidden_channels=8 must equal out_channels=12 for kind=conv'),
        ({'se': SqueezeExcite(2)}, 'se is not available for kind=conv'),
        ({'grouped_channels': 12}, 'grouped_channels=12 is not available for kind=conv'),
        ({'groups': 8}, 'groups=8 does not divide width 12'),
        ({'residual': 'identity'}, 'residual=identity needs stride 1'),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(conv, **change)


def test_printing_says_what_the_network_is():
    pooled = Arch(
        resolution=33,
        stem=Stem(8, kernel=7, max_pool=True),
        stages=(
            (
                Block('basic', 3, 2, 8, 16, 16, groups=1),
                Block('bottleneck', 3, 1, 16, 4, 16, groups=1, residual='identity'),
            ),
        ),
        head=Head(hidden_channels=12, num_classes=2),
    )
    for arch in (get_arch('scalenet-s1'), get_arch('RegNetY-400MF'), pooled):
        title, _, stem, *rows = str(arch).splitlines()
        parts = count_parts(arch)
        assert arch.sizes == tuple(part.size for part in parts[1:-1])
        assert title.startswith(f'Arch {arch.digest[:10]}: {arch.resolution} px, ')
        assert f'{arch.stem.in_channels} -> {arch.stem.out_channels}' in stem
        assert stem.endswith(f' {parts[0].size} px')
        for stage, part, row in zip(arch.stages, parts[1:-1], rows, strict=False):
            kernels = ' '.join(str(block.kernel) for block in stage)
            widths = f'{stage[0].in_channels} -> {stage[-1].out_channels} '
            for text in (part.name, f'{len(stage)} {stage[0].kind}', kernels, widths):
                assert f' {text}' in row
            assert f' {stage[0].hidden_channels}' in row and row.endswith(f' {part.size} px')
            assert (' in groups of 8 ' in row) == (stage[0].groups * 8 == part.channels)
        head = [row for row in rows if row.startswith('  head')]
        channels = (arch.head.channels, arch.head.hidden_channels, arch.head.num_classes)
        assert len(head) == sum(map(bool, channels)) == len(rows) - len(arch.stages)


# ---------------------------------------------------------------- bad data


def place(data, path):
    for key in path:
        data = data[key]
    return data


NAN = float('nan')
BLOCK = ('stages', 2, 1)
BAD_VALUES = {
    ('resolution',): [True, 224.0, 0, NAN, 10**9],
    ('schema',): [2, True, '1'],
    ('stem',): [None],
    ('stem', 'kernel'): [4],
    ('stem', 'max_pool'): [1],
    ('head',): [[]],
    ('head', 'num_classes'): [-1],
    ('head', 'act'): ['gelu'],
    ('head', 'eps'): ['1e-5', 0, 1],
    ('stages',): [{}, []],
    ('stages', 2): [[], 3],
    (*BLOCK, 'kind'): ['conv', 'linear', ['mbconv']],  # a conv has no SE
    (*BLOCK, 'kernel'): ['3', 2],
    (*BLOCK, 'groups'): [7],  # does not divide the width
    (*BLOCK, 'eps'): [NAN, True],
    (*BLOCK, 'se'): [4],
    (*BLOCK, 'se', 'channels'): [0],
    (*BLOCK, 'se', 'gate'): ['relu'],
    (*BLOCK, 'grouped_channels'): [1.5],
    ('stages', 0, 0, 'grouped_channels'): [32],  # of a dsconv
    ('stages', 0, 0, 'hidden_channels'): [33],  # of a dsconv: as many as come in
    ('stages', 1, 0, 'in_channels'): [17],  # of 16 outputs before
    ('stages', 1, 0, 'residual'): ['identity'],  # 16 -> 32
}


def test_bad_values_name_place_key_and_value():
    for path, values in BAD_VALUES.items():
        for value in values:
            data = get_arch('scalenet-s0').to_json()
            place(data, path[:-1])[path[-1]] = value
            key = path[-1] if isinstance(path[-1], str) else 'stages'
            with pytest.raises(ValueError, match=key) as error:
                Arch.from_json(data)
            message = str(error.value)
            assert '\n' not in message
            if len(path) > 3:
                assert f'stages[{path[1]}][{path[2]}]' in message


def test_groups_divide_both_widths():
    block = get_arch('scalenet-s0').stages[2][1]
    with pytest.raises(ValueError, match='groups=240 does not divide width 100'):
        dataclasses.replace(block, grouped_channels=100)


def test_unknown_and_missing_keys_name_their_place():
    good = get_arch('scalenet-s0').to_json()
    parts = {
        (): ('arch', Arch),
        ('stem',): ('stem', Stem),
        ('head',): ('head', Head),
        BLOCK: (r'stages\[2\]\[1\]', Block),
        (*BLOCK, 'se'): (r'stages\[2\]\[1\].*se', SqueezeExcite),
    }
    for path, (name, part) in parts.items():
        data = copy.deepcopy(good)
        place(data, path)['depht'] = 1
        with pytest.raises(ValueError, match=f'{name}: unknown key depht; allowed are '):
            Arch.from_json(data)
        for field in dataclasses.fields(part):
            if part is Arch or field.default is dataclasses.MISSING:
                data = copy.deepcopy(good)
                del place(data, path)[field.name]
                with pytest.raises(ValueError, match=f'{name}: missing key {field.name}$'):
                    Arch.from_json(data)


def test_keys_at_their_default_may_be_left_out():
    data = get_arch('scalenet-s0').to_json()
    del data['stem']['in_channels'], data['stages'][2][1]['padding'], data['head']['eps']
    assert Arch.from_json(data) == get_arch('scalenet-s0')


def test_a_list_is_no_arch_and_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r'arch: expected an object, got list'):
        Arch.from_json([1, 2])
    with pytest.raises(FileNotFoundError, match=r'nowhere\.json'):
        Arch.from_json('nowhere.json')


def test_parts_of_the_wrong_type_are_refused_in_python_too():
    arch = get_arch('scalenet-s0')
    with pytest.raises(ValueError, match=r'arch: stem: expected a Stem'):
        Arch(224, None, arch.stages, arch.head)
    with pytest.raises(ValueError, match=r'arch: stages\[0\]\[0\]: expected a Block'):
        Arch(224, arch.stem, ((arch.stem,),), arch.head)
    with pytest.raises(ValueError, match=r'arch: stages must be a non-empty list'):
        Arch(224, arch.stem, None, arch.head)
