import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator

from mmscale.datasets import ResolutionSampler, SeededBatches
from mmscale.registry import DATA_SAMPLERS


def schedule(iteration):
    return (24, 32, 40, 48)[(7 * iteration + iteration // 3) % 4]


def make(size=10, batch_size=4, rank=0, world_size=1, **kwargs):
    kwargs = {'seed': 5, 'resolution_schedule': schedule, **kwargs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmscale.datasets.samplers.get_dist_info', lambda: (rank, world_size))
        return ResolutionSampler(range(size), batch_size=batch_size, **kwargs)


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def test_every_epoch_is_a_permutation_of_its_own():
    indexes = [draw.index for draw in take(make(), 50)]
    epochs = [tuple(indexes[i : i + 10]) for i in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 5
    in_order = [draw.index for draw in take(make(shuffle=False), 20)]
    assert in_order == [*range(10), *range(10)]


def test_draws_depend_on_the_seed_alone():
    assert take(make(), 50) == take(make(), 50)
    one, other = take(make(), 50), take(make(seed=6), 50)
    assert [draw.index for draw in one] != [draw.index for draw in other]
    assert not {draw.seed for draw in one} & {draw.seed for draw in other}


def test_augmentation_seeds_are_64_bit_and_differ_also_for_the_same_index():
    draws = take(make(size=3), 3000)
    seeds = {draw.seed for draw in draws}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) >= 2**63


def test_resolution_is_constant_within_a_batch_and_follows_the_schedule():
    draws = take(make(), 80)
    for iteration in range(20):
        batch = draws[4 * iteration : 4 * iteration + 4]
        assert {draw.resolution for draw in batch} == {schedule(iteration)}


def test_a_constant_resolution_and_none():
    assert {draw.resolution for draw in take(make(resolution_schedule=32), 9)} == {32}
    assert {draw.resolution for draw in take(make(resolution_schedule=None), 9)} == {None}


def test_the_schedule_is_asked_once_per_batch_and_may_be_set_later():
    asked = []
    sampler = make(batch_size=None, resolution_schedule=None)
    sampler.batch_size = 8
    sampler.resolution_schedule = lambda iteration: asked.append(iteration) or 32
    take(sampler, 24)
    assert asked == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    iterations=st.integers(1, 12),
)
def test_the_ranks_together_see_what_one_process_sees(size, world_size, batch_size, iterations):
    total = batch_size * world_size
    alone = take(make(size, total), total * iterations)
    ranks = [
        take(make(size, batch_size, rank, world_size), batch_size * iterations)
        for rank in range(world_size)
    ]
    for iteration in range(iterations):
        part = slice(batch_size * iteration, batch_size * (iteration + 1))
        together = set().union(*(rank[part] for rank in ranks))
        assert together == set(alone[total * iteration : total * (iteration + 1)])
        assert len(together) == total


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    skipped=st.integers(0, 200),
    world_size=st.integers(1, 3),
    data=st.data(),
)
def test_skipping_equals_consuming(size, skipped, world_size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    expected = take(make(size, 4, rank, world_size), skipped + 30)[skipped:]
    sampler = make(size, 4, rank, world_size)
    sampler.skip(skipped)
    assert take(sampler, 30) == expected
    # The number is absolute, as MMEngine's loops mean it, so skipping again changes nothing.
    sampler.skip(skipped)
    assert take(sampler, 30) == expected


def loader_config(root, num_workers):
    return {
        'batch_size': 6,
        'num_workers': num_workers,
        'persistent_workers': num_workers > 0,
        'sampler': {
            'type': 'mmscale.ResolutionSampler',
            'batch_size': 6,
            'resolution_schedule': schedule,
        },
        'dataset': {
            'type': 'mmscale.SeededDataset',
            'dataset': {
                'type': 'mmscale.ClutteredDigits',
                'split': 'train',
                'num_images': 20,
                'data_root': str(root),
                'pipeline': [
                    {'type': 'mmscale.RandomResizedCropToResolution'},
                    {'type': 'RandomFlip', 'prob': 0.5},
                    {'type': 'PackInputs'},
                ],
            },
        },
        'collate_fn': {'type': 'default_collate'},
    }


def build_loader(root, num_workers):
    init_default_scope('mmpretrain')
    return Runner.build_dataloader(loader_config(root, num_workers), seed=11)


def assert_same(one, two):
    assert one['inputs'].equal(two['inputs'])
    samples = zip(one['data_samples'], two['data_samples'], strict=True)
    assert all(a.sample_idx == b.sample_idx and a.gt_label == b.gt_label for a, b in samples)


def test_workers_give_the_batches_of_the_main_process_and_so_does_resuming(tmp_path):
    alone = _InfiniteDataloaderIterator(build_loader(tmp_path, 0))
    batches = [next(alone) for _ in range(8)]
    for iteration, batch in enumerate(batches):
        side = schedule(iteration)
        assert batch['inputs'].shape == (6, 1, side, side)

    workers = _InfiniteDataloaderIterator(build_loader(tmp_path, 2))
    for batch in batches:
        assert_same(next(workers), batch)

    for num_workers in (0, 2):
        resumed = _InfiniteDataloaderIterator(build_loader(tmp_path, num_workers))
        resumed.skip_iter(5)
        for batch in batches[5:]:
            assert_same(next(resumed), batch)


def test_in_epochs_every_rank_has_an_equal_part_of_each_and_resumes_within_one():
    for world_size in (1, 3):
        ranks = [
            make(size=10, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
        ]
        length = -(-len(ranks[0]) // 2)
        assert {len(rank) for rank in ranks} == {-(-10 // world_size)}
        seeds = set()
        for epoch in range(3):
            draws = []
            for rank in ranks:
                rank.run_in_epochs(length)
                rank.begin_epoch(epoch)
                own = list(rank)
                assert len(own) == len(rank)
                for i, draw in enumerate(own):
                    assert draw.resolution == schedule(epoch * length + i // 2)
                rank.begin_epoch(epoch, done=1)
                assert list(rank) == own[2:]
                draws += own
            assert {draw.index for draw in draws} == set(range(10))
            seeds |= {draw.seed for draw in draws}
        assert len(seeds) == 3 * world_size * len(ranks[0])


class Groups:
    """Batches of one parity each, as a batch sampler chooses them by what the images are."""

    batch_size = 2

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        buckets = {0: [], 1: []}
        for index in self.sampler:
            bucket = buckets[self.sampler.dataset[index] % 2]
            bucket.append(index)
            if len(bucket) == 2:
                yield bucket[:]
                bucket.clear()

    def __len__(self):
        return len(self.sampler) // 2


def test_batches_of_a_batch_sampler_have_one_resolution_and_resume_exactly():
    def batches_of(sampler):
        sampler.yields_indices = True
        batches = SeededBatches(Groups(sampler), seed=5)
        batches.resolution_schedule = schedule
        return batches

    expected = take(batches_of(make()), 15)
    for iteration, batch in enumerate(expected):
        assert {draw.resolution for draw in batch} == {schedule(iteration)}
        assert len({draw.index % 2 for draw in batch}) == 1
    assert len({draw.seed for batch in expected for draw in batch}) == 30
    for epoch, done in ((0, 2), (2, 3)):
        batches = batches_of(make())
        batches.run_in_epochs(5)
        batches.begin_epoch(epoch, done)
        assert list(batches) == expected[5 * epoch + done : 5 * epoch + 5]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='dataset is empty'):
        make(size=0)
    with pytest.raises(ValueError, match='seed=-1'):
        make(seed=-1)
    with pytest.raises(ValueError, match='batch_size=None must be'):
        take(make(batch_size=None), 1)
    with pytest.raises(ValueError, match='num_samples=-1'):
        make().skip(-1)
    with pytest.raises(ValueError, match='resolution=0 of iteration 0'):
        take(make(resolution_schedule=0), 1)
    with pytest.raises(TypeError, match='float'):
        take(make(resolution_schedule=lambda iteration: 32.5), 1)
    with pytest.raises(TypeError, match='sead'):
        DATA_SAMPLERS.build({'type': 'mmscale.ResolutionSampler', 'dataset': [0], 'sead': 3})
