"""Scores of subnets: of the Arch and the settings alone, and what the settings mean."""

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain

import pytest
import torch
from small_setups import SPACE
from torch import nn

from mmscale.arch import SearchSpace
from mmscale.engine import SubnetEvaluator
from mmscale.engine.calibration import even_batches
from mmscale.engine.candidates import Candidate
from mmscale.errors import UsageError
from mmscale.search import EvaluationError, Score


def test_scores_depend_on_the_arch_alone(make_evaluator):
    make, model = make_evaluator
    space = SearchSpace(**SPACE)
    archs = [space.smallest(), space.largest(), space.largest(0), space.smallest(1)]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = make()
    scores = [first.evaluate(arch) for arch in archs]
    assert all(isinstance(s, Score) and s.total == 48 and type(s.correct) is int for s in scores)
    assert len(set(scores)) > 1
    for evaluator, order in [(first, archs), (make(), archs[::-1]), (make(cache=False), archs)]:
        found = {arch: evaluator.evaluate(arch) for arch in order}
        assert [found[arch] for arch in archs] == scores
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert {make(max_images=20).evaluate(arch).total for arch in archs} == {20}


def test_scored_network_has_statistics_of_its_own(make_evaluator):
    make, model = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    raw = model.extract(arch).state_dict()
    nets = [make(calibration_images=count).extract(arch) for count in (8, 24)]
    for net in nets:
        assert not any(module.training for module in net.modules())
        for key, tensor in net.state_dict().items():
            statistics = key.endswith(('running_mean', 'running_var'))
            if not key.endswith('num_batches_tracked'):
                assert torch.equal(tensor, raw[key]) != statistics, key
    (one, other) = (net.state_dict()['backbone.stem.bn.running_mean'] for net in nets)
    assert not torch.equal(one, other)


def test_statistics_are_the_means_over_the_calibration_images(make_evaluator):
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).smallest()
    evaluator = make(calibration_images=24)
    net = evaluator.extract(arch)
    batches = [inputs for inputs, _ in evaluator._calibration.batches(arch.resolution)]
    assert [len(batch) for batch in batches] == [8, 8, 8]
    outputs = net.backbone.stem.conv(torch.cat(batches))
    mean = outputs.mean(dim=(0, 2, 3))
    torch.testing.assert_close(net.backbone.stem.bn.running_mean, mean, rtol=1e-4, atol=1e-5)


def test_every_calibration_image_counts_alike(make_evaluator):
    """However many are in the last batch."""
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).smallest()
    for count in (9, 23):
        evaluator = make(calibration_images=count)
        sizes = [len(inputs) for inputs, _ in evaluator._calibration.batches(arch.resolution)]
        assert sum(sizes) == count and max(sizes) - min(sizes) <= 1
        net = evaluator.extract(arch)
        images = torch.cat([x for x, _ in evaluator._calibration.batches(arch.resolution)])
        mean = net.backbone.stem.conv(images).mean(dim=(0, 2, 3))
        torch.testing.assert_close(net.backbone.stem.bn.running_mean, mean, rtol=1e-4, atol=1e-5)
        assert net.backbone.stem.bn.momentum == 0.1


@pytest.mark.parametrize('bn', ['recalibrated', 'batch'])
def test_maps_of_one_pixel_need_two_images(bn, make_evaluator, search_config, tmp_path):
    make, model = make_evaluator
    space = model.backbone.space

    class OneByOne(nn.Module):
        """What a stride of the size of the images would give."""

        def __init__(self, net):
            super().__init__()
            self.net, self.norm = net, nn.BatchNorm2d(net.arch.feature_channels)

        def forward(self, x):
            return self.norm(self.net(x)[-1].mean((2, 3), keepdim=True))

    class Evaluator(SubnetEvaluator):
        @staticmethod
        def normalised_part(net):
            return OneByOne(net.backbone)

    make = partial(make, bn=bn, evaluator=Evaluator)
    for images in (2, 9, 17):  # batches of 8
        assert make(calibration_images=images, max_images=images).evaluate(space.smallest())
    with pytest.raises(UsageError, match=r'calibration_dataloader: BN layers cannot take'):
        make(calibration_images=1)
    for size, is_refused in ((2, False), (1, True)):
        search_config['calibration_dataloader']['batch_size'] = size
        search_config['test_dataloader']['batch_size'] = size
        if is_refused:
            with pytest.raises(UsageError, match=r'_dataloader: .* take a batch_size of 2'):
                make(calibration_images=5, max_images=5)
        else:
            for kept in (dict(), dict(cache='disk', cache_dir=tmp_path)):
                assert make(calibration_images=5, max_images=5, **kept).evaluate(space.smallest())


