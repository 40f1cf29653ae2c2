"""DMSHook: the schedule of a differentiable search, and its structure's steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner

from mmscale.arch.checks import integer, number
from mmscale.engine.calibration import recalibrate
from mmscale.engine.hooks.finite_loss_hook import check_loss
from mmscale.engine.wrappers import is_stand_in, unwrapped_model
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.files import atomic_write, open_to_append
from mmscale.models import DMSModel
from mmscale.registry import HOOKS
from mmscale.search.result_files import check_structure
from mmscale.search.task_share import task_share, task_warning
from mmscale.untrusted import open_regular

# A line has what each group of channels keeps; that of a large network has 1 MB.
_MOST_LINE_BYTES = 2**23
_MOST_SHOWN = 5
# Share of a search from random weights in which its weights learn, and its ratios rest.
_WARMUP = 0.25


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a log with their line breaks; of a line that is too long pieces without."""
    with open_regular(path) as file:
        while line := file.readline(_MOST_LINE_BYTES):
            yield line


@HOOKS.register_module()
class DMSHook(Hook):
    """Trains the structure of a :class:`mmscale.models.DMSModel` beside its weights.

    At first the weights may train alone, and importance is learned (`warmup`). Then the budget
    falls geometrically from the whole model's cost to the target (DMS, Eq. 10). After that the
    choice of blocks is frozen, and widths alone go on at the target. The last iteration ends with
    a projection onto the budget, which the log reports, and statistics of BN layers are measured
    anew under the masks of what is left.

    What is learned should come from the task: the log and ``structure.jsonl`` say how much the
    task's loss and the resource loss pulled at each ratio. A warning says so where the task
    decided less than a tenth.

    The structure's parameters are taken out of the runner's optimizer, whose schedulers act on
    all of its groups and whose clipping looks at all gradients; the model steps them with an
    optimizer of its own once per step of the runner's, and its state is in the checkpoints.

    ``structure.jsonl`` in the work dir gets a line every `interval` iterations: ``iteration``,
    ``budget``, ``value`` (of the budget's metric), ``flops``, ``params``, ``acts``,
    ``structure``, what each group keeps, their ``sizes``, ``ratios`` and ``slopes`` (means since
    the last line, of the task's loss and the resource loss), and ``task_shares`` (of all steps
    until then). A resumed run goes on with the file.

    Args:
        falling: Share of the iterations after which the budget has fallen to the target.
        interval: Iterations between two lines of the file; also how often the loss is checked.
        warmup: Share of the iterations before the budget begins to fall, in which the ratios
            rest. By default 0.25 of a search that starts from random weights (``np``), as an
            untrained network says nothing of its channels, and 0 of one from trained weights.
        calibration_images: Number of training images that the statistics of BN layers are
            measured on at the end; 0 leaves them as they are.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: The model is of another kind.
    """

    # Before the hooks that write logs and checkpoints.
    priority = 'HIGH'

    def __init__(
        self,
        falling: float = 0.8,
        interval: int = 10,
        warmup: float | None = None,
        calibration_images: int = 1024,
    ) -> None:
        self.falling = number('falling', falling, above=0, most=1)
        self.interval = integer('interval', interval)
        if warmup is not None:
            number('warmup', warmup, least=0, below=1)
            if warmup >= self.falling:
                raise UsageError(f'warmup={warmup} must end before falling={self.falling}')
        self.warmup = warmup
        self.calibration_images = integer('calibration_images', calibration_images, 0)

    def _find_model(self, runner: Runner) -> DMSModel:
        model = unwrapped_model(runner)
        if not isinstance(model, DMSModel):
            raise TypeError(
                f'DMSHook needs model.type=mmscale.DMSModel, got {type(model).__name__}'
            )
        return model

    def before_run(self, runner: Runner) -> None:
        """Takes the structure's parameters out of the runner's optimizer.

        Raises:
            ValueError: Losses are scaled, and there are no weights to train; or the model's
                wrapper has taken its parameters apart.
        """
        if is_stand_in(runner, unwrapped_model(runner)):
            # Nothing is searched. A new list: this one is being gone through.
            runner._hooks = [hook for hook in runner.hooks if hook is not self]
            return
        self._model = self._find_model(runner)
        ratios = [gate._parameters.get('pruning_ratio') for gate in self._model.gates.values()]
        if any(ratio is None or ratio.dim() for ratio in ratios):
            raise UsageError(
                f'{type(runner.model).__name__} shards parameters, which mmscale.DMSModel needs '
                "whole: set model_wrapper_cfg=dict(type='MMDistributedDataParallel')"
            )
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            return
        trains_weights = any(p.requires_grad for p in self._model.model.parameters())
        if isinstance(runner.optim_wrapper, AmpOptimWrapper) and not trains_weights:
            # Its scaler judges the scale by the gradients of weights alone.
            raise UsageError(
                'optim_wrapper.type=AmpOptimWrapper needs weights to train, which model.pipeline='
                'p- does not: take mmscale.BFloat16OptimWrapper (tools/train.py --bf16)'
            )
        self.separate(runner)

    def separate(self, runner: Runner) -> None:
        """Takes the structure's parameters out of the runner's optimizer, if they are in it."""
        model = self._find_model(runner)
        structure = {id(gate.pruning_ratio) for gate in model.gates.values()}
        for group in runner.optim_wrapper.param_groups:
            # Groups stay even if empty: schedulers count them.
            group['params'] = [p for p in group['params'] if id(p) not in structure]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restores the state of the structure's optimizer, and what pulled at the ratios."""
        if 'structure_optimizer' in checkpoint:
            self._find_model(runner).structure_optimizer.load_state_dict(
                checkpoint['structure_optimizer']
            )

        found = checkpoint.get('structure_slopes')
        if found is not None:
            try:
                self._find_model(runner).slopes.restore(found)
            except FOREIGN_ERRORS as error:
                raise UsageError(
                    f'structure_slopes of the checkpoint: {one_line(error):.200}'
                ) from error

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Saves the state of the structure's optimizer, and what pulled at the ratios."""
        self._share_structure(runner)
        checkpoint['structure_slopes'] = self._model.slopes.state()
        checkpoint['structure_optimizer'] = self._model.structure_optimizer.state_dict()

    def before_train(self, runner: Runner) -> None:
        """Starts the file of structures, or cuts what a resumed run will write again."""
        self._full = self._model.value(self._model.cost.full)
        self._is_frozen = False
        self._warmup = self.warmup
        if self._warmup is None:
            starts_from_random = self._model.pipeline == 'np'
            self._warmup = min(_WARMUP, self.falling / 2) if starts_from_random else 0.0
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        self._model.set_search_length(
            max(1, round((1 - self._warmup) * runner.max_iters / accumulated))
        )
        self._file = Path(runner.work_dir) / 'structure.jsonl'
        if not is_main_process():
            return
        with atomic_write(self._file) as file:
            if runner.iter and self._file.is_file():
                file.writelines(self._lines_until(runner))

    def _lines_until(self, runner: Runner) -> Iterator[bytes]:
        """The lines of the file until the present iteration; says which are no such lines."""
        damaged = []
        for index, line in enumerate(_lines(self._file), start=1):
            if not line.endswith(b'\n') and len(line) < _MOST_LINE_BYTES:
                break  # A kill has cut the last line off.
            try:
                structure = json.loads(line)
                check_structure('line', structure)
            except (RecursionError, ValueError):
                damaged.append(index)
                continue
            if structure['iteration'] <= runner.iter:
                yield line
        if damaged:
            runner.logger.warning(
                '%s: no structure in line %s%s; left out', self._file,
                ', '.join(map(str, damaged[:_MOST_SHOWN])),
                f' and {len(damaged) - _MOST_SHOWN} more' if len(damaged) > _MOST_SHOWN else '',
            )  # fmt: skip

    def budget_at(self, progress: float) -> float:
        """The budget when a share `progress` of the iterations is done."""
        share = (progress - self._warmup) / (self.falling - self._warmup)
        share = min(1.0, max(0.0, share))
        return self._full * (self._model.goal / self._full) ** share

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Sets the budget of this iteration, and freezes the blocks when their time is over."""
        progress = runner.iter / runner.max_iters
        self._model.set_budget(self.budget_at(progress))
        if progress >= self.falling and not self._is_frozen:
            self._model.freeze_blocks()
            self._is_frozen = True  # Asking the gates would wait for the GPU every time.
        self._loss_scale = 1.0
        if isinstance(runner.optim_wrapper, AmpOptimWrapper):
            self._loss_scale = runner.optim_wrapper.loss_scaler.get_scale()

    def after_train_iter(
        self, runner: Runner, *_: object, outputs: dict | None = None, **__: object
    ) -> None:
        """Steps the structure once the optimizer has stepped; at the end projects it.

        Raises:
            FloatingPointError: The loss is not a number.
        """
        iteration = runner.iter + 1
        is_last = iteration == runner.max_iters
        is_due = iteration % self.interval == 0 or is_last
        if is_due:
            check_loss(runner, outputs)
        if runner.optim_wrapper.should_update():
            moves = iteration > self._warmup * runner.max_iters
            self._model.step_structure(self._loss_scale, moves)
        if is_last:
            self._finish(runner)
        if is_due:
            self._record(runner, iteration)

    def _finish(self, runner: Runner) -> None:
        """Puts the network onto the budget, and measures its BN layers' statistics."""
        projection = self._model.project()
        runner.logger.info(f'projection onto the budget: {projection}')
        shares = self._model.task_shares()
        for warning in (projection.warning, task_warning(shares.values())):
            if warning is not None:
                runner.logger.warning(warning)
        if self.calibration_images:
            seen = recalibrate(self._model, runner.train_dataloader, self.calibration_images)
            if seen:
                runner.logger.info('statistics of BN layers are of %d training images', seen)

    def before_val_epoch(self, runner: Runner) -> None:
        """Hands the structure on to averaged weights, which are what is evaluated."""
        self._share_structure(runner)

    def _share_structure(self, runner: Runner) -> None:
        """Gives averaged weights (EMA) the structure of the moment: no average of structures."""
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.ema_model.module.gates.load_state_dict(self._model.gates.state_dict())

    def _record(self, runner: Runner, iteration: int) -> None:
        cost = self._model.current_cost()
        budget = self.budget_at(iteration / runner.max_iters)
        value = self._model.value(cost)
        runner.message_hub.update_scalar('train/budget', budget / self._full)
        runner.message_hub.update_scalar('train/cost', value / self._full)
        shares = self._model.task_shares().values()
        runner.message_hub.update_scalar('train/task_share', task_share(shares))
        if not is_main_process():
            return
        line = {
            'iteration': iteration,
            'metric': self._model.metric,
            'budget': budget,
            'value': value,
            'flops': cost.flops,
            'params': cost.params,
            'acts': cost.acts,
            'structure': self._model.structure(),
            'sizes': {group.name: group.size for group in self._model.groups.all},
            **self._model.pulls(),
        }
        with open_to_append(self._file) as file:
            file.write(json.dumps(line) + '\n')
