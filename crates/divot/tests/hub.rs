//! Downloads from an imitation of a model hub, and tests every way in which they can fail.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use divot::Step;
use divot::checkpoint::Part;
use divot::hub::{Fetched, Hub, HubError};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use tempfile::TempDir;

const DIVOT: &str = "TencentARC/Divot";
const CLIP: &str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K";
const DYNAMICRAFTER: &str = "Doubiiu/DynamiCrafter";
const MISTRAL: &str = "mistralai/Mistral-7B-Instruct-v0.1";
const DETOKENIZER: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

// ---------------------------------------------------------------------------------------------
// A hub
// ---------------------------------------------------------------------------------------------

/// Faults of a hub.
#[derive(Debug, Clone)]
enum Fault {
    /// Closes the connection after this number of bytes of contents.
    Cut(usize),
    /// Stops sending after this number of bytes of contents, and keeps the connection.
    Stall(usize),
    /// Sends contents with one byte changed.
    Corrupt,
    /// Answers with this status, and this `x-error-code`.
    Status(u16, &'static str),
    /// Ignores the requested range.
    NoRanges,
    /// Sends another range than the requested one.
    OtherRange,
    /// States this size.
    Size(u64),
    /// States this checksum.
    Etag(&'static str),
    /// Sends this text instead of a description.
    Text(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    token: Option<String>,
    /// Bytes of contents that were sent.
    sent: usize,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Each fault, the part of the path that it affects, and the number of times.
    faults: Vec<(Fault, &'static str, usize)>,
    log: Vec<Request>,
}

impl State {
    /// Returns a fault for this path that `is` maps to a value, and counts it down.
    fn fault<T>(&mut self, path: &str, is: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let (found, times) = self
            .faults
            .iter_mut()
            .filter(|(_, part, times)| path.contains(part) && *times > 0)
            .find_map(|(fault, _, times)| Some((is(fault)?, times)))?;
        *times -= 1;
        Some(found)
    }
}

/// Serves a few repositories as the hub does. Large files (`.bin` and `.safetensors`) are redirected to
/// another address, small ones to another path of the hub.
struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(repositories: &[(&str, &[&str])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        for (repository, files) in repositories {
            let files = files.iter().map(|file| (file.to_string(), contents(file)));
            let mut state = state.lock().unwrap();
            state
                .repositories
                .insert(repository.to_string(), files.collect());
        }
        // Clients treat this name as another host.
        let elsewhere = address.replace("127.0.0.1", "localhost");
        let (base, shared) = (elsewhere, state.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (base, shared) = (base.clone(), shared.clone());
                thread::spawn(move || answer(stream, &base, &shared));
            }
        });
        Self { address, state }
    }

    /// A hub with the de-tokenizer only, which most tests download.
    fn with_detokenizer() -> Self {
        Self::start(&[(DIVOT, &[DETOKENIZER])])
    }

    fn fail(&self, fault: Fault, path: &'static str, times: usize) {
        self.state.lock().unwrap().faults.push((fault, path, times));
    }

    fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// Returns the requests since the last call.
    fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// Returns those of them that asked for the contents of large files.
    fn contents_asked(&self) -> Vec<Request> {
        let mut log = self.log();
        log.retain(|request| request.path.starts_with("/cdn/"));
        log
    }
}

/// Returns the contents of a file. They differ for each file and are longer than one read.
fn contents(file: &str) -> Vec<u8> {
    let seed = Sha256::digest(file);
    let len = if is_large(file) { 600_000 } else { 1_000 };
    (0..len)
        .map(|i| seed[i % 32].wrapping_add((i / 32) as u8))
        .collect()
}

fn is_large(file: &str) -> bool {
    file.ends_with(".bin") || file.ends_with(".safetensors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(file: &str, contents: &[u8]) -> String {
    if is_large(file) {
        hex(&Sha256::digest(contents))
    } else {
        let blob = [format!("blob {}\0", contents.len()).as_bytes(), contents].concat();
        hex(&Sha1::digest(blob))
    }
}

fn answer(stream: TcpStream, base: &str, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap(),
        path: words.next().unwrap(),
        range: None,
        token: None,
        sent: 0,
    };
    for line in lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
    {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.token = Some(value.to_owned()),
            _ => {}
        }
    }

    let mut state = state.lock().unwrap();
    let status = |fault: &Fault| match fault {
        Fault::Status(status, code) => Some((*status, *code)),
        _ => None,
    };
    let path = request.path.clone();
    let (head, body) = if let Some((status, code)) = state.fault(&path, status) {
        (format!("{status} Fault\r\nx-error-code: {code}"), vec![])
    } else if let Some(repository) = path
        .strip_prefix("/api/models/")
        .and_then(|path| path.strip_suffix("/revision/main"))
    {
        describe(repository, &mut state)
    } else if let Some(rest) = path.strip_prefix("/cdn/") {
        let (repository, file) = rest.split_once("//").unwrap();
        send(&request, repository, file, &mut state)
    } else if let Some(rest) = path.strip_prefix("/small/") {
        let (repository, file) = rest.split_once("//").unwrap();
        send(&request, repository, file, &mut state)
    } else if let Some((repository, file)) = path[1..].split_once(&format!("/resolve/{COMMIT}/")) {
        resolve(repository, file, base, &mut state)
    } else if let Some((repository, file)) = path[1..].split_once("/resolve/main/") {
        resolve(repository, file, base, &mut state)
    } else {
        ("404 Not Found".to_owned(), vec![])
    };
    let announced = body.len();
    let body = match () {
        () if request.method == "HEAD" => vec![],
        () => body,
    };
    let cut = state.fault(&path, |fault| match fault {
        Fault::Cut(after) if !body.is_empty() => Some((*after, false)),
        Fault::Stall(after) if !body.is_empty() => Some((*after, true)),
        _ => None,
    });
    let (end, stall) = cut.unwrap_or((body.len(), false));
    let body = &body[..end.min(body.len())];
    request.sent = body.len();
    state.log.push(request);
    drop(state);
    let head =
        format!("HTTP/1.1 {head}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
    let mut stream = stream;
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    if stall {
        thread::sleep(Duration::from_secs(60));
    }
}

fn describe(repository: &str, state: &mut State) -> (String, Vec<u8>) {
    let text = state.fault(repository, |fault| match fault {
        Fault::Text(text) => Some(text.to_string()),
        _ => None,
    });
    let Some(files) = state.repositories.get(repository) else {
        return (
            "404 Not Found\r\nx-error-code: RepoNotFound".to_owned(),
            vec![],
        );
    };
    let files = files
        .keys()
        .map(|file| format!(r#"{{"rfilename":"{file}"}}"#));
    let files: Vec<String> = files.collect();
    let body = format!(
        r#"{{"id":"{repository}","sha":"{COMMIT}","siblings":[{}]}}"#,
        files.join(",")
    );
    let body = text.unwrap_or(body);
    let head = "200 OK\r\nContent-Type: application/json".to_owned();
    (head, body.into_bytes())
}

fn resolve(repository: &str, file: &str, base: &str, state: &mut State) -> (String, Vec<u8>) {
    let size = state.fault(file, |fault| match fault {
        Fault::Size(size) => Some(*size),
        _ => None,
    });
    let etag = state.fault(file, |fault| match fault {
        Fault::Etag(etag) => Some(etag.to_string()),
        _ => None,
    });
    let files = state.repositories.get(repository);
    let Some(contents) = files.and_then(|files| files.get(file)) else {
        let head = "404 Not Found\r\nx-error-code: EntryNotFound";
        return (head.to_owned(), vec![]);
    };
    let head = if is_large(file) {
        let size = size.unwrap_or(contents.len() as u64);
        let etag = etag.unwrap_or_else(|| checksum(file, contents));
        format!(
            "302 Found\r\nLocation: {base}/cdn/{repository}//{file}\r\nETag: \"elsewhere\"\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {size}"
        )
    } else {
        format!("307 Temporary Redirect\r\nLocation: /small/{repository}//{file}")
    };
    (format!("{head}\r\nx-repo-commit: {COMMIT}"), vec![])
}

fn send(request: &Request, repository: &str, file: &str, state: &mut State) -> (String, Vec<u8>) {
    let body = state.repositories[repository][file].clone();
    let etag = checksum(file, &body);
    let corrupt = |fault: &Fault| matches!(fault, Fault::Corrupt).then_some(());
    let no_ranges = |fault: &Fault| matches!(fault, Fault::NoRanges).then_some(());
    let other_range = |fault: &Fault| matches!(fault, Fault::OtherRange).then_some(());
    let common = format!("ETag: W/\"{etag}\"\r\nx-repo-commit: {COMMIT}");
    let mut body = body;
    if request.method == "GET" && state.fault(file, corrupt).is_some() {
        body[7] ^= 1;
    }
    match &request.range {
        Some(range) if state.fault(file, no_ranges).is_none() => {
            let (start, end) = range
                .strip_prefix("bytes=")
                .and_then(|range| range.split_once('-'))
                .unwrap();
            let mut start: usize = start.parse().unwrap();
            let end = end.parse().map_or(body.len(), |end: usize| end + 1);
            let total = body.len();
            if start >= total {
                return ("416 Range Not Satisfiable".to_owned(), vec![]);
            }
            if state.fault(file, other_range).is_some() {
                start -= 1;
            }
            let head = format!(
                "206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\n{common}",
                end - 1
            );
            (head, body[start..end].to_vec())
        }
        _ => (format!("200 OK\r\n{common}"), body),
    }
}

// ---------------------------------------------------------------------------------------------
// Downloads
// ---------------------------------------------------------------------------------------------

/// A cache and a folder for the published layout, both empty at first.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("home/hub")
    }

    fn layout(&self) -> PathBuf {
        self.folder.path().join("pretrained")
    }

    fn blobs(&self) -> PathBuf {
        self.cache().join("models--TencentARC--Divot/blobs")
    }

    /// Returns the path of the de-tokenizer's contents in the cache.
    fn blob(&self) -> PathBuf {
        self.blobs()
            .join(checksum(DETOKENIZER, &contents(DETOKENIZER)))
    }

    fn part(&self) -> PathBuf {
        self.blob().with_extension("part")
    }

    /// Returns a hub that does not retry.
    fn hub(&self, server: &Server) -> Hub {
        Hub::new(self.cache())
            .with_endpoint(&server.address)
            .with_retries(0, Duration::ZERO)
    }

    fn download(&self, hub: &Hub, assets: &[Part]) -> Result<Vec<Fetched>, HubError> {
        hub.download(assets, &self.layout(), |_| ControlFlow::Continue(()))
    }

    fn detokenizer(&self, server: &Server) -> Result<Vec<Fetched>, HubError> {
        self.download(&self.hub(server), &[Part::Detokenizer])
    }

    /// Returns whether the de-tokenizer is in its place and complete.
    fn has_detokenizer(&self) -> bool {
        fs::read(self.layout().join(DETOKENIZER)).is_ok_and(|read| read == contents(DETOKENIZER))
    }
}

/// Checks that the message of an error is one line and contains these words.
fn says(error: &HubError, words: &[&str]) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?}");
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

/// The names of all files and links below a folder.
fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                files.push(name.to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    files.sort();
    files
}

fn all_repositories() -> Server {
    Server::start(&[
        (
            DIVOT,
            &[
                ".gitattributes",
                "README.md",
                "Divot_tokenizer_detokenizer/Divot_tokenizer.bin",
                DETOKENIZER,
                "Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin",
                "Divot_sft_comp/agent/pytorch_model.bin",
                "Divot_sft_comp/llm/config.json",
                "Divot_sft_comp/llm/model-00001-of-00002.safetensors",
                "Divot_sft_comp/llm/model-00002-of-00002.safetensors",
                "Divot_sft_gen/agent/pytorch_model.bin",
                "Divot_sft_gen/llm/pytorch_model-00001-of-00001.bin",
                "Divot_pretrain/agent/pytorch_model.bin",
                "Divot_pretrain/llm/pytorch_model-00001-of-00001.bin",
                "cvlm_mistral_instruct_tokenizer/tokenizer.model",
                "cvlm_mistral_instruct_tokenizer/tokenizer_config.json",
            ],
        ),
        (CLIP, &["README.md", "open_clip_pytorch_model.bin"]),
        (DYNAMICRAFTER, &["README.md", "model.ckpt"]),
        (
            MISTRAL,
            &[
                "config.json",
                "consolidated.safetensors",
                "model-00001-of-00001.safetensors",
                "model.safetensors.index.json",
                "pytorch_model-00001-of-00001.bin",
                "pytorch_model.bin.index.json",
                "tokenizer.json",
                "tokenizer.model",
            ],
        ),
    ])
}

#[test]
fn a_download_has_the_published_layout() {
    let (server, place) = (all_repositories(), Place::new());
    let hub = place.hub(&server);
    let mut seen = BTreeMap::new();
    let fetched = hub
        .download(&Part::MODEL, &place.layout(), |progress| {
            assert!(progress.done <= progress.total);
            seen.insert((progress.name.to_owned(), progress.step), progress.done);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        files_below(&place.layout()),
        [
            "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin",
            DETOKENIZER,
            "Divot_tokenizer_detokenizer/Divot_tokenizer.bin",
        ]
    );
    assert_eq!(fetched.len(), 3);
    for file in &fetched {
        assert_eq!(fs::read(&file.path).unwrap(), contents(&file.file));
        assert_eq!((file.size, file.downloaded), (600_000, 600_000));
        for step in [Step::Download, Step::Verify] {
            assert_eq!(seen[&(file.file.clone(), step)], 600_000);
        }
        #[cfg(unix)]
        assert!(file.path.is_symlink());
    }
    // Other tools find the file too.
    let cached = hf_hub::Cache::new(place.cache()).model(DIVOT.to_owned());
    let cached = cached.get(DETOKENIZER).unwrap();
    assert_eq!(fs::read(cached).unwrap(), contents(DETOKENIZER));

    let fetched = place.download(&hub, &Part::ALL).unwrap();
    assert_eq!(
        fetched.iter().filter(|file| file.downloaded == 0).count(),
        3
    );
    assert_eq!(
        files_below(&place.layout()),
        [
            "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin",
            "Divot_pretrain/agent/pytorch_model.bin",
            "Divot_pretrain/llm/pytorch_model-00001-of-00001.bin",
            "Divot_sft_comp/agent/pytorch_model.bin",
            "Divot_sft_comp/llm/config.json",
            "Divot_sft_comp/llm/model-00001-of-00002.safetensors",
            "Divot_sft_comp/llm/model-00002-of-00002.safetensors",
            "Divot_sft_gen/agent/pytorch_model.bin",
            "Divot_sft_gen/llm/pytorch_model-00001-of-00001.bin",
            DETOKENIZER,
            "Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin",
            "Divot_tokenizer_detokenizer/Divot_tokenizer.bin",
            "Mistral-7B-Instruct-v0.1/config.json",
            "Mistral-7B-Instruct-v0.1/model-00001-of-00001.safetensors",
            "Mistral-7B-Instruct-v0.1/model.safetensors.index.json",
            "Mistral-7B-Instruct-v0.1/tokenizer.json",
            "Mistral-7B-Instruct-v0.1/tokenizer.model",
            "cvlm_mistral_instruct_tokenizer/tokenizer.model",
            "cvlm_mistral_instruct_tokenizer/tokenizer_config.json",
            "dynamicrafter_256_v1/model.ckpt",
        ]
    );
    for file in fetched {
        assert_eq!(fs::read(&file.path).unwrap(), contents(&file.file));
    }
}

#[test]
fn a_second_run_reads_and_downloads_nothing() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    place.detokenizer(&server).unwrap();
    server.log();
    let hub = place.hub(&server);
    let fetched = hub
        .download(&[Part::Detokenizer], &place.layout(), |progress| {
            panic!("{progress:?}")
        })
        .unwrap();
    assert_eq!(fetched[0].downloaded, 0);
    assert!(server.contents_asked().is_empty());
}

#[test]
fn what_another_tool_cached_is_used() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let api = hf_hub::api::sync::ApiBuilder::from_cache(hf_hub::Cache::new(place.cache()))
        .with_endpoint(server.address.clone())
        .with_progress(false)
        .build()
        .unwrap();
    api.model(DIVOT.to_owned()).get(DETOKENIZER).unwrap();
    server.log();
    assert_eq!(place.detokenizer(&server).unwrap()[0].downloaded, 0);
    assert!(server.contents_asked().is_empty());
    assert!(place.has_detokenizer());
}

