//! An endpoint on loopback, and short ways to ask it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use divot::endpoint::{Answer, Cache, Endpoint, EndpointError, Event, Failure, Request, Summary};
use divot::endpoint::{Usage, run};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const KEY: &str = "sk-not-to-be-seen-anywhere";

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
    /// How often the same request had arrived before.
    pub before: usize,
}

impl Asked {
    /// The user's text, and the first one beside images.
    pub fn text(&self) -> &str {
        let content = &self.body["messages"].as_array().unwrap().last().unwrap()["content"];
        let parts = content.as_array().map_or(&[][..], Vec::as_slice);
        let beside = parts.iter().find_map(|part| part["text"].as_str());
        content.as_str().or(beside).unwrap_or_default()
    }
}

/// What the endpoint does with a request.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Answers with this status, these headers and this body.
    Reply(u16, &'static str, String),
    /// Closes the connection without a reply.
    Cut,
    /// Closes the connection in the middle of a good reply.
    CutInside,
    /// Never answers, until the endpoint is released.
    Hang,
    /// Answers when as many requests as this are there at once, and a moment later, so that more would be seen.
    Gather(usize),
}

impl Deed {
    pub fn says(text: &str) -> Self {
        Self::Reply(200, "", chat(text))
    }

    pub fn status(status: u16, message: &str) -> Self {
        let body = json!({ "error": { "message": message, "code": null } });
        Self::Reply(status, "", body.to_string())
    }
}

pub fn chat(text: &str) -> String {
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": text },
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13 },
    })
    .to_string()
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    /// Texts that were answered with status 200.
    answered: Vec<String>,
    /// Requests that are there now, and the most that were.
    now: usize,
    most: usize,
    /// Requests of `Deed::Gather` that arrived.
    gathered: usize,
    hanging: usize,
    is_released: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub struct Stub {
    pub address: String,
    shared: Shared,
}

impl Stub {
    pub fn start(deed: impl Fn(&Asked) -> Deed + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Shared::default();
        let (state, deed) = (shared.clone(), Arc::new(deed));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, deed) = (state.clone(), deed.clone());
                thread::spawn(move || serve(stream, &state, &*deed));
            }
        });
        Self { address, shared }
    }

    /// An endpoint that answers each text with "re: " and that text.
    pub fn echo() -> Self {
        Self::start(|asked| Deed::says(&format!("re: {}", asked.text())))
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.address, "a-model")
            .unwrap()
            .with_key(Some(KEY.to_owned()))
            .unwrap()
            .with_retries(2, Duration::from_millis(1))
            .with_parallel(4)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.0.lock().unwrap().asked.clone()
    }

    pub fn answered(&self) -> Vec<String> {
        self.shared.0.lock().unwrap().answered.clone()
    }

    /// The number of requests that hang, or did.
    pub fn hanging(&self) -> usize {
        self.shared.0.lock().unwrap().hanging
    }

    pub fn most(&self) -> usize {
        self.shared.0.lock().unwrap().most
    }

    /// Ends the hanging of requests, whose connections are cut.
    pub fn release(&self) {
        self.shared.0.lock().unwrap().is_released = true;
        self.shared.1.notify_all();
    }
}

fn serve(
    mut stream: TcpStream,
    (state, changed): &(Mutex<State>, Condvar),
    deed: impl Fn(&Asked) -> Deed,
) {
    let Some(mut asked) = receive(&stream) else {
        return;
    };
    let mut locked = state.lock().unwrap();
    locked.now += 1;
    locked.most = locked.most.max(locked.now);
    asked.before = locked
        .asked
        .iter()
        .filter(|it| it.body == asked.body)
        .count();
    locked.asked.push(asked.clone());
    let deed = match deed(&asked) {
        Deed::Gather(count) => {
            locked.gathered += 1;
            let goal = locked.gathered.next_multiple_of(count);
            changed.notify_all();
            let limit = Duration::from_secs(20);
            let (after, waited) = changed
                .wait_timeout_while(locked, limit, |state| state.gathered < goal)
                .unwrap();
            drop(after);
            thread::sleep(Duration::from_millis(50));
            locked = state.lock().unwrap();
            match waited.timed_out() {
                true => Deed::status(400, "too few requests at a time"),
                false => Deed::says("together"),
            }
        }
        Deed::Hang => {
            locked.hanging += 1;
            locked = changed
                .wait_while(locked, |state| !state.is_released)
                .unwrap();
            Deed::Cut
        }
        deed => deed,
    };
    // Before the reply, since the next request may come right after it.
    locked.now -= 1;
    let text = asked.text().to_owned();
    let reply = match deed {
        Deed::Reply(status, headers, body) => {
            if status == 200 {
                locked.answered.push(text);
            }
            let length = body.len();
            format!(
                "HTTP/1.1 {status} Stub\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
            )
        }
        Deed::CutInside => {
            let body = chat("never whole");
            let length = body.len();
            format!(
                "HTTP/1.1 200 Stub\r\nContent-Length: {length}\r\n\r\n{}",
                &body[..length / 2]
            )
        }
        _ => String::new(),
    };
    drop(locked);
    let _ = stream.write_all(reply.as_bytes());
}

fn receive(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.strip_prefix("POST ")?.split(' ').next()?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        path,
        authorization,
        body: serde_json::from_slice(&body).ok()?,
        before: 0,
    })
}

/// A cache in a folder of its own.
pub struct Kept {
    _folder: TempDir,
    pub path: PathBuf,
}

impl Kept {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/answers.jsonl");
        Self {
            _folder: folder,
            path,
        }
    }

    pub fn open(&self) -> Cache {
        Cache::open(&self.path).unwrap()
    }

    pub fn contents(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }
}

pub fn question(text: impl Into<String>) -> Request {
    Request::new(50).text(text)
}

/// Numbered questions.
pub fn questions(count: usize) -> impl Iterator<Item = (usize, Request)> {
    (0..count).map(|index| (index, question(format!("q{index}"))))
}

pub type Results = Vec<(usize, Result<Answer, Failure>)>;

/// Runs to the end, and collects what is handed over.
pub fn collect(
    endpoint: &Endpoint,
    cache: &mut Cache,
    jobs: impl IntoIterator<Item = (usize, Request)>,
) -> (Results, Result<Summary, EndpointError>) {
    let mut results = Vec::new();
    let summary = run(endpoint, cache, jobs, |event, _| {
        if let Event::Done { job, result } = event {
            results.push((job, result));
        }
        ControlFlow::Continue(())
    });
    (results, summary)
}

/// Asks one question, and returns the result and the number of requests.
pub fn ask(endpoint: &Endpoint, request: Request) -> (Result<Answer, Failure>, usize) {
    let kept = Kept::new();
    let (mut results, summary) = collect(endpoint, &mut kept.open(), [(0, request)]);
    (results.remove(0).1, summary.unwrap().requests)
}

pub fn usage(input: u64, output: u64) -> Usage {
    Usage { input, output }
}
