//! A case: a fresh folder, the program that is frozen, and the `vckpt` commands upon it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::{self, spawn, until, wait_exit, wait_gone};
use super::{Outcome, Stop, ensure, fail};

/// How long one `vckpt` command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a fixture may take to become ready or to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The `vckpt` program under test.
pub(crate) fn vckpt_program() -> PathBuf {
    std::env::var_os("VCKPT_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_vckpt")), PathBuf::from)
}

/// A `vckpt` command that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) arguments: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// Fails unless the command ended with 0.
    pub(crate) fn good(self) -> Outcome<Self> {
        ensure!(self.status.success(), "{}", self.describe());
        Ok(self)
    }

    /// Everything about the command, for messages.
    pub(crate) fn describe(&self) -> String {
        let Self { arguments, status, stdout, stderr, took } = self;
        format!("`vckpt {arguments}` ended with {status} after {took:?}\nstdout: {stdout}\nstderr: {stderr}")
    }

    /// Fails unless the command refused with this exit code, a stable error code and a hint.
    pub(crate) fn refused(&self, codes: &[i32]) -> Outcome {
        let code = self.status.code();
        ensure!(code.is_some_and(|code| codes.contains(&code)), "wanted exit {codes:?}: {}", self.describe());
        ensure!(self.stderr.contains("VC-"), "no error code VC-…: {}", self.describe());
        ensure!(self.stderr.contains("hint"), "no hint: {}", self.describe());
        ensure!(!self.stderr.contains("panicked"), "a panic: {}", self.describe());
        Ok(())
    }
}

/// A running case.
#[derive(Debug)]
pub(crate) struct Case {
    /// Folder of this case alone; removed at the end.
    pub(crate) folder: PathBuf,
    /// The program under test; a copy when an ordinary user must reach it.
    pub(crate) vckpt: PathBuf,
    /// The test binary, holding the fixtures.
    pub(crate) fixtures: PathBuf,
    /// Drop to this user and group for everything that is started.
    pub(crate) user: Option<u32>,
    images: u32,
    asked: u32,
    commands: u32,
    done: bool,
    /// The longest freeze that `vckpt` has told of, in milliseconds: who waits too long may have been that long away.
    longest_freeze: f64,
    /// Control run: nothing is dumped, so a failure is one of the fixture itself.
    control: Option<i32>,
}

