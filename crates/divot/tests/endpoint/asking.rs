//! What is sent, in which order answers come, and how many are asked for at a time.

use std::cell::Cell;
use std::io::Cursor;
use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use divot::endpoint::{
    Answer, Endpoint, EndpointError, Event, Format, Image, Prices, Request, estimate, run,
};
use image::{DynamicImage, ImageFormat};
use serde_json::json;

use crate::stub::{Deed, KEY, Kept, Stub, ask, collect, question, questions, usage};

fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::new_rgb8(width, height)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn a_request_has_texts_images_and_options() {
    let stub = Stub::start(|_| Deed::says("{\"is\": \"seen\"}"));
    let (png, jpeg) = (
        picture(3, 2, ImageFormat::Png),
        picture(8, 8, ImageFormat::Jpeg),
    );
    let schema = json!({ "type": "object" });
    let request = Request::new(77)
        .system("Be short.")
        .text("What is this?")
        .image(Image::new(png.clone()).unwrap())
        .image(Image::new(jpeg.clone()).unwrap())
        .temperature(0.5)
        .seed(7)
        .format(Format::Schema {
            name: "seen".to_owned(),
            schema: schema.clone(),
        });
    let (answer, _) = ask(&stub.endpoint(), request);
    let answer = answer.unwrap();
    assert_eq!(answer.json::<serde_json::Value>().unwrap()["is"], "seen");
    assert_eq!(answer.usage, Some(usage(10, 3)));
    assert!(!answer.cached && !answer.is_cut());

    let asked = &stub.asked()[0];
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.authorization, Some(format!("Bearer {KEY}")));
    let url = |mime, bytes| format!("data:{mime};base64,{}", STANDARD.encode(bytes));
    let expected = json!({
        "model": "a-model",
        "messages": [
            { "role": "system", "content": "Be short." },
            { "role": "user", "content": [
                { "type": "text", "text": "What is this?" },
                { "type": "image_url", "image_url": { "url": url("image/png", png) } },
                { "type": "image_url", "image_url": { "url": url("image/jpeg", jpeg) } },
            ] },
        ],
        "max_tokens": 77,
        "temperature": 0.5,
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": { "name": "seen", "strict": true, "schema": schema },
        },
    });
    assert_eq!(asked.body, expected);
}

#[test]
fn a_plain_question_has_nothing_else() {
    let stub = Stub::echo();
    let endpoint = Endpoint::new(&stub.address, "a-model").unwrap();
    ask(&endpoint, question("why?")).0.unwrap();
    ask(&endpoint.with_completion_limit(true), question("why?"))
        .0
        .unwrap();
    let asked = stub.asked();
    let messages = json!([{ "role": "user", "content": "why?" }]);
    let expected = json!({ "model": "a-model", "messages": messages, "max_tokens": 50 });
    assert_eq!(asked[0].body, expected);
    assert_eq!(asked[0].authorization, None);
    assert_eq!(asked[1].body["max_completion_tokens"], 50);
    assert_eq!(asked[1].body.get("max_tokens"), None);
}

#[test]
fn only_png_and_jpeg_are_images() {
    for bytes in [
        Vec::new(),
        b"GIF89a\x01\0\x01\0".to_vec(),
        b"text".to_vec(),
        picture(3, 2, ImageFormat::Png)[..20].to_vec(),
    ] {
        let error = Image::new(bytes).err().unwrap().to_string();
        assert!(
            error.contains("PNG nor JPEG") && !error.contains('\n'),
            "{error}"
        );
    }
    let image = Image::new(picture(3, 2, ImageFormat::Jpeg)).unwrap();
    assert_eq!(image.size(), (3, 2));
}

