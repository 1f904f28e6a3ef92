from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.plan.cut import CAUTION, Border, Network

TIMES = st.floats(0, 50).map(lambda x: round(x, 2))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A handful of operators, tensors between them, and some that go together."""
    count = draw(st.integers(1, 6))
    keys = list(range(count))
    network = Network({key: (draw(TIMES), draw(TIMES)) for key in keys})
    for maker in [None, *keys]:
        if draw(st.booleans()):
            later = [key for key in keys if maker is None or key > maker]
            readers = tuple(key for key in later if draw(st.booleans()))
            in_float = draw(st.booleans())
            network.borders.append(Border(maker, readers, in_float, draw(TIMES), draw(TIMES)))
    for first, second in combinations(keys, 2):
        if draw(st.integers(0, 5)) == 0:
            network.together.append((second, first))
    return network


def allowed(network: Network) -> list[set[int]]:
    keys = list(network.times)
    sets = chain.from_iterable(combinations(keys, n) for n in range(len(keys) + 1))
    return [
        chosen
        for chosen in map(set, sets)
        if all(second in chosen for first, second in network.together if first in chosen)
    ]


@given(networks())
def test_no_other_division_takes_less_time(network: Network) -> None:
    found = network.cheapest()
    sets = allowed(network)
    assert found in sets
    least = min(network.cost(chosen, CAUTION) for chosen in sets)
    # Times are rounded to thousandths for the cut.
    assert network.cost(found, CAUTION) == pytest.approx(least, abs=0.05)


@given(networks())
def test_a_run_of_slower_operators_has_its_borders_in_its_time(network: Network) -> None:
    integer = network.cheapest()
    left = set(network.times) - integer
    why = network.slower(integer)
    assert set(why) == left
    for key in left:
        alone = network.times[key][1]
        assert why[key].float >= alone
        verb = "slower" if why[key].integer >= why[key].float else "hardly faster"
        assert str(why[key]).startswith(f"would run {verb} in integers: ")


def test_a_slow_operator_between_fast_ones_stays_with_them() -> None:
    times = {0: (1.0, 9.0), 1: (3.0, 2.0), 2: (1.0, 9.0)}
    borders = [Border(0, (1,), False, 1.0, 1.0), Border(1, (2,), False, 1.0, 1.0)]
    assert Network(times, borders).cheapest() == {0, 1, 2}
    assert Network({1: (3.0, 2.0)}).cheapest() == set()
    cheap = [Border(0, (1,), False, 0.1, 0.1), Border(1, (2,), False, 0.1, 0.1)]
    assert Network(times, cheap).cheapest() == {0, 2}


def test_what_a_slow_tail_costs_is_said_of_all_of_it() -> None:
    times = {0: (1.0, 20.0), 1: (3.0, 2.0), 2: (4.0, 1.0)}
    borders = [
        Border(0, (1,), False, 1.0, 1.0),
        Border(1, (2,), False, 1.0, 1.0),
        Border(2, (), True, 1.0, 1.0),
    ]
    network = Network(times, borders)
    integer = network.cheapest()
    assert integer == {0}
    # The border moves from before the tail to behind it.
    why = network.slower(integer)
    assert why[1] is why[2]
    assert (why[1].integer, why[1].float) == (7.0, 3.0)
    assert network.saved(integer) == {0: 18.0}


def test_times_of_any_size_fit_the_cut() -> None:
    for scale in (1e-3, 1.0, 1e6):
        network = Network({0: (scale, 3 * scale), 1: (3 * scale, scale)})
        assert network.cheapest() == {0}
