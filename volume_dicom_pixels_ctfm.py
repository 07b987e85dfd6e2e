"""Where a DICOM file keeps its pixels, and in which form -> stored values, and with slope and intercept Hounsfield units.

Uncompressed pixels are read straight from their place in the file. RLE is decoded by pydicom; JPEG, JPEG-LS and JPEG 2000
by GDCM (BSD) through pydicom's plugins, high-throughput JPEG 2000 by pylibjpeg-openjpeg (MIT) where it is installed. Sizes
are compared with what the file holds before anything is decoded.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .volume_archive_ctfm import MAX_RATIO, RATIO_FREE_BYTES
from .volume_scan_ctfm import AIR_HU, DamagedFileError, UnsupportedFormatError

try:
    from pydicom.encaps import generate_frames
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID
except ImportError:  # read_dicom says so before it comes to pixels
    pass

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
RLE = "1.2.840.10008.1.2.5"
JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
JPEG_LS = {f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)}
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91)}
HIGH_THROUGHPUT_JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)}
LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81)}
NATIVE = {IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN}
SYNTAX_NAMES = {
    IMPLICIT: "Implicit VR Little Endian",
    EXPLICIT: "Explicit VR Little Endian",
    DEFLATED: "Deflated Explicit VR Little Endian",
    BIG_ENDIAN: "Explicit VR Big Endian",
    RLE: "RLE Lossless",
    **dict.fromkeys(JPEG, "JPEG"),
    **dict.fromkeys(JPEG_LS, "JPEG-LS"),
    **dict.fromkeys(JPEG_2000, "JPEG 2000"),
    **dict.fromkeys(HIGH_THROUGHPUT_JPEG_2000, "High-Throughput JPEG 2000"),
}
JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


SAMPLING = re.compile(rb"[\x11-\x14\x21-\x24\x31-\x34\x41-\x44]")
JPEG_PROCESSES = {0xC0, 0xC1, 0xC3}  # baseline, extended sequential and lossless, with Huffman codes
JPEG_LS_MARKER = 0xF7
JPEG_2000_MARKER = 0x51


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How one file stores its frames.

    Args:
        offset: where the pixel data element begins, in the file (deflated: in the inflated data set); -1: there is none.
        padding: stored values from .. to (inclusive) that are no measurement.
    """

    path: Path
    transfer_syntax: str
    offset: int
    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None

    @property
    def dtype(self) -> np.dtype:
        order = ">" if self.transfer_syntax == BIG_ENDIAN else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