#[test]
fn a_token_goes_to_the_hub_alone() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let hub = place.hub(&server).with_token(Some("hf_secret".to_owned()));
    place.download(&hub, &[Part::Detokenizer]).unwrap();
    for request in server.log() {
        let expected = (!request.path.starts_with("/cdn/")).then_some("Bearer hf_secret");
        assert_eq!(request.token.as_deref(), expected, "{}", request.path);
    }
    assert!(!format!("{hub:?}").contains("secret"));
    let hub = hub.with_token(Some("two words".to_owned()));
    let error = place.download(&hub, &[Part::Detokenizer]).unwrap_err();
    says(&error, &["token", "HF_TOKEN"]);
    assert!(!error.to_string().contains("two words"));
}

// ---------------------------------------------------------------------------------------------
// Interruptions
// ---------------------------------------------------------------------------------------------

#[test]
fn an_interrupted_download_goes_on_by_itself() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    // More interruptions than retries, but data arrived before each of them.
    server.fail(Fault::Cut(150_000), "/cdn/", 3);
    let hub = place.hub(&server).with_retries(1, Duration::from_millis(1));
    assert_eq!(
        place.download(&hub, &[Part::Detokenizer]).unwrap()[0].downloaded,
        600_000
    );
    assert!(place.has_detokenizer());
    let sent: Vec<usize> = server.contents_asked().iter().map(|it| it.sent).collect();
    assert_eq!(sent, [150_000; 4]);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_broke() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Cut(200_000), "/cdn/", 1);
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }));
    says(&error, &[DIVOT, DETOKENIZER, "run again"]);
    assert!(!place.layout().join(DETOKENIZER).exists());
    assert_eq!(fs::metadata(place.part()).unwrap().len(), 200_000);
    server.log();

    assert_eq!(place.detokenizer(&server).unwrap()[0].downloaded, 400_000);
    let asked = server.contents_asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range.as_deref(), Some("bytes=200000-"));
    assert_eq!(asked[0].sent, 400_000);
    assert!(place.has_detokenizer());
    assert!(!place.part().exists());
}

