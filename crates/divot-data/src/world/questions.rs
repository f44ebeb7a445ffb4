//! Questions about a scene, with their answers.

use super::draw::Draw;
use super::scene::{Colour, Motion, Object, Scene, Shape, Size};
use super::words::{indefinite, sentence};
use crate::dataset::Turn;

/// Most questions of a mixed kind.
const MOST: usize = 3;

/// Whether questions have choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// The answer is a few words.
    Open,
    /// Four choices, of which the answer is the letter.
    Choice,
    /// Either, and three questions at most: enough for training.
    Any,
}

/// What is asked, the right answer, and wrong ones. There are none where guessing would be easy.
struct Quiz {
    question: String,
    right: String,
    wrong: Vec<String>,
}

impl Quiz {
    fn new(question: String, right: impl Into<String>) -> Self {
        Self {
            question,
            right: right.into(),
            wrong: Vec::new(),
        }
    }

    /// With all other answers of a kind as wrong ones.
    fn among(mut self, answers: impl IntoIterator<Item = String>) -> Self {
        self.wrong = answers.into_iter().collect();
        self.wrong.retain(|answer| *answer != self.right);
        self
    }

    fn turn(mut self, asking: Asking, draw: &mut Draw) -> Turn {
        let is_open = match asking {
            Asking::Open => true,
            Asking::Choice => false,
            Asking::Any => self.wrong.len() < 3 || draw.chance(0.5),
        };
        if is_open {
            return Turn {
                question: self.question,
                answer: sentence(&self.right),
            };
        }
        draw.shuffle(&mut self.wrong);
        let mut choices = self.wrong;
        choices.truncate(3);
        let place = draw.below(4);
        choices.insert(place, self.right);
        let letters = ["A", "B", "C", "D"];
        let lines = letters.iter().zip(&choices);
        let lines: String = lines
            .map(|(letter, choice)| format!("\n{letter}. {choice}"))
            .collect();
        Turn {
            question: format!("{}{lines}\nAnswer with the letter.", self.question),
            answer: letters[place].to_owned(),
        }
    }
}

impl Scene {
    /// Questions, each of another kind, in random order.
    ///
    /// Choices are drawn so that nothing but the clip tells which is right. How many objects there are is therefore
    /// only asked openly: it is one or two.
    pub(super) fn questions(&self, asking: Asking, draw: &mut Draw) -> Vec<Turn> {
        let mut quizzes = Vec::new();
        let object = &self.objects[draw.below(self.objects.len())];
        quizzes.push(self.what(object, draw));
        quizzes.extend(self.colour(object, draw));
        quizzes.push(self.count(draw));
        quizzes.extend(self.size(object, draw));
        quizzes.extend(self.whither(object, draw));
        quizzes.push(self.does(object, draw));
        quizzes.retain(|quiz| asking != Asking::Choice || quiz.wrong.len() >= 3);
        draw.shuffle(&mut quizzes);
        if asking == Asking::Any {
            quizzes.truncate(MOST);
        }
        let turns = quizzes.into_iter().map(|quiz| quiz.turn(asking, draw));
        turns.collect()
    }

    /// The object in words that no other fits, without its colour.
    fn colourless(&self, object: &Object) -> Option<String> {
        let shape = object.shape.name();
        let alike = |other: &&Object| other.shape == object.shape;
        match self.objects.iter().filter(alike).count() {
            1 => Some(format!("the {shape}")),
            _ => None,
        }
    }

    /// The object in words that no other fits. Colours always differ.
    fn exactly(object: &Object, draw: &mut Draw) -> String {
        let (colour, shape) = (object.colour.name(), object.shape.name());
        match draw.chance(0.5) {
            true => format!("the {colour} {shape}"),
            false => format!("the {colour} object"),
        }
    }

