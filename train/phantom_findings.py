"""Scene + names of findings -> the findings drawn into HU and segmentation."""

from .phantom_scene import Scene


def draw_findings(scene: Scene, names: tuple[str, ...]) -> None:
    """Draw the named findings, diffuse ones first, so that a focal one is never covered."""
