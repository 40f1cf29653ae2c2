import importlib

import pytest
from mmengine.registry import Registry, root

from mmscale import registry

REGISTRIES = {name: item for name, item in vars(registry).items() if isinstance(item, Registry)}


# MMEngine knows no searches.
@pytest.mark.parametrize('name', sorted(REGISTRIES.keys() - {'SEARCHES'}))
def test_registry_is_a_child_of_mmengines(name):
    child = REGISTRIES[name]
    assert child.parent is getattr(root, name)
    assert child.scope == 'mmscale'
    assert child.parent.children['mmscale'] is child


@pytest.mark.parametrize('name', REGISTRIES)
def test_registry_finds_parts_where_it_looks(name):
    child = REGISTRIES[name]
    for location in child._locations:
        importlib.import_module(location)
    assert any(part.__module__.startswith('mmscale.') for part in child.module_dict.values())
