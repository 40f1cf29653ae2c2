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
    if kind in ('dsconv', 'fused_mbconv', 'basic'):
        groups = groups if in_channels % groups == hidden % groups == 0 else 1
    if kind in ('dsconv', 'mbconv') and draw(st.booleans()):
        groups = hidden
    grouped = None
    if kind in ('mbconv', 'bottleneck') and draw(st.booleans()):
        grouped = groups * draw(st.integers(1, 4))
    out_channels = in_channels if draw(st.booleans()) else draw(WIDTHS)
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
        se=None if kind == 'basic' else draw(st.none() | squeeze),
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


@settings(max_examples=150)
@given(archs())
def test_json_round_trip(arch):
    text = json.dumps(arch.to_json())
    again = Arch.from_json(json.loads(text))
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.digest == arch.digest
    assert json.dumps(again.to_json()) == text


@settings(max_examples=150)
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


def test_printing_says_what_the_network_is():
    """Stem, blocks, kernels, widths, output sizes and head, as plain text."""
    assert str(get_arch('scalenet-s1')).splitlines() == [
        'Arch a11472a9cd: 256 px, 21 blocks in 7 network stages',
        '           blocks         kernels    channels      hidden     output',
        '  stem     conv           3          3 -> 34                  128 px',
        '  stage 1  2 dsconv + SE  5 5        34 -> 17      34 17      128 px',
        '  stage 2  2 mbconv + SE  5 5        17 -> 34      102 204    64 px',
        '  stage 3  5 mbconv + SE  7 7 5 3 3  34 -> 42      204 252    32 px',
        '  stage 4  3 mbconv + SE  5 5 5      42 -> 84      252 504    16 px',
        '  stage 5  3 mbconv + SE  7 7 7      84 -> 100     504 600    16 px',
        '  stage 6  4 mbconv + SE  7 5 7 7    100 -> 200    600 1200   8 px',
        '  stage 7  2 mbconv + SE  5 5        200 -> 333    1200 1998  8 px',
        '  head     conv           1          333 -> 1280              8 px',
        '  head     linear                    1280 -> 1000',
    ]


def test_printing_names_the_width_of_groups():
    lines = str(get_arch('RegNetY-400MF')).splitlines()
    assert lines[3].split()[-8:] == ['48', '48', 'in', 'groups', 'of', '8', '56', 'px']


def test_printing_a_network_of_other_parts():
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
    assert str(pooled).splitlines()[1:] == [
        '           blocks               kernels  channels  hidden  output',
        '  stem     conv, max-pool       7        3 -> 8            9 px',
        '  stage 1  2 basic, bottleneck  3 3      8 -> 16   16 4    5 px',
        '  head     linear                        16 -> 12',
        '  head     linear                        12 -> 2',
    ]
    assert pooled.sizes == tuple(part.size for part in count_parts(pooled)[1:-1])


# ---------------------------------------------------------------- bad data


def place(data, path):
    for key in path:
        data = data[key]
    return data