#[test]
fn a_silent_connection_counts_as_broken() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Stall(200_000), "/cdn/", 1);
    let hub = place.hub(&server).with_timeout(Duration::from_millis(300));
    let error = place.download(&hub, &[Part::Detokenizer]).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    let fetched = place.download(&hub, &[Part::Detokenizer]).unwrap();
    assert_eq!(fetched[0].downloaded, 400_000);
    assert!(place.has_detokenizer());
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Cut(200_000), "/cdn/", 1);
    server.fail(Fault::NoRanges, DETOKENIZER, 1);
    place.detokenizer(&server).unwrap_err();
    assert_eq!(place.detokenizer(&server).unwrap()[0].downloaded, 600_000);
    assert!(place.has_detokenizer());
}

#[test]
fn another_range_than_asked_for_is_refused() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Cut(200_000), "/cdn/", 1);
    server.fail(Fault::OtherRange, DETOKENIZER, 1);
    place.detokenizer(&server).unwrap_err();
    says(
        &place.detokenizer(&server).unwrap_err(),
        &[DETOKENIZER, "range"],
    );
    place.detokenizer(&server).unwrap();
    assert!(place.has_detokenizer());
}

#[test]
fn a_partial_file_may_be_complete_or_too_long() {
    let server = Server::with_detokenizer();
    for (extra, downloaded) in [(0, 0), (9, 600_000)] {
        let place = Place::new();
        let mut bytes = contents(DETOKENIZER);
        bytes.extend(vec![0; extra]);
        fs::create_dir_all(place.blobs()).unwrap();
        fs::write(place.part(), bytes).unwrap();
        assert_eq!(
            place.detokenizer(&server).unwrap()[0].downloaded,
            downloaded
        );
        assert!(place.has_detokenizer());
    }
}

