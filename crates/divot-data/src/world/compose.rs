//! Scenes at random.

use super::draw::Draw;
use super::scene::{Background, Camera, Colour, Motion, Object, Pattern, Scene, Shape, Size};

/// Times at which objects are kept inside the frame and apart.
const CHECKS: usize = 32;
/// Distance that is kept from the border and between objects, in sides of the frame.
const GAP: f32 = 0.02;
/// Longest pan along an axis, in sides of the frame.
const MAX_PAN: f32 = 0.07;

/// How often places are drawn before other objects are. So many are enough for nearly all, so that what is rarely
/// placed is not rarer.
const TRIES: usize = 1000;

/// Which combinations of colour, shape and motion a scene has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Combinations {
    /// Only those of training.
    Seen,
    /// At least one that training never has.
    Novel,
    /// Any.
    Any,
}

impl Combinations {
    fn allow(self, objects: &[Object]) -> bool {
        match self {
            Self::Any => true,
            Self::Seen => !objects.iter().any(Object::is_held_out),
            Self::Novel => objects.iter().any(Object::is_held_out),
        }
    }
}

/// A scene of one object or two.
pub(super) fn scene(combinations: Combinations, draw: &mut Draw) -> Scene {
    let camera = camera(draw);
    let objects = loop {
        let mut objects = vec![object(draw)];
        if draw.chance(0.4) {
            objects.push(object(draw));
        } else if draw.chance(0.2) {
            let motions = draw.below(Motion::STRAIGHT.len() * (Motion::STRAIGHT.len() - 1));
            let (first, step) = (motions / 3, 1 + motions % 3);
            objects[0].motion = Motion::STRAIGHT[first];
            objects[0].then = Some(Motion::STRAIGHT[(first + step) % 4]);
        }
        let distinct = match &objects[..] {
            [one, other] => !one.colour.is_near(other.colour),
            _ => true,
        };
        if distinct && combinations.allow(&objects) && place(&mut objects, &camera, draw) {
            break objects;
        }
    };
    Scene {
        objects,
        background: background(draw),
        camera,
    }
}

/// A scene in which an object of a certain look does something.
pub(super) fn scene_of(shape: Shape, colour: Colour, motion: Motion, draw: &mut Draw) -> Scene {
    let camera = camera(draw);
    let mut objects = vec![Object {
        shape,
        colour,
        motion,
        ..object(draw)
    }];
    while !place(&mut objects, &camera, draw) {}
    Scene {
        objects,
        background: background(draw),
        camera,
    }
}

/// What an object of this look may do.
pub(super) fn motions(shape: Shape, colour: Colour, combinations: Combinations) -> Vec<Motion> {
    let mut motions = Motion::ALL.to_vec();
    motions.retain(|&motion| {
        let object = Object {
            shape,
            colour,
            motion,
            then: None,
            size: Size::Medium,
            at: [0.5; 2],
            reach: 0.0,
            moment: 0.0,
            clockwise: false,
        };
        let visible = shape.can_spin() || motion != Motion::Spin;
        visible && (combinations != Combinations::Seen || !object.is_held_out())
    });
    motions
}

/// An object that has no place yet.
fn object(draw: &mut Draw) -> Object {
    let shape = draw.one(&Shape::ALL);
    let colour = draw.one(&Colour::ALL);
    Object {
        motion: draw.one(&motions(shape, colour, Combinations::Any)),
        shape,
        colour,
        then: None,
        size: Size::Medium,
        at: [0.5; 2],
        reach: 0.0,
        moment: 0.0,
        clockwise: draw.chance(0.5),
    }
}

/// Gives objects sizes and places at which they stay in sight and apart, if that can be found.
fn place(objects: &mut [Object], camera: &Camera, draw: &mut Draw) -> bool {
    (0..TRIES).any(|_| {
        let mut inside = true;
        for object in objects.iter_mut() {
            inside &= place_one(object, camera, draw);
        }
        inside
            && match objects {
                [one, other] => are_apart(one, other),
                _ => true,
            }
    })
}

/// Gives an object a size and a place at which it stays in sight, if the size leaves one.
fn place_one(object: &mut Object, camera: &Camera, draw: &mut Draw) -> bool {
    object.size = match object.motion {
        Motion::Grow | Motion::Shrink => Size::Medium,
        // A small one has too few pixels to show that it turns.
        Motion::Spin => draw.one(&[Size::Medium, Size::Large]),
        _ => draw.one(&Size::ALL),
    };
    (object.reach, object.moment) = match (object.motion, object.then) {
        (Motion::Circle, _) => (draw.within(0.14, 0.19), draw.unit()),
        (Motion::Bounce, _) => (draw.within(0.2, 0.3), 0.0),
        (Motion::Appear | Motion::Vanish, _) => (0.0, draw.within(0.3, 0.6)),
        (_, Some(_)) => (draw.within(0.25, 0.36), 0.0),
        (motion, None) if motion.direction().is_some() => (draw.within(0.28, 0.5), 0.0),
        _ => (0.0, 0.0),
    };
    // How far it goes from where it begins.
    object.at = [0.0; 2];
    let mut centre = [0.0; 2];
    for (axis, centre) in centre.iter_mut().enumerate() {
        let margin = GAP + camera.pan[axis].abs() / 2.0;
        let (mut low, mut high) = (f32::MIN, f32::MAX);
        for check in 0..=CHECKS {
            let pose = object.pose(check as f32 / CHECKS as f32);
            let extent = pose.radius * object.shape.extent() + margin;
            low = low.max(extent - pose.centre[axis]);
            high = high.min(1.0 - extent - pose.centre[axis]);
        }
        if low > high {
            return false;
        }
        *centre = draw.within(low, high);
    }
    object.at = centre;
    true
}

fn are_apart(one: &Object, other: &Object) -> bool {
    (0..=CHECKS).all(|check| {
        let [a, b] = [one, other].map(|object| object.pose(check as f32 / CHECKS as f32));
        let distance = (a.centre[0] - b.centre[0]).hypot(a.centre[1] - b.centre[1]);
        distance > a.radius * one.shape.extent() + b.radius * other.shape.extent() + GAP
    })
}

fn background(draw: &mut Draw) -> Background {
    Background {
        pattern: draw.one(&Pattern::ALL),
        brightness: draw.within(80.0, 190.0),
        contrast: draw.within(14.0, 34.0),
        warmth: draw.within(-8.0, 8.0),
        seed: draw.bits() as u32,
    }
}

/// Two of three cameras stand still.
fn camera(draw: &mut Draw) -> Camera {
    let pans = draw.chance(1.0 / 3.0);
    let mut pan = [0.0; 2];
    if pans {
        pan[draw.below(2)] = draw.within(0.03, MAX_PAN) * draw.one(&[-1.0, 1.0]);
    }
    Camera {
        pan,
        noise: draw.within(0.0, 2.5),
    }
}
