"""Mutations of valid input: one thing is wrong in plain data, or in its text."""

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies

_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]

VALUES = {
    'none': [None],
    'not finite': [float('nan'), float('inf'), float('-inf')],
    'huge': [10**9, 2**63, 10**30, 1e308, -(10**30)],
    'zero': [0, 0.0],
    'negative': [-1, -0.5, -(2**40)],
    'fraction': [0.5, 1e-300, 1.0000001],
    'small number': [1, 2, 3, 7, 16],
    'boolean': [True, False],
    'empty': ['', [], {}, [[]], [{}]],
    'string': ['x', 'flops', '3', 'no\nline', '\x00', 'x' * 4000],
    'unicode': ['größe', '\u202eabc', '日本語', '\U0001f600', '\ud800'],
    'list': [[1], ['x'], [None], [[1, 2], [3]], [0] * 1000],
    'dict': [{'x': 1}, {'type': 'x'}, {'schema': 1}, {'': None}],
    'nested garbage': [_DEEP, {'a': [{'b': [None, {'c': float('nan')}]}]}, [[[[[]]]]]],
}
# Each of these may be allowed where it stands, and contradict another key.
MAY_CONTRADICT = ('drop', 'fraction', 'huge', 'negative', 'repeat', 'small number', 'zero')
UNKNOWN = 'no_such_key'


@dataclass
class Mutation:
    """A mutated input.

    Attributes:
        kind: What was done.
        value: The input, data or text.
        path: Where: keys and indices from the outside in; empty if it is not known.
        shown: What was put there.
        keys: All keys of the valid input.
        foreign: Whether libraries read it that do not name every key.
    """

    kind: str
    value: Any
    path: tuple
    shown: str = ''
    keys: frozenset = frozenset()
    foreign: bool = False


def _keys(data):
    if isinstance(data, dict):
        return {str(key) for key in data}.union(*map(_keys, data.values()))
    if isinstance(data, (list, tuple)):
        return set().union(*map(_keys, data))
    return set()


def _children(node):
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, (list, tuple)) else []


def _descend(draw, data):
    """The container of a random place, and its path; places near the outside are likelier."""
    node, path = data, ()
    while True:
        key = draw(strategies.sampled_from(_children(node)))
        path = (*path, key)
        if not _children(node[key]) or draw(strategies.integers(0, 3)) == 0:
            return node, path
        node = node[key]


def mutated(draw, valid, name=None, foreign=False):
    """One mutation of plain data, which is what a key of that name holds, if there is a name."""
    mutation = _mutated(draw, valid)
    if name is not None:
        mutation.path = (name, *mutation.path)
    mutation.foreign = foreign
    return mutation


def _mutated(draw, valid):
    data = copy.deepcopy(valid)
    node, path = _descend(draw, data)
    key = path[-1]
    keys = frozenset(_keys(valid))
    kinds = ['drop', 'repeat', *VALUES] + ['unknown key'] * 2
    kind = draw(strategies.sampled_from(kinds))
    if kind == 'unknown key':
        inside = node[key] if isinstance(node[key], dict) else node
        if isinstance(inside, dict):
            inside[UNKNOWN] = 1
            here = path if inside is node[key] else path[:-1]
            return Mutation(kind, data, (*here, UNKNOWN), '1', keys | {UNKNOWN})
        kind = 'drop'
    if kind == 'repeat' and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
        return Mutation(kind, data, path, 'twice', keys)
    if kind in ('drop', 'repeat'):
        del node[key]
        return Mutation('drop', data, path, 'gone', keys)
    value = copy.deepcopy(draw(strategies.sampled_from(VALUES[kind])))
    node[key] = value
    return Mutation(kind, data, path, repr(value), keys)


def _with_key_twice(draw, valid):
    """JSON in which one key of one object comes twice."""
    node, path = _descend(draw, valid)
    while isinstance(path[-1], int):
        path = path[:-1]
        node = valid
        for key in path[:-1]:
            node = node[key]
    marked = copy.deepcopy(valid)
    inside = marked
    for key in path[:-1]:
        inside = inside[key]
    inside['@twice@'] = 0
    text = json.dumps(marked).replace('"@twice@"', json.dumps(path[-1]))
    return Mutation('key twice', text, path, 'twice')


def mutated_text(draw, valid, dump=json.dumps):
    """One mutation of the text of plain data."""
    text = dump(valid)
    kind = draw(strategies.sampled_from(['truncated', 'bit flipped', 'inserted', 'key twice']))
    if kind == 'key twice' and dump is json.dumps:
        return _with_key_twice(draw, valid)
    content = bytearray(text.encode())
    place = draw(strategies.integers(0, len(content) - 1))
    if kind == 'truncated':
        del content[place:]
    elif kind == 'bit flipped':
        content[place] ^= 1 << draw(strategies.integers(0, 7))
    else:
        kind = 'inserted'
        content[place:place] = draw(
            strategies.sampled_from([b'\x00', b'\xff', b'[' * 3000, b',', b'NaN', b'\n', b'{}'])
        )
    return Mutation(kind, bytes(content), ())


def named(mutation, message):
    """Whether a message names the key that was mutated, or what holds it.

    A number may be allowed where it stands, and a key may be left out, and contradict another key:
    then the message may name that one. Of a text only a key that comes twice is known.
    """
    if not mutation.path:
        return True
    names = {str(part) for part in mutation.path if isinstance(part, str)}
    if mutation.kind == 'unknown key' and not mutation.foreign:
        names = {UNKNOWN}
    elif mutation.kind in MAY_CONTRADICT:
        names |= mutation.keys - {'type'}
    words = set(re.findall(r'\w+', message))
    return any(words & set(re.findall(r'\w+', name)) for name in names)
