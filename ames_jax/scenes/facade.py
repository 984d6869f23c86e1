"""A landmark: a facade of wall, roof, windows and ornaments, with towers and a porch that stand before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ames_jax.scenes import facade_parts as parts
from ames_jax.scenes.drawing import Canvas, Rng, Sprite
from ames_jax.scenes.elements import Library
from ames_jax.scenes.plan import Plan


@dataclass(frozen=True)
class Side:
    """A side wall, seen when the view is oblique: the edge x from top to bottom, from `back` to `front` depth."""

    x: float
    top: float
    bottom: float
    back: float
    front: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Plane:
    """One flat part of a landmark, `depth` canvas pixels before the facade; glass uint8 [h, w] can be lit at night."""

    sprite: Sprite
    depth: float
    sides: tuple[Side, ...]
    glass: np.ndarray


@dataclass(frozen=True)
class Landmark:
    """Planes from the back to the front; `ground` is the canvas row of the street."""

    planes: tuple[Plane, ...]
    ground: float
    left: float
    right: float


def build_landmark(rng: Rng, library: Library) -> Landmark:
    """Draws a landmark; the same generator state gives the same pixels."""
    plan = Plan.random(rng, library)
    wall = Canvas()
    parts.paint_wall(wall, plan)
    parts.paint_roof(wall, plan, rng, library)
    parts.paint_floors(wall, plan, rng, library)
    parts.paint_ornaments(wall, plan, rng, library)
    towers, porch = Canvas(), Canvas()
    parts.paint_towers(towers, plan, rng, library)
    parts.paint_porch(porch, plan, rng, library)

    thickness = rng.uniform(90, 220)
    house_sides = [Side(x, plan.top, plan.ground, -thickness, 0, plan.side_colour) for x in (plan.left, plan.right)]
    planes = [_plane(wall, 0, house_sides)]
    if plan.tower_width:
        depth = rng.uniform(25, 60)
        edges = [x for span in plan.towers for x in span]
        planes.append(_plane(towers, depth, [_edge(plan, x, plan.tower_top, depth) for x in edges]))
    depth = rng.uniform(25, 70)
    planes.append(_plane(porch, depth, [_edge(plan, x, plan.porch_top, depth) for x in plan.porch_roof]))
    return Landmark(tuple(planes), plan.ground, plan.left, plan.right)


def _edge(plan: Plan, x: float, top: float, depth: float) -> Side:
    bottom = plan.ground if top == plan.tower_top else min(plan.ground, top + plan.porch_slab)
    return Side(x, top, bottom, 0, depth, plan.side_colour)


def _plane(canvas: Canvas, depth: float, sides: list[Side]) -> Plane:
    return Plane(canvas.sprite(), depth, tuple(sides), (canvas.glass * 255).astype(np.uint8))
