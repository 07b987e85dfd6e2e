"""Trial-report completeness: what does this draft leave out? Independent of the CT model; README.md says what it needs.

`check(path)` reads a report and says what is missing, `label(sentences, sections, checklist)` says which items of a checklist
each sentence states.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

# The function takes the name of its module here; `from ctfm.reporting.check import ...` reaches the rest of the module.
from .check import check, label
from .configuration_trialreport import TrialReportConfig
from .documents import Document, DocumentError, read_document
from .modeling_trialreport import TrialReportForSentenceLabels
from .processing_trialreport import TrialReportProcessor

AutoConfig.register("trialreport", TrialReportConfig, exist_ok=True)
AutoModel.register(TrialReportConfig, TrialReportForSentenceLabels, exist_ok=True)
AutoProcessor.register(TrialReportConfig, TrialReportProcessor, exist_ok=True)

__all__ = [
    "Document",
    "DocumentError",
    "TrialReportConfig",
    "TrialReportForSentenceLabels",
    "TrialReportProcessor",
    "check",
    "label",
    "read_document",
]
