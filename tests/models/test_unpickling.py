"""Nothing in a pickle is looked up, called or imported, however its opcodes are combined."""

import builtins
import copyreg
import io
import itertools
import pickle
import random
import sys
import zipfile
from collections import Counter, OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import _weights_only_unpickler as torchs

from mmscale.models import unpickling
from mmscale.models.checkpoints import restrict_torch_load
from mmscale.models.plain_values import ALLOWED
from mmscale.untrusted import UntrustedFileError

# What Python tells of itself while a pickle runs code; reading from memory tells nothing.
TELLING = ('open', 'import', 'exec', 'compile', 'os.', 'subprocess.', 'socket.', 'ctypes.')


@contextmanager
def allowed(names):
    """What torch allows besides, for a while: torch 2.4 has no context of its own for it."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(names)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


heard = SimpleNamespace(listening=False, events=[])


def listen(event, arguments):
    if heard.listening and event.startswith(TELLING):
        heard.events.append((event, repr(arguments)[:100]))


sys.addaudithook(listen)


def events_of(read, content):
    """What happens while a pickle is read, whether it is refused or not."""
    heard.events.clear()
    heard.listening = True
    try:
        read(io.BytesIO(content))
    # Whatever a refusal is: torch's own machine has many.
    except Exception:  # noqa: BLE001
        pass
    finally:
        heard.listening = False
    return list(heard.events)


# ---------------------------------------------------------------------- pickles by hand


def name(module, attribute):
    return b'c' + module.encode() + b'\n' + attribute.encode() + b'\n'


def text(value):
    return b'X' + len(value.encode()).to_bytes(4, 'little') + value.encode()


def call(function, *arguments):
    return function + b'(' + b''.join(arguments) + b'tR'


def attribute_of(thing, attribute):
    return call(name('builtins', 'getattr'), thing, text(attribute))


def whole(value):
    return b'\x80\x02' + value + b'.'


GETATTR = name('builtins', 'getattr')
BUILTINS = attribute_of(GETATTR, '__self__')
TENSOR = name('torch', 'Tensor')


def calling(function, *arguments):
    """Torch calls what it is given, if it is a function of its own list that does."""
    rebuild = name('torch._tensor', '_rebuild_from_type_v2')
    return call(rebuild, function, TENSOR, b'(' + b''.join(arguments) + b't', b'N')


def attacks(mark):
    code = text(f'open({str(mark)!r}, "w").close()')
    run = calling(attribute_of(BUILTINS, 'eval'), code)
    imported = calling(attribute_of(BUILTINS, '__import__'), text('colorsys'))
    written = calling(attribute_of(BUILTINS, 'open'), text(str(mark)), text('w'))
    # HistoryBuffer is a class: its attributes lead to every other class.
    classes = attribute_of(attribute_of(name(*BUFFER), '__base__'), '__subclasses__')
    return {
        'eval': run,
        'import': imported,
        'open': written,
        'subclasses': calling(classes),
        'globals': attribute_of(attribute_of(name(*BUFFER), 'update'), '__globals__'),
        'plain eval': call(name('builtins', 'eval'), code),
        'python 2': call(name('__builtin__', 'eval'), code),
        'reduce of a result': call(attribute_of(BUILTINS, 'eval'), code),
        'storage from bytes': call(name('torch.storage', '_load_from_bytes'), b'C\x01a'),
        'object': b'(' + code + b'i__builtin__\neval\n',
        'extension': b'\x82\x01',
        'state of a class': name(*BUFFER) + b'N}' + text('update') + run + b's\x86b',
        'state of a function': GETATTR + b'N}' + text('__doc__') + run + b's\x86b',
        'new object': GETATTR + b'(' + GETATTR + text('__self__') + b't\x81',
    }


BUFFER = ('mmengine.logging.history_buffer', 'HistoryBuffer')
ATTACKS = sorted(attacks('mark'))


@pytest.mark.parametrize('kind', ATTACKS)
def test_known_attacks_are_refused(kind, tmp_path):
    content = whole(attacks(tmp_path / 'mark')[kind])
    with pytest.raises(pickle.UnpicklingError):
        unpickling.load(io.BytesIO(content))
    assert events_of(unpickling.load, content) == []
    assert not (tmp_path / 'mark').exists()


@pytest.fixture
def torch_as_mmengine_calls_it(monkeypatch):
    # Files that are read so add to a dict of the class.
    monkeypatch.setattr(
        HistoryBuffer, '_statistics_methods', {**HistoryBuffer._statistics_methods}
    )
    with allowed(get_torch_safe_globals()):
        yield torchs.load


@pytest.mark.parametrize('kind', ['eval', 'open', 'reduce of a result'])
def test_the_attacks_work_where_they_are_not_refused(kind, tmp_path, torch_as_mmengine_calls_it):
    """Else the tests of this file would show nothing."""
    content = whole(attacks(tmp_path / 'mark')[kind])
    events = events_of(torch_as_mmengine_calls_it, content)
    assert (tmp_path / 'mark').exists() == bool(events) == (kind != 'reduce of a result')


# ---------------------------------------------------------------------- random pickles


def all_names():
    """Every global that torch or MMEngine allows, or we do, and some that nobody must."""
    with allowed(get_torch_safe_globals()):
        found = {*torchs._get_allowed_globals(), *torchs._get_user_allowed_globals(), *ALLOWED}
    found |= {'builtins.eval', 'builtins.exec', 'os.system', 'operator.attrgetter'}
    return sorted(tuple(one.rsplit('.', 1)) for one in found if '.' in one)


NAMES = all_names()
WORDS = (
    *('__self__', '__class__', '__base__', '__globals__', '__builtins__', '__setstate__'),
    *('eval', 'exec', 'open', '__import__', '__dict__', 'mean', 'statistics_methods', 'latin1'),
    *('_metadata', '_log_history', 'storage', '0', 'cpu', 'f8', 'O', 'data'),
)


def extension(number):
    return b'\x82' + bytes([number])


# Registered as eval for the tests that ask for it.
EVAL = 0x71


def made(function, arguments, which):
    """The same thing by one of the ways in which a pickle makes objects."""
    whole_tuple = b'(' + b''.join(arguments) + b't'
    module, attribute = function
    named = name(module, attribute)
    on_stack = text(module) + text(attribute) + b'\x93'
    return [
        named + whole_tuple + b'R',
        on_stack + whole_tuple + b'R',
        named + whole_tuple + b'\x81',
        named + whole_tuple + b'}\x92',
        b'(' + named + b''.join(arguments) + b'o',
        b'(' + b''.join(arguments) + b'i' + named[1:],
        named + whole_tuple + b'b',
        named + b'N}' + text('__setstate__') + on_stack + b's\x86b',
        named + b')\x81' + whole_tuple + b'b',
        extension(EVAL) + whole_tuple + b'R' + named + b'\x86',
    ][which]


WAYS = 10


def random_pickle(chance, mark):
    """A pickle of random opcodes over all names: mostly well-formed, as others are refused."""
    code = f'open({mark!r}, "w").close()'

    def value(depth):
        kind = chance.randrange(14 if depth else 5)
        if kind == 0:
            return text(chance.choice([*WORDS, code, mark]))
        if kind == 1:
            return chance.choice([b'N', b'\x88', b'\x89', b'K\x00', b'K\x03', b')', b'}', b']'])
        if kind in (2, 3):
            return name(*chance.choice(NAMES))
        if kind == 4:
            return GETATTR
        inner = [value(depth - 1) for _ in range(chance.randrange(4))]
        arguments = b'(' + b''.join(inner) + b't'
        one = value(depth - 1)
        return chance.choice(
            [
                one + arguments + b'R',
                name(*chance.choice(NAMES)) + arguments + b'R',
                attribute_of(one, chance.choice(WORDS)),
                calling(one, *inner),
                calling(attribute_of(BUILTINS, chance.choice(WORDS)), text(code)),
                one + arguments + b'\x81',
                one + arguments + b'b',
                one + b'}' + text(chance.choice(WORDS)) + value(depth - 1) + b's' + b'b',
                one + b'N}' + text(chance.choice(WORDS)) + value(depth - 1) + b's\x86b',
                b'}' + text(chance.choice(WORDS)) + one + b's',
                b'](' + b''.join(inner) + b'e',
                arguments + b'Q',
                made(chance.choice(NAMES), [one, *inner], chance.randrange(WAYS)),
                made(('builtins', 'eval'), [text(code)], chance.randrange(WAYS)),
                one + b'q\x01h\x01\x86',
                name(*BUFFER) + b')\x81}' + text('statistics_methods') + one + b'sb',
            ]
        )

    return whole(value(4))


@pytest.mark.filterwarnings('ignore')
def test_random_pickles_over_all_names_run_nothing(tmp_path, torch_as_mmengine_calls_it):
    chance, mark = random.Random(0), tmp_path / 'mark'
    used, ran_elsewhere, read = set(), 0, 0
    for _ in range(4000):
        content = random_pickle(chance, str(mark))
        used |= {one for one in NAMES if name(*one) in content}
        assert events_of(unpickling.load, content) == [], content
        assert not mark.exists(), content
        try:
            unpickling.load(io.BytesIO(content))
            read += 1
        # A refusal, whatever it is called; load_checkpoint makes one line of it.
        except Exception:  # noqa: BLE001
            pass
        events_of(torch_as_mmengine_calls_it, content)
        ran_elsewhere += mark.exists()
        mark.unlink(missing_ok=True)
    assert used == set(NAMES)
    # So the pickles are dangerous, and not all of them nonsense.
    assert ran_elsewhere > 20 and read > 100
    assert pickle.loads(pickle.dumps(1)) == 1  # noqa: S301 - nothing global was changed


@pytest.fixture
def eval_as_extension():
    copyreg.add_extension('builtins', 'eval', EVAL)
    yield
    copyreg.remove_extension('builtins', 'eval', EVAL)
    copyreg.clear_extension_cache()


def in_a_zip_file(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a/data.pkl', content)
        archive.writestr('a/version', b'3\n')
    return file.getvalue()


def in_the_old_format(content):
    magic, protocol = (pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001))
    about = pickle.dumps(dict(protocol_version=1001, little_endian=True, type_sizes={}), 2)
    return magic + protocol + about + content + pickle.dumps([], 2)


def marking(mark):
    """Every name that is allowed anywhere, by every way, with arguments that are dangerous."""
    code = text(f'open({str(mark)!r}, "w").close()')
    run = calling(attribute_of(BUILTINS, 'eval'), code)
    evaluate = attribute_of(BUILTINS, 'eval')
    kinds = ([code], [evaluate, TENSOR, b'(' + code + b't', b'N'], [GETATTR, text('__self__')])
    for function in NAMES:
        for way in range(WAYS):
            for arguments in kinds:
                yield whole(made(function, arguments, way))
        yield whole(made(function, [run], 0))


@pytest.mark.filterwarnings('ignore')
def test_no_name_runs_anything_by_any_way(tmp_path, eval_as_extension, torch_as_mmengine_calls_it):
    mark = tmp_path / 'mark'
    count, ran = 0, Counter()
    for content in marking(mark):
        count += 1
        assert events_of(unpickling.load, content) == [], content
        assert not mark.exists(), content
        # So there is something to find: by torch's own machine, and by Python's.
        for read in (torch_as_mmengine_calls_it, python_without_imports):
            events_of(read, content)
            ran[read] += mark.exists()
            mark.unlink(missing_ok=True)
    assert count >= 2000
    assert ran[torch_as_mmengine_calls_it] > 10 and ran[python_without_imports] > 10


def python_without_imports(file):
    """Python's own machine, which finds two functions alone."""

    class Careful(pickle._Unpickler):
        def find_class(self, module, attribute):
            if (module, attribute) in {('builtins', 'eval'), ('builtins', 'getattr')}:
                return getattr(builtins, attribute)
            raise pickle.UnpicklingError

    return Careful(file).load()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('packed', [in_a_zip_file, in_the_old_format])
