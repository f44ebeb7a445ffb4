//! What is said about a clip.

use super::draw::Draw;
use super::scene::{Object, Scene};
use super::texture::{Layer, Material, Texture};
use super::words::{Form, indefinite, noun, place, sentence};

impl Scene {
    /// A caption.
    pub(super) fn caption(&self, draw: &mut Draw) -> String {
        let told = match &self.objects[..] {
            [one, other] => two(one, other, draw),
            objects => match objects[0].then {
                Some(_) => sequence(&objects[0], draw),
                None => one(&objects[0], draw),
            },
        };
        if !draw.chance(0.4) {
            return sentence(&told);
        }
        let place = place(self.background.pattern, draw);
        match draw.chance(0.5) {
            true => sentence(&format!("{told} {place}")),
            false => sentence(&format!("{place}, {told}")),
        }
    }
}

fn one(object: &Object, draw: &mut Draw) -> String {
    let thing = indefinite(&noun(object, draw));
    let form = draw.below(7);
    let mut say = |form| object.motion.say(form, draw);
    match form {
        0 | 1 => format!("{thing} {}", say(Form::Third)),
        2 => format!("{thing} is {}", say(Form::Participle)),
        3 => format!("there is {thing} {}", say(Form::Participle)),
        4 => format!("we see {thing} {}", say(Form::Participle)),
        5 => format!("the clip shows {thing} that {}", say(Form::Third)),
        _ => format!("{thing} {}", say(Form::Participle)),
    }
}

fn sequence(object: &Object, draw: &mut Draw) -> String {
    let thing = indefinite(&noun(object, draw));
    let form = draw.below(5);
    let then = object.then.unwrap_or(object.motion);
    let first = object.motion.say(Form::Third, draw);
    match form {
        0 => format!(
            "{thing} first {first} and then {}",
            then.say(Form::Third, draw)
        ),
        1 => format!("{thing} {first}, then {}", then.say(Form::Third, draw)),
        2 => format!(
            "first {thing} {first}, then it {}",
            then.say(Form::Third, draw)
        ),
        3 => format!(
            "{thing} {first} before {}",
            then.say(Form::Participle, draw)
        ),
        _ => format!(
            "there is {thing} that {first} and then {}",
            then.say(Form::Third, draw)
        ),
    }
}

fn two(one: &Object, other: &Object, draw: &mut Draw) -> String {
    let (one, other) = match draw.chance(0.5) {
        true => (one, other),
        false => (other, one),
    };
    let [a, b] = [one, other].map(|object| indefinite(&noun(object, draw)));
    if one.motion == other.motion && draw.chance(0.7) {
        return match draw.below(3) {
            0 => format!("{a} and {b} both {}", one.motion.say(Form::Base, draw)),
            1 => format!("{a} and {b} are {}", one.motion.say(Form::Participle, draw)),
            _ => format!(
                "we see {a} and {b} {}",
                one.motion.say(Form::Participle, draw)
            ),
        };
    }
    let form = draw.below(5);
    let mut say = |form| [one, other].map(|object| object.motion.say(form, draw));
    match form {
        0 => {
            let [does, acts] = say(Form::Third);
            format!("{a} {does} while {b} {acts}")
        }
        1 => {
            let [does, acts] = say(Form::Third);
            format!("{a} {does} and {b} {acts}")
        }
        2 => {
            let [does, acts] = say(Form::Third);
            format!("as {a} {does}, {b} {acts}")
        }
        3 => {
            let [doing, acting] = say(Form::Participle);
            format!("there are two objects: {a} {doing} and {b} {acting}")
        }
        _ => {
            let [doing, acting] = say(Form::Participle);
            format!("we see {a} {doing} and {b} {acting}")
        }
    }
}

impl Texture {
    /// A caption, of the nearest layer and the farthest.
    pub(super) fn caption(&self) -> String {
        let [far, .., near] = &self.layers[..] else {
            return String::new();
        };
        sentence(&format!(
            "{} {} over {} that {}",
            material(near),
            movement(near),
            material(far),
            movement(far)
        ))
    }
}

fn material(layer: &Layer) -> &'static str {
    match layer.material {
        Material::Leaves => "leaves",
        Material::Clouds => "clouds",
    }
}

fn movement(layer: &Layer) -> &'static str {
    match layer {
        Layer { turn, .. } if *turn != 0.0 => "turn",
        Layer { zoom, .. } if *zoom > 1.0 => "come closer",
        Layer { zoom, .. } if *zoom < 1.0 => "go farther away",
        _ => "slide",
    }
}
