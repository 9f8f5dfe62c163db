"""Checks the embedded blob store with the official Python SDK, unmodified.

What the SDK expects of the service must come back.
"""

import base64
import os
import sys
import uuid
from datetime import datetime, timedelta, timezone

from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    AccountSasPermissions,
    BlobBlock,
    BlobLeaseClient,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    ContentSettings,
    PublicAccess,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

CHECKS = []


def check(function):
    """Registers a check; each runs in a container of its own."""
    CHECKS.append(function)
    return function


def refused(error, code=None, status=None):
    """A context that wants this exception, with this code and status."""

    class Refused:
        def __enter__(self):
            return self

        def __exit__(self, kind, value, _traceback):
            assert kind is not None, f"expected {error.__name__} ({code or status}), nothing was raised"
            if not issubclass(kind, error):
                return False
            if code is not None:
                assert value.error_code == code, f"expected {code}, got {value.error_code}"
            if status is not None:
                assert value.status_code == status, f"expected {status}, got {value.status_code}"
            return True

    return Refused()


class Env:
    """The account, and a fresh container for one check."""

    def __init__(self, endpoint, account, key):
        self.endpoint, self.account, self.key = endpoint, account, key
        self.service = self.client(key)
        self.container = self.service.create_container("sdk-" + uuid.uuid4().hex)

    def client(self, credential, **options):
        return BlobServiceClient(self.endpoint, credential=credential, retry_total=0, **options)

    def blob(self, name):
        return self.container.get_blob_client(name)


def in_an_hour():
    return datetime.now(timezone.utc) + timedelta(hours=1)


def block_id(number):
    return base64.b64encode(f"{number:08}".encode()).decode()


@check
def container_life(env):
    name = "life-" + uuid.uuid4().hex
    client = env.service.get_container_client(name)
    assert not client.exists()
    client.create_container(metadata={"owner": "me"})
    assert client.exists()
    with refused(ResourceExistsError, "ContainerAlreadyExists"):
        client.create_container()
    assert client.get_container_properties().metadata == {"owner": "me"}
    client.set_container_metadata({"owner": "you", "n": "2"})
    properties = client.get_container_properties()
    assert properties.metadata == {"owner": "you", "n": "2"}
    assert properties.public_access is None and properties.lease.state == "available"
    listed = list(env.service.list_containers(name_starts_with=name, include_metadata=True))
    assert [c.name for c in listed] == [name] and listed[0].metadata["n"] == "2"
    assert listed[0].etag == properties.etag
    client.delete_container()
    with refused(ResourceNotFoundError, "ContainerNotFound"):
        client.get_container_properties()


@check
def account_calls(env):
    assert env.service.get_account_information()["account_kind"] == "StorageV2"
    assert env.container.get_account_information()["is_hns_enabled"] is False
    assert env.service.get_service_properties()["cors"] == []
    pages = list(env.service.list_containers(results_per_page=1).by_page())
    assert all(len(list(page)) <= 1 for page in pages)


@check
def single_upload(env):
    blob = env.blob("dir/äöü %+&<>'\".txt")
    settings = ContentSettings(content_type="text/plain", content_language="en", cache_control="no-cache")
    answer = blob.upload_blob(b"hello world", metadata={"kind": "greeting"}, content_settings=settings)
    got = blob.get_blob_properties()
    assert got.etag == answer["etag"] and got.size == 11 and got.metadata == {"kind": "greeting"}
    assert got.content_settings.content_type == "text/plain"
    assert got.content_settings.content_language == "en"
    assert got.content_settings.cache_control == "no-cache"
    assert got.blob_type == "BlockBlob" and got.server_encrypted and got.creation_time
    assert bytes(got.content_settings.content_md5).hex() == "5eb63bbbe01eeed093cb22bb8f5acdc3"
    assert got.last_modified == answer["last_modified"]
    assert blob.download_blob().readall() == b"hello world"
    assert blob.download_blob(encoding="utf-8").readall() == "hello world"
    assert [b.name for b in env.container.list_blobs()] == ["dir/äöü %+&<>'\".txt"]
    with refused(ResourceExistsError, "BlobAlreadyExists"):
        blob.upload_blob(b"again", overwrite=False)
    blob.upload_blob(b"again", overwrite=True)
    assert blob.download_blob().readall() == b"again"
    assert blob.exists() and not env.blob("none").exists()
    env.blob("empty").upload_blob(b"")
    assert env.blob("empty").download_blob().readall() == b""


