//! The words of the world: nouns for objects, and phrases for what they do.
//!
//! Captions are made of these, and [`claims`](super::claims) finds them again.

use super::draw::Draw;
use super::scene::{Motion, Object, Pattern, Size};

/// A form of a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// "move"
    Base,
    /// "moves"
    Third,
    /// "moving"
    Participle,
}

impl Form {
    pub const ALL: [Self; 3] = [Self::Base, Self::Third, Self::Participle];
}

/// A verb in its forms, in the order of [`Form`].
type Verb = [&'static str; 3];

const APPEAR: Verb = ["appear", "appears", "appearing"];
const BECOME: Verb = ["become", "becomes", "becoming"];
const BOUNCE: Verb = ["bounce", "bounces", "bouncing"];
const CIRCLE: Verb = ["circle", "circles", "circling"];
const CLIMB: Verb = ["climb", "climbs", "climbing"];
const COME: Verb = ["come", "comes", "coming"];
const DISAPPEAR: Verb = ["disappear", "disappears", "disappearing"];
const DRIFT: Verb = ["drift", "drifts", "drifting"];
const DROP: Verb = ["drop", "drops", "dropping"];
const FADE: Verb = ["fade", "fades", "fading"];
const FALL: Verb = ["fall", "falls", "falling"];
const FLOAT: Verb = ["float", "floats", "floating"];
const GET: Verb = ["get", "gets", "getting"];
const GLIDE: Verb = ["glide", "glides", "gliding"];
const GO: Verb = ["go", "goes", "going"];
const GROW: Verb = ["grow", "grows", "growing"];
const HOP: Verb = ["hop", "hops", "hopping"];
const JUMP: Verb = ["jump", "jumps", "jumping"];
const MOVE: Verb = ["move", "moves", "moving"];
const REST: Verb = ["rest", "rests", "resting"];
const RISE: Verb = ["rise", "rises", "rising"];
const ROTATE: Verb = ["rotate", "rotates", "rotating"];
const SHRINK: Verb = ["shrink", "shrinks", "shrinking"];
const SINK: Verb = ["sink", "sinks", "sinking"];
const SLIDE: Verb = ["slide", "slides", "sliding"];
const SPIN: Verb = ["spin", "spins", "spinning"];
const STAND: Verb = ["stand", "stands", "standing"];
const STAY: Verb = ["stay", "stays", "staying"];
const SWELL: Verb = ["swell", "swells", "swelling"];
const TRAVEL: Verb = ["travel", "travels", "travelling"];
const TURN: Verb = ["turn", "turns", "turning"];
const VANISH: Verb = ["vanish", "vanishes", "vanishing"];

/// A verb, and what follows it.
type Phrase = (Verb, &'static str);

impl Motion {
    /// Ways to say it. The first is that of answers.
    pub(super) fn phrases(self) -> &'static [Phrase] {
        match self {
            Self::Still => &[
                (STAY, "still"),
                (STAND, "still"),
                (REST, "in place"),
                (STAY, "in place"),
            ],
            Self::Left => &[
                (MOVE, "to the left"),
                (SLIDE, "left"),
                (DRIFT, "to the left"),
                (GLIDE, "left"),
                (TRAVEL, "to the left"),
                (GO, "from right to left"),
            ],
            Self::Right => &[
                (MOVE, "to the right"),
                (SLIDE, "right"),
                (DRIFT, "to the right"),
                (GLIDE, "right"),
                (TRAVEL, "to the right"),
                (GO, "from left to right"),
            ],
            Self::Up => &[
                (MOVE, "up"),
                (RISE, ""),
                (CLIMB, ""),
                (FLOAT, "up"),
                (GO, "up"),
                (DRIFT, "upwards"),
            ],
            Self::Down => &[
                (MOVE, "down"),
                (FALL, ""),
                (SINK, ""),
                (DROP, ""),
                (GO, "down"),
                (DRIFT, "downwards"),
            ],
            Self::UpLeft => &[
                (MOVE, "up and to the left"),
                (DRIFT, "up to the left"),
                (GLIDE, "up and left"),
                (RISE, "to the left"),
            ],
            Self::UpRight => &[
                (MOVE, "up and to the right"),
                (DRIFT, "up to the right"),
                (GLIDE, "up and right"),
                (RISE, "to the right"),
            ],
            Self::DownLeft => &[
                (MOVE, "down and to the left"),
                (DRIFT, "down to the left"),
                (GLIDE, "down and left"),
                (SINK, "to the left"),
            ],
            Self::DownRight => &[
                (MOVE, "down and to the right"),
                (DRIFT, "down to the right"),
                (GLIDE, "down and right"),
                (SINK, "to the right"),
            ],
            Self::Circle => &[
                (MOVE, "in a circle"),
                (GO, "round in a circle"),
                (CIRCLE, "around"),
            ],
            Self::Bounce => &[
                (BOUNCE, "up and down"),
                (HOP, "up and down"),
                (JUMP, "up and down"),
                (BOUNCE, ""),
            ],
            Self::Grow => &[(GROW, ""), (GET, "bigger"), (BECOME, "larger"), (SWELL, "")],
            Self::Shrink => &[(SHRINK, ""), (GET, "smaller"), (BECOME, "smaller")],
            Self::Spin => &[
                (SPIN, ""),
                (SPIN, "in place"),
                (TURN, "around"),
                (ROTATE, "on the spot"),
            ],
            Self::Appear => &[(APPEAR, ""), (FADE, "into view"), (COME, "into view")],
            Self::Vanish => &[(VANISH, ""), (DISAPPEAR, ""), (FADE, "away"), (FADE, "out")],
        }
    }

    /// One of the ways to say it.
    pub(super) fn say(self, form: Form, draw: &mut Draw) -> String {
        said(draw.one(self.phrases()), form)
    }

    /// As answers say it.
    pub(super) fn plainly(self) -> String {
        said(self.phrases()[0], Form::Third)
    }

    /// Where it leads, if anywhere, as answers say it.
    pub(super) fn whither(self) -> Option<&'static str> {
        self.direction().map(|_| self.phrases()[0].1)
    }
}

