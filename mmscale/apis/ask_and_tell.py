"""A search whose networks are scored by any program: it asks, and is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.apis.search import SavedResult, load_result, plan_search, write_result
from mmscale.arch import Arch
from mmscale.arch.origin import origin_of
from mmscale.errors import UsageError
from mmscale.files import write_text
from mmscale.launch.config_text import settings_text
from mmscale.search import Archive, Failure, Record, Score, Searcher, SearchResult
from mmscale.search.reporting import History
from mmscale.untrusted import check_work_dir

if TYPE_CHECKING:
    from mmengine.config import Config


class ToldSearch:
    """The search of a config, with its archive, resume, history and reports, but no evaluator.

    What is told is in the archive at once: after a kill, ``resume=True`` goes on where it was.
    Its work dir gets what a search leaves there, but for weights and times; ``result.json`` once
    the search has finished.

    Attributes:
        work_dir: Its folder.
    """

    def __init__(self, config: Config, scored_by: str, resume: bool) -> None:
        planned = plan_search(config)
        if config.test_cfg.get('final_images') is not None:
            raise UsageError(
                f'test_cfg.final_images={config.test_cfg.final_images}: what is told is of no '
                f"images; set it to None (options=['test_cfg.final_images=None'])"
            )
        self.work_dir = Path(config.work_dir)
        check_work_dir(self.work_dir)
        if not resume and any((self.work_dir / 'archive').glob('*.jsonl')):
            raise UsageError(
                f'work_dir={self.work_dir} holds the archive of an earlier search: continue it '
                f'with resume=True, or take another work dir'
            )
        fingerprint = {'evaluator': {'name': 'told', 'scored_by': scored_by}}
        self._archive = Archive(self.work_dir / 'archive', fingerprint)
        self._table, self._origin = planned.table, origin_of(config)
        (self.work_dir / 'archs').mkdir(parents=True, exist_ok=True)
        # A report reads from it what the costs of the history are.
        name = Path(config.filename or 'config.py').name
        write_text(self.work_dir / name, settings_text(config.to_dict()))
        self._history = History(self.work_dir / 'history.jsonl')
        record = Record(self._archive)
        self._searcher = Searcher(planned.search.steps(record, self._history.write), record)
        self._finish()

    def _finish(self) -> None:
        if not self.finished:
            return
        result = self._searcher.result
        if isinstance(result, SearchResult):
            # What was told need not be a share of right answers.
            result = replace(result, counted=False)
        for name, arch in result.networks.items():
            arch.save(self.work_dir / 'archs' / f'{name}.json', self._origin)
        path = self.work_dir / 'result.json'
        write_result(path, result, self._table.convention, self._origin)
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the search waits for nothing more."""
        return self._searcher.finished

    @property
    def result(self) -> SavedResult:
        """What the search has found.

        Raises:
            UsageError: It has not finished.
        """
        if not self.finished:
            self._searcher.result  # noqa: B018 - it says what is missing
        return load_result(self.work_dir)

    def ask(self, n: int | None = None) -> list[Arch]:
        """Archs to score next, see :meth:`mmscale.search.Searcher.ask`."""
        return self._searcher.ask(n)

    def tell(self, arch: Arch, score: Score | Failure | float) -> None:
        """Tells the score of an Arch, see :meth:`mmscale.search.Searcher.tell`."""
        self._searcher.tell(arch, score)
        self._finish()

    def close(self) -> None:
        """Closes the files; they are complete at any time."""
        self._archive.close()
        self._history.close()

    def __enter__(self) -> ToldSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def searcher(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    scored_by: str = 'another program',
    resume: bool = False,
    options: Sequence[str] = (),
) -> ToldSearch:
    """A search whose networks are scored by the caller: a simulator, a board, a training job.

    Args:
        config: Config of the search: its file or its content. Its super-supernet is not needed.
        work_dir: Folder of archive and result; by default ``work_dirs/<config name>``.
        scored_by: What scores the networks, and with which settings. It is part of the archive: a
            search goes on with scores of the same kind alone.
        resume: Whether to continue the search in the work dir.
        options: Overrides of the config, ``KEY=VALUE`` each.

    Raises:
        UsageError: The config is of no search, a setting is not allowed, or the work dir holds
            another search.

    Example:
        >>> import mmscale
        >>> config = 'configs/nas/search-evolution_attentive_digits.py'
        >>> with mmscale.searcher(config, 'work_dirs/board', 'v1') as search:  # doctest: +SKIP
        ...     while not search.finished:
        ...         for arch in search.ask(8):
        ...             search.tell(arch, accuracy_on_the_board(arch))
        >>> print(search.result)  # doctest: +SKIP
    """
    from mmscale.launch.command_line import read_config

    if not isinstance(scored_by, str) or not scored_by:
        raise UsageError(f'scored_by={scored_by!r:.60} must say what scores the networks')
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise UsageError(f'options={options!r:.60} must be a list of texts, KEY=VALUE each')
    return ToldSearch(read_config(config, options, work_dir), scored_by, resume)
