"""What may pass is tried again for a while, what lasts is told at once, secrets are told never."""

import errno

import pytest

from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.remote import UnreachableError, retry

URL = "https://me:secret@host/data/000001.tar?signature=abc"
MASKED = r"https://\*\*\*@host/data/000001.tar\?\*\*\*"


class AnswerError(Exception):
    def __init__(self, status):
        super().__init__(f"answer {status} of {URL}")
        self.status = status


class TooManyRedirects(Exception):  # noqa: N818 (aiohttp's name)
    """Without a status, as aiohttp raises it."""


def missing_because(cause):
    """The error with which fsspec hides another."""
    error = FileNotFoundError(URL)
    error.__cause__ = cause
    return error


def failing(error, times):
    """An action that raises `error` so many times, and then gives "data"."""
    left = [error] * times

    def action():
        if left:
            raise left.pop()
        return "data"

    return action


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        OSError(errno.EIO, "x"),
        *(missing_because(ConnectionRefusedError()), missing_because(AnswerError(503))),
        *map(AnswerError, (408, 425, 429, 500, 502, 503, 504)),
    ],
)
def test_what_may_pass_is_tried_again(error):
    assert retry(URL, failing(error, 5)) == "data"


@pytest.mark.parametrize(
    "error",
    [
        *(PermissionError(), NotImplementedError(), OSError(errno.EINVAL, "x")),
        *(TooManyRedirects(), missing_because(TooManyRedirects()), *map(AnswerError, (400, 401, 403, 501))),
    ],
)
def test_what_lasts_is_told_at_once(error):
    with pytest.raises(DataError, match=rf"^{MASKED}: cannot be read \(\w+: .*check the address and your permis"):
        retry(URL, failing(error, 1))


def test_too_many_open_files_are_no_fault_of_the_address():
    with pytest.raises(DataError, match=r"cannot be read \(OSError: .*ulimit -n.*data\.num_workers"):
        retry(URL, failing(OSError(errno.EMFILE, "x"), 1))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(URL), missing_because(AnswerError(404)), AnswerError(404), AnswerError(410)]
)
def test_a_missing_file_is_that(error):
    with pytest.raises(FileNotFoundError, match=MASKED) as caught:
        retry(URL, failing(error, 1))
    assert caught.value.__suppress_context__


def test_the_deadline(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 10.0)
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(remote.time, "monotonic", lambda: next(clock))
    message = (
        rf"^{MASKED}: could not be written in 3 attempts within 12 s \(last: AnswerError: answer 503 of {MASKED}\); "
        r"check the server and the connection, then run the same command again. data.retry_s sets how"
    )
    with pytest.raises(UnreachableError, match=message) as caught:
        retry(URL, failing(AnswerError(503), 99), what="written")
    assert caught.value.__suppress_context__


def test_no_attempt_begins_after_the_deadline(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", remote.RETRY_S)
    remote.set_retry_s(-1)
    with pytest.raises(UnreachableError, match="in 1 attempts within 0 s"):
        retry(URL, failing(TimeoutError(), 1))


def test_the_log_tells_why_a_run_waits(caplog):
    retry(URL, failing(AnswerError(503), 8))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.endswith("; trying again for up to 300 s")
    assert "secret" not in record.message
    assert "abc" not in record.message


def test_a_package_that_is_not_installed():
    with pytest.raises(
        ConfigError, match=rf"^{MASKED}: Install s3fs to access S3; install it, or copy the data set to a"
    ):
        retry(URL, failing(ImportError("Install s3fs to access S3"), 1))


def test_mistakes_of_the_program_are_not_explained_away():
    with pytest.raises(TypeError, match="^unexpected$"):
        retry(URL, failing(TypeError("unexpected"), 1))


def test_answers_of_object_stores():
    error = OSError(errno.EIO, "x")
    error.__cause__ = AnswerError(0)
    error.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": 503}}
    assert remote.status_of(error) == 503
    hub = Exception("x")
    hub.response = type("Response", (), {"status_code": 429})()
    assert remote.status_of(hub) == 429
    google = Exception("x")
    google.code = 416
    assert remote.status_of(google) == 416
    assert remote.status_of(Exception("x")) is None
