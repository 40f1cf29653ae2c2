import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope

from mmscale.datasets import Draw, SeededDataset
from mmscale.datasets.draws import seeded_global_rngs
from mmscale.registry import DATASETS


class Noise(BaseDataset):
    """Eight colour images of noise."""

    def load_data_list(self):
        return [{'gt_label': i} for i in range(8)]

    def get_data_info(self, idx):
        img = np.random.default_rng(idx).integers(0, 256, (40, 50, 3), np.uint8)
        return {**super().get_data_info(idx), 'img': img, 'img_shape': (40, 50)}


def make(*pipeline):
    from mmpretrain.registry import TRANSFORMS

    init_default_scope('mmpretrain')
    return SeededDataset(Noise(pipeline=[TRANSFORMS.build(step) for step in pipeline]))


def numbers():
    return [random.random(), np.random.random(), np.random.normal(), torch.rand(()).item()]


STOCK = (
    {'type': 'RandomResizedCrop', 'scale': 24},
    {
        'type': 'RandAugment',
        'policies': 'timm_increasing',
        'num_policies': 2,
        'total_level': 10,
        'magnitude_level': 9,
    },
    {'type': 'ColorJitter', 'brightness': 0.4, 'contrast': 0.4},
)


def test_stock_transforms_are_a_function_of_the_draw():
    dataset = make(*STOCK)
    draw = Draw(3, None, 2**64 - 7)
    one = dataset[draw]['img']
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    dataset[Draw(5, None, 1)]
    np.testing.assert_array_equal(dataset[draw]['img'], one)
    others = [dataset[draw._replace(seed=seed)]['img'] for seed in range(5)]
    assert len({other.tobytes() for other in others} | {one.tobytes()}) == 6


def test_the_global_state_is_as_if_nothing_had_been_drawn():
    dataset = make(*STOCK)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = [numbers(), numbers()]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for index in range(8):
        dataset[Draw(index, None, index)]
    assert random.getstate() == states[0]
    for now, before in zip(np.random.get_state(), states[1], strict=True):
        np.testing.assert_array_equal(now, before)
    assert torch.get_rng_state().equal(states[2])
    assert [numbers(), numbers()] == expected


def test_the_state_is_restored_after_an_error_too():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    with pytest.raises(KeyError), seeded_global_rngs(5):
        np.random.random()
        raise KeyError
    assert np.random.random() == expected


def test_the_three_generators_give_different_numbers():
    with seeded_global_rngs(2**40 + 3):
        streams = [
            [random.random() for _ in range(50)],
            np.random.random(50).tolist(),
            torch.rand(50, dtype=torch.float64).tolist(),
        ]
    assert len(set().union(*streams)) == 150


def test_a_spare_normal_deviate_does_not_leak_in():
    def inside():
        with seeded_global_rngs(9):
            return np.random.normal()

    expected = inside()
    np.random.normal()
    assert inside() == expected


def test_the_draws_resolution_reaches_the_pipeline():
    dataset = make({'type': 'mmscale.ResizeToResolution', 'resolution': 16})
    assert dataset[Draw(0, 24, 0)]['img'].shape == (24, 24, 3)
    assert dataset[Draw(0, None, 0)]['img'].shape == (16, 16, 3)
    assert dataset[0]['img'].shape == (16, 16, 3)


def test_an_item_the_pipeline_refuses_is_replaced_by_one_the_draw_decides():
    dataset = make()
    dataset.pipeline.transforms.append(lambda results: results if results['gt_label'] else None)
    labels = [dataset[Draw(0, None, seed)]['gt_label'] for seed in range(20)]
    assert labels == [dataset[Draw(0, None, seed)]['gt_label'] for seed in range(20)]
    assert 0 not in labels
    assert len(set(labels)) > 3
    dataset.pipeline.transforms.append(lambda results: None)
    with pytest.raises(Exception, match='Cannot find valid image after 1000'):
        dataset[Draw(2, None, 0)]


def test_it_hands_on_what_hooks_and_loops_ask_for(tmp_path):
    dataset = DATASETS.build(
        {
            'type': 'mmscale.SeededDataset',
            'dataset': {
                'type': 'mmscale.ClutteredDigits',
                'split': 'test',
                'num_images': 3,
                'data_root': str(tmp_path),
                'lazy_init': True,
            },
        }
    )
    dataset.full_init()
    assert len(dataset) == 3
    assert dataset.metainfo['classes'][9] == '9'
    assert dataset.get_data_info(1)['sample_idx'] == 1
    assert dataset.pipeline is dataset.dataset.pipeline
