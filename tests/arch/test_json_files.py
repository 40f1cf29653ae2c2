"""JSON files are data of bounded size: what is too much, twice or no JSON is one line."""

import json

import pytest

from mmscale.arch import Arch, get_arch
from mmscale.arch.json_files import MOST_JSON_BYTES, read_json


def test_what_is_no_json_names_the_file(tmp_path):
    path = tmp_path / 'größe [1].json'
    for content, message in (
        (b'', 'Expecting value'),
        (b'{"a": 1', 'Expecting'),
        (b'\xff\xfe', 'no text in UTF-8'),
        (b'[' * 100_000, 'recursion'),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' comes twice"),
        (b'9' * 10_000, 'digits'),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_json(path)
        assert str(error.value).startswith(f'{path}: no')
        assert '\n' not in str(error.value)
    path.write_text('{"ä": [1, 2.5, null]}', encoding='utf-8')
    assert read_json(path) == {'ä': [1, 2.5, None]}


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / 'large.json'
    with path.open('wb') as file:
        file.truncate(MOST_JSON_BYTES + 1)
    with pytest.raises(ValueError, match=f'more than the {MOST_JSON_BYTES:,} that'):
        Arch.from_json(path)
    path.write_text('[1, 2, 3]')
    with pytest.raises(ValueError, match='more than the 8 that'):
        read_json(path, most_bytes=8)
    assert read_json(path, most_bytes=9) == [1, 2, 3]


def test_the_largest_arch_that_is_allowed_fits(tmp_path):
    data = get_arch('scalenet-s0').to_json()
    block = {**data['stages'][0][0], 'residual': 'none', 'stride': 1}
    width = block['out_channels']
    block |= {'in_channels': width, 'hidden_channels': width, 'groups': width, 'se': None}
    data['stages'] = [[block] * 4096]
    assert len(json.dumps(data)) < MOST_JSON_BYTES / 10
    data['stages'] = [[block] * 4097]
    with pytest.raises(ValueError, match='4096'):
        Arch.from_json(data)


def test_a_key_that_comes_twice_is_found_among_many(tmp_path):
    """In one pass: comparing each with all others would take hours."""
    path = tmp_path / 'many.json'
    path.write_text('{' + ','.join(f'"a{i}":1' for i in range(300_000)) + ',"a299999":1}')
    with pytest.raises(ValueError, match="the key 'a299999' comes twice"):
        read_json(path)