#[test]
fn a_stopped_download_goes_on() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let hub = place.hub(&server);
    let error = hub
        .download(&[Part::Detokenizer], &place.layout(), |progress| {
            if progress.done > 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap_err();
    assert!(matches!(error, HubError::Stopped));
    let kept = fs::metadata(place.part()).unwrap().len();
    assert!(0 < kept && kept < 600_000);
    server.log();

    let fetched = place.detokenizer(&server).unwrap();
    assert_eq!(fetched[0].downloaded, 600_000 - kept);
    let asked = server.contents_asked();
    assert_eq!(asked[0].range, Some(format!("bytes={kept}-")));
    assert!(place.has_detokenizer());
}

#[test]
fn who_stops_does_not_wait() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Status(503, ""), "/api/", 1);
    let hub = place
        .hub(&server)
        .with_retries(1, Duration::from_secs(3600));
    let error = hub
        .download(&[Part::Detokenizer], &place.layout(), |_| {
            ControlFlow::Break(())
        })
        .unwrap_err();
    assert!(matches!(error, HubError::Stopped));
}

#[test]
fn a_hub_may_fail_once_but_not_for_ever() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    for path in ["/api/", "/resolve/", "/cdn/"] {
        server.fail(Fault::Status(500, ""), path, 1);
    }
    let hub = place.hub(&server).with_retries(1, Duration::from_millis(1));
    place.download(&hub, &[Part::Detokenizer]).unwrap();
    assert!(place.has_detokenizer());

    let place = Place::new();
    server.fail(Fault::Status(503, ""), "/cdn/", usize::MAX);
    let hub = place.hub(&server).with_retries(2, Duration::from_millis(1));
    server.log();
    let error = place.download(&hub, &[Part::Detokenizer]).unwrap_err();
    says(&error, &[DETOKENIZER, "503", "run again"]);
    assert_eq!(server.contents_asked().len(), 3);
}