#[test]
fn the_environment_names_address_and_key() {
    let lookup = |address: &'static str, key: &'static str| {
        Endpoint::from_lookup("m", move |name| match name {
            "OPENAI_BASE_URL" => Some(address.to_owned()),
            "OPENAI_API_KEY" => Some(key.to_owned()),
            _ => None,
        })
    };
    let endpoint = lookup("", "").unwrap();
    assert_eq!(endpoint.address(), "https://api.openai.com/v1");
    let endpoint = lookup(" http://here:8000/v1/chat/completions ", KEY).unwrap();
    assert_eq!(endpoint.address(), "http://here:8000/v1");
    assert!(!format!("{endpoint:?}").contains(KEY));
    for odd in [
        "here/v1",
        "ftp://here/v1",
        "http://",
        "http://user:secret@here/v1",
        "http://here/v1?key=secret",
        "http://here/v1#secret",
    ] {
        let error = lookup(odd, KEY).unwrap_err();
        assert!(matches!(error, EndpointError::Address), "{odd}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
    let error = lookup("http://here", "two words").unwrap_err();
    assert!(matches!(error, EndpointError::Key));
    assert!(!error.to_string().contains("two words"));
    assert!(matches!(
        Endpoint::new("http://here", " "),
        Err(EndpointError::NoModel)
    ));
}

/// The first question is answered last: only when the others of the window were.
#[test]
fn answers_come_in_the_order_of_jobs() {
    let (stub, kept) = (
        Stub::start(|asked| match (asked.text(), asked.before) {
            ("q0" | "q5", 0..4) => Deed::status(500, "not yet"),
            (text, _) => Deed::says(text),
        }),
        Kept::new(),
    );
    let endpoint = stub
        .endpoint()
        .with_retries(9, std::time::Duration::from_millis(1));
    let (results, summary) = collect(&endpoint, &mut kept.open(), questions(40));
    for (index, (job, result)) in results.iter().enumerate() {
        assert_eq!(*job, index);
        assert_eq!(result.as_ref().unwrap().text, format!("q{index}"));
    }
    let summary = summary.unwrap();
    assert_eq!(
        (results.len(), summary.answered, summary.requests),
        (40, 40, 48)
    );
    assert_eq!(summary.usage, usage(400, 120));
}

#[test]
fn as_many_requests_as_allowed_are_there_at_once() {
    for parallel in [1, 3] {
        let (stub, kept) = (Stub::start(move |_| Deed::Gather(parallel)), Kept::new());
        let endpoint = stub.endpoint().with_parallel(parallel);
        let (_, summary) = collect(&endpoint, &mut kept.open(), questions(12));
        assert_eq!(summary.unwrap().answered, 12);
        assert_eq!(stub.most(), parallel);
    }
}

/// Jobs without end, of which the first is never answered: few are drawn, and stopping is possible.
#[test]
fn jobs_are_drawn_when_there_is_room() {
    let stub = Stub::start(|asked| match asked.text() {
        "q0" => Deed::Hang,
        text => Deed::says(text),
    });
    let (kept, drawn) = (Kept::new(), Cell::new(0));
    let jobs = (0..).map(|index| {
        drawn.set(index + 1);
        assert!(index < 1000, "jobs are drawn without end");
        (index, question(format!("q{index}")))
    });
    let mut before = 0;
    let result = run(&stub.endpoint(), &mut kept.open(), jobs, |event, _| {
        assert!(matches!(event, Event::Waiting), "{event:?}");
        // Nothing moves any more.
        let is_still = drawn.get() > 4 && drawn.get() == before;
        before = drawn.get();
        match is_still {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    assert!(matches!(result, Err(EndpointError::Stopped)));
    assert!(drawn.get() <= 16 * 4, "{} jobs were drawn", drawn.get());
    stub.release();
}

#[test]
fn a_callback_stops_the_run() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    let mut done = Vec::new();
    let result = run(
        &stub.endpoint(),
        &mut kept.open(),
        questions(500),
        |event, summary| {
            if let Event::Done { job, .. } = event {
                done.push(job);
                assert_eq!(summary.answered, done.len());
            }
            match done.len() {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        },
    );
    assert!(matches!(result, Err(EndpointError::Stopped)));
    assert_eq!(done, [0, 1, 2]);
    assert!(stub.asked().len() < 500);
}

#[test]
fn cost_is_known_before() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    let (endpoint, mut cache) = (stub.endpoint(), kept.open());
    let image = Image::new(picture(256, 256, ImageFormat::Jpeg)).unwrap();
    let jobs = || {
        [
            question("a".repeat(40)),
            question("b".repeat(40)),
            question("b".repeat(40)),
            question("c".repeat(40)).image(image.clone()),
        ]
    };
    let any = |_: &Answer| Ok(());
    let first = estimate(&endpoint, &cache, jobs(), any).unwrap();
    assert_eq!((first.jobs, first.cached), (4, 1));
    assert_eq!(first.usage, usage(14 + 14 + 14 + 255, 150));
    collect(&endpoint, &mut cache, [(0, jobs()[0].clone())])
        .1
        .unwrap();
    let then = estimate(&endpoint, &cache, jobs(), any).unwrap();
    assert_eq!((then.jobs, then.cached), (4, 2));
    assert_eq!(then.usage, usage(14 + 14 + 255, 100));
    let prices = Prices {
        input: 1e6,
        output: 0.0,
    };
    assert_eq!(prices.of(then.usage), 283.0);
    // An answer of no use is asked for again.
    let none = |_: &Answer| Err::<(), _>("no use".to_owned());
    let again = estimate(&endpoint, &cache, jobs(), none).unwrap();
    assert_eq!((again.usage, again.cached), (first.usage, first.cached));
}
