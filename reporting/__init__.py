"""Trial-report completeness: what does this draft leave out? Independent of the CT model.

`label(sentences, sections)` labels sentences with checklist items, `check(path)` reads a report and says what is missing.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .check import Report, Verdict, check, check_document, check_folder, compare_outcomes, label, summarise
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
    "Report",
    "TrialReportConfig",
    "TrialReportForSentenceLabels",
    "TrialReportProcessor",
    "Verdict",
    "check",
    "check_document",
    "check_folder",
    "compare_outcomes",
    "label",
    "read_document",
    "summarise",
]
