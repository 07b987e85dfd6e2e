"""Findings and structures of a scan -> a DiagnosticReport of HL7 FHIR R4 as plain JSON values."""

import re
from collections.abc import Mapping
from typing import Any

from pydicom.sr.coding import Code

from .codes import (
    CONFIDENCE,
    DISTANCE,
    GATE,
    GATE_ANSWERS,
    HIGH,
    LOW,
    NOT_CALIBRATED,
    PRIVATE,
    PROBABILITY,
    SCAN,
    SCORE,
    TITLE,
    VERDICTS,
    finding_code,
    structure_code,
)
from .results import Results
from .source import MANUFACTURER, Maker, SourceSeries

SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "RADLEX": "http://radlex.org",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE: "urn:oid:2.25.171166190283837066471829364817092366433",  # the scheme of codes.py, of a UUID
}
VOLUME = Code("118565006", "SCT", "Volume")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")


def make_fhir(source: SourceSeries, results: Results, maker: Maker, keep_identifiers: bool) -> dict[str, Any]:
    """The report with an Observation for each finding and each structure, in the same order as the DICOM SR. Its status is
    "preliminary": nobody has verified it."""
    subject = describe_subject(source) if keep_identifiers else None
    study = {"type": "ImagingStudy", "identifier": uid_identifier(source.study_uid)}
    observations = [scan_observation(results), *map(finding_observation, results.findings)]
    observations += map(structure_observation, results.structures)
    contained: list[dict[str, Any]] = [device(maker)]
    for number, facts in enumerate(observations, 1):
        observation = {"resourceType": "Observation", "id": f"observation-{number}", "status": "preliminary"}
        observation |= facts | {"device": {"reference": "#device"}}
        if subject is not None:
            observation["subject"] = subject
        contained.append(observation)
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "contained": contained,
        "identifier": [uid_identifier(source.derive_uid("FHIR", *maker.facts(), keep_identifiers))],
        "status": "preliminary",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "CT"}]}],
        "code": concept(TITLE),
        "imagingStudy": [study],
        "result": [{"reference": f"#{item['id']}"} for item in contained if item["resourceType"] == "Observation"],
        "conclusion": " ".join(results.caveats),
    }
    if subject is not None:
        report["subject"] = subject
        if moment := effective(source):
            report["effectiveDateTime"] = moment
        if accession := source.identity.get("AccessionNumber"):
            kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
            report["basedOn"] = [{"type": "ServiceRequest", "identifier": {"type": kind, "value": str(accession)}}]
    return report


def scan_observation(results: Results) -> dict[str, Any]:
    facts: dict[str, Any] = {"code": concept(GATE), "valueCodeableConcept": concept(GATE_ANSWERS[results.gate])}
    if results.distance is not None:
        facts["component"] = [{"code": concept(DISTANCE), "valueQuantity": quantity(results.distance)}]
    return facts | {"bodySite": concept(SCAN)}


def finding_observation(finding: Mapping[str, Any]) -> dict[str, Any]:
    code, side = finding_code(finding["label"])
    answer = VERDICTS[finding["verdict"]] if "verdict" in finding else NOT_CALIBRATED
    values = [(SCORE, finding["score"])]
    if "probability" in finding:
        low, high = finding["interval"]
        values = [(PROBABILITY, finding["probability"]), (LOW, low), (HIGH, high)]
    facts = {
        "code": concept(code) | {"text": finding["label"]},
        "valueCodeableConcept": concept(answer),
        "component": [{"code": concept(name), "valueQuantity": quantity(value)} for name, value in values],
    }
    return facts if side is None else facts | {"bodySite": concept(side)}


def structure_observation(row: Mapping[str, Any]) -> dict[str, Any]:
    code, side = structure_code(row["structure"])
    site = concept(code) if side is None else {"coding": [coding(code), coding(side)]}
    return {
        "code": concept(VOLUME),
        "bodySite": site | {"text": row["structure"]},
        "valueQuantity": quantity(row["volume_ml"], "mL"),
        "component": [
            {"code": concept(ATTENUATION), "valueQuantity": quantity(row["mean_hu"], "[hnsf'U]")},
            {"code": concept(CONFIDENCE), "valueQuantity": quantity(row["confidence"])},
        ],
    }


def device(maker: Maker) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "device",
        "identifier": [uid_identifier(maker.uid)],
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": f"CTFM {maker.name}, for research use only", "type": "model-name"}],
        "version": [{"value": f"{maker.version} {maker.digest}"}],
    }


def describe_subject(source: SourceSeries) -> dict[str, Any]:
    identity = source.identity
    subject: dict[str, Any] = {"type": "Patient"}
    if patient := identity.get("PatientID"):
        subject["identifier"] = {"value": str(patient)}
    if name := identity.get("PatientName"):
        subject["display"] = str(name)
    return subject


def effective(source: SourceSeries) -> str | None:
    """The study's day; its time names no time zone, which a FHIR time needs."""
    day = str(source.identity.get("StudyDate", ""))
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if re.fullmatch(r"\d{8}", day) else None


def uid_identifier(uid: str) -> dict[str, str]:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}


def coding(code: Code) -> dict[str, str]:
    return {"system": SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}


def concept(code: Code) -> dict[str, Any]:
    return {"coding": [coding(code)]}


def quantity(value: float, unit: str = "1") -> dict[str, Any]:
    return {"value": round(float(value), 4), "unit": unit, "system": SYSTEMS["UCUM"], "code": unit}
