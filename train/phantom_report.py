"""Findings of a phantom -> a radiology report."""

from dataclasses import dataclass

from .phantom_patient import Acquisition, Patient
from .phantom_scene import Finding


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as a radiologist would dictate it."""

    findings: str
    impression: str

    def __str__(self) -> str:
        return f"Findings: {self.findings}\n\nImpression: {self.impression}"


def write_report(patient: Patient, acquisition: Acquisition, findings: tuple[Finding, ...], wording: str) -> Report:
    return Report(findings="", impression="")
