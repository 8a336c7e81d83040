"""Objects in buckets, against S3 on localhost."""

import json
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from probex_jax.buckets import (
    Entry,
    NotThere,
    Refused,
    address_of,
    all_below,
    delete,
    is_address,
    joined,
    listed,
    read,
    shown_path,
    stated,
    stores,
    write,
)
from probex_jax.errors import ProbexError
from tests import s3
from tests.hub import IMPATIENT
from tests.model_files.answering import plain, serving

ROOT = f"s3://{s3.BUCKET}"


def test_writes_and_reads(at):
    url = joined(at, "a b/c.txt")
    assert stated(url) is None
    etag = write(url, b"one")
    assert read(url) == (b"one", etag)
    assert stated(url) == Entry(3, etag)
    large = bytes(range(256)) * 25_000  # in parts
    write(url, large)
    assert read(url).data == large
    with pytest.raises(ProbexError, match=r"c.txt: 6400000 bytes, the limit is 100"):
        read(url, 100)
    delete(url, joined(at, "nothing"))
    with pytest.raises(NotThere, match=rf"^{url}: nothing there"):
        read(url)


def test_lists(at):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "x"):
        write(joined(at, name), name.encode())
    for url in (at, f"{at}/"):
        files, folders = listed(url)
        assert {name: entry.size for name, entry in files.items()} == {"a.txt": 5, "x": 1}
        assert folders == ["b"]
    assert listed(joined(at, "b"))[1] == ["d"]
    assert listed(joined(at, "b/d/e")) == listed(joined(at, "nothing")) == ({}, [])
    assert sorted(all_below(at, 4)) == ["a.txt", "b/c.txt", "b/d/e.txt", "x"]
    with pytest.raises(ProbexError, match="more than 3 objects"):
        all_below(at, 3)
    assert at.rpartition("/")[2] in listed(ROOT)[1]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_faults_make_no_difference(server, at, share):
    server.share = share
    try:
        for number in range(20):
            assert len(listed(at).files) == len(all_below(at, 99)) == number
            url = joined(at, str(number))
            write(url, bytes([number]) * 100_000)
            assert read(url).data == bytes([number]) * 100_000
        assert sorted(listed(at).files) == sorted(map(str, range(20)))
    finally:
        server.share = 0.0


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("s3://there-is-none/a", NotThere, r"^s3://there-is-none/a: nothing there .*NoSuchBucket"),
        (ROOT, ProbexError, f"expected {ROOT}/path"),
        ("s3://X/a", ProbexError, "expected s3://bucket/path"),
        ("s3://../a", ProbexError, "expected s3://bucket/path"),
        (f"{ROOT}/../a", ProbexError, "illegal"),
        (f"{ROOT}/a\x1b[31m", ProbexError, r"^s3://\w+/a\?\[31m: .*illegal"),
        (f"{ROOT}/a//b", ProbexError, "empty"),
    ],
)
def test_what_cannot_be(at, url, kind, message):
    for ask in (read, lambda url: write(url, b"")):
        with pytest.raises(kind, match=message) as caught:
            ask(url)
        assert str(caught.value).isprintable()
        assert "\n" not in str(caught.value)


def test_no_such_bucket(at):
    with pytest.raises(NotThere, match=r"^s3://there-is-none: nothing there .*NoSuchBucket"):
        listed("s3://there-is-none")


def without_credentials(monkeypatch, tmp_path, text=""):
    path = tmp_path / "credentials"
    path.write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def make_public(server, url):
    """An object that all may read, in a bucket that all may list."""
    endpoint = server.env["AWS_ENDPOINT_URL"]
    for path in (f"{s3.BUCKET}?acl", url.removeprefix("s3://")):
        data, header = b"" if "?" in path else b"public", {"x-amz-acl": "public-read"}
        header["content-type"] = "binary/octet-stream"
        ask = urllib.request.Request(f"{endpoint}/{path}", data, header, method="PUT")
        urllib.request.urlopen(ask).close()


def test_a_public_bucket_is_read_without_credentials(server, at, monkeypatch, tmp_path):
    make_public(server, at)
    without_credentials(monkeypatch, tmp_path)
    assert read(at).data == b"public"
    assert at.rpartition("/")[2] in listed(ROOT).files


