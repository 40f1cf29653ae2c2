"""Where a search by gradient ends on its budget: blocks and widths that go or come back."""


def test_blocks_go_where_the_widths_cannot_meet_the_budget(make_model):
    model = make_model(search=['depth'], target=0.8)
    projection = model.project()
    assert projection.after <= model.goal < projection.before
    assert 'blocks went' in str(projection)
    # Nothing that is gone would have had room.
    for gate in model.gates.values():
        for index in (~gate.keep_mask()).nonzero().flatten().tolist():
            gate.hard_mask[index] = 1
            assert model.value(model.current_cost()) > model.goal
            gate.hard_mask[index] = 0


def test_blocks_are_frozen_once(make_model):
    model = make_model()
    model.freeze_blocks()
    chosen = model.structure()
    for group in model.groups.depths:
        model.gates[group.key].pruning_ratio.data.fill_(1.0)
    model.freeze_blocks()
    assert model.structure() == chosen


def test_blocks_come_back_where_all_widths_leave_too_much(make_model):
    model = make_model(target=0.9)
    for group in model.groups.depths:
        model.gates[group.key].pruning_ratio.data.fill_(1.0)
    projection = model.project()
    assert projection.blocks < 0 and 'came back' in str(projection)
    assert 0.97 * model.goal < projection.after <= model.goal


def test_frozen_blocks_that_are_too_many_do_not_end_a_search(make_model):
    model = make_model(search=['depth'], target=0.8)
    for gate in model.gates.values():
        gate.harden()
    projection = model.project()
    assert projection.after <= model.goal


def test_a_budget_that_is_not_used_up_is_said(make_model):
    projection = make_model(search=['depth'], target=0.8).project()
    if projection.unused > 0.01:
        assert f'{projection.unused:.1%} of the budget flops=' in projection.warning
    assert make_model(target=0.8).project().warning is None


def test_no_more_blocks_go_than_may(make_model):
    """A gate that is at its minimum has no more to give."""
    model = make_model(
        search=['depth'], target=0.9, gates=dict(by_kind=dict(blocks=dict(minimum=1)))
    )
    kept = {gate.n: gate.keep_count for gate in model.gates.values()}
    model.project()
    assert all(gate.keep_count >= 1 for gate in model.gates.values())
    assert sum(gate.keep_count for gate in model.gates.values()) < sum(kept.values())
