import importlib

from mmengine.registry import Registry, root

from mmscale import registry

REGISTRIES = {name: item for name, item in vars(registry).items() if isinstance(item, Registry)}


def test_registries_are_children_of_mmengines_and_find_parts_where_they_look():
    assert 'MODELS' in REGISTRIES
    for name, child in REGISTRIES.items():
        if name != 'SEARCHES':  # MMEngine knows none
            assert child.parent is getattr(root, name)
            assert child.parent.children['mmscale'] is child
        for location in child._locations:
            importlib.import_module(location)
        parts = child.module_dict.values()
        assert any(part.__module__.startswith('mmscale.') for part in parts), name