@check
def upload_in_blocks(env):
    data = os.urandom(9 * 1024 * 1024 + 17)
    service = env.client(env.key, max_single_put_size=1024 * 1024, max_block_size=1024 * 1024)
    blob = service.get_blob_client(env.container.container_name, "big")
    blob.upload_blob(data, max_concurrency=4, validate_content=True)
    committed, uncommitted = blob.get_block_list("all")
    assert len(committed) == 10 and not uncommitted and sum(b.size for b in committed) == len(data)
    assert blob.download_blob(max_concurrency=4, validate_content=True).readall() == data


@check
def blocks_by_hand(env):
    blob = env.blob("blocks")
    for number, content in enumerate([b"aaa", b"bb", b"c"]):
        blob.stage_block(block_id(number), content)
    committed, uncommitted = blob.get_block_list("all")
    assert committed == [] and [b.size for b in uncommitted] == [3, 2, 1]
    assert list(env.container.list_blobs()) == []
    assert [b.name for b in env.container.list_blobs(include=["uncommittedblobs"])] == ["blocks"]
    with refused(HttpResponseError, "InvalidBlockList", 400):
        blob.commit_block_list([BlobBlock(block_id(9))])
    blob.commit_block_list([BlobBlock(block_id(2)), BlobBlock(block_id(0))], metadata={"v": "1"})
    assert blob.download_blob().readall() == b"caaa"
    blob.stage_block(block_id(0), b"AAAA")
    blob.commit_block_list([BlobBlock(block_id(0)), BlobBlock(block_id(2))])
    assert blob.download_blob().readall() == b"AAAAc" and blob.get_blob_properties().metadata == {}
    with refused(HttpResponseError, "InvalidBlobOrBlock"):
        blob.stage_block(block_id(5), b"x")
        blob.stage_block(base64.b64encode(b"short").decode(), b"x")


@check
def ranges(env):
    data = bytes(range(256)) * 4096
    blob = env.blob("ranges")
    blob.upload_blob(data)
    for offset, length in [(0, 1), (1, 999), (70_000, 300_000), (len(data) - 1, 1), (len(data) - 5, 100)]:
        assert blob.download_blob(offset, length).readall() == data[offset : offset + length]
    assert blob.download_blob(offset=1000).readall() == data[1000:]
    with refused(HttpResponseError, "InvalidRange", 416):
        blob.download_blob(len(data), 10).readall()
    assert blob.download_blob(5, 10, validate_content=True).readall() == data[5:15]


@check
def listing(env):
    names = ["a", "a/1", "a/2", "a/b/1", "a0", "b//x", "b/y", "c/", "ü/z", "z"]
    for name in names:
        env.blob(name).upload_blob(name.encode(), metadata={"length": str(len(name))})
    assert [b.name for b in env.container.list_blobs()] == sorted(names, key=str.encode)
    # The SDK gives the prefixes of a page before its blobs.
    walk = [item.name for item in env.container.walk_blobs(delimiter="/")]
    assert walk == ["a/", "b/", "c/", "ü/", "a", "a0", "z"], walk
    assert [i.name for i in env.container.walk_blobs("a/", delimiter="/")] == ["a/b/", "a/1", "a/2"]
    assert [i.name for i in env.container.walk_blobs("b/", delimiter="/")] == ["b//", "b/y"]
    for size in (1, 2, 3, 7):
        pages = [[b.name for b in page] for page in env.container.list_blobs(results_per_page=size).by_page()]
        assert all(len(page) <= size for page in pages)
        assert sum(pages, []) == sorted(names, key=str.encode)
    listed = {b.name: b for b in env.container.list_blobs(include=["metadata"])}
    assert listed["a/b/1"].metadata == {"length": "5"} and listed["a/b/1"].size == 5
    assert '"' + listed["z"].etag.strip('"') + '"' == env.blob("z").get_blob_properties().etag
    assert listed["z"].last_modified == env.blob("z").get_blob_properties().last_modified
    # Names XML cannot carry are marked and encoded; the SDK decodes them.
    env.blob("odd\uffffname").upload_blob(b"")
    assert "odd\uffffname" in [b.name for b in env.container.list_blobs()]


@check
def metadata_and_properties(env):
    blob = env.blob("b")
    first = blob.upload_blob(b"x")["etag"]
    second = blob.set_blob_metadata({"k": "v w", "empty": "1"})["etag"]
    assert second != first and blob.get_blob_properties().metadata == {"k": "v w", "empty": "1"}
    third = blob.set_http_headers(ContentSettings(content_type="a/b", content_disposition="inline"))["etag"]
    properties = blob.get_blob_properties()
    assert properties.etag == third != second
    assert properties.content_settings.content_type == "a/b"
    assert properties.content_settings.content_disposition == "inline"
    assert properties.metadata == {"k": "v w", "empty": "1"}
    blob.set_standard_blob_tier("Cool")
    assert blob.get_blob_properties().blob_tier == "Cool"
    with refused(HttpResponseError, status=400):
        blob.set_blob_metadata({"k": "v" * 9000})


