"""CT series of a DICOMweb server -> files on disk: what `ctfm worklist dicomweb://HOST:PORT/PATH` reads.

`dicomweb://` stands for http, `dicomwebs://` for https; a user and a password come from ~/.netrc, as requests reads it. Series
that lie on disk whole are not asked for again. Files and folders are named by digests.
"""

import re
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient

from ..volume_dicom_header_ctfm import PARSE_ERRORS, quiet_pydicom
from .source import digest

SCHEMES = {"dicomweb": "http", "dicomwebs": "https", "http": "http", "https": "https"}
STUDY, SERIES, COUNT = "0020000D", "0020000E", "00201209"
WHOLE = "whole"  # in the folder of a series: how many slices the server said it has
PAGE = 100  # studies of one answer
FAILURES = (requests.RequestException, ConnectionError, ValueError, KeyError, *PARSE_ERRORS)


def server_url(text: str) -> str:
    """
    Raises:
        OSError: it is no address of a DICOMweb server.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES or not rest:
        raise OSError(f"{scheme}:// is no DICOMweb server; write dicomweb://HOST:PORT/PATH, or dicomwebs:// for https")
    return f"{SCHEMES[scheme]}://{rest.rstrip('/')}"


def fetch(text: str, folder: Path) -> Path:
    """Every CT series that the server has and that does not lie below the folder yet.

    Raises:
        OSError: the server cannot be reached, or breaks off; what came until then stays, and the next call goes on.
    """
    client = connect(text)
    try:
        with quiet_pydicom:
            offset = 0
            while studies := client.search_for_studies(
                limit=PAGE, offset=offset, search_filters={"ModalitiesInStudy": "CT"}
            ):
                for study in studies:
                    fetch_study(client, value(study, STUDY), folder)
                offset += len(studies)
    except FAILURES as error:
        raise OSError(f"{server_url(text)}: {describe(error)}. What came until then is kept.") from None
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def connect(text: str) -> DICOMwebClient:
    return DICOMwebClient(url=server_url(text))


def fetch_study(client: DICOMwebClient, study_uid: str, folder: Path) -> None:
    for series in client.search_for_series(study_uid, search_filters={"Modality": "CT"}, fields=[COUNT]):
        series_uid = value(series, SERIES)
        place = folder / digest(study_uid) / digest(series_uid)
        count = str(value(series, COUNT, ""))
        if (place / WHOLE).is_file() and (place / WHOLE).read_text() == count:
            continue
        place.mkdir(parents=True, exist_ok=True)
        for data_set in client.iter_series(study_uid, series_uid):
            file = place / f"{digest(data_set.SOPInstanceUID)}.dcm"
            partial = file.with_name(f".{file.name}.partial")
            data_set.save_as(partial, enforce_file_format=True)
            partial.replace(file)
        (place / WHOLE).write_text(count)


def value(found: dict[str, Any], tag: str, default: Any = None) -> Any:
    """The first value of an attribute in DICOM's JSON."""
    values = found.get(tag, {}).get("Value") or [default]
    if values[0] is None:
        raise KeyError(tag)
    return values[0]


def describe(error: Exception) -> str:
    """What went wrong, without the address of a study, which an error of requests holds."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.ConnectionError | ConnectionError):
        return "no server answers there, or it broke off"
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return f"the server's answer cannot be read ({kind})"
