"""Findings and structures of a scan -> one page of PDF, and that page as a DICOM object (Encapsulated PDF)."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfgen.canvas import Canvas

from ..volume_dicom_header_ctfm import quiet_pydicom
from .codes import TITLE, coding_scheme
from .results import Results
from .source import MANUFACTURER, NOTICE, Maker, SourceSeries, finish_object, now

SERIES_NUMBER = 9103
MARGIN, LINE = 50, 13  # points
FONT, BOLD = "Helvetica", "Helvetica-Bold"
MAX_FINDINGS, MAX_STRUCTURES, MAX_CAVEAT_LINES = 16, 12, 12


def draw_page(results: Results, maker: Maker, picture: Image.Image | None, patient: str) -> bytes:
    """One page, A4; whatever does not fit is counted in words. `patient` stands at its head, empty where nobody is named.
    The same results give the same bytes."""
    held = io.BytesIO()
    page = Canvas(held, pagesize=A4, invariant=1, pageCompression=1)
    page.setTitle(TITLE.meaning)
    page.setAuthor(MANUFACTURER)
    width, height = A4
    lines = Lines(page, height - MARGIN, width - 2 * MARGIN)
    lines.write("CT findings, for research use only", BOLD, 16)
    lines.write(NOTICE, BOLD, 10)
    if patient:
        lines.write(patient)
    lines.write(f"CTFM {maker.version}, model {maker.name} {maker.digest}")
    if picture is not None:
        lines.draw(picture)
    lines.write("Findings", BOLD, 12)
    for finding in results.findings[:MAX_FINDINGS]:
        lines.write(describe_finding(finding))
    lines.count_rest(len(results.findings) - MAX_FINDINGS, "findings, likeliest first,")
    if not results.findings:
        lines.write("none is reported")
    if results.structures:
        lines.write("Structures", BOLD, 12)
    for row in results.structures[:MAX_STRUCTURES]:
        lines.write(describe_structure(row))
    lines.count_rest(len(results.structures) - MAX_STRUCTURES, "structures")
    lines.write("Limits", BOLD, 12)
    for caveat in lines.split(results.caveats)[:MAX_CAVEAT_LINES]:
        lines.write(caveat)
    page.showPage()
    page.save()
    return held.getvalue()


class Lines:
    """Lines of text from the top of a page down."""

    def __init__(self, page: Canvas, top: float, width: float) -> None:
        self.page, self.y, self.width = page, top, width

    def write(self, text: str, font: str = FONT, size: int = 9) -> None:
        self.y -= size + 4
        self.page.setFont(font, size)
        plain = text.encode("cp1252", "replace").decode("cp1252")  # what the fonts of every reader have
        while self.page.stringWidth(plain, font, size) > self.width:
            plain = plain[:-2].rstrip() + "…"
        self.page.drawString(MARGIN, self.y, plain)

    def draw(self, picture: Image.Image) -> None:
        scale = min(self.width / picture.width, 150 / picture.height)
        wide, high = picture.width * scale, picture.height * scale
        self.y -= high + 8
        self.page.drawImage(ImageReader(picture.convert("RGB")), MARGIN, self.y, wide, high)

    def count_rest(self, count: int, what: str) -> None:
        if count > 0:
            self.write(f"and {count} more {what} in the DICOM SR")

    def split(self, texts: tuple[str, ...]) -> list[str]:
        return [line for text in texts for line in simpleSplit(text, FONT, 9, self.width)]


def describe_finding(finding: Mapping[str, Any]) -> str:
    if "probability" not in finding:
        return f"{finding['label']}: score {finding['score']:.3g}, not calibrated"
    low, high = finding["interval"]
    return (
        f"{finding['label']}: {finding['verdict']}, probability {finding['probability']:.2f} ({low:.2f} to {high:.2f})"
    )


def describe_structure(row: Mapping[str, Any]) -> str:
    part = ", goes on outside the scan" if row["reaches_border"] else ""
    return f"{row['structure']}: {row['volume_ml']:g} ml, mean {row['mean_hu']:g} HU{part}"


def make_pdf(
    source: SourceSeries, results: Results, maker: Maker, picture: Image.Image | None, keep_identifiers: bool
) -> FileDataset:
    """The page in a DICOM object that refers to every slice."""
    with quiet_pydicom:
        patient = describe_patient(source) if keep_identifiers else ""
        page = draw_page(results, maker, picture, patient)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
        meta.MediaStorageSOPInstanceUID = UID(source.derive_uid("PDF", *maker.facts(), keep_identifiers))
        made = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        made.StudyInstanceUID = source.study_uid
        made.SeriesInstanceUID = source.derive_uid("PDF series", *maker.facts(), keep_identifiers)
        made.SeriesNumber, made.InstanceNumber, made.Modality = SERIES_NUMBER, 1, "DOC"
        made.SeriesDescription = "Findings as a page, research only"
        made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MANUFACTURER, maker.name, maker.version
        made.DeviceSerialNumber = maker.digest or "none"
        made.ConversionType = "SYN"  # made by a program
        made.ContentDate, made.ContentTime = now()
        made.InstanceCreationDate, made.InstanceCreationTime = made.ContentDate, made.ContentTime
        made.AcquisitionDateTime = None
        made.BurnedInAnnotation = "YES" if patient else "NO"
        made.SourceInstanceSequence = [refer(header) for header in source.headers]
        made.DocumentTitle = TITLE.meaning
        made.ConceptNameCodeSequence = [code_item()]
        made.MIMETypeOfEncapsulatedDocument = "application/pdf"
        made.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
        made.EncapsulatedDocumentLength = len(page)
        finish_object(made, source, keep_identifiers)
        made.CodingSchemeIdentificationSequence = [coding_scheme()]
    return made


def describe_patient(source: SourceSeries) -> str:
    facts = [("Patient", "PatientName"), ("ID", "PatientID"), ("Accession number", "AccessionNumber")]
    return ", ".join(f"{word} {source.identity[key].value}" for word, key in facts if source.identity.get(key))


def refer(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def code_item() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = TITLE.value, TITLE.scheme_designator, TITLE.meaning
    return item
