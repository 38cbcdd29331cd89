import http.server
import threading

import pytest

from pydfm.cli.line import webhook as module
from pydfm.cli.line.webhook import Webhook


@pytest.fixture
def server():
    """A server that answers with the codes in `codes`, then 200."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code = codes.pop(0) if codes else 200
            got.append((code, self.headers["Content-Type"], body))
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_):
            pass

    codes, got = [], []
    own = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own.codes, own.got = codes, got
    own.url = f"http://127.0.0.1:{own.server_port}/hook"
    thread = threading.Thread(target=own.serve_forever)
    thread.start()
    yield own
    own.shutdown()
    thread.join()
    own.server_close()


def test_messages_come_in_their_order_after_retries(server):
    told = []
    server.codes += [500, 503]
    hook = Webhook(server.url, told.append, delay=0.01)
    hook.send({"path": "a\udcff", "n": 1})
    hook.send({"n": 2})
    hook.close()
    assert [code for code, *_ in server.got] == [500, 503, 200, 200]
    assert server.got[2][1:] == ("application/json", b'{"path": "a\\udcff", "n": 1}')
    assert (hook.lost, told) == (0, [])


def test_messages_that_cannot_be_delivered_are_counted(server):
    told = []
    server.codes += [500] * 2 * module.TRIES
    hook = Webhook(server.url, told.append, delay=0.001)
    for n in range(3):
        hook.send({"n": n})
    hook.close()
    assert hook.lost == 2
    assert told == [
        "a message to --webhook could not be delivered: it answered 500; the line goes on"
    ]


def test_nobody_listens():
    told = []
    hook = Webhook("http://127.0.0.1:9/", told.append, delay=0.001)
    hook.send({})
    hook.close()
    assert hook.lost == 1
    assert "refused" in told[0]


def test_the_queue_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    go, told = threading.Event(), []
    monkeypatch.setattr(Webhook, "_post", lambda *_: go.wait(20) and None)
    hook = Webhook("http://127.0.0.1:9/", told.append)
    for n in range(10):
        hook.send({"n": n})
    assert hook.lost >= 6
    assert "3 messages wait already" in told[0]
    hook.close(patience=0.05)
    go.set()
    hook._thread.join()
    assert 9 <= hook.lost <= 10


def test_a_url_is_http():
    with pytest.raises(ValueError, match="--webhook is 'file:///x'; it must begin with http:// or"):
        Webhook("file:///x", print)