#[test]
fn one_download_at_a_time() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    fs::create_dir_all(place.blobs()).unwrap();
    let lock = fs::File::create(place.blob().with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let error = place.detokenizer(&server).unwrap_err();
    says(&error, &[DETOKENIZER, "another program", "run again"]);
    drop(lock);
    place.detokenizer(&server).unwrap();
}

// ---------------------------------------------------------------------------------------------
// Checksums
// ---------------------------------------------------------------------------------------------

#[test]
fn a_damaged_download_is_removed_and_heals() {
    let small = "cvlm_mistral_instruct_tokenizer/tokenizer.model";
    let server = all_repositories();
    for (asset, file) in [(Part::Detokenizer, DETOKENIZER), (Part::Mistral, small)] {
        let place = Place::new();
        let hub = place.hub(&server);
        server.fail(Fault::Corrupt, file, 1);
        let error = place.download(&hub, &[asset]).unwrap_err();
        assert!(matches!(error, HubError::Damaged { .. }), "{error}");
        let sum = checksum(file, &contents(file));
        says(&error, &[DIVOT, file, &sum, "run again"]);
        assert!(!place.layout().join(file).exists());
        assert!(!place.blobs().join(&sum).exists());
        assert!(!place.blobs().join(&sum).with_extension("part").exists());

        place.download(&hub, &[asset]).unwrap();
        assert_eq!(fs::read(place.layout().join(file)).unwrap(), contents(file));
    }
}