def inflate(packed: bytes, file: str) -> bytes:
    """A deflated data set, bounded as a zip is."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(packed, max(RATIO_FREE_BYTES, MAX_RATIO * len(packed)))
    except zlib.error:
        raise DamagedFileError("the deflated data set is damaged", file=file) from None
    if not inflater.eof:
        raise DamagedFileError("the deflated data set ends early or is too large", file=file)
    return data


def read_stored(layout: PixelLayout) -> Iterator[np.ndarray]:
    """Yields every frame, `(rows, columns)` stored values, in file order."""
    file = layout.path.name
    if layout.offset < 0:
        raise DamagedFileError("no pixel data: the file ends early or is no image", file=file)
    if layout.bits_allocated not in (8, 16, 32) or not 1 <= layout.bits_stored <= layout.bits_allocated:
        raise UnsupportedFormatError(
            "unsupported bit depth", file=file, value=f"{layout.bits_stored} of {layout.bits_allocated} bits"
        )
    if not layout.bits_stored - 1 <= layout.high_bit < layout.bits_allocated:
        raise DamagedFileError("impossible high bit", file=file, value=layout.high_bit)
    if layout.transfer_syntax in NATIVE:
        yield from _read_native(layout)
    elif layout.transfer_syntax in SYNTAX_NAMES:
        yield from _read_compressed(layout)
    else:
        raise UnsupportedFormatError(
            "no decoder for this transfer syntax",
            file=file,
            value=UID(layout.transfer_syntax).name,
            cure="Decompress it first, for example with gdcmconv --raw of GDCM.",
        )


def _read_native(layout: PixelLayout) -> Iterator[np.ndarray]:
    with layout.path.open("rb") as file:
        if layout.transfer_syntax == DEFLATED:
            data = inflate(data_set_bytes(file.read(), layout.path.name), layout.path.name)
            head, size = data[layout.offset : layout.offset + 12], len(data)
        else:
            file.seek(layout.offset)
            head, size = file.read(12), layout.path.stat().st_size
            data = b""
        length, start = _element_length(head, layout)
        frame_bytes = layout.rows * layout.columns * layout.bits_allocated // 8
        expected = frame_bytes * layout.num_frames
        if length + start > size or length < expected:
            raise DamagedFileError(
                "the pixel data ends early, or the header announces more than there is",
                file=layout.path.name,
                value=f"{expected} bytes expected, {max(0, min(length, size - start))} there",
                cure="Copy or download the file again.",
            )
        # Values have an even length (PS3.5 7.1.1) and some writers pad further, so a short rest is no other picture.
        if length - expected > max(64, layout.columns) and not _is_zero(
            file, data, start + expected, length - expected
        ):
            raise DamagedFileError(
                "more pixel data than rows, columns and frames say",
                file=layout.path.name,
                value=f"{expected} bytes expected, {length} there",
            )
        for index in range(layout.num_frames):
            at = start + index * frame_bytes
            if data:
                frame = np.frombuffer(data, layout.dtype, layout.rows * layout.columns, at)
            else:
                file.seek(at)
                frame = np.fromfile(file, layout.dtype, layout.rows * layout.columns)
            yield unpack_bits(frame.reshape(layout.rows, layout.columns), layout)


def _is_zero(file: BinaryIO, data: bytes, start: int, length: int) -> bool:
    """Whether what follows the pixels is padding; it is what is in memory of a deflated file, else in the file."""
    if data:
        return not any(data[start : start + length])
    file.seek(start)
    while length > 0 and (chunk := file.read(min(length, 2**20))):
        if any(chunk):
            return False
        length -= len(chunk)
    return True


def data_set_bytes(content: bytes, file: str) -> bytes:
    """What follows the file meta information; its length stands in the first element, (0002,0000)."""
    if content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00" or len(content) < 144:
        raise DamagedFileError("a deflated file without the length of its file meta information", file=file)
    return content[144 + int.from_bytes(content[140:144], "little") :]


def _element_length(head: bytes, layout: PixelLayout) -> tuple[int, int]:
    """Length and first byte of the value of the pixel data element."""
    order = ">" if layout.transfer_syntax == BIG_ENDIAN else "<"
    if len(head) < 12 or struct.unpack(order + "HH", head[:4]) != (0x7FE0, 0x0010):
        raise DamagedFileError("no integer pixel data where it should begin", file=layout.path.name)
    if head[4:6] in (b"OW", b"OB", b"UN"):  # as an implicit length these would be odd
        return struct.unpack(order + "I", head[8:12])[0], layout.offset + 12
    return struct.unpack(order + "I", head[4:8])[0], layout.offset + 8


def unpack_bits(stored: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """Keeps the `bits_stored` bits below and with `high_bit`, sign-extended where signed; native byte order."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    above = layout.bits_allocated - 1 - layout.high_bit
    below = layout.bits_allocated - layout.bits_stored
    if below == 0:
        return stored
    return (stored << above) >> below


def _read_compressed(layout: PixelLayout) -> Iterator[np.ndarray]:
    name = layout.path.name
    with layout.path.open("rb") as file:
        file.seek(layout.offset)
        content = file.read()
    length, start = _element_length(content[:12], layout)
    if length != 0xFFFFFFFF:  # encapsulated pixels always have an undefined length (PS3.5 A.4)
        raise DamagedFileError("compressed pixel data of defined length", file=name)
    content = content[start - layout.offset :]
    fragments = _fragments(content, name)
    # The first item is the Basic Offset Table, and each frame has one fragment at least (PS3.5 A.4).
    if len(fragments) - 1 < layout.num_frames:
        raise DamagedFileError(
            "fewer compressed frames than announced", file=name, value=f"{len(fragments) - 1} of {layout.num_frames}"
        )
    decoder = get_decoder(UID(layout.transfer_syntax))
    if not decoder.is_available:
        needed = (
            "pylibjpeg pylibjpeg-openjpeg" if layout.transfer_syntax in HIGH_THROUGHPUT_JPEG_2000 else "python-gdcm"
        )
        raise UnsupportedFormatError(
            "the decoder for this transfer syntax is not installed",
            file=name,
            value=SYNTAX_NAMES[layout.transfer_syntax],
            cure=f"Install it with pip install {needed}.",
        )
    streams: list[Codestream | None] = [None] * layout.num_frames
    if layout.transfer_syntax != RLE:
        frames = generate_frames(content, number_of_frames=layout.num_frames)
        streams = [_checked_codestream(frame, layout, decoder.available_plugins) for frame in frames]
    options = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.num_frames,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": int(layout.signed),
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_keyword": "PixelData",
    }
    num_read = 0
    try:
        # Buffers, not arrays: iter_array of pydicom 3.0.2 corrects the sign inside a read-only buffer, which fails.
        for frame, _ in decoder.iter_buffer(content, **options):
            num_read += 1
            yield _sample_values(bytes(frame), layout, streams[num_read - 1])
    except (
        RuntimeError,
        ValueError,
        NotImplementedError,
        AttributeError,
        TypeError,
        struct.error,
        EOFError,
        IndexError,
    ):
        raise DamagedFileError(
            "the compressed pixel data cannot be decoded", file=name, value=SYNTAX_NAMES[layout.transfer_syntax]
        ) from None
    if num_read != layout.num_frames:
        raise DamagedFileError("frames are missing", file=name, value=f"{num_read} of {layout.num_frames}")


