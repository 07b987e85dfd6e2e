"""What hospitals take and give: a scan and what a model says of it as DICOM SEG, RTSTRUCT, SR and PDF, and as FHIR."""