def test_what_is_dangerous_runs_in_no_format(packed, tmp_path, torch_as_mmengine_calls_it):
    """Also through ``torch.load`` itself, with all that is around the pickle."""
    mark = tmp_path / 'mark'
    restrict_torch_load()
    events = []
    for content in [whole(one) for one in attacks(mark).values()]:
        with pytest.raises(UntrustedFileError):
            torch.load(io.BytesIO(packed(content)), weights_only=False)
        events += events_of(lambda file: torch.load(file, weights_only=False), packed(content))
        assert not mark.exists()
    assert not [event for event in events if 'mark' in event[1]]
    # The same with a value that is none of them: the format is right.
    assert torch.load(io.BytesIO(packed(whole(b'K\x07')))) == 7


@pytest.mark.filterwarnings('ignore')
def test_mutated_honest_pickles_run_nothing(tmp_path):
    chance = random.Random(1)
    content = pickle.dumps(honest(), 2)
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(content))] = chance.randrange(256)
        assert events_of(unpickling.load, bytes(damaged)) == []


# ---------------------------------------------------------------------- honest pickles


def honest():
    """All that MMEngine's checkpoints have beside tensors."""
    buffer = HistoryBuffer([1.0, 2.0, 4.0], [1, 1, 2], max_length=7)
    return {
        'message_hub': {'log_scalars': OrderedDict(loss=buffer), 'runtime_info': {'iter': 3}},
        'meta': {'seed': 3, 'time': '2024', 'world_size': 1, 'big': 2**90, 'negative': -7},
        'dataset_meta': {'classes': ('a', 'b'), 'palette': [[1, 2, 3]], 'none': None},
        'param_schedulers': [{'milestones': Counter([3, 3, 9]), 'gamma': 0.1}],
        'numbers': [np.float64(2.5), np.int64(3), np.float32(0.25), np.bool_(True), 1 + 2j],
        'arrays': [np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.zeros(0)],
        'others': [{1, 2}, b'', b'bytes \xff', bytearray(b'ab'), torch.Size([2, 3])],
        'by parts': {(1, 'a'): 2},
        'torch': [
            torch.float16,
            torch.float8_e4m3fnuz,
            torch.device('cpu'),
            torch.device('cuda', 1),
        ],
    }


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_honest_values_are_read(protocol):
    made = honest()
    found = unpickling.load(io.BytesIO(pickle.dumps(made, protocol)))
    buffer, expected = (one['message_hub']['log_scalars'].pop('loss') for one in (found, made))
    assert type(buffer) is HistoryBuffer and buffer.max_length == 7
    for mine, theirs in zip(buffer.data, expected.data, strict=True):
        assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
    assert buffer.mean() == expected.mean() and buffer.statistics('max') == 4
    buffer.update(9.0)
    for mine, theirs in zip(found.pop('arrays'), made.pop('arrays'), strict=True):
        assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
        assert mine.flags.f_contiguous == theirs.flags.f_contiguous
    assert found == made
    for mine, theirs in zip(found['numbers'], made['numbers'], strict=True):
        assert type(mine) is type(theirs)
    assert type(found['param_schedulers'][0]['milestones']) is Counter


