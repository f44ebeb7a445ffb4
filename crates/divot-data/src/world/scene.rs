//! What is in a clip: the ground truth.

use std::f32::consts::TAU;

use serde::{Deserialize, Serialize};

/// An enumeration whose values have names, which are also what they are called in JSON.
macro_rules! named {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $type { $($(#[$doc])* #[serde(rename = $name)] $value,)* }

        impl $type {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$value),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $name,)* }
            }
        }
    };
}
pub(super) use named;

named! {
    /// What an object looks like. Shapes of one size have equal outlined areas.
    Shape {
        /// A disc.
        Circle = "circle",
        /// A square on its side.
        Square = "square",
        /// An equilateral triangle, one corner up.
        Triangle = "triangle",
        /// A star of five points, one of them up.
        Star = "star",
        /// A heart, its tip down.
        Heart = "heart",
        /// A disc with a round hole of half its radius.
        Ring = "ring",
    }
}

impl Shape {
    /// Whether a turned one looks different.
    pub fn can_spin(self) -> bool {
        !matches!(self, Self::Circle | Self::Ring)
    }
}

named! {
    /// The colour of an object, in the order of hues. Backgrounds are nearly grey.
    Colour {
        /// Hue of 353°.
        Red = "red",
        /// 30°.
        Orange = "orange",
        /// 57°.
        Yellow = "yellow",
        /// 130°.
        Green = "green",
        /// 184°: between green and blue.
        Cyan = "cyan",
        /// 226°.
        Blue = "blue",
        /// 277°.
        Purple = "purple",
        /// 320°.
        Pink = "pink",
    }
}

impl Colour {
    /// Red, green and blue, each in 0..=255.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [215, 30, 50],
            Self::Orange => [250, 132, 15],
            Self::Yellow => [242, 230, 40],
            Self::Green => [45, 170, 65],
            Self::Cyan => [50, 200, 210],
            Self::Blue => [40, 80, 220],
            Self::Purple => [140, 50, 195],
            Self::Pink => [245, 105, 195],
        }
    }

    /// Whether the other is the same or has the next hue. Two objects of one scene never are that close.
    pub fn is_near(self, other: Self) -> bool {
        let count = Self::ALL.len();
        let distance = (self as usize + count - other as usize) % count;
        distance <= 1 || distance == count - 1
    }
}

named! {
    /// How large an object is.
    Size {
        /// 11 of 64 pixels across, as a disc.
        Small = "small",
        /// 16 of 64.
        Medium = "medium",
        /// 23 of 64.
        Large = "large",
    }
}

impl Size {
    /// Radius of the disc of the same area, in sides of a frame.
    pub fn radius(self) -> f32 {
        match self {
            Self::Small => 5.5 / 64.0,
            Self::Medium => 8.0 / 64.0,
            Self::Large => 11.5 / 64.0,
        }
    }
}

named! {
    /// What an object does.
    Motion {
        /// It stays where it is.
        Still = "still",
        /// It moves to the left.
        Left = "left",
        /// It moves to the right.
        Right = "right",
        /// It moves up.
        Up = "up",
        /// It moves down.
        Down = "down",
        /// It moves up and to the left.
        UpLeft = "up-left",
        /// It moves up and to the right.
        UpRight = "up-right",
        /// It moves down and to the left.
        DownLeft = "down-left",
        /// It moves down and to the right.
        DownRight = "down-right",
        /// It goes round once.
        Circle = "circle",
        /// It jumps up twice.
        Bounce = "bounce",
        /// It becomes larger; its size is medium halfway.
        Grow = "grow",
        /// It becomes smaller; its size is medium halfway.
        Shrink = "shrink",
        /// It turns about itself by half a turn. At this pace, the tokenizer's frames show shapes of any symmetry turned
        /// by different angles.
        Spin = "spin",
        /// It is not there in the beginning.
        Appear = "appear",
        /// It is not there in the end.
        Vanish = "vanish",
    }
}

impl Motion {
    /// The four directions of which an object may take two, one after the other.
    pub const STRAIGHT: [Self; 4] = [Self::Left, Self::Right, Self::Up, Self::Down];

    /// The eight directions.
    pub const DIRECTIONS: [Self; 8] = [
        Self::Left,
        Self::Right,
        Self::Up,
        Self::Down,
        Self::UpLeft,
        Self::UpRight,
        Self::DownLeft,
        Self::DownRight,
    ];

    /// Where it leads, right and down, with a length of 1.
    pub fn direction(self) -> Option<[f32; 2]> {
        const HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
        Some(match self {
            Self::Left => [-1.0, 0.0],
            Self::Right => [1.0, 0.0],
            Self::Up => [0.0, -1.0],
            Self::Down => [0.0, 1.0],
            Self::UpLeft => [-HALF, -HALF],
            Self::UpRight => [HALF, -HALF],
            Self::DownLeft => [-HALF, HALF],
            Self::DownRight => [HALF, HALF],
            _ => return None,
        })
    }