@check
def conditions(env):
    blob = env.blob("b")
    old = blob.upload_blob(b"1")["etag"]
    new = blob.upload_blob(
        b"2", overwrite=True, etag=old, match_condition=MatchConditions.IfNotModified
    )["etag"]
    stale = {"etag": old, "match_condition": MatchConditions.IfNotModified}
    fresh = {"etag": new, "match_condition": MatchConditions.IfNotModified}
    for call in (
        lambda: blob.upload_blob(b"3", overwrite=True, **stale),
        lambda: blob.set_blob_metadata({}, **stale),
        lambda: blob.delete_blob(**stale),
        lambda: blob.download_blob(**stale),
        lambda: blob.get_blob_properties(**stale),
    ):
        with refused(ResourceModifiedError, "ConditionNotMet", 412):
            call()
    with refused(HttpResponseError, status=304):
        blob.download_blob(etag=new, match_condition=MatchConditions.IfModified)
    with refused(HttpResponseError, status=304):
        blob.get_blob_properties(if_modified_since=datetime.now(timezone.utc) + timedelta(minutes=1))
    with refused(ResourceModifiedError, "ConditionNotMet", 412):
        blob.get_blob_properties(if_unmodified_since=datetime(2020, 1, 1, tzinfo=timezone.utc))
    assert blob.download_blob(**fresh).readall() == b"2"
    blob.delete_blob(**fresh)
    with refused(ResourceNotFoundError, "BlobNotFound"):
        blob.delete_blob()
    with refused(ResourceModifiedError, "ConditionNotMet", 412):
        env.blob("none").upload_blob(b"", overwrite=True, **stale)


@check
def leases(env):
    blob = env.blob("b")
    blob.upload_blob(b"1")
    lease = blob.acquire_lease(15)
    assert blob.get_blob_properties().lease.state == "leased"
    assert blob.get_blob_properties().lease.duration == "fixed"
    with refused(ResourceExistsError, "LeaseAlreadyPresent"):
        blob.acquire_lease(15)
    with refused(HttpResponseError, "LeaseIdMissing", 412):
        blob.upload_blob(b"2", overwrite=True)
    with refused(HttpResponseError, "LeaseIdMismatchWithBlobOperation", 412):
        blob.delete_blob(lease=BlobLeaseClient(blob, str(uuid.uuid4())))
    blob.upload_blob(b"2", overwrite=True, lease=lease)
    lease.renew()
    lease.change(str(uuid.uuid4()))
    blob.set_blob_metadata({}, lease=lease)
    lease.release()
    blob.upload_blob(b"3", overwrite=True)
    lease = blob.acquire_lease(-1)
    assert blob.get_blob_properties().lease.duration == "infinite"
    assert lease.break_lease(0) == 0
    assert blob.get_blob_properties().lease.state == "broken"
    blob.delete_blob()
    lease = env.container.acquire_lease(15)
    with refused(HttpResponseError, "LeaseIdMissing", 412):
        env.container.delete_container()
    lease.renew()
    lease.release()


@check
def copies(env):
    source = env.blob("source")
    source.upload_blob(os.urandom(100_000), metadata={"a": "1"}, content_settings=ContentSettings("x/y"))
    target = env.blob("target dir/target")
    answer = target.start_copy_from_url(source.url)
    assert answer["copy_status"] == "success"
    got = target.get_blob_properties()
    assert got.copy.id == answer["copy_id"] and got.copy.status == "success"
    assert got.metadata == {"a": "1"} and got.content_settings.content_type == "x/y"
    assert target.download_blob().readall() == source.download_blob().readall()
    target.start_copy_from_url(source.url, metadata={"b": "2"})
    assert target.get_blob_properties().metadata == {"b": "2"}
    with refused(HttpResponseError, status=404):
        target.start_copy_from_url(env.blob("none").url)
    with refused(HttpResponseError, "SourceConditionNotMet", 412):
        target.start_copy_from_url(
            source.url, source_etag='"0x1"', source_match_condition=MatchConditions.IfNotModified
        )
    sas = generate_blob_sas(
        env.account, env.container.container_name, "source", account_key=env.key,
        permission=BlobSasPermissions(read=True), expiry=in_an_hour(),
    )
    with_sas = f"{source.url}?{sas}"
    by_blocks = env.blob("by blocks")
    by_blocks.stage_block_from_url(block_id(0), with_sas, source_offset=10, source_length=90)
    by_blocks.stage_block_from_url(block_id(1), with_sas, source_offset=0, source_length=10)
    by_blocks.commit_block_list([BlobBlock(block_id(0)), BlobBlock(block_id(1))])
    data = source.download_blob().readall()
    assert by_blocks.download_blob().readall() == data[10:100] + data[:10]
    with refused(HttpResponseError, "CannotVerifyCopySource"):
        by_blocks.stage_block_from_url(block_id(0), source.url)
    env.blob("whole").upload_blob_from_url(with_sas)
    assert env.blob("whole").download_blob().readall() == data
    with refused(HttpResponseError, "NoPendingCopyOperation"):
        target.abort_copy(answer["copy_id"])


