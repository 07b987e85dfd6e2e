"""Findings and structures of a scan -> DICOM SR (Comprehensive 3D SR, TID 1500 Measurement Report)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ..volume_dicom_header_ctfm import quiet_pydicom
from .codes import (
    CAVEAT,
    CONFIDENCE,
    DISTANCE,
    GATE,
    GATE_ANSWERS,
    HIGH,
    LOW,
    NOT_CALIBRATED,
    PROBABILITY,
    SCAN,
    SCORE,
    TITLE,
    VERDICT,
    VERDICTS,
    coding_scheme,
    finding_code,
    structure_code,
)
from .results import Results
from .segmentation_object import blank
from .source import MANUFACTURER, UTF_8, Maker, SourceSeries, finish_object

SERIES_NUMBER = 9102
PRECISION = 4  # digits after the point of a probability


def make_report(
    source: SourceSeries,
    results: Results,
    maker: Maker,
    keep_identifiers: bool,
    segmentation: Dataset | None = None,
) -> sr.Comprehensive3DSR:
    """The report as one document: the gate's answer first, a group for each finding, and a group for each structure where
    `segmentation` is the DICOM SEG that holds them.

    Raises:
        VolumeError: the slices have no frame of reference in common.
    """
    _ = source.frame_of_reference
    with quiet_pydicom:
        evidence = list(blank(source.headers))
        groups = [scan_group(source, results, maker)]
        groups += [finding_group(finding, source, maker) for finding in results.findings]
        if segmentation is not None:
            groups += structure_groups(results.structures, segmentation, source, maker)
        report = sr.MeasurementReport(
            observation_context=observer(maker),
            procedure_reported=Code("77477000", "SCT", "Computed tomography"),
            imaging_measurements=groups,
            title=TITLE,
            referenced_images=evidence if len(evidence) > 1 else None,
        )
        report[0].ContentSequence.append(text(CAVEAT, " ".join(results.caveats)))
        made = sr.Comprehensive3DSR(
            evidence=[*evidence, *([] if segmentation is None else [without_identity(segmentation)])],
            content=report[0],
            series_instance_uid=source.derive_uid("SR series", *maker.facts(), keep_identifiers),
            series_number=SERIES_NUMBER,
            sop_instance_uid=source.derive_uid("SR", *maker.facts(), keep_identifiers, segmentation is not None),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.version,
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description="Findings, research only",
            specific_character_set=UTF_8,
        )
        finish_object(made, source, keep_identifiers)
        made.CodingSchemeIdentificationSequence = [coding_scheme()]
    return made


def observer(maker: Maker) -> sr.ObservationContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=maker.uid,
        name="CTFM, for research use only",
        manufacturer_name=MANUFACTURER,
        model_name=maker.name,
        serial_number=maker.digest,
    )
    context = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    return sr.ObservationContext(observer_device_context=context)


def scan_group(source: SourceSeries, results: Results, maker: Maker) -> sr.MeasurementsAndQualitativeEvaluations:
    far = results.distance
    return group(
        "scan",
        source,
        maker,
        finding_type=SCAN,
        measurements=[number(DISTANCE, far)] if far is not None else [],
        evaluations=[sr.QualitativeEvaluation(GATE, GATE_ANSWERS[results.gate])],
    )


def finding_group(
    finding: Mapping[str, Any], source: SourceSeries, maker: Maker
) -> sr.MeasurementsAndQualitativeEvaluations:
    code, side = finding_code(finding["label"])
    sites = None
    if side is not None:
        sites = [sr.FindingSite(anatomic_location=Code("51185008", "SCT", "Chest"), laterality=side)]
    place = None
    if "place_mm" in finding:
        x, y, z = finding["place_mm"]
        place = sr.CoordinatesForMeasurement3D("POINT", np.array([[-x, -y, z]]), source.frame_of_reference)  # LPS
    if "probability" in finding:
        low, high = finding["interval"]
        measurements = [number(PROBABILITY, finding["probability"], place), number(LOW, low), number(HIGH, high)]
    else:
        measurements = [number(SCORE, finding["score"], place)]
    answer = VERDICTS[finding["verdict"]] if "verdict" in finding else NOT_CALIBRATED
    return group(
        finding["label"],
        source,
        maker,
        finding_type=code,
        finding_sites=sites,
        measurements=measurements,
        evaluations=[sr.QualitativeEvaluation(VERDICT, answer)],
    )


def structure_groups(
    structures: Sequence[Mapping[str, Any]], segmentation: Dataset, source: SourceSeries, maker: Maker
) -> list[sr.VolumetricROIMeasurementsAndQualitativeEvaluations]:
    """Volume, mean and confidence of each structure, whose place is its segment."""
    segments = {item.SegmentLabel: int(item.SegmentNumber) for item in segmentation.SegmentSequence}
    groups = []
    for row in structures:
        name = row["structure"][:64]
        if name not in segments:
            continue  # nothing of it lies on a slice of the source
        code, side = structure_code(row["structure"])
        sites = None if side is None else [sr.FindingSite(anatomic_location=code, laterality=side)]
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=tracking(name, source, maker),
                referenced_segment=sr.ReferencedSegment(
                    sop_class_uid=segmentation.SOPClassUID,
                    sop_instance_uid=segmentation.SOPInstanceUID,
                    segment_number=segments[name],
                    source_series=sr.SourceSeriesForSegmentation(source.headers[0].SeriesInstanceUID),
                ),
                finding_type=code,
                finding_sites=sites,
                finding_category=codes.SCT.AnatomicalStructure,
                algorithm_id=algorithm(maker),
                measurements=[
                    sr.Measurement(Code("118565006", "SCT", "Volume"), row["volume_ml"], Code("ml", "UCUM", "ml")),
                    sr.Measurement(
                        Code("112031", "DCM", "Attenuation Coefficient"),
                        row["mean_hu"],
                        codes.UCUM.HounsfieldUnit,
                        derivation=codes.SCT.Mean,
                    ),
                    number(CONFIDENCE, row["confidence"]),
                ],
            )
        )
    return groups


def group(
    name: str,
    source: SourceSeries,
    maker: Maker,
    *,
    finding_type: Code,
    measurements: list[sr.Measurement],
    evaluations: list[sr.QualitativeEvaluation],
    finding_sites: list[sr.FindingSite] | None = None,
) -> sr.MeasurementsAndQualitativeEvaluations:
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking(name, source, maker),
        finding_type=finding_type,
        finding_sites=finding_sites,
        algorithm_id=algorithm(maker),
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )


def tracking(name: str, source: SourceSeries, maker: Maker) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=source.derive_uid("tracking", name, *maker.facts()), identifier=name[:64])


def algorithm(maker: Maker) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=f"CTFM {maker.name}"[:64],
        version=f"{maker.version} {maker.digest}"[:64],
        family=codes.DCM.ArtificialIntelligence,
    )


def number(name: Code, value: float, place: sr.CoordinatesForMeasurement3D | None = None) -> sr.Measurement:
    return sr.Measurement(
        name,
        round(float(value), PRECISION),
        codes.UCUM.NoUnits,
        referenced_coordinates=None if place is None else [place],
    )


def text(name: Code, value: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=name, value=value, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def without_identity(made: Dataset) -> Dataset:
    """What refers to an object needs no more of it; highdicom takes patient and study from the first of the evidence."""
    kept = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(kept, keyword, made[keyword].value)
    return kept