impl Case {
    /// A case with a fresh folder.
    pub(crate) fn new() -> Outcome<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vckpt-e2e-{}-{number}", std::process::id()));
        fs::create_dir(&folder)?;
        let fixtures = fs::read_link("/proc/self/exe")?;
        Ok(Self {
            folder,
            vckpt: vckpt_program(),
            fixtures,
            user: None,
            images: 0,
            asked: 0,
            commands: 0,
            done: false,
            longest_freeze: 0.0,
            control: std::env::var_os("VCKPT_TEST_CONTROL").map(|_| 0),
        })
    }

    /// A case whose programs, `vckpt` included, run as an ordinary user even if the harness is root.
    pub(crate) fn new_as_ordinary_user() -> Outcome<Self> {
        let mut case = Self::new()?;
        if super::is_root() {
            let user = 65534;
            for (field, name) in [(&mut case.vckpt, "vckpt-copy"), (&mut case.fixtures, "fixtures-copy")] {
                let copy = case.folder.join(name);
                fs::copy(&*field, &copy)?;
                fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
                *field = copy;
            }
            std::os::unix::fs::chown(&case.folder, Some(user), Some(user))?;
            case.user = Some(user);
        }
        Ok(case)
    }

    /// True in the control run, in which nothing is dumped.
    pub(crate) fn is_control(&self) -> bool {
        self.control.is_some()
    }

    /// A path in the folder of the case.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command in the folder of the case, in a session of its own, its output in `NAME.out`.
    pub(crate) fn command(&self, program: &Path, name: &str) -> Outcome<Command> {
        let output = self.path(&format!("{name}.out"));
        let stdout = File::options().create(true).append(true).open(&output)?;
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&output, Some(user), Some(user))?;
        }
        let stderr = File::options().append(true).open(&output)?;
        let mut command = Command::new(program);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", &self.folder);
        }
        // SAFETY: setsid is async-signal-safe.
        unsafe {
            command
                .pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
        }
        Ok(command)
    }

    /// The command that runs a fixture; the caller may change it before it is started.
    pub(crate) fn fixture(&self, name: &str, arguments: &[&str]) -> Outcome<Command> {
        let mut command = self.command(&self.fixtures, name)?;
        command.arg("fixture").arg(name).arg(&self.folder).args(arguments);
        Ok(command)
    }

    /// Starts a fixture and waits until it is ready.
    pub(crate) fn start(&mut self, name: &str, arguments: &[&str]) -> Outcome<i32> {
        let pid = spawn(&mut self.fixture(name, arguments)?)?;
        self.wait_ready(name, pid)?;
        Ok(pid)
    }

    /// Waits until a fixture has written that it is ready.
    pub(crate) fn wait_ready(&self, name: &str, pid: i32) -> Outcome {
        let ready = self.path("ready");
        until(&format!("fixture {name} to be ready"), ANSWER_LIMIT, || {
            if !process::alive(pid) {
                return Some(fail(format!("fixture {name} ended early\n{}", self.output(name))));
            }
            ready.exists().then_some(Ok(()))
        })?
    }

    /// What a program of this case has printed so far.
    pub(crate) fn output(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.out"))).unwrap_or_default()
    }

    /// Runs `vckpt` to its end.
    pub(crate) fn vckpt(&mut self, arguments: &[&str]) -> Outcome<Ran> {
        let start = Instant::now();
        let (pid, files) = self.start_vckpt(arguments)?;
        let ran = self.ended(pid, files, arguments)?;
        let words: Vec<&str> = ran.stderr.split_ascii_whitespace().collect();
        for words in words.windows(3) {
            if let ["frozen", time, "ms," | "ms"] = words {
                self.longest_freeze = self.longest_freeze.max(time.parse().unwrap_or(0.0));
            }
        }
        Ok(Ran { took: start.elapsed(), ..ran })
    }

    /// Starts `vckpt` with its output in files of the case's folder.
    pub(crate) fn start_vckpt(&mut self, arguments: &[&str]) -> Outcome<(i32, [PathBuf; 2])> {
        self.commands += 1;
        let files = ["stdout", "stderr"].map(|name| self.path(&format!("vckpt-{}.{name}", self.commands)));
        let mut command = self.command(&self.vckpt, "vckpt")?;
        command.args(arguments).stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
        Ok((spawn(&mut command)?, files))
    }

    /// Waits for a started `vckpt` and collects what it printed.
    pub(crate) fn ended(&self, pid: i32, files: [PathBuf; 2], arguments: &[&str]) -> Outcome<Ran> {
        let start = Instant::now();
        let arguments = arguments.join(" ");
        let waited = wait_exit(pid, COMMAND_LIMIT);
        if let Err(Stop::Failed(error)) = waited {
            process::signal(pid, libc::SIGKILL)?;
            let stderr = fs::read_to_string(&files[1]).unwrap_or_default();
            return fail(format!("`vckpt {arguments}` hangs: {error}\nstderr: {stderr}"));
        }
        let [stdout, stderr] = files.map(|file| {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let _ = fs::remove_file(&file);
            text
        });
        Ok(Ran { arguments, status: waited?, stdout, stderr, took: start.elapsed() })
    }

    /// Dumps a tree, which must then be gone. Gives the image.
    pub(crate) fn dump(&mut self, root: i32) -> Outcome<PathBuf> {
        let members = process::tree(root);
        process::forget_status(root);
        self.note_outage("begins")?;
        let image = self.dump_with(root, &[])?;
        if self.control.is_some() {
            return Ok(image);
        }
        for pid in members {
            wait_gone(pid, Duration::from_secs(5))?;
        }
        // The root is not a child of the harness if it was restored into a PID namespace of its own.
        if let Some(status) = process::take_status(root) {
            ensure!(status.signal() == Some(libc::SIGKILL), "the dumped root ended with {status}");
        }
        Ok(image)
    }

    /// Dumps a tree with more options; what becomes of it is the caller's to check.
    pub(crate) fn dump_with(&mut self, root: i32, options: &[&str]) -> Outcome<PathBuf> {
        self.images += 1;
        let image = self.path(&format!("image-{}.vckpt", self.images));
        if self.control.is_some() {
            self.control = Some(root);
            File::create(&image)?;
            return Ok(image);
        }
        let pid = root.to_string();
        let mut arguments = vec!["dump", &pid, "-o", text(&image)];
        arguments.extend(options);
        let ran = self.vckpt(&arguments)?.good()?;
        ensure!(ran.stdout.contains(text(&image)), "the image's path is not on stdout: {}", ran.describe());
        ensure!(image.is_file(), "there is no image: {}", ran.describe());
        let mode = fs::metadata(&image)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "the image has mode {mode:o}");
        Ok(image)
    }

    /// Restores an image in the background and gives the PID of its root, as this process sees it.
    pub(crate) fn restore(&mut self, image: &Path) -> Outcome<i32> {
        self.restore_with(image, &[])
    }

    /// Restores with more options.
    pub(crate) fn restore_with(&mut self, image: &Path, options: &[&str]) -> Outcome<i32> {
        if let Some(root) = self.control {
            self.note_outage("ends")?;
            return Ok(root);
        }
        let pid_file = self.path("restored.pid");
        let _ = fs::remove_file(&pid_file);
        let mut arguments = vec!["restore", text(image), "--detach", "--pid-file", text(&pid_file)];
        arguments.extend(options);
        let ran = self.vckpt(&arguments)?.good()?;
        self.note_outage("ends")?;
        let Ok(pid) = ran.stdout.trim().parse::<i32>() else {
            return fail(format!("no PID on stdout: {}", ran.describe()));
        };
        let written = fs::read_to_string(&pid_file)?;
        ensure!(written.trim() == pid.to_string(), "the PID file says {written:?}, stdout {pid}");
        ensure!(process::state(pid).is_some(), "the restored root {pid} is not there: {}", ran.describe());
        Ok(pid)
    }

    /// Asks the fixture to verify itself.
    pub(crate) fn ask(&mut self) -> Outcome {
        self.asked += 1;
        let number = self.asked;
        fs::write(self.path(&format!("ask.{number}")), "")?;
        let answer = self.path(&format!("answer.{number}"));
        let answer = until(&format!("answer {number} of the fixture"), ANSWER_LIMIT, || {
            process::reap();
            fs::read_to_string(&answer).ok()
        })
        .map_err(|stop| self.with_outputs(stop))?;
        let longest = self.longest_freeze;
        ensure!(
            answer == "ok",
            "the program says, verification {number} (longest freeze {longest} ms): {answer}"
        );
        Ok(())
    }

    /// Does something during which the program may stand still; that time is noted as an outage.
    pub(crate) fn standing_still<T>(&mut self, act: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.note_outage("begins")?;
        let result = act(self);
        self.note_outage("ends")?;
        result
    }

    /// Notes when the program is away, for fixtures that measure how long their waits take.
    fn note_outage(&self, what: &str) -> Outcome {
        let path = self.path("outages");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let draft = self.path("outages-draft");
        fs::write(&draft, format!("{text}{what} {}\n", crate::stage::kernel::monotonic().as_nanos()))?;
        fs::rename(&draft, &path)?;
        Ok(())
    }

    /// Adds what the programs have printed to a failure.
    fn with_outputs(&self, stop: Stop) -> Stop {
        let Stop::Failed(mut message) = stop else { return stop };
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "out") {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                message.push_str(&format!("\n{}: {text}", entry.file_name().display()));
            }
        }
        Stop::Failed(message)
    }

    /// One dump and restore; the fixture verifies itself afterwards. Gives the new root.
    pub(crate) fn round(&mut self, root: i32) -> Outcome<i32> {
        let image = self.dump(root)?;
        let root = self.restore(&image)?;
        fs::remove_file(&image)?;
        self.ask()?;
        Ok(root)
    }

    /// Ends the tree and checks that nothing else is left.
    pub(crate) fn finish(mut self, root: i32) -> Outcome {
        let members = process::tree(root);
        for pid in &members {
            // It may end by itself at any moment.
            if process::alive(*pid)
                && let Err(error) = process::signal(*pid, libc::SIGKILL)
                && process::alive(*pid)
            {
                return Err(error);
            }
        }
        for pid in members {
            wait_gone(pid, Duration::from_secs(10))?;
        }
        self.finish_empty()
    }

    /// Checks that nothing is left: no process, no temporary beside the images.
    pub(crate) fn finish_empty(&mut self) -> Outcome {
        self.done = true;
        let left = until("the last helpers to end", Duration::from_secs(2), || {
            process::reap();
            let own = i32::try_from(std::process::id()).ok()?;
            process::children(own).is_empty().then_some(())
        });
        let found = process::end_all_children();
        ensure!(left.is_ok(), "processes are left behind: {found:?}");
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(!name.contains(".tmp") && !name.contains(".partial"), "a temporary is left: {name}");
        }
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if !self.done {
            process::end_all_children();
        }
        if std::env::var_os("VCKPT_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A path as text; the paths of the tests are all ASCII.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// The ordinary case: start, verify, twice dump and restore with verification, end.
pub(crate) fn two_rounds(fixture: &str) -> Outcome {
    two_rounds_with(fixture, &[])
}

/// As [`two_rounds`], with arguments for the fixture.
pub(crate) fn two_rounds_with(fixture: &str, arguments: &[&str]) -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start(fixture, arguments)?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}

/// Each of these is dumped and left running, twice, and verifies itself.
pub(crate) fn all_left_running(fixtures: &[&str]) -> Outcome {
    for fixture in fixtures {
        let mut case = Case::new()?;
        let root = case.start(fixture, &[])?;
        case.ask()?;
        for _ in 0..2 {
            let image = case.dump_with(root, &["--leave-running"])?;
            fs::remove_file(image)?;
            case.ask().map_err(|stop| match stop {
                Stop::Failed(message) => Stop::Failed(format!("{fixture}: {message}")),
                Stop::Skipped(ability) => Stop::Skipped(ability),
            })?;
        }
        case.finish(root)?;
    }
    Ok(())
}
