"""The emulated storage, asked by hand: what it refuses, and what drivers leave to the agent."""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import hmac
import http.client
import os
import ssl
import unittest
import xml.etree.ElementTree as ET
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from fixtures import AZURE_HOST, GCS_HOST, STORAGE_HOST, Client, UpstreamCase

MEBIBYTE = 1024 * 1024
REGION = "eu-west-1"


@dataclass
class Reply:
    """An answer of the storage."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of a refusal."""
        return ET.fromstring(self.body).findtext("{*}Code")

    def text(self, name: str) -> str:
        """The text of an element."""
        return ET.fromstring(self.body).findtext(f".//{{*}}{name}", "")


@dataclass
class Signer:
    """Signs requests to S3. A test makes one thing of it wrong."""

    creds: dict[str, str]
    region: str = REGION
    moment: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))

    def headers(
        self, method: str, path: str, query: dict[str, str], body: bytes, extra: dict[str, str]
    ) -> dict[str, str]:
        date, day = self.moment.strftime("%Y%m%dT%H%M%SZ"), self.moment.strftime("%Y%m%d")
        headers = {
            "host": STORAGE_HOST,
            "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
            "x-amz-date": date,
            "x-amz-security-token": self.creds["AWS_TOKEN"],
            **extra,
        }
        names = sorted(headers)
        canonical = [method, quote(path), urlencode(sorted(query.items()), quote_via=quote)]
        canonical += [f"{name}:{headers[name]}" for name in names]
        canonical += ["", ";".join(names), headers["x-amz-content-sha256"]]
        scope = f"{day}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        key = b"AWS4" + self.creds["AWS_SECRET_KEY"].encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}".encode(), "sha256").hex()
        credential = f"Credential={self.creds['AWS_KEY_ID']}/{scope}"
        del headers["host"]
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        return headers


