"""The lists of requirements agree with one another."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
RANGES = ('runtime', 'tests', 'optional', 'detection')


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
