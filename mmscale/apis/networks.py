"""What a user named, found and built: a network by name, Arch, config or module."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.input_shape import ASSUMED_SIDE, InputShape, config_input
from mmscale.apis.packaged_configs import packaged_config
from mmscale.apis.reports.run_files import result_origin
from mmscale.arch import Arch, get_arch, preset_name
from mmscale.arch.json_files import read_json
from mmscale.arch.origin import Origin, origin_of, read_origin
from mmscale.config_parts import nested_transforms, type_name
from mmscale.errors import FOREIGN_ERRORS, MMScaleError, UsageError, one_line
from mmscale.launch.command_line import read_config
from mmscale.memory import check_memory
from mmscale.quiet import quiet_imports
from mmscale.search.result_files import read_result

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

# Of a model with all parts of its parts; each takes some KB.
_MOST_LAYERS = 100_000
_LARGE_BYTES = 2**26


def classifier_config(arch: Arch) -> dict[str, Any]:
    """Config of the mmpretrain classifier that is the whole network of an Arch, head included."""
    head = None
    widths = [width for width in (arch.head.hidden_channels, arch.head.num_classes) if width]
    if widths:
        head = dict(
            type='mmpretrain.LinearClsHead',
            num_classes=widths[-1],
            in_channels=arch.feature_channels,
            topk=(1,),
        )
    if len(widths) == 2:
        with quiet_imports():
            from mmscale.models.backbones.blocks import activation_cfg

        head.update(
            type='mmpretrain.StackedLinearClsHead',
            mid_channels=widths[:1],
            act_cfg=activation_cfg(arch.head.act),
        )
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch=arch),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head,
    )


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """New weights take neither memory nor time; what is computed while building is."""
    import torch
    from torch.overrides import TorchFunctionMode

    weights = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}

    class OnMeta(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func in weights and kwargs.get('device') is None:
                kwargs['device'] = 'meta'
            return func(*args, **kwargs)

    with OnMeta():
        yield


def _alone(config: Mapping) -> dict[str, Any]:
    """A copy of a config, as some models change what they are built of, for a process alone.

    MMEngine's synchronised BN cannot even be built there, and is plain BN: with the same weights.
    """
    from torch import distributed

    copied = copy.deepcopy(dict(config))
    if not (distributed.is_available() and distributed.is_initialized()):
        for part in nested_transforms(copied):
            if type_name(part) == 'MMSyncBN':
                part['type'] = 'BN'
                part.pop('stats_mode', None)
    return copied


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Refuses modules of more layers than a network has, and weights that do not fit into memory.

    A few bytes of a config may ask for any number.
    """
    from torch.nn.modules import module as hooks

    layers = 0

    def add_layer(*_: object) -> None:
        nonlocal layers
        layers += 1
        if layers > _MOST_LAYERS:
            raise MMScaleError(f'model has more than {_MOST_LAYERS:,} layers')

    def add_weight(_: object, name: str, weight: Tensor | None) -> None:
        size = 0 if weight is None else weight.numel() * weight.itemsize
        if size > _LARGE_BYTES and weight.device.type == 'cpu':
            check_memory(f'model: {name} of shape {tuple(weight.shape)}', size)

    handles = (
        hooks.register_module_module_registration_hook(add_layer),
        hooks.register_module_parameter_registration_hook(add_weight),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def build_module(config: Mapping, scope: str = 'mmpretrain', meta: bool = False) -> nn.Module:
    """Builds a model or a part of one from its config.

    Args:
        config: Config with a ``type``.
        scope: Package whose registry knows the type.
        meta: Whether the weights need no values, because the module is only counted. A module
            that cannot be built without gets them.

    Raises:
        ValueError: The config cannot be built.
        MMScaleError: It has too many layers.
    """
    with quiet_imports():
        from mmengine.config import ConfigDict
        from mmengine.registry import MODELS, DefaultScope

        import mmscale.models  # noqa: F401
    reason: Exception | None = None
    for place in (_on_meta(), contextlib.nullcontext()) if meta else (contextlib.nullcontext(),):
        try:
            with place, _bounded(), quiet_imports(), DefaultScope.overwrite_default_scope(scope):
                # mmdet's models look parts up as attributes.
                return MODELS.build(ConfigDict(_alone(config)))
        except FOREIGN_ERRORS as error:
            reason = error
    raise UsageError(
        f'{type_name(config) or None} cannot be built: {one_line(reason):.300}'
    ) from reason


def build_network(arch: Arch, meta: bool = False) -> nn.Module:
    """Builds the whole network of an Arch: an mmpretrain classifier around an ArchNet."""
    return build_module(classifier_config(arch), meta=meta)


def image_shape(arch: Arch) -> tuple[int, int, int]:
    """Shape of the image that an Arch is made for."""
    return (arch.stem.in_channels, arch.resolution, arch.resolution)


def config_image_shape(config: Config, module: nn.Module) -> tuple[int, ...]:
    """Shape of what a config's model gets, see :func:`mmscale.apis.input_shape.config_input`.

    Args:
        config: A whole config.
        module: The model built of it.
    """
    return config_input(config, module).shape


def find_arch(source: str) -> tuple[str, Arch]:
    """Name and Arch of a preset or of an Arch's JSON file.

    Raises:
        UsageError: There is neither a preset nor a file of that name, or it is no Arch.
    """
    return preset_name(source) or Path(source).stem, get_arch(source)


class Network:
    """One network that a user named: what it is, where it is from and how it is built.

    Args:
        name: For tables and files.
        source: What was named, as text; None for an object.
        arch: The Arch, if the network is one.
        config: The config, if the network is the model of one.
        module: The module, if the network was given built.
        member: Its entry in the ``result.json`` of a search, if it is from one.
        shape: Height and width of an image, if the user says them.
    """

    def __init__(
        self,
        name: str,
        source: str | None = None,
        arch: Arch | None = None,
        config: Config | None = None,
        module: nn.Module | None = None,
        member: Mapping[str, Any] | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.config = config
        self.member = member
        self._module = module
        self._shape = shape
        is_square = shape is None or shape[0] == shape[1]
        if arch is not None and shape is not None and is_square:
            arch = replace(arch, resolution=shape[0])
        self.arch = arch
        # What arithmetic alone can cost: the head included, at a square image.
        self.is_closed_form = arch is not None and is_square

    @property
    def scope(self) -> str:
        """The package whose registry knows the parts of the config."""
        return (self.config or {}).get('default_scope') or 'mmpretrain'

    def build(self, meta: bool = False) -> nn.Module:
        """The network with random weights, or the very module that was given.

        Args:
            meta: See :func:`build_module`.

        Raises:
            UsageError: It cannot be built.
        """
        if self._module is not None:
            return self._module
        if self.arch is not None:
            return build_network(self.arch, meta)
        return build_module(self.config.model, self.scope, meta)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network to be looked at alone: its weights need no values."""
        return self.build(meta=True)

    @cached_property
    def backbone_arch(self) -> Arch | None:
        """The Arch of the network, or of the ArchNet in the model of the config."""
        if self.arch is not None or self.config is None:
            return self.arch
        found = getattr(getattr(self.skeleton, 'backbone', None), 'arch', None)
        return found if isinstance(found, Arch) else None

    @cached_property
    def origin(self) -> Origin | None:
        """The config that it is from and its data, as far as that is known."""
        if self.config is not None:
            return origin_of(self.config)
        path = Path(self.source or '')
        path = path / 'result.json' if path.is_dir() else path
        if not path.is_file():
            return None
        return read_origin(path) if self.member is None else result_origin(path)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of the images that it is made for; or a text's length."""
        return self._input.shape

    @property
    def shape_source(self) -> str:
        """What says the size of the images, for messages."""
        return self._input.source

    @cached_property
    def _input(self) -> InputShape:
        if self.arch is not None:
            found = InputShape(image_shape(self.arch), 'the Arch')
        elif self.config is not None:
            found = config_input(self.config, self.skeleton)
        else:
            about = getattr(self._module, 'default_cfg', None) or {}  # of timm's networks
            said = tuple(about.get('input_size') or ())
            found = InputShape(said, 'timm')
            if not said:
                found = InputShape((3, ASSUMED_SIDE, ASSUMED_SIDE), 'an assumption')
        if self._shape is None:
            return found
        if len(found.shape) == 1:
            raise UsageError(f'shape={self._shape}: {self.name} is a language model')
        return InputShape((found.shape[0], *self._shape), 'the user')


def _timm_network(name: str) -> nn.Module:
    from mmscale.models.timm_networks import create

    return create(name)


def _packaged_config(source: str) -> Config:
    """A config that a package ships, as ``mmpretrain::resnet/resnet18_8xb32_in1k.py``."""
    try:
        with quiet_imports():
            from mmengine.hub import get_config

            return read_config(get_config(source))
    except FOREIGN_ERRORS as error:
        raise UsageError(f'{source}: {one_line(error):.300}') from error


def _result_network(path: Path, scaling_stage: int) -> Network:
    """A network of a search's result."""
    data = read_result(path, ('arch',))
    members = data['front' if data.get('kind') == 'pareto' else 'scaling_stages']
    if not 0 <= scaling_stage < len(members):
        raise UsageError(f'scaling stage {scaling_stage}: {path} has 0 to {len(members) - 1}')
    member = members[scaling_stage]
    name = f'{path.resolve().parent.name} S{scaling_stage}'
    return Network(name, str(path), Arch.from_json(member['arch']), member=member)


def holds_result(data: object) -> bool:
    """Whether the content of a JSON file is meant as the result of a search."""
    return isinstance(data, Mapping) and ('settings' in data or 'scaling_stages' in data)


def find_network(
    source: str | Path | Mapping | Arch | Config | nn.Module | Network,
    options: Sequence[str] = (),
    scaling_stage: int | None = None,
    shape: tuple[int, int] | None = None,
) -> Network:
    """Finds the network that a user named, whatever he named it by.

    Args:
        source: A preset's name; an Arch, its JSON file or its content, or what scaling made of
            one; the ``result.json`` of a search or its folder; a config (a file in either of
            MMEngine's styles, its content, or ``mmpretrain::NAME`` and ``mmdet::NAME`` of those
            that the packages ship, or such a file's name alone or with its folder);
            ``timm:NAME``; or an ``nn.Module``.
        options: Overrides of a config, ``KEY=VALUE`` each.
        scaling_stage: Which network of a result; by default the base model.
        shape: Height and width of the images, in the place of what the network is made for.

    Raises:
        UsageError: There is no such network.

    Example:
        >>> find_network('resnet-18').image_shape
        (3, 224, 224)
    """
    if isinstance(source, Network):
        return source
    is_module = callable(getattr(source, 'named_modules', None)) and not isinstance(source, type)
    if not is_module and isinstance(getattr(source, 'arch', None), Arch):  # made by scaling
        name = getattr(source, 'label', type(source).__name__)
        return Network(name, None, source.arch, shape=shape)
    if holds_result(getattr(source, 'data', None)):  # as load_result has it
        source = source.path
    text = str(source) if isinstance(source, (str, Path)) else None
    if text is not None and preset_name(text) is None and not Path(text).exists():
        text = packaged_config(text) or text
    path = None if text is None else Path(text)
    found: dict[str, Any] = {}
    is_result = False
    if path is not None and path.is_dir() and (path / 'result.json').is_file():
        path = path / 'result.json'
    if isinstance(source, Arch):
        name, found = 'arch', {'arch': source}
    elif text is not None and text.startswith('timm:'):
        name = text.removeprefix('timm:')
        found = {'module': _timm_network(name)}
    elif text is not None and '::' in text:
        text = text if text.endswith('.py') else f'{text}.py'
        found = {'config': _packaged_config(text)}
        name = Path(text.partition('::')[2]).stem
    elif path is not None and path.suffix == '.py':
        name, found = path.stem, {'config': read_config(text)}
    elif path is not None and path.suffix == '.json' and path.is_file():
        is_result = holds_result(read_json(path))
        name, found = path.stem, {} if is_result else {'arch': get_arch(text)}
    elif text is not None:
        name, arch = find_arch(text)
        found = {'arch': arch}
    elif hasattr(source, 'pretty_text'):  # a Config, which is no Mapping
        name, found = Path(source.filename or 'config').stem, {'config': source}
    elif isinstance(source, Mapping) and 'model' in source:
        from mmengine.config import Config

        name, found = 'config', {'config': Config(source)}
    elif isinstance(source, Mapping) and 'type' in source:
        from mmengine.config import Config

        name, found = 'model', {'config': Config(dict(model=dict(source)))}
    elif isinstance(source, Mapping):
        name, found = 'arch', {'arch': get_arch(dict(source))}
    elif is_module:
        name, found = type(source).__name__, {'module': source}
    else:
        raise UsageError(f'{source!r:.60} is no name, file, Arch, config or module')
    if scaling_stage is not None and not is_result:
        raise UsageError(f'scaling stage {scaling_stage}: {source} is no result of a search')
    config = found.get('config')
    if options and config is None:
        raise UsageError(f'options={list(options)}: {name} is no config')
    if options:
        config = found['config'] = read_config(config, options)
    if config is not None and not isinstance(config.get('model'), Mapping):
        raise UsageError(f'{text or name}: the config has no model')
    if is_result:
        network = _result_network(path, scaling_stage or 0)
        name, found = network.name, {'arch': network.arch, 'member': network.member}
    return Network(name, text, shape=shape, **found)


def build(
    source: str | Path | Mapping | Arch | Config | nn.Module,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
) -> nn.Module:
    """Builds a network with random weights.

    Args:
        source: See :func:`find_network`.
        features_only: Whether to get the backbone alone, which returns the feature maps of
            `out_indices`, as timm's networks do.
        out_indices: Network stages whose outputs are returned, from 0 on; all by default.

    Returns:
        A module that maps images (N, channels, height, width) to logits (N, classes); or to a
        tuple of feature maps, which has their ``out_channels``.

    Raises:
        UsageError: There is no such network, or it cannot be built, or only an Arch has features.

    Example:
        >>> import torch
        >>> network = build('scalenet-s0', features_only=True, out_indices=(1, 2)).eval()
        >>> [tuple(features.shape) for features in network(torch.zeros(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 40, 8, 8)]
    """
    network = find_network(source)
    if not features_only:
        if out_indices is not None:
            raise UsageError(f'out_indices={out_indices} needs features_only=True')
        return network.build()
    arch = network.backbone_arch
    if arch is None:
        raise UsageError(f'features_only: {network.name} has no Arch; take its own backbone')
    if out_indices is None:
        out_indices = range(len(arch.stages))
    out_indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    backbone = dict(type='mmscale.ArchNet', arch=arch, out_indices=out_indices)
    return build_module(backbone)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keeps MMEngine's log, which goes to the standard output, to errors."""
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel('ERROR')
    try:
        yield
    finally:
        log.setLevel(level)
