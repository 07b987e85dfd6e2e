"""Names of findings, structures and measurements -> codes: SNOMED CT, RadLex or DICOM where one exists, else a private one.

SNOMED CT codes are those of DICOM's own context groups (PS3.16) where these hold the concept.
"""

import hashlib
import re

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

PRIVATE = "99CTFM"


def private(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE, meaning)


TITLE = private("research-report", "Imaging Measurement Report, research use only")
CAVEAT = private("caveat", "Limits of use")
SCAN = private("scan", "Scan as a whole")
GATE = private("gate", "Likeness to scans of the training")
GATE_ANSWERS = {
    "like": private("like", "Like scans of the training"),
    "unlike": private("unlike", "Unlike any scan of the training: no finding is reported"),
    "unknown": private("gate-unknown", "Not known: the checkpoint has no reference scans"),
}
DISTANCE = private("distance", "Distance to scans of the training, 1 at the edge")
PROBABILITY = private("probability", "Calibrated probability")
LOW, HIGH = private("low", "Lower bound of the 95 % interval"), private("high", "Upper bound of the 95 % interval")
SCORE = private("score", "Uncalibrated score")
VERDICT = private("verdict", "Answer of the model")
NOT_CALIBRATED = private("not-calibrated", "Not calibrated: no answer")
CONFIDENCE = private("confidence", "Mean share of the structure's voxels, not calibrated")
VERDICTS = {
    "present": Code("52101004", "SCT", "Present"),
    "absent": Code("272519000", "SCT", "Absent"),
    "not sure": Code("82334004", "SCT", "Indeterminate"),
}
LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")

FINDINGS = {
    "ascites": Code("389026000", "SCT", "Ascites"),
    "atelectasis": Code("46621007", "SCT", "Atelectasis"),
    "bronchiectasis": Code("12295008", "SCT", "Bronchiectasis"),
    "cardiomegaly": Code("8186001", "SCT", "Cardiomegaly"),
    "consolidation": Code("95436008", "SCT", "Lung consolidation"),
    "emphysema": Code("87433001", "SCT", "Pulmonary emphysema"),
    "hiatal hernia": Code("84089009", "SCT", "Hiatal hernia"),
    "kidney stone": Code("95570007", "SCT", "Kidney stone"),
    "lung nodule": Code("786838002", "SCT", "Nodule of lung"),
    "lung opacity": Code("RID28530", "RADLEX", "opacity"),
    "lymphadenopathy": Code("30746006", "SCT", "Lymphadenopathy"),
    "pericardial effusion": Code("373945007", "SCT", "Pericardial effusion"),
    "pleural effusion": Code("60046008", "SCT", "Pleural effusion"),
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
}
STRUCTURES = {
    "adrenal gland": Code("23451007", "SCT", "Adrenal gland"),
    "aorta": Code("15825003", "SCT", "Aorta"),
    "clavicle": Code("51299004", "SCT", "Clavicle"),
    "colon": Code("71854001", "SCT", "Colon"),
    "duodenum": Code("38848004", "SCT", "Duodenum"),
    "gallbladder": Code("28231008", "SCT", "Gallbladder"),
    "heart": Code("80891009", "SCT", "Heart"),
    "humerus": Code("85050009", "SCT", "Humerus"),
    "kidney": Code("64033007", "SCT", "Kidney"),
    "liver": Code("10200004", "SCT", "Liver"),
    "lower lobe": Code("90572001", "SCT", "Lower lobe of lung"),
    "lung": Code("39607008", "SCT", "Lung"),
    "mediastinum": Code("72410000", "SCT", "Mediastinum"),
    "muscle": Code("71616004", "SCT", "Muscle"),
    "oesophagus": Code("32849002", "SCT", "Esophagus"),
    "pancreas": Code("15776009", "SCT", "Pancreas"),
    "pelvis": Code("118645006", "SCT", "Pelvis"),
    "pulmonary artery": Code("81040000", "SCT", "Pulmonary artery"),
    "rib": Code("113197003", "SCT", "Rib"),
    "right middle lobe": Code("72481006", "SCT", "Middle lobe of right lung"),
    "scapula": Code("79601000", "SCT", "Scapula"),
    "small bowel": Code("30315005", "SCT", "Small intestine"),
    "spine": Code("421060004", "SCT", "Spine"),
    "spleen": Code("78961009", "SCT", "Spleen"),
    "sternum": Code("56873002", "SCT", "Sternum"),
    "stomach": Code("69695003", "SCT", "Stomach"),
    "trachea": Code("44567001", "SCT", "Trachea"),
    "upper lobe": Code("45653009", "SCT", "Upper lobe of lung"),
    "vena cava": Code("35532006", "SCT", "Vena cava"),
}
SPELLINGS = {"esophagus": "oesophagus", "small intestine": "small bowel", "vertebral column": "spine"}


def finding_code(label: str) -> tuple[Code, Code | None]:
    """A finding's code, and the side that its name gives."""
    return find_code(label, FINDINGS)


def structure_code(name: str) -> tuple[Code, Code | None]:
    """A structure's code, and the side that its name gives."""
    return find_code(name, STRUCTURES)


def find_code(name: str, known: dict[str, Code]) -> tuple[Code, Code | None]:
    plain = " ".join(name.lower().replace("_", " ").split())
    plain = SPELLINGS.get(plain, plain)
    if plain in known:
        return known[plain], None
    side, _, rest = plain.partition(" ")
    rest = SPELLINGS.get(rest, rest)
    if side in ("left", "right") and rest in known:
        return known[rest], LEFT if side == "left" else RIGHT
    return private(private_value(plain), name[:64]), None


def private_value(name: str) -> str:
    """A code value has 16 characters."""
    short = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return short if 0 < len(short) <= 16 else f"{short[:7]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def coding_scheme() -> Dataset:
    """What says whose the private codes are."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE
    item.CodingSchemeName = "Codes of CTFM, research software"
    item.CodingSchemeResponsibleOrganization = "CTFM"
    return item
