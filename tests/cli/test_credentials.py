"""Of a URL's password, token or signature nothing is told, and of the rest as much as is certain."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetdist.cli.credentials import is_masked, mask, public


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:secret@host/data/a.tar", "https://***@host/data/a.tar"),
        ("https://me:se@cret@host/a", "https://***@host/a"),
        ("https://me:80/cret@host/a", "https://***@host/a"),
        ("s3://me:se/cret@bucket/a", "s3://***@bucket/a"),
        ("https://me:se/cret@host/a", "https://***@host/a"),
        ("https://me:s@e/c@ret@host:8000/a", "https://***@host:8000/a"),
        ("https://me:se?cret@host/a", "https://***"),
        ("https://me:se#cret@host/a", "https://***"),
        ("https://me:se'cret@host/a", "https://***@host/a"),
        ("https://secret@host/a", "https://***@host/a"),
        ("https://:secret@[::1]:80/a", "https://***@[::1]:80/a"),
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://***@host/db"),
        ("https://host/a?token=secret&b=(1)&sig='secret'", "https://host/a?***'"),
        ("https://host/it's.tar?sig=secret", "https://host/it's.tar?***"),
        ("https://host/a#token=secret", "https://host/a#***"),
        ("https://host/a#secret", "https://host/a#***"),
        ("https://host/a;sig=secret/b=", "https://host/a;***"),
        ("s3://bucket/a;sig=secret", "s3://bucket/a;***"),
        ("https://host:443/a?b=c@secret", "https://***"),
        ("https://host/a?mail=me@secret", "https://host/a?***"),
        ("simplecache::https://me:secret@host/a", "simplecache::https://***@host/a"),
        ("file:///a::https://me:secret@host/a", "file:///a::https://***@host/a"),
        ("--data.train=https://me:secret@host/a", "--data.train=https://***@host/a"),
        ("échttps://me:secret@host/a", "échttps://***@host/a"),
        ("(last: 403, url='https://host/a?sig=secret')", "(last: 403, url='https://host/a?***')"),
        ("see https://h/b?secret, or 'https://h/b?secret'", "see https://h/b?***, or 'https://h/b?***'"),
        ("https://me:secret@h/a, https://h/b?secret: gone", "https://***@h/a, https://h/b?***: gone"),
        ('{"a": "https://me:secret@h/a", "b": "x@y"}', '{"a": "https://***@h/a", "b": "x@y"}'),
    ],
)
def test_what_is_hidden(text, masked):
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "/data/me@2x.png",
        "https://host:8000/a/b.tar",
        "https://host/me@2x.png",
        "http://127.0.0.1:8765/data@v1/train",
        "https://data.host:8080/u/r@1.0/x.tar",
        "hf://datasets/me/x@main/a.tar",
        "s3://bucket/a#1/b@2.tar",
        "file:///data/what?/a#b=1@2.tar",
        "http://[::1]:8000/a",
        "(see https://host/a), or b@c.",
        "a: b@c",
        "s3://bucket/a b",
        "what? a question",
    ],
)
def test_what_is_left_alone(text):
    assert mask(text) == text


# What separates words, or ends a URL in a text, cannot be part of a password: it must be written as %20 ...
letters = st.text(alphabet=sorted(set(string.printable) - set(string.whitespace) - set('"<>')), max_size=20)
secrets = st.builds("{}Pa55w0rd{}".format, letters, letters)
scheme = st.sampled_from(["http", "https", "s3", "hf", "postgresql"])


@given(scheme, st.from_regex(r"[a-z/@.]{0,9}", fullmatch=True), secrets)
def test_no_password_is_ever_told(scheme, user, secret):
    told = mask(f"cannot read {scheme}://{user}:{secret}@host/data/a.tar: gone")
    assert "Pa55w0rd" not in told
    assert mask(told) == told


@given(scheme, secrets, st.sampled_from(["?sig={}", "?a=1&b={}", "?{}", ";sig={}", "#token={}"]))
def test_no_token_is_ever_told(scheme, secret, form):
    told = mask(f"cannot read '{scheme}://host/data/a.tar{form.format(secret)}': gone")
    assert "Pa55w0rd" not in told
    assert mask(told) == told


def test_settings_keep_their_form():
    values = {"data": {"train": "https://me:secret@h/a", "val": None}, "x": [1, "s3://b/c?d"], "lr": 0.5}
    kept = {"data": {"train": "https://***@h/a", "val": None}, "x": [1, "s3://b/c?***"], "lr": 0.5}
    assert public(values) == kept
    assert public(kept) == kept


def test_what_was_hidden_is_known_again():
    for url in ("https://me:secret@h/a", "https://h/a?secret", "https://h/a#secret", "https://me:a?b@h"):
        assert is_masked(mask(url))
        assert not is_masked(url)
