"""The set of slots beside a set of Python (slots.h)."""

from door import NONE, PROPERTY, ffi, lib
from hypothesis import given
from hypothesis import strategies as st

SLOTS = 20_000
slots = st.one_of(
    st.integers(0, 130), st.sampled_from([4095, 4096, SLOTS - 1]), st.integers(0, SLOTS - 1)
)


@PROPERTY
@given(st.lists(st.one_of(slots, st.none()), max_size=200))
def test_the_lowest_comes_first_and_each_once(steps: list[int | None]) -> None:
    """None takes one; what was taken may be added again."""
    it = ffi.new("struct im_slots *")
    assert lib.im_slots_init(it, SLOTS) == lib.IM_OK
    model: set[int] = set()
    for step in [*steps, *[None] * (len(steps) + 1)]:
        if step is None:
            expected = min(model, default=NONE)
            assert lib.im_slots_take(it) == expected
            model.discard(expected)
        else:
            lib.im_slots_add(it, step)
            model.add(step)
    assert not model
    lib.im_slots_free(it)
