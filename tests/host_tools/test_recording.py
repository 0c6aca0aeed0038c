# SPDX-License-Identifier: Apache-2.0
"""The recording: what is kept, torn ends, hostile files."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcl_mcu.host_tools.frame import NEXT, REPLY, REQUEST, Frame, Splitter
from sparcl_mcu.host_tools.recording import (
    END,
    NOISE,
    RECEIVED,
    SENT,
    SESSION,
    Header,
    Recorder,
    entries,
    is_complete,
    read_header,
    transactions,
)
from sparcl_mcu.spec.errors import UserError

HEADER = Header("tiny", "native", b"12345678", 3, "0.1.0")


def _exchange(recorder: Recorder, sequence: int, command: int, request: bytes, reply: bytes) -> None:
    recorder.entry(SENT, Frame(REQUEST, sequence, command, 0, request).body())
    recorder.entry(RECEIVED, Frame(REPLY, sequence, command, 0, reply).body())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording with two transactions, a retry, a duplicate and noise."""
    path = tmp_path / "recording.sclr"
    with Recorder(path, HEADER) as recorder:
        _exchange(recorder, 1, 10, b"a", b"A")
        recorder.entry(NOISE, b"\x01\x02")
        recorder.entry(SENT, Frame(REQUEST, 2, 4, 0, b"b").body())
        recorder.entry(RECEIVED, Frame(REPLY, 0, 0, 1, b"").body())
        _exchange(recorder, 2, 4, b"b", b"B")
        recorder.entry(RECEIVED, Frame(REPLY, 2, 4, 0, b"B").body())
        recorder.entry(END, {"complete": True})
    return path


def test_header_and_transactions(path: Path) -> None:
    assert read_header(path) == HEADER
    assert list(transactions(path)) == [(10, b"a", 0, b"A"), (4, b"b", 0, b"B")]
    assert is_complete(path)


def test_everything_is_on_disk_at_once(tmp_path: Path) -> None:
    """A host that is killed has lost nothing it recorded."""
    recorder = Recorder(tmp_path / "r", HEADER)
    for k in range(5):
        _exchange(recorder, k, 10, bytes([k]), b"x")
        assert len(list(transactions(tmp_path / "r"))) == k + 1
    recorder.close()


def test_every_torn_end_is_read_up_to_it(path: Path) -> None:
    whole = path.read_bytes()
    complete = list(entries(path))
    start = len(whole) - sum(len(msgpack.packb(list(entry))) for entry in complete)
    for size in range(start, len(whole)):
        path.write_bytes(whole[:size])
        found = list(entries(path))
        assert found == complete[: len(found)]
        assert not is_complete(path)
        list(transactions(path))