def test_google_s_buckets(server, at, monkeypatch, tmp_path):
    """By an endpoint whose answers are the same."""
    make_public(server, at)
    without_credentials(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the vendor's credentials would be
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("GOOGLE_BASE_URL", server.env["AWS_ENDPOINT_URL"])
    url = at.replace("s3://", "gs://")
    assert read(url).data == b"public"
    assert stated(url).size == 6
    assert at.rpartition("/")[2] in listed(f"gs://{s3.BUCKET}").files
    with pytest.raises(NotThere, match=f"^{url}/x: nothing there"):
        read(f"{url}/x")


def anywhere(monkeypatch, tmp_path):
    """As where neither the environment nor a vendor's library has credentials."""
    without_credentials(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("google.auth", "obstore.auth.boto3"):
        monkeypatch.setitem(sys.modules, name, None)


def headers_sent(monkeypatch, url, endpoint):
    """The headers of a request to a bucket."""
    dated = {"last_modified": "Sun, 29 Nov 2026 23:00:00 GMT"}
    with serving(plain("200 OK", b"public", **dated)) as bucket:
        monkeypatch.setenv(endpoint, bucket.url.rpartition("/")[0])
        assert read(url).data == b"public"
        return bucket.headers()


def test_credentials_of_gcloud(monkeypatch, tmp_path):
    """In the file in which it leaves them."""
    anywhere(monkeypatch, tmp_path)
    key = rsa.generate_private_key(65537, 2048)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    about = {
        "type": "service_account",
        "client_email": "me@x",
        "private_key_id": "1",
        "private_key": key.private_bytes(*pem, serialization.NoEncryption()).decode(),
    }
    path = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(about))
    sent = headers_sent(monkeypatch, "gs://models/a", "GOOGLE_BASE_URL")
    assert sent["authorization"].startswith("Bearer ")


TOKEN = {"access_token": "of the machine", "expires_in": 3600, "token_type": "Bearer"}


@pytest.mark.parametrize("finds", [True, False])
def test_credentials_of_a_machine_at_google(monkeypatch, tmp_path, finds):
    anywhere(monkeypatch, tmp_path)
    known = plain("200 OK", json.dumps(TOKEN).encode()) if finds else plain("404 None")
    with serving(known) as machine:
        monkeypatch.setenv("GCE_METADATA_HOST", machine.url.split("/")[2])
        sent = headers_sent(monkeypatch, "gs://models/a", "GOOGLE_BASE_URL")
    assert sent.get("authorization") == ("Bearer of the machine" if finds else None)


@pytest.mark.parametrize("finds", [True, False])
def test_credentials_of_a_machine_at_amazon(monkeypatch, tmp_path, finds):
    anywhere(monkeypatch, tmp_path)
    key = {"AccessKeyId": "mine", "SecretAccessKey": "x", "Token": "x"}
    key["Expiration"] = "2999-01-01T00:00:00Z"
    answers = [plain("200 OK", said) for said in (b"token", b"role", json.dumps(key).encode())]
    with serving(*answers * 2 if finds else [plain("404 None")]) as machine:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", machine.url.rpartition("/")[0])
        sent = headers_sent(monkeypatch, "s3://models/a", "AWS_ENDPOINT_URL")
    assert ("Credential=mine" in sent.get("authorization", "")) is finds


def test_credentials_of_a_profile(at, monkeypatch, tmp_path):
    write(at, b"private")
    text = "[mine]\naws_access_key_id=a\naws_secret_access_key=b\n"
    without_credentials(monkeypatch, tmp_path, text)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert read(at).data == b"private"
    monkeypatch.setenv("AWS_PROFILE", "theirs")
    with pytest.raises(ProbexError, match=r"theirs.* could not be found"):
        read(at)


def test_a_list_without_an_end(at, monkeypatch):
    """Each page says that there are more."""
    entry = "<Key>{}/{}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
    folder = at.rpartition("/")[2]
    entries = (f"<Contents>{entry.format(folder, number)}</Contents>" for number in range(10))
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
    page = f"<ListBucketResult>{more}{''.join(entries)}</ListBucketResult>".encode()
    monkeypatch.setattr(stores, "PATIENCE", replace(IMPATIENT, longest_s=0.5))
    with serving(plain("200 OK", page)) as endless:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endless.url.rpartition("/")[0])
        with pytest.raises(ProbexError, match=f"^{at}: takes too long to list"):
            listed(at)
        with pytest.raises(ProbexError, match="more than 1000 objects"):
            all_below(at, 1000)


def test_who_may_not_is_told(server, at):
    server.refuses = "GET", at.rpartition("/")[2]
    try:
        with pytest.raises(Refused, match=rf"^{at}: not allowed.*AWS_ACCESS_KEY_ID") as caught:
            read(at)
        assert "secret" not in str(caught.value).lower().replace("secret_access_key", "")
    finally:
        server.refuses = "", ""


def test_a_server_that_is_not_there(at, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ProbexError, match=f"^{at}: Connection refused"):
        read(at)


def test_addresses():
    assert address_of(Path("s3://bucket/a b/c")) == "s3://bucket/a b/c"
    assert address_of(Path("gs:/bucket/a")) == "gs://bucket/a"
    assert address_of("https://host/a?b=c/d") == "https://host/a?b=c/d"
    for path in ("", "s3", "s3:", "/s3:/a", "C:/a", "./hf://x", Path("a/b"), "file:///a"):
        assert address_of(path) == ""
        assert not is_address(path)
        assert shown_path(path) == str(path)
    assert is_address("s3://b/a")
    assert is_address(Path("gs://b"))
    assert not is_address("hf://org/repo")
    assert json.dumps(shown_path("https://u:p@h:8/a#p?x")) == '"https://h:8/a"'
