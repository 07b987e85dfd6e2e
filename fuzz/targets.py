"""Format -> seeds, dictionary, and a check that only the reader's own error may leave.

A target turns bytes into a file and reads it. What still reads must hold what it says: a finite geometry, finite values, and as
many voxels as the list of series says. The seeds are made here, from random numbers; no scan and no article is among them.
"""

import gzip
import io
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from ..phantom.dicom_series import write_dicom_series
from ..reporting.documents import DocumentError, read_document
from ..volume_ctfm import Volume, VolumeError, list_series, read_volume

SHAPE = (4, 12, 10)
AFFINE = np.array([[0, 0, -1.25, 30], [0, -1.0, 0, 40], [3.0, 0, 0, -50], [0, 0, 0, 1]])
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One format.

    Args:
        seeds: sound inputs, made when called.
        check: reads these bytes in an empty folder; anything that it raises is a finding.
        words: what the format is made of, for the dictionary.
    """

    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes, Path], None]
    words: tuple[bytes, ...]


# --- checks ----------------------------------------------------------------------------------------------------------------


def check_scan(path: Path) -> None:
    """Reads a scan; what it gives must agree with itself and with the list of series."""
    try:
        listed = [found for found in list_series(path) if not found.left_out_because]
    except VolumeError as error:
        str(error)
        listed = []
    try:
        volume = read_volume(path)
    except VolumeError as error:
        str(error)
        return
    assert np.isfinite(volume.affine).all()
    assert min(volume.spacing) > 0
    assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
    assert np.isfinite(volume.hu).all()
    assert volume.hu.ndim == 3
    assert all(isinstance(warning, str) for warning in volume.warnings)
    if volume.source_axes is not None:  # in the order on disk
        shape = sorted(volume.hu.shape)
        assert any(sorted(found.shape) == shape for found in listed), (shape, listed)


def as_file(name: str) -> Callable[[bytes, Path], None]:
    def check(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        check_scan(folder / name)

    return check


def check_slice(content: bytes, folder: Path) -> None:
    """One slice of a series, the others sound."""
    for index, slice_bytes in enumerate(_slices()):
        (folder / f"{index}.dcm").write_bytes(content if index == 1 else slice_bytes)
    check_scan(folder)


def check_document(ending: str) -> Callable[[bytes, Path], None]:
    def check(content: bytes, folder: Path) -> None:
        path = folder / f"report{ending}"
        path.write_bytes(content)
        try:
            document = read_document(path)
        except DocumentError as error:
            str(error)
            return
        assert document.sentences
        assert all(sentence.text for sentence in document.sentences)

    return check


def check_docx_part(content: bytes, folder: Path) -> None:
    """The text of a docx, inside a sound package."""
    check_document(".docx")(_docx(content), folder)


# --- seeds -----------------------------------------------------------------------------------------------------------------

_slice_cache: list[bytes] = []


def _slices() -> list[bytes]:
    if not _slice_cache:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_dicom_series(HU, AFFINE, folder, series_uid="1.2.3")
            _slice_cache.extend(path.read_bytes() for path in paths)
    return _slice_cache


def _seed_slices() -> list[bytes]:
    seeds = [_slices()[1]]
    for syntax in ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"):
        data_set = dcmread(io.BytesIO(_slices()[1]))
        if syntax.endswith(".5"):
            data_set.compress(UID(syntax), generate_instance_uid=False)
        data_set.file_meta.TransferSyntaxUID = UID(syntax)
        seeds.append(_saved(data_set))
    return seeds + _gdcm_slices()


def _gdcm_slices() -> list[bytes]:
    """JPEG, JPEG-LS and JPEG 2000, where GDCM is installed."""
    try:
        import gdcm
    except ImportError:
        return []
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "slice.dcm"))
        for name in ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"):
            Path(path).write_bytes(_slices()[1])
            reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
            reader.SetFileName(path)
            reader.Read()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
            change.SetInput(reader.GetImage())
            change.Change()
            writer.SetFileName(path)
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.Write()
            seeds.append(Path(path).read_bytes())
    return seeds


def _saved(data_set: Dataset) -> bytes:
    syntax = data_set.file_meta.TransferSyntaxUID
    fresh, out = Dataset(data_set), io.BytesIO()
    fresh.file_meta = data_set.file_meta
    fresh.save_as(out, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=True)
    return out.getvalue()


def _seed_multi_frames() -> list[bytes]:
    slices = [dcmread(io.BytesIO(content)) for content in _slices()]
    data_set = dcmread(io.BytesIO(_slices()[0]))
    data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    plane.ImageOrientationPatient = slices[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    frames = []
    for one in slices:
        frame, place, scale, content = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "1", "-1024", "HU"
        content.FrameAcquisitionNumber = content.TemporalPositionIndex = 1
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    data_set.SharedFunctionalGroupsSequence = Sequence([shared])
    data_set.PerFrameFunctionalGroupsSequence = Sequence(frames)
    data_set.NumberOfFrames = len(slices)
    data_set.PixelData = b"".join(one.PixelData for one in slices)
    plain = _saved(data_set)
    data_set.compress(UID("1.2.840.10008.1.2.5"), generate_instance_uid=False)
    return [plain, _saved(data_set)]


def _seed_niftis() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        Volume(hu=HU, affine=AFFINE).to_nifti(Path(folder, "scan.nii"))
        first = Path(folder, "scan.nii").read_bytes()
    both_forms = bytearray(first)
    struct.pack_into("<2h", both_forms, 252, 1, 1)
    struct.pack_into("<6f", both_forms, 256, 0, 0, 1, 30, 40, -50)
    second = bytearray(544)
    struct.pack_into("<i8s2h8q", second, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, *SHAPE[::-1], 1, 1, 1, 1)
    struct.pack_into("<8d", second, 104, 1, 1.25, 1, 3, 0, 0, 0, 0)
    struct.pack_into("<q2d", second, 168, 544, 1, 0)
    struct.pack_into("<2i6d12d", second, 344, 0, 1, *(0,) * 6, *AFFINE[:3, [2, 1, 0, 3]].ravel())
    return [first, bytes(both_forms), bytes(second) + HU.tobytes(), gzip.compress(first, mtime=0)]


def _seed_metaimages() -> list[bytes]:
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 30 -40 -50\nElementSpacing = 1.25 1 3\nDimSize = 10 12 4\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return [header.encode() + HU.tobytes()]


def _seed_nrrds() -> list[bytes]:
    header = (
        "NRRD0005\n# comment\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 10 12 4\nencoding: {}\n"
        "endian: little\nspace directions: (1.25,0,0) (0,1,0) (0,0,3)\nspace origin: (30,-40,-50)\nkinds: domain domain domain"
        "\n\n"
    )
    return [
        header.format("raw").encode() + HU.tobytes(),
        header.format("gzip").encode() + gzip.compress(HU.tobytes(), mtime=0),
    ]


def _seed_zips() -> list[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as zipped:
            for index, content in enumerate(_slices()):
                zipped.writestr(zipfile.ZipInfo(f"series/{index}.dcm"), content, method)
        seeds.append(out.getvalue())
    return seeds


PROSE = (
    "The participants of this trial were randomised to walk or to rest in equal numbers, and the outcome was measured by a "
    "blinded assessor after twelve weeks. "
)
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def _seed_articles() -> list[bytes]:
    return [
        (
            f"<article><front><article-meta><title-group><article-title>Walking for knees: a randomised trial</article-title>"
            f"</title-group><abstract><sec><title>Methods</title><p>{PROSE}</p></sec></abstract></article-meta></front><body>"
            f"<sec><title>Methods</title><p>{PROSE * 3}<xref>1</xref></p><fig><caption><p>{PROSE}</p></caption></fig>"
            f"<table-wrap><caption><p>{PROSE}</p></caption><table><tr><td>1</td></tr></table></table-wrap></sec></body><back>"
            f"<ref-list><ref>a</ref></ref-list></back></article>"
        ).encode()
    ]


def _seed_texts_of_docx() -> list[bytes]:
    paragraph = "<w:p><w:pPr><w:pStyle w:val='{}'/></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>"
    body = paragraph.format("Title", "Walking for knees: a randomised trial")
    body += paragraph.format("Heading1", "Methods") + paragraph.format("Normal", PROSE * 3)
    body += "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>1</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    return [f"<w:document {W}><w:body>{body}<w:sectPr/></w:body></w:document>".encode()]


def _docx(document: bytes) -> bytes:
    vendor = "application/vnd.openxmlformats"
    types = f"{vendor}-officedocument.wordprocessingml.document.main+xml"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="{vendor}-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="{types}"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{office}" '
        'Target="word/document.xml"/></Relationships>',
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name, content in parts.items():
            zipped.writestr(zipfile.ZipInfo(name), content)
        zipped.writestr(zipfile.ZipInfo("word/document.xml"), document)
    return out.getvalue()


def _seed_pdfs() -> list[bytes]:
    rows = "".join(f"({PROSE[start : start + 70]}) Tj T* " for start in range(0, len(PROSE), 70))
    stream = f"BT /F1 10 Tf 12 TL 50 800 Td (Methods) Tj T* {rows * 2}ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return [out + end.encode()]


DICOM_WORDS = (
    *(
        b"\x08\x00\x08\x00CS",
        b"\x20\x00\x32\x00DS",
        b"\x20\x00\x37\x00DS",
        b"\x28\x00\x30\x00DS",
        b"\x28\x00\x08\x00IS",
    ),
    *(
        b"\x28\x00\x52\x10DS",
        b"\x28\x00\x53\x10DS",
        b"\x28\x00\x10\x00US\x02\x00",
        b"\x28\x00\x03\x01US\x02\x00\x01\x00",
    ),
    *(
        b"\xe0\x7f\x10\x00OW\x00\x00",
        b"\xfe\xff\x00\xe0",
        b"\xfe\xff\x0d\xe0",
        b"\xfe\xff\xdd\xe0",
        b"\xff\xff\xff\xff",
    ),
    *(b"\x00\x52\x29\x92SQ", b"\x00\x52\x30\x92SQ", b"1.2.840.10008.1.2.4.90\0", b"1.2.840.10008.1.2.1.99", b"DICM"),
    *(
        b"LOCALIZER",
        b"MAT_SPECIFIC",
        b"HU_MOD",
        b"-1e308",
        b"nan",
        b"1\\0\\0\\0\\1\\0",
        b"\xff\x4f\xff\x51",
        b"\xff\xd8\xff\xc3",
    ),
)
TARGETS = {
    "dicom_series": Target(seeds=_seed_slices, check=check_slice, words=DICOM_WORDS),
    "dicom_multi_frame": Target(seeds=_seed_multi_frames, check=as_file("frames.dcm"), words=DICOM_WORDS),
    "nifti": Target(
        seeds=_seed_niftis,
        check=as_file("scan.nii"),
        words=(
            b"n+1\0",
            b"n+2\0\r\n\x1a\n",
            b"ni1\0",
            b"\x1f\x8b\x08",
            b"\x00\x00\xc0\x7f",
            b"\xff\x7f",
            b"\x5c\x01\x00\x00",
        ),
    ),
    "metaimage": Target(
        seeds=_seed_metaimages,
        check=as_file("scan.mha"),
        words=(
            *(
                b"NDims = 3\n",
                b"CompressedData = True\n",
                b"HeaderSize = -1\n",
                b"ElementDataFile = LIST\n",
                b"MET_DOUBLE",
            ),
            *(b"ElementNumberOfChannels = 3\n", b"Orientation = ", b"inf", b"../", b"99999999", b"MET_ULONG_LONG"),
        ),
    ),
    "nrrd": Target(
        seeds=_seed_nrrds,
        check=as_file("scan.nrrd"),
        words=(
            *(
                b"encoding: bzip2\n",
                b"byte skip: -1\n",
                b"line skip: 1\n",
                b"data file: ../x\n",
                b"endian: big\n",
                b"none",
            ),
            *(b"space: scanner-xyz\n", b'space units: "m" "m" "m"\n', b"type: block\n", b"double", b"nan", b"1e308"),
        ),
    ),
    "zip": Target(
        seeds=_seed_zips,
        check=as_file("scan.zip"),
        words=(
            b"PK\x01\x02",
            b"PK\x03\x04",
            b"PK\x05\x06",
            b"PK\x06\x06",
            b"../",
            b"/etc/",
            b"C:",
            b"\xff\xff\xff\xff",
        ),
    ),
    "jats": Target(
        seeds=_seed_articles,
        check=check_document(".xml"),
        words=(
            *(
                b"<sec>",
                b"</sec>",
                b"<title>",
                b"<p>",
                b"<ref-list>",
                b"&amp;",
                b"&#0;",
                b"<![CDATA[",
                b"]]>",
                b"<!--",
                b"<?x?>",
            ),
            *(b'<!DOCTYPE a [<!ENTITY b "c">]>', b"&b;", b"<abstract>", b"<table-wrap>", b'xmlns:x="y"', b"<article>"),
        ),
    ),
    "docx": Target(
        seeds=_seed_texts_of_docx,
        check=check_docx_part,
        words=(
            *(
                b"<w:p>",
                b"</w:p>",
                b"<w:tbl>",
                b"<w:ins>",
                b"<w:sdt>",
                b"<w:sdtContent>",
                b"w:val=",
                b"Heading1",
                b"&b;",
            ),
            *(b'<!DOCTYPE a [<!ENTITY b "c">]>', b"<w:pStyle w:val='x'/>", b"<w:body/>", b"<w:drawing/>"),
        ),
    ),
    "docx_package": Target(
        seeds=lambda: [_docx(content) for content in _seed_texts_of_docx()],
        check=check_document(".docx"),
        words=(
            b"PK\x01\x02",
            b"PK\x03\x04",
            b"PK\x05\x06",
            b"document.xml",
            b"TargetMode='External'",
            b"\xff\xff\xff\xff",
        ),
    ),
    "pdf": Target(
        seeds=_seed_pdfs,
        check=check_document(".pdf"),
        words=(
            *(
                b"/Kids",
                b"/Count",
                b"/Contents",
                b"/Filter /FlateDecode",
                b"/ObjStm",
                b"/XRef",
                b"/Encrypt",
                b"/Length",
                b"obj",
            ),
            *(
                b"endobj",
                b"stream\n",
                b"endstream",
                b"xref",
                b"trailer",
                b"startxref",
                b"<<",
                b">>",
                b"1 0 R",
                b"2 0 R",
                b"3 0 R",
            ),
        ),
    ),
}
