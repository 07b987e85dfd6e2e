"""From an archive and back: CT series of a DICOMweb server are graded, and DICOM objects of the results stored beside them.

    python docs/guides/pacs.py checkpoints/default dicomweb://localhost:8042/dicom-web guide

A synthetic patient is stored there first, so take an Orthanc of your own. What it shows is research.
From the command line: ctfm report STUDY --out DIR, ctfm worklist dicomweb://..., and ctfm listen, a node that takes by C-STORE.
"""

import sys
from pathlib import Path

from ctfm.__main__ import main as ctfm
from ctfm.clinical.dicomweb import connect, fetch
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.phantom.make import make_phantom
from pydicom import dcmread

checkpoint, server, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
size = tuple(int(n) for n in (sys.argv[4] if len(sys.argv) > 4 else "96,160,160").split(","))  # voxels of a phantom

# 1. A scan for the server, by STOW-RS. Leave this out where there are scans.
phantom = make_phantom(0, shape=size, findings=["Pleural effusion"])
write_dicom_series(phantom.hu.numpy(), phantom.affine, out / "scan")
client = connect(server)
client.store_instances([dcmread(path) for path in sorted((out / "scan").rglob("*.dcm"))])

# 2. Every CT series that is not on disk yet, by QIDO-RS and WADO-RS.
incoming = fetch(server, out / "incoming")

# 3. DICOM SR and a page as encapsulated PDF of each. With --keep-identifiers they are filed under the patient of the scan.
settings = ["--model", checkpoint, "--findings", "Pleural effusion", "--keep-identifiers"]
if ctfm(["report", str(incoming), "--out", str(out / "reported"), *settings]):
    sys.exit(1)  # the line above says why

# 4. Back to the server. UIDs are derived from the slices, the weights and the settings: again means the same objects.
client.store_instances([dcmread(path) for path in sorted((out / "reported").rglob("*.dcm"))])
kinds = [series["00080060"]["Value"][0] for series in client.search_for_series(fields=["00080060"])]
print("on the server", sorted(kinds))
