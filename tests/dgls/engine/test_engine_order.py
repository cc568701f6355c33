from __future__ import annotations

from dgls_engine.order import Order


def visits(order, *layers):
    for layer in layers:
        order.visit(layer)


def ahead(order, layer, count=2, of=range(100)):
    return list(order.ahead(layer, of=of, count=count))


def test_assumed_as_given_and_around_the_end():
    order = Order(4)
    assert ahead(order, 0) == [1, 2]
    assert ahead(order, 3, 3) == [0, 1, 2]
    assert ahead(order, 2, 9) == [3, 0, 1, 2]
    assert ahead(order, 0, 2, of={0, 3}) == [3, 0]


def test_another_order_is_learned_in_one_pass():
    order = Order(4)
    visits(order, 0, 2, 1, 3, 0)
    assert ahead(order, 0, 4) == [2, 1, 3, 0]
    assert order.last_pass == (0, 2, 1, 3)


def test_a_layer_left_out_every_other_pass_stays_expected():
    order = Order(4)
    for _ in range(3):
        visits(order, 0, 1, 2, 3, 0, 1, 3)
    assert ahead(order, 1, 1) == [2]


def test_a_layer_left_out_for_good_is_dropped_and_found_again():
    order = Order(4)
    visits(order, 0, 1, 2, 3, 0, 1, 3, 0, 1, 3)
    assert ahead(order, 1, 1) == [3]
    visits(order, 0, 1, 2, 3, 0, 1, 2, 3)
    assert ahead(order, 1, 1) == [2]


def test_a_layer_that_runs_twice_in_a_row_is_one_pass():
    order = Order(3)
    visits(order, 0, 0, 1, 1, 2, 2, 0, 0)
    assert order.passes == 1
    assert order.last_pass == (0, 1, 2)
    assert ahead(order, 0) == [1, 2]


def test_an_interrupted_pass_teaches_nothing_about_its_end():
    order = Order(4)
    visits(order, 0, 1, 2, 3, 0, 1)
    order.interrupted()
    assert order.starts_pass(0)
    visits(order, 0, 1)
    assert ahead(order, 1, 2) == [2, 3]


def test_one_layer():
    order = Order(1)
    visits(order, 0, 0, 0)
    assert ahead(order, 0, 2) == [0]
