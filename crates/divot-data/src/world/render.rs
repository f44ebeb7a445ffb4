//! Scenes to frames.

use super::draw::Draw;
use super::picture::{Picture, coverage, mix};
use super::scene::{Object, Pose, Scene};
use crate::Frame;

/// Marks the random numbers of a camera's noise.
const PURPOSE: u64 = 2;
/// Where a shadow falls, right and down, in sides of the frame.
const SHADOW: [f32; 2] = [0.02, 0.03];
/// Width of a shadow's edge, in sides of the frame.
const SOFTNESS: f32 = 0.07;
/// How much light a shadow takes.
const DARKNESS: f32 = 0.35;

impl Scene {
    /// Draws `count` frames of `side` by `side` pixels, spread over the clip from its beginning to its end.
    pub fn frames(&self, side: usize, count: usize) -> Vec<Frame> {
        let behind = self.background.picture(side);
        let mut draw = Draw::new([self.background.seed.into(), PURPOSE, 0, 0]);
        let frames = (0..count).map(|number| {
            let time = number as f32 / (count.max(2) - 1) as f32;
            self.picture(time, side, &behind)
                .frame(self.camera.noise, &mut draw)
        });
        frames.collect()
    }

    fn picture(&self, time: f32, side: usize, behind: &Picture) -> Picture {
        let length = side as f32;
        let pan = self.camera.pan.map(|pan| pan * (time - 0.5));
        let margin = (behind.side - side) as f32 / 2.0;
        let [left, top] = pan.map(|pan| margin - pan * length);
        let mut picture = Picture::new(side, |x, y| behind.at(x as f32 + left, y as f32 + top));
        let poses = self.objects.iter().map(|object| {
            let mut pose = object.pose(time);
            pose.centre[0] += pan[0];
            pose.centre[1] += pan[1];
            (object, pose)
        });
        let poses: Vec<_> = poses.filter(|(_, pose)| pose.opacity > 0.0).collect();
        for (object, pose) in &poses {
            shadow(&mut picture, object, pose);
        }
        for (object, pose) in &poses {
            paint(&mut picture, object, pose);
        }
        picture
    }
}

/// Calls `each` with the pixels around an object, their distances to its outline in pixels, and how far below its centre
/// they are, in radii.
fn visit(
    picture: &mut Picture,
    object: &Object,
    pose: &Pose,
    reach: f32,
    mut each: impl FnMut(&mut [f32; 3], f32, f32),
) {
    let side = picture.side as f32;
    let radius = pose.radius * side;
    let reach = radius * object.shape.extent() + reach + 1.0;
    let [x, y] = pose.centre.map(|at| at * side);
    let (sin, cos) = pose.angle.sin_cos();
    let span = |centre: f32| {
        let first = (centre - reach).max(0.0) as usize;
        first..((centre + reach + 1.0).max(0.0) as usize).min(picture.side)
    };
    let columns = span(x);
    for row in span(y) {
        let down = row as f32 + 0.5 - y;
        for column in columns.clone() {
            let right = column as f32 + 0.5 - x;
            let point = [right * cos + down * sin, down * cos - right * sin];
            let distance = object.shape.distance(point.map(|at| at / radius)) * radius;
            let pixel = &mut picture.pixels[row * picture.side + column];
            each(pixel, distance, down / radius);
        }
    }
}

fn shadow(picture: &mut Picture, object: &Object, pose: &Pose) {
    let width = SOFTNESS * picture.side as f32;
    let below = Pose {
        centre: std::array::from_fn(|axis| pose.centre[axis] + SHADOW[axis]),
        ..*pose
    };
    visit(picture, object, &below, width, |pixel, distance, _| {
        let share = coverage(distance / width);
        let share = share * share * (3.0 - 2.0 * share);
        let light = 1.0 - DARKNESS * share * pose.opacity;
        *pixel = pixel.map(|value| value * light);
    });
}

fn paint(picture: &mut Picture, object: &Object, pose: &Pose) {
    let colour = object.colour.rgb().map(f32::from);
    visit(picture, object, pose, 0.0, |pixel, distance, down| {
        // Light comes from above.
        let lit = colour.map(|value| value * (1.0 - 0.08 * down));
        *pixel = mix(*pixel, lit, coverage(distance) * pose.opacity);
    });
}
