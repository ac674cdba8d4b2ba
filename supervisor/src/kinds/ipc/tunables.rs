//! The limits of an IPC namespace: files of `/proc/sys` that show whoever opens them those of his own namespace, so a task
//! in it has to do that (proc_sys_kernel(5), proc_sys_fs(5), mq_overview(7)).

use crate::error::Result;
use crate::stub::batch::{Batch, Outcome};
use vckpt_image_format::Text;
use vckpt_image_format::record::ipc_namespace::{TUNABLES, Tunable};

/// Bytes of the longest text: `sem` has four numbers.
const LONGEST: usize = 100;

/// Reads all that this kernel has, by calls of a task in the namespace.
///
/// # Errors
/// Those of the calls as a whole; a file that is not there is left out.
pub(super) fn read(mut run: impl FnMut(&Batch) -> Result<Outcome>) -> Result<Vec<Tunable>> {
    let mut found = Vec::new();
    for name in TUNABLES {
        let mut batch = Batch::new();
        let path = batch.data(path(name.as_bytes()).as_slice());
        // Whatever it is that the target has at that path, opening it must not wait.
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK).into();
        let file = batch.call(
            "opening a limit of an IPC namespace",
            libc::SYS_openat,
            [libc::AT_FDCWD.into(), path.into(), flags, 0.into()],
        );
        let room = batch.room(LONGEST);
        let arguments = [file.into(), room.into(), LONGEST.into()];
        let read = batch.call("reading a limit of an IPC namespace", libc::SYS_read, arguments);
        batch.call("closing a file", libc::SYS_close, [file.into()]);
        let outcome = run(&batch)?;
        let (Ok(_), Ok(length)) = (outcome.get(file), outcome.get(read)) else { continue };
        let text = outcome.bytes(room).get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        found.push(Tunable { name: Text::from(name.as_bytes()), value: Text::from(text.trim_ascii_end()) });
    }
    Ok(found)
}

/// Writes those that are not as they were, as far as they can be read.
pub(super) fn write(wanted: &[Tunable], found: &[Tunable]) -> Batch {
    let mut batch = Batch::new();
    let differs = |tunable: &&Tunable| {
        found.iter().any(|found| found.name == tunable.name && found.value != tunable.value)
    };
    for tunable in wanted.iter().filter(differs) {
        let path = batch.data(path(&tunable.name.0).as_slice());
        let flags = (libc::O_WRONLY | libc::O_CLOEXEC).into();
        let arguments = [libc::AT_FDCWD.into(), path.into(), flags, 0.into()];
        let file = batch.must("opening a limit of an IPC namespace", libc::SYS_openat, arguments);
        let value = batch.data(&tunable.value.0);
        let arguments = [file.into(), value.into(), tunable.value.0.len().into()];
        batch.must("setting a limit of an IPC namespace", libc::SYS_write, arguments);
        batch.must("closing a file", libc::SYS_close, [file.into()]);
    }
    batch
}

/// With a NUL at the end.
fn path(name: &[u8]) -> Vec<u8> {
    [b"/proc/sys/", name, b"\0"].concat()
}
