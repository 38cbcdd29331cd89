import os
import sys
import threading
import time

import pytest

from pydfm.cli.line import inbox as module
from pydfm.cli.line.inbox import Inbox, InboxGoneError, Looks


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def put(root, name, data=b"x", changed=1):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(changed, changed))
    return path


def names(found):
    return [os.path.basename(own.path) for own in found]  # noqa: PTH119


def test_a_file_is_whole_when_it_has_settled(root):
    inbox = Inbox(root, 1.0, lambda _: False)
    path = put(root, "a.png")
    inbox.scan(10.0)
    assert inbox.ready(10.5) == []
    assert inbox.next_change(10.5) == 0.5
    put(root, "a.png", b"xy", 2)
    inbox.scan(10.9)
    assert inbox.ready(11.5) == []
    inbox.scan(11.8)
    (arrival,) = inbox.ready(11.9)
    assert (arrival.path, arrival.size, arrival.first) == (str(path), 2, 10.0)
    assert inbox.unchanged(arrival)
    inbox.done(arrival)
    inbox.scan(12.0)
    assert len(inbox) == 0
    put(root, "a.png", b"xy", 3)
    assert not inbox.unchanged(arrival)
    inbox.scan(13.0)
    assert names(inbox.ready(14.0)) == ["a.png"]
    path.unlink()
    assert not inbox.unchanged(arrival)


def test_only_images_arrive_in_their_order(root):
    inbox = Inbox(root, 0.0, lambda _: False)
    for i, name in enumerate(["b.png", "a.JPG", "c.txt", ".d.png", "sub/e.png", ".git/f.png"]):
        put(root, name, changed=10 - i)
    inbox.scan(0.0)
    put(root, "0.png", changed=0)
    inbox.scan(1.0)
    assert names(inbox.ready(1.0)) == ["e.png", "a.JPG", "b.png", "0.png"]
    (root / "sub" / "up").symlink_to(root)
    inbox.scan(2.0)
    assert len(inbox) == 4


def test_known_files_are_not_waited_for(root):
    asked = []

    def is_known(key):
        asked.append(key)
        return True

    put(root, "a.png")
    inbox = Inbox(root, 0.0, is_known)
    for now in range(3):
        inbox.scan(float(now))
    assert inbox.ready(9.0) == []
    assert len(asked) == 1  # once, and not at each look
    (root / "a.png").unlink()
    inbox.scan(3.0)
    assert inbox._done == {}


def test_files_differ_by_name_size_and_time(root):
    inbox = Inbox(root, 0.0, lambda _: False)
    keys = set()
    for name, data, changed in (
        ("a.png", b"x", 1),
        ("b.png", b"x", 1),
        ("a.png", b"xy", 1),
        ("a.png", b"x", 2),
    ):
        put(root, name, data, changed)
        inbox.scan(0.0)
        keys |= {own.key(root) for own in inbox.ready(0.0)}
    assert len(keys) == 4


def test_a_folder_that_is_gone_loses_nothing(root, tmp_path):
    inbox = Inbox(root, 0.0, lambda _: False)
    put(root, "a.png")
    put(root, "b.png")
    inbox.scan(0.0)
    inbox.done(inbox.ready(0.0)[0])
    root.rename(tmp_path / "away")
    with pytest.raises(InboxGoneError):
        inbox.scan(1.0)
    (tmp_path / "away").rename(root)
    inbox.scan(2.0)
    assert names(inbox.ready(2.0)) == ["b.png"]


def test_files_that_cannot_be_read_are_waited_for(root):
    inbox = Inbox(root, 0.0, lambda _: False)
    put(root, "a.png")
    put(root, "empty.png", b"")
    inbox.scan(0.0)
    (arrival,) = inbox.ready(0.0)
    now, tries = 0.0, 0
    while inbox.retry(arrival, now):
        tries += 1
        assert inbox.ready(now) == []
        now += inbox.next_change(now) or 0.5
    assert module.PATIENCE <= now < module.PATIENCE + 5
    assert 3 <= tries < 20
    assert names(inbox.ready(now + 5)) == ["a.png", "empty.png"]


def test_looks_are_woken_by_events(root):
    pytest.importorskip("watchfiles")
    stop = threading.Event()
    told = []
    looks = Looks(root, stop, None, told.append)
    assert looks.by_events
    try:
        end = time.monotonic() + 20
        seen = threading.Event()

        def wait():
            looks.wait(20)
            seen.set()

        thread = threading.Thread(target=wait)
        thread.start()
        i = 0
        while not seen.wait(0.1):
            assert time.monotonic() < end
            put(root, f"{(i := i + 1)}.png")
        thread.join()
    finally:
        stop.set()
        looks.close()
    assert not looks.by_events
    assert told == []


def test_events_that_end_are_told(root, monkeypatch):
    watchfiles = pytest.importorskip("watchfiles")

    def watch(*_, **__):
        raise OSError("no space left for watches")
        yield

    monkeypatch.setattr(watchfiles, "watch", watch)
    told, stop = [], threading.Event()
    looks = Looks(root, stop, None, told.append)
    looks._thread.join()
    assert not looks.by_events
    assert told == [
        "there are no events of the inbox any more (no space left for watches); it is looked at "
        "every 1 s"
    ]


def test_without_watchfiles_it_looks_every_so_often(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    stop = threading.Event()
    looks = Looks(root, stop, None, print)
    assert not looks.by_events
    start = time.monotonic()
    looks.wait(0.05)
    assert 0.04 < time.monotonic() - start < 5
    stop.set()
    looks.wake()
    looks.wait(100)
    looks.wait(100)
