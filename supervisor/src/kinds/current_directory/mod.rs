//! Current directory: where the paths of a process begin (`fs_struct`): current directory, root directory, umask.
//!
//! - **Saved**: both by path, and the umask.
//! - **Refused**: a current directory or root whose name is gone.
//! - **Kernel**: `/proc/<pid>/cwd`, `root`, and `Umask` of `status` (4.7); `chroot(2)`, `chdir(2)`, `umask(2)` made by
//!   the process itself.

pub mod observe;
pub mod restore;
