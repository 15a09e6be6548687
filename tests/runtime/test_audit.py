"""The audit log: what is written, that it is found when a line was changed, and that its faults stop no serving."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from disks import run_on_small_disk
from runtime.bundles import as_float, random_images, write_bundle
from smart_export.signing import write_key_pair
from smart_runtime import AuditError, AuditLog, Result, SignatureError, SmartModel, SwitchRequest
from smart_runtime.audit import writer
from smart_runtime.audit.chain import MAX_LINE, line_of, parse_line, plain
from smart_runtime.audit.verification import verify_audit
from smart_runtime.bundle.signatures import load_public_key
from smart_runtime.cli import main
from smart_runtime.inputs import Images
from smart_runtime.policies.policy import PolicyModel

FLOATS = as_float(random_images(2))


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def events(file: Path) -> list[str]:
    return [record["event"] for record in records(file)]


def switch_to_and_fro(model: SmartModel, times: int) -> None:
    for number in range(times):
        model.switch("robust" if number % 2 == 0 else "clean", f"switch {number}")


class Asking:
    """Asks for the robust path with the first call, and fails with the second."""

    def __init__(self, details: Mapping[str, Any] | None = None) -> None:
        self.details = details
        self.calls = 0

    def start(self, model: PolicyModel) -> None:
        self.model = model

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only counted
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError
        return SwitchRequest("robust", "dusk", self.details)

    def status(self) -> Mapping[str, Any]:
        return {"calls": self.calls, "score": float("inf")}

    def stop(self) -> None: ...


def test_all_that_happens_is_written(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "switches.jsonl"
    with SmartModel.load(bundle, audit=file, policy=Asking({"score": 0.75, "of": [1, "2"]})) as model:
        for _ in range(2):
            model.run(FLOATS)
        model.switch("clean", "I say so")
        model.follow_policy()
        model.reload(bundle)
        digest = model.bundle.digest
        assert model.stats.audit_failures == 0
    found = records(file)
    assert [one["event"] for one in found] == [
        *("begin", "load", "switch", "policy failed", "switch", "overridden", "followed", "reload", "close")
    ]
    begun, loaded, first, failed, second, *_, reloaded, closed = found
    assert (begun["format"], begun["oldest"], begun["because"], begun["key"]) == (1, 0, "new", None)
    assert (loaded["bundle"], loaded["path"], loaded["policy"]) == (digest, "clean", "asking")
    assert loaded["process"] == os.getpid()
    assert {"from": "clean", "to": "robust", "by": "asking", "reason": "dusk"}.items() <= first.items()
    assert first["details"] == {"score": 0.75, "of": [1, "2"]}
    assert first["counters"]["calls"] == {"clean": 1, "robust": 0}
    assert (failed["method"], failed["error"], failed["failures"]) == ("observe", "ZeroDivisionError", 1)
    assert {
        "from": "robust",
        "to": "clean",
        "by": "hand",
        "reason": "I say so",
        "details": None,
    }.items() <= second.items()
    assert (reloaded["bundle"], closed["counters"]["switches"]) == (digest, 2)
    assert [one["seq"] for one in found] == list(range(9))
    assert sorted(one["monotonic_s"] for one in found) == [one["monotonic_s"] for one in found]
    assert oct(file.stat().st_mode)[-3:] == "600"


def test_the_chain_is_what_its_page_says(bundle: Path, tmp_path: Path) -> None:
    """The oracle takes each line apart by hand."""
    file = tmp_path / "switches.jsonl"
    with SmartModel.load(bundle, audit=file) as model:
        switch_to_and_fro(model, 3)
    before = "0" * 64
    for line in file.read_bytes().splitlines():
        record = json.loads(line)
        own = record.pop("hash")
        assert record["prev"] == before
        text, _, end = line.rpartition(b',"hash":')
        assert end == f'"{own}"}}'.encode()
        assert hashlib.sha256(text + b"}").hexdigest() == own
        before = own
    assert verify_audit(file).head == before


def test_without_details_the_status_is_kept(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "switches.jsonl"
    with SmartModel.load(bundle, audit=file, policy=Asking()) as model:
        model.run(FLOATS)
    (found,) = [one for one in records(file) if one["event"] == "switch"]
    assert found["details"] == {"calls": 1, "score": "inf"}


def test_a_log_is_gone_on_with(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "switches.jsonl"
    for _ in range(3):
        with SmartModel.load(bundle, audit=file) as model:
            switch_to_and_fro(model, 1)
    assert events(file) == ["begin", *["load", "switch", "close"] * 3]
    assert verify_audit(file).problems == ()


def test_old_files_are_kept_and_their_oldest_goes(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "switches.jsonl"
    log = AuditLog(file, max_bytes=64 * 1024, keep=2)
    with SmartModel.load(bundle, audit=log) as model:
        switch_to_and_fro(model, 1000)
        assert log.failures == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"switches.jsonl{end}" for end in ("", ".1", ".2")]
    assert max(one.stat().st_size for one in tmp_path.iterdir()) < 64 * 1024 + MAX_LINE
    found = verify_audit(file)
    assert (found.problems, len(found.files), found.ended, log.head) == ((), 3, True, found.head)
    assert found.first > 0
    assert found.first + found.lines == records(file)[-1]["seq"] + 1
    (tmp_path / "switches.jsonl.2").unlink()
    assert "are missing: an older file was removed" in verify_audit(file).problems[0]


@pytest.fixture(scope="module")
def signed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of two files, a seal at the end of each, and its keys."""
    folder = tmp_path_factory.mktemp("signed")
    write_key_pair(folder / "device")
    log = AuditLog(folder / "log", max_bytes=64 * 1024, keep=3, key=folder / "device")
    with SmartModel.load(bundle, audit=log, policy=Asking()) as model:
        model.run(FLOATS)
        switch_to_and_fro(model, 170)
    return folder