/// A phrase with its verb in a form.
pub(super) fn said((verb, rest): Phrase, form: Form) -> String {
    let verb = verb[form as usize];
    match rest {
        "" => verb.to_owned(),
        rest => format!("{verb} {rest}"),
    }
}

impl Size {
    /// Adjectives that say it.
    pub(super) fn adjectives(self) -> &'static [&'static str] {
        match self {
            Self::Small => &["small", "little"],
            Self::Medium => &["medium"],
            Self::Large => &["large", "big"],
        }
    }
}

/// An object, such as "small red circle". Its size is mostly left out, and always where it changes.
pub(super) fn noun(object: &Object, draw: &mut Draw) -> String {
    let (colour, shape) = (object.colour.name(), object.shape.name());
    match !object.motion.scales() && draw.chance(0.45) {
        true => format!("{} {colour} {shape}", draw.one(object.size.adjectives())),
        false => format!("{colour} {shape}"),
    }
}

/// With "a" or "an" before it.
pub(super) fn indefinite(noun: &str) -> String {
    let article = match noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        true => "an",
        false => "a",
    };
    format!("{article} {noun}")
}

/// Where a background makes things happen, such as "on a striped floor".
pub(super) fn place(pattern: Pattern, draw: &mut Draw) -> String {
    let place = draw.one(&[
        "on a * background",
        "in front of a * wall",
        "over a * floor",
        "on a * floor",
    ]);
    place.replace('*', pattern.name())
}

/// Makes a sentence of words: a capital in the beginning and a full stop in the end.
pub(super) fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let rest = letters.as_str();
    first.into_iter().chain(rest.chars()).chain(['.']).collect()
}
