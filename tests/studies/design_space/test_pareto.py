"""The Pareto front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from studies.design_space.pareto import Point, front

VALUES = st.integers(0, 6).map(float)  # few values, so that many are equal


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_the_front_is_what_nothing_beats(values: list[tuple[float, float]]):
    points = [Point(str(number), cost, quality, 0.0) for number, (cost, quality) in enumerate(values)]

    def beaten(point: Point) -> bool:
        return any(
            other.cost <= point.cost and other.quality >= point.quality and (other.cost, other.quality) != point[1:3]
            for other in points
        )

    found = front(points)
    assert {(p.cost, p.quality) for p in found} == {(p.cost, p.quality) for p in points if not beaten(p)}
    assert [p.cost for p in found] == sorted({p.cost for p in found})
