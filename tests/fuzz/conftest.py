"""Options of the fuzz tests, and what runs their cases."""

import hashlib
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies

from mmscale.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))

from mutations import mutated, mutated_text, named

# What the library documents for bad input; everything else comes from deep inside.
REFUSALS = (UsageError, ValueError, TypeError, OSError)
MOST_CHARACTERS = 500
# Processor time of one case; on a busy machine it may take many times as long.
_SECONDS = 30
# What one case may take of memory beyond what the process has.
_BYTES = 6 << 30


def pytest_addoption(parser):
    parser.addoption(
        '--fuzz-cases', type=int, default=400, help='cases of all fuzz tests together'
    )
    parser.addoption('--fuzz-seed', type=int, default=0, help='decides which cases')


class CaseTookTooLong(BaseException):
    """No `except Exception` in between may take it for an error of the input."""


def _alarm(*_):
    raise CaseTookTooLong


def _contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file()
    }


class Fuzz:
    """Runs the cases of a property, and collects those that it does not hold for.

    Nothing is shrunk: a case is one mutation of a valid input already. So one run shows all that
    is wrong, each kind of it once.

    Attributes:
        counts: Cases by mutation and outcome, ``accepted`` or ``refused``.
    """

    def __init__(self, cases, number, title):
        self.cases, self.number, self.title = cases, number, title
        self.counts = Counter()
        self.problems = {}

    def run(self, share, draw, use):
        """Has `use` read what `draw` makes; raises AssertionError with all kinds of problems.

        Args:
            share: Part of all cases, of all tests.
            draw: From hypothesis' `draw` to a case, see :class:`mutations.Mutation`.
            use: Reads the mutated input; to be accepted or refused.
        """

        @seed(self.number)
        @settings(
            max_examples=max(8, round(self.cases * share)),
            database=None,
            deadline=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(data=strategies.data())
        def one(data):
            mutation = draw(data.draw)
            self.counts[mutation.kind, self._outcome(mutation, use)] += 1

        one()
        total = Counter()
        for (_, outcome), number in self.counts.items():
            total[outcome] += number
        print(f'{self.title}: {total["accepted"]} accepted, {total["refused"]} refused')
        for kind in sorted({kind for kind, _ in self.counts}):
            counts = (self.counts[kind, outcome] for outcome in ('accepted', 'refused'))
            print('  {:<24} {:>6} accepted {:>6} refused'.format(kind, *counts))
        assert not self.problems, '\n\n'.join(
            f'{number} x {text}' for number, text in self.problems.values()
        )

    def _outcome(self, mutation, use):
        old = signal.signal(signal.SIGPROF, _alarm)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        try:
            use(mutation.value)
        except REFUSALS as error:
            self._check_message(mutation, error)
            return 'refused'
        except (Exception, CaseTookTooLong) as error:  # noqa: BLE001
            self._problem(mutation, error, 'another error')
            return 'broken'
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, old)
        return 'accepted'

    def _check_message(self, mutation, error):
        message = str(error)
        if '\n' in message or not message:
            self._problem(mutation, error, 'not one line')
        elif len(message) > MOST_CHARACTERS:
            self._problem(mutation, error, f'{len(message)} characters')
        elif not named(mutation, message):
            self._problem(mutation, error, 'key not named')

    def _problem(self, mutation, error, what):
        traceback = error.__traceback__
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        code = traceback.tb_frame.f_code
        place = f'{Path(code.co_filename).name}:{traceback.tb_lineno} {code.co_name}'
        key = (what.strip('0123456789'), type(error).__name__, place, str(mutation.path[:2]))
        number, text = self.problems.get(key, (0, ''))
        text = text or (
            f'{what}: {type(error).__name__} at {place}\n  {mutation.kind} '
            f'{".".join(map(str, mutation.path))}={mutation.shown:.60}\n  {error!s:.600}'
        )
        self.problems[key] = number + 1, text


@pytest.fixture
def fuzz(request):
    """A function that fuzzes one kind of input: its valid content, or texts of it."""
    cases = request.config.getoption('--fuzz-cases', default=400)
    number = request.config.getoption('--fuzz-seed', default=0)
    found = Fuzz(cases, number, request.node.name)

    def run(share, valid, use, name=None, text=None, foreign=False):
        """Runs a share of all cases.

        Args:
            share: Part of all cases, of all tests together.
            valid: Plain data; one thing in it is mutated, or one in its text.
            use: Reads what became of it.
            name: Key that holds it, where it is part of something larger.
            text: Writes it as text, of which then bytes are mutated.
            foreign: Whether other libraries read it: a message names a setting, not all its keys.
        """

        def draw(draw_one):
            if text is not None:
                return mutated_text(draw_one, valid, text)
            return mutated(draw_one, valid, name, foreign)

        found.run(share, draw, use)

    return run


@pytest.fixture(autouse=True)
def bounded(monkeypatch, tmp_path):
    """In an empty folder of its own, and with bounded memory."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def inputs(tmp_path):
    """A folder for what is read."""
    folder = tmp_path / 'inputs'
    folder.mkdir()
    return folder


@pytest.fixture
def unchanged():
    """A context that a folder must leave byte by byte as it entered it."""
    from contextlib import contextmanager

    @contextmanager
    def check(folder):
        before = _contents(folder)
        try:
            yield
        finally:
            after = _contents(folder)
            if after != before:
                raise FolderChanged(sorted(before.items() ^ after.items()))

    return check


class FolderChanged(Exception):
    """What was read is no longer what it was."""
