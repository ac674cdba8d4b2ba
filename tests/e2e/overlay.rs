//! Other cases once more, on an overlay of two file systems as containers have it: in a mount namespace of their own.

use std::process::Command;

use crate::harness::case::{Case, vckpt_program};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, need_root, skip};

pub(crate) const TOPIC: Topic = Topic {
    name: "overlay",
    fixtures: &[],
    cases: &[
        // Mapped files too.
        ("files", || again("files::")),
        ("paths", || again("paths::")),
        ("inotify", || again("watches::inotify")),
    ],
};

/// Makes the layers and the overlay, then runs the cases there.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs layers "$PWD"
cd "$PWD"
mkdir lower upper work over
mkdir lower/below
mount -t overlay over -o lowerdir=lower,upperdir=upper,workdir=work over || { echo "no overlay"; exit 77; }
chmod 1777 over
TMPDIR=$PWD/over exec "$@"
"#;

fn again(filter: &str) -> Outcome {
    need_root()?;
    let unshare = need_program("unshare")?;
    let case = Case::new()?;
    let output = Command::new(unshare)
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", SCRIPT, "overlay"])
        .arg(std::env::current_exe()?)
        .arg(filter)
        .env("VCKPT_BIN", vckpt_program())
        .current_dir(&case.folder)
        .output()?;
    if output.status.code() == Some(77) {
        return skip("overlayfs");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("test result: ok.") && !said.contains(" 0 passed"),
        "on an overlay:\n{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
