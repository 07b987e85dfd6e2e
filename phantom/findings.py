"""Scene + names of findings -> the findings drawn into HU and segmentation."""

from collections.abc import Callable

from . import body_findings as body
from . import chest_findings as chest
from .patient import FINDING_NAMES
from .scene import FINDING_ID, Scene

# Diffuse findings first, focal ones last, so that a small one is never covered by a large one.
DRAWN_IN_ORDER: tuple[tuple[str, Callable[[Scene], None]], ...] = (
    ("Cardiomegaly", body.draw_cardiomegaly),
    ("Mosaic attenuation pattern", chest.draw_mosaic),
    ("Emphysema", chest.draw_emphysema),
    ("Interlobular septal thickening", chest.draw_septal),
    ("Lung opacity", chest.draw_opacity),
    ("Ascites", body.draw_ascites),
    ("Pleural effusion", chest.draw_effusion),
    ("Pericardial effusion", body.draw_pericardial_effusion),
    ("Consolidation", chest.draw_consolidation),
    ("Peribronchial thickening", chest.draw_peribronchial),
    ("Bronchiectasis", chest.draw_bronchiectasis),
    ("Atelectasis", chest.draw_atelectasis),
    ("Pulmonary fibrotic sequela", chest.draw_fibrotic_sequela),
    ("Hiatal hernia", body.draw_hernia),
    ("Lymphadenopathy", body.draw_nodes),
    ("Liver lesion", body.draw_liver_lesions),
    ("Kidney tumour", body.draw_kidney_tumour),
    ("Lung nodule", chest.draw_nodules),
    ("Arterial wall calcification", body.draw_arterial_calcification),
    ("Coronary artery wall calcification", body.draw_coronary_calcification),
    ("Kidney stone", body.draw_kidney_stones),
    ("Medical material", body.draw_material),
)


def draw_findings(scene: Scene, names: tuple[str, ...]) -> None:
    """Draw the named findings; afterwards every finding of the scene owns at least one voxel of the segmentation."""
    for name, draw in DRAWN_IN_ORDER:
        if name in names:
            draw(scene)
    scene.findings.sort(key=lambda finding: FINDING_NAMES.index(finding.name))
    for finding in scene.findings:
        index = FINDING_ID[finding.name]
        if not bool((scene.segmentation == index).any()):
            d, h, w = (
                min(max(round(value), 0), size - 1)
                for value, size in zip(finding.centre_voxel, scene.grid.shape, strict=True)
            )
            scene.segmentation[d, h, w] = index
