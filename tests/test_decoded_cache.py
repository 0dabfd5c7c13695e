from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.decoded_cache import DecodedCache

IMAGE = 3 * 4 * 4


def indices(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def publish(cache: DecodedCache, *numbers: int) -> None:
    cache.publish(indices(*numbers), indices(*numbers) + 100)


def test_only_as_many_images_as_fit_are_kept() -> None:
    cache = DecodedCache(2 * IMAGE + IMAGE - 1, 4, 10)
    assert cache.pixels.shape == (2, 4, 4, 3)
    assert cache.reserve(indices(7, 3, 5)).tolist() == [0, 1, -1]
    assert cache.reserve(indices(9)).tolist() == [-1]
    publish(cache, 7, 3)
    assert cache.find(indices(3, 5, 7)).tolist() == [1, -1, 0]
    assert cache.holds(indices(3, 5, 7)).tolist() == [True, False, True]
    assert cache.labels[cache.find(indices(3, 7))].tolist() == [103, 107]
    assert np.count_nonzero(cache.holds(np.arange(10))) == 2


def test_more_room_than_records_takes_no_more_memory() -> None:
    assert len(DecodedCache(1 << 40, 4, 10).pixels) == 10


def test_no_room_at_all_keeps_nothing() -> None:
    cache = DecodedCache(IMAGE - 1, 4, 10)
    assert cache.reserve(indices(0)).tolist() == [-1]
    assert cache.find(indices(0)).tolist() == [-1]


def test_an_image_is_found_when_it_is_whole_and_not_before() -> None:
    cache = DecodedCache(1 << 20, 4, 10)
    cache.reserve(indices(4))
    assert cache.find(indices(4)).tolist() == [-1]
    assert cache.reserve(indices(4)).tolist() == [-1], "somebody else is decoding it"
    publish(cache, 4)
    assert cache.find(indices(4)).tolist() == [0]


def test_an_image_that_could_not_be_decoded_is_never_found() -> None:
    cache = DecodedCache(1 << 20, 4, 10)
    cache.reserve(indices(4, 5))
    publish(cache, 5)
    cache.give_back(indices(4, 5))
    assert cache.find(indices(4, 5)).tolist() == [-1, 1], "what was whole before the damage was met stays"


@given(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=8), max_size=30), st.integers(0, 25))
def test_no_place_is_given_twice(calls: list[list[int]], places: int) -> None:
    cache = DecodedCache(places * IMAGE, 4, 20)
    owner: dict[int, int] = {}
    for call in calls:
        for index, place in zip(call, cache.reserve(indices(*call)).tolist(), strict=True):
            if place >= 0:
                assert place < min(places, 20)
                assert place not in owner
                assert index not in owner.values()
                owner[place] = index
    asked = {index for call in calls for index in call}
    assert len(owner) == min(len(asked), places)


def test_threads_get_places_of_their_own() -> None:
    cache = DecodedCache(1 << 20, 4, 2000)
    found: list[int] = []

    def work(first: int) -> None:
        for index in range(first, 2000, 4):
            place = int(cache.reserve(indices(index))[0])
            cache.pixels[place] = index % 251
            publish(cache, index)
            found.append(place)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(2000))
    places = cache.find(np.arange(2000))
    assert (cache.pixels[places, 0, 0, 0] == np.arange(2000) % 251).all()