def test_a_signed_log_is_sealed_where_a_file_ends(signed: Path) -> None:
    assert [events(signed / name)[-2:] for name in ("log.1", "log")] == [["switch", "seal"], ["close", "seal"]]
    found = verify_audit(signed / "log", trust=load_public_key(signed / "device.pub"))
    assert (found.problems, found.seals, found.unsealed, found.checked, found.ended) == ((), 2, 0, True, True)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_change_to_a_single_line_is_found(signed: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """Deleted, doubled, exchanged for another one, or changed in a byte: of any line, the last one too."""
    place = tmp_path_factory.getbasetemp() / "changed"
    place.mkdir(exist_ok=True)
    files = {name: (signed / name).read_bytes().splitlines(keepends=True) for name in ("log.1", "log")}
    name = data.draw(st.sampled_from(sorted(files)))
    lines = files[name]
    at = data.draw(st.one_of(st.integers(0, len(lines) - 1), st.sampled_from([0, len(lines) - 1])))
    kind = data.draw(st.sampled_from(["delete", "double", "swap", "change", "insert", "cut"]))
    before = list(lines)
    if kind == "delete":
        del lines[at]
    elif kind == "double":
        lines.insert(data.draw(st.integers(0, len(lines))), lines[at])
    elif kind == "swap":
        other = data.draw(st.integers(0, len(lines) - 1))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        line = bytearray(lines[at])
        byte = data.draw(st.integers(0, len(line) - 1))
        if kind == "change":
            line[byte] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            line.insert(byte, data.draw(st.integers(0, 255)))
        else:
            del line[byte]
        lines[at] = bytes(line)
    for one, content in files.items():
        (place / one).write_bytes(b"".join(content))
    found = verify_audit(place / "log")
    assert bool(found.problems) == (b"".join(lines) != b"".join(before)), (kind, at)


def test_a_line_that_is_forged_with_its_hash_is_found(signed: Path, tmp_path: Path) -> None:
    """Whoever makes one line anew, hash and all, breaks the link of the next; who makes all anew lacks the seal."""
    lines = (signed / "log").read_bytes().splitlines(keepends=True)
    trust = load_public_key(signed / "device.pub")
    (tmp_path / "log.1").write_bytes((signed / "log.1").read_bytes())
    file = tmp_path / "log"
    forged = json.loads(lines[3])
    del forged["hash"]
    forged["reason"] = "nothing happened"
    line, own = line_of(forged)
    file.write_bytes(b"".join([*lines[:3], line, *lines[4:]]))
    assert "does not follow on" in verify_audit(file).problems[0]
    rest = []
    for old in lines[4:]:
        record = json.loads(old)
        del record["hash"]
        following, own = line_of({**record, "prev": own})
        rest.append(following)
    file.write_bytes(b"".join([*lines[:3], line, *rest]))
    assert verify_audit(file).problems == ()
    assert "is no seal of the trusted key" in verify_audit(file, trust=trust).problems[0]
    head = json.loads(lines[-1])["hash"]
    assert "the hash that was to be there is not" in verify_audit(file, head=head).problems[0]


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("begin", {"log": "\u202e" + "0" * 31}),
        ("begin", {"log": "0" * 20_000}),
        ("begin", {"oldest": 10**299}),
        ("begin", {"oldest": -1}),
        ("close", {"seq": 10**299}),
        ("close", {"prev": "\xe9" * 64}),
        ("seal", {"prev": "\xe9" * 64}),
        ("seal", {"prev": "0"}),
        ("seal", {"signature": "\xe9"}),
    ],
)
def test_a_forger_s_lines_end_in_a_sentence(
    signed: Path, bundle: Path, tmp_path: Path, event: str, change: dict[str, object]
) -> None:
    """Their hashes are right, their values none of ours: found, also with a key, and not gone on with."""
    file, lines = tmp_path / "log", []
    for record in records(signed / "log"):
        del record["hash"]
        lines.append(line_of({**record, **change} if record["event"] == event else record)[0])
        if record["event"] == event:
            break
    file.write_bytes(b"".join(lines))
    result = CliRunner().invoke(main, ["audit", "verify", str(file), "--trust", str(signed / "device.pub")])
    assert (result.exit_code, "was changed or damaged" in result.stderr) == (1, True), result.output
    if "signature" not in change:
        with pytest.raises(AuditError, match="is no audit log, or was changed"):
            SmartModel.load(bundle, audit=AuditLog(file, key=signed / "device"))


