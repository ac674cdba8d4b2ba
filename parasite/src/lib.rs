//! The stub that vckpt injects into a task, the protocol it speaks, and the finished blob.
//!
//! The package is compiled twice from these sources. Its build script compiles them as a freestanding program (cfg
//! `parasite_stub`), checks the result and keeps its bytes; Cargo compiles them as this library, which holds the
//! protocol, the serve loop (the same code, testable without an injection) and those bytes.
//!
//! Not here: injecting, driving, or knowing what a batch is for. That is the supervisor's work.
//!
//! The stub runs inside tasks it knows nothing of. So it has no writable statics, no thread-local storage, no
//! relocations and no way to panic; the build fails if one of these gets in.
#![no_std]
#![cfg_attr(parasite_stub, no_main)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the stub is written for x86-64 Linux");

#[cfg(not(parasite_stub))]
extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(not(parasite_stub))]
mod blob;
#[cfg(parasite_stub)]
mod entry;
#[cfg(not(parasite_stub))]
mod executable;
pub mod life;
pub mod protocol;
pub mod serve;
mod sys;

#[cfg(not(parasite_stub))]
pub use blob::{ENTRY_OFFSET, STUB_IMAGE};
#[cfg(not(parasite_stub))]
pub use executable::executable;
