//! The outlines of shapes.
//!
//! A shape is known by its signed distance: how far a point is from the outline, negative inside. The formulas are
//! Inigo Quilez's ("2D distance functions").

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use super::scene::Shape;

/// Radius of a ring's hole, in radii of the ring.
const HOLE: f32 = 0.5;
/// Radius of the inner corners of a star, in radii of the outer ones.
const WAIST: f32 = 0.48;
/// Half the angle from one point of a star to the next.
const HALF_POINT: f32 = PI / 5.0;
/// The heart's centre of mass above its tip, before it is scaled.
const HEART_CENTRE: f32 = 0.656;

impl Shape {
    /// Signed distance of a point, right and down from the centre of mass. The outline encloses an area of π.
    pub(super) fn distance(self, [x, y]: [f32; 2]) -> f32 {
        let length = x.hypot(y);
        match self {
            Self::Circle => length - 1.0,
            Self::Ring => (length - (1.0 + HOLE) / 2.0).abs() - (1.0 - HOLE) / 2.0,
            Self::Square => {
                let half = PI.sqrt() / 2.0;
                let (x, y) = (x.abs() - half, y.abs() - half);
                x.max(0.0).hypot(y.max(0.0)) + x.max(y).min(0.0)
            }
            Self::Triangle => triangle(x, -y, self.extent()),
            Self::Star => star(x, -y, self.extent()),
            Self::Heart => {
                // A square on its corner and two half discs.
                let scale = (PI / (0.5 + PI / 8.0)).sqrt();
                heart(x / scale, HEART_CENTRE - y / scale) * scale
            }
        }
    }

    /// Distance of the farthest point from the centre.
    pub(super) fn extent(self) -> f32 {
        match self {
            Self::Circle | Self::Ring => 1.0,
            Self::Square => (PI / 2.0).sqrt(),
            Self::Triangle => (PI / (0.75 * 3f32.sqrt())).sqrt(),
            Self::Star => (PI / (5.0 * WAIST * HALF_POINT.sin())).sqrt(),
            Self::Heart => HEART_CENTRE * (PI / (0.5 + PI / 8.0)).sqrt(),
        }
    }

    /// Share of the outlined area that is filled.
    pub(super) fn filled(self) -> f32 {
        match self {
            Self::Ring => 1.0 - HOLE * HOLE,
            _ => 1.0,
        }
    }
}

/// An equilateral triangle with its corner up, in a circle of this radius.
fn triangle(x: f32, y: f32, radius: f32) -> f32 {
    let root = 3f32.sqrt();
    let half = radius * root / 2.0;
    let (mut x, mut y) = (x.abs() - half, y + half / root);
    if x + root * y > 0.0 {
        (x, y) = ((x - root * y) / 2.0, (-root * x - y) / 2.0);
    }
    x -= x.clamp(-2.0 * half, 0.0);
    -x.hypot(y) * y.signum()
}

/// A star with a point up, in a circle of this radius.
fn star(x: f32, y: f32, radius: f32) -> f32 {
    let (sin, cos) = HALF_POINT.sin_cos();
    let (mut x, mut y) = (x.abs(), y);
    for side in [1.0, -1.0] {
        // Mirrored at the lines between the points.
        let beyond = (side * cos * x - sin * y).max(0.0);
        (x, y) = (x - 2.0 * beyond * side * cos, y + 2.0 * beyond * sin);
    }
    let (x, y) = (x.abs(), y - radius);
    let (edge_x, edge_y) = (WAIST * radius * sin, WAIST * radius * cos - radius);
    let along = (x * edge_x + y * edge_y) / (edge_x * edge_x + edge_y * edge_y);
    let along = along.clamp(0.0, 1.0);
    let distance = (x - edge_x * along).hypot(y - edge_y * along);
    distance * (y * edge_x - x * edge_y).signum()
}

/// A heart whose tip is at 0 and whose notch is at a height of 1.
fn heart(x: f32, y: f32) -> f32 {
    let x = x.abs();
    if x + y > 1.0 {
        return (x - 0.25).hypot(y - 0.75) - FRAC_1_SQRT_2 / 2.0;
    }
    let along = 0.5 * (x + y).max(0.0);
    x.hypot(y - 1.0).min((x - along).hypot(y - along)) * (x - y).signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_and_centres_are_what_sizes_assume() {
        for shape in Shape::ALL {
            let (mut area, mut centre, mut extent) = (0f32, [0f32; 2], 0f32);
            const CELLS: i32 = 300;
            let cell = 2.0 / CELLS as f32;
            for row in -CELLS..CELLS {
                for column in -CELLS..CELLS {
                    let point = [column, row].map(|at| (at as f32 + 0.5) * cell);
                    if shape.distance(point) < 0.0 {
                        area += cell * cell;
                        centre[0] += point[0] * cell * cell;
                        centre[1] += point[1] * cell * cell;
                        extent = extent.max(point[0].hypot(point[1]));
                    }
                }
            }
            assert!(
                (area / PI - shape.filled()).abs() < 0.01,
                "{shape:?}: {area}"
            );
            assert!(
                centre.iter().all(|c| c.abs() < 0.03),
                "{shape:?}: {centre:?}"
            );
            assert!(
                (extent - shape.extent()).abs() < 0.03,
                "{shape:?}: {extent}"
            );
        }
    }
}
