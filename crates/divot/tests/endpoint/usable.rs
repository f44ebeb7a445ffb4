//! Answers that are of no use are asked for again.

use std::ops::ControlFlow;

use divot::endpoint::{Answer, Asked, EndpointError, ask};

use crate::stub::{Deed, Kept, Stub, question};

fn read(answer: &Answer) -> Result<usize, String> {
    let number = answer.text.parse();
    number.map_err(|_| format!("{:?} is no number", answer.text))
}

/// A number is a word at first, one is only ever a word, and the network fails once.
fn stub() -> Stub {
    Stub::start(|asked| {
        let (text, seed) = (asked.text(), asked.body["seed"].as_u64());
        match (text, seed) {
            ("q3", None) => Deed::says("three"),
            ("q5", None | Some(1)) => Deed::says("five"),
            ("q7", _) => Deed::says("seven"),
            ("q8", _) if asked.before == 0 => Deed::Cut,
            (text, _) => Deed::says(&text[1..]),
        }
    })
}

#[test]
fn what_is_of_no_use_is_asked_again_with_another_seed() {
    let (stub, kept) = (stub(), Kept::new());
    let collect = || {
        let mut found = Vec::new();
        let asked = ask::<_, _, EndpointError>(
            &stub.endpoint(),
            &mut kept.open(),
            0..10,
            |number| Ok(question(format!("q{number}"))),
            read,
            |event| {
                if let Asked::Done { job, result } = event {
                    found.push((job, result));
                }
                ControlFlow::Continue(())
            },
        );
        (found, asked.unwrap())
    };

    let (found, summary) = collect();
    let order: Vec<usize> = found.iter().map(|(job, _)| *job).collect();
    assert_eq!(order, [0, 1, 2, 4, 6, 8, 9, 3, 5, 7]);
    for (job, result) in &found {
        match job {
            7 => {
                let failure = result.as_ref().unwrap_err();
                assert_eq!(failure.reason, "\"seven\" is no number");
            }
            _ => assert_eq!(result.as_ref().unwrap(), &(*job, false)),
        }
    }
    assert_eq!(
        (summary.answered, summary.cached, summary.failed),
        (9, 0, 1)
    );
    // Ten, one more for the network, three and two in the later rounds.
    assert_eq!((summary.requests, stub.asked().len()), (16, 16));

    // All else is known now. For what is of no use, the next run asks again.
    let (again, summary) = collect();
    assert_eq!(
        (summary.answered, summary.cached, summary.failed),
        (0, 9, 1)
    );
    assert_eq!((summary.requests, stub.asked().len()), (3, 19));
    assert_eq!(again[8], (5, Ok((5, true))));
}

#[test]
fn a_request_that_cannot_be_made_ends_it() {
    let (stub, kept) = (stub(), Kept::new());
    let mut found = 0;
    let asked = ask(
        &stub.endpoint(),
        &mut kept.open(),
        0..10,
        |number| match number {
            2 => Err(EndpointError::NoModel),
            number => Ok(question(format!("q{number}"))),
        },
        read,
        |event| {
            found += usize::from(matches!(event, Asked::Done { .. }));
            ControlFlow::Continue(())
        },
    );
    assert!(matches!(asked, Err(EndpointError::NoModel)));
    assert_eq!((found, stub.asked().len()), (2, 2));
}

#[test]
fn it_can_be_stopped() {
    let (stub, kept) = (stub(), Kept::new());
    let asked = ask::<_, _, EndpointError>(
        &stub.endpoint(),
        &mut kept.open(),
        0..10,
        |number| Ok(question(format!("q{number}"))),
        read,
        |_| ControlFlow::Break(()),
    );
    assert!(matches!(asked, Err(EndpointError::Stopped)));
}
