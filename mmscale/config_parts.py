"""Parts of a config: what their types name, and the datasets and transforms nested in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

# Keys under which dataset wrappers hold what they wrap: one dataset, or several.
_WRAPPED = ('dataset', 'datasets')
# Metrics whose ``topk`` is of classes; of others it is of images.
_COUNTED_BY_CLASS = ('Accuracy', 'MultiLabelMetric')


def _kind(part: object) -> object:
    return part.get('type') if isinstance(part, Mapping) else part


def type_name(part: object) -> str:
    """Name of what a part of a config is, whichever way its type is written.

    Args:
        part: A part with a ``type``, or the type itself: text with or without a scope, a class, a
            function, or what MMEngine's pure-Python configs hold in the place of one.

    Returns:
        The name alone; nothing where there is no type.

    Example:
        >>> import collections
        >>> [type_name(part) for part in (dict(type='mmcv.CenterCrop'), collections.Counter)]
        ['CenterCrop', 'Counter']
    """
    kind = _kind(part)
    if kind is None:
        return ''
    if isinstance(kind, (type, FunctionType, BuiltinFunctionType)):
        return kind.__name__
    # As text MMEngine's LazyObject and LazyAttr are the name of what they stand for.
    return str(kind).rpartition('.')[2]


def type_scope(part: object) -> str:
    """Package of what a part of a config is: the scope of its type, or nothing if it has none.

    Args:
        part: See :func:`type_name`.

    Example:
        >>> import collections
        >>> [type_scope(kind) for kind in ('mmcv.CenterCrop', 'Resize', collections.Counter)]
        ['mmcv', '', 'collections']
    """
    kind = _kind(part)
    if kind is None:
        return ''
    if isinstance(kind, str):
        module = kind.rpartition('.')[0]
    elif isinstance(kind, (type, FunctionType, BuiltinFunctionType)):
        module = str(kind.__module__)
    else:
        module = str(getattr(kind, 'module', ''))
    return module.partition('.')[0]


def is_pretrained(part: object) -> bool:
    """Whether an initialisation of a config, an ``init_cfg`` or one of several, reads weights.

    Example:
        >>> [is_pretrained(dict(type=kind)) for kind in ('Pretrained', 'PretrainedInit', 'Normal')]
        [True, True, False]
    """
    return isinstance(part, Mapping) and type_name(part) in ('Pretrained', 'PretrainedInit')


def nested_datasets(dataset: object) -> Iterator[MutableMapping[str, Any]]:
    """Yields a dataset's config and those of all datasets in it, inner ones before outer ones.

    Wrappers hold one dataset (``RepeatDataset``, ``ClassBalancedDataset``, ``SeededDataset``,
    ``MultiImageMixDataset``, ...) or several (``ConcatDataset``), to any depth. What is yielded
    are the config's own parts: what is set in them is set in the config.

    Args:
        dataset: The config; anything else (none, or a dataset that is built) has no parts.

    Example:
        >>> part = dict(type='CustomDataset', pipeline=[])
        >>> both = dict(type='ConcatDataset', datasets=[part])
        >>> [one['type'] for one in nested_datasets(dict(type='RepeatDataset', dataset=both))]
        ['CustomDataset', 'ConcatDataset', 'RepeatDataset']
    """
    if isinstance(dataset, (list, tuple)):
        for part in dataset:
            yield from nested_datasets(part)
    elif isinstance(dataset, MutableMapping):
        for key in _WRAPPED:
            yield from nested_datasets(dataset.get(key))
        yield dataset


def innermost_datasets(dataset: object) -> Iterator[MutableMapping[str, Any]]:
    """Yields the configs of the datasets that wrap no other, see :func:`nested_datasets`."""
    for part in nested_datasets(dataset):
        if not any(isinstance(part.get(key), (Mapping, list, tuple)) for key in _WRAPPED):
            yield part


def nested_transforms(pipeline: object) -> Iterator[MutableMapping[str, Any]]:
    """Yields the config of every transform of a pipeline, each before those that it holds.

    Of any other part of a config it is every part with a type.

    Transforms hold others as lists (``RandomApply``), as lists in lists (``TestTimeAug``), by name
    (``MultiBranch``) or alone. What is yielded are the config's own parts.

    Example:
        >>> flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        >>> pipeline = [dict(type='TestTimeAug', transforms=[flips, [dict(type='PackInputs')]])]
        >>> [one['type'] for one in nested_transforms(pipeline)]
        ['TestTimeAug', 'RandomFlip', 'RandomFlip', 'PackInputs']
    """
    if isinstance(pipeline, (list, tuple)):
        for part in pipeline:
            yield from nested_transforms(part)
    elif isinstance(pipeline, MutableMapping):
        if 'type' in pipeline:
            yield pipeline
        for value in pipeline.values():
            yield from nested_transforms(value)


def nested_pipelines(
    part: object, name: str = ''
) -> Iterator[tuple[str, MutableMapping[str, Any], str]]:
    """Yields every pipeline in a part of a config, wherever datasets, hooks or others hold it.

    Args:
        part: The part, a whole config's settings too.
        name: What the part is called.

    Yields:
        What the pipeline is called, what holds it and under which key: ``pipeline``, or one that
        ends in ``_pipeline``.

    Example:
        >>> hooks = [dict(type='EMAHook'), dict(type='Switch', switch_pipeline=[])]
        >>> [name for name, _, _ in nested_pipelines(hooks, 'custom_hooks')]
        ['custom_hooks[1].switch_pipeline']
    """
    if isinstance(part, (list, tuple)):
        for i, one in enumerate(part):
            yield from nested_pipelines(one, f'{name}[{i}]')
    elif isinstance(part, MutableMapping):
        for key, value in part.items():
            inner = f'{name}.{key}' if name else str(key)
            is_pipeline = key == 'pipeline' or str(key).endswith('_pipeline')
            if is_pipeline and isinstance(value, (Mapping, list, tuple)):
                yield inner, part, key
            else:
                yield from nested_pipelines(value, inner)


def head_classes(model: object) -> int | None:
    """How many classes the head of a classifier's config is for; None where nothing says it.

    Args:
        model: The config, of a classifier or of a model around one (``PrunedModel``, ...).

    Example:
        >>> head_classes(dict(type='PrunedModel', model=dict(head=dict(num_classes=3))))
        3
    """
    while isinstance(model, Mapping) and isinstance(model.get('model'), Mapping):
        model = model['model']
    head = model.get('head') if isinstance(model, Mapping) else None
    classes = head.get('num_classes') if isinstance(head, Mapping) else None
    return classes if type(classes) is int else None


def with_valid_topk(part: Any, classes: int | None) -> Any:
    """A head, a metric or a list of metrics without top-k accuracies of more classes than it has.

    Args:
        part: The config; it is left as it is.
        classes: How many classes there are; None leaves all as it is.

    Example:
        >>> with_valid_topk([dict(type='Accuracy', topk=(1, 5))], classes=2)
        [{'type': 'Accuracy', 'topk': (1,)}]
    """
    if classes is None:
        return part
    if isinstance(part, (list, tuple)):
        return type(part)(with_valid_topk(one, classes) for one in part)
    if not isinstance(part, Mapping) or part.get('topk') is None:
        return part
    if type_name(part) not in _COUNTED_BY_CLASS and 'num_classes' not in part:
        return part
    topk = part['topk']
    if isinstance(topk, int):
        return {**part, 'topk': topk if topk <= classes else 1}
    return {**part, 'topk': tuple(k for k in topk if k <= classes) or (1,)}
