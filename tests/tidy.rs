//! Tidiness of the source tree, as tests: what a reviewer should not have to look for.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test names long files and fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a file should not, and must not, exceed.
const LONG: usize = 300;
const TOO_LONG: usize = 600;

/// The only places where `unsafe` may stand.
const UNSAFE: &[&str] = &["supervisor/src/sys/", "parasite/", "tests/"];

/// Folders of the repository that are not its source.
const SKIPPED: &[&str] = &["target", ".git"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder, in order.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if !SKIPPED.contains(&name.as_str()) {
                files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// (path relative to the root, text) of each file with one of these endings.
fn sources(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(root(), &mut found);
    found
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)))
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            (name, text)
        })
        .collect()
}

/// Fails with all problems at once.
fn none(problems: &[String], what: &str) {
    assert!(problems.is_empty(), "{what}:\n{}", problems.join("\n"));
}

/// `NAME:LINE: TEXT` of each line of each Rust file that the test complains about.
fn lines(complain: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, text) in sources(&["rs"]) {
        for (number, line) in text.lines().enumerate() {
            if complain(&name, line) {
                problems.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    problems
}

/// The code of a line, without a comment at its end and without what stands in quotes.
fn code(line: &str) -> String {
    let mut outside = true;
    let mut kept = String::new();
    for part in line.split('"') {
        if outside {
            if let Some((before, _)) = part.split_once("//") {
                kept.push_str(before);
                return kept;
            }
            kept.push_str(part);
        }
        outside = !outside;
    }
    kept
}

/// True if the text has the word by itself.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|found| found == word)
}

#[test]
fn files_are_short() {
    let mut problems = Vec::new();
    for (name, text) in sources(&["rs"]) {
        let count = text.lines().count();
        if count > TOO_LONG {
            problems.push(format!("{name}: {count} lines"));
        } else if count > LONG {
            eprintln!("{name}: {count} lines, more than {LONG}");
        }
    }
    none(&problems, "files of more than 600 lines");
}

#[test]
fn modules_open_with_documentation() {
    let undocumented =
        |text: &str| !text.lines().find(|line| !line.trim().is_empty()).unwrap_or("").starts_with("//!");
    let found = sources(&["rs"]).into_iter().filter(|(_, text)| undocumented(text)).map(|(name, _)| name);
    none(&found.collect::<Vec<_>>(), "files that do not open with `//!`");
}

#[test]
fn nothing_is_put_off() {
    // Written in two parts so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let ignored = concat!("#[ig", "nore");
    none(
        &lines(|_, line| marks.iter().any(|mark| has_word(line, mark)) || line.contains(ignored)),
        "put off",
    );
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let allowed = |name: &str| UNSAFE.iter().any(|place| name.starts_with(place));
    let problems = lines(|name, line| !allowed(name) && has_word(&code(line), "unsafe"));
    none(&problems, "unsafe code outside of its modules");
}

#[test]
fn the_codec_has_one_user() {
    let crate_name = concat!("bin", "code");
    let problems =
        lines(|name, line| name != "image-format/src/codec.rs" && has_word(&code(line), crate_name));
    none(&problems, "the codec is used outside of image-format/src/codec.rs");
}

#[test]
fn licences_are_there() {
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        assert!(text.len() > 500, "{name} is missing or empty");
    }
}

#[test]
fn no_path_of_one_machine() {
    let places = [concat!("/wo", "rk/"), concat!("/tmp/", "w/"), concat!("/ro", "ot/")];
    let mut problems = Vec::new();
    for (name, text) in sources(&["rs", "toml", "md", "sh", "yml", "yaml", "json"]) {
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                problems.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(&problems, "paths that exist on one machine only");
}

#[test]
fn end_to_end_topics_are_listed() {
    let main = fs::read_to_string(root().join("tests/e2e/main.rs")).unwrap();
    for (name, text) in sources(&["rs"]) {
        let Some(topic) = name.strip_prefix("tests/e2e/").and_then(|name| name.strip_suffix(".rs")) else {
            continue;
        };
        if text.contains("const TOPIC: Topic") {
            assert!(
                main.contains(&format!("{topic}::TOPIC")),
                "{name} is not in the list of tests/e2e/main.rs"
            );
        }
    }
}

#[test]
fn kinds_are_listed() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let kinds = fs::read_to_string(root().join("supervisor/src/kinds/mod.rs")).unwrap();
    let descriptors = fs::read_to_string(root().join("supervisor/src/kinds/descriptor/mod.rs")).unwrap();
    let folders = kinds
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';').map(|name| format!("`{name}`")));
    let below = descriptors.split("name: \"").skip(1).filter_map(|rest| rest.split_once('"'));
    let below = below.map(|(name, _)| format!("`descriptor/{name}`"));
    let missing: Vec<String> =
        folders.chain(below).filter(|name| !architecture.contains(&format!("\n| {name} |"))).collect();
    none(&missing, "kinds that the list in ARCHITECTURE.md lacks");
}
