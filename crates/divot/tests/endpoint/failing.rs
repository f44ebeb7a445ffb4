//! What is retried, what fails a job, and what ends a run.

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::time::Duration;

use divot::endpoint::{Endpoint, EndpointError, Event, Format, run};
use serde_json::json;

use crate::stub::{Deed, KEY, Kept, Stub, ask, chat, collect, question, questions, usage};

/// Every fifth question fails at first, each in another way.
#[test]
fn a_fifth_of_the_calls_may_fail() {
    let stub = Stub::start(|asked| {
        let index: usize = asked.text()[1..].parse().unwrap();
        if !index.is_multiple_of(5) || asked.before > 0 {
            return Deed::says(&format!("re: {index}"));
        }
        match index / 5 {
            0 => Deed::status(500, "oh"),
            1 => Deed::Reply(429, "Retry-After: 0.001\r\n", "slowly".to_owned()),
            2 => Deed::Cut,
            3 => Deed::CutInside,
            4 => Deed::Reply(200, "", "{\"choices\": [".to_owned()),
            5 => Deed::Reply(200, "", "<html>Hello</html>".to_owned()),
            6 => Deed::Reply(200, "", json!({ "choices": [] }).to_string()),
            7 => Deed::says("  "),
            8 => Deed::Reply(
                200,
                "",
                json!({ "error": { "message": "upstream" } }).to_string(),
            ),
            9 => Deed::Reply(
                408,
                "Retry-After: Thu, 01 Jan 2037 00:00:00 GMT\r\n",
                String::new(),
            ),
            10 => Deed::status(409, "conflict"),
            _ => Deed::status(503, "overloaded"),
        }
    });
    let kept = Kept::new();
    let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(60));
    for (index, (job, result)) in results.iter().enumerate() {
        assert_eq!(*job, index);
        assert_eq!(result.as_ref().unwrap().text, format!("re: {index}"));
    }
    let summary = summary.unwrap();
    assert_eq!(
        (results.len(), summary.answered, summary.failed),
        (60, 60, 0)
    );
    assert_eq!((summary.requests, stub.asked().len()), (72, 72));
    // The empty answer was paid for too.
    assert_eq!(summary.usage, usage(610, 183));
    assert_eq!(summary.uncounted, 5);
}

#[test]
fn what_fails_too_often_has_a_reason() {
    for (deed, reason) in [
        (
            Deed::status(500, "the roof\nburns"),
            "HTTP 500: the roof burns",
        ),
        (Deed::Reply(503, "", "<html>".to_owned()), "HTTP 503"),
        (Deed::Cut, "the connection failed: "),
        (Deed::CutInside, "the connection failed: "),
        (Deed::says(""), "the answer is empty"),
        (Deed::Hang, "the connection failed: timeout"),
    ] {
        let timeout = match deed {
            Deed::Hang => Duration::from_millis(200),
            _ => Duration::from_secs(60),
        };
        let stub = Stub::start(move |_| deed.clone());
        let endpoint = stub.endpoint().with_timeout(timeout);
        let (result, requests) = ask(&endpoint, question("why?"));
        let failure = result.unwrap_err();
        assert!(failure.reason.starts_with(reason), "{failure}");
        assert_eq!((failure.tries, requests), (3, 3), "{failure}");
        stub.release();
    }
}

#[test]
fn other_refusals_fail_one_job_at_once() {
    let (stub, kept) = (
        Stub::start(|asked| match asked.text() {
            "q1" => Deed::status(400, "this image is too large"),
            "q2" => Deed::Reply(422, "", json!({ "detail": "no such option" }).to_string()),
            "q3" => Deed::Reply(413, "", "x".repeat(1 << 20)),
            text => Deed::says(text),
        }),
        Kept::new(),
    );
    let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(5));
    let reason = |index: usize| results[index].1.as_ref().unwrap_err().reason.clone();
    assert_eq!(reason(1), "HTTP 400: this image is too large");
    assert_eq!(reason(2), "HTTP 422: no such option");
    assert_eq!(reason(3), "HTTP 413");
    let summary = summary.unwrap();
    assert_eq!(
        (summary.answered, summary.failed, summary.requests),
        (2, 3, 5)
    );
}

#[test]
fn answers_without_hope_are_not_retried() {
    let reply = |message: serde_json::Value, finish: &str| {
        let choice = json!({ "message": message, "finish_reason": finish });
        Deed::Reply(200, "", json!({ "choices": [choice] }).to_string())
    };
    for (deed, reason) in [
        (
            reply(json!({ "content": null, "refusal": "I will not." }), "stop"),
            "the model refuses: I will not.",
        ),
        (
            reply(json!({ "content": "" }), "length"),
            "allow it more tokens",
        ),
        (
            reply(json!({ "content": null }), "content_filter"),
            "filtered",
        ),
    ] {
        let stub = Stub::start(move |_| deed.clone());
        let (result, requests) = ask(&stub.endpoint(), question("why?"));
        let failure = result.unwrap_err();
        assert!(failure.reason.contains(reason), "{failure}");
        assert_eq!(requests, 1);
    }
    let stub = Stub::start(move |_| reply(json!({ "content": "half a sen" }), "length"));
    assert!(ask(&stub.endpoint(), question("why?")).0.unwrap().is_cut());
}