#[test]
fn a_file_damaged_in_the_cache_is_found() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    place.detokenizer(&server).unwrap();
    let mut bytes = contents(DETOKENIZER);
    bytes[0] ^= 1;
    fs::write(place.blob(), bytes).unwrap();
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert_eq!(place.detokenizer(&server).unwrap()[0].downloaded, 600_000);
    assert!(place.has_detokenizer());

    // Truncated in the cache, and found without a network.
    fs::write(place.blob(), "short").unwrap();
    let hub = place.hub(&server).with_offline(true);
    let error = place.download(&hub, &[Part::Detokenizer]).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
}

// ---------------------------------------------------------------------------------------------
// Without a network
// ---------------------------------------------------------------------------------------------

#[test]
fn the_cache_does_without_a_network() {
    let (server, place) = (all_repositories(), Place::new());
    let hub = place.hub(&server);
    place
        .download(&hub, &[Part::Detokenizer, Part::Comprehension])
        .unwrap();
    fs::remove_dir_all(place.layout()).unwrap();
    server.log();

    let offline = hub.with_offline(true).with_endpoint("http://127.0.0.1:1");
    let fetched = place
        .download(&offline, &[Part::Detokenizer, Part::Comprehension])
        .unwrap();
    assert_eq!(fetched.len(), 7);
    assert!(place.has_detokenizer());
    assert!(server.log().is_empty());

    // A file that was not downloaded before, and a repository that was not.
    let adapted = [Part::AdaptedDetokenizer];
    let error = place.download(&offline, &adapted).unwrap_err();
    says(
        &error,
        &[
            "Divot_detokenizer_stage2.bin",
            "not in the cache",
            "HF_HUB_OFFLINE",
        ],
    );
    let error = place.download(&offline, &[Part::Clip]).unwrap_err();
    says(&error, &[CLIP, "not in the cache", "HF_HUB_OFFLINE"]);
    // One of many shards.
    let snapshot = format!("models--TencentARC--Divot/snapshots/{COMMIT}/Divot_sft_comp/llm");
    fs::remove_file(place.cache().join(snapshot).join("config.json")).unwrap();
    let error = place
        .download(&offline, &[Part::Comprehension])
        .unwrap_err();
    says(
        &error,
        &["Divot_sft_comp/llm/config.json", "not in the cache"],
    );
}

#[test]
fn another_tools_cache_does_without_a_network() {
    let (server, place) = (all_repositories(), Place::new());
    let hub = place.hub(&server);
    place.download(&hub, &[Part::Generation]).unwrap();
    fs::remove_dir_all(place.layout()).unwrap();
    fs::remove_dir_all(place.cache().join("models--TencentARC--Divot/files")).unwrap();
    let fetched = place
        .download(&hub.with_offline(true), &[Part::Generation])
        .unwrap();
    assert_eq!(fetched.len(), 4);
}

#[test]
fn a_hub_that_does_not_answer_is_named() {
    let place = Place::new();
    // A port that was free just now.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let hub = Hub::new(place.cache()).with_endpoint(&endpoint);
    let error = place.download(&hub, &[Part::Clip]).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }));
    says(
        &error,
        &[&endpoint, "cannot be reached", "HF_HUB_OFFLINE=1"],
    );
}

