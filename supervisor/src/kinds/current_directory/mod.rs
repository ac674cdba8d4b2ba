//! Current directory: where the paths of a process begin (`fs_struct`): current directory, root directory, umask.
//!
//! - **Saved**: both by path, and the umask; a current directory that was removed is one that was removed again.
//! - **Refused**: a root whose name is gone, and directories over which something is mounted.
//! - **Kernel**: `/proc/<pid>/cwd`, `root`, and `Umask` of `status` (4.7); `chroot(2)`, `chdir(2)`, `umask(2)` made by
//!   the process itself.

pub mod observe;
pub mod restore;