def test_request_without_reply_is_marked(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", HEADER) as recorder:
        recorder.entry(SENT, Frame(REQUEST, 2, 4, 0, b"b").body())
    with Recorder(tmp_path / "r", HEADER, append=True) as recorder:
        _exchange(recorder, 1, 1, b"", b"H")
        recorder.entry(SENT, Frame(REQUEST, 2, 4, 0, b"c").body())
    assert list(transactions(tmp_path / "r")) == [
        (4, b"b", None, b""),
        (1, b"", 0, b"H"),
        (4, b"c", None, b""),
    ]


def _many(path: Path, *items: tuple[str, int, bytes | int]) -> list[Any]:
    """What is read of requests ("first", "next") and replies ("good", or their status) by sequence number."""
    with Recorder(path, HEADER) as recorder:
        for what, sequence, data in items:
            if what in ("first", "next"):
                kind = REQUEST if what == "first" else NEXT
                recorder.entry(SENT, Frame(kind, sequence, 3, 0, data).body())  # type: ignore[arg-type]
            elif what == "good":
                recorder.entry(RECEIVED, Frame(REPLY, sequence, 3, 0, data).body())  # type: ignore[arg-type]
            else:
                recorder.entry(RECEIVED, Frame(REPLY, sequence, 3, data, b"").body())  # type: ignore[arg-type]
    return [(t.request, t.status, t.reply) for t in transactions(path)]


def test_requests_under_way_are_read_in_order(tmp_path: Path) -> None:
    """A reply that comes late stands where its request does."""
    sent: list[Any] = [("first", 1, b"a"), ("next", 2, b"b"), ("next", 3, b"c")]
    replies: list[Any] = [("good", 1, b"A"), ("good", 2, b"B"), ("good", 3, b"C")]
    expected = [(b"a", 0, b"A"), (b"b", 0, b"B"), (b"c", 0, b"C")]
    assert _many(tmp_path / "1", *sent, *replies) == expected
    late = [*sent, replies[0], replies[2], sent[1], replies[1], replies[1]]
    assert _many(tmp_path / "2", *late) == expected
    lost = [sent[0], sent[1], replies[0], sent[2], ("refused", 3, 11), sent[1], sent[2], replies[1], replies[2]]
    assert _many(tmp_path / "3", *lost) == expected


def test_requests_whose_replies_never_came(tmp_path: Path) -> None:
    sent: list[Any] = [("first", 1, b"a"), ("next", 2, b"b"), ("next", 3, b"c")]
    assert _many(tmp_path / "1", *sent, ("good", 2, b"B"), ("first", 4, b"d"), ("good", 4, b"D")) == [
        (b"a", None, b""),
        (b"b", 0, b"B"),
        (b"c", None, b""),
        (b"d", 0, b"D"),
    ]
    refused = [*sent, ("good", 1, b"A"), ("refused", 2, 6), ("refused", 3, 11), ("first", 4, b"d")]
    assert _many(tmp_path / "2", *refused) == [(b"a", 0, b"A"), (b"b", 6, b""), (b"d", None, b"")]


def test_the_first_reply_is_the_one_that_counts(tmp_path: Path) -> None:
    """A line may carry a reply twice; whatever comes later to a request that was answered is not its answer."""
    sent: list[Any] = [("first", 1, b"a"), ("next", 2, b"b")]
    assert _many(tmp_path / "1", *sent, ("good", 2, b"B"), ("good", 2, b"C"), ("good", 1, b"A")) == [
        (b"a", 0, b"A"),
        (b"b", 0, b"B"),
    ]


def test_the_longest_noise_is_read_again(tmp_path: Path) -> None:
    """Bytes without an end, as a line may carry them, whole and torn."""
    splitter = Splitter()
    chunks = [chunk for part in (50_000, 60_000, 65_536) for chunk in splitter.feed(b"x" * part)]
    chunks += splitter.feed(b"y" * 65_535 + b"\0")
    path = tmp_path / "r"
    with Recorder(path, HEADER) as recorder:
        for chunk in chunks:
            recorder.entry(NOISE, chunk)
    assert [len(entry.data) for entry in entries(path) if entry.kind == NOISE] == [Splitter.LIMIT]
    whole = path.read_bytes()
    for size in range(len(whole) - Splitter.LIMIT - 8, len(whole) - Splitter.LIMIT + 8):
        path.write_bytes(whole[:size])
        assert NOISE not in [entry.kind for entry in entries(path)]
    path.write_bytes(whole[:-1])
    assert NOISE not in [entry.kind for entry in entries(path)]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", HEADER)
    recorder.close()
    recorder._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*--resume"):
        recorder.entry(NOISE, b"x")


def test_appending_cuts_a_torn_entry_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])
    with Recorder(path, HEADER, append=True) as recorder:
        _exchange(recorder, 3, 10, b"c", b"C")
    assert [t.request for t in transactions(path)] == [b"a", b"b", b"c"]
    assert [e.kind for e in entries(path)].count(SESSION) == 2


def test_appending_to_another_model_is_refused(path: Path) -> None:
    other = Header("tiny", "native", b"87654321", 3, "0.1.0")
    with pytest.raises(UserError, match="another model"):
        Recorder(path, other, append=True)