def test_objects_of_others_are_refused():
    for value in (
        *(np.array(['a']), np.array([None], object), np.zeros(2, [('a', 'i4')])),
        *(SimpleNamespace(a=1), slice(1, 2), print, OrderedDict, torch.nn.Linear(1, 1)),
        *(itertools.count(), frozenset([1]), {((1, 2), 3): 4}),
    ):
        with pytest.raises(pickle.UnpicklingError):
            unpickling.load(io.BytesIO(pickle.dumps({'a': value}, 2)))


def test_a_value_that_no_computer_can_walk_through_is_refused():
    laughs = b'](K\x01K\x01e'
    for i in range(40):
        laughs = b'](' + laughs + b'q' + bytes([i]) + b'h' + bytes([i]) + b'e'
    with pytest.raises(pickle.UnpicklingError, match='more than 4,194,304 values'):
        unpickling.load(io.BytesIO(whole(laughs)))
    with pytest.raises(pickle.UnpicklingError, match='holds itself'):
        unpickling.load(io.BytesIO(whole(b']q\x00(h\x00e')))
    deep = b'K\x01' + b'\x85' * 200_000
    unpickling.load(io.BytesIO(whole(deep)))
    with pytest.raises(pickle.UnpicklingError, match='is a tuple'):
        unpickling.load(io.BytesIO(whole(b'}' + deep + b'Ns')))
    with pytest.raises(pickle.UnpicklingError, match='ends before'):
        unpickling.load(io.BytesIO(whole(b'X\xff\xff\xff\xff')))


