"""Findings -> texts that say that each is there and that it is not, worded anew in every step.

Reports deny more than they state, and most denials are true of most scans: told apart by pairs alone, a model learns little
about any one finding. Where findings are labelled, prompts ask about each of them directly, in the words of a prompt set of
`protocols/`. A report's own sentences still teach all other words.
"""

from collections.abc import Sequence

import torch

from ..evaluate.protocol import PromptSet, load_protocol, say


def find_prompts(name: str) -> PromptSet:
    """A prompt set by "protocol/set".

    Raises:
        ValueError: there is none of that name.
    """
    protocol, _, chosen = name.partition("/")
    sets = load_protocol(protocol).prompts
    if chosen not in sets:
        raise ValueError(f'Protocol "{protocol}" has no prompt set "{chosen}"; it has {", ".join(sets)}.')
    return sets[chosen]


def draw_prompts(findings: Sequence[str], prompts: PromptSet, seed: int) -> tuple[list[str], list[str]]:
    """One text for "present" and one for "absent" of every finding, a pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)

    def choose(templates: Sequence[str], finding: str) -> str:
        return say([templates[int(torch.randint(len(templates), (), generator=generator))]], finding, prompts.names)[0]

    return [choose(prompts.present, name) for name in findings], [choose(prompts.absent, name) for name in findings]
