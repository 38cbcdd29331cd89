import csv
import http.server
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.cli.line.inbox import Inbox
from pydfm.cli.line.record import Record

COLUMNS = ["path", "score", "p_value", "verdict", "class", "time", "latency", "evidence", "alarm"]


def rows_of(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def arrive(inbox, picture_folder):
    """Put pictures of the folder into the inbox, under new names."""
    pictures = sorted(picture_folder.glob("*.*"))

    def arrive(*numbers, to=inbox):
        for i in numbers:
            source = pictures[i % len(pictures)]
            shutil.copy(source, to / f"{i:03}{source.suffix}")

    return arrive


@pytest.fixture
def watch(run, model, script, inbox, tmp_path):
    """Run the command until nothing is left to score."""

    def watch(*arguments, given=model):
        return run(
            *("watch", given, inbox, "-o", tmp_path / "results.csv", "--once", "--settle", "0"),
            *("--backbone", script, *arguments),
        )

    return watch


def test_each_file_is_scored_once_across_starts(watch, arrive, inbox, model, script, tmp_path):
    arrive(0, 1, 2)
    done = watch()
    assert done.code == 0, done.err
    (inbox / "sub").mkdir()
    arrive(3, to=inbox / "sub")
    (inbox / "notes.txt").write_text("no image")
    (inbox / ".004.png").write_bytes(b"hidden")
    assert watch("--poll", "0.05").code == 0
    assert watch().code == 0
    rows = rows_of(tmp_path / "results.csv")
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths)) == 4
    assert paths[3] == str(inbox / "sub" / next(iter((inbox / "sub").iterdir())).name)
    dfm = pydfm.load(model, backbone=script)
    found = dfm.assess(paths)
    assert [float(row["score"]) for row in rows] == pytest.approx(found.scores, rel=1e-6)
    words = {1: "ok", -1: "anomalous"}
    assert [row["verdict"] for row in rows] == [words[v] for v in found.verdicts.tolist()]
    assert all(float(row["latency"]) >= 0 for row in rows)
    assert all(row["time"].endswith("Z") for row in rows)
    assert "0 images:" in watch().out.decode()


def test_a_changed_file_is_a_new_one(watch, arrive, inbox, tmp_path):
    arrive(0)
    watch()
    (file,) = inbox.iterdir()
    os.utime(file, ns=(1, 1))
    watch()
    assert [row["path"] for row in rows_of(tmp_path / "results.csv")] == [str(file)] * 2


