"""Trial-report completeness: what does this draft leave out? Independent of the CT model.

`ctfm.reporting.check` holds `check(path)`, which reads a report and says what is missing, and `label(sentences, sections)`,
which labels sentences with checklist items.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

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
    "read_document",
]
