"""Runs the blocks of README.md and docs/*.md: each as it stands, small, or left out for a reason.

A block that nothing here matches is run as it stands, so that a new one either works or fails.
"""

import contextlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))]
SCRIPTS = sorted(path.name for path in (ROOT / 'docs').glob('*.py'))
SHELLS = ('bash', 'shell', 'sh')

# Commands (their beginning, as a regular expression) that are not run, and why.
NOT_RUN = {
    r'make ': 'it calls what is run here, or installs',
    r'source |(\.venv/bin/)?pip |\.venv/bin/pre-commit ': 'it changes the environment',
    r'tools/slurm_|sbatch ': 'needs Slurm; tests/tools/test_launch_scripts.py',
    r'trtexec ': 'needs TensorRT',
    r'.*_coco\.py|MMDET=|.*\$MMDET': 'needs COCO',
    r'.*data/imagenet': 'needs ImageNet',
    r'.*_3rdparty_|.*swin-tiny_': 'needs what the user has downloaded',
    r'pytest ': 'is a run of these tests',
    r'for |cp ': 'makes the pictures of the documents from what is run here',
    r'python tools/install_mmcv_ops\.py': 'builds for minutes; its own tests run it',
}
# What is put in the place of a text of a command or a Python block.
CHANGES = {
    # Several processes: tests/tools/test_launch_scripts.py and tests/engine/test_distributed.py.
    r'^tools/dist_(\w+)\.sh (\S+) \d+': r'python tools/\1.py \2',
    # Everything is trained for this many iterations.
    r'iter_\d+\.pth': 'iter_2.pth',
    # ONNX takes a quarter of a minute: once is enough.
    r'^(python tools/export\.py .* --scaling-stage 2 .*(?<!--fuse))$': r'\1 --formats mmpretrain',
    r'^(python tools/export\.py .* --fuse)$': r'\1 --formats pt2',
    # Of hours, whether it starts.
    r'^(python benchmarks/(?:joint_|dms_|search_)\w+\.py) .*': r'\1 --help',
    r'^(python benchmarks/(?:super_net_step|peers|ceilings|growth|gpu)\.py).*': r'\1 --help',
    r'^(python benchmarks/dry_run\.py .*)': r'\1 --seeds 1',
    r'(--method dms)': r'\1 --iterations 2',
    # The teacher of a search is read when its network is built.
    r'^(python tools/prune\.py configs/dms/dms-llama-mini-distilled_stdlib\.py .*)': (
        r'\1 --cfg-options model.model.teacher_checkpoint=work_dirs/llama-mini_stdlib/iter_2.pth'
    ),
    r'--checkpoint iter_2\.pth': '--checkpoint work_dirs/digits-s0/iter_2.pth',
    r'pretrained=True': 'pretrained=False',  # it would download
    r'^(python tools/scale\.py .*(?:--fit-latency|--measure).*)': r'\1 --repeats 1',
    # What a busy machine measures once may tell nothing.
    r'^(python tools/scale\.py .*--budget latency=.*--latency-model) \S+': (
        rf'\1 {ROOT}/docs/results/latency.json'
    ),
    # Fitted on the scalings of one network, not of three.
    r'^(python tools/scale\.py) --fit-latency': r'\1 RegNetY-200MF --fit-latency',
}
# Settings of configs that make a run small, where a config has them.
SMALL = {
    'max_iters': 2,
    'val_interval': 2,
    'population': 2,
    'generations': 1,
    'rounds': 1,
    'num_base_models': 1,
    'evaluations': 16,
    'calibration_images': 16,
    'max_images': 16,
    'batch_size': 16,
}
IMAGES = ('mmscale.ClutteredDigits', 'mmscale.DigitsDetection')
# What the Python blocks of a document take for granted.
GIVEN = {
    'docs/dms.md': """
import mmscale
import torch
import torchvision

network = torchvision.models.resnet18(num_classes=10)
images = torch.zeros(1, 3, 32, 32)
loader = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))]
""",
    'docs/export.md': """
import torch
from mmscale.apis.networks import build_network
from mmscale.arch import get_arch

images = torch.zeros(1, 1, 24, 24).numpy()
arch = get_arch('ResNet-18')
classifier = build_network(arch)
""",
    'docs/own_data.md': """
from own_images import prepare

prepare()
""",
}


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and where it begins."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f'{self.document}:{self.line}'