def test_a_layer_that_only_large_networks_have_needs_two_images_too(make_evaluator):
    make, _ = make_evaluator

    class Part(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.norm = net, nn.BatchNorm2d(net.arch.feature_channels)

        def forward(self, x):
            x = self.net(x)[-1]
            is_large = len(self.net.arch.blocks) > 4
            return self.norm(x.mean((2, 3), keepdim=True) if is_large else x)

    class Evaluator(SubnetEvaluator):
        @staticmethod
        def normalised_part(net):
            return Part(net.backbone)

    make(evaluator=Evaluator)
    with pytest.raises(UsageError, match=r'calibration_dataloader: BN layers cannot take'):
        make(evaluator=Evaluator, calibration_images=1)


@pytest.mark.parametrize('size', range(1, 9))
def test_no_batch_is_of_one_image(size):
    for count in range(1, 60):
        batches = even_batches(range(count), size)
        assert list(chain(*batches)) == list(range(count))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= max(size, 3 if size == 2 else 0)
        assert min(sizes) > 1 or size == 1 or count == 1


def test_fingerprint_tells_weights_and_settings_apart(make_evaluator):
    make, model = make_evaluator
    fingerprint = make().fingerprint
    assert json.loads(json.dumps(fingerprint)) == make().fingerprint
    assert fingerprint == make(cache=False).fingerprint
    for settings in (
        dict(side='right'),
        dict(side='both'),
        dict(bn='batch'),
        dict(calibration_images=16),
        dict(max_images=10),
    ):
        assert make(**settings).fingerprint != fingerprint
    with torch.no_grad():
        model.head.fc.bias[3] += 1e-6
    assert make().fingerprint['weights'] != fingerprint['weights']
    assert {k: v for k, v in make().fingerprint.items() if k != 'weights'} == {
        k: v for k, v in fingerprint.items() if k != 'weights'
    }


def test_sides_have_scores_of_their_own(make_evaluator):
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).smallest()
    images = next(make()._images.batches(arch.resolution))[0]
    left, right = (make(side=side).extract(arch)(images) for side in ('left', 'right'))
    assert not torch.allclose(left, right)


def test_both_sides_average_their_logits(make_evaluator):
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    both = make(side='both')
    correct = 0
    for inputs, labels in both._images.batches(arch.resolution):
        left, right = (make(side=side).extract(arch)(inputs) for side in ('left', 'right'))
        correct += int(((left + right).argmax(dim=1) == labels).sum())
    assert both.evaluate(arch) == Score(correct, 48)
    shipped, left = (make(side=side).extract(arch).state_dict() for side in ('both', 'left'))
    assert all(torch.equal(tensor, left[key]) for key, tensor in shipped.items())


@pytest.mark.parametrize('side', ['left', 'both'])
def test_a_side_that_the_super_supernet_has_not_is_refused(side, make_evaluator, monkeypatch):
    make, model = make_evaluator
    monkeypatch.setattr(model.backbone, 'sides', ('right',))
    with pytest.raises(
        UsageError, match=rf"^subnet_evaluator.side='{side}' does not fit .*: allowed is 'right'$"
    ):
        make(side=side)
    assert make(side='right').sides == ('right',)


def test_batch_statistics_are_those_of_the_scored_batch(make_evaluator):
    make, model = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    evaluator = make(bn='batch')
    net = model.extract(arch, 'left').train()  # it has no dropout
    correct = 0
    with torch.no_grad():
        for inputs, labels in evaluator._images.batches(arch.resolution):
            correct += int((net(inputs).argmax(dim=1) == labels).sum())
    scores = [evaluator.evaluate(arch) for _ in range(2)]
    assert scores == [Score(correct, 48)] * 2
    # Nothing is calibrated, so the calibration's settings do not matter.
    assert evaluator.fingerprint == make(bn='batch', calibration_images=8).fingerprint
    assert not [key for key in evaluator.fingerprint if 'calibration' in key]
    shipped = evaluator.extract(arch).state_dict()
    recalibrated = make().extract(arch).state_dict()
    assert all(torch.equal(tensor, recalibrated[key]) for key, tensor in shipped.items())


