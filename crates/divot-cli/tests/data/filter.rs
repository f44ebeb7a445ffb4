//! `divot data filter`

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use divot::data::captions::is_dynamic;
use serde_json::json;

use crate::stub::{Deed, Stub};
use crate::{Bench, failing};

/// Captions and whether they describe change, as they were labelled by hand.
fn labelled() -> Vec<(bool, &'static str)> {
    include_str!("../../../divot-data/tests/data/dynamic_captions.tsv")
        .lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<_> = line.splitn(3, '\t').collect();
            (cells[1] == "dynamic", cells[2])
        })
        .collect()
}

/// Writes the labelled captions as JSONL, and returns their lines.
fn write_labelled(bench: &Bench) -> Vec<String> {
    let lines = labelled()
        .into_iter()
        .enumerate()
        .map(|(index, (_, caption))| {
            json!({ "video": format!("{index}.mp4"), "caption": caption, "more": [index] })
                .to_string()
        });
    let lines: Vec<String> = lines.collect();
    fs::write(bench.path("all.jsonl"), lines.join("\n")).unwrap();
    lines
}

fn kept(lines: &[String], keep: impl Fn(bool, &str) -> bool) -> String {
    let rows = lines.iter().zip(labelled());
    let rows = rows.filter(|(_, (label, caption))| keep(*label, caption));
    rows.map(|(line, _)| format!("{line}\n")).collect()
}

#[test]
fn rules_keep_captions_of_change() {
    let bench = Bench::new();
    let lines = write_labelled(&bench);
    let found = bench.json("data filter all.jsonl --output dynamic.jsonl");
    let expected = kept(&lines, |_, caption| is_dynamic(caption));
    assert_eq!(bench.text("dynamic.jsonl"), expected);

    let count = |key: &str| found[key].as_u64().unwrap() as usize;
    assert_eq!(count("rows"), 300);
    assert_eq!(count("kept"), expected.lines().count());
    assert_eq!(count("no_change"), 300 - count("kept"));
    assert_eq!((count("unusable"), count("unanswered")), (0, 0));
    let reasons = found["reasons"].as_object().unwrap().values();
    let sum: u64 = reasons.map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(sum as usize, count("kept"));
    assert_eq!(found["command"], "data filter");
    // The labels are right in 19 of 20 cases at least.
    let right = kept(&lines, |label, caption| label && is_dynamic(caption));
    assert!(20 * right.lines().count() >= 19 * count("kept"));
    assert!(20 * right.lines().count() >= 19 * 150);

    let (printed, _) = bench.works("data filter all.jsonl --output dynamic.jsonl");
    assert!(printed.starts_with(&format!("{} of 300 rows → dynamic.jsonl\n", count("kept"))));
    assert!(printed.contains(", an action in progress\n"), "{printed}");
    assert!(printed.contains(", no change\n"), "{printed}");
}

#[test]
fn an_endpoint_that_fails_a_fifth_of_its_calls_decides() {
    let bench = Bench::new();
    let lines = write_labelled(&bench);
    let stub = failing(|asked| {
        let text = asked.text().strip_prefix("Caption: ").unwrap();
        let caption = text.lines().next().unwrap();
        let (label, _) = labelled()
            .into_iter()
            .find(|(_, it)| *it == caption)
            .unwrap();
        ["No.", "Yes"][usize::from(label)].to_owned()
    });
    let arguments = format!(
        "data filter all.jsonl --output dynamic.jsonl --language-model judge --endpoint {} --parallel 64 \
         --input-price 1 --output-price 2",
        stub.address
    );
    let (_, stderr) = bench.works(&format!("{arguments} --dry-run"));
    assert!(
        stderr.starts_with("300 captions for judge: about "),
        "{stderr}"
    );
    assert!(stderr.contains(" to write, for 0.0"), "{stderr}");
    assert!(stub.asked().is_empty() && !bench.path("dynamic.jsonl").exists());

    let found = bench.json(&arguments);
    assert_eq!(bench.text("dynamic.jsonl"), kept(&lines, |label, _| label));
    assert_eq!(found["reasons"], json!({ "judge says so": 150 }));
    let asked = stub.asked().len();
    assert!(asked >= 374, "{asked}");
    assert_eq!(found["requests"], asked);
    // Each answer has 10 tokens in and 3 out.
    assert_eq!(found["usage"]["price"], 300.0 * 16.0 / 1e6);

    let again = bench.json(&arguments);
    assert_eq!(
        (&again["kept"], &again["requests"]),
        (&json!(150), &json!(0))
    );
    assert_eq!(stub.asked().len(), asked);
}