def blocks(document):
    """The blocks of a document that name a language."""
    text = (ROOT / document).read_text(encoding='utf-8')
    for found in re.finditer(r'^```(\w+)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        line = text.count('\n', 0, found.start()) + 1
        yield Block(document, line, found[1], found[2])


def commands(text):
    """The commands of a shell block: lines that go on are one, loops too; without comments."""
    pending = ''
    for line in text.splitlines():
        pending += line
        if pending.endswith('\\'):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on
            pending += '\n'
            continue
        if words and words[0] == 'for' and words[-1] != 'done':
            pending += '\n'
            continue
        if words:
            yield re.sub(r'\s+#\s.*$', '', pending) if '\n' not in pending else pending
        pending = ''
    assert not pending.strip(), f'a command without an end: {pending}'


def configs_named(name):
    """Experiments, of which a work dir has the name."""
    found = (ROOT / 'configs').rglob(f'{name}.py')
    return [path for path in found if '_base_' not in path.parts]


def reason_not_to_run(command):
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), None)


def changed(text):
    for old, new in CHANGES.items():
        text = re.sub(old, new, text)
    return text


def small_settings(config):
    """Options that make what a config says small."""

    def walk(node, path):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        if isinstance(node, dict) and node.get('type') in IMAGES:
            yield f'{path}num_images', 32
        for key, value in pairs:
            if key in SMALL and isinstance(value, int):
                yield f'{path}{key}', min(value, SMALL[key])
            elif key == 'indices' and isinstance(value, int):
                # Of a dataset's first or last images; tests/own_images.py makes few.
                yield f'{path}{key}', max(-32, min(value, 64))
            elif key == 'weights' and isinstance(value, (list, tuple)):
                # Of a search: that many scaling stages are scored.
                yield f'{path}{key}', [int(j < 2) for j in range(len(value))]
            elif isinstance(value, str) and value != changed(value):
                yield f'{path}{key}', changed(value)  # a checkpoint of another training
            elif isinstance(value, (dict, list, tuple)):
                yield from walk(value, f'{path}{key}.')

    return dict(walk(config.to_dict(), ''))


class Workplace:
    """A folder in which commands of the documents run, with the checkout's files in it."""

    def __init__(self, folder):
        self.folder = folder
        self.done = set()
        for name in ('configs', 'tools', 'benchmarks'):
            (folder / name).symlink_to(ROOT / name)
        (folder / 'work_dirs').mkdir()
        (folder / 'docs' / 'results').mkdir(parents=True)

    def shell(self, command):
        """Runs a command of a document, once, unless there is a reason not to."""
        if reason_not_to_run(command) is not None:
            return
        command = changed(command)
        if command in self.done:
            return
        words = shlex.split(command)
        if words[0] in ('python', '.venv/bin/python') and words[1].startswith(
            ('tools/', 'benchmarks/')
        ):
            self.python(words[1], words[2:])
        elif words[0] == 'echo':
            subprocess.run(['bash', '-c', command], check=True)
        else:
            raise AssertionError(f'nobody said how to test: {command}')
        self.done.add(command)

    def python(self, tool, words):
        """Calls a tool in this process, small; makes first what it reads."""
        written = {'--out', '--work-dir'}
        if '--fit-latency' in words:
            written.add('--latency-model')
        for before, word in zip(['', *words], words, strict=False):
            if before not in written:
                self._make(word.rpartition('=')[2])
            elif before == '--out' and Path(word).is_dir():
                shutil.rmtree(word)  # of another document
        with_config = (
            'tools/train.py',
            'tools/search.py',
            'tools/test.py',
            'benchmarks/dry_run.py',
        )
        if tool in with_config and not words[0].startswith('--'):
            words = self._with_small_settings(tool, words)
        output = io.StringIO()
        argv, sys.argv = sys.argv, [tool, *words]
        sys.path.insert(0, str((ROOT / tool).parent))  # as Python does
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                runpy.run_path(str(ROOT / tool), run_name='__main__')
        except SystemExit as end:
            assert not end.code, f'{tool} {shlex.join(words)}\n{output.getvalue()[-3000:]}'
        finally:
            sys.argv = argv
            sys.path.pop(0)

    def _with_small_settings(self, tool, words):
        from mmengine.config import Config

        config = Config.fromfile(words[0], import_custom_modules=False)
        options = {'experiment_name': uuid.uuid4().hex, **small_settings(config)}
        for key, value in list(options.items()):
            if tool == 'benchmarks/dry_run.py' and key == 'load_from':
                del options[key]  # it reads none
            elif isinstance(value, str):
                self._make(value)
        if tool == 'tools/train.py' and 'StandardLibrary' in str(config.get('val_dataloader')):
            words = [words[0], '--no-validate', *words[1:]]
        if '--cfg-options' not in words:
            words = [*words, '--cfg-options']
        place = words.index('--cfg-options') + 1
        own = [word for word in words[place:] if word.partition('=')[0] not in options]
        texts = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
        return [*words[:place], *texts, *own]

    def _make(self, path):
        """Trains or searches what a path in work_dirs/ belongs to, if nothing has made it yet."""
        parts = Path(path).parts
        if len(parts) < 2 or parts[0] != 'work_dirs' or Path(*parts[:2]).exists():
            return
        found = configs_named(parts[1])
        assert len(found) == 1, f'{path}: nothing above makes it, and no config has this name'
        config = found[0].relative_to(ROOT)
        from mmengine.config import Config

        is_search = Config.fromfile(config, import_custom_modules=False).get('train_cfg') is None
        self.shell(f'python tools/{"search" if is_search else "train"}.py {config}')


