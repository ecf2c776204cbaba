"""How many pixels are decoded at the same time, and in which order images are let in."""

import threading
import time

import pytest

from jaxad.data.room import PIXELS, Room

pytestmark = pytest.mark.quick


def test_who_comes_first_is_let_in_first():
    room, order, held = Room(), [], threading.Event()

    def take(name, pixels):
        with room.taken(pixels):
            order.append(name)
            if name == "first":
                held.wait(20)

    threads = []
    for name, pixels in (("first", PIXELS // 2), ("large", 2 * PIXELS), ("small", 1)):
        threads.append(threading.Thread(target=take, args=(name, pixels)))
        threads[-1].start()
        end = time.monotonic() + 20
        while name not in order and len(room._turns) < len(threads) - 1:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert order == ["first"]
    held.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "large", "small"]


def test_small_images_are_let_in_together():
    room = Room()
    with room.taken(PIXELS // 2), room.taken(PIXELS // 2):
        pass