#[cfg(unix)]
#[test]
fn what_was_answered_before_ctrl_c_is_not_asked_again() {
    let bench = Bench::new();
    let lines = write_labelled(&bench);
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = is_open.clone();
    let last = format!("Caption: {}\n", labelled()[100].1);
    let stub = Stub::start(move |asked| {
        match asked.text().starts_with(&last) && !gate.load(Ordering::Relaxed) {
            true => Deed::Hang,
            false => Deed::says("yes"),
        }
    });
    let arguments = format!(
        "data filter all.jsonl --output dynamic.jsonl --language-model judge --endpoint {} --parallel 1",
        stub.address
    );
    let child = bench
        .command(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    crate::wait(|| stub.hanging() == 1);
    let (code, stderr) = crate::interrupt(child);
    assert_eq!(code, Some(130), "{stderr}");
    let (estimate, error) = stderr.split_once('\n').unwrap();
    assert!(estimate.starts_with("300 captions for judge: about "));
    assert_eq!(
        error,
        "error: dynamic.jsonl.answers: stopped; the answers so far are kept there, and the same command goes on\n"
    );
    assert_eq!(bench.files("."), ["all.jsonl", "dynamic.jsonl.answers"]);

    is_open.store(true, Ordering::Relaxed);
    stub.release();
    let found = bench.json(&arguments);
    assert_eq!(
        (&found["kept"], &found["requests"]),
        (&json!(300), &json!(200))
    );
    assert_eq!(bench.text("dynamic.jsonl"), lines.join("\n") + "\n");
}

#[test]
fn rows_without_a_verdict_are_named() {
    let bench = Bench::new();
    fs::write(
        bench.path("a.jsonl"),
        "{\"video\": \"1.mp4\", \"caption\": \"a dog\"}\n{\"video\": \"2.mp4\", \"caption\": [\"a cat\", \"a cow\"]}\n",
    )
    .unwrap();
    let stub = Stub::start(|asked| match asked.text() {
        text if text.contains("a cow") => Deed::says("yes"),
        text if text.contains("a cat") => Deed::says("who knows"),
        _ => Deed::status(400, "too hard"),
    });
    let arguments = format!(
        "data filter a.jsonl --output b.jsonl --language-model judge --endpoint {}",
        stub.address
    );
    let (printed, _) = bench.works(&arguments);
    let expected = "1 of 2 rows → b.jsonl\n  kept: 1, judge says so\n  left out: 1, without a verdict; the first has \
                    no answer (HTTP 400: too hard; tries: 1); the same command asks again\n";
    assert_eq!(printed, expected);
}

#[test]
fn rows_are_copied_byte_for_byte() {
    let bench = Bench::new();
    let write = |name: &str, text: &str| fs::write(bench.path(name), text).unwrap();
    write(
        "a.csv",
        "\u{feff}videoid,page_dir,name\r\n1,x,\"A dog runs,\nand \"\"barks\"\"\"\r\n2,x,A dog\r\n\r\n3, x ,A cat jumps  \r\n",
    );
    write(
        "b.csv",
        "videoid,page_dir,name\n4,x,\"A cup falls\nfrom a table\"\n5,x\n6,x,\n7,x,Snow is falling",
    );
    let (printed, _) = bench.works("data filter a.csv b.csv --output c.csv");
    assert_eq!(
        bench.text("c.csv"),
        "\u{feff}videoid,page_dir,name\r\n1,x,\"A dog runs,\nand \"\"barks\"\"\"\r\n3, x ,A cat jumps  \r\n4,x,\"A cup falls\nfrom a table\"\n7,x,Snow is falling\n"
    );
    assert!(printed.contains("left out: 1, no change\n"), "{printed}");
    assert!(
        printed.contains("left out: 2, of no use; the first is b.csv:4: has only 2 fields\n"),
        "{printed}"
    );

    // Panda-70M, and lines with a list.
    write(
        "panda.csv",
        "videoID,url,timestamp,caption\na,u,\"[['0:00:00', '0:00:02'], ['0:00:02', '0:00:04']]\",\"['A cup', 'A cup falls']\"\nb,u,\"[['0:00:00', '0:00:02']]\",\"['A cup']\"\n",
    );
    bench.works("data filter panda.csv --output few.csv");
    assert_eq!(bench.text("few.csv").lines().count(), 2);
    write(
        "d.jsonl",
        "\u{feff}{\"video\": \"1.mp4\", \"caption\": [\"a cup\", \"a cup falls\"]}\r\n\n  \n{\"video\": \"2.mp4\", \"caption\": \"a cup\"}\nno JSON\n{\"caption\": \"it falls\"}\n",
    );
    let (printed, _) = bench.works("data filter d.jsonl --output e.jsonl");
    assert_eq!(
        bench.text("e.jsonl"),
        "{\"video\": \"1.mp4\", \"caption\": [\"a cup\", \"a cup falls\"]}\r\n"
    );
    assert!(
        printed.contains("left out: 2, of no use; the first is d.jsonl:5"),
        "{printed}"
    );

    write("odd.csv", "clip,says\nx.mp4,It falls\n");
    let line = bench.refused("data filter odd.csv --output f.csv");
    assert!(
        line.contains("odd.csv") && line.contains("no column"),
        "{line}"
    );
    bench.works("data filter odd.csv --output f.csv --video-column clip --caption-column says");
    assert_eq!(bench.text("f.csv"), "clip,says\nx.mp4,It falls\n");
}

#[test]
fn what_cannot_be_filtered_is_refused() {
    let bench = Bench::new();
    let write = |name: &str, text: &str| fs::write(bench.path(name), text).unwrap();
    write(
        "a.jsonl",
        "{\"video\": \"1.mp4\", \"caption\": \"it falls\"}\n",
    );
    write("a.csv", "video,caption\n1.mp4,it falls\n");
    write("b.csv", "path,caption\n1.mp4,it falls\n");
    write("a.txt", "it falls\n");
    fs::create_dir(bench.path("folder")).unwrap();
    let before = bench.files(".");
    for (arguments, says) in [
        ("no.jsonl --output b.jsonl", "no.jsonl: no such file"),
        ("folder --output b.jsonl", "folder: is no file"),
        ("a.txt --output b.txt", "a.txt: is no list of captions"),
        ("a.jsonl --output a.jsonl", "a.jsonl: is an input"),
        (
            "a.jsonl --output b.csv",
            "b.csv: ends otherwise than a.jsonl",
        ),
        (
            "a.jsonl a.csv --output b.jsonl",
            "a.csv: ends otherwise than a.jsonl",
        ),
        (
            "a.csv b.csv --output c.csv",
            "b.csv: has another header than a.csv",
        ),
        ("a.jsonl --output no/b.jsonl", "no/b.jsonl"),
        (
            "a.jsonl --output b.jsonl --endpoint http://127.0.0.1:9",
            "--language-model",
        ),
        (
            "a.jsonl --output b.jsonl --language-model m --endpoint there",
            "http://HOST/PATH",
        ),
        (
            "a.jsonl --output b.jsonl --language-model m --input-price 1",
            "--output-price",
        ),
    ] {
        let line = bench.refused(&format!("data filter {arguments}"));
        assert!(line.contains(says), "{arguments}: {line}");
        assert_eq!(bench.files("."), before, "{arguments}");
    }
}
