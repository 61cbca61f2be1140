"""TFRecord, the format of TensorBoard's event files: length, payload, and the CRC-32C of each.

TensorBoard's own writer computes the checksum byte by byte in Python, at 3 MB/s, which takes minutes when the curves of
a long run are written anew. Here it is computed for all bytes at once: CRCs are linear over GF(2), so that of two
neighboring pieces is ``shift(left, length of right) ^ right``.
"""

import functools
import struct

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
MASK_DELTA = 0xA282EAD8

Words = NDArray[np.uint32]


def record(payload: bytes) -> bytes:
    """Return one record of an event file."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload))


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data`` in the masked form of TFRecord."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``."""
    if len(data) < 64:  # not worth the calls of NumPy
        return _byte_by_byte(data)
    size = 1 << (len(data) - 1).bit_length()
    padded = np.zeros(size, np.uint8)  # zeros in front change nothing while the register is 0
    padded[size - len(data) :] = np.frombuffer(data, np.uint8)
    padded[size - len(data) :][:4] ^= 0xFF  # the register begins with ones
    crcs = _of_pairs()[padded.view("<u2")]
    for level in range(1, size.bit_length() - 1):
        crcs = _shift(crcs[0::2], level) ^ crcs[1::2]
    return int(crcs[0]) ^ 0xFFFFFFFF


def _byte_by_byte(data: bytes) -> int:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> list[int]:
    return _of_bytes().tolist()


@functools.cache
def _of_bytes() -> Words:
    """The CRC of each byte, from a register of 0."""
    crcs: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crcs = np.where(crcs & 1, (crcs >> 1) ^ np.uint32(POLYNOMIAL), crcs >> 1).astype(np.uint32)
    return crcs


@functools.cache
def _of_pairs() -> Words:
    """The CRC of each pair of bytes, the first of which is the lower one of the index."""
    pair = np.arange(1 << 16, dtype=np.uint32)
    first = _of_bytes()[pair & 0xFF]
    crcs: Words = _of_bytes()[(first ^ pair >> 8) & 0xFF] ^ first >> 8
    return crcs


@functools.cache
def _shift_tables(level: int) -> tuple[Words, Words]:
    """What ``2 ** level`` zero bytes make of a register, by the value of its lower half and of its upper half."""
    low = np.arange(1 << 16, dtype=np.uint32)
    if level == 1:
        return _of_pairs()[low], low
    return _shift(_shift(low, level - 1), level - 1), _shift(_shift(low * np.uint32(1 << 16), level - 1), level - 1)


def _shift(crcs: Words, level: int) -> Words:
    low, high = _shift_tables(level)
    return low[crcs & 0xFFFF] ^ high[crcs >> 16]