def test_batch_statistics_depend_on_the_batch_size(make_evaluator):
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    images = next(make(bn='batch')._images.batches(arch.resolution))[0]
    candidates = []
    for evaluator in (make(bn='batch'), make()):
        candidates.append(Candidate(arch, None))
        evaluator._make_ready(candidates[-1:])
    net, alone = (candidate.nets[0] for candidate in candidates)
    with torch.no_grad():
        assert not torch.allclose(net(images)[:4], net(images[:4]))
        torch.testing.assert_close(alone(images)[:4], alone(images[:4]))


def test_an_evaluation_stops_when_too_many_images_are_wrong(make_evaluator):
    make, _ = make_evaluator
    arch = SearchSpace(**SPACE).smallest()
    score = make().evaluate(arch)
    evaluator = make()
    assert evaluator.evaluate(arch, score.value) == score
    assert evaluator.evaluate(arch, Fraction(-1)) == score
    assert (evaluator.images_seen, evaluator.images_saved) == (96, 0)
    # The images come in batches of eight; all that are left may still be right.
    assert evaluator.evaluate(arch, Fraction(1)) is None
    assert evaluator.images_saved > 0
    assert evaluator.images_seen + evaluator.images_saved == 3 * 48
    for needed in range(score.correct + 1, 49):
        found = evaluator.evaluate(arch, Fraction(needed, 48))
        assert found is None or found == score  # seen to the end it is known


def archs_of(resolution):
    """Three subnets of one resolution."""
    space = SearchSpace(**SPACE)
    archs = [space.smallest(1), space.largest(), space.smallest()]
    return [replace(arch, resolution=resolution) for arch in archs[:2]] + archs[2:]


@pytest.mark.parametrize(
    'settings', [{}, dict(cache=False), dict(side='both'), dict(bn='batch'), dict(max_images=45)]
)
def test_candidates_that_share_a_pass_score_as_alone(settings, make_evaluator):
    make, _ = make_evaluator
    archs = archs_of(12)
    assert len({arch.resolution for arch in archs}) == 1
    alone = [make(**settings).evaluate(arch) for arch in archs]
    assert len(set(alone)) > 1
    evaluator = make(**settings)
    assert evaluator.evaluate_together(archs, [None] * 3) == alone
    # Of each its own bound: what cannot reach it is dropped, the others go on.
    best = max(score.value for score in alone)
    bounds = [best, Fraction(1), None]
    expected = [make(**settings).evaluate(*pair) for pair in zip(archs, bounds, strict=True)]
    assert evaluator.evaluate_together(archs, bounds) == expected and None in expected
    with pytest.raises(ValueError, match='one resolution'):
        evaluator.evaluate_together([archs[0], replace(archs[1], resolution=16)], [None] * 2)


def test_what_fails_in_a_shared_pass_fails_alone(make_evaluator, monkeypatch):
    make, model = make_evaluator
    archs = archs_of(12)
    evaluator = make()
    alone = [evaluator.evaluate(arch) for arch in archs]
    extract, extracted = model.extract, []

    def is_large(arch):
        return arch is archs[1]

    def greedy(arch, side):
        extracted.append(arch)
        if is_large(arch) and len(extracted) < 4:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return extract(arch, side)

    monkeypatch.setattr(model, 'extract', greedy)
    # Beside the others there is no room for it, alone there is.
    assert evaluator.evaluate_together(archs, [None] * 3) == alone
    assert extracted == [*archs, archs[1]]

    def broken(arch, side):
        net = extract(arch, side)
        if is_large(arch):
            net.head.fc.bias.data[3] = torch.nan
        elif arch is archs[2]:
            raise MemoryError
        return net

    monkeypatch.setattr(model, 'extract', broken)
    score, *errors = evaluator.evaluate_together(archs, [None] * 3)
    assert score == alone[0]
    assert all(isinstance(error, EvaluationError) for error in errors)
    assert [str(error) for error in errors] == ['logits that are not finite', 'out of memory: ']