def test_without_append_it_starts_anew(path: Path) -> None:
    Recorder(path, HEADER).close()
    assert list(transactions(path)) == []


# -- files that are no recordings -----------------------------------------------------------------------


def _file(tmp_path: Path, *objects: Any, raw: bytes = b"") -> Path:
    path = tmp_path / "hostile.sclr"
    path.write_bytes(b"".join(msgpack.packb(item) for item in objects) + raw)
    return path


GOOD = {"kind": "sparcl-recording", "format": 1, "experiment": "e", "board": "b"}
GOOD |= {"model_hash": b"12345678", "seed": 1, "tool_version": "0"}

HOSTILE: dict[str, tuple[list[Any], bytes]] = {
    "empty": ([], b""),
    "text": ([], b"hello, world\n"),
    "pickle": ([], pickle.dumps({"kind": "sparcl-recording"})),
    "other map": ([{"kind": "else"}], b""),
    "other format": ([GOOD | {"format": 2}], b""),
    "missing field": ([{k: v for k, v in GOOD.items() if k != "seed"}], b""),
    "wrong type": ([GOOD | {"seed": "1"}], b""),
    "huge length": ([GOOD], b"\x92\xa1>\xc6\xff\xff\xff\xff"),
    "huge array": ([GOOD], b"\xdd\xff\xff\xff\xff"),
    "huge map": ([GOOD], b"\xdf\xff\xff\xff\xff"),
    "deep nesting": ([GOOD], b"\x91" * 100_000),
    "extension": ([GOOD], b"\xc7\x04\x05abcd"),
    "timestamp": ([GOOD], b"\xd6\xff\x00\x00\x00\x00"),
    "no list": ([GOOD, 5], b""),
    "unknown kind": ([GOOD, ["?", b""]], b""),
    "frame not bytes": ([GOOD, [">", "text"]], b""),
    "long entry": ([GOOD, [">", bytes(200_000)]], b""),
    "long text": ([GOOD, [200_000 * "S", {}]], b""),
    "long name": ([GOOD | {"experiment": 200_000 * "e"}], b""),
    "large entry": ([GOOD, [">", bytes(4), *[bytes(100_000)] * 6]], b""),
    "many values": ([GOOD, [">", bytes(4), *range(20)]], b""),
    "many fields": ([GOOD, ["S", {str(k): k for k in range(70)}]], b""),
    "extension in an entry": ([GOOD, [">", bytes(4), msgpack.ExtType(5, b"abcd")]], b""),
    "endless array": ([GOOD], b"\x92\xa1S\xdd\x00\xff\xff\xff" + bytes(100_000)),
    "endless map": ([GOOD], b"\x92\xa1S\xdf\x00\xff\xff\xff" + bytes(100_000)),
    "torn entry of any length": ([GOOD], b"\x92\xa1>\xc6\x00\x02\x00\x01" + bytes(1000)),
    "many requests under way": ([GOOD, *([">", bytes([NEXT, k % 256, k // 256, 0])] for k in range(256))], b""),
    "frame too short": ([GOOD, [">", b"\x01"]], b""),
    "bad text": ([GOOD], b"\x92\xa1\xff\xc4\x00"),
    "reserved byte": ([GOOD], b"\xc1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_a_user_error(tmp_path: Path, name: str) -> None:
    objects, raw = HOSTILE[name]
    path = _file(tmp_path, *objects, raw=raw)
    with pytest.raises(UserError, match=r"hostile\.sclr"):
        list(transactions(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sparcl stream"):
        read_header(tmp_path / "none")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = _file(tmp_path, GOOD, raw=data)
    with contextlib.suppress(UserError):
        list(transactions(path))


def test_a_long_array_is_not_read_into_memory(tmp_path: Path) -> None:
    """It is refused by its length, before any of what it holds."""
    with pytest.raises(UserError, match="max_array_len"):
        list(entries(_file(tmp_path, GOOD, [">", *range(8)])))