def test_what_only_a_seal_or_a_head_shows(bundle: Path, signed: Path, tmp_path: Path) -> None:
    """Lines cut off at the end leave a whole log: it is said to be open, and a head that was kept is missed."""
    file = tmp_path / "log"
    with SmartModel.load(bundle, audit=file) as model:
        switch_to_and_fro(model, 4)
    head = verify_audit(file).head
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2]))
    found = verify_audit(file)
    assert (found.problems, found.ended) == ((), False)
    assert len(verify_audit(file, head=head).problems) == 1
    assert verify_audit(file, trust=load_public_key(signed / "device.pub")).problems == (
        "there is no seal of the trusted key",
    )


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["audit", "verify", *map(str, arguments)])


def test_the_command(signed: Path, tmp_path: Path) -> None:
    done = run(signed / "log", "--trust", signed / "device.pub")
    assert done.exit_code == 0, done.output
    head = verify_audit(signed / "log").head
    assert f"head {head}" in done.stdout
    assert "2 seals, checked; 0 lines come after the last one" in done.stdout
    shown = json.loads(run(signed / "log", "--head", head, "--json").stdout)
    assert (shown["whole"], shown["head"], shown["events"]["switch"]) == (True, head, 171 - 1)
    lines = (signed / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:5] + lines[6:]))
    done = run(tmp_path / "log", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["whole"] is False
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'log'} was changed or damaged: ")
    for arguments, said in (
        ([tmp_path / "nope"], "error: no audit log at"),
        ([tmp_path], "error: no audit log at"),
        ([signed / "log", "--trust", signed / "device"], "got a private one"),
        ([signed / "log", "--head", "abc"], "expected 64 lower-case hex digits"),
    ):
        done = run(*arguments)
        assert done.exit_code != 0
        assert said in done.stderr
    write_key_pair(tmp_path / "other")
    assert "is no seal of the trusted key" in run(signed / "log", "--trust", tmp_path / "other.pub").stderr


