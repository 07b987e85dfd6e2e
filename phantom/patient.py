"""Seed and ranges -> who lies in the scanner and how the scan is taken: every sampled number of a phantom.

`TRAIN_RANGES` is what training draws from. `SHIFTED_RANGES` is another population and another hospital (heavier and
smaller bodies, thicker slices, more noise, other kernels, other sizes of findings), so that an evaluation can leave
the training distribution.
"""

from dataclasses import dataclass, replace

import numpy as np

from .geometry import named_rng

Range = tuple[float, float]

PHASES = ("none", "arterial", "portal")

# Sampled probability of each finding. A finding can still lie outside the scan, so present labels are a little rarer.
PREVALENCE: dict[str, float] = {
    "Medical material": 0.16,
    "Arterial wall calcification": 0.26,
    "Cardiomegaly": 0.16,
    "Pericardial effusion": 0.12,
    "Coronary artery wall calcification": 0.22,
    "Hiatal hernia": 0.14,
    "Lymphadenopathy": 0.20,
    "Emphysema": 0.17,
    "Atelectasis": 0.16,
    "Lung nodule": 0.28,
    "Lung opacity": 0.18,
    "Pulmonary fibrotic sequela": 0.17,
    "Pleural effusion": 0.18,
    "Mosaic attenuation pattern": 0.12,
    "Peribronchial thickening": 0.13,
    "Consolidation": 0.15,
    "Bronchiectasis": 0.13,
    "Interlobular septal thickening": 0.12,
    "Kidney tumour": 0.14,
    "Kidney stone": 0.15,
    "Liver lesion": 0.20,
    "Ascites": 0.12,
}
FINDING_NAMES: tuple[str, ...] = tuple(PREVALENCE)
CT_RATE_NAMES: tuple[str, ...] = FINDING_NAMES[:18]


@dataclass(frozen=True, kw_only=True)
class PhantomRanges:
    """The range (low, high) of every sampled number, uniform unless said; lengths in millimetres, intensities in HU."""

    # Patient
    height_scale: Range = (0.90, 1.08)
    width_scale: Range = (0.88, 1.12)
    depth_scale: Range = (0.86, 1.14)
    fat_mm: Range = (6.0, 34.0)
    bend_mm: Range = (1.5, 4.0)
    roll_deg: Range = (-4.0, 4.0)
    position_mm: Range = (-14.0, 14.0)
    age: Range = (25.0, 90.0)
    organ_scale: Range = (0.88, 1.12)
    lung_hu: Range = (-885.0, -820.0)
    liver_hu: Range = (48.0, 62.0)
    marrow_hu: Range = (150.0, 270.0)
    tissue_spread_hu: float = 0.0  # standard deviation of each tissue around what the contrast phase makes of it
    phase_probabilities: tuple[float, float, float] = (0.4, 0.25, 0.35)  # in the order of PHASES
    # Acquisition
    field_of_view_mm: Range = (330.0, 440.0)
    coverage_mm: Range = (340.0, 430.0)
    centre_z_mm: Range = (-25.0, 25.0)
    slice_thickness_mm: Range = (1.0, 3.0)
    noise_hu: Range = (5.0, 24.0)
    sharp_probability: float = 0.35
    soft_sigma_mm: Range = (0.5, 0.9)
    sharpening: Range = (0.4, 1.0)
    # Findings
    prevalence_factor: float = 1.0
    nodule_mm: Range = (4.0, 30.0)  # log-uniform, as the next four
    liver_lesion_mm: Range = (8.0, 80.0)
    kidney_tumour_mm: Range = (14.0, 80.0)
    kidney_stone_mm: Range = (3.0, 16.0)
    node_mm: Range = (11.0, 32.0)
    patch_mm: Range = (25.0, 90.0)
    effusion_mm: Range = (10.0, 80.0)
    pericardial_mm: Range = (5.0, 22.0)
    heart_scale: Range = (1.22, 1.45)
    hernia_mm: Range = (30.0, 75.0)
    severity: Range = (0.25, 1.0)  # of diffuse findings, 0 to 1


