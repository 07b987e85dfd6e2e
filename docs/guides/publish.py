"""A trained folder -> your own repository on the Hub, with a card that says what was measured.

    python docs/guides/publish.py runs/probe you/your-model

The folder is what `ctfm probe` or `ctfm finetune ... TABLE` wrote. It holds the code beside the weights, so whoever loads it
needs nothing but transformers: AutoModelForImageClassification.from_pretrained("you/your-model", trust_remote_code=True).
"""

import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

run, repo = Path(sys.argv[1]), sys.argv[2]
metrics = json.loads((run / "metrics.json").read_text())
config = json.loads((run / "model" / "config.json").read_text())

# 1. The card. Weights trained on patients say something of them: name the data, who agreed to this use, and what it is not for.
facts = ModelCardData(
    library_name="transformers", pipeline_tag="image-classification", license="apache-2.0", tags=["ct"]
)
rows = "\n".join(f"| {name} | {value} |" for name, value in metrics["test"].items())
card = ModelCard(f"""---
{facts.to_yaml()}
---

# {repo.partition("/")[2]}

**Research only: not for diagnosis or any decision about a patient.**

A head for {", ".join(config["id2label"].values())} on CTFM. Data: say which scans of whom, and who agreed to this use.

| Measured on scans that it was not trained on | |
|---|---|
{rows}
""")
card.save(run / "model" / "README.md")

# 2. The repository. `hf auth login` once; private=True until somebody else has looked at it.
hub = HfApi()
hub.create_repo(repo, private=True, exist_ok=True)
hub.upload_folder(folder_path=run / "model", repo_id=repo)
print(f"{hub.endpoint}/{repo}")