# Faults


def test_a_line_that_a_crash_cut_off_is_said_and_the_chain_goes_on(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    with SmartModel.load(bundle, audit=file) as model:
        switch_to_and_fro(model, 2)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert "is cut off" in verify_audit(file).problems[0]
    with SmartModel.load(bundle, audit=file) as model:
        switch_to_and_fro(model, 2)
    found = events(file)
    assert found == ["begin", "load", "switch", "switch", "torn", "load", "switch", "switch", "close"]
    assert records(file)[4]["bytes"] == len(whole.splitlines(keepends=True)[-1]) - 20
    assert verify_audit(file).problems == ()


def test_what_is_no_audit_log_is_refused_and_stays(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with SmartModel.load(bundle, audit=log) as model:
        with pytest.raises(AuditError, match="is being written by another model"):
            SmartModel.load(bundle, audit=log)
        model.run(FLOATS)
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not yours\n")
    (tmp_path / "changed").write_bytes(log.read_bytes() + b"{}\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "new.1").write_text("not yours\n")
    for name, said in (
        ("link", "is no plain file"),
        ("dangling", "is no plain file"),
        ("text", "is no audit log, or was changed"),
        ("changed", "is no audit log, or was changed"),
        ("folder", "is no plain file"),
        ("pipe", "is no plain file"),
        ("new", "is no older part of an audit log and would be replaced"),
    ):
        with pytest.raises(AuditError, match=said):
            SmartModel.load(bundle, audit=tmp_path / name)
    assert (tmp_path / "text").read_text() == (tmp_path / "new.1").read_text() == "not yours\n"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(OSError, match="No such file"):
        SmartModel.load(bundle, audit=tmp_path / "no/folder")
    (tmp_path / "empty").touch()
    SmartModel.load(bundle, audit=tmp_path / "empty").close()
    assert events(tmp_path / "empty") == ["begin", "load", "close"]


def test_one_log_is_for_one_model(bundle: Path, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    with SmartModel.load(bundle, audit=log) as model:
        with pytest.raises(AuditError, match="belongs to another model"):
            SmartModel.load(bundle, audit=log)
        switch_to_and_fro(model, 1)
    SmartModel.load(bundle, audit=log).close()
    assert events(tmp_path / "log") == ["begin", "load", "switch", "close", "load", "close"]


def test_no_older_part_is_read_that_is_no_plain_file(signed: Path, tmp_path: Path) -> None:
    for make in (os.mkfifo, lambda place: place.symlink_to("/dev/zero"), Path.mkdir):
        (tmp_path / "log").write_bytes((signed / "log").read_bytes())
        older = tmp_path / "log.1"
        make(older)
        assert f"{older} is no plain file" in verify_audit(tmp_path / "log").problems
        older.rmdir() if older.is_dir() else older.unlink()


def test_no_log_lies_in_a_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    other = write_bundle(tmp_path / "other")
    for folder in (bundle, bundle / "clean", tmp_path / "link", other, other / "clean"):
        with pytest.raises(AuditError, match="lies in the bundle"):
            SmartModel.load(bundle, audit=folder / "new.jsonl")
    SmartModel.load(bundle).close()
    SmartModel.load(other).close()


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_file_put_in_the_way_of_a_rotation_stays(bundle: Path, tmp_path: Path, disturbed: bool) -> None:
    """Lines are lost, and counted, until it is moved away."""
    file, other = tmp_path / "log", tmp_path / "log.1"
    log = AuditLog(file, max_bytes=64 * 1024, keep=1)
    with SmartModel.load(bundle, audit=log) as model:
        other.write_text("not yours\n")
        if disturbed:
            with file.open("ab") as opened:
                opened.write(b"{}\n")
        switch_to_and_fro(model, 400)
        assert log._work is not None
        while log._work.queue.qsize():
            pass
        assert model.stats.audit_failures > 10
        other.rename(tmp_path / "moved")
        switch_to_and_fro(model, 2)
    assert (tmp_path / "moved").read_text() == "not yours\n"
    assert "lost" in events(file)
    assert len(verify_audit(file).problems) == (1 if disturbed else 0)


@pytest.mark.parametrize("file", [5, b"log", "", ".", "n\0ul", "\ud800"])
def test_what_names_no_log(bundle: Path, file: Any) -> None:
    with pytest.raises(AuditError, match="expected the name of a file"):
        SmartModel.load(bundle, audit=file)


@pytest.mark.parametrize("key", [5, b"k", object(), Ed25519PrivateKey.generate().public_key()])
def test_what_is_no_key(tmp_path: Path, key: Any) -> None:
    with pytest.raises(SignatureError, match="expected an Ed25519 private key"):
        AuditLog(tmp_path / "log", key=key)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_bytes": 1000}, "expected max_bytes from 65536"),
        ({"max_bytes": True}, "expected max_bytes"),
        ({"keep": -1}, "expected keep from 0 to 100"),
        ({"keep": 1.5}, "expected keep from 0 to 100"),
    ],
)
def test_a_log_that_makes_no_sense(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(AuditError, match=said):
        AuditLog(tmp_path / "log", **arguments)
    with pytest.raises(SignatureError, match="no key at"):
        AuditLog(tmp_path / "log", key=tmp_path / "key")


def wait_for(condition: Any) -> None:
    """Wait until the log's thread has done something."""
    over = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        over.wait(0.001)
    raise AssertionError("it never happened")


def test_a_removed_file_is_made_again_and_counted(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = AuditLog(file)
    with SmartModel.load(bundle, audit=log) as model:
        switch_to_and_fro(model, 2)
        wait_for(lambda: events(file)[-1:] == ["switch"] and len(events(file)) == 4)
        file.unlink()
        model.switch("robust", "after that")
        wait_for(file.exists)
        assert model.run(FLOATS).path == "robust"
        wait_for(lambda: log.failures == 1)
    assert model.stats.audit_failures == 1
    assert events(file) == ["begin", "switch", "close"]
    assert records(file)[0]["because"] == "removed"
    assert verify_audit(file).first == 4


def test_a_file_that_others_write_to_moves_aside(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = AuditLog(file)
    with SmartModel.load(bundle, audit=log) as model:
        with file.open("ab") as theirs:
            theirs.write(b"something of theirs\n")
        switch_to_and_fro(model, 2)
    assert (events(file), log.failures) == (["begin", "switch", "switch", "close"], 1)
    assert verify_audit(file).problems == (f"line 3 of {file}.1 was changed, or is none of an audit log",)


def test_a_link_that_takes_the_file_s_place_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    file, prey = tmp_path / "log", tmp_path / "prey"
    prey.write_text("precious")
    log = AuditLog(file)
    with SmartModel.load(bundle, audit=log) as model:
        file.unlink()
        file.symlink_to(prey)
        switch_to_and_fro(model, 3)
        assert model.run(FLOATS).path == "robust"
    assert prey.read_text() == "precious"
    assert model.stats.audit_failures >= 4  # three switches, a close, and the file that went


_FULL = """
import sys
from pathlib import Path
import numpy as np
from smart_runtime import AuditLog, SmartModel
bundle, disk = map(Path, sys.argv[1:])
log = AuditLog(disk / "log")
with SmartModel.load(bundle, audit=log) as model:
    for number in range(4):
        model.switch("clean" if number % 2 else "robust", "before")
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
    for number in range(300):
        model.switch("clean" if number % 2 else "robust", "full")
        assert model.run(np.zeros((1, *model.manifest.input.shape), np.float32)).path == model.path
    while not log.failures:
        pass
    while log._work.queue.qsize():
        pass
    filler.unlink()
    model.switch("robust", "there is room again")
print(model.stats.audit_failures)
from smart_runtime.audit.verification import verify_audit
found = verify_audit(disk / "log")
assert not found.problems, found
print(found.events["lost"], found.ended)
"""


def test_a_full_disk_stops_no_serving(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are lost, and the first that is written again says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'exec {sys.executable} -c "$CODE" "$@"'
    monkeypatch.setenv("CODE", _FULL)
    done = run_on_small_disk(script, str(bundle), str(disk), disk=disk, kilobytes=64)
    assert done.returncode == 0, done.stderr
    lost, rest = done.stdout.split("\n", 1)
    assert int(lost) > 0
    assert rest.split()[1] == "True"
    assert "the audit log cannot be written (No space left on device)" in done.stderr


def test_a_worker_that_dies_stops_no_serving(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with SmartModel.load(bundle, audit=tmp_path / "log") as model:
        monkeypatch.setattr(writer.Writer, "append", broken)
        monkeypatch.setattr(writer.Writer, "seal", broken)
        switch_to_and_fro(model, 3)
        assert model.run(FLOATS).path == "robust"
    assert model.stats.audit_failures == 5  # three switches, the close and the seal


_FORK = """
import os, sys
import numpy as np
from smart_runtime import ClosedError, SmartModel
model = SmartModel.load(sys.argv[1], threads=1, audit=sys.argv[2])
model.switch("robust", "in the parent")
child = os.fork()
if child == 0:
    try:
        model.switch("clean", "in the child")
    except ClosedError:
        model.close()
        del model
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
model.switch("clean", "in the parent again")
"""


def test_a_forked_child_writes_nothing_and_the_parent_goes_on(bundle: Path, tmp_path: Path) -> None:
    """The parent ends without a close, and what it queued last is written all the same."""
    file = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", _FORK, str(bundle), str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert events(file) == ["begin", "load", "switch", "switch"]
    assert verify_audit(file).problems == ()
    SmartModel.load(bundle, audit=file).close()  # nobody holds its lock


_KILLED = """
import os, sys
from smart_runtime import SmartModel
model = SmartModel.load(sys.argv[1], threads=1, audit=sys.argv[2])
print("ready", flush=True)
for number in range(10**9):
    model.switch("clean" if number % 2 else "robust", str(number))
"""


def test_after_kill_9_the_log_goes_on(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    command = [sys.executable, "-c", _KILLED, str(bundle), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_for(lambda: file.stat().st_size > 10_000)
        process.send_signal(signal.SIGKILL)
    SmartModel.load(bundle, audit=file).close()
    assert verify_audit(file).problems == ()


def test_a_model_that_is_dropped_leaves_no_thread(bundle: Path, tmp_path: Path) -> None:
    import gc  # noqa: PLC0415  # only here

    model = SmartModel.load(bundle, audit=tmp_path / "log")
    model.switch("robust")
    del model
    gc.collect()
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == "smart-edge audit"])
    assert events(tmp_path / "log") == ["begin", "load", "switch"]


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, inner)),
    )
)
def test_a_line_holds_whatever_a_policy_says(details: Any) -> None:
    record = {"seq": 0, "prev": "0" * 64, "event": "switch", "details": plain(details), "reason": plain("\x7f" * 9000)}
    line, own = line_of(record)
    assert len(line) < MAX_LINE
    read = parse_line(line[:-1])
    assert read is not None
    assert (read.hash, read.record["details"]) == (own, json.loads(json.dumps(record["details"])))


def test_a_structure_that_holds_itself_is_cut() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert len(json.dumps(plain(ring))) < 1000
    assert plain(["x" * 500] * 32) == {"too large": True}
    assert plain(ctypes.c_int(3)) == "c_int(3)"