    /// Whether it changes the size.
    pub fn scales(self) -> bool {
        matches!(self, Self::Grow | Self::Shrink)
    }
}

named! {
    /// The pattern behind the objects.
    Pattern {
        /// An even surface.
        Plain = "plain",
        /// 1/f noise.
        Cloudy = "cloudy",
        /// Fine noise.
        Sandy = "sandy",
        /// Stripes in one of four directions.
        Striped = "striped",
        /// A chessboard.
        Checked = "checked",
        /// Rows of dots.
        Dotted = "dotted",
        /// A wall of bricks.
        Brick = "brick",
        /// Wavy lines.
        Wavy = "wavy",
    }
}

/// What is in a clip of sprites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// One object or two. Two never touch, and their colours are not near.
    pub objects: Vec<Object>,
    /// What is behind them.
    pub background: Background,
    /// How it is filmed.
    pub camera: Camera,
}

/// An object. Lengths are in sides of the frame, to the right and down; times are in clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its shape.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// What it does, in the first half of the clip if there is `then`.
    pub motion: Motion,
    /// What it does in the second half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Motion>,
    /// Its centre in the beginning; for a circular motion, the centre of that.
    pub at: [f32; 2],
    /// How far it goes in a direction, how high it jumps, or the radius of its circle.
    pub reach: f32,
    /// When it appears or vanishes, or where its circle begins, in turns.
    pub moment: f32,
    /// Which way it turns or goes round.
    pub clockwise: bool,
}

/// What is behind the objects: a pattern of two nearly grey colours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// The pattern.
    pub pattern: Pattern,
    /// Mean brightness, in 0..=255.
    pub brightness: f32,
    /// How far the pattern goes from the mean.
    pub contrast: f32,
    /// What is added to red, and taken from blue.
    pub warmth: f32,
    /// Seed of the details of the pattern.
    pub seed: u32,
}

/// How a scene is filmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Camera {
    /// How far everything moves through the frame during the clip, in sides of the frame.
    pub pan: [f32; 2],
    /// Standard deviation of the noise of each value, in 0..=255.
    pub noise: f32,
}

/// An object at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pose {
    /// In sides of the frame.
    pub centre: [f32; 2],
    /// In sides of the frame.
    pub radius: f32,
    /// In radians, clockwise.
    pub angle: f32,
    /// From 0 to 1.
    pub opacity: f32,
}

impl Object {
    /// Whether no training sample has this shape in this colour do this.
    ///
    /// The rule leaves out an eighth: of each shape and motion, one colour.
    pub fn is_held_out(&self) -> bool {
        let motions = [Some(self.motion), self.then].into_iter().flatten();
        let mut numbers = motions
            .map(|motion| self.colour as usize + 3 * self.shape as usize + 5 * motion as usize);
        numbers.any(|number| number % Colour::ALL.len() == 0)
    }

    /// Where and how it is at a time, from 0 to 1.
    pub(super) fn pose(&self, time: f32) -> Pose {
        let turn = if self.clockwise { TAU } else { -TAU };
        let shown = ((time - self.moment) / 0.1).clamp(0.0, 1.0);
        let mut pose = Pose {
            centre: self.at,
            radius: self.size.radius(),
            angle: 0.0,
            opacity: 1.0,
        };
        let mut go = |[x, y]: [f32; 2], share: f32| {
            pose.centre[0] += x * self.reach * share;
            pose.centre[1] += y * self.reach * share;
        };
        match self.motion {
            Motion::Circle => {
                let (sin, cos) = (self.moment * TAU + turn * time).sin_cos();
                go([cos, sin], 1.0);
            }
            Motion::Bounce => go([0.0, -1.0], (TAU * time).sin().abs()),
            Motion::Grow => pose.radius *= 0.6 + 0.8 * time,
            Motion::Shrink => pose.radius *= 1.4 - 0.8 * time,
            Motion::Spin => pose.angle = turn / 2.0 * time,
            Motion::Appear => pose.opacity = shown,
            Motion::Vanish => pose.opacity = 1.0 - shown,
            _ => {
                let then = self.then.and_then(Motion::direction);
                let pace = if then.is_some() { 2.0 } else { 1.0 };
                if let Some(direction) = self.motion.direction() {
                    go(direction, (pace * time).min(1.0));
                }
                if let Some(direction) = then {
                    go(direction, (pace * time - 1.0).max(0.0));
                }
            }
        }
        pose
    }
}
