"""Seeds -> mutated inputs, the same for the same random seed: what `make test` runs, and `make fuzz` without atheris."""

import random
from collections.abc import Sequence

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAX_BYTES = 1 << 20


def mutate(chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One to six small changes of one seed."""
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(content) + 1)
        if chance.random() < 0.5:
            at = min(at, chance.randrange(1, 600))  # headers stand in front
        kind = chance.randrange(9)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << chance.randrange(8)
        elif kind == 1 and content:
            content[at % len(content)] = chance.randrange(256)
        elif kind == 2:
            content[at:at] = chance.choice(words)
        elif kind == 3:
            word = chance.choice(words)
            content[at : at + len(word)] = word
        elif kind == 4:
            del content[at : at + chance.choice((1, 2, 4, 16, 200))]
        elif kind == 5:
            content[at:at] = content[at : at + chance.choice((1, 8, 64, 512))]
        elif kind == 6:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(INTERESTING) % (1 << (8 * size))
            content[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 7 and chance.random() < 0.3:
            del content[at:]
        elif kind == 8:
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            content[at : at + 32] = other[start : start + 32]
    return bytes(content[:MAX_BYTES])
