"""Write the published test vectors of the assignment rule (docs/assignment.md) to tests/vectors/assignment.json.

Usage: PYTHONPATH=services python tools/make_vectors.py [FILE]

Nothing of the compiled router is used: hashes come from the xxhash package, tables from ``tiltyard.slots``. The keys
are made from fixed seeds, so the file comes out the same each time; a test holds it against this script and against
the router.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import xxhash
from tiltyard.slots import SLOTS, SlotTable, first_table, move, moved_slots

TARGET = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "assignment.json"
ABOUT = (
    "Test vectors of Tiltyard's assignment rule; docs/assignment.md says how to read them. Byte strings are hex, u is "
    "a 64-bit number in hex, runs are [first slot after the run, arm]."
)


def noise(seed: str, size: int) -> bytes:
    """Bytes that depend on the seed alone, on every machine and version of Python."""
    return hashlib.shake_128(seed.encode()).digest(size)


def slot_of(u: int) -> int:
    return (u * SLOTS) >> 64


def vector(salt: bytes, key: bytes, owners: bytes) -> dict[str, Any]:
    u = xxhash.xxh3_64_intdigest(salt + b"\x00" + key)
    bucket = xxhash.xxh3_64_intdigest(salt + b"\x01" + key) >> 56
    slot = slot_of(u)
    return {"key": key.hex(), "u": f"{u:016x}", "slot": slot, "arm": owners[slot], "bucket": bucket}


def keys(seed: str, count: int) -> list[bytes]:
    """What keys look like: names, numbers, UUIDs, text that is no ASCII, and bytes of any kind and length."""
    out: list[bytes] = []
    for i in range(count):
        raw = noise(f"{seed}/{i}", 16)
        text = raw.hex()
        made = [
            f"user-{i}".encode(),
            str(int.from_bytes(raw[:8], "little", signed=True)).encode(),
            f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode(),
            f"жюри-{i}-審判".encode(),
            noise(f"{seed}/{i}/bytes", 1 + i % 90),
        ]
        out.append(made[i % len(made)])
    return out


def lengths(seed: str, salt: bytes) -> list[bytes]:
    """Keys at and around every length at which XXH3 changes its way of reading, and the longest key."""
    edges = [1, 3, 4, 8, 9, 16, 17, 32, 64, 96, 128, 129, 160, 240, 241, 256, 512, 1024]
    sizes = sorted({edge + step - len(salt) - 1 for edge in edges for step in (-1, 0, 1)} | {1, 1023, 1024})
    return [noise(f"{seed}/{size}", size) for size in sizes if 1 <= size <= 1024]


def split(name: str, salt: bytes, weights: list[int], chosen: list[bytes]) -> dict[str, Any]:
    table = first_table(weights)
    owners = table.owners()
    return {
        "name": name,
        "salt": salt.hex(),
        "weights": weights,
        "runs": table.runs(),
        "keys": [vector(salt, key, owners) for key in chosen],
    }


def changes(name: str, salt: bytes, steps: list[list[int]], chosen: list[bytes]) -> dict[str, Any]:
    """One split over several changes of weights: the table after each, and whose each key is then."""
    hashes = [xxhash.xxh3_64_intdigest(salt + b"\x00" + key) for key in chosen]
    table: SlotTable | None = None
    out = []
    for weights in steps:
        before = table
        table = first_table(weights) if before is None else move(before, weights)
        owners = table.owners()
        out.append(
            {
                "weights": weights,
                "runs": table.runs(),
                "moved_slots": 0 if before is None else moved_slots(before, table),
                "arms": [owners[slot_of(u)] for u in hashes],
            }
        )
    return {"name": name, "salt": salt.hex(), "keys": [key.hex() for key in chosen], "steps": out}


def build() -> dict[str, Any]:
    """All vectors."""
    salt = bytes(range(16))
    other = noise("salt", 16)
    return {
        "about": ABOUT,
        "splits": [
            split("two to one", salt, [2, 1], keys("two to one", 300)),
            split("90 to 10", other, [90, 10], keys("90 to 10", 250)),
            split("three arms", b"aloha", [5, 3, 2], keys("three arms", 250)),
            split("three equal arms, no salt", b"", [1, 1, 1], keys("equal", 60) + lengths("equal", b"")),
            split("lengths", salt, [1, 1], lengths("lengths", salt)),
            split("16 arms, one with weight 0", noise("long", 200), [3, 0, *range(1, 15)], keys("16 arms", 100)),
        ],
        "changes": [
            changes("two arms, there and back", salt, [[9, 1], [1, 1], [2, 1], [9, 1]], keys("two", 60)),
            changes(
                "three arms",
                other,
                [[8, 1, 1], [6, 2, 2], [6, 1, 3], [1, 1, 1], [0, 1, 1], [8, 1, 1]],
                keys("three", 60),
            ),
            changes(
                "six arms",
                b"aloha",
                [[5, 1, 1, 1, 1, 1], [0, 9, 2, 0, 4, 1], [50, 9, 9, 9, 9, 14], [7, 1, 1, 1, 0, 0]],
                keys("six", 40),
            ),
        ],
    }


def text() -> str:
    """The file: JSON with one vector, or one table, a line."""

    def line(value: object) -> str:
        return json.dumps(value, separators=(",", ":"))

    def block(part: dict[str, Any], many: str) -> str:
        head = "".join(f" {line(name)}:{line(value)},\n" for name, value in part.items() if name != many)
        return "{\n" + head + f' "{many}":[\n' + ",\n".join(map(line, part[many])) + "\n]}"

    vectors = build()
    splits = ",\n".join(block(part, "keys") for part in vectors["splits"])
    moves = ",\n".join(block(part, "steps") for part in vectors["changes"])
    return f'{{"about":{line(vectors["about"])},\n"splits":[\n{splits}\n],\n"changes":[\n{moves}\n]}}\n'


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(text())