@check
def signatures_of_the_sdk(env):
    name = env.container.container_name
    env.blob("b").upload_blob(b"body")
    sas = generate_container_sas(
        env.account,
        name,
        account_key=env.key,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=in_an_hour(),
    )
    client = env.client(sas).get_container_client(name)
    assert client.download_blob("b").readall() == b"body"
    assert [b.name for b in client.list_blobs()] == ["b"]
    with refused(HttpResponseError, "AuthorizationPermissionMismatch", 403):
        client.upload_blob("c", b"")
    past = datetime.now(timezone.utc) - timedelta(minutes=5)
    expired = generate_container_sas(
        env.account, name, account_key=env.key, permission="r", expiry=past
    )
    with refused(ClientAuthenticationError, "AuthenticationFailed", 403):
        env.client(expired).get_container_client(name).download_blob("b")
    one = generate_blob_sas(
        env.account,
        name,
        "b",
        account_key=env.key,
        permission="r",
        expiry=in_an_hour(),
        content_type="over/ridden",
    )
    blob = env.client(one).get_blob_client(name, "b")
    assert blob.get_blob_properties().content_settings.content_type == "over/ridden"
    with refused(ClientAuthenticationError, "AuthenticationFailed", 403):
        env.client(one).get_blob_client(name, "other").download_blob()
    whole = generate_account_sas(
        env.account, env.key, ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, create=True), in_an_hour(),
    )
    service = env.client(whole)
    container = service.create_container("by-sas-" + uuid.uuid4().hex)
    container.upload_blob("x", b"1")
    container.delete_container()
    wrong = base64.b64encode(b"w" * 64).decode()
    with refused(ClientAuthenticationError, "AuthenticationFailed", 403):
        env.client(wrong).get_container_client(name).get_container_properties()


@check
def public_containers(env):
    name = env.container.container_name
    env.blob("b").upload_blob(b"body")
    nobody = ContainerClient(env.endpoint, name, retry_total=0)
    with refused(HttpResponseError):
        nobody.download_blob("b")
    env.container.set_container_access_policy({}, public_access=PublicAccess.BLOB)
    assert nobody.download_blob("b").readall() == b"body"
    with refused(HttpResponseError):
        list(nobody.list_blobs())
    env.container.set_container_access_policy({}, public_access=PublicAccess.CONTAINER)
    assert [b.name for b in nobody.list_blobs()] == ["b"]
    assert env.container.get_container_access_policy()["public_access"] == "container"
    with refused(HttpResponseError):
        nobody.upload_blob("c", b"")


@check
def other_blob_types(env):
    log = env.blob("log")
    log.create_append_blob()
    log.append_block(b"one ")
    log.append_block(b"two")
    assert log.download_blob().readall() == b"one two"
    assert log.get_blob_properties().append_blob_committed_block_count == 2
    disk = env.blob("disk")
    disk.create_page_blob(4096)
    disk.upload_page(b"x" * 512, offset=1024, length=512)
    assert disk.download_blob().readall() == bytes(1024) + b"x" * 512 + bytes(4096 - 1536)
    types = {b.name: b.blob_type for b in env.container.list_blobs()}
    assert types == {"log": "AppendBlob", "disk": "PageBlob"}
    with refused(HttpResponseError, "InvalidBlobType", 409):
        log.stage_block(block_id(0), b"x")


def main():
    endpoint, account, key = sys.argv[1], os.environ["AZURE_STORAGE_ACCOUNT"], os.environ["AZURE_STORAGE_KEY"]
    failed = 0
    for function in CHECKS:
        try:
            function(Env(endpoint, account, key))
        except Exception as error:  # every check is run, whatever happened before
            failed += 1
            print(f"FAILED {function.__name__}: {type(error).__name__}: {error}", flush=True)
            if os.environ.get("SDK_CHECK_TRACE"):
                import traceback

                traceback.print_exc()
        else:
            print(f"ok {function.__name__}", flush=True)
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
