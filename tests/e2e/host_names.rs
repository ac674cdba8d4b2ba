//! Programs that have their own names of host and domain (UTS namespaces).

use std::fs;

use crate::harness::case::{Case, all_left_running, text};
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::{check, fork};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "host_names",
    fixtures: &[("host-names", names), ("host-names-two", two)],
    cases: &[
        ("of_a_tree", of_a_tree),
        ("left_running", || need_root().and_then(|()| all_left_running(&["host-names"]))),
        ("of_several_trees_in_one", several),
    ],
};

/// The names that this process sees.
fn seen() -> [String; 2] {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        text.trim_end().to_owned()
    };
    [read("hostname"), read("domainname")]
}

fn set(names: &[String; 2]) {
    // SAFETY: pointers and lengths are those of slices.
    unsafe {
        check(libc::sethostname(names[0].as_ptr().cast(), names[0].len())).unwrap();
        check(libc::setdomainname(names[1].as_ptr().cast(), names[1].len())).unwrap();
    }
}

fn own_namespace() {
    // SAFETY: a plain integer.
    unsafe { check(libc::unshare(libc::CLONE_NEWUTS)).unwrap() };
}

/// Gives itself other names in each round; a child sees them too.
fn names(stage: Stage) {
    own_namespace();
    let longest = "x".repeat(64);
    let mut names = ["vckpt-test".to_owned(), String::new()];
    set(&names);
    let child = fork(|| {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    stage.serve_except(&["namespace"], move |number| {
        verify!(seen() == names, "{:?} instead of {names:?}", seen());
        let link =
            |pid: String| fs::read_link(format!("/proc/{pid}/ns/uts")).map_err(|error| error.to_string());
        verify!(link(child.to_string())? == link("self".to_owned())?, "the child is elsewhere");
        names = [format!("host-{number}"), longest.clone()];
        set(&names);
        Ok(())
    });
}

fn of_a_tree() -> Outcome {
    need_root()?;
    let before = seen();
    let mut case = Case::new()?;
    let mut root = case.start("host-names", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
        ensure!(seen() == before, "the host is called {:?} instead of {before:?}", seen());
    }
    case.finish(root)
}

/// A child has other names than its parent.
fn two(stage: Stage) {
    fork(|| {
        own_namespace();
        fs::write(stage.path("apart"), "").unwrap();
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    while !stage.path("apart").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    stage.serve(|_| Ok(()));
}

fn several() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("host-names-two", &[])?;
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("another UTS namespace"), "it is not named: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}
