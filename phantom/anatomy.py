"""Body -> the whole anatomy painted into it, or only what planning needs."""

from .abdomen import draw_abdominal_organs, draw_liver
from .body import Body
from .bones import draw_other_bones, draw_shell_bones, draw_spine
from .chest import (
    draw_great_vessels,
    draw_heart,
    draw_lungs,
    draw_mediastinum,
    draw_wall,
    measure_diaphragm,
    measure_mediastinum,
)


def draw_body(body: Body) -> None:
    """Paint the whole anatomy except the trees inside the lungs."""
    draw_wall(body)
    measure_mediastinum(body)
    measure_diaphragm(body)
    draw_abdominal_organs(body)
    draw_lungs(body)
    draw_mediastinum(body)
    draw_heart(body)
    draw_great_vessels(body)
    draw_shell_bones(body)
    draw_spine(body)
    draw_other_bones(body)


def measure_body(body: Body) -> None:
    """Only what planning asks: the lungs with their lobes, the liver."""
    draw_wall(body)
    measure_mediastinum(body)
    measure_diaphragm(body)
    draw_lungs(body)
    draw_liver(body)
