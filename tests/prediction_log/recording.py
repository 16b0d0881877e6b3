"""What tests of the prediction log share: records, a journal with both its ends, what is stored."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from housing_mlops.prediction_log.database import predictions
from housing_mlops.prediction_log.journal import Journal, JournalReader
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.prediction_log.segment import HEADER, frame
from housing_mlops.schema import load_dataset

HOUSE = json.dumps(load_dataset("boston").example)


def record(version: str = "1", **fields: object) -> bytes:
    """A new record, its fields as given; a value that no record may have is possible too."""
    values = Record(new_id(), time.time_ns() // 1000, "housing", version, 22.5, 18.0, 27.0, 0.2, "/predict", "", HOUSE)  # fmt: skip
    return encode_record(values._replace(**fields))


def id_of(line: bytes) -> str:
    return line.split(b"\t")[0].decode()


def append(log: PredictionLog, n: int) -> set[str]:
    """The ids of n new records, accepted by the journal."""
    records = [record() for _ in range(n)]
    for line in records:
        log.journal.append_many([line])
    return {id_of(line) for line in records}


def stored(engine: sa.Engine) -> list[str]:
    """The ids of all predictions."""
    with engine.begin() as connection:
        return list(connection.scalars(sa.select(predictions.c.id)))


def once(engine: sa.Engine, ids: set[str]) -> None:
    """Assert that exactly `ids` are stored."""
    found = stored(engine)
    assert len(found) == len(ids) and set(found) == ids


def opened(folder: Path, **bounds: float) -> tuple[Journal, JournalReader]:
    """Both ends of a new journal."""
    journal = Journal(folder, **bounds)
    return journal, JournalReader(journal)


def heir(folder: Path) -> JournalReader:
    """A new journal that has adopted what dead processes left."""
    reader = JournalReader(Journal(folder))
    reader.adopt()
    return reader


def drain(reader: JournalReader) -> tuple[list[bytes], list[bytes]]:
    """Everything that waits, good and damaged, noted as stored."""
    good: list[bytes] = []
    damaged: list[bytes] = []
    for writer in reader.writers:
        while batch := writer.next_batch():
            good += batch.records
            damaged += batch.damaged
            reader.commit(writer, batch)
    return good, damaged


def left_behind(folder: Path, records: list[bytes], tail: bytes = b"", number: int = 1) -> Path:
    """The one segment of a writer that is gone, with `tail` behind its records."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{new_id()}-{number:06}.journal"
    path.write_bytes(HEADER + b"".join(map(frame, records)) + tail)
    return path


def die(reader: JournalReader) -> None:
    """Let go of the locks as a process's death does, leaving everything else."""
    for writer in reader.writers:
        fcntl.flock(writer.lock, fcntl.LOCK_UN)


def failing(
    monkeypatch: pytest.MonkeyPatch,  # a context of it, which ends the fault
    name: str,  # a function of `os`
    code: int,  # of the error
    when: Callable[..., bool] = lambda *_: True,  # is given the arguments
) -> None:
    """Let `os.<name>` fail with `code` while `when` says so."""
    real = getattr(os, name)

    def fake(*args: object, **kwargs: object) -> object:
        if when(*args):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, fake)