def test_unreadable_files_are_told_after_a_while(watch, arrive, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr("pydfm.cli.line.inbox.PATIENCE", 0.3)
    arrive(0)
    (inbox / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    (inbox / "empty.png").touch()
    done = watch()
    assert done.code == 0, done.err
    found = {row["path"]: row for row in rows_of(tmp_path / "results.csv")}
    for name in ("torn.png", "empty.png"):
        row = found[str(inbox / name)]
        assert (row["verdict"], row["score"], row["p_value"]) == ("unreadable", "nan", "nan")
        assert float(row["latency"]) >= 0.3
    assert "2 unreadable" in done.out.decode()


def test_anomalous_files_are_set_aside_and_posted(watch, arrive, inbox, tmp_path):
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        arrive(0, 1)
        bad = inbox / "=bad.png"
        odd = np.zeros((50, 50, 3), dtype=np.uint8)
        odd[:, 25:, 0] = 255
        Image.fromarray(odd).save(bad)
        url = f"http://127.0.0.1:{server.server_port}/"
        done = watch("--ng", tmp_path / "ng", "--webhook", url, "--maps", tmp_path / "maps")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.code == 0, done.err
    (row,) = [r for r in rows_of(tmp_path / "results.csv") if r["verdict"] == "anomalous"]
    assert row["path"] == str(bad)
    assert (tmp_path / "ng" / "=bad.png").samefile(bad)
    assert [message["event"] for message in posted] == ["anomalous"]
    assert posted[0]["path"] == str(bad)
    assert len(list((tmp_path / "maps").iterdir())) == 3
    assert f"anomalous: {bad} (score " in done.out.decode()
    # Another file of that name is kept beside the first.
    first = bad.read_bytes()
    bad.unlink()
    Image.fromarray(odd[:, ::-1]).save(bad)
    watch("--ng", tmp_path / "ng", "--maps", tmp_path / "maps")
    kept = {file.read_bytes() for file in (tmp_path / "ng").iterdir()}
    assert kept == {first, bad.read_bytes()}


def test_pages_of_a_file_have_lines_of_their_own(watch, pictures, inbox, tmp_path):
    first, *rest = [own.convert("RGB").resize((50, 50)) for own in pictures[:3]]
    first.save(inbox / "shots.tiff", save_all=True, append_images=rest)
    watch()
    watch()
    paths = [row["path"] for row in rows_of(tmp_path / "results.csv")]
    assert paths == [str(inbox / f"shots.tiff#{i}") for i in (1, 2, 3)]


def test_a_full_disk_ends_it_and_loses_nothing(watch, arrive, tmp_path, monkeypatch):
    arrive(0, 1)

    def add(self, *_):
        raise OSError("cannot write 'results.csv': No space left on device")

    monkeypatch.setattr(Record, "add", add)
    done = watch()
    assert done.code == 2
    assert done.err == "pydfm: cannot write 'results.csv': No space left on device\n"
    monkeypatch.undo()
    assert watch().code == 0
    assert len(rows_of(tmp_path / "results.csv")) == 2


def test_drift_is_told_from_what_was_chosen(watch):
    first, second, _ = watch("--reference", "stream").out.decode().splitlines()
    assert first.startswith("watching ")
    assert second.startswith("drift: for images that come in no order, the bound of the false-al")
    assert "begins anew" in watch("--reference", "calibration").err
    assert "reference is 'x'; it must be one of" in watch("--reference", "x").err


def test_drift_goes_on_across_starts(watch, inbox, model, script, tmp_path):
    rng = np.random.default_rng(0)
    for part in range(4):
        for i in range(20):
            noise = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(inbox / f"{part}-{i:02}.png")
        done = watch("--evidence", "20")
        assert done.code == 0, done.err
        if "ALARM" in done.out.decode():
            break
    rows = rows_of(tmp_path / "results.csv")
    alarms = [row["alarm"] for row in rows if row["alarm"]]
    assert len(alarms) == 1
    assert alarms[0].startswith("the line has changed at image ")
    monitor = pydfm.load(model, backbone=script).monitor(evidence=20)
    monitor.update([row["path"] for row in rows])
    assert [f"{monitor.evidence:.4g}"] == [rows[-1]["evidence"]]
    assert monitor.change is not None
    assert "; --reset-drift forgets it" in watch("--evidence", "20").err
    assert "--reset-drift" not in watch("--evidence", "20", "--reset-drift").err
    assert watch("--evidence", "20").err == ""


def test_another_model_begins_evidence_anew(watch, arrive, model, script, tmp_path):
    arrive(0, 1, 2)
    watch()
    dfm = pydfm.load(model, backbone=script)
    dfm.recalibrate([row["path"] for row in rows_of(tmp_path / "results.csv")])
    dfm.save(tmp_path / "new.pydfm")
    done = watch("--alpha", "0.3", given=tmp_path / "new.pydfm")
    assert "the model is another one than before: evidence of drift begins anew" in done.err
    # The model of before, and so again.
    assert "evidence of drift begins anew" in watch().err
    assert "evidence of drift begins anew" not in watch().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--webhook", "ftp://x"), "--webhook is 'ftp://x'; it must begin with http"),
        (("--settle", "-1"), "--settle is -1.0; it must be a number of at least 0"),
        (("--poll", "0"), "--poll is 0.0; it must be a number of at least 0.01"),
        (("--evidence", "0"), "evidence is 0.0; it must be a number of at least 1"),
        (("--ng", "inbox/ng"), "--ng is 'inbox/ng', which is inside"),
    ],
)
def test_wrong_arguments_are_one_sentence(watch, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = watch(*arguments)
    assert (done.code, done.out) == (2, b"")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_wrong_files_are_one_sentence(run, watch, model, script, inbox, tmp_path):
    done = run("watch", model, tmp_path / "none", "-o", tmp_path / "r.csv", "--backbone", script)
    assert done.err == f"pydfm: there is no folder '{tmp_path / 'none'}' to watch\n"
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert "has other columns than path,score" in watch().err
    (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n")
    assert "the journal of what was scored for it, does not" in watch().err


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def count(path):
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


@pytest.fixture
def directed(run, model, script, inbox, tmp_path):
    """Run the command while a thread does what a line does, and ends it by a signal."""

    def directed(direct, number, *arguments, given=model):
        failed = []

        def act():
            try:
                wait_for(lambda: signal.getsignal(number) is not before)
                direct()
            except BaseException as error:
                failed.append(error)
            signal.raise_signal(number)  # os.kill would end this process on Windows

        before = signal.getsignal(number)
        thread = threading.Thread(target=act)
        thread.start()
        output = ("-o", tmp_path / "results.csv", "--backbone", script)
        done = run("watch", given, inbox, *output, *arguments)
        thread.join()
        assert not failed, (failed, done.err)
        assert signal.getsignal(number) is before
        assert done.code == 0, done.err
        return done

    return directed


@pytest.mark.parametrize("by", ["events", "polling"])
def test_it_goes_on_until_a_signal(directed, arrive, inbox, tmp_path, by):
    results = tmp_path / "results.csv"

    def direct():
        with pytest.raises(OSError, match="another process writes"):
            Record(results, COLUMNS)
        arrive(0, 1)
        wait_for(lambda: count(results) == 2)
        whole = next(inbox.glob("000*")).read_bytes()
        if by == "polling":  # events end with the folder
            inbox.rename(tmp_path / "away")
            time.sleep(0.3)
            (tmp_path / "away").rename(inbox)
        with (inbox / "slow.png").open("wb") as file:  # a file that is written slowly
            for part in range(5):
                file.write(whole[part * len(whole) // 5 : (part + 1) * len(whole) // 5])
                file.flush()
                time.sleep(0.05)
        (tmp_path / "made.png").write_bytes(whole)
        (tmp_path / "made.png").rename(inbox / "made.png")
        wait_for(lambda: count(results) == 4)

    if by == "events":
        pytest.importorskip("watchfiles")
    number = signal.SIGTERM if by == "polling" else signal.SIGINT
    poll = ["--poll", "0.05"] if by == "polling" else []
    done = directed(direct, number, "--settle", "0.2", *poll)
    first, *_, last = done.out.decode().splitlines()
    assert first.startswith(f"watching '{inbox}' {'by events' if by == 'events' else 'every 0.05'}")
    assert last.startswith("4 images: ")
    if by == "polling":
        gone, back = done.err.splitlines()
        assert gone.endswith("cannot be listed (No such file or directory); it is waited for")
        assert back.endswith("is there again")
    assert {row["verdict"] for row in rows_of(results)} <= {"ok", "anomalous"}
    assert not results.with_name("results.csv.journal-wal").exists()


def test_a_changed_model_is_taken_up(directed, arrive, model, script, tmp_path):
    results, mine = tmp_path / "results.csv", tmp_path / "mine.pydfm"
    shutil.copy(model, mine)
    dfm = pydfm.load(model, backbone=script).set_params(alpha=0.4)
    dfm.save(tmp_path / "other.pydfm")
    before = threading.active_count()

    def direct():
        arrive(0)
        wait_for(lambda: count(results) == 1)
        (tmp_path / "torn").write_bytes(mine.read_bytes()[:1000])
        (tmp_path / "torn").replace(mine)
        time.sleep(0.3)
        mine.unlink()
        time.sleep(0.3)
        (tmp_path / "other.pydfm").replace(mine)
        time.sleep(0.3)
        arrive(1, 2, 3)
        wait_for(lambda: count(results) == 4)

    done = directed(direct, signal.SIGTERM, "--poll", "0.05", "--settle", "0", given=mine)
    assert "the changed model is not taken up, the old one goes on: " in done.err
    assert f"there is no '{mine}' any more; the model goes on without its file" in done.err
    assert f"took up the changed '{mine}'\n" in done.out.decode()
    assert threading.active_count() == before
    rows = rows_of(results)
    want = dfm.predict([row["path"] for row in rows[1:]])
    assert [row["verdict"] for row in rows[1:]] == [{1: "ok", -1: "anomalous"}[v] for v in want]


def test_files_that_vanish_are_told(directed, arrive, inbox, tmp_path, monkeypatch):
    arrive(0, 1)
    first = sorted(inbox.iterdir())[0]
    there = Inbox.unchanged

    def unchanged(self, arrival):
        first.unlink(missing_ok=True)
        return there(self, arrival)

    monkeypatch.setattr(Inbox, "unchanged", unchanged)
    results = tmp_path / "results.csv"
    done = directed(lambda: wait_for(lambda: count(results) == 1), signal.SIGTERM, "--settle", "0")
    assert done.err == f"pydfm: '{first}' was gone before it could be scored\n"
