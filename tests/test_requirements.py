"""The lists of requirements agree with one another, and with the lock files that make installs."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
RANGES = ('runtime', 'tests', 'optional', 'detection')
# Lock files, the versions that they are made with, and what they are for.
LOCKS = {
    'build': ('constraints', ['build']),
    'locking': ('constraints', ['locking']),
    'constraints': ('constraints', ['runtime', 'tests', 'headless']),
    'detection': ('constraints', ['runtime', 'tests', 'headless', 'detection']),
    'oldest': ('oldest', ['runtime', 'tests', 'headless']),
}
# What torch pins itself, differently for each of its builds.
OF_TORCH = re.compile(r'nvidia-|cuda-|triton$')


def requirements(name):
    """The requirements of a file, by normalised name."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return {canonicalize_name(one.name): one for one in found}


def pins(name):
    """The exact versions that a file of constraints gives."""
    found = {}
    for package, requirement in requirements(name).items():
        (specifier,) = requirement.specifier
        assert specifier.operator == '=='
        found[package] = specifier.version
    return found


@pytest.mark.parametrize(
    ('name', 'versions'),
    [*((name, 'constraints') for name in RANGES), ('runtime', 'oldest'), ('tests', 'oldest')],
)
def test_what_is_tested_is_in_the_ranges(name, versions):
    tested = pins(versions)
    for package, requirement in requirements(name).items():
        assert requirement.specifier.contains(tested[package]), requirement


def test_the_oldest_are_the_lower_ends_of_what_users_need():
    oldest = pins('oldest')
    for package, requirement in requirements('runtime').items():
        (lower,) = [one for one in requirement.specifier if one.operator in ('>=', '~=')]
        assert Version(lower.version) == Version(oldest[package]), requirement


def test_a_package_has_one_range():
    everywhere = [requirements(name) for name in RANGES]
    for package in set().union(*everywhere):
        assert len({str(one[package]) for one in everywhere if package in one}) == 1, package


def test_python_has_one_floor():
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    (minor,) = re.findall(r"python_requires='>=3\.(\d+)'", setup)
    assert f"target-version = 'py3{minor}'" in (ROOT / 'pyproject.toml').read_text(
        encoding='utf-8'
    )


def locked(name):
    """Versions and hashes of a lock file, by normalised name."""
    text = (ROOT / 'requirements' / f'{name}.lock').read_text(encoding='utf-8')
    found = {}
    for line in text.replace('\\\n', ' ').splitlines():
        if not line.startswith('#'):
            requirement, *hashes = line.split('--hash=')
            requirement = Requirement(requirement)
            (specifier,) = requirement.specifier
            assert specifier.operator == '==' and requirement.name not in found
            hashes = [one.strip() for one in hashes]
            found[canonicalize_name(requirement.name)] = specifier.version, hashes
    return found


@pytest.mark.parametrize('name', LOCKS)
def test_lock_files_have_a_hash_of_everything_at_the_tested_versions(name):
    versions, files = LOCKS[name]
    tested, lock = pins(versions), locked(name)
    for package, (version, hashes) in lock.items():
        assert version == tested.get(package) or OF_TORCH.match(package), package
        assert hashes, package
        for one in hashes:
            assert re.fullmatch(r'sha256:[0-9a-f]{64}', one), package
    for file in files:
        assert set(requirements(file)) <= set(lock), 'run make lock'
    # Its files would lie over those of opencv-python-headless.
    assert 'opencv-python' not in lock
    assert ('torch' in lock) == any(OF_TORCH.match(package) for package in lock)


def test_make_detection_only_adds_to_make_venv():
    assert locked('constraints').items() <= locked('detection').items()


@pytest.mark.parametrize('target', ['lock', 'detection', '.venv-oldest/.installed'])
def test_make_installs_nothing_without_a_hash(target):
    own = {**os.environ, 'MAKEFLAGS': ''}
    command = ['make', '--dry-run', '--always-make', 'PYTHON=python', target]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    lines = done.stdout.replace('\\\n', ' ').splitlines()
    installing = [line for line in lines if re.search(r'pip install|install_mmcv_ops', line)]
    hashed = r'--require-hashes|--no-deps --no-build-isolation --editable \.$|--check$|--lock \S+$'
    assert installing and all(re.search(hashed, line) for line in installing), installing


def test_exceptions_of_the_licence_check_are_of_packages_that_are_installed():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['tool']
    lock = locked('detection')
    for name in settings['pip-licenses']['ignore-packages']:
        package, _, version = name.partition(':')
        assert lock[package][0] == (version or lock[package][0]), name