#[test]
fn json_that_was_asked_for_must_be_json() {
    let stub = Stub::start(|asked| match asked.before {
        0 => Deed::says("Sure! {}"),
        _ => Deed::says("{\"dynamic\": true}"),
    });
    let (result, requests) = ask(&stub.endpoint(), question("why?").format(Format::Json));
    assert_eq!(result.unwrap().text, "{\"dynamic\": true}");
    assert_eq!(requests, 2);
    assert_eq!(
        stub.asked()[0].body["response_format"],
        json!({ "type": "json_object" })
    );
    // Otherwise any text will do.
    let stub = Stub::start(|_| Deed::says("Sure! {}"));
    assert_eq!(ask(&stub.endpoint(), question("why?")).1, 1);
}

/// The endpoint asks for an hour. It is not asked again meanwhile, and the run can be stopped.
#[test]
fn a_wait_that_is_asked_for_is_kept_and_can_be_stopped() {
    let (stub, kept) = (
        Stub::start(|_| Deed::Reply(429, "Retry-After: 3600\r\n", String::new())),
        Kept::new(),
    );
    let mut calls = 0;
    let result = run(
        &stub.endpoint(),
        &mut kept.open(),
        questions(1),
        |event, _| {
            assert!(matches!(event, Event::Waiting), "{event:?}");
            calls += usize::from(!stub.asked().is_empty());
            match calls {
                5 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        },
    );
    assert!(matches!(result, Err(EndpointError::Stopped)));
    assert_eq!(stub.asked().len(), 1);
}

#[test]
fn what_concerns_all_ends_the_run() {
    let quota = json!({ "error": { "message": "no money", "code": "insufficient_quota" } });
    for (deed, says) in [
        (
            Deed::status(401, "unknown key"),
            "refuses the key (HTTP 401); set OPENAI_API_KEY",
        ),
        (
            Deed::status(403, "not you"),
            "refuses the key (HTTP 403); set OPENAI_API_KEY",
        ),
        (
            Deed::status(404, "no a-model here"),
            "no model \"a-model\" (HTTP 404: no a-model here); name one",
        ),
        (Deed::Reply(405, "", String::new()), "(HTTP 405); name one"),
        (
            Deed::status(402, "pay"),
            "wants to be paid first (HTTP 402: pay); add credit",
        ),
        (
            Deed::Reply(429, "", quota.to_string()),
            "(HTTP 429: no money); add credit",
        ),
        (
            Deed::Reply(301, "Location: http://127.0.0.1:1/\r\n", String::new()),
            "a redirection",
        ),
    ] {
        let (stub, kept) = (Stub::start(move |_| deed.clone()), Kept::new());
        let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(100));
        let error = summary.unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains(&stub.address),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
        assert!(results.is_empty());
        assert!(stub.asked().len() <= 8, "{} requests", stub.asked().len());
    }
    let stub = Stub::start(|_| Deed::status(401, "who are you?"));
    let endpoint = Endpoint::new(&stub.address, "a-model").unwrap();
    let (_, summary) = collect(&endpoint, &mut Kept::new().open(), questions(1));
    let error = summary.unwrap_err().to_string();
    assert!(
        error.ends_with("wants a key (HTTP 401); set OPENAI_API_KEY"),
        "{error}"
    );
}

#[test]
fn an_endpoint_that_is_not_there_ends_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let endpoint = Endpoint::new(&address, "a-model")
        .unwrap()
        .with_parallel(2)
        .with_retries(1, Duration::ZERO);
    let kept = Kept::new();
    let mut cache = kept.open();
    let (results, summary) = collect(&endpoint, &mut cache, questions(1000));
    let error = summary.unwrap_err();
    assert!(
        matches!(error, EndpointError::Down { jobs: 8, .. }),
        "{error}"
    );
    assert!(results.len() < 8);
    // Few jobs may all fail without that.
    let (results, summary) = collect(&endpoint, &mut cache, questions(7));
    assert_eq!((results.len(), summary.unwrap().failed), (7, 7));
}

/// Whatever the endpoint repeats of it.
#[test]
fn the_key_is_nowhere() {
    for status in [200, 400, 401, 402, 404, 429, 500] {
        let stub = Stub::start(move |asked| {
            let seen = asked.authorization.clone().unwrap();
            match (status, asked.text()) {
                (200, "q0") => Deed::Reply(200, "", json!({ "error": seen }).to_string()),
                (200, _) => Deed::Reply(200, "", chat("fine")),
                (status, _) => Deed::status(status, &seen.repeat(9)),
            }
        });
        let kept = Kept::new();
        let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(3));
        let said = format!("{results:?} {summary:?} {}", kept.contents());
        assert!(
            !said.contains(KEY) && !said.contains("not-to-be-seen"),
            "{said}"
        );
        assert!(!summary.is_err_and(|error| error.to_string().contains(KEY)));
        assert!(said.contains("Bearer …") || status == 401, "{said}");
    }
}
