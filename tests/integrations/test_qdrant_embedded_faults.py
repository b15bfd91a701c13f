"""The embedded store when something goes wrong around it: interrupts, forks, other programs, removed folders."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient, folder, store
from qdrant_qwen_retrieval.embedded.edge_process.nesting import MAX_LEVELS
from qdrant_qwen_retrieval.embedded.folder import folder_name
from qwen_retrieval.errors import StoreError, StoreLockedError
from tests.integrations.qdrant_parts import engine_of, is_running

PARAMS = models.VectorParams(size=2, distance=models.Distance.DOT)
KEYWORD = models.PayloadSchemaType.KEYWORD


def points(*ids: int, **payload: Any) -> list[models.PointStruct]:
    return [models.PointStruct(id=n, vector=[1.0, n], payload=payload) for n in ids]


def alias(collection: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=name))


def aliases(client: QdrantClient) -> dict[str, str]:
    return {found.alias_name: found.collection_name for found in client.get_aliases().aliases}


def kill(client: EmbeddedQdrantClient) -> None:
    """The end of its engine, which it has noticed."""
    os.kill(engine_of(client), signal.SIGKILL)
    with pytest.raises(StoreError, match="killed by signal 9"):
        client.count("c")


def run_script(code: str, *arguments: object, timeout: float = 120) -> str:
    """What a program of its own prints; it must end well, and write nothing on standard error."""
    command = [sys.executable, "-W", "error", "-c", IMPORTS + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


IMPORTS = """
import gc, os, sys, threading, time
import numpy as np
from qdrant_client import models
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient, engine, store
from qwen_retrieval.errors import StoreError

PARAMS = models.VectorParams(size=2, distance="Dot")
client = EmbeddedQdrantClient(sys.argv[1])
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EmbeddedQdrantClient]:
    """A store with the collection "c" and its points 1 and 2."""
    client = EmbeddedQdrantClient(tmp_path / "store")
    client.create_collection("c", PARAMS, metadata={"m": 1})
    client.upsert("c", points(1, 2))
    yield client
    client.close()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[EmbeddedQdrantClient], None]:
    """Ctrl-C between a request and its answer."""

    def receive(_pipe: object) -> None:
        raise KeyboardInterrupt

    def interrupt(client: EmbeddedQdrantClient) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("qdrant_qwen_retrieval.embedded.engine.receive", receive)
            with pytest.raises(KeyboardInterrupt):
                client.count("c")

    return interrupt


Interrupt = Callable[[EmbeddedQdrantClient], None]


# --------------------------------------------------------------------------- after Ctrl-C others may use the store


OTHER = """
client.create_collection("handbook", PARAMS)
client.upsert("handbook", [models.PointStruct(id=n, vector=[1.0, n]) for n in range(50)])
create = models.CreateAlias(collection_name="handbook", alias_name="hb")
client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
client.delete_collection("c")
client.close()
"""


def test_what_another_program_changed_after_an_interrupt_is_seen_by_the_next_call(
    client: EmbeddedQdrantClient, interrupt: Interrupt, tmp_path: Path
) -> None:
    interrupt(client)
    run_script(OTHER, tmp_path / "store")
    assert client.collection_exists("hb")
    assert not client.collection_exists("c")
    with pytest.raises(ValueError, match="Collection c not found"):
        client.count("c")
    with pytest.raises(ValueError, match="Collection handbook already exists"):
        client.create_collection("handbook", PARAMS)
    client.update_collection_aliases([])
    assert aliases(client) == {"hb": "handbook"}
    assert client.count("hb").count == 50
    client.close()
    again = EmbeddedQdrantClient(tmp_path / "store")
    assert (again.count("hb").count, aliases(again)) == (50, {"hb": "handbook"})
    again.close()