BUFFERS = name(*BUFFER) + b'q\x00](' + b'h\x00)\x81' * 1000 + b'e\x86'
COPIES = name('_codecs', 'encode') + b'q\x00' + text('a' * 10**5) + b'q\x01' + text('latin1')
COPIES += b'q\x02](' + b'h\x00h\x01h\x02\x86R' * 20 + b'et'
PAIRS = name('collections', 'OrderedDict') + b'q\x00](' + b'K\x01K\x02\x86' * 300 + b'eq\x01]('
PAIRS += b'h\x00h\x01\x85R' * 20 + b'e\x87'


@pytest.mark.parametrize(
    'pickled',
    [
        b'](' + b'\x8f' * 3000 + b'e',
        b'](' + b'}' * 4000 + b'e',
        b'N' + b'\x85' * 4000,
        b'N' + b'q\x00' * 9000,
        BUFFERS,
        b'(' + COPIES,
        PAIRS,
        text('a' * 250_000 + '\U0001f600'),
    ],
    ids=['sets', 'dicts', 'tuples', 'memo', 'buffers', 'copies', 'pairs', 'characters'],
)
def test_few_bytes_that_stand_for_much_are_refused(pickled):
    """Here with a bound of a megabyte, of which no such pickle has a third."""
    content = whole(pickled)
    assert len(content) < 300_000
    with pytest.raises(pickle.UnpicklingError, match='take more than the 1,000,000 bytes'):
        unpickling.Unpickler(io.BytesIO(content), most_bytes=10**6).load()
    try:
        unpickling.Unpickler(io.BytesIO(content)).load()  # not too much in general
    except pickle.UnpicklingError as error:
        assert 'take more than' not in str(error)


def test_what_is_announced_is_not_made_room_for():
    for opcode, content in (
        (b'\x96', (2**40).to_bytes(8, 'little')),
        (b'\x8b', (2**20).to_bytes(4, 'little') + b'\x01' * 2**20),
    ):
        with pytest.raises(pickle.UnpicklingError, match='has the opcode'):
            unpickling.load(io.BytesIO(whole(opcode + content)))
    long = b'X' + (2**26).to_bytes(4, 'little') + bytes(2**26)
    with pytest.raises(pickle.UnpicklingError, match='a value of 67,108,864 bytes'):
        unpickling.Unpickler(io.BytesIO(whole(long))).load()
    with pytest.raises(pickle.UnpicklingError, match='it names'):
        unpickling.load(io.BytesIO(b'\x80\x02c' + b'a' * 2**20 + b'\nb\n.'))