def _sample_values(decoded: bytes, layout: PixelLayout, stream: "Codestream | None") -> np.ndarray:
    """What a decoder returns, little endian in as many bytes as it needed -> stored values of the sign in the header.

    The code streams of JPEG 2000 and JPEG-LS say how many bits a sample has, whatever the header says. JPEG-LS has no sign,
    and a JPEG 2000 encoder may have been told the wrong one: then the bits are right and only their meaning is not
    (PS3.5 8.2.3 and 8.2.4).
    """
    num_bytes = len(decoded) // (layout.rows * layout.columns)
    values = np.frombuffer(decoded, f"<u{num_bytes}").reshape(layout.rows, layout.columns)
    if stream is None or stream.process not in (JPEG_LS_MARKER, JPEG_2000_MARKER):
        return unpack_bits(values.astype(f"u{layout.bits_allocated // 8}").view(layout.dtype), layout)
    unused = 8 * num_bytes - min(stream.precision, layout.bits_stored)
    if stream.is_signed == layout.signed:
        unused = 0  # the decoder has extended the sign already
    return (values << unused).view(f"{'i' if layout.signed else 'u'}{num_bytes}") >> unused


def _fragments(content: bytes, file: str) -> list[tuple[int, int]]:
    """(start, size) of the offset table and of every fragment; an item without its end is a truncated file."""
    # Item (FFFE,E000) and Sequence Delimitation Item (FFFE,E0DD): little endian in every encapsulated syntax (PS3.5 A.4).
    at, fragments = 0, []
    while content[at : at + 4] == b"\xfe\xff\x00\xe0":
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        fragments.append((at + 8, size))
        at += 8 + size
    if content[at : at + 4] != b"\xfe\xff\xdd\xe0":
        raise DamagedFileError(
            "the compressed pixel data ends early", file=file, cure="Copy or download the file again."
        )
    return fragments


@dataclass(frozen=True, kw_only=True)
class Codestream:
    """What a compressed picture says about itself.

    Args:
        process: the JPEG marker that opens its frame; it tells the coding process.
        is_signed: None where the format has no sign.
    """

    process: int
    rows: int
    columns: int
    precision: int
    components: int
    is_signed: bool | None


