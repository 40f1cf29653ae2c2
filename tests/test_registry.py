import importlib.util

import pytest
from mmengine.registry import Registry, root

from mmscale import registry

REGISTRIES = {name: item for name, item in vars(registry).items() if isinstance(item, Registry)}


@pytest.mark.parametrize('name', REGISTRIES)
def test_registry_is_a_child_of_mmengines(name):
    child = REGISTRIES[name]
    assert child.parent is getattr(root, name)
    assert child.scope == 'mmscale'
    assert child.parent.children['mmscale'] is child


@pytest.mark.parametrize('name', REGISTRIES)
def test_registry_looks_in_packages_that_exist(name):
    for location in REGISTRIES[name]._locations:
        assert importlib.util.find_spec(location) is not None
