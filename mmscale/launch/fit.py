"""Whether the parts of a run fit each other, asked before it begins."""

from __future__ import annotations

import copy
import difflib
from typing import TYPE_CHECKING, Any

from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


def check_arch(runner: Runner) -> None:
    """Checks that an ArchNet fits its images and the head after it.

    Raises:
        UsageError: One does not fit.
    """
    from mmpretrain.models import GlobalAveragePooling, LinearClsHead

    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import ArchNet

    model = unwrapped_model(runner)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ArchNet):
        return
    arch = backbone.arch
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and len(mean) != arch.stem.in_channels:
        raise UsageError(
            f'model.backbone.arch: the Arch has stem.in_channels={arch.stem.in_channels}, but '
            f'data_preprocessor.mean has {len(mean)} channels'
        )
    head = getattr(model, 'head', None)
    if not isinstance(head, LinearClsHead):
        return
    neck = getattr(model, 'neck', None)
    is_last = backbone.out_indices == (len(arch.stages),)
    if (
        is_last
        and isinstance(neck, GlobalAveragePooling)
        and head.in_channels != arch.feature_channels
    ):
        raise UsageError(
            f'model.head.in_channels={head.in_channels} does not fit model.backbone.arch, whose '
            f'features have {arch.feature_channels} channels'
        )
    if arch.head.num_classes not in (0, head.num_classes):
        runner.logger.warning(
            'model.head.num_classes=%d replaces head.num_classes=%d of the Arch',
            head.num_classes,
            arch.head.num_classes,
        )


def check_pretrained(runner: Runner) -> None:
    """Reads the weights that the init_cfg of a part of the model names, as the run will.

    Raises:
        ValueError: They are damaged or hold code; or they do not fit an ArchNet; or not one key
            is one of the part that shall get them.
        FileNotFoundError: There is no such file.
    """
    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import ArchNet
    from mmscale.models.checkpoints import load_checkpoint, misfit

    weights: dict[str, dict[str, Any]] = {}
    for name, module in unwrapped_model(runner).named_modules():
        if isinstance(module, ArchNet):
            module.read_pretrained()
            continue
        settings = getattr(module, 'init_cfg', None)
        for setting in settings if isinstance(settings, (list, tuple)) else [settings]:
            path = setting.get('checkpoint') if isinstance(setting, dict) else None
            # What lies elsewhere is read once, by the run.
            if not isinstance(path, str) or '://' in path:
                continue
            if path not in weights:
                checkpoint = load_checkpoint(path)
                state = checkpoint.get('state_dict', checkpoint)
                # As MMEngine's own reading of weights does.
                weights[path] = {str(key).removeprefix('module.'): state[key] for key in state}
            prefix = str(setting.get('prefix') or '').rstrip('.')
            start = f'{prefix}.' if prefix else ''
            found = {
                key.removeprefix(start): tensor
                for key, tensor in weights[path].items()
                if key.startswith(start)
            }
            wanted = module.state_dict()
            if wanted and not found.keys() & wanted.keys():
                part = f'model.{name}' if name else 'model'
                raise UsageError(
                    f'{part}.init_cfg.checkpoint={path}, prefix={prefix or None!r}: '
                    f'not one key fits: {misfit(wanted, found or weights[path])}'
                )


def check_classes(runner: Runner) -> None:
    """Checks that the classes of the data, of the head and of the metrics fit each other.

    Data of more classes than the head has is a warning: not all need be used.

    Raises:
        UsageError: A metric looks at more of the best classes than there are.
    """
    from mmscale.engine.wrappers import unwrapped_model

    head = getattr(unwrapped_model(runner), 'head', None)
    classes = getattr(head, 'num_classes', None)
    if type(classes) is not int:
        return
    asked = {'model.head.topk': getattr(head, 'topk', ()) if getattr(head, 'cal_acc', 0) else ()}
    for phase in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{phase}_loop')
        if loop is None or isinstance(loop, dict):
            continue
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
            asked[f'{phase}_evaluator.topk of {type(metric).__name__}'] = getattr(
                metric, 'topk', ()
            )
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        if len(names) > classes:
            runner.logger.warning(
                'model.head.num_classes=%d: the images of %s_dataloader are of %d classes',
                classes,
                phase,
                len(names),
            )
    for key, most in asked.items():
        most = (most,) if isinstance(most, int) else tuple(most)
        if max(most, default=0) > classes:
            raise UsageError(
                f'{key}={most}: model.head.num_classes={classes}, so at most {classes} is allowed'
            )


def check_last_batch(runner: Runner) -> None:
    """Checks that the BN layers of a training take its last batch, if that is of one image.

    Only of the networks of an Arch, whose input is known.

    Raises:
        UsageError: They do not.
    """
    from mmengine.dataset import InfiniteSampler
    from mmengine.runner import EpochBasedTrainLoop
    from torch.utils.data import DataLoader

    from mmscale.datasets import ResolutionSampler
    from mmscale.engine.single_images import archs_of_smallest_maps, refusal_of_one
    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import ArchNet, SuperNetTraining

    loader, model = runner.train_dataloader, unwrapped_model(runner)
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return
    in_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    endless = InfiniteSampler if in_epochs else (InfiniteSampler, ResolutionSampler)
    has_rest = not loader.drop_last and not isinstance(loader.sampler, endless)
    if loader.batch_size > 1 and not (has_rest and len(loader.sampler) % loader.batch_size == 1):
        return
    if isinstance(model, SuperNetTraining):
        archs = archs_of_smallest_maps(model.backbone.space)
        nets = [(arch, model.extract(arch)) for arch in archs]
    elif isinstance(getattr(model, 'backbone', None), ArchNet):
        nets = [(model.backbone.arch, copy.deepcopy(model))]
    else:
        return
    for arch, net in nets:
        error = refusal_of_one(net, arch.stem.in_channels, arch.resolution)
        if error:
            raise UsageError(
                f'train_dataloader: batch_size={loader.batch_size} makes a batch of one image of '
                f'{len(loader.sampler)}, of which BN layers cannot take statistics at '
                f'{arch.resolution} px ({error}): set train_dataloader.drop_last=True, or take '
                'another batch_size'
            )


def check_optimizer(config: Config) -> None:
    """Checks that there is an optimizer of the name that a config gives.

    Raises:
        UsageError: There is none; MMEngine would say that None is not callable.
    """
    from mmscale.registry import OPTIMIZERS

    optimizer = (config.get('optim_wrapper') or {}).get('optimizer')
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    if not isinstance(kind, str):
        return
    try:
        found = OPTIMIZERS.get(kind)
    except RuntimeError:
        found = None
    if found is None:
        known = sorted(OPTIMIZERS.parent.module_dict)
        near = difflib.get_close_matches(kind, known, n=3) or known
        raise UsageError(
            f'optim_wrapper.optimizer.type={kind!r:.60} is no optimizer; near are '
            f'{", ".join(near[:8])}'
        )