def _checked_codestream(stream: bytes, layout: PixelLayout, plugins: tuple[str, ...]) -> Codestream:
    """The picture must be what the header says and its JPEG segments sound: decoders trust the header with memory, and
    GDCM ends the whole process where they are not."""
    file = layout.path.name
    found = _read_codestream(stream)
    depths = {(bits + 7) // 8 for bits in (layout.bits_stored, layout.bits_allocated)}
    if (
        found is None
        or (found.rows, found.columns) != (layout.rows, layout.columns)
        or (found.precision + 7) // 8 not in depths
        or found.components != 1
    ):
        shape = found and (found.rows, found.columns, found.precision, found.components)
        raise DamagedFileError(
            "the compressed picture is not what the header says (rows, columns, bits, components)",
            file=file,
            value=f"{(layout.rows, layout.columns, layout.bits_stored, 1)} instead of {shape}",
        )
    if layout.transfer_syntax in JPEG:
        if found.process not in JPEG_PROCESSES:
            raise UnsupportedFormatError(
                "no decoder for this JPEG process (progressive, hierarchical or arithmetic)",
                file=file,
                value=f"marker FF{found.process:02X}",
                cure="Decompress it first, for example with dcmdjpeg of DCMTK.",
            )
        if found.process != 0xC3 and found.precision > 8 and "pylibjpeg" not in plugins:
            raise UnsupportedFormatError(
                f"no decoder for {found.precision}-bit lossy JPEG is installed",
                file=file,
                value=UID(JPEG_EXTENDED).name,
                cure="Decompress it with dcmdjpeg of DCMTK, or pip install pylibjpeg pylibjpeg-libjpeg (GPL).",
            )
        if not _is_sound_jpeg(stream):
            raise DamagedFileError("the compressed picture is damaged", file=file)
    return found


def _read_codestream(stream: bytes) -> Codestream | None:
    """From the JPEG 2000 SIZ or the JPEG SOF marker; None where there is none."""
    if stream.startswith(b"\0\0\0\x0cjP  "):  # a JP2 file where the standard wants the bare code stream
        stream = stream[max(0, stream.find(b"\xff\x4f\xff\x51")) :]
    if stream.startswith(b"\xff\x4f\xff\x51") and len(stream) >= 43:
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return Codestream(
            process=JPEG_2000_MARKER,
            rows=bottom - top,
            columns=right - left,
            precision=(stream[42] & 0x7F) + 1,  # Ssiz: a sign bit, then the depth less one (T.800 A.5.1)
            components=int.from_bytes(stream[40:42], "big"),
            is_signed=stream[42] >= 0x80,
        )
    for marker, segment, _ in _jpeg_segments(stream):
        if marker in JPEG_SIZES and len(segment) >= 6:
            rows, columns = struct.unpack(">HH", segment[1:5])
            return Codestream(
                process=marker,
                rows=rows,
                columns=columns,
                precision=segment[0],
                components=segment[5],
                is_signed=None,
            )
    return None


def _jpeg_segments(stream: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content, end) of each segment up to the first scan."""
    at = 2 if stream.startswith(b"\xff\xd8") else len(stream)
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, end = stream[at + 1], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        yield marker, stream[at + 4 : end], end
        if marker == 0xDA:
            return
        at = end


def _is_sound_jpeg(stream: bytes) -> bool:
    """One sequential Huffman scan of one component with complete tables, and nothing after it but the end marker."""
    tables: set[int] = set()
    frames = 0
    for marker, segment, end in _jpeg_segments(stream):
        if marker in JPEG_SIZES:
            frames += 1
            if marker not in JPEG_PROCESSES or len(segment) != 9 or not SAMPLING.fullmatch(segment[7:8]):
                return False
        elif marker == 0xC4:
            found = _huffman_tables(segment)
            if not found:
                return False
            tables |= found
        elif marker == 0xDB:
            # Whole tables: 64 entries of 8 bits behind a byte, up to four, or of 16 bits, up to two (T.81 B.2.4.1).
            if len(segment) not in (65, 130, 195, 260, 129, 258):
                return False
        elif marker == 0xDA:
            sound = len(segment) == 6 and segment[0] == 1 and segment[2] >> 4 in tables and frames == 1
            # In coded data FF is followed by a stuffed 00 or is a restart marker D0 to D7; anything else ends it (T.81 B.1.1).
            rest = re.search(rb"\xff+[^\x00\xff\xd0-\xd7]", stream[end:])
            return sound and rest is not None and rest.group().endswith(b"\xd9")
        elif not (0xE0 <= marker <= 0xEF or marker in (0xFE, 0xDD)):
            return False
    return False


def _huffman_tables(segment: bytes) -> set[int]:
    """Numbers (class x 16 + slot) of the tables in a DHT segment; empty where one is no prefix code."""
    tables: set[int] = set()
    while segment:
        counts = segment[1:17]
        free = 1
        for count in counts:
            free = 2 * free - count
            if free < 0:  # more codes of this length than the shorter ones leave
                return set()
        symbols = segment[17 : 17 + sum(counts)]
        if (
            len(counts) < 16 or len(symbols) < sum(counts) or segment[0] & 0xEC or sum(counts) > 256
        ):  # class 0 or 1, slot 0 to 3
            return set()
        # The symbols of a DC table are numbers of bits of a difference: 16 at most (T.81 H.1.2.2).
        if segment[0] < 16 and any(symbol > 16 for symbol in symbols):
            return set()
        tables.add(segment[0])
        segment = segment[17 + sum(counts) :]
    return tables


def to_hounsfield(stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None) -> np.ndarray:
    """Stored values -> Hounsfield units: whole numbers (int16 if they fit) where slope and intercept are, else float32."""
    if float(slope).is_integer() and float(intercept).is_integer() and abs(slope) < 2**10 and abs(intercept) < 2**20:
        low, high = (int(value) * int(slope) + int(intercept) for value in (stored.min(), stored.max()))
        if slope == 1 and low >= -32768 and high <= 32767 and stored.dtype.itemsize <= 2:
            hu = stored.astype(np.int16)  # wraps, and wraps back: the sum fits
            hu += np.int16((int(intercept) + 32768) % 65536 - 32768)
        else:
            hu = stored.astype(np.int64) * int(slope) + int(intercept)
    else:
        hu = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if padding is not None:
        low, high = padding
        outside = stored == low if low == high else (stored >= low) & (stored <= high)
        hu[outside] = AIR_HU
    return hu