def is_config(text):
    """Whether a Python block is a config, or a part of one."""
    return re.match(r'(_base_|custom_imports|model|test_cfg) = ', text) is not None


def run_document(document, workplace):
    """Runs all blocks of a document, in order; Python blocks share their names."""
    names = {}
    exec(GIVEN.get(document, ''), names)
    for block in blocks(document):
        if block.language in SHELLS:
            for command in commands(block.text):
                try:
                    workplace.shell(command)
                except AssertionError as error:
                    raise AssertionError(f'{block}: {error}') from error
        elif is_config(block.text):
            check_config(block)
        else:
            assert block.language == 'python', f'{block}: nobody said how to test {block.language}'
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(changed(block.text), str(block), 'exec'), names)
            except Exception as error:
                raise AssertionError(f'{block}: {error!r}') from error


def run_script(name, workplace):
    """Runs a tutorial of docs/, with small configs in the place of those that it reads."""
    from mmengine.config import Config

    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    whole = "Path(mmscale.__file__).parent / '.mim' / 'configs'"
    assert whole in text, f'{name} reads its configs from elsewhere now'
    for folder, config_name in re.findall(r"configs / '(\w+)' / '([\w-]+\.py)'", text):
        config = Config.fromfile(ROOT / 'configs' / folder / config_name)
        config.merge_from_dict({**small_settings(config), 'experiment_name': uuid.uuid4().hex})
        (workplace.folder / 'small' / folder).mkdir(parents=True, exist_ok=True)
        config.dump(workplace.folder / 'small' / folder / config_name)
    argv, sys.argv = sys.argv, [name, '--iterations', '2']
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            text = text.replace(whole, "Path('small')")
            text = text.replace('overwrite=True', "overwrite=True, formats=['mmpretrain']")
            exec(compile(text, name, 'exec'), {})
    finally:
        sys.argv = argv


def check_config(block):
    """A config, of which parts may be left out as `...`: it is valid, and names parts that exist.

    A model that is whole is built.
    """
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmscale.datasets
    import mmscale.engine
    import mmscale.evaluation
    import mmscale.models  # noqa: F401
    from mmscale.registry import MODELS

    text = re.sub(r',?\s*\.\.\.', '', block.text)
    base = re.search(r"^_base_ = '(.*)'$", text, re.MULTILINE)
    if base is not None:
        named, page = Path(base[1]).name, (ROOT / block.document).read_text(encoding='utf-8')
        # One of ours, or one that the page has before it.
        is_there = f'/{named}`:' in page or list((ROOT / 'configs').rglob(named))
        assert is_there, f'{block}: no {base[1]}'
        text = text.replace(base[0], '')
    config = Config.fromstring(text, '.py')
    scope = 'mmdet' if 'detection' in block.document else 'mmpretrain'
    with DefaultScope.overwrite_default_scope(scope):
        for name in re.findall(r"\btype='([^']+)'", text):
            assert is_registered(name), f'{block}: there is no {name}'
        if text == block.text and config.get('model', {}).get('type'):
            MODELS.build(config.model)


def is_registered(name):
    """Whether a registry has a part of that name, in the present scope."""
    import mmengine.registry
    from mmengine.registry import Registry

    from mmscale.registry import SEARCHES

    if SEARCHES.get(name) is not None:  # which MMEngine does not know
        return True
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            with registry.switch_scope_and_registry(None) as found:
                if found.get(name) is not None:
                    return True
    return False