class Storage(UpstreamCase):
    """What the tests share."""

    def send(self, method: str, host: str, target: str, body: bytes = b"", **headers: str) -> Reply:
        """One request, by whatever name."""
        trust = ssl.create_default_context(cafile=str(self.upstream.folder / "ca.pem"))
        connection = http.client.HTTPSConnection("localhost", self.upstream.port, context=trust, timeout=60)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        sent = {"host": host, "content-length": str(len(body))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        reply_headers = {name.lower(): value for name, value in answer.getheaders()}
        try:
            return Reply(answer.status, answer.reason, reply_headers, answer.read())
        except http.client.IncompleteRead as error:
            return Reply(answer.status, "broken off", reply_headers, error.partial)
        finally:
            connection.close()

    def s3(
        self,
        signer: Signer,
        method: str,
        path: str,
        body: bytes = b"",
        query: dict[str, str] | None = None,
        sent: bytes | None = None,
        **extra: str,
    ) -> Reply:
        """A signed request. With `sent`, another body than the one that was signed."""
        query = query or {}
        named = {name.replace("_", "-"): value for name, value in extra.items()}
        headers = signer.headers(method, path, query, body, named)
        target = quote(path) + ("?" + urlencode(query, quote_via=quote) if query else "")
        return self.send(method, STORAGE_HOST, target, body if sent is None else sent, **headers)

    def transfer(self, client: Client, sql: str, **more: Any) -> dict[str, Any]:
        """The answer's data to a PUT or a GET."""
        answer = client.query(sql, **more)
        self.assertTrue(answer["success"], answer)
        data: dict[str, Any] = answer["data"]
        return data

    def place(self, data: dict[str, Any], name: str) -> str:
        """The path of an object in the place that an answer names."""
        return "/" + data["stageInfo"]["location"].partition("/")[2] + name


class Answers(Storage):
    def test_the_answer_to_a_put(self) -> None:
        with self.session() as client:
            data = self.transfer(client, "put 'file:///tmp/it''s*.csv' @~/a/b parallel = 7 overwrite = true")
        info = data["stageInfo"]
        location = "acme-stage/8vpe-s-acst0042/users/SVC_AGENTS/a/b/"
        self.assertEqual((info["locationType"], info["location"], info["region"]), ("S3", location, REGION))
        self.assertEqual(set(info["creds"]), {"AWS_KEY_ID", "AWS_SECRET_KEY", "AWS_TOKEN", "AWS_ID", "AWS_KEY"})
        self.assertTrue(info["isClientSideEncrypted"])
        self.assertEqual(data["uploadInfo"]["creds"], info["creds"])
        facts = ("command", "src_locations", "parallel", "overwrite", "autoCompress", "sourceCompression", "operation")
        expected = ["UPLOAD", ["/tmp/it's*.csv"], 7, True, True, "auto_detect", "Node"]
        self.assertEqual([data[name] for name in facts], expected)
        material = data["encryptionMaterial"]
        self.assertEqual(len(base64.b64decode(material["queryStageMasterKey"])), 16)
        self.assertEqual(material["queryId"], data["queryId"])
        self.assertIsInstance(material["smkId"], int)
        self.assertGreater(material["smkId"], 2**53)

    def test_numbers_of_keys_as_texts(self) -> None:
        with self.upstream.client() as client:
            client.login(CLIENT_CAPABILITIES={"SMK_ID_AS_STRING": True})
            material = self.transfer(client, "put file:///tmp/x @~ /* 256 bits */")["encryptionMaterial"]
        self.assertGreater(int(material["smkId"]), 2**53)
        self.assertIsInstance(material["smkId"], str)
        self.assertEqual(len(base64.b64decode(material["queryStageMasterKey"])), 32)

    def test_what_comments_ask_for(self) -> None:
        with self.session() as client:
            azure = self.transfer(client, "put file:///tmp/x @~ /* on azure */")["stageInfo"]
            self.assertEqual((azure["locationType"], azure["storageAccount"]), ("AZURE", "acmestage"))
            self.assertEqual((azure["endPoint"], list(azure["creds"])), ("blob.core.windows.net", ["AZURE_SAS_TOKEN"]))
            gcs = self.transfer(client, "put file:///tmp/x @~ /* on gcs */")["stageInfo"]
            self.assertEqual((gcs["locationType"], list(gcs["creds"])), ("GCS", ["GCS_ACCESS_TOKEN"]))
            plain = self.transfer(client, "put file:///tmp/x @~ /* unencrypted */")
            self.assertIsNone(plain["encryptionMaterial"])
            self.assertFalse(plain["stageInfo"]["isClientSideEncrypted"])
            other = self.transfer(client, "put file:///tmp/x @~ /* other file */")
            self.assertEqual(other["src_locations"], ["/etc/hostname"])
            empty = self.transfer(client, "get @~/nothing file:///tmp/ /* unencrypted */")
            self.assertEqual((empty["src_locations"], empty["encryptionMaterial"]), ([], []))

    def test_stages_of_every_kind(self) -> None:
        with self.session() as client, self.session("other", "other") as stranger:
            for sql in (
                "create stage named",
                "create or replace temporary stage if not exists SYSTEM$BIND file_format = (type = csv)",
                'create temporary stage "SANDBOX"."PUBLIC"."a quoted.one" encryption = (type = \'SNOWFLAKE_SSE\')',
                "create table holder (a int)",
            ):
                self.assertTrue(client.query(sql)["success"], sql)
            bound = {"1": {"type": "TEXT", "value": '@"SANDBOX"."PUBLIC"."a quoted.one"/sub'}}
            for sql, more in (
                ("put file:///tmp/x @named", {}),
                ("put file:///tmp/x '@SYSTEM$BIND/1' overwrite = true;", {}),
                ("PUT file:///tmp/x ? source_compression=auto_detect", {"bindings": bound}),
                ("put file:///tmp/x @sandbox.public.%holder", {}),
            ):
                self.transfer(client, sql, **more)
            self.assert_refused(client.query("create stage named"), "002002")
            self.assert_refused(client.query("put file:///tmp/x @%nobody"), "002003")
            self.assert_refused(client.query("put /tmp/x @named"), "001003")
            # Temporary stages are their session's own; another's own stage is its own.
            self.assert_refused(stranger.query("put file:///tmp/x @SYSTEM$BIND"), "002003")
            self.assertIn("/users/OTHER/", self.transfer(stranger, "put file:///tmp/x @~")["stageInfo"]["location"])
            self.assertTrue(client.query("drop stage named")["success"])
            self.assert_refused(client.query("list @named"), "002003")

    def test_a_file_that_cannot_be_decrypted_is_unreadable(self) -> None:
        with self.session() as client:
            data = self.transfer(client, "put file:///tmp/x @~/unreadable auto_compress = false")
            signer = Signer(data["stageInfo"]["creds"])
            self.assertEqual(self.s3(signer, "PUT", self.place(data, "x"), b"in plain text").status, 200)
            client.query("create or replace table readers (a varchar)")
            self.assert_refused(client.query("get @~/unreadable file:///tmp/"), "100064")
            self.assert_refused(client.query("copy into readers from @~/unreadable"), "100064")


class S3(Storage):
    def granted(self, client: Client, words: str = "") -> tuple[Signer, str]:
        data = self.transfer(client, f"put file:///tmp/x @~/s3 /* unencrypted */ {words}")
        return Signer(data["stageInfo"]["creds"]), self.place(data, "")

    def test_only_what_is_signed_right_is_let_in(self) -> None:
        with self.session() as client:
            signer, place = self.granted(client)
            expired, _ = self.granted(client, "/* expired credentials */")
            reader = Signer(self.transfer(client, "get @~/s3 file:///tmp/")["stageInfo"]["creds"])
        path = place + "a b+ü.bin"
        self.assertEqual(self.s3(signer, "PUT", path, b"x", x_amz_meta_sfc_digest="d").status, 200)
        other = dict(signer.creds)
        early = signer.moment - datetime.timedelta(minutes=16)
        for signer_, code, status in (
            (Signer(other | {"AWS_KEY_ID": "ASIANOBODY"}), "InvalidAccessKeyId", 403),
            (Signer(other | {"AWS_SECRET_KEY": "wrong"}), "SignatureDoesNotMatch", 403),
            (Signer(other | {"AWS_TOKEN": "wrong"}), "InvalidToken", 400),
            (Signer(other, moment=early), "RequestTimeTooSkewed", 403),
            (Signer(other, region="us-east-1"), "AuthorizationHeaderMalformed", 400),
            (expired, "ExpiredToken", 400),
        ):
            reply = self.s3(signer_, "GET", path)
            self.assertEqual((reply.status, reply.code), (status, code))
        for reply, code in (
            (self.send("GET", STORAGE_HOST, quote(path)), "AccessDenied"),
            (self.s3(signer, "GET", "/8vpe-s-acst0042/users/OTHER/x"), "AccessDenied"),
            (self.s3(reader, "PUT", path, b"y"), "AccessDenied"),
            (self.s3(signer, "PUT", path, b"signed", sent=b"forged"), "XAmzContentSHA256Mismatch"),
            (self.s3(signer, "PUT", path, b"x", content_md5="AAAA"), "BadDigest"),
            (self.s3(signer, "PUT", path, b"x", if_none_match="*"), "PreconditionFailed"),
            (self.s3(signer, "GET", place + "nothing"), "NoSuchKey"),
            (self.s3(signer, "GET", "/", query={"accelerate": ""}), "AccessDenied"),
        ):
            self.assertEqual(reply.code, code, reply.body)
        self.assertEqual(self.s3(expired, "HEAD", path).status, 400)
        self.assertEqual(self.s3(reader, "GET", path).body, b"x")

    def test_objects_come_back_with_what_was_said_of_them(self) -> None:
        data = os.urandom(1000)
        with self.session() as client:
            signer, place = self.granted(client)
        path, unsigned = place + "object", {"x_amz_content_sha256": "UNSIGNED-PAYLOAD"}
        put = self.s3(signer, "PUT", path, data, x_amz_meta_x_amz_iv="iv", **unsigned)
        head = self.s3(signer, "HEAD", path)
        self.assertEqual((head.status, head.headers["content-length"], head.body), (200, "1000", b""))
        self.assertEqual((head.headers["x-amz-meta-x-amz-iv"], head.headers["etag"]), ("iv", put.headers["etag"]))
        for wanted, begin, end in (("bytes=10-19", 10, 20), ("bytes=990-", 990, 1000), ("bytes=-5", 995, 1000)):
            part = self.s3(signer, "GET", path, range=wanted, if_match=put.headers["etag"])
            self.assertEqual((part.status, part.body), (206, data[begin:end]))
            self.assertEqual(part.headers["content-range"], f"bytes {begin}-{end - 1}/1000")
        self.assertEqual(self.s3(signer, "GET", path, range="bytes=1000-").status, 416)
        self.assertEqual(self.s3(signer, "GET", path, if_match='"other"').status, 412)
        listed = self.s3(signer, "GET", "/", query={"list-type": "2", "prefix": place[1:] + "obj"})
        self.assertEqual((listed.text("Key"), listed.text("Size")), (path[1:], "1000"))
        self.assertEqual(self.s3(signer, "DELETE", path).status, 204)
        self.assertEqual(self.s3(signer, "GET", path).status, 404)

    def test_uploads_in_parts(self) -> None:
        first, second = os.urandom(5 * MEBIBYTE), os.urandom(10)
        with self.session() as client:
            signer, place = self.granted(client)
        path = place + "parts"
        begun = self.s3(signer, "POST", path, query={"uploads": ""}, x_amz_meta_x_amz_key="key")
        upload = {"uploadId": begun.text("UploadId")}
        tags = [
            self.s3(signer, "PUT", path, body, query=upload | {"partNumber": str(number)}).headers["etag"]
            for number, body in ((1, first), (2, second))
        ]
        self.assertEqual(self.s3(signer, "GET", path).status, 404)

        def complete(*parts: tuple[int, str]) -> Reply:
            listed = "".join(f"<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber></Part>" for number, tag in parts)
            body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
            return self.s3(signer, "POST", path, body, query=upload)

        self.assertEqual(complete((1, tags[1])).code, "InvalidPart")
        self.assertEqual(complete((2, tags[1]), (1, tags[0])).code, "InvalidPartOrder")
        self.assertEqual(complete((1, tags[0]), (2, tags[1])).text("ETag")[-3:], '-2"')
        got = self.s3(signer, "GET", path)
        self.assertEqual((got.body, got.headers["x-amz-meta-x-amz-key"]), (first + second, "key"))
        self.assertEqual(complete((1, tags[0])).code, "NoSuchUpload")
        upload = {"uploadId": self.s3(signer, "POST", path, query={"uploads": ""}).text("UploadId")}
        self.assertEqual(self.s3(signer, "DELETE", path, query=upload).status, 204)
        self.assertEqual(self.s3(signer, "PUT", path, b"", query=upload | {"partNumber": "1"}).code, "NoSuchUpload")

    def test_chunks_with_a_checksum_after_them(self) -> None:
        body = b"hello world"
        sum_ = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        extra = {
            "x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "x_amz_trailer": "x-amz-checksum-crc32",
            "x_amz_decoded_content_length": "11",
            "content_encoding": "aws-chunked",
        }
        with self.session() as client:
            signer, place = self.granted(client)
        for checksum, status in (("AAAAAA==", 400), (sum_, 200)):
            framed = b"6\r\nhello \r\n5\r\nworld\r\n0\r\nx-amz-checksum-crc32:" + checksum.encode() + b"\r\n\r\n"
            self.assertEqual(self.s3(signer, "PUT", place + "chunks", framed, **extra).status, status)
        got = self.s3(signer, "GET", place + "chunks")
        self.assertEqual(got.body, body)
        self.assertNotIn("content-encoding", got.headers)

    def test_a_download_breaks_off_once(self) -> None:
        data = os.urandom(300_000)
        with self.session() as client:
            signer, place = self.granted(client, "/* breaks off */")
            self.s3(signer, "PUT", place + "breaks", data)
            broken, whole = self.s3(signer, "GET", place + "breaks"), self.s3(signer, "GET", place + "breaks")
            self.assertEqual((broken.reason, broken.body), ("broken off", data[:150_000]))
            self.assertEqual(whole.body, data)
            self.transfer(client, "get @~/s3/breaks file:///tmp/ /* breaks off */")
            rest = self.s3(signer, "GET", place + "breaks", range="bytes=100000-")
            self.assertEqual((rest.reason, rest.body), ("broken off", data[100_000:200_000]))

    def test_the_log_has_no_whole_bodies(self) -> None:
        data = os.urandom(100_000)
        with self.session() as client:
            signer, place = self.granted(client)
        self.s3(signer, "PUT", place + "logged", data)
        line = self.upstream.lines()[-1]
        self.assertEqual((line["method"], line["path"], line["status"]), ("PUT", place + "logged", 200))
        self.assertEqual(line["body"], {"size": 100_000, "sha256": hashlib.sha256(data).hexdigest()})
        self.assertEqual(line["headers"]["x-amz-security-token"], signer.creds["AWS_TOKEN"])


class Azure(Storage):
    def granted(self, client: Client, words: str = "") -> tuple[str, str]:
        data = self.transfer(client, f"put file:///tmp/x @~/azure /* on azure */ {words}")
        location = data["stageInfo"]["location"]
        return "/" + location, data["stageInfo"]["creds"]["AZURE_SAS_TOKEN"].removeprefix("?")

    def test_blobs(self) -> None:
        with self.session() as client:
            place, sas = self.granted(client)
            _, expired = self.granted(client, "/* expired credentials */")
        target = f"{place}a%20b?{sas}"
        said = {"x_ms_blob_type": "BlockBlob", "x_ms_meta_matdesc": "m", "x_ms_meta_sfcdigest": "d"}
        self.assertEqual(self.send("PUT", AZURE_HOST, target, b"hello").code, "MissingRequiredHeader")
        put = self.send("PUT", AZURE_HOST, target, b"hello", **said)
        self.assertEqual(put.status, 201)
        head = self.send("HEAD", AZURE_HOST, target)
        self.assertEqual((head.status, head.headers["content-length"]), (200, "5"))
        self.assertEqual(head.headers["etag"], put.headers["etag"])
        self.assertEqual((head.headers["x-ms-meta-matdesc"], head.headers["x-ms-meta-sfcdigest"]), ("m", "d"))
        part = self.send("GET", AZURE_HOST, target, x_ms_range="bytes=1-2")
        self.assertEqual((part.status, part.body), (206, b"el"))
        again = self.send("PUT", AZURE_HOST, target, b"hello", **said, if_none_match="*")
        self.assertEqual((again.status, again.code), (409, "BlobAlreadyExists"))
        for wrong in ("", sas.replace("sig=", "sig=A"), sas.replace("sp=racwdl", "sp=racwdlx"), expired):
            reply = self.send("GET", AZURE_HOST, f"{place}a%20b?{wrong}")
            self.assertEqual((reply.status, reply.code), (403, "AuthenticationFailed"), wrong)
            self.assertTrue(reply.reason.startswith("Server failed to authenticate the request."))
        elsewhere = place.replace("SVC_AGENTS", "OTHER")
        reply = self.send("GET", AZURE_HOST, f"{elsewhere}x?{sas}")
        self.assertEqual((reply.status, reply.code), (403, "AuthorizationPermissionMismatch"))
        self.assertEqual(self.send("GET", AZURE_HOST, f"{place}none?{sas}").code, "BlobNotFound")

    def test_blocks(self) -> None:
        with self.session() as client:
            place, sas = self.granted(client)
        names = [base64.b64encode(f"block{number}".encode()).decode() for number in range(3)]
        for name in names:
            block = f"{place}blocks?comp=block&blockid={quote(name)}&{sas}"
            self.assertEqual(self.send("PUT", AZURE_HOST, block, name.encode()).status, 201)

        def commit(*listed: str) -> Reply:
            blocks = "".join(f"<Latest>{name}</Latest>" for name in listed)
            body = f"<BlockList>{blocks}</BlockList>".encode()
            return self.send("PUT", AZURE_HOST, f"{place}blocks?comp=blocklist&{sas}", body, x_ms_meta_matdesc="m")

        self.assertEqual(commit("bm9uZQ==").code, "InvalidBlockList")
        self.assertEqual(self.send("GET", AZURE_HOST, f"{place}blocks?{sas}").status, 404)
        self.assertEqual(commit(names[2], names[0]).status, 201)
        got = self.send("GET", AZURE_HOST, f"{place}blocks?{sas}")
        self.assertEqual((got.body.decode(), got.headers["x-ms-meta-matdesc"]), (names[2] + names[0], "m"))


class Gcs(Storage):
    def granted(self, client: Client, words: str = "/* on gcs */") -> tuple[str, dict[str, Any]]:
        info = self.transfer(client, f"put file:///tmp/x @~/gcs {words}")["stageInfo"]
        return "/" + info["location"], info

    def bearer(self, info: dict[str, Any]) -> dict[str, str]:
        return {"authorization": "Bearer " + info["creds"]["GCS_ACCESS_TOKEN"]}

    def test_objects(self) -> None:
        with self.session() as client:
            place, info = self.granted(client)
            _, expired = self.granted(client, "/* on gcs */ /* expired credentials */")
        token = self.bearer(info)
        # Some clients write the slashes of names in this way.
        bucket, _, prefix = place[1:].partition("/")
        target = f"/{bucket}/{quote(prefix + 'object', safe='')}"
        put = self.send("PUT", GCS_HOST, target, b"hello", x_goog_meta_matdesc="m", **token)
        self.assertEqual((put.status, put.headers["x-goog-generation"].isdecimal()), (200, True))
        got = self.send("GET", GCS_HOST, place + "object", range="bytes=1-", **token)
        self.assertEqual((got.status, got.body, got.headers["x-goog-meta-matdesc"]), (206, b"ello", "m"))
        again = self.send("PUT", GCS_HOST, target, b"hello", x_goog_if_generation_match="0", **token)
        self.assertEqual((again.status, again.code), (412, "PreconditionFailed"))
        for wrong in ({}, {"authorization": "Bearer ya29.wrong"}, self.bearer(expired)):
            self.assertEqual(self.send("GET", GCS_HOST, target, **wrong).status, 401)
        elsewhere = place.replace("SVC_AGENTS", "OTHER") + "x"
        self.assertEqual(self.send("GET", GCS_HOST, elsewhere, **token).code, "AccessDenied")
        self.assertEqual(self.send("HEAD", GCS_HOST, place + "none", **token).status, 404)
        self.assertEqual(self.send("DELETE", GCS_HOST, target, **token).status, 204)

    def test_uploads_in_parts(self) -> None:
        first, second = os.urandom(5 * MEBIBYTE), b"end"
        with self.session() as client:
            place, info = self.granted(client)
        token, target = self.bearer(info), place + "parts"
        begun = self.send("POST", GCS_HOST, target + "?uploads=", x_goog_meta_matdesc="m", **token)
        upload = begun.text("UploadId")
        tags = [
            self.send("PUT", GCS_HOST, f"{target}?partNumber={number}&uploadId={upload}", body, **token).headers["etag"]
            for number, body in ((1, first), (2, second))
        ]
        listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in enumerate(tags, 1))
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        done = self.send("POST", GCS_HOST, f"{target}?uploadId={upload}", body, **token)
        self.assertEqual((done.status, done.headers["x-goog-generation"].isdecimal()), (200, True))
        got = self.send("GET", GCS_HOST, target, **token)
        self.assertEqual((got.body, got.headers["x-goog-meta-matdesc"]), (first + second, "m"))

    def test_signed_addresses(self) -> None:
        with self.session() as client:
            place, info = self.granted(client, "/* on gcs by addresses */ /* unencrypted */")
            self.assertEqual(info["creds"], {})
            address = urlsplit(info["presignedUrl"])
            target = f"{address.path}?{address.query}"
            self.assertEqual((address.hostname, address.path), (GCS_HOST, place + "x"))
            self.assertEqual(self.send("PUT", GCS_HOST, target, gzip.compress(b"hello")).status, 200)
            self.assertEqual(self.send("GET", GCS_HOST, target).status, 403)
            self.assertEqual(self.send("PUT", GCS_HOST, place + "y?" + address.query, b"").status, 403)
            data = self.transfer(client, "get @~/gcs/x file:///tmp/ /* on gcs by addresses */")
            down = urlsplit(data["presignedUrls"][0])
            got = self.send("GET", GCS_HOST, f"{down.path}?{down.query}")
            self.assertEqual(gzip.decompress(got.body), b"hello")


if __name__ == "__main__":
    unittest.main()