NAN = float('nan')
BLOCK = ('stages', 2, 1)
BAD_VALUES = [
    (('resolution',), True, r'resolution=True must be an integer'),
    (('resolution',), 224.0, r'resolution=224.0 must be an integer'),
    (('resolution',), 0, r'resolution=0 must be an integer in 1\.\.'),
    (('resolution',), NAN, r'resolution=nan must be an integer'),
    (('resolution',), 10**9, r'resolution=1000000000 must be an integer in 1\.\.'),
    (('schema',), 2, r'schema=2 is not supported, expected 1'),
    (('schema',), True, r'schema=True is not supported'),
    (('schema',), '1', r"schema='1' is not supported"),
    (('stem',), None, r'stem: expected an object, got NoneType'),
    (('stem', 'kernel'), 4, r'stem: .*kernel=4 must be odd'),
    (('stem', 'max_pool'), 1, r'stem: .*max_pool=1 must be true or false'),
    (('stem', 'stride'), True, r'stem: .*stride=True must be an integer'),
    (('head',), [], r'head: expected an object, got list'),
    (('head', 'num_classes'), -1, r'head: .*num_classes=-1 must be an integer in 0\.\.'),
    (('head', 'act'), 'gelu', r"head: .*act='gelu' is not one of relu, "),
    (('head', 'eps'), '1e-5', r"head: .*eps='1e-5' must be a number"),
    (('stages',), {}, r'stages must be a list of lists of blocks'),
    (('stages',), [], r'stages must be a non-empty list'),
    (('stages', 2), [], r'stages must be a non-empty list of non-empty lists'),
    (('stages', 2), 3, r'stages must be a list of lists of blocks'),
    (BLOCK, 'mbconv', r'stages\[2\]\[1\]: expected an object, got str'),
    ((*BLOCK, 'kind'), 'conv', r"stages\[2\]\[1\]: .*kind='conv' is not one of mbconv, "),
    ((*BLOCK, 'kind'), ['mbconv'], r"stages\[2\]\[1\]: .*kind=\['mbconv'\] is not one of"),
    ((*BLOCK, 'kernel'), '3', r"stages\[2\]\[1\]: .*kernel='3' must be an integer"),
    ((*BLOCK, 'kernel'), 2, r'stages\[2\]\[1\]: .*kernel=2 must be odd'),
    ((*BLOCK, 'stride'), 1.0, r'stages\[2\]\[1\]: .*stride=1.0 must be an integer'),
    ((*BLOCK, 'groups'), 7, r'stages\[2\]\[1\]: .*groups=7 does not divide width 240'),
    ((*BLOCK, 'eps'), NAN, r'stages\[2\]\[1\]: .*eps=nan must be a number above 0 and below 1'),
    ((*BLOCK, 'eps'), True, r'stages\[2\]\[1\]: .*eps=True must be a number'),
    ((*BLOCK, 'se'), 4, r'stages\[2\]\[1\]: .*se=4 must be an object or null'),
    (
        (*BLOCK, 'se', 'channels'),
        0,
        r'stages\[2\]\[1\]: .*se: .*channels=0 must be an integer in 1\.\.',
    ),
    ((*BLOCK, 'se', 'gate'), 'relu', r"stages\[2\]\[1\]: .*se: .*gate='relu' is not one of"),
    ((*BLOCK, 'in_channels'), 41, r'stages\[2\]\[1\]: .*41 -> 40'),
    ((*BLOCK, 'grouped_channels'), 1.5, r'stages\[2\]\[1\]: .*grouped_channels=1.5 must be an i'),
    ((*BLOCK, 'grouped_channels'), 100, r'stages\[2\]\[1\]: .*groups=240 does not divide .*100'),
    (('stages', 0, 0, 'grouped_channels'), 32, r'grouped_channels=32 is not available .*dsconv'),
    (('stages', 0, 0, 'hidden_channels'), 33, r'hidden_channels=33 must equal in_channels=32'),
    (('stages', 1, 0, 'in_channels'), 17, r'stages\[1\]\[0\]: in_channels=17 .* 16 outputs'),
    (('stages', 1, 0, 'residual'), 'identity', r'stages\[1\]\[0\]: .*identity needs .*16 -> 32'),
]


@pytest.mark.parametrize(('path', 'value', 'message'), BAD_VALUES)
def test_bad_values_name_place_key_and_value(path, value, message, tmp_path):
    data = get_arch('scalenet-s0').to_json()
    place(data, path[:-1])[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        Arch.from_json(data)
    file = tmp_path / 'bad.json'
    file.write_text(json.dumps(data), encoding='utf-8')
    with pytest.raises(ValueError, match=message) as error:
        Arch.from_json(file)
    assert str(error.value).startswith(f'{file}: ') or path[0] == 'stages'
    assert '\n' not in str(error.value)


PLACES = [(), ('stem',), ('head',), BLOCK, (*BLOCK, 'se')]
NAMES = ['arch', 'stem', 'head', r'stages\[2\]\[1\]', r'stages\[2\]\[1\].*se']


@pytest.mark.parametrize(('path', 'name'), list(zip(PLACES, NAMES, strict=True)), ids=NAMES)
def test_unknown_and_missing_keys_name_their_place(path, name):
    good = get_arch('scalenet-s0').to_json()
    data = copy.deepcopy(good)
    place(data, path)['depht'] = 1
    with pytest.raises(ValueError, match=f'{name}: unknown key depht; allowed are '):
        Arch.from_json(data)
    part = {
        (): Arch,
        ('stem',): Stem,
        ('head',): Head,
        BLOCK: Block,
        (*BLOCK, 'se'): SqueezeExcite,
    }[path]
    required = [field.name for field in dataclasses.fields(part)]
    if part is not Arch:
        required = [
            field.name
            for field in dataclasses.fields(part)
            if field.default is dataclasses.MISSING
        ]
    for key in required:
        data = copy.deepcopy(good)
        del place(data, path)[key]
        with pytest.raises(ValueError, match=f'{name}: missing key {key}$'):
            Arch.from_json(data)


def test_keys_at_their_default_may_be_left_out():
    data = get_arch('scalenet-s0').to_json()
    del data['stem']['in_channels'], data['stages'][2][1]['padding'], data['head']['eps']
    assert Arch.from_json(data) == get_arch('scalenet-s0')


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{"schema": 1,',
        '[1, 2]',
        '3',
        'null',
        '\x00\xff',
        '[' * 100_000,
        '{"resolution": ' + '9' * 5000 + '}',
    ],
    ids=['empty', 'cut', 'list', 'number', 'null', 'binary', 'deep', 'long number'],
)
def test_files_that_hold_no_arch(text, tmp_path):
    file = tmp_path / 'arch.json'
    file.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=r'arch\.json: (not a JSON file|expected an object)'):
        Arch.from_json(file)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    file = tmp_path / 'arch.json'
    get_arch('scalenet-s0').save(file)
    whole = file.read_bytes().rstrip()
    for length in range(0, len(whole), 997):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='not a JSON file'):
            Arch.from_json(file)


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