TRAIN_RANGES = PhantomRanges()
SHIFTED_RANGES = replace(
    TRAIN_RANGES,
    width_scale=(1.0, 1.22),
    depth_scale=(0.98, 1.25),
    fat_mm=(20.0, 52.0),
    bend_mm=(3.0, 5.0),
    roll_deg=(-9.0, 9.0),
    lung_hu=(-850.0, -780.0),
    phase_probabilities=(0.6, 0.1, 0.3),
    field_of_view_mm=(400.0, 500.0),
    coverage_mm=(300.0, 380.0),
    slice_thickness_mm=(3.0, 6.0),
    noise_hu=(25.0, 60.0),
    sharp_probability=0.7,
    soft_sigma_mm=(0.9, 1.6),
    sharpening=(0.9, 1.8),
    nodule_mm=(3.5, 18.0),
    liver_lesion_mm=(6.0, 40.0),
    kidney_tumour_mm=(10.0, 50.0),
    severity=(0.15, 0.7),
)


# Far beyond what one hospital has, so that real scans lie inside (domain randomisation, arXiv:2107.09559): low dose, every
# kernel, thick slices, children and very large bodies, contrast at any moment, findings down to the smallest. It contains
# SHIFTED_RANGES: a model that is trained on it is measured on other patients of the same world, not on another world.
RANDOMISED_RANGES = replace(
    TRAIN_RANGES,
    height_scale=(0.78, 1.10),
    width_scale=(0.82, 1.24),
    depth_scale=(0.80, 1.28),
    fat_mm=(3.0, 56.0),
    bend_mm=(1.5, 5.5),
    roll_deg=(-12.0, 12.0),
    position_mm=(-30.0, 30.0),
    age=(10.0, 95.0),
    organ_scale=(0.80, 1.22),
    lung_hu=(-905.0, -740.0),
    liver_hu=(25.0, 72.0),
    marrow_hu=(100.0, 330.0),
    tissue_spread_hu=9.0,
    phase_probabilities=(0.4, 0.25, 0.35),
    field_of_view_mm=(320.0, 500.0),
    coverage_mm=(300.0, 430.0),
    centre_z_mm=(-60.0, 60.0),
    slice_thickness_mm=(0.8, 8.0),
    noise_hu=(4.0, 65.0),
    sharp_probability=0.5,
    soft_sigma_mm=(0.4, 1.7),
    sharpening=(0.3, 1.9),
    nodule_mm=(3.5, 30.0),
    liver_lesion_mm=(6.0, 80.0),
    kidney_tumour_mm=(10.0, 80.0),
    severity=(0.15, 1.0),
)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One person: habitus, age and what the contrast phase makes of each tissue."""

    seed: int
    sex: str
    age: int
    scale: tuple[float, float, float]  # (z, y, x)
    fat_mm: float
    bend_mm: float
    roll_deg: float
    position_mm: tuple[float, float, float]  # (z, y, x) of the template's origin in the scanner
    phase: str
    organ_scale: Range
    lung_hu: float
    liver_hu: float
    marrow_hu: float
    tissue_spread_hu: float

    def rng(self, name: str) -> np.random.Generator:
        return named_rng(self.seed, "patient " + name)

    def size(self, name: str) -> float:
        """This patient's factor for the size of one organ."""
        return float(self.rng("size " + name).uniform(*self.organ_scale))

    def shift(self, name: str, spread_mm: float) -> np.ndarray:
        """This patient's displacement (3,) of one organ, normal but never beyond two spreads."""
        return np.clip(self.rng("shift " + name).normal(0.0, spread_mm, 3), -2 * spread_mm, 2 * spread_mm)

    @property
    def tissue_hu(self) -> dict[str, float]:
        """HU of every tissue that contrast changes; columns in the order of PHASES."""
        column = PHASES.index(self.phase)
        liver = (self.liver_hu, self.liver_hu + 12.0, self.liver_hu + 55.0)
        table = {
            "aorta": (42.0, 330.0, 150.0),
            "pulmonary_artery": (42.0, 260.0, 140.0),
            "vein": (40.0, 110.0, 145.0),
            "superior_vein": (40.0, 300.0, 140.0),
            "left_heart": (42.0, 310.0, 145.0),
            "right_heart": (42.0, 230.0, 140.0),
            "myocardium": (48.0, 95.0, 105.0),
            "muscle": (52.0, 56.0, 62.0),
            "liver": liver,
            "portal_vein": (42.0, liver[1] + 10.0, liver[2] + 55.0),
            "spleen": (50.0, 115.0, 118.0),
            "pancreas": (38.0, 95.0, 85.0),
            "kidney_cortex": (32.0, 170.0, 175.0),
            "kidney_medulla": (30.0, 70.0, 150.0),
            "bowel_wall": (40.0, 70.0, 85.0),
            "gland": (40.0, 60.0, 70.0),
            "tumour": (36.0, 95.0, 80.0),
        }
        drawn = self.rng("tissue").normal(0.0, self.tissue_spread_hu, len(table))
        return {name: row[column] + float(shift) for (name, row), shift in zip(table.items(), drawn, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """How the scan is taken; the table and the field of view belong to it, the patient does not."""

    field_of_view_mm: float
    coverage_mm: float
    centre_mm: tuple[float, float, float]  # (z, y, x) in the scanner
    region: str  # "chest" or "abdomen": what a scan shows that is too short for both
    slice_thickness_mm: float
    noise_hu: float
    kernel: str  # "soft" or "sharp"
    soft_sigma_mm: float
    sharpening: float
    table: str  # "thin", "thick" or "none"


def sample_patient(seed: int, ranges: PhantomRanges) -> Patient:
    """Draw a patient; the frame of the drawn numbers is the scanner's."""
    rng = named_rng(seed, "patient")

    def uniform(bounds: Range) -> float:
        return float(rng.uniform(*bounds))

    sex = "female" if rng.random() < 0.5 else "male"
    size = 0.955 if sex == "female" else 1.02
    fat_mm = uniform(ranges.fat_mm)
    heaviness = 0.0025 * (fat_mm - 18.0)  # the fatter body also has a wider and deeper cavity
    width, depth = (size * (uniform(bounds) + heaviness) for bounds in (ranges.width_scale, ranges.depth_scale))
    return Patient(
        seed=seed,
        sex=sex,
        age=round(uniform(ranges.age)),
        scale=(size * uniform(ranges.height_scale), depth, width),
        fat_mm=fat_mm,
        bend_mm=uniform(ranges.bend_mm),
        roll_deg=uniform(ranges.roll_deg),
        position_mm=(0.0, uniform(ranges.position_mm), uniform(ranges.position_mm)),
        phase=str(rng.choice(PHASES, p=ranges.phase_probabilities)),
        organ_scale=ranges.organ_scale,
        lung_hu=uniform(ranges.lung_hu),
        liver_hu=uniform(ranges.liver_hu),
        marrow_hu=uniform(ranges.marrow_hu),
        tissue_spread_hu=ranges.tissue_spread_hu,
    )


def sample_acquisition(seed: int, ranges: PhantomRanges) -> Acquisition:
    """Draw the settings of the scanner, independently of the patient."""
    rng = named_rng(seed, "acquisition")

    def uniform(bounds: Range) -> float:
        return float(rng.uniform(*bounds))

    return Acquisition(
        field_of_view_mm=uniform(ranges.field_of_view_mm),
        coverage_mm=uniform(ranges.coverage_mm),
        centre_mm=(uniform(ranges.centre_z_mm), uniform((-8.0, 8.0)), uniform((-8.0, 8.0))),
        region="chest" if rng.random() < 0.65 else "abdomen",
        slice_thickness_mm=uniform(ranges.slice_thickness_mm),
        noise_hu=uniform(ranges.noise_hu),
        kernel="sharp" if rng.random() < ranges.sharp_probability else "soft",
        soft_sigma_mm=uniform(ranges.soft_sigma_mm),
        sharpening=uniform(ranges.sharpening),
        table=str(rng.choice(["thin", "thick", "none"], p=[0.5, 0.4, 0.1])),
    )


def sample_findings(patient: Patient, ranges: PhantomRanges) -> tuple[str, ...]:
    """Draw which findings the patient has; a few go together, most are independent."""
    rng = patient.rng("findings")
    draws = dict(zip(FINDING_NAMES, rng.random(len(FINDING_NAMES)), strict=True))
    chance = {name: p * ranges.prevalence_factor for name, p in PREVALENCE.items()}
    # Factors are near one on average over ages 25 to 90, so that PREVALENCE stays what is seen.
    age = 0.4 + 1.2 * (patient.age - 25) / 65
    for name in ("Arterial wall calcification", "Coronary artery wall calcification", "Emphysema", "Hiatal hernia"):
        chance[name] *= age
    present = {name for name in FINDING_NAMES if draws[name] < chance[name]}
    partners = (
        ("Arterial wall calcification", "Coronary artery wall calcification", 0.2),
        ("Pleural effusion", "Atelectasis", 0.25),
        ("Cardiomegaly", "Pleural effusion", 0.15),
        ("Consolidation", "Lung opacity", 0.2),
        ("Bronchiectasis", "Peribronchial thickening", 0.25),
        ("Cardiomegaly", "Interlobular septal thickening", 0.15),
    )
    for cause, effect, probability in partners:
        if cause in present and rng.random() < probability:
            present.add(effect)
    return tuple(name for name in FINDING_NAMES if name in present)
