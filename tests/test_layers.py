"""Holds the arrows between the packages of mmscale: a lower one never imports a higher one."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'mmscale'

# What each package (or module beside them) may import of mmscale, itself and `version` apart.
GROUND = {
    'config_parts', 'errors', 'files', 'input_size', 'memory', 'quiet', 'settings', 'shown',
    'tables', 'untrusted',
}  # fmt: skip
BESIDE = {'arch', 'registry'} | GROUND
MAY_IMPORT = {
    'version': set(),
    'config_parts': set(),
    'errors': {'shown'},
    'input_size': set(),
    'memory': {'errors'},
    'quiet': set(),
    'settings': set(),
    'shown': set(),
    'tables': {'shown'},
    'untrusted': {'errors'},
    'files': {'untrusted'},
    'registry': set(),
    'arch': GROUND,
    'cost': {'arch'} | GROUND,
    'search': {'arch', 'cost'} | GROUND,
    'models': {'cost'} | BESIDE,
    'datasets': BESIDE,
    'evaluation': BESIDE,
    'visualization': {'cost', 'search'} | BESIDE,
}
MAY_IMPORT['engine'] = set(MAY_IMPORT)
MAY_IMPORT['launch'] = set(MAY_IMPORT)
MAY_IMPORT['apis'] = {*MAY_IMPORT, ''}  # the front door itself

# What mmscale may import where a module is loaded; anything else (mmdet, transformers, ONNX,
# ...) is optional and imported in the function that uses it.
REQUIRED = {
    'cv2',
    'matplotlib',
    'mmcv',
    'mmengine',
    'mmpretrain',
    'numpy',
    'rich',
    'safetensors',
    'sklearn',
    'torch',
    'torchvision',
}
FRAMEWORKS = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'torch', 'torchvision'}
LIGHT_PACKAGES = ('arch', 'cost', 'search')


def top_name(module: str) -> str:
    return module.partition('.')[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')


def imports_of(tree: ast.AST, lazy: bool) -> Iterator[str]:
    """Yields the modules a tree imports; without lazy only those that loading it imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import would hide which package it reaches, so mmscale has none.
            assert node.level == 0, f'line {node.lineno}: relative import'
            if node.module == 'mmscale':
                yield from (f'mmscale.{alias.name}' for alias in node.names)
            else:
                yield node.module
        elif lazy:
            yield from imports_of(node, lazy)
        elif is_type_checking(node):
            for other in node.orelse:
                yield from imports_of(ast.Module([other], []), lazy)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_of(node, lazy)


def violations(room: str, source: str) -> list[str]:
    """Says what a module of a package (room) of mmscale imports and must not."""
    tree = ast.parse(source)
    found = []
    for module in imports_of(tree, lazy=True):
        name = top_name(module)
        if name == 'mmscale':
            target = top_name(module.removeprefix('mmscale').lstrip('.'))
            if target not in MAY_IMPORT[room] | {room, 'version', '__version__'}:
                found.append(f'{room} imports {module}')
        elif name in sys.stdlib_module_names:
            continue
        elif room == 'arch' and name != 'numpy':
            found.append(f'arch is standard library and NumPy, imports {module}')
        elif room == 'search' and name in FRAMEWORKS:
            found.append(f'search is free of frameworks, imports {module}')
    for module in imports_of(tree, lazy=False):
        name = top_name(module)
        if name in sys.stdlib_module_names or name == 'mmscale':
            continue
        if name not in REQUIRED:
            found.append(f'{module} is optional: import it in the function that uses it')
        elif room in LIGHT_PACKAGES and name in FRAMEWORKS:
            found.append(f'{room} loads without frameworks, imports {module}')
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


SOURCES = sorted(path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')


def test_modules_import_only_what_their_packages_may():
    rooms = {room_of(path) for path in SOURCES}
    assert rooms <= set(MAY_IMPORT), 'not in the picture of mmscale: place it in MAY_IMPORT'
    found = [
        f'{path.relative_to(ROOT)}: {violation}'
        for path in SOURCES
        for violation in violations(room_of(path), path.read_text(encoding='utf-8'))
    ]
    assert found == []


def test_front_door_imports_nothing_heavy():
    tree = ast.parse((PACKAGE / '__init__.py').read_text(encoding='utf-8'))
    assert set(imports_of(tree, lazy=True)) == {'lazy_loader', 'mmscale.version'}
    assert frameworks_loaded_by('import mmscale\nmmscale.Arch, mmscale.get_arch') == '[]'


def test_violations_are_found_and_nothing_else():
    forbidden = [
        ('arch', 'import torch'),
        ('arch', 'def f():\n    import scipy.stats'),
        ('arch', 'from mmscale.cost import count'),
        ('cost', 'from mmscale import search'),
        ('cost', 'class A:\n    import torch'),
        ('search', 'def f():\n    from mmengine.dist import get_rank'),
        ('search', 'import mmscale.models.backbones'),
        ('models', 'from mmscale.engine import hooks'),
        ('models', 'try:\n    import onnx\nexcept ImportError:\n    onnx = None'),
        ('datasets', 'if True:\n    from mmdet.datasets import CocoDataset'),
        ('datasets', 'from mmscale.engine import hooks'),
        ('engine', 'from mmscale.apis import search'),
        ('engine', 'from mmscale.launch import runner'),
        ('launch', 'from mmscale.apis import cost'),
        ('errors', 'from mmscale.files import write_json'),
        ('engine', 'import timm as networks'),
        ('version', 'import mmscale.arch'),
    ]
    allowed = [
        ('arch', 'import json\nimport numpy as np\nfrom mmscale.arch.rounding import Scaling'),
        ('cost', 'def f():\n    import torch'),
        ('cost', 'if TYPE_CHECKING:\n    from torch import nn'),
        ('models', 'import torch\nfrom mmscale.arch import Arch\ndef f():\n    import onnx'),
        ('engine', 'from mmscale import __version__, models, search'),
        ('apis', 'from mmscale.engine import hooks'),
    ]
    assert [case for case in forbidden if not violations(*case)] == []
    assert [case for case in allowed if violations(*case)] == []


def frameworks_loaded_by(statements: str) -> str:
    program = f'{statements}\nimport sys\nprint(sorted({FRAMEWORKS!r} & set(sys.modules)))'
    command = [sys.executable, '-c', program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_light_packages_load_without_frameworks():
    # The same from the other side: what really gets imported, through whatever is in between.
    modules = [
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        for path in SOURCES
        if room_of(path) in LIGHT_PACKAGES
    ]
    assert modules
    assert frameworks_loaded_by('\n'.join(f'import {module}' for module in modules)) == '[]'


def test_tools_load_without_frameworks():
    # `--help` answers at once: torch and MMEngine wait until a tool's work starts.
    tools = sorted(str(path) for path in (ROOT / 'tools').glob('*.py'))
    assert tools
    statements = '\n'.join(f'runpy.run_path({tool!r})' for tool in tools)
    assert frameworks_loaded_by(f'import runpy\n{statements}') == '[]'