@pytest.mark.parametrize(
    ('settings', 'dtype'),
    [(dict(amp='bf16'), torch.bfloat16), (dict(channels_last=True), torch.float32)],
)
def test_precision_and_layout_are_settings_that_are_recorded(settings, dtype, make_evaluator):
    make, model = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    evaluator = make(**settings)
    found = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: found.append(output) if isinstance(module, nn.Conv2d) else None
    )
    try:
        evaluator.evaluate(arch)
        shipped = evaluator.extract(arch)
    finally:
        hook.remove()
    assert {output.dtype for output in found} == {dtype}
    if 'channels_last' in settings:
        wide = [output for output in found if output.shape[1] > 1 and output.shape[2] > 1]
        assert all(o.is_contiguous(memory_format=torch.channels_last) for o in wide)
    # The weights stay what they are.
    weights = model.extract(arch).state_dict()
    for key, tensor in shipped.state_dict().items():
        assert tensor.dtype == weights[key].dtype
        assert 'running' in key or 'tracked' in key or torch.equal(tensor, weights[key])
    plain = make().fingerprint
    recorded = {'amp': 'bf16'} if 'amp' in settings else {'evaluation_channels_last': True}
    assert evaluator.fingerprint == {**plain, **recorded}
    with pytest.raises(UsageError, match=r'^amp=.half. is not one of bf16, fp16'):
        make(amp='half')


def test_what_is_shipped_is_not_calibrated_again(make_evaluator, monkeypatch):
    make, _ = make_evaluator
    space = SearchSpace(**SPACE)
    archs = [space.smallest(), space.largest(), space.largest(0)]
    evaluator = make()
    for arch in archs:
        evaluator.evaluate(arch)
    monkeypatch.setattr(type(evaluator._calibration), 'batches', None)
    found = [evaluator.extract(arch).state_dict() for arch in archs]
    monkeypatch.undo()
    for arch, state in zip(archs, found, strict=True):
        expected = make().extract(arch).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in expected.items())
        assert expected.keys() == state.keys()
    # Not of so many networks that they fill the memory.
    monkeypatch.setattr('mmscale.engine.evaluator._MOST_STATISTICS_BYTES', 1)
    evaluator.evaluate(archs[0])
    assert list(evaluator._statistics) == [archs[0]]


@pytest.mark.parametrize('kind', ['step', 'assign'])
def test_other_weights_are_calibrated_anew(kind, make_evaluator):
    make, model = make_evaluator
    arch = SearchSpace(**SPACE).largest(0)
    evaluator = make()
    evaluator.evaluate(arch)
    before = evaluator.extract(arch).state_dict()
    with torch.no_grad():
        if kind == 'step':
            for parameter in model.backbone.parameters():
                parameter.mul_(1.5).add_(0.05)
        else:
            state = {key: tensor * 2 for key, tensor in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
    found, expected = (one.extract(arch).state_dict() for one in (evaluator, make()))
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert any(not torch.equal(tensor, before[key]) for key, tensor in expected.items())


def test_logits_that_are_not_finite_fail_the_candidate(make_evaluator):
    make, model = make_evaluator
    with torch.no_grad():
        model.head.fc.bias[3] = torch.nan
    with pytest.raises(EvaluationError, match=r'^logits that are not finite$'):
        make().evaluate(SearchSpace(**SPACE).smallest())


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate\n 2.00 GiB'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_fails_the_candidate_alone(make_evaluator, monkeypatch, error):
    make, model = make_evaluator
    evaluator, arch = make(), SearchSpace(**SPACE).smallest()
    score = evaluator.evaluate(arch)
    with monkeypatch.context() as patch:
        patch.setattr(model, 'extract', lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(EvaluationError, match=r'^out of memory: '):
            evaluator.evaluate(arch)
        patch.setattr(model, 'extract', lambda *_: (_ for _ in ()).throw(RuntimeError('a bug')))
        with pytest.raises(RuntimeError, match='a bug'):
            evaluator.evaluate(arch)
    assert evaluator.evaluate(arch) == score
