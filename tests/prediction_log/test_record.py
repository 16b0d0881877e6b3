"""Identifiers of predictions: from several threads, after a fork, past a full counter; a line and its fields."""

import subprocess
import sys
import threading

import pytest
from recording import record

from housing_mlops.prediction_log.record import id_source, new_id, untab_features


def test_ids_differ_between_threads() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend([new_id() for _ in range(5000)]))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(made)) == 20_000


@pytest.mark.process
def test_ids_differ_after_a_fork() -> None:
    program = """
import os
from housing_mlops.prediction_log.record import id_source
next_id = id_source(lambda: 10**18)
next_id()
child = os.fork()
os.write(1, f"{next_id()}\\n".encode())
if child:
    os.waitpid(child, 0)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert len(set(out.stdout.split())) == 2


def test_ids_grow_past_a_full_counter() -> None:
    next_id = id_source(lambda: 10**18)
    made = [next_id() for _ in range(10_000)]
    assert made == sorted(made)


@pytest.mark.parametrize(
    ("tail", "house", "client", "limits"),
    [
        (b'{"RM": 6}\tshop\t', b'{"RM": 6}', b"shop", b""),
        (b'{\t"RM":\t6}\tshop\t{"capped":true}', b'{ "RM": 6}', b"shop", b'{"capped":true}'),
        (b'{"RM": 6}\t\t{"outside":["a b"]}', b'{"RM": 6}', b"", b'{"outside":["a b"]}'),
        (b'{"RM": 6}\t\t\t', b'{"RM": 6} ', b"", b""),
        # of the time before a record told the limits of a price
        (b'{"RM": 6}\tshop', b'{"RM": 6}', b"shop", b""),
        (b'{\t"RM":\t6}\tshop', b'{ "RM": 6}', b"shop", b""),
        (b'{"RM": 6}\t', b'{"RM": 6}', b"", b""),
        (b'{"RM":\t6\t}\t', b'{"RM": 6 }', b"", b""),
        (b'{"RM": 6}\t \t', b'{"RM": 6}  ', b"", b""),
        # of the time before it told who asked
        (b'{"RM": 6}', b'{"RM": 6}', b"", b""),
        (b'{"RM":\t6}', b'{"RM": 6}', b"", b""),
    ],
)
def test_a_house_is_told_from_who_asked_and_from_limits(
    tail: bytes, house: bytes, client: bytes, limits: bytes
) -> None:
    line = b"\t".join([*record().split(b"\t")[:10], tail])
    assert untab_features(line).split(b"\t")[10:] == [house, client, limits]