    fn what(&self, object: &Object, draw: &mut Draw) -> Quiz {
        if draw.chance(0.5) {
            let question = format!("What shape is the {} object?", object.colour.name());
            let shapes = Shape::ALL.map(|shape| indefinite(shape.name()));
            return Quiz::new(question, indefinite(object.shape.name())).among(shapes);
        }
        let question = draw
            .one(&["What is in the clip?", "What do you see?"])
            .to_owned();
        let things: Vec<String> = self.objects.iter().map(look).collect();
        if let [one, other] = &things[..] {
            return Quiz::new(question, format!("{one} and {other}"));
        }
        // Wrong ones share the colour or the shape with each other as often as with the right one.
        let colours = [object.colour, other(&Colour::ALL, object.colour, draw)];
        let shapes = [object.shape, other(&Shape::ALL, object.shape, draw)];
        let looks = colours.into_iter().flat_map(|colour| {
            shapes.map(|shape| indefinite(&format!("{} {}", colour.name(), shape.name())))
        });
        Quiz::new(question, things[0].clone()).among(looks)
    }

    fn colour(&self, object: &Object, draw: &mut Draw) -> Option<Quiz> {
        let thing = match self.objects.len() {
            1 if draw.chance(0.5) => "the object".to_owned(),
            _ => self.colourless(object)?,
        };
        let question = match draw.chance(0.5) {
            true => format!("What colour is {thing}?"),
            false => format!("Which colour does {thing} have?"),
        };
        let colours = Colour::ALL.map(|colour| colour.name().to_owned());
        Some(Quiz::new(question, object.colour.name()).among(colours))
    }

    fn count(&self, draw: &mut Draw) -> Quiz {
        let question = draw.one(&[
            "How many objects are there?",
            "How many objects do you see?",
            "How many things are in the clip?",
        ]);
        let right = ["one", "two"][self.objects.len() - 1];
        Quiz::new(question.to_owned(), right)
    }

    fn size(&self, object: &Object, draw: &mut Draw) -> Option<Quiz> {
        if object.motion.scales() {
            return None;
        }
        let question = format!("How big is {}?", Self::exactly(object, draw));
        let sizes = Size::ALL.map(|size| size.name().to_owned());
        Some(Quiz::new(question, object.size.name()).among(sizes))
    }

    fn whither(&self, object: &Object, draw: &mut Draw) -> Option<Quiz> {
        let right = object.motion.whither().filter(|_| object.then.is_none())?;
        let thing = Self::exactly(object, draw);
        let question = match draw.chance(0.5) {
            true => format!("Where does {thing} go?"),
            false => format!("In which direction does {thing} move?"),
        };
        let directions = Motion::DIRECTIONS.into_iter().filter_map(Motion::whither);
        Some(Quiz::new(question, right).among(directions.map(str::to_owned)))
    }

    fn does(&self, object: &Object, draw: &mut Draw) -> Quiz {
        let thing = Self::exactly(object, draw);
        let does = |motion: Motion| format!("it {}", motion.plainly());
        if let Some(then) = object.then {
            let (question, motion) = match draw.chance(0.5) {
                true => (format!("What does {thing} do first?"), object.motion),
                false => (format!("What does {thing} do last?"), then),
            };
            return Quiz::new(question, does(motion)).among(Motion::STRAIGHT.map(does));
        }
        let question = format!("What does {thing} do?");
        let mut motions = Motion::ALL.to_vec();
        motions.retain(|&motion| motion != Motion::Spin || object.shape.can_spin());
        Quiz::new(question, does(object.motion)).among(motions.into_iter().map(does))
    }
}

/// An object by its looks, such as "a red circle".
fn look(object: &Object) -> String {
    indefinite(&format!("{} {}", object.colour.name(), object.shape.name()))
}

/// Another one than this.
fn other<T: Copy + PartialEq>(all: &[T], not: T, draw: &mut Draw) -> T {
    loop {
        let one = draw.one(all);
        if one != not {
            return one;
        }
    }
}