#[test]
fn an_address_is_checked() {
    let place = Place::new();
    for endpoint in [
        "",
        "hub",
        "hub:80",
        "ftp://hub",
        "http://",
        "http://a b",
        "http://h?q",
    ] {
        let hub = Hub::new(place.cache()).with_endpoint(endpoint);
        let error = place.download(&hub, &[Part::Clip]).unwrap_err();
        assert!(
            matches!(error, HubError::Endpoint { .. }),
            "{endpoint}: {error}"
        );
        says(
            &error,
            &["not a web address", "HF_ENDPOINT", "https://huggingface.co"],
        );
    }
    let server = Server::with_detokenizer();
    let hub = place
        .hub(&server)
        .with_endpoint(format!("{}/", server.address));
    place.download(&hub, &[Part::Detokenizer]).unwrap();
}

// ---------------------------------------------------------------------------------------------
// What is not there, and what makes no sense
// ---------------------------------------------------------------------------------------------

#[test]
fn what_is_not_there_is_named() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let hub = place.hub(&server);
    let error = place.download(&hub, &[Part::Clip]).unwrap_err();
    assert!(matches!(error, HubError::NoRepository { .. }));
    says(&error, &[CLIP, &server.address, "HF_TOKEN"]);

    let adapted = [Part::AdaptedDetokenizer];
    let error = place.download(&hub, &adapted).unwrap_err();
    assert!(matches!(error, HubError::NoFile { .. }));
    says(&error, &[DIVOT, "Divot_detokenizer_stage2.bin"]);
    let error = place.download(&hub, &[Part::Comprehension]).unwrap_err();
    says(&error, &[DIVOT, "Divot_sft_comp/llm/*"]);

    // The file is listed, but missing.
    server.fail(Fault::Status(404, "EntryNotFound"), "/resolve/", 1);
    says(
        &place.detokenizer(&server).unwrap_err(),
        &[DIVOT, DETOKENIZER],
    );
}

#[test]
fn who_may_not_read_is_told_how_to() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    for status in [401, 403] {
        for path in ["/api/", "/resolve/"] {
            server.fail(Fault::Status(status, "GatedRepo"), path, 1);
            let error = place.detokenizer(&server).unwrap_err();
            assert!(matches!(error, HubError::Denied { .. }), "{error}");
            let page = format!("{}/{DIVOT}", server.address);
            says(&error, &[&status.to_string(), &page, "HF_TOKEN"]);
        }
    }
    server.fail(Fault::Status(401, "RepoNotFound"), "/api/", 1);
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::NoRepository { .. }));
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let faults = [
        (Fault::Text("<html>Welcome"), "description"),
        (Fault::Text(r#"{"siblings":[],"sha":"../../up"}"#), "commit"),
        (Fault::Text(r#"{"siblings":[],"sha":""}"#), "commit"),
        (Fault::Etag("../../../up"), "checksum"),
        (Fault::Etag(""), "checksum"),
    ];
    for (fault, word) in faults {
        server.heal();
        server.fail(fault.clone(), "Divot", 1);
        let error = place.detokenizer(&server).unwrap_err();
        assert!(
            matches!(error, HubError::Answer { .. }),
            "{fault:?}: {error}"
        );
        says(&error, &[DIVOT, word, "HF_ENDPOINT"]);
    }
}

#[test]
fn no_file_leaves_its_folder() {
    let server = Server::start(&[(
        DIVOT,
        &[
            "Divot_sft_gen/../../../out.json",
            "Divot_sft_gen/agent/pytorch_model.bin",
            "Divot_sft_gen/llm/config.json",
            "cvlm_mistral_instruct_tokenizer/tokenizer.model",
        ],
    )]);
    let place = Place::new();
    let fetched = place
        .download(&place.hub(&server), &[Part::Generation])
        .unwrap();
    assert_eq!(fetched.len(), 3);
}

// ---------------------------------------------------------------------------------------------
// Disks
// ---------------------------------------------------------------------------------------------

#[cfg(unix)]
#[test]
fn what_does_not_fit_is_not_begun() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    server.fail(Fault::Size(1 << 62), "Divot", 1);
    let error = place.detokenizer(&server).unwrap_err();
    assert!(
        matches!(error, HubError::Full { free: Some(_), .. }),
        "{error}"
    );
    says(&error, &[DETOKENIZER, "no room", "GiB free", "HF_HOME"]);
    assert!(server.contents_asked().is_empty());
}

/// `/dev/full` is a file on a disk that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    fs::create_dir_all(place.blobs()).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.part()).unwrap();
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::Full { .. }), "{error}");
    says(&error, &[DETOKENIZER, "no room", "HF_HOME"]);

    fs::remove_file(place.part()).unwrap();
    place.detokenizer(&server).unwrap();
    assert!(place.has_detokenizer());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    fs::write(place.folder.path().join("home"), "a file, no folder").unwrap();
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::Io { .. }), "{error}");
    says(&error, &["home", "cannot create", "HF_HOME"]);
}

