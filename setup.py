"""Packaging of mmscale; the only place of its metadata."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    text = (ROOT / 'mmscale' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE).group(1)


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='mmscale',
    version=read_version(),
    description='Finds the network to train for a compute budget: search, train and compare.',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12, 13)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmscale', 'mmscale.*']),
    # In the repository .mim holds links to configs/, tools/ and model-index.yml, in a wheel these
    # files: it is where mim and mmengine look for them.
    package_data={
        'mmscale': [
            'py.typed',
            '__init__.pyi',
            '.mim/model-index.yml',
            *(f'.mim/configs/**/*.{kind}' for kind in ('py', 'json', 'yml', 'md')),
            *(f'.mim/tools/*.{kind}' for kind in ('py', 'sh')),
        ]
    },
    install_requires=read_requirements('runtime'),
    extras_require={name: read_requirements(name) for name in ('detection', 'tests', 'optional')},
    zip_safe=False,
)
