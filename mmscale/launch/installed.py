"""Finds OpenMMLab packages that are installed twice, the original and its onedl- build."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Distributions that own one folder: the originals, and the build that mmscale requires.
_SAME_FOLDER = {
    'mmengine': (('mmengine', 'mmengine-lite'), 'onedl-mmengine'),
    'mmcv': (('mmcv', 'mmcv-lite'), 'onedl-mmcv'),
    'mmpretrain': (('mmpretrain',), 'onedl-mmpretrain'),
    'mmdet': (('mmdet',), 'onedl-mmdetection'),
}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed_twice() -> str | None:
    """One line about distributions that have replaced each other's files, or None.

    pip does not know that both own the folder: the one that came last has replaced the files of
    the other in silence, and removing either breaks what is left.
    """
    folders, pairs, names, builds = [], [], [], []
    for folder, (originals, build) in _SAME_FOLDER.items():
        # The build is looked for only where there is an original: most often nowhere.
        old = {name: number for name in originals if (number := _version(name))}
        if old and (new := _version(build)):
            folders.append(folder)
            pairs += [f'{name} {number} and {build} {new}' for name, number in old.items()]
            names += [*old, build]
            builds.append(f"'{build}=={new}'")
    if not folders:
        return None
    return (
        f'{", ".join(pairs)} are installed together and share a folder ({", ".join(folders)}), '
        f'which may hold files of either; mend it with: pip uninstall {" ".join(names)}; '
        f'pip install --no-deps {" ".join(builds)}'
    )