#[test]
fn a_file_in_place_is_kept_if_it_is_the_published_one() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let path = place.layout().join(DETOKENIZER);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents(DETOKENIZER)).unwrap();
    let mut reads = 0;
    for _ in 0..2 {
        place
            .hub(&server)
            .download(&[Part::Detokenizer], &place.layout(), |progress| {
                assert_eq!(progress.step, Step::Verify);
                reads += usize::from(progress.done == 0);
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    assert_eq!(reads, 1, "a checksum is computed once");
    assert!(server.contents_asked().is_empty());
    assert!(!path.is_symlink());

    fs::write(&path, "mine").unwrap();
    let error = place.detokenizer(&server).unwrap_err();
    assert!(matches!(error, HubError::InTheWay { .. }));
    says(&error, &[DETOKENIZER, DIVOT, "move it away"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[cfg(unix)]
#[test]
fn an_old_link_is_replaced() {
    let (server, place) = (Server::with_detokenizer(), Place::new());
    let path = place.layout().join(DETOKENIZER);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    place.detokenizer(&server).unwrap();
    assert!(place.has_detokenizer());
}

// ---------------------------------------------------------------------------------------------
// Settings
// ---------------------------------------------------------------------------------------------

#[test]
fn settings_come_from_variables() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "from-file\n").unwrap();
    let home = home.path().to_str().unwrap();
    let hub = |variables: &[(&str, &str)]| {
        let found = |name: &str| variables.iter().find(|(it, _)| *it == name);
        Hub::from_lookup(|name| found(name).map(|(_, value)| value.to_string())).unwrap()
    };

    let plain = hub(&[("HF_ENDPOINT", " "), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!(plain.endpoint(), "https://huggingface.co");
    assert!(plain.cache().ends_with(".cache/huggingface/hub"));
    assert!(!plain.is_offline());

    let set = hub(&[
        ("HF_HOME", home),
        ("HF_ENDPOINT", "http://hub"),
        ("HF_HUB_OFFLINE", "True"),
    ]);
    assert_eq!(set.endpoint(), "http://hub");
    assert_eq!(set.cache(), Path::new(home).join("hub"));
    assert!(set.is_offline());
    assert_eq!(
        hub(&[("HF_HOME", home), ("HF_HUB_CACHE", "/c")]).cache(),
        Path::new("/c")
    );

    // In the order of `huggingface_hub`. The first variable that is set counts.
    let caches = [
        ("HF_HUB_CACHE", "~/first", "/me/first"),
        ("HUGGINGFACE_HUB_CACHE", "$BASE/second", "/base/second"),
        ("HF_HOME", "${BASE}/third", "/base/third/hub"),
        ("XDG_CACHE_HOME", "/xdg", "/xdg/huggingface/hub"),
        ("HOME", "/me", "/me/.cache/huggingface/hub"),
    ];
    for (first, (name, _, expected)) in caches.iter().enumerate() {
        let mut variables = vec![("HOME", "/me"), ("BASE", "/base")];
        variables.extend(
            caches[first..]
                .iter()
                .map(|(name, value, _)| (*name, *value)),
        );
        assert_eq!(hub(&variables).cache(), Path::new(expected), "{name}");
    }
    assert!(hub(&[("TRANSFORMERS_OFFLINE", "1")]).is_offline());
    let both = [("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "0")];
    assert!(!hub(&both).is_offline());

    // The token that is sent.
    let file = Path::new(home).join("other");
    fs::write(&file, "from-path\n").unwrap();
    let server = Server::with_detokenizer();
    let address: &str = &server.address;
    for (token, older, path, expected) in [
        ("mine\n", "older", file.to_str().unwrap(), "Bearer mine"),
        ("", "older", file.to_str().unwrap(), "Bearer older"),
        ("", "", file.to_str().unwrap(), "Bearer from-path"),
        ("", "", "", "Bearer from-file"),
    ] {
        let place = Place::new();
        let variables = [
            ("HF_HOME", home),
            ("HF_TOKEN", token),
            ("HUGGING_FACE_HUB_TOKEN", older),
            ("HF_TOKEN_PATH", path),
            ("HF_ENDPOINT", address),
        ];
        let hub = hub(&variables).with_cache(place.cache());
        place.download(&hub, &[Part::Detokenizer]).unwrap();
        assert_eq!(server.log()[0].token.as_deref(), Some(expected));
    }
}
