//! What a text claims: the inverse of captions.

use super::scene::{Colour, Motion, Object, Shape, Size};
use super::words::{Form, said};

/// What a text says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
    /// Its size, if the text says it.
    pub size: Option<Size>,
    /// What it does, in order.
    pub motions: Vec<Motion>,
}

impl Claim {
    /// Whether all that is said is true of an object, and what it does is said.
    pub fn is_true_of(&self, object: &Object) -> bool {
        let does = [Some(object.motion), object.then];
        self.colour == object.colour
            && self.shape == object.shape
            && self.size.is_none_or(|size| size == object.size)
            && self.motions.iter().eq(does.iter().flatten())
    }
}

/// Finds the objects of a text, each with what is said of it.
///
/// An object is a colour before a shape. What follows up to the next object is what it does; where nothing does, it is
/// what the next object does ("both").
pub fn claims(text: &str) -> Vec<Claim> {
    let words = words(text);
    let mut claims: Vec<Claim> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if let Some(claim) = object_at(&words, at) {
            claims.push(claim);
            at += 2;
        } else if let Some((motion, length)) = motion_at(&words[at..]) {
            if let Some(claim) = claims.last_mut() {
                claim.motions.push(motion);
            }
            at += length;
        } else {
            at += 1;
        }
    }
    for index in (1..claims.len()).rev() {
        if claims[index - 1].motions.is_empty() {
            claims[index - 1].motions = claims[index].motions.clone();
        }
    }
    claims
}

/// What a text says is done, whoever does it, in order.
pub fn motions(text: &str) -> Vec<Motion> {
    let words = words(text);
    let mut motions = Vec::new();
    let mut at = 0;
    while at < words.len() {
        match motion_at(&words[at..]) {
            Some((motion, length)) => {
                motions.push(motion);
                at += length;
            }
            None => at += 1,
        }
    }
    motions
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn object_at(words: &[String], at: usize) -> Option<Claim> {
    let [colour, shape] = [words.get(at)?, words.get(at + 1)?];
    let before = at.checked_sub(1).map(|before| &*words[before]);
    let is_size = |size: &Size| before.is_some_and(|word| size.adjectives().contains(&word));
    Some(Claim {
        colour: Colour::ALL.into_iter().find(|c| c.name() == colour)?,
        shape: Shape::ALL.into_iter().find(|s| s.name() == shape)?,
        size: Size::ALL.into_iter().find(is_size),
        motions: Vec::new(),
    })
}

/// The longest phrase that the words begin with, and how many words it has.
fn motion_at(words: &[String]) -> Option<(Motion, usize)> {
    let mut longest = None;
    for motion in Motion::ALL {
        for &phrase in motion.phrases() {
            for form in Form::ALL {
                let said = said(phrase, form);
                let length = said.split(' ').count();
                let begins = words.len() >= length && said.split(' ').eq(words[..length].iter());
                if begins && longest.is_none_or(|(_, longest)| length > longest) {
                    longest = Some((motion, length));
                }
            }
        }
    }
    longest
}