def test_after_an_interrupt_a_store_that_another_program_keeps_open_is_locked_until_it_closes(
    client: EmbeddedQdrantClient, interrupt: Interrupt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(client)
    monkeypatch.setattr("qdrant_qwen_retrieval.embedded.engine.LOCK_PATIENCE", 0.1)
    command = [sys.executable, "-c", IMPORTS + "print(flush=True); input()", str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for call in (client.get_collections, lambda: client.count("c"), lambda: client.create_collection("d", PARAMS)):
            with pytest.raises(StoreLockedError):
                call()
        other.communicate("\n")
    assert client.count("c").count == 2


def test_a_change_that_began_before_an_interrupt_is_not_recorded_after_it(
    client: EmbeddedQdrantClient, interrupt: Interrupt
) -> None:
    before = client._backend._opened().folder
    interrupt(client)
    for _ in range(2):  # without a process, and with the next one
        with pytest.raises(StoreError, match="try again"):
            before.write("c", {})
        with pytest.raises(StoreError, match="try again"):
            before.write_aliases({})
        client.count("c")
    assert client.get_collection("c").config.metadata == {"m": 1}


def test_a_collection_that_somebody_else_put_into_the_folder_is_not_dropped(
    client: EmbeddedQdrantClient, tmp_path: Path
) -> None:
    foreign = tmp_path / "store" / "collections" / folder_name("d") / folder.COLLECTION_FILE
    foreign.parent.mkdir()
    foreign.write_text("{}")
    with pytest.raises(StoreError, match="made by another program"):
        client.create_collection("d", PARAMS)
    assert foreign.read_text() == "{}"
    shutil.rmtree(foreign.parent)


# ------------------------------------------------------------------ who has no engine neither reads nor writes files


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_neither_reads_nor_writes_what_is_recorded(tmp_path: Path) -> None:
    code = """
client.create_collection("c", PARAMS, metadata={"k": "parent"})
create = models.CreateAlias(collection_name="c", alias_name="x")
child = os.fork()
if not child:
    for attempt in (
        lambda: client.collection_exists("c"),
        lambda: client.get_collections(),
        lambda: client.get_aliases(),
        lambda: client.update_collection("c", metadata={"k": "child"}),
        lambda: client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)]),
    ):
        try:
            attempt()
        except StoreError as error:
            print("fork" in str(error), flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
client.close()
"""
    assert run_script(code, tmp_path).split() == ["True"] * 5
    client = EmbeddedQdrantClient(tmp_path)
    assert (client.get_collection("c").config.metadata, aliases(client)) == ({"k": "parent"}, {})
    client.close()


@pytest.mark.parametrize("noticed", [True, False])
def test_a_client_of_a_dead_engine_does_not_change_what_another_has_written(
    client: EmbeddedQdrantClient, tmp_path: Path, noticed: bool
) -> None:
    if noticed:
        kill(client)
    else:
        os.kill(engine_of(client), signal.SIGKILL)
    run_script(
        'create = models.CreateAlias(collection_name="c", alias_name="x")\n'
        "client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])\n"
        'client.update_collection("c", metadata={"m": 2})\n'
        "client.close()",
        tmp_path / "store",
    )
    changes: list[Callable[[], Any]] = [
        lambda: client.update_collection_aliases([]),
        lambda: client.update_collection_aliases([alias("c", "y")]),
        lambda: client.update_collection("c", metadata={"m": 3}),
    ]
    for change in changes:
        with pytest.raises(StoreError, match="killed by signal 9"):
            change()
    again = EmbeddedQdrantClient(tmp_path / "store")
    assert (again.get_collection("c").config.metadata, aliases(again)) == ({"m": 2}, {"x": "c"})
    again.close()


# --------------------------------------------------------------------------------- a folder that is not there any more


def test_a_folder_that_was_removed_while_it_was_open_is_opened_as_a_new_store(
    client: EmbeddedQdrantClient, tmp_path: Path
) -> None:
    path, pid = tmp_path / "store", engine_of(client)
    shutil.rmtree(path)
    again = EmbeddedQdrantClient(path)
    assert not is_running(pid)
    assert again.get_collections().collections == []
    again.create_collection("d", PARAMS)
    again.upsert("d", points(1, 2, 3))
    for call in (
        lambda: client.count("c"),
        lambda: client.collection_exists("c"),
        lambda: client.delete_collection("c"),
    ):
        with pytest.raises(StoreError, match="removed or replaced"):
            call()
    client.close()
    assert again.count("d").count == 3
    again.close()
    again = EmbeddedQdrantClient(path)
    assert again.count("d").count == 3
    again.close()


@pytest.mark.usefixtures("client")
def test_a_folder_that_was_moved_away_keeps_what_was_written(tmp_path: Path) -> None:
    shutil.move(tmp_path / "store", tmp_path / "moved")
    new, moved = EmbeddedQdrantClient(tmp_path / "store"), EmbeddedQdrantClient(tmp_path / "moved")
    assert new.get_collections().collections == []
    assert moved.count("c").count == 2
    new.close()
    moved.close()


# --------------------------------------------------------------------------------------- clients that nobody closed


def test_a_client_that_the_collector_finds_within_a_call_stops_nobody(tmp_path: Path) -> None:
    code = """
client.create_collection("c", PARAMS)
class Cycle: pass
cycle = Cycle()
cycle.own, cycle.client = cycle, EmbeddedQdrantClient(sys.argv[1] + "/../other")
del cycle
inside, receive = threading.Event(), engine.receive
def slowly(pipe):
    reply = receive(pipe)
    if threading.current_thread().name == "caller":
        inside.set()
        time.sleep(0.3)
        gc.collect()  # it may run at any place
    return reply
engine.receive = slowly
def call():
    try:
        client.count("c")
    except StoreError:
        pass
gc.disable()
threads = [threading.Thread(target=call, name="caller", daemon=True)]
threads.append(threading.Thread(target=lambda: (inside.wait(), client.close()), daemon=True))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print([thread.is_alive() for thread in threads], flush=True)
os._exit(0)
"""
    (tmp_path / "store").mkdir()
    assert run_script(code, tmp_path / "store", timeout=60) == "[False, False]\n"


def test_a_client_in_a_cycle_ends_its_engine_when_the_collector_finds_it(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path)
    cycle: list[Any] = [client]
    cycle.append(cycle)
    pid = engine_of(client)
    del client, cycle
    gc.collect()
    assert not is_running(pid)


def test_a_client_that_is_dropped_while_others_open_its_folder_is_released_later(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path / "store")
    pid = engine_of(client)
    lock = store._lock_of((tmp_path / "store").resolve())
    with lock:  # as if another thread opened it
        del client
        assert is_running(pid)
    EmbeddedQdrantClient(tmp_path / "other").close()
    assert not is_running(pid)


def test_opening_one_folder_does_not_wait_for_the_end_of_another(tmp_path: Path) -> None:
    lock = store._lock_of((tmp_path / "store").resolve())
    with lock:  # as if it were being closed, which takes long
        opened: list[EmbeddedQdrantClient] = []
        thread = threading.Thread(target=lambda: opened.append(EmbeddedQdrantClient(tmp_path / "other")), daemon=True)
        thread.start()
        thread.join(30)
        assert len(opened) == 1
    opened[0].close()


# ----------------------------------------------------------------------------------- what could not be read again


def nested(levels: int) -> dict[str, Any]:
    return functools.reduce(lambda inner, _: {"x": inner}, range(levels - 1), {"x": 1})


def nested_lists(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def nested_filter(filters: int) -> models.Filter:
    leaf = models.Filter(must=[models.FieldCondition(key="x", match=models.MatchValue(value=1))])
    return functools.reduce(lambda inner, _: models.Filter(must=[inner]), range(filters - 1), leaf)


ALLOWED = MAX_LEVELS
WRITES: dict[str, Callable[[QdrantClient, int], Any]] = {
    "payload": lambda client, depth: client.upsert("c", points(3, **nested(depth))),
    "lists": lambda client, depth: client.upsert("c", points(3, x=nested_lists(depth))),
    "batch": lambda client, depth: client.upsert("c", [*points(*range(3, 300)), *points(300, **nested(depth))]),
    "set_payload": lambda client, depth: client.set_payload("c", nested(depth), points=[1]),
    "overwrite_payload": lambda client, depth: client.overwrite_payload("c", nested(depth), points=[1]),
    "key": lambda client, depth: client.set_payload("c", {"x": 1}, points=[1], key=".".join("x" * depth)),
    "key and payload": lambda client, depth: client.set_payload("c", nested(depth - 2), points=[1], key="a.b.c"),
    "delete_payload": lambda client, depth: client.delete_payload("c", [".".join("x" * depth)], points=[1]),
    "index": lambda client, depth: client.create_payload_index("c", ".".join("x" * depth), KEYWORD),
    "filter": lambda client, depth: client.delete("c", nested_filter(depth // 2)),
    "condition": lambda client, depth: client.upsert("c", points(3), update_filter=nested_filter(depth // 2)),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_nested_too_deep_is_refused_before_it_is_written(client: EmbeddedQdrantClient, write: str) -> None:
    deeper = () if write in ("filter", "condition") else (2000,)  # which the models of filters do not take
    for depth in (ALLOWED + 1, 200, *deeper):
        with pytest.raises(ValueError, match=f"at most {MAX_LEVELS}"):
            WRITES[write](client, depth)
    assert [point.payload for point in client.scroll("c")[0]] == [{}, {}]
    kill(client)  # what was written is read from the log
    again = EmbeddedQdrantClient(client.init_options["path"])
    assert again.count("c").count == 2
    again.close()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_what_is_nested_as_deep_as_allowed_can_be_read_again(
    client: EmbeddedQdrantClient, write: str, end: str
) -> None:
    WRITES[write](client, ALLOWED - 2)
    before = client.scroll("c", limit=1000)[0]
    if end == "killed":
        kill(client)
    else:
        client.close()
    again = EmbeddedQdrantClient(client.init_options["path"])
    assert again.scroll("c", limit=1000)[0] == before
    again.close()


# ---------------------------------------------------------------------------------------------- half a deletion


def test_a_deletion_that_is_interrupted_while_files_are_removed_is_done(
    client: EmbeddedQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.delete_collection("c")
    assert not client.collection_exists("c")
    client.create_collection("c", PARAMS)
    assert client.count("c").count == 0
    client.close()
    EmbeddedQdrantClient(client.init_options["path"]).close()
    kept = [path.name for path in Path(client.init_options["path"], "collections").iterdir()]
    assert kept == [folder_name("c")]


def test_a_collection_whose_files_are_gone_can_be_deleted_and_made_again(client: EmbeddedQdrantClient) -> None:
    opened = client._backend._opened()
    opened.drop("c")  # a deletion that was cut short before it was recorded
    for call in (lambda: client.count("c"), lambda: client.upsert("c", points(1))):
        with pytest.raises(ValueError, match=r"Collection not found.* any more"):
            call()
    assert client.delete_collection("c") is True
    client.create_collection("c", PARAMS)
    assert client.count("c").count == 0


def test_writing_to_a_collection_that_is_being_deleted_says_that_it_is_not_there(client: EmbeddedQdrantClient) -> None:
    errors: set[str] = set()
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            try:
                client.upsert("c", points(1))
            except Exception as error:
                errors.add(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        client.delete_collection("c")
        client.create_collection("c", PARAMS)
    done.set()
    for thread in threads:
        thread.join()
    assert all(error.startswith("ValueError: Collection ") and " not found" in error for error in errors), errors


# ------------------------------------------------------------------------------------------- whose fault an error is


def test_a_folder_in_which_no_file_can_be_made_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreError, match=r"cannot be a store.*\.lock") as raised:
        EmbeddedQdrantClient(tmp_path)
    assert type(raised.value) is StoreError
    assert capfd.readouterr().err == ""


def test_a_fault_of_the_disk_is_not_the_caller_s(client: EmbeddedQdrantClient, tmp_path: Path) -> None:
    (tmp_path / "store" / "collections" / folder_name("d")).touch()
    for _ in range(2):
        with pytest.raises(StoreError, match="the embedded engine failed"):
            client._backend._opened().engine.call(
                "create", shard=client._backend._opened().folder.shard("d"), config={"vectors": {}}
            )


def test_a_point_that_is_named_is_left_out_also_if_it_is_looked_up_in_the_searched_collection(
    client: EmbeddedQdrantClient,
) -> None:
    local = QdrantClient(":memory:")
    for each in (local, client):
        for name in ("a", "b"):
            each.create_collection(name, PARAMS)
            each.upsert(name, points(1, 2, 3, 4))
    for where in ("a", "b"):
        lookup = models.LookupLocation(collection=where)
        found = [
            [point.id for point in each.query_points("a", 2, lookup_from=lookup).points] for each in (local, client)
        ]
        assert found[0] == found[1]
        assert (2 in found[1]) is (where == "b")
    client.update_collection_aliases([alias("a", "x")])
    by_alias = client.query_points("x", 2, lookup_from=models.LookupLocation(collection="a")).points
    assert 2 not in [point.id for point in by_alias]
    local.close()


# -------------------------------------------------------------------------------------------------- the end of programs


def test_a_program_ends_although_a_daemon_thread_optimizes(tmp_path: Path) -> None:
    code = """
store.EXIT_PATIENCE = 0.2
client.create_collection(
    "c",
    models.VectorParams(size=64, distance="Cosine"),
    hnsw_config=models.HnswConfigDiff(m=64, ef_construct=4000),  # minutes
    optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1),
)
client.upload_collection("c", np.random.default_rng(0).normal(size=(6_000, 64)).astype(np.float32), ids=range(6_000))
threading.Thread(target=client.optimize, args=["c"], daemon=True).start()
time.sleep(0.3)
print(time.time())
"""
    began = float(run_script(code, tmp_path))
    assert time.time() - began < 10
    client = EmbeddedQdrantClient(tmp_path)  # waits for the lock
    assert client.count("c").count == 6_000
    client.close()


@pytest.mark.skipif(not hasattr(os, "O_ASYNC"), reason="the system sends no signal when a pipe closes")
def test_an_engine_whose_program_ended_just_before_a_long_operation_does_not_begin_it() -> None:
    code = """
import io, os
from qdrant_qwen_retrieval.embedded.edge_process.serve import _ends_with_parent
reading, writing = os.pipe()
requests = io.FileIO(reading)
with _ends_with_parent(requests):
    print("it is there")
os.close(writing)
try:
    with _ends_with_parent(requests):
        print("it is there")
except EOFError:
    print("it is gone")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["it is there", "it is gone"]


def test_the_parameters_of_indexes_are_recorded(client: EmbeddedQdrantClient, tmp_path: Path) -> None:
    client.create_payload_index(
        "c", "year", models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True)
    )
    client.create_payload_index("c", "name", KEYWORD)
    recorded = tmp_path / "store" / "collections" / folder_name("c") / folder.COLLECTION_FILE
    assert json.loads(recorded.read_text())["settings"]["payload_schema"].keys() == {"year"}
    client.delete_payload_index("c", "year")
    assert json.loads(recorded.read_text())["settings"]["payload_schema"] == {}
